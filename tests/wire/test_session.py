"""Which conversation a request belongs to: the first source that names one, and no other."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from multidict import CIMultiDict

from router.core.request.request import NO_TENANT, SessionKey, Tenant
from router.wire.session import HEADERS, session_key

BODIES: list[dict[str, Any]] = [{"prompt_cache_key": "n"}, {"metadata": {"user_id": "n"}}, {"user": "n"}]
SOURCES: list[tuple[dict[str, str], dict[str, Any]]] = [
    *(({header: "n"}, {}) for header in HEADERS),
    *(({}, body) for body in BODIES),
]


def key(headers: dict[str, str], body: dict[str, Any], tenant: Tenant = NO_TENANT) -> SessionKey | None:
    return session_key(CIMultiDict(headers), body, tenant)


def test_the_first_source_in_order_names_the_session() -> None:
    for (headers, body), (later_headers, later_body) in combinations(SOURCES, 2):
        assert key({**later_headers, **headers}, {**later_body, **body}) == key(headers, body) is not None


def test_equal_names_from_two_sources_or_tenants_never_meet() -> None:
    keys = {key(headers, body, Tenant(tenant)) for headers, body in SOURCES for tenant in ("", "a", "b")}
    assert len(keys) == 3 * len(SOURCES)
    assert key({"X-Session-ID": "n"}, {}, Tenant("a")) != key({"X-Session-ID": ":n"}, {}, Tenant("a"))


def test_header_names_are_read_in_any_case() -> None:
    assert key({"x-session-id": "n"}, {}) == key({"X-SESSION-ID": "n"}, {}) == key({"X-Session-ID": "n"}, {})


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, {}),
        ({"X-Session-ID": ""}, {"user": ""}),
        ({"X-Request-Id": "n", "traceparent": "n"}, {}),
        ({}, {"user": 5, "prompt_cache_key": None, "metadata": {"user_id": 7}}),
        ({}, {"metadata": "n"}),
        ({}, {"metadata": ["user_id"]}),
    ],
)
def test_what_names_no_conversation_gives_no_key(headers: dict[str, str], body: dict[str, Any]) -> None:
    assert key(headers, body) is None


def test_a_name_may_be_any_text_that_a_header_can_carry() -> None:
    assert key({"X-Session-ID": "\udcff"}, {}) is not None
