"""Claims are noticed to end, and what a replica has in memory is never trusted beyond what it is."""

from __future__ import annotations

import asyncio

import pytest

from router.core.errors import StateUnavailable
from router.core.request.request import Tenant
from router.sessions import release
from router.sessions.context.history import History
from router.sessions.history_cache import HistoryCache
from router.sessions.stores.contract import EMPTY, Begin, Begun, Cursor, Sid, StoreUnavailable
from tests.sessions.context.logs import turn
from tests.sessions.desk import ACME, SID, Desk, user

OWNER = ACME.rules.tenant


async def test_whoever_waits_for_a_turn_of_this_replica_hears_of_its_end_at_once() -> None:
    claims = Desk().turns.claims
    with claims.wanted(SID, OWNER):
        waiting = asyncio.create_task(claims.pause(SID, 3600.0))
        await asyncio.sleep(0)
        assert list(claims.endings) == [SID]
    async with asyncio.timeout(5.0):
        assert await waiting
    assert not claims.endings


async def test_whoever_waits_for_a_turn_of_another_replica_looks_again_by_and_by() -> None:
    claims = Desk().turns.claims
    assert not await claims.pause(SID, 0.001)


async def test_a_turn_that_never_asked_the_store_gives_nothing_back() -> None:
    desk = Desk()
    with desk.turns.claims.wanted(SID, OWNER):
        pass
    await desk.settled()
    assert desk.points.passed == []


async def test_a_claim_is_renewed_when_it_is_due_and_not_before() -> None:
    desk = Desk()
    renewed: list[int] = []

    async def renew(sid: Sid, owner: Tenant, fence: int, lease_s: float) -> None:
        renewed.append(fence)

    desk.store.renew = renew  # type: ignore[method-assign]
    with desk.turns.claims.wanted(SID, OWNER) as claim:
        desk.now += 6.0
        desk.turns.claims.renew()
        claim.fence, claim.renewed_at = 7, desk.now
        for seconds in (4.0, 2.0, 4.0, 2.0):
            desk.now += seconds
            desk.turns.claims.renew()
        await desk.settled()
        claim.fence = 0
    assert renewed == [7, 7]


def history(generation: str, head: int) -> History:
    made = History(SID, OWNER, generation)
    made.log.head = head
    return made


def test_what_is_known_of_no_session_is_nothing() -> None:
    cache = HistoryCache(1 << 20)
    assert cache.known(SID) == EMPTY
    found = cache.find(SID, OWNER, EMPTY, "g")
    assert found is not None
    assert (found.generation, found.head) == ("g", 0)


def test_a_history_that_is_shorter_than_what_the_store_was_told_must_be_read_again() -> None:
    cache = HistoryCache(1 << 20)
    cache.keep(SID, history("g", 5))
    assert cache.find(SID, OWNER, Cursor("g", 5), "g") is cache.get(SID)
    assert cache.find(SID, OWNER, Cursor("g", 4), "g") is cache.get(SID)
    assert cache.find(SID, OWNER, Cursor("g", 6), "g") is None
    other = cache.find(SID, OWNER, Cursor("g", 5), "h")
    assert other is not None
    assert (other.generation, other.head) == ("h", 0)


async def test_a_history_after_which_others_wrote_is_forgotten() -> None:
    desk = Desk()
    await desk.take(user("one"))
    read, _ = await desk.histories.load(SID, OWNER)
    desk.histories.grow(read, turn(2, user("mine")), read.head + 2)
    assert desk.histories.cache.get(SID) is None
    assert len(read.items) == 2


async def test_a_claim_that_a_hung_store_took_is_given_back_when_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "REPEAT_S", 0.0)
    desk = Desk()
    desk.store.fails = {"behind begin": 1, "before leave": 3}
    with pytest.raises(StateUnavailable):
        await desk.take(user("hello"))
    await desk.require_quiet()
    assert desk.points.passed.count("before leave") == 4
    assert (desk.turns.claims.releaser.waiting, desk.turns.claims.releaser.given_up) == (0, 0)
    assert (await desk.take(user("hello"))).text == "to hello"


async def test_a_claim_is_not_given_back_for_longer_than_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "REPEAT_S", 0.0)
    desk = Desk()
    desk.store.fails = {"behind begin": 1, "before leave": 1 << 30}
    with pytest.raises(StateUnavailable):
        await desk.take(user("hello"))
    while desk.points.passed.count("before leave") < 3:
        await asyncio.sleep(0)
    assert (desk.turns.claims.releaser.waiting, desk.turns.claims.releaser.given_up) == (1, 0)
    desk.now += 15.1
    async with asyncio.timeout(5):
        await desk.settled()
    assert (desk.turns.claims.releaser.waiting, desk.turns.claims.releaser.given_up) == (0, 1)


async def test_only_so_many_claims_wait_to_be_given_back_and_others_leases_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "REPEAT_S", 0.0)
    desk = Desk(max_waiting_releases=2)
    desk.store.fails = {"behind begin": 3, "before leave": 1 << 30}
    for number in range(3):
        with pytest.raises(StateUnavailable):
            await desk.take(user("hello"), sid=Sid(f"{number}" * 32))
    while desk.turns.claims.releaser.given_up < 1:
        await asyncio.sleep(0)
    assert desk.turns.claims.releaser.waiting == 2
    desk.store.fails = {}
    await desk.settled()
    assert (desk.turns.claims.releaser.waiting, desk.turns.claims.releaser.given_up) == (0, 1)


async def test_a_renewal_that_fails_is_no_claim_that_was_given_up() -> None:
    desk = Desk()
    with desk.turns.claims.wanted(SID, OWNER) as claim:
        claim.fence = 7
        desk.now += 6.0
        desk.turns.claims.renew()
        await desk.settled()
        claim.fence = 0
    assert desk.turns.claims.releaser.given_up == 0


async def test_what_a_store_was_never_asked_is_not_given_back() -> None:
    class Spared(StoreUnavailable):
        was_asked = False

    async def refuse(begin: Begin) -> Begun:
        raise Spared("as the test wished")

    desk = Desk()
    desk.store.begin = refuse  # type: ignore[method-assign]
    with pytest.raises(StateUnavailable):
        await desk.take(user("hello"))
    await desk.settled()
    assert desk.points.passed == []
