"""Random calls to the reference model and to a store: both must answer alike.

Generations and fences may differ, so each store is asked with what it gave itself. Leases, lifetimes and the patience of the
line are odd seconds and time passes by even ones, so that no store has to be exact.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, multiple, rule, run_state_machine_as_test

from router.core.request.request import Tenant
from router.sessions.stores.contract import (
    EMPTY,
    LINE_PATIENCE_S,
    Append,
    Begin,
    Begun,
    Cursor,
    Fenced,
    Loaded,
    Sid,
    Store,
)
from tests.sessions.stores.contract import OWNER, STORES, STRANGER, Trial, model_trial

PLACES = st.sampled_from([0, 0, 0, 1])
OWNERS = st.sampled_from([OWNER] * 9 + [STRANGER])
TOKENS = st.sampled_from(["t1", "t2", "t3", "t4"])
ENTRIES = st.lists(st.binary(max_size=3), max_size=3)
LIFETIMES_S = st.sampled_from([0.0, 11.0, 601.0])
LEASES_S = st.sampled_from([5.0, 31.0])


@dataclass(frozen=True, slots=True)
class Claim:
    """Of one turn: what each store answered to the same ``begin``."""

    sid: Sid
    model: Begun
    tested: Begun


def comparable(answer: object) -> object:
    if isinstance(answer, Begun):
        return msgspec.structs.replace(answer, generation="", fence=0, tail=list(answer.tail))
    if isinstance(answer, Loaded):
        return msgspec.structs.replace(answer, generation="", created_at=0, tail=list(answer.tail))
    return answer


class StoreMachine(RuleBasedStateMachine):
    claims = Bundle("claims")
    name: ClassVar[str]
    """Of the tested store."""

    def __init__(self) -> None:
        super().__init__()
        assert LINE_PATIENCE_S % 2 == 1
        self.sids = [Sid(token_hex(16)) for _ in range(2)]
        self.generations: dict[str, str] = {"": ""}
        """The model's → the tested store's."""
        self.directory = TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.trials = (model_trial(Path(self.directory.name)), STORES[self.name](Path(self.directory.name)))
        self.model: Trial = self.runner.run(self.trials[0].__aenter__())
        self.tested: Trial = self.runner.run(self.trials[1].__aenter__())

    def teardown(self) -> None:
        for trial in self.trials:
            self.runner.run(trial.__aexit__(None, None, None))
        self.runner.close()
        self.directory.cleanup()

    def both(self, call: Callable[[Store, bool], Awaitable[Any]]) -> tuple[Any, Any]:
        """Asks both stores, the model first, and checks that they say the same. The flag: is this the tested one?"""

        async def answer(trial: Trial, is_tested: bool) -> object:
            try:
                return await call(trial.store, is_tested)
            except Fenced:
                return Fenced

        model = self.runner.run(answer(self.model, False))
        tested = self.runner.run(answer(self.tested, True))
        assert comparable(tested) == comparable(model)
        if isinstance(model, (Begun, Loaded)):
            assert isinstance(tested, (Begun, Loaded))
            assert self.generations.setdefault(model.generation, tested.generation) == tested.generation
            assert len(set(self.generations.values())) == len(self.generations)
        return model, tested

    def cursor(self, cursor: Cursor, is_tested: bool) -> Cursor:
        return msgspec.structs.replace(cursor, generation=self.generations[cursor.generation]) if is_tested else cursor

    def view_plan(self, sid: Sid, owner: Tenant = OWNER, cursor: Cursor = EMPTY) -> Loaded | None:
        loaded, _ = self.both(lambda store, is_tested: store.load(sid, owner, self.cursor(cursor, is_tested)))
        assert loaded is None or isinstance(loaded, Loaded)
        return loaded

    def knowledge(self, sid: Sid, lacks: int) -> Cursor:
        """Of a replica that lacks so many of the newest entries, as the model tells it."""
        found = self.view_plan(sid)
        return Cursor(found.generation, max(0, found.head - lacks), found.epoch) if found else EMPTY

    @rule(
        target=claims,
        place=PLACES,
        owner=OWNERS,
        token=TOKENS,
        lacks=st.sampled_from([0, 0, 1, 9]),
        is_new=st.booleans(),
        creates=st.sampled_from([True, True, False]),
        waits=st.sampled_from([True, True, False]),
        max_waiting=st.sampled_from([1, 2, 64]),
        lease_s=LEASES_S,
        lifetime_s=LIFETIMES_S,
        idempotency_key=st.sampled_from(["", "", "k1", "k2"]),
        skips=st.sampled_from([0, 0, 0, 1]),
        entries=ENTRIES,
        record=st.binary(max_size=2),
    )
    def begin(self, place: int, lacks: int, is_new: bool, skips: int, **fields: Any) -> Any:
        sid = self.sids[place]
        found = self.view_plan(sid)
        known = EMPTY if is_new else self.knowledge(sid, lacks)
        turn = (found.turns if found else 0) + 1 + skips
        return self.ask(Begin(sid=sid, cursor=known, turn=turn, **fields))

    @rule(target=claims, place=PLACES, token=TOKENS, idempotency_key=st.sampled_from(["", "k1"]))
    def begin_plainly(self, place: int, token: str, idempotency_key: str) -> Any:
        """So that turns often meet."""
        sid = self.sids[place]
        return self.ask(
            Begin(sid=sid, owner=OWNER, token=token, idempotency_key=idempotency_key, lease_s=31.0, lifetime_s=601.0)
        )

    def ask(self, begin: Begin) -> Any:
        """What to add to the claims."""
        model, tested = self.both(
            lambda store, is_tested: store.begin(
                msgspec.structs.replace(begin, cursor=self.cursor(begin.cursor, is_tested))
            )
        )
        return Claim(begin.sid, model, tested) if isinstance(model, Begun) else multiple()

    @rule(
        claim=claims,
        owner=OWNERS,
        entries=ENTRIES,
        ends=st.booleans(),
        is_late=st.booleans(),
        record=st.none() | st.binary(max_size=2),
        worker=st.sampled_from(["", "w1", "w2"]),
        lifetime_s=LIFETIMES_S,
    )
    def append(self, claim: Claim, **fields: Any) -> None:
        self.append_to(claim, fields)

    @rule(claim=claims, is_late=st.booleans())
    def end(self, claim: Claim, is_late: bool) -> None:
        plain = {"record": None, "worker": "", "lifetime_s": 601.0}
        self.append_to(claim, {"owner": OWNER, "entries": [b"end"], "ends": True, "is_late": is_late, **plain})

    def append_to(self, claim: Claim, fields: dict[str, Any]) -> None:
        def call(store: Store, is_tested: bool) -> Awaitable[int]:
            begun = claim.tested if is_tested else claim.model
            return store.append(
                Append(sid=claim.sid, generation=begun.generation, fence=begun.fence, turn=begun.turn, **fields)
            )

        self.both(call)

    @rule(claim=claims, owner=OWNERS, lease_s=LEASES_S)
    def renew(self, claim: Claim, owner: Tenant, lease_s: float) -> None:
        self.both(lambda store, is_tested: store.renew(claim.sid, owner, self.fence(claim, is_tested), lease_s))

    @rule(claim=claims, owner=OWNERS)
    def release(self, claim: Claim, owner: Tenant) -> None:
        self.both(lambda store, is_tested: store.release(claim.sid, owner, self.fence(claim, is_tested)))

    @staticmethod
    def fence(claim: Claim, is_tested: bool) -> int:
        return claim.tested.fence if is_tested else claim.model.fence

    @rule(place=PLACES, owner=OWNERS, token=TOKENS)
    def leave(self, place: int, owner: Tenant, token: str) -> None:
        self.both(lambda store, _: store.leave(self.sids[place], owner, token))

    @rule(place=PLACES, owner=OWNERS, lacks=st.none() | st.integers(0, 2))
    def load(self, place: int, owner: Tenant, lacks: int | None) -> None:
        sid = self.sids[place]
        self.view_plan(sid, owner, EMPTY if lacks is None else self.knowledge(sid, lacks))

    @rule(place=PLACES, owner=OWNERS, entries=ENTRIES, turns=st.integers(0, 2), lifetime_s=LIFETIMES_S)
    def create(self, place: int, owner: Tenant, **fields: Any) -> None:
        self.both(lambda store, _: store.create(self.sids[place], owner, attributes=b"c", **fields))

    @rule(place=PLACES, owner=OWNERS, attributes=st.binary(max_size=2))
    def set_attributes(self, place: int, owner: Tenant, attributes: bytes) -> None:
        self.both(lambda store, _: store.set_attributes(self.sids[place], owner, attributes))

    @rule(claim=claims, owner=OWNERS, epoch=st.integers(0, 2), view=st.binary(max_size=2))
    def commit_view(self, claim: Claim, owner: Tenant, epoch: int, view: bytes) -> None:
        def call(store: Store, is_tested: bool) -> Awaitable[bool]:
            generation = (claim.tested if is_tested else claim.model).generation
            return store.commit_view(claim.sid, owner, generation, epoch, view)

        self.both(call)

    @rule(place=PLACES, owner=OWNERS, turn=st.integers(0, 4))
    def read_turn(self, place: int, owner: Tenant, turn: int) -> None:
        self.both(lambda store, _: store.read_turn(self.sids[place], owner, turn))

    @rule(place=PLACES, owner=OWNERS)
    def delete(self, place: int, owner: Tenant) -> None:
        self.both(lambda store, _: store.delete(self.sids[place], owner))

    @rule(place=PLACES, owner=OWNERS, body=st.binary(max_size=2), lifetime_s=LIFETIMES_S)
    def put_document(self, place: int, owner: Tenant, body: bytes, lifetime_s: float) -> None:
        self.both(lambda store, _: store.put_document(self.sids[place], owner, body, lifetime_s))

    @rule(place=PLACES, owner=OWNERS, deletes=st.booleans())
    def take_document(self, place: int, owner: Tenant, deletes: bool) -> None:
        self.both(lambda store, _: store.get_document(self.sids[place], owner))
        if deletes:
            self.both(lambda store, _: store.delete_document(self.sids[place], owner))

    @rule(seconds=st.sampled_from([2.0, 4.0, 12.0, 40.0]))
    def wait(self, seconds: float) -> None:
        for trial in (self.model, self.tested):
            self.runner.run(trial.advance(seconds))


@pytest.mark.parametrize("name", sorted(STORES.keys() - {"model"}))
def test_it_answers_as_the_model_does(name: str) -> None:
    run_state_machine_as_test(
        type("Machine", (StoreMachine,), {"name": name}),
        settings=settings(
            max_examples=100,
            stateful_step_count=100,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
