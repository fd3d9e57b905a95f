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
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from router.core.errors import SessionNotFound
from router.core.request import Tenant
from router.core.tenant import TenantRules, make_caller
from router.sessions.histories import Behind
from router.sessions.names import Names, Space
from router.sessions.store import Sid
from tests.redis_servers import running
from tests.sessions.contract import STORES, Trial, redis_trial_on
from tests.sessions.desk import ACME, contents, said, user
from tests.sessions.test_turns import babble, break_off, find_nobody, refuse, stop_without_reason
from tests.sessions.turn_model import Model, Session, Try, require_same
from tests.sessions.turn_world import Exchange, Reader, Router, StoreThread, World
from tests.sessions.virtual_loop import VirtualLoop

BETA = make_caller(TenantRules(tenant=Tenant("beta")), b"a secret of the tests")
LEASE_S = 15.0
EXAMPLES = int(os.environ.get("TURN_MACHINE_EXAMPLES", "0"))

ROUTERS = st.integers(0, 2)
SESSIONS = st.sampled_from([0, 0, 0, 0, 1, 2, 3, 4, 5])
ANY = st.integers(0, 9)
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
        names = Names(b"a secret of the tests")
        for name in ("one", "two"):
            for caller in (ACME, BETA):
                sid = names.sid(caller.rules.tenant, Space.SESSION, name)
                self.model.sessions.append(Session(sid, caller))
        self.routers: list[Router] = []
        self.is_troubled = False
        """A claim may have been left, and its lease must end first."""
        self.run(self.start())

    def run(self, call: Any) -> Any:
        return self.runner.run(call)

    async def start(self) -> None:
        for max_hot_bytes in (1 << 20, 1500, 1 << 20):
            self.routers.append(await self.new_router(max_hot_bytes))

    async def new_router(self, max_hot_bytes: int = 1 << 20) -> Router:
        router = Router(self.world, self.journals, max_hot_bytes)
        await router.start()
        return router

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.run(self.finish())
        finally:
            for router in self.routers:
                router.die()
            self.runner.close()
            self.world.thread.close()
            self.directory.cleanup()

    # Rules

    @rule(
        router=ROUTERS,
        session=SESSIONS,
        on_busy=st.sampled_from(["queue", "queue", "reject", "fork"]),
        has_key=st.booleans(),
        stream=st.booleans(),
        steps=STEPS,
    )
    def begin(self, router: int, session: int, on_busy: str, has_key: bool, stream: bool, steps: int) -> None:
        number = len(self.model.tries)
        key = f"k{number}" if has_key else ""
        self.take(router, self.session(session), [f"q{number}"], steps, on_busy=on_busy, key=key, stream=stream)

    @rule(router=ROUTERS, session=SESSIONS, steps=STEPS)
    def begin_plainly(self, router: int, session: int, steps: int) -> None:
        self.take(router, self.session(session), [f"q{len(self.model.tries)}"], steps)

    @precondition(lambda self: self.world.open)
    @rule(pick=ANY, how=ANY, steps=STEPS)
    def answer(self, pick: int, how: int, steps: int) -> None:
        """Or what a worker does instead."""
        exchange = self.world.open[pick % len(self.world.open)]
        ends = STREAMED_ENDS if exchange.request.stream else WHOLE_ENDS
        exchange.how.set_result(ends[how % len(ends)])
        self.go_on(steps)

    @precondition(lambda self: self.world.open)
    @rule(pick=ANY, steps=STEPS)
    def answer_well(self, pick: int, steps: int) -> None:
        self.world.open[pick % len(self.world.open)].how.set_result(None)
        self.go_on(steps)

    @precondition(lambda self: self.under_way)
    @rule(pick=ANY, steps=STEPS)
    def cancel(self, pick: int, steps: int) -> None:
        self.cut(self.under_way[pick % len(self.under_way)])
        self.go_on(steps)

    @rule(steps=st.integers(0, 13))
    def step(self, steps: int) -> None:
        self.go_on(steps)

    @rule(seconds=st.sampled_from([0.05, 0.3, 2.0, 16.0]))
    def wait(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))
        self.note()

    @rule(session=SESSIONS)
    def look(self, session: int) -> None:
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

    def take(self, router: int, session: Session, sent: list[str], steps: int, **wishes: Any) -> None:
        self.run(self._take(self.routers[router], session, sent, wishes))
        self.go_on(steps)

    async def _take(self, router: Router, session: Session, sent: list[str], wishes: dict[str, Any]) -> None:
        number = len(self.model.tries)
        client = Reader(self.world)
        if wishes.get("on_busy") == "fork":
            fork = Session(Sid(f"{number:032}"), session.caller, session)
            self.model.sessions.append(fork)
            wishes["forks"] = fork.sid

        async def place(sid: Sid, behind: Behind) -> None:
            one.placed = sid, behind.turn

        task = router.begin(
            *(said(text) if text[0] == "a" else user(text) for text in sent),
            sid=session.sid,
            caller=session.caller,
            client=client,
            request_id=str(number),
            on_begun=place,
            **wishes,
        )
        one = Try(number, session, router, wishes, sent, self.world.tick(), client, task)
        self.model.tries.append(one)

    def cut(self, one: Try) -> None:
        one.is_cut = True
        one.task.cancel()

    def go_on(self, steps: int) -> None:
        self.run(hop(steps) if steps != IDLE else asyncio.sleep(0.001))
        self.note()

    def note(self) -> None:
        """What is over by now."""
        for one in self.model.tries:
            one.was_troubled = one.was_troubled or (self.is_troubled and not one.ended_at)
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
        owner = session.caller.rules.tenant
        try:
            history, loaded = await cold.histories.load(session.sid, owner)
        except SessionNotFound:
            self.model.check_absent(session)
            return
        self.model.check_log(session, history)
        if not self.is_troubled and not self.under_way:
            assert not loaded.is_claimed, "a claim was left"
        for router in self.routers:
            require_same(history, (await router.histories.load(session.sid, owner))[0], session.caller)
        for exchange in self.world.exchanges:
            one = self.model.try_of(exchange)
            if one.placed and one.placed[0] == session.sid and exchange.answer in contents(history):
                told = await cold.turns.prompt_of(session.sid, session.caller, one.placed[1])
                assert told == without_salt(exchange), "another prompt is told than was sent"

    async def finish(self) -> None:
        """The store is well, all workers answer, and there is time: then nothing is left."""
        for router in self.routers:
            router.handle.weather = None
        self.world.faults.clear()
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
            await asyncio.sleep(LEASE_S + 1.0)
        self.is_troubled = False
        for router in self.routers:
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
            self.world.open[0].how.set_result(None)
            await asyncio.sleep(0.001)
            self.note()
            assert self.model.tries[-1].told_at, "a session cannot go on"
            await self.check_session(cold, session)
        self.model.check_repetitions()


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
            max_examples=EXAMPLES or 50,
            stateful_step_count=40,
            deadline=None,
            derandomize=not EXAMPLES,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


@pytest.mark.parametrize("is_journaled", [False, True], ids=["alone", "journaled"])
def test_turns_over_the_store_in_memory_are_kept_once_whole_and_in_order(is_journaled: bool) -> None:
    run_machine(STORES["memory"], is_journaled=is_journaled)


def test_turns_over_sqlite_are_kept_once_whole_and_in_order() -> None:
    run_machine(STORES["sqlite"])


@pytest.mark.parametrize("is_journaled", [False, True], ids=["alone", "journaled"])
def test_turns_over_redis_are_kept_once_whole_and_in_order(is_journaled: bool) -> None:
    with running() as server:
        run_machine(lambda _: redis_trial_on(server), is_journaled=is_journaled)
