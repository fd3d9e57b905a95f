"""Replicas over one real store, whose calls fail, hang and get lost as a test says; a worker whose answers wait until they are
told to come; and what all of them have seen.

Everything runs in a ``VirtualLoop``. The store has a loop and a thread of its own, and to whoever asks each of its calls is one
instant: what takes time, and where a caller can be cancelled, is decided here.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, Literal, TypeVar, cast

import msgspec

from router.core.request.record import Record
from router.core.request.reply import Reply
from router.core.request.request import Request
from router.proxy.ports import Client
from router.sessions.context.entry import Kind, decode
from router.sessions.stores.contract import Append, Fenced, Sid, Store, StoreUnavailable
from router.sessions.stores.write_behind import Journal, JournaledStore
from tests.fakes import FakeClient
from tests.sessions.desk import DONE, FakeDispatch, Points, Replica, delta, said, write
from tests.sessions.stores.contract import Trial

T = TypeVar("T")

Fault = Literal["spared", "lost", "unheard", "hung"]
"""What becomes of a call of the store, of which the caller hears nothing but that it failed. ``spared``: it was not made.
``lost``: made, and not done. ``unheard``: done. ``hung``: done, but later, when nobody waits for it any more."""

HOPS = 2
"""Turns of the loop that a call takes before it is done, and as many behind."""

HANGS_S = 0.2
PRECISION_S = 0.25
"""By which the store's time may lag."""


class StoreThread:
    """A store whose calls, though they are made from within another loop, have returned before that goes on."""

    def __init__(self, trial: AbstractAsyncContextManager[Trial]) -> None:
        self._opened = trial
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._trial = self.do(trial.__aenter__())
        self._synced_at = 0.0

    def do(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(60)

    def ask(self, now: float, name: str, *args: Any, **named: Any) -> Any:
        if not self._synced_at:
            self._synced_at = now
        if now - self._synced_at >= PRECISION_S:
            self.do(self._trial.advance(now - self._synced_at))
            self._synced_at = now
        return self.do(getattr(self._trial.store, name)(*args, **named))

    def close(self) -> None:
        self.do(cast(Coroutine[Any, Any, None], self._opened.__aexit__(None, None, None)))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class World:
    """``tick``: grows with all that happens, so that one can say what was before what."""

    def __init__(self, store: StoreThread) -> None:
        self.thread = store
        self.ticks = itertools.count(1)
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        """Of the next calls of that kind, whoever makes them."""
        self.ghosts: list[partial[Any]] = []
        """Calls that hang."""
        self.deleted: dict[Sid, list[int]] = defaultdict(list)
        """When sessions were deleted."""
        self.late: set[str] = set()
        """Answers that were handed over by a journal."""
        self.exchanges: list[Exchange] = []
        """All that workers were ever asked."""

    def tick(self) -> int:
        return next(self.ticks)

    def do(self, name: str, *args: Any, **named: Any) -> Any:
        answer = self.thread.ask(asyncio.get_running_loop().time(), name, *args, **named)
        if name == "delete" and answer:
            self.deleted[args[0]].append(self.tick())
        if name == "append" and args[0].is_late:
            self.late.update(_texts(args[0]))
        return answer

    async def load(self, *args: Any) -> Any:
        """As it is, whatever the weather."""
        return self.do("load", *args)

    def haunt(self) -> None:
        """What hung is done after all."""
        ghosts, self.ghosts = self.ghosts, []
        for ghost in ghosts:
            with suppress(Fenced):
                ghost()

    @property
    def open(self) -> list[Exchange]:
        return [exchange for exchange in self.exchanges if exchange.is_open]


def _texts(append: Append) -> list[str]:
    entries = map(decode, append.entries)
    return [msgspec.json.decode(entry.body)["content"] for entry in entries if entry.kind is Kind.MESSAGE]


class Handle:
    """One replica's way to the store: all methods of Store. ``weather``: what becomes of every call, for now. Whoever is dead
    hears of no call any more, and makes none."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.weather: Fault | None = None
        self.is_dead = False

    def __getattr__(self, name: str) -> Any:
        return partial(self._call, name)

    async def _call(self, name: str, *args: Any, **named: Any) -> Any:
        await self._hop()
        fault = self._fault("end" if name == "append" and args[0].ends else name)
        call = partial(self._world.do, name, *args, **named)
        if fault is None:
            answer = call()
            await self._hop()
            return answer
        if fault == "unheard":
            call()
        elif fault == "hung":
            self._world.ghosts.append(call)
            await asyncio.sleep(HANGS_S)
        await self._hop()
        unavailable = StoreUnavailable("as the test wished")
        unavailable.was_asked = fault != "spared"
        raise unavailable

    def _fault(self, kind: str) -> Fault | None:
        if self.weather is not None:
            return self.weather
        planned = self._world.faults[kind]
        return planned.pop(0) if planned else None

    async def _hop(self) -> None:
        for _ in range(HOPS):
            await asyncio.sleep(0)
        if self.is_dead:
            await asyncio.get_running_loop().create_future()


@dataclass(eq=False)
class Exchange:
    """Of a turn with its worker. ``how``: what shall come of it."""

    answer: str
    request: Request
    sent: list[str]
    """The texts of all messages but the system's."""
    system: str
    how: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    is_answered: bool = False
    """As a whole."""

    @property
    def is_open(self) -> bool:
        return not self.how.done()


class HeldDispatch(FakeDispatch):
    """A worker that says nothing until it is told how, and never the same twice."""

    def __init__(self, world: World, points: Points) -> None:
        super().__init__(points)
        self._world = world

    async def reply(self, request: Request, client: Client, record: Record) -> None:
        messages = msgspec.json.decode(request.body)["messages"]
        sent = [message["content"] for message in messages if message["role"] != "system"]
        system = "".join(message["content"] for message in messages if message["role"] == "system")
        exchange = Exchange(f"a{len(self._world.exchanges) + 1}", request, sent, system)
        self._world.exchanges.append(exchange)
        script = await exchange.how
        if script is not None:
            await script(request, client, record)
        elif request.stream:
            write(client, client.stream_head(Reply(200, {}, b"", is_stream=True), record) + delta(exchange.answer[:1]))
            await asyncio.sleep(0)
            write(client, delta(exchange.answer[1:]))
            exchange.is_answered = True
            write(client, delta(reason="stop") + DONE)
        else:
            exchange.is_answered = True
            choice = {"index": 0, "message": said(exchange.answer), "finish_reason": "stop"}
            body = msgspec.json.encode({"id": "c", "created": 1, "model": "m", "choices": [choice]})
            await client.answer(Reply(200, {}, body, is_stream=False), record)


class Reader(FakeClient):
    """``told_at``: when its answer was at its end."""

    def __init__(self, world: World) -> None:
        super().__init__(head=b"HEAD\n\n")
        self._world = world
        self.told_at = 0

    async def answer(self, reply: Reply, record: Record) -> None:
        await super().answer(reply, record)
        if reply.status == 200:
            self.told_at = self._world.tick()

    def end_stream(self, events: bytes) -> None:
        super().end_stream(events)
        self.told_at = self._world.tick()


class Router(Replica):
    """A replica that can die. ``journals``: where its journal is; None: it has none."""

    def __init__(self, world: World, journals: Path | None, max_cache_bytes: int) -> None:
        self.handle = Handle(world)
        self.journaled: JournaledStore | None = None
        store = cast(Store, self.handle)
        if journals is not None:
            store = self.journaled = JournaledStore(store, Journal(journals, 1 << 20), asyncio.get_running_loop().time)
        points = Points()
        super().__init__(
            store,
            HeldDispatch(world, points),
            points,
            asyncio.get_running_loop().time,
            max_wait_s=8.0,
            max_waiting=3,
            max_cache_bytes=max_cache_bytes,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self.releaser: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._tasks.append(asyncio.create_task(self.turns.claims.run()))
        if self.journaled is not None:
            await self.journaled.open()
            self._tasks.append(asyncio.create_task(self.journaled.run()))

    def die(self) -> None:
        """At once: nothing is given back, and of the journal is left what is in the file."""
        self.handle.is_dead = True
        for task in (*self._tasks, *self.releaser):
            task.cancel()
        if self.journaled is not None:
            self.journaled.journal.close()

    @property
    def is_done(self) -> bool:
        """Nothing is to be given back or handed over."""
        waits = self.journaled.waiting if self.journaled is not None else 0
        return not self.turns.claims.releaser.under_way and not waits
