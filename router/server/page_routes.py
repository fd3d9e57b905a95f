"""Finds the page that answers a stateful route, and defines what a page gets.

Paths are matched exactly, segment by segment. A segment in braces matches any name. Any other path is 404.
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
    """One request. ``connect`` opens the client's connection, for pages that answer there. Its argument is text in the
    worker's request that the client must not see."""

    names: Sequence[str]
    """Segments of the path in place of braces."""
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
        """The parsed body. ``parse`` is pure and can be pickled: a costly body is parsed in another process. The values count
        as memory until the request ends. Raises MemoryFull, and what ``parse`` raises."""
        if is_cheap(self.body):
            self.memory.grow(DECODED, expected_weight(self.body))
            return parse(self.body)
        tenant = self.caller.rules.tenant
        value, held_bytes = await self.parsers.run(tenant, partial(weighed, parse=parse), self.body)
        self.memory.grow(DECODED, held_bytes)
        return value


Page = Callable[[Call], Awaitable[bytes | None]]
"""Returns JSON, or None if it has answered the client's connection."""


class Pages(Protocol):
    """One API."""

    def pages(self) -> Mapping[tuple[str, str], Page]:
        """Its pages by method and path."""
        ...


@dataclass(frozen=True, slots=True)
class Match:
    template: str
    names: Sequence[str]
    by_method: Mapping[str, Page]


class PageRoutes:
    """``describe`` describes the routes; see ``server.openapi``."""

    def __init__(self, apis: Sequence[Pages], describe: DescribePages) -> None:
        self.describe = describe
        self._by_segments: dict[tuple[str, ...], dict[str, Page]] = {}
        for api in apis:
            for (method, path), page in api.pages().items():
                self._by_segments.setdefault(_template(path), {})[method] = page
        self._first = frozenset(segments[1] for segments in self._by_segments if len(segments) > 1)

    def find(self, raw_path: str) -> Match | None:
        """``raw_path`` has its escapes and query. Raises InvalidRequest for an invalid name."""
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
    """A name is printable, for logs and people."""
    try:
        name = unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise InvalidRequest("a name in the path is not UTF-8") from None
    if not 1 <= len(name) <= MAX_NAME_CHARS or not name.isprintable():
        raise InvalidRequest(f"a name in the path must have 1 to {MAX_NAME_CHARS} printable characters")
    return name
