"""Turns over a store in memory, with fakes for the worker's side and the client's; each call of the store can be held up,
failed, or stopped at."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any, TypeVar

import msgspec

from router.config.sessions import SessionsConfig
from router.core.request.record import Record
from router.core.request.reply import Reply
from router.core.request.request import Request, Tenant
from router.core.request.routes import Route
from router.core.tenants.tenant import Caller, OnBusy, TenantRules, make_caller
from router.proxy.ports import Client
from router.sessions.api.chat_codec import ChatCodec
from router.sessions.api.chat_requests import read_chat, streams, wants_usage
from router.sessions.context.history import History
from router.sessions.context.view import NO_OVERRIDES, ContextOverrides
from router.sessions.copying import TurnPosition
from router.sessions.histories import Histories
from router.sessions.history_cache import HistoryCache
from router.sessions.planner import Planner, TurnRequest
from router.sessions.stores.contract import (
    EMPTY,
    Append,
    Begin,
    Begun,
    Busy,
    Cursor,
    Loaded,
    Repeated,
    Sid,
    Store,
    StoreUnavailable,
)
from router.sessions.turns import Turns
from router.wire.body_limits import BodyLimits
from router.wire.media import MediaRule
from tests.fakes import FakeClient
from tests.sessions.kept_histories import context_window_of
from tests.sessions.stores.memory import MemoryStore

T = TypeVar("T")
SID = Sid("a" * 32)
ACME = make_caller(TenantRules(tenant=Tenant("acme")), b"a secret of the tests")
LIMITS = BodyLimits(64, 2048, 2048, 8, 20, 16, MediaRule(frozenset()))


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


class Points:
    """Places that calls come by, in their order. One is ``stopped_at`` for ever; some are ``held`` until they are let go."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.stopped_at = -1
        self.reached = asyncio.Event()
        self.held: dict[str, asyncio.Event] = {}

    async def come_by(self, name: str) -> None:
        self.passed.append(name)
        if len(self.passed) - 1 == self.stopped_at:
            self.reached.set()
            await asyncio.Event().wait()
        if name in self.held:
            self.reached.set()
            await self.held[name].wait()


class PointedStore(MemoryStore):
    """Comes by a point before and behind each call. ``fails``: by the point's name, how often it fails there."""

    def __init__(self, points: Points, clock: Callable[[], float]) -> None:
        super().__init__(clock, clock)
        self.points = points
        self.fails: dict[str, int] = {}

    async def begin(self, begin: Begin) -> Begun | Busy | Repeated | None:
        return await self._call("begin", super().begin(begin))

    async def append(self, append: Append) -> int:
        return await self._call("end" if append.ends else "append", super().append(append))

    async def load(self, sid: Sid, owner: Tenant, cursor: Cursor) -> Loaded | None:
        return await self._call("load", super().load(sid, owner, cursor))

    async def release(self, sid: Sid, owner: Tenant, fence: int) -> None:
        await self._call("release", super().release(sid, owner, fence))

    async def leave(self, sid: Sid, owner: Tenant, token: str) -> None:
        await self._call("leave", super().leave(sid, owner, token))

    async def _call(self, name: str, call: Awaitable[T]) -> T:
        try:
            await self._come_by(f"before {name}")
        except BaseException:
            call.close()  # type: ignore[attr-defined]  # a coroutine that was never begun
            raise
        result = await call
        await self._come_by(f"behind {name}")
        return result

    async def _come_by(self, name: str) -> None:
        await self.points.come_by(name)
        if self.fails.get(name, 0):
            self.fails[name] -= 1
            raise StoreUnavailable("as the test wished")


def a_client(points: Points) -> FakeClient:
    return FakeClient(head=b"HEAD\n\n", on_end=points.passed.append)


def event(**members: Any) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode({"id": "c-1", "created": 1, "model": "m", **members})


def delta(text: str | None = None, reason: str | None = None) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": text} if text else {}, "finish_reason": reason}])


DONE = b"data: [DONE]\n\n"
Script = Callable[[Request, Client, Record], Awaitable[None]]


class FakeDispatch:
    """A worker that says "to " and the newest message, unless its next ``script`` says otherwise."""

    def __init__(self, points: Points) -> None:
        self._points = points
        self.asked: list[Request] = []
        self.scripts: list[Script] = []

    async def dispatch(self, request: Request, client: Client, started_at: float, rules: TenantRules) -> None:
        self.asked.append(request)
        await self._points.come_by("before dispatch")
        script = self.scripts.pop(0) if self.scripts else self.reply
        await script(request, client, record_of(request))
        await self._points.come_by("behind dispatch")

    async def reply(self, request: Request, client: Client, record: Record) -> None:
        text = answer_to(request)
        if not request.stream:
            message = {"index": 0, "message": said(text), "finish_reason": "stop"}
            body = msgspec.json.encode({"id": "c-1", "created": 1, "model": "m", "choices": [message]})
            await client.answer(Reply(200, {}, body, is_stream=False), record)
            return
        write(client, client.stream_head(Reply(200, {}, b"", is_stream=True), record) + delta("to "))
        await self._points.come_by("amid dispatch")
        write(client, delta(text[3:]))
        write(client, delta(reason="stop") + DONE)

    def sent(self, at: int = -1) -> list[dict[str, Any]]:
        """The messages of one of its requests."""
        messages: list[dict[str, Any]] = json.loads(self.asked[at].body)["messages"]
        return messages


def write(client: Client, data: bytes) -> None:
    """As the splice does."""
    if not client.is_closing():
        client.write(data)


def answer_to(request: Request) -> str:
    return "to " + str(json.loads(request.body)["messages"][-1]["content"])


def record_of(request: Request, worker: str = "w-1") -> Record:
    return Record(
        route=Route.CHAT,
        model=request.model,
        policy="",
        request_id=request.request_id,
        stream=request.stream,
        started_at=0.0,
        worker=worker,
    )


class Replica:
    """One router's turns over any store."""

    def __init__(
        self,
        store: Store,
        dispatch: FakeDispatch,
        points: Points,
        clock: Callable[[], float],
        *,
        max_wait_s: float = 60.0,
        max_waiting: int = 64,
        max_waiting_releases: int = 100,
        max_cache_bytes: int = 1 << 20,
        bytes_per_token: Callable[[str], float] = lambda _model: 4.0,
        **context_window: Any,
    ) -> None:
        self.store = store
        self.dispatch = dispatch
        self.points = points
        self.clock = clock
        self.workers: list[str] = []
        self.histories = Histories(store, HistoryCache(max_cache_bytes), clock, clock)
        self.planner = Planner(self.histories, bytes_per_token, resumes=True)
        self.turns = Turns(
            SessionsConfig(lease_s=15.0, max_wait_s=max_wait_s, max_waiting=max_waiting),
            self.histories,
            dispatch,
            lambda _session, worker: self.workers.append(worker),
            self.planner,
            context_window_of(self.histories, clock, bytes_per_token=bytes_per_token, **context_window),
            clock,
            lambda _seconds: None,
        )
        self.turns.claims.releaser.max_waiting = max_waiting_releases

    def begin(
        self, *messages: dict[str, Any], client: FakeClient | None = None, **overrides: Any
    ) -> asyncio.Task[FakeClient]:
        """A turn under way."""
        return asyncio.create_task(self.take(*messages, client=client, **overrides))

    async def take(
        self,
        *messages: dict[str, Any],
        sid: Sid = SID,
        caller: Caller = ACME,
        key: str = "",
        on_busy: OnBusy = "queue",
        client: FakeClient | None = None,
        stream: bool = True,
        forks: Sid | None = None,
        context: ContextOverrides = NO_OVERRIDES,
        request_id: str = "r-1",
        on_begun: Callable[[Sid, TurnPosition], Awaitable[None]] | None = None,
        instructions: Sequence[dict[str, Any]] = (),
        **members: Any,
    ) -> FakeClient:
        """``instructions``: system messages of this turn alone, as the Responses API has them."""
        client = client or a_client(self.points)
        body = json.dumps({"model": "m", "messages": messages, "stream": stream, **members}).encode()
        incoming = msgspec.structs.replace(read_chat(body, caller, LIMITS), turn_system=instructions)
        record = Record(
            route=Route.CHAT, model="m", policy="", request_id="r", stream=stream, started_at=0.0, worker="none"
        )
        codec = ChatCodec(record, stream=streams(incoming), wants_usage=wants_usage(incoming))
        request = self.ask(incoming, sid, caller, key, on_busy, sha256(body).hexdigest(), forks, len(body))
        request = replace(request, request_id=request_id, on_begun=on_begun, overrides=context)
        await self.turns.run(request, codec, client)
        return client

    async def run_ephemeral(self, sid: Sid, turn: int, *messages: dict[str, Any]) -> FakeClient:
        """One that leaves nothing behind, after another's answer."""
        client = a_client(self.points)
        incoming = read_chat(json.dumps({"model": "m", "messages": messages}).encode(), ACME, LIMITS)
        record = Record(
            route=Route.CHAT, model="m", policy="", request_id="r", stream=False, started_at=0.0, worker="none"
        )
        codec = ChatCodec(record, stream=False, wants_usage=False)
        await self.turns.run_ephemeral(self.ask(incoming, sid), codec, client, (sid, TurnPosition(turn, 1)))
        return client

    def ask(
        self,
        incoming: Any,
        sid: Sid = SID,
        caller: Caller = ACME,
        key: str = "",
        on_busy: OnBusy = "queue",
        asked: str = "",
        forks: Sid | None = None,
        body_bytes: int = 0,
    ) -> TurnRequest:
        headers: Mapping[str, str] = {}
        return TurnRequest(
            api="sessions",
            sid=sid,
            caller=caller,
            incoming=incoming,
            headers=headers,
            request_id="r-1",
            started_at=self.clock(),
            lifetime_s=3600.0,
            on_busy=on_busy,
            idempotency_key=key,
            asked=asked,
            body_bytes=body_bytes,
            fork=(lambda: forks) if forks else None,
        )

    async def texts(self, sid: Sid = SID, caller: Caller = ACME) -> list[str]:
        """What counts of the session, as any replica would read it."""
        fresh = Histories(self.store, HistoryCache(1 << 20), self.clock)
        history, _ = await fresh.load(sid, caller.rules.tenant)
        return contents(history)

    async def settled(self) -> None:
        """What was to be given back has been."""
        while self.turns.claims.releaser.under_way:
            await asyncio.wait(tuple(self.turns.claims.releaser.under_way))

    @property
    def waiting(self) -> int:
        return len(self.turns.claims.endings)


class Desk(Replica):
    """One replica over a store in memory. ``store``: another replica's, which the two then share."""

    store: PointedStore

    def __init__(self, store: PointedStore | None = None, **bounds: Any) -> None:
        self.now = 100.0
        points = store.points if store else Points()
        super().__init__(
            store or PointedStore(points, lambda: self.now),
            FakeDispatch(points),
            points,
            lambda: self.now,
            **bounds,
        )

    async def require_quiet(self, sid: Sid = SID) -> None:
        """No claim, nobody in line, no task, nothing that waits."""
        await self.settled()
        assert not self.turns.claims.live
        assert not self.waiting
        if (loaded := await self.store.load(sid, ACME.rules.tenant, EMPTY)) is not None:
            assert not loaded.is_claimed
            assert not self.store._sessions[sid].line


def outcomes(desk: Desk) -> dict[str, int]:
    """How its turns ended, and how many."""
    return {outcome: number for (_, outcome), number in desk.turns.counts.turns.items() if number}


def contents(history: History) -> list[str]:
    return [str(msgspec.json.decode(item.body)["content"]) for item in history.items]
