"""The two sides that dispatch carries a request between, as tests need them: a client, and workers that follow scripts.

``tests/test_fakes.py`` holds them against the real ones.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import pytest

from router.core.errors import RouterError
from router.core.request.attempt import AttemptFailed, WorkerDied
from router.core.request.record import Record
from router.core.request.reply import Reply, StreamEnd
from router.core.request.request import NO_TENANT, Request
from router.core.tenants.memory import Holding, MemoryBudget, MemoryFull
from router.core.worker import WorkerAddress
from router.proxy.ports import Client
from router.wire.framing import ChunkedReader
from router.wire.sse import Filter, StreamFilter
from router.wire.usage import Usage

STREAM = Reply(200, {}, b"", is_stream=True)

Answer = Reply | AttemptFailed | MemoryFull | asyncio.Event | asyncio.Future[Reply]
"""An event or a future: the worker is silent until it is set."""


def a_holding(max_bytes: int = 1 << 30) -> Holding:
    return MemoryBudget(max_bytes).hold(NO_TENANT)


class FakeClient:
    """``is_full_after``: bytes after which it reads no further. ``on_end``: called with what ends its answer."""

    def __init__(
        self,
        *,
        head: bytes = b"",
        is_chunked: bool = True,
        is_full_after: int | None = None,
        on_end: Callable[[str], object] = id,
    ) -> None:
        self.is_chunked = is_chunked
        self.is_full_after = is_full_after
        self._head = head
        self._on_end = on_end
        self.writes: list[bytes] = []
        self.replies: list[Reply] = []
        self.errors: list[RouterError] = []
        """Errors that broke its stream."""
        self.error_events: list[bytes] = []
        """Events of workers that broke its stream."""
        self.has_ended = False
        self.is_gone = False
        """Set by a test."""
        self.hold: asyncio.Event | None = None
        """While it is not set, the client takes no whole answer."""
        self.has_been_asked = False
        self.begun = asyncio.Event()
        """Something of a stream has arrived."""
        self.memory = a_holding()

    async def answer(self, reply: Reply, record: Record) -> None:
        self.has_been_asked = True
        if self.hold is not None:
            await self.hold.wait()
        self._on_end("client is answered")
        self.replies.append(reply)

    def stream_head(self, reply: Reply, record: Record) -> bytes:
        return self._head

    def write(self, data: bytes) -> None:
        assert not self.is_gone
        assert not self.has_ended
        self.writes.append(data)
        self.begun.set()

    def write_last(self, data: bytes) -> None:
        self.write(data)
        self.has_ended = True

    def is_closing(self) -> bool:
        return self.is_gone

    def is_full(self) -> bool:
        return self.is_full_after is not None and len(self.sent) > self.is_full_after

    async def drained(self) -> bool:
        return not self.is_gone

    def end_stream(self, events: bytes) -> None:
        self._on_end("client is at the end")
        self.write_last(events)

    def break_off(self, error: RouterError) -> None:
        self.errors.append(error)

    def break_off_with(self, event: bytes) -> None:
        self.error_events.append(event)

    @property
    def reply(self) -> Reply | None:
        return self.replies[-1] if self.replies else None

    @property
    def error(self) -> RouterError | None:
        return self.errors[-1] if self.errors else None

    @property
    def sent(self) -> bytes:
        return b"".join(self.writes)

    @property
    def events(self) -> bytes:
        """What was sent without its frames; fails where it is not whole frames."""
        if not self.is_chunked:
            return self.sent
        reader = ChunkedReader()
        payload, error = reader.feed(self.sent)
        assert error is None
        assert reader.at_boundary or reader.finished
        assert not reader.surplus
        return payload

    @property
    def has_last_chunk(self) -> bool:
        return self.sent.endswith(b"0\r\n\r\n")

    @property
    def choices(self) -> list[Any]:
        """Of a chat's stream."""
        chunks = [json.loads(line[6:]) for line in self.sent.split(b"\n") if line.startswith(b"data: {")]
        return [choice for chunk in chunks for choice in chunk["choices"]]

    @property
    def text(self) -> str:
        """All that a client of chats shows its user, through either kind of answer."""
        if self.reply is not None:
            return str(json.loads(b"".join(self.reply.pieces))["choices"][0]["message"]["content"])
        return "".join(choice["delta"].get("content") or "" for choice in self.choices)

    @property
    def reasons(self) -> list[str]:
        return [choice["finish_reason"] for choice in self.choices if choice["finish_reason"]]


@dataclass
class Script:
    """One exchange. ``answer``: in place of a stream of ``events``, if the script has any. ``upto``: events until the stream
    breaks with ``end``; None: all."""

    upto: int | None = None
    end: StreamEnd | asyncio.Event = StreamEnd.DIED
    answer: Answer | None = None
    events: Callable[[Request, str], Sequence[bytes]] | None = None
    """By the request and the host that is asked."""
    usage: Usage | None = None
    unbroken: AttemptFailed | None = None
    """What ``require_unbroken`` raises."""
    hold: str = ""
    """The phase in which the worker is silent from then on: "ask", "post" or "relay"."""
    error: bytes = b""
    """The event by which the worker ends its stream."""
    chunks: int = 0
    """Chunks of the stream that the record counts."""


def no_post(_host: str, path: str, _body: bytes) -> Reply:
    raise AssertionError(path)


@dataclass
class FakeUpstream:
    """Workers by host. ``scripts``: of the next exchanges of each; ``otherwise``: of those beyond."""

    otherwise: Callable[[str], Script] = lambda _host: Script()
    scripts: dict[str, list[Script]] = field(default_factory=lambda: defaultdict(list))
    post: Callable[[str, str, bytes], Reply | AttemptFailed] = no_post
    """What a host answers to a request of the router's own."""
    requests: list[tuple[str, Request]] = field(default_factory=list)
    waits: list[float | None] = field(default_factory=list)
    """For each request, how long its first event may take."""
    closed: list[str] = field(default_factory=list)
    """Hosts whose exchanges are over."""
    open: int = 0
    held: asyncio.Event = field(default_factory=asyncio.Event)
    """A worker is silent, as its script has it."""

    def exchange(self, worker: WorkerAddress) -> FakeExchange:
        return FakeExchange(self, worker.host)

    def next_script(self, host: str) -> Script:
        scripts = self.scripts[host]
        if not scripts:
            return self.otherwise(host)
        return scripts[0] if scripts[0].hold == "post" else scripts.pop(0)

    @property
    def asked(self) -> list[str]:
        return [host for host, _ in self.requests]


class FakeExchange:
    def __init__(self, upstream: FakeUpstream, host: str) -> None:
        self._upstream = upstream
        self._host = host
        self._script = Script()
        self._events: list[bytes] = []
        self._seen = b""
        self._filter: Filter | None = None

    def __enter__(self) -> FakeExchange:
        self._upstream.open += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._upstream.open -= 1
        self._upstream.closed.append(self._host)

    async def _be_silent(self) -> None:
        self._upstream.held.set()
        await asyncio.Event().wait()

    async def post(self, path: str, body: bytes, answer_s: float) -> Reply:
        scripts = self._upstream.scripts[self._host]
        if scripts and scripts[0].hold == "post":
            await self._be_silent()
        answer = self._upstream.post(self._host, path, body)
        if isinstance(answer, AttemptFailed):
            raise answer
        return answer

    async def ask(
        self, request: Request, stream_filter: Filter | None, memory: Holding, first_event_s: float | None = None
    ) -> Reply:
        upstream = self._upstream
        upstream.requests.append((self._host, request))
        upstream.waits.append(first_event_s)
        self._script, self._filter = upstream.next_script(self._host), stream_filter
        script = self._script
        if script.hold == "ask":
            await self._be_silent()
        if script.answer is not None:
            return await self._answer(script.answer)
        return self._begin(request)

    async def _answer(self, answer: Answer) -> Reply:
        if isinstance(self._filter, StreamFilter):
            self._filter.usage = self._script.usage
            self._filter.error = self._script.error
        if isinstance(answer, asyncio.Future):
            return await answer
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            pytest.fail("a silent worker has nothing to go on with")
        if isinstance(answer, AttemptFailed | MemoryFull):
            raise answer
        return answer

    def _begin(self, request: Request) -> Reply:
        """To the first event that a client may see."""
        script = self._script
        assert self._filter is not None
        assert script.events is not None
        self._events = list(script.events(request, self._host))[: script.upto]
        if script.error:
            self._events.append(script.error)
        while self._events and not self._seen and not self._filter.failed:
            self._seen = self._filter.take(self._events.pop(0))
        if not self._seen:
            raise WorkerDied("x")
        return STREAM

    def require_unbroken(self) -> None:
        if self._script.unbroken is not None:
            raise self._script.unbroken

    async def relay(self, client: Client, record: Record) -> StreamEnd:
        script = self._script
        record.chunks += script.chunks
        if script.events is not None:
            assert self._filter is not None
            client.write(self._seen)
            for piece in self._events:
                client.write(self._filter.take(piece))
                await asyncio.sleep(0)
        if script.hold == "relay":
            await self._be_silent()
        if isinstance(script.end, asyncio.Event):
            await script.end.wait()
            pytest.fail("a silent worker has nothing to go on with")
        if script.events is None or self._filter is None:
            return script.end
        if self._filter.closed:
            return StreamEnd.DONE
        return StreamEnd.ERRED if self._filter.error else script.end
