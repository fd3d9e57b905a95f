"""The errors that a client may see: one status and one code each, and the tree in the docstring is the tree."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from router.core import errors
from router.core.errors import (
    BodyTimeout,
    ClientError,
    ConnectionsLimited,
    Overloaded,
    PoisonRequest,
    RateLimited,
    RouteNotFound,
    RouterError,
    SessionBusy,
    SessionCorrupt,
    SessionNotFound,
    Unavailable,
    WorkerError,
    WorkersBusy,
)


def descend(root: type[RouterError]) -> Iterator[type[RouterError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from descend(child)


ALL = list(descend(RouterError))
LEAVES = [each for each in ALL if list(descend(each)) == [each]]
GROUPS = ("ClientError", "InvalidRequest", "TenantLimited", "Unavailable")
CODED: list[type[RouterError]] = [*LEAVES, WorkerError, Overloaded, RateLimited, SessionBusy]
TOLD_APART_INSIDE = (ConnectionsLimited, PoisonRequest, WorkersBusy)
NOT_FOUND = (RouteNotFound, SessionNotFound)
"""They have their class's code: clients need not know."""


def test_the_tree_at_the_top_names_every_error_with_its_status_and_code() -> None:
    drawn = dict(re.findall(r"── (\w+) +(?:\d{3} +)?(?!the )(\w+)", str(errors.__doc__)))
    assert {each.__name__: each.code for each in CODED} == {
        name: code for name, code in drawn.items() if name not in GROUPS
    }
    for name, status in re.findall(r"── (\w+) +(\d{3})", str(errors.__doc__)):
        assert getattr(errors, name).status == int(status)


def test_codes_are_told_apart() -> None:
    assert len({each.code for each in CODED}) == len(CODED) - len(TOLD_APART_INSIDE) - 1
    assert {each.code for each in NOT_FOUND} == {"not_found"}
    assert all(each.code == each.__base__.code for each in TOLD_APART_INSIDE)  # type: ignore[union-attr]


@pytest.mark.parametrize("error", LEAVES)
def test_the_class_says_whose_fault_it_is(error: type[RouterError]) -> None:
    if issubclass(error, ClientError):
        assert 400 <= error.status < 500
        assert error.retryable == issubclass(error, BodyTimeout | RateLimited | SessionBusy), (
            "seconds heal nothing else"
        )
    else:
        assert issubclass(error, WorkerError | Unavailable | SessionCorrupt)
        assert error.status in (500, 502, 503, 504)
        assert error.retryable == (error not in (PoisonRequest, SessionCorrupt)), "whoever sends it again kills again"
