"""A collector on a real socket that decodes what it is sent by OpenTelemetry's own classes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.e2e.routed import until


@dataclass(frozen=True, slots=True)
class Got:
    """One span as it came."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    began_ns: int
    ended_ns: int
    is_error: bool
    attributes: Mapping[str, Any]


@dataclass(slots=True)
class Collector:
    """``status``: what it answers. ``hangs``: it takes connections, and answers never."""

    url: str = ""
    status: int = 200
    location: str = ""
    hangs: asyncio.Event | None = None
    spans: list[Got] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    resources: list[Mapping[str, Any]] = field(default_factory=list)

    async def take(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        self.raw.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.hangs is not None:
            await self.hangs.wait()
        if self.status == 200:
            self._read(body)
        headers = {"Location": self.location} if self.location else None
        return web.Response(status=self.status, headers=headers)

    def _read(self, body: bytes) -> None:
        message = ExportTraceServiceRequest.FromString(body)
        for resource in message.resource_spans:
            self.resources.append(_attributes(resource.resource.attributes))
            for scope in resource.scope_spans:
                self.spans += map(_got, scope.spans)

    async def tree(self, request_id: str) -> Tree:
        """Of the request, once it came."""
        await until(lambda: self._root(request_id))
        root = self._root(request_id)
        assert root is not None
        return Tree(root, [span for span in self.spans if span.trace_id == root.trace_id])

    def _root(self, request_id: str) -> Got | None:
        return next((span for span in self.spans if span.attributes.get("warmroute.request_id") == request_id), None)


@dataclass(frozen=True, slots=True)
class Tree:
    root: Got
    spans: list[Got]

    def below(self, parent: Got | None = None) -> list[Got]:
        """In their order."""
        wanted = (parent or self.root).span_id
        return [span for span in self.spans if span.parent_id == wanted]

    def names(self, parent: Got | None = None) -> list[str]:
        return [span.name for span in self.below(parent)]

    def attempts(self) -> list[Got]:
        return [span for span in self.below() if span.kind == CLIENT]


INTERNAL, SERVER, CLIENT = 1, 2, 3


def _got(span: Any) -> Got:
    return Got(
        name=span.name,
        kind=span.kind,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        began_ns=span.start_time_unix_nano,
        ended_ns=span.end_time_unix_nano,
        is_error=span.status.code == 2,
        attributes=_attributes(span.attributes),
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)


@asynccontextmanager
async def collecting(**how: Any) -> AsyncIterator[Collector]:
    collector = Collector(**how)
    server = web.Server(collector.take)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
    try:
        yield collector
    finally:
        if collector.hangs is not None:
            collector.hangs.set()
        await runner.cleanup()
