"""Random turns through several replicas over each store, with whatever can befall them: clients that leave, try again and send
everything again, workers that fail, replicas that die, and a store that is away. ``turn_model`` has what must be true all the
same.

Nothing depends on the machine: see ``turn_world``. ``TURN_MACHINE_EXAMPLES=5000`` tries so many courses of events, each time
others; without it, the same few.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from router.core.errors import SessionNotFound, StateUnavailable
from router.core.request.request import Tenant
from router.core.tenants.tenant import TenantRules, make_caller
from router.sessions.context.prompt import Incoming
from router.sessions.copying import TurnPosition, copy_session
from router.sessions.histories import Histories
from router.sessions.history_cache import HistoryCache
from router.sessions.session_ids import Namespace, SessionIds
from router.sessions.stores.contract import Sid, Store
from tests.sessions.desk import ACME, said, user
from tests.sessions.stores.contract import STORES, Trial, redis_trial_on
from tests.sessions.stores.redis_servers import running
from tests.sessions.test_turns import babble, break_off, find_nobody, refuse, stop_without_reason
from tests.sessions.turn_model import Model, Session, Try, require_same, turns_of
from tests.sessions.turn_world import Exchange, Fault, Reader, Router, StoreThread, World
from tests.sessions.virtual_loop import VirtualLoop

BETA = make_caller(TenantRules(tenant=Tenant("beta")), b"a secret of the tests")
LEASE_S = 15.0
EXAMPLES = int(os.environ.get("TURN_MACHINE_EXAMPLES", "0"))

ROUTERS = st.integers(0, 2)
SESSIONS = st.sampled_from([0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5])
SYSTEMS = st.sampled_from(["", "", "", "s1", "s2"])
BUSY = st.sampled_from(["queue", "queue", "reject", "fork"])
ANY = st.integers(0, 9)
KINDS = st.sampled_from(["begin", "append", "end", "load", "create", "renew", "release", "leave", "delete"])
FAULTS = st.sampled_from(["spared", "lost", "unheard", "hung"])
IDLE = -1
STEPS = st.sampled_from([IDLE] * 6 + list(range(14)))
"""Turns of the loop behind a rule; IDLE: as many as there is something to do."""
STREAMED_ENDS = [None, None, None, None, refuse, find_nobody, break_off, stop_without_reason, babble]
WHOLE_ENDS = [None, None, None, None, refuse, find_nobody, babble]


class TurnMachine(RuleBasedStateMachine):
    opens: ClassVar[Callable[[Path], AbstractAsyncContextManager[Trial]]]
    is_journaled: ClassVar[bool]

    def __init__(self) -> None:
        super().__init__()
        self.directory = TemporaryDirectory()
        path = Path(self.directory.name)
        self.journals = path / "journals" if self.is_journaled else None
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        self.world = World(StoreThread(type(self).opens(path)))
        self.model = Model(self.world)
        session_ids = SessionIds(b"a secret of the tests")
        for name in ("one", "two"):
            for caller in (ACME, BETA):
                sid = session_ids.sid(caller.rules.tenant, Namespace.SESSION, name)
                self.model.sessions.append(Session(sid, caller))
        self.routers: list[Router] = []
        self.clears_in = 0
        self.is_troubled = False
        """A claim may have been left, and its lease must end first."""
        self.complaints: list[dict[str, Any]] = []
        """Of what nobody looked at."""
        self.runner.get_loop().set_exception_handler(lambda _loop, told: self.complaints.append(told))
        self.run(self.start())

    def run(self, call: Any) -> Any:
        return self.runner.run(call)

    async def start(self) -> None:
        for max_cache_bytes in (1 << 20, 1500, 1 << 20):
            self.routers.append(await self.new_router(max_cache_bytes))

    async def new_router(self, max_cache_bytes: int = 1 << 20) -> Router:
        router = Router(self.world, self.journals, max_cache_bytes)
        await router.start()
        return router

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.run(self.finish())
        finally:
            for router in self.routers:
                router.die()
            for one in self.under_way:
                one.task.cancel()
            self.run(asyncio.sleep(1.0))
            self.runner.close()
            self.world.thread.close()
            self.directory.cleanup()

    # Rules

    @rule(
        router=ROUTERS,
        session=SESSIONS,
        on_busy=BUSY,
        has_key=st.sampled_from([True, True, False]),
        system=SYSTEMS,
        stream=st.booleans(),
        steps=STEPS,
    )
    def begin(self, router: int, session: int, has_key: bool, steps: int, **overrides: Any) -> None:
        overrides["key"] = f"k{len(self.model.tries)}" if has_key else ""
        self.take(router, self.session(session), [self.news()], steps, **overrides)

    @rule(router=ROUTERS, session=SESSIONS, steps=STEPS)
    def begin_plainly(self, router: int, session: int, steps: int) -> None:
        self.take(router, self.session(session), [self.news()], steps)

    @precondition(lambda self: self.keyed)
    @rule(pick=ANY, router=ROUTERS, has_other_body=st.sampled_from([False, False, False, True]), steps=STEPS)
    def begin_again(self, pick: int, router: int, has_other_body: bool, steps: int) -> None:
        """With the idempotency key of an earlier request: a retry, or a mistake."""
        one = self.keyed[-1 - pick % len(self.keyed)]
        sent = [self.news()] if has_other_body else one.sent
        self.take(router, one.session, sent, steps, **one.overrides)

    @rule(router=ROUTERS, session=SESSIONS, lacks=st.sampled_from([0, 0, 0, 1, 2]), stream=st.booleans(), steps=STEPS)
    def begin_with_everything(self, router: int, session: int, lacks: int, stream: bool, steps: int) -> None:
        """All that is known of the session is sent again. Some of its turns the client may not know."""
        to = self.session(session)
        turns = self.run(self.read(to))
        known = [text for texts in turns[: len(turns) - lacks] for text in texts]
        self.take(router, to, [*known, self.news()], steps, stream=stream)

    @rule(router=ROUTERS, session=SESSIONS, count=st.integers(1, 3), steps=STEPS)
    def add(self, router: int, session: int, count: int, steps: int) -> None:
        """What asks no model."""
        notes = [f"n{len(self.model.tries)}.{number}" for number in range(count)]
        self.run(self._add(self.routers[router], self.session(session), notes))
        self.go_on(steps)

    @rule(router=ROUTERS, session=SESSIONS, deletes=st.booleans(), steps=STEPS)
    def copy_or_delete(self, router: int, session: int, deletes: bool, steps: int) -> None:
        change = self._delete if deletes else self._copy
        self.run(change(self.routers[router], self.session(session)))
        self.go_on(steps)

    @rule(router=ROUTERS, session=SESSIONS, stream=st.booleans(), system=SYSTEMS)
    def talk(self, router: int, session: int, **overrides: Any) -> None:
        """A turn from its beginning to its end, if nothing is in the way."""
        overrides["key"] = f"k{len(self.model.tries)}"
        self.take(router, self.session(session), [self.news()], IDLE, **overrides)
        self.answer_last(IDLE)

    @precondition(lambda self: self.world.open)
    @rule(pick=ANY, how=ANY, steps=STEPS)
    def answer(self, pick: int, how: int, steps: int) -> None:
        """Or what a worker does instead."""
        exchange = self.world.open[pick % len(self.world.open)]
        ends = STREAMED_ENDS if exchange.request.stream else WHOLE_ENDS
        exchange.how.set_result(ends[how % len(ends)])
        self.go_on(steps)

    @precondition(lambda self: self.world.open)
    @rule(steps=STEPS)
    def answer_last(self, steps: int) -> None:
        for exchange in self.world.open[-1:]:
            exchange.how.set_result(None)
        self.go_on(steps)

    @precondition(lambda self: self.world.open)
    @rule()
    def answer_all(self) -> None:
        while self.world.open:
            self.answer_last(IDLE)
            self.wait(0.05)

    @rule(router=ROUTERS, session=SESSIONS, on_busy=BUSY, steps=st.integers(0, 13), answers=st.booleans())
    def begin_and_leave(self, router: int, session: int, on_busy: str, steps: int, answers: bool) -> None:
        """Wherever the turn stands behind so many steps, of its beginning or its end."""
        self.take(router, self.session(session), [self.news()], IDLE if answers else steps, on_busy=on_busy)
        if answers and self.world.open:
            self.answer_last(steps)
        if not self.model.tries[-1].task.done():
            self.cut(self.model.tries[-1])
        self.go_on(IDLE)

    @rule(router=ROUTERS | st.none(), fault=FAULTS, seconds=st.sampled_from([0.3, 2.0, 16.0, 31.0]), session=SESSIONS)
    def outlive(self, router: int | None, fault: Fault, seconds: float, session: int) -> None:
        """The store is away for so long. Meanwhile workers answer what they were asked before, and others go on."""
        self.part(router, fault, 0, IDLE)
        while self.world.open:
            self.answer_last(IDLE)
        self.wait(seconds)
        if router is not None:
            self.talk((router + 1) % 3, session, stream=True)
        self.clear()

    @precondition(lambda self: self.under_way)
    @rule(pick=ANY, is_noticed=st.sampled_from([True, True, False]), steps=STEPS)
    def leave(self, pick: int, is_noticed: bool, steps: int) -> None:
        one = self.under_way[pick % len(self.under_way)]
        one.client.is_gone = True
        if is_noticed:
            self.cut(one)
        self.go_on(steps)

    @rule(router=ROUTERS, is_small=st.booleans(), steps=STEPS)
    def crash(self, router: int, is_small: bool, steps: int) -> None:
        """Another takes its place, and knows nothing."""
        self.trouble()
        dead = self.routers[router]
        dead.die()
        for one in self.under_way:
            if one.router is dead:
                self.cut(one)
        self.routers[router] = self.run(self.new_router(1500 if is_small else 1 << 20))
        self.go_on(steps)

    @rule(kind=KINDS, fault=FAULTS)
    def spoil(self, kind: str, fault: Fault) -> None:
        self.trouble()
        self.world.faults[kind].append(fault)

    @rule(router=ROUTERS | st.none(), fault=FAULTS, lasts=st.integers(1, 6), steps=STEPS)
    def part(self, router: int | None, fault: Fault, lasts: int, steps: int) -> None:
        """The store is away, for one router or all, while so many rules are followed."""
        self.trouble()
        self.clears_in = lasts
        for away in self.routers if router is None else [self.routers[router]]:
            away.handle.weather = fault
        self.go_on(steps)

    @precondition(lambda self: self.is_troubled)
    @rule(rests=st.booleans(), steps=STEPS)
    def haunt(self, rests: bool, steps: int) -> None:
        """What hung reaches the store. ``rests``: all is well besides, until no claim can be left."""
        if rests:
            self.clear()
        self.run(self._haunt())
        if rests:
            self.run(self.rest())
        self.go_on(steps)

    @rule(seconds=st.sampled_from([0.0, 0.0, 0.05, 0.3, 2.0, 16.0]), steps=st.integers(0, 13))
    def wait(self, seconds: float, steps: int = 0) -> None:
        self.run(asyncio.sleep(seconds))
        self.go_on(steps)

    @rule(session=SESSIONS)
    def view_plan(self, session: int) -> None:
        if self.is_clear:
            self.run(self.check_one(self.session(session)))

    # What the rules are made of

    def session(self, pick: int) -> Session:
        return self.model.sessions[pick % len(self.model.sessions)]

    @property
    def under_way(self) -> list[Try]:
        return [one for one in self.model.tries if not one.task.done()]

    @property
    def is_clear(self) -> bool:
        """The store can be read."""
        return not any(router.handle.weather for router in self.routers) and not any(self.world.faults.values())

    @property
    def keyed(self) -> list[Try]:
        return [one for one in self.model.tries if one.key]

    def news(self) -> str:
        return f"q{len(self.model.tries)}"

    def trouble(self) -> None:
        self.is_troubled = True
        self.note()

    def clear(self) -> None:
        for router in self.routers:
            router.handle.weather = None
        self.world.faults.clear()

    async def _haunt(self) -> None:
        self.world.haunt()

    async def rest(self) -> None:
        """Until every lease has ended that nobody renews."""
        await asyncio.sleep(LEASE_S + 1.0)
        self.is_troubled = False

    async def read(self, session: Session) -> list[list[str]]:
        """The texts of each of its turns."""
        histories = Histories(cast(Store, self.world), HistoryCache(1), lambda: 0.0)
        try:
            history, _ = await histories.load(session.sid, session.owner)
        except SessionNotFound:
            return []
        return turns_of(history)

    def take(self, router: int, session: Session, sent: list[str], steps: int, **overrides: Any) -> None:
        self.run(self._take(self.routers[router], session, sent, overrides))
        self.go_on(steps)

    async def _take(self, router: Router, session: Session, sent: list[str], overrides: dict[str, Any]) -> None:
        number = len(self.model.tries)
        client = Reader(self.world)
        if overrides.get("on_busy") == "fork":
            fork = Session(Sid(f"{number:032}"), session.caller, session)
            self.model.sessions.append(fork)
            overrides = overrides | {"forks": fork.sid}

        async def place(sid: Sid, after: TurnPosition) -> None:
            one.placed = sid, after.turn

        system = overrides.get("system")
        overrides = {name: wish for name, wish in overrides.items() if name != "system"}
        task = router.begin(
            *([{"role": "system", "content": system}] if system else []),
            *(said(text) if text[0] == "a" else user(text) for text in sent),
            sid=session.sid,
            caller=session.caller,
            client=client,
            request_id=str(number),
            on_begun=place,
            **overrides,
        )
        overrides["system"] = system
        one = Try(number, session, router, overrides, sent, self.world.tick(), client, task)
        self.model.tries.append(one)

    async def _add(self, router: Router, session: Session, notes: list[str]) -> None:
        incoming = Incoming(model="m", messages=[user(note) for note in notes], params={})
        task = asyncio.create_task(router.turns.add(router.ask(incoming, session.sid, session.caller)))
        client = Reader(self.world)
        number = len(self.model.tries)
        one = Try(number, session, router, {}, notes, self.world.tick(), client, task, adds=True)
        self.model.tries.append(one)

    async def _copy(self, router: Router, session: Session) -> None:
        copy = Session(Sid(f"{len(self.model.sessions):031}c"), session.caller, session)
        self.model.sessions.append(copy)
        self.do(router, lambda: copy_session(router.histories, session.sid, copy.sid, session.owner, 3600.0))

    async def _delete(self, router: Router, session: Session) -> None:
        self.do(router, lambda: router.histories.delete(session.sid, session.owner))

    def do(self, router: Router, step: Callable[[], Awaitable[bool]]) -> None:
        """Of which nobody needs to hear anything."""

        async def run() -> None:
            with suppress(StateUnavailable, SessionNotFound):
                await step()

        router.releaser.add(asyncio.create_task(run()))

    def cut(self, one: Try) -> None:
        one.is_cut = True
        one.task.cancel()

    def go_on(self, steps: int) -> None:
        self.clears_in -= 1
        if not self.clears_in:
            self.clear()
        self.run(hop(steps) if steps != IDLE else asyncio.sleep(0.001))
        self.note()

    def note(self) -> None:
        """What is over by now."""
        for one in self.model.tries:
            one.was_troubled |= self.is_troubled and not one.ended_at
            if one.task.done() and not one.ended_at:
                one.ended_at = self.world.tick()
                self.model.check_outcome(one)

    # What must be true

    async def check_one(self, session: Session) -> None:
        await asyncio.sleep(0.6)
        self.note()
        cold = await self.new_router()
        self.routers.append(cold)
        await asyncio.sleep(0.1)
        await self.check_session(cold, session)
        self.routers.remove(cold)
        cold.die()

    async def check_session(self, cold: Router, session: Session) -> None:
        try:
            history, loaded = await cold.histories.load(session.sid, session.owner)
        except SessionNotFound:
            self.model.check_absent(session)
            return
        exchanges = self.model.check_log(session, history)
        if not self.is_troubled and not self.under_way:
            assert not loaded.is_claimed, "a claim was left"
        for router in self.routers:
            require_same(history, (await router.histories.load(session.sid, session.owner))[0], session.caller)
        for exchange in exchanges:
            _, turn = self.model.try_of(exchange).placed or ("", 0)
            told = await cold.turns.prompt_of(session.sid, session.caller, turn)
            assert told == without_salt(exchange), "another prompt is told than was sent"

    async def finish(self) -> None:
        """The store is well, all workers answer, and there is time: then nothing is left."""
        self.clear()
        self.world.haunt()
        for _ in range(300):
            for exchange in self.world.open:
                exchange.how.set_result(None)
            await asyncio.sleep(0.1)
            if not self.under_way:
                break
        assert not self.under_way, "a turn never ends"
        self.note()
        if self.is_troubled:
            await self.rest()
        for router in self.routers:
            assert all(task.done() for task in router.releaser), "a call never ends"
            assert router.is_done
            assert not router.turns.claims.live
            assert not router.turns.claims.endings
        cold = await self.new_router()
        self.routers.append(cold)
        await asyncio.sleep(0.6)
        for session in self.model.sessions:
            await self.check_session(cold, session)
            await self._take(cold, session, [f"q{len(self.model.tries)}"], {"on_busy": "reject"})
            await asyncio.sleep(0.001)
            for exchange in self.world.open:
                exchange.how.set_result(None)
            await asyncio.sleep(0.001)
            self.note()
            assert self.model.tries[-1].told_at, "a session cannot go on"
            await self.check_session(cold, session)
        self.model.check_repetitions()
        assert not self.complaints


def without_salt(exchange: Exchange) -> bytes:
    head, _, rest = exchange.request.body.partition(b',"cache_salt":"')
    return head + rest.partition(b'"')[2]


async def hop(steps: int) -> None:
    for _ in range(steps):
        await asyncio.sleep(0)


def run_machine(opens: Callable[[Path], AbstractAsyncContextManager[Trial]], *, is_journaled: bool = False) -> None:
    run_state_machine_as_test(
        type("Machine", (TurnMachine,), {"opens": staticmethod(opens), "is_journaled": is_journaled}),
        settings=settings(
            max_examples=EXAMPLES or 25,
            stateful_step_count=40,
            deadline=None,
            derandomize=not EXAMPLES,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


@pytest.mark.parametrize("is_journaled", [False, True], ids=["alone", "journaled"])
def test_turns_over_the_model_are_kept_once_whole_and_in_order(is_journaled: bool) -> None:
    run_machine(STORES["model"], is_journaled=is_journaled)


def test_turns_over_sqlite_are_kept_once_whole_and_in_order() -> None:
    run_machine(STORES["sqlite"])


@pytest.mark.parametrize("is_journaled", [False, True], ids=["alone", "journaled"])
def test_turns_over_redis_are_kept_once_whole_and_in_order(is_journaled: bool) -> None:
    with running() as server:
        run_machine(lambda _: redis_trial_on(server), is_journaled=is_journaled)
