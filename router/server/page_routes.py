"""The routes whose state the router keeps: which page answers a path, and what a page is told of a request.

Paths are matched segment by segment, exactly; a segment in braces takes any name. Anything else is 404.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar
from urllib.parse import unquote

from router.core.errors import InvalidRequest
from router.core.tenants.memory import DECODED, Holding
from router.core.tenants.tenant import Caller
from router.server.client import ClientConnection
from router.server.openapi import DescribePages
from router.server.parsing.pool import Parsers, is_cheap
from router.server.parsing.weight import expected_weight, weighed
from router.wire.client_head import exact_path

MAX_NAME_CHARS = 256

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request. ``connect``: its client's connection, for pages that answer there; its argument is text of the request to
    the worker that the client must not read."""

    names: Sequence[str]
    """What the path had in place of braces."""
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    caller: Caller
    request_id: str
    started_at: float
    connect: Callable[[str], ClientConnection]
    parsers: Parsers
    memory: Holding

    async def read(self, parse: Callable[[bytes], T]) -> T:
        """What the body says. ``parse`` is pure and can be pickled: a costly body is read in another process. The values are
        held until the request ends, and count as such. Raises what it raises, MemoryFull."""
        if is_cheap(self.body):
            self.memory.grow(DECODED, expected_weight(self.body))
            return parse(self.body)
        tenant = self.caller.rules.tenant
        value, held_bytes = await self.parsers.run(tenant, partial(weighed, parse=parse), self.body)
        self.memory.grow(DECODED, held_bytes)
        return value


Page = Callable[[Call], Awaitable[bytes | None]]
"""Returns JSON, or None where it has answered the client's connection."""


class Pages(Protocol):
    """What one door serves."""

    def pages(self) -> Mapping[tuple[str, str], Page]:
        """By method and path."""
        ...


@dataclass(frozen=True, slots=True)
class Match:
    template: str
    names: Sequence[str]
    by_method: Mapping[str, Page]


class PageRoutes:
    """``describe``: the same routes for machines; see ``server.openapi``."""

    def __init__(self, doors: Sequence[Pages], describe: DescribePages) -> None:
        self.describe = describe
        self._by_segments: dict[tuple[str, ...], dict[str, Page]] = {}
        for door in doors:
            for (method, path), page in door.pages().items():
                self._by_segments.setdefault(_template(path), {})[method] = page
        self._first = frozenset(segments[1] for segments in self._by_segments if len(segments) > 1)

    def find(self, raw_path: str) -> Match | None:
        """``raw_path``: as it came, escapes and query included. Raises InvalidRequest for a name that is none."""
        path = exact_path(raw_path)
        segments = path.strip("/").split("/") if path.startswith("/v1/") else []
        if len(segments) < 2 or segments[1] not in self._first or path.endswith("/"):
            return None
        for template, by_method in self._by_segments.items():
            if len(template) == len(segments) and all(
                wanted in ("{}", given) for wanted, given in zip(template, segments, strict=True)
            ):
                names = [_name(given) for wanted, given in zip(template, segments, strict=True) if wanted == "{}"]
                return Match("/" + "/".join(template), names, by_method)
        return None


def _template(path: str) -> tuple[str, ...]:
    return tuple("{}" if part.startswith("{") else part for part in path.strip("/").split("/"))


def _name(segment: str) -> str:
    """Names are printable, so that logs and people can read them."""
    try:
        name = unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise InvalidRequest("a name in the path is not UTF-8") from None
    if not 1 <= len(name) <= MAX_NAME_CHARS or not name.isprintable():
        raise InvalidRequest(f"a name in the path must have 1 to {MAX_NAME_CHARS} printable characters")
    return name
