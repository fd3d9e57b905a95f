"""Every store keeps the contract in ``router.sessions.stores.contract``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from secrets import token_hex

import pytest

from router.sessions.stores.contract import (
    EMPTY,
    LINE_PATIENCE_S,
    MAX_TAIL_BYTES,
    Begin,
    Begun,
    Busy,
    Cursor,
    Fenced,
    Loaded,
    OwnerFull,
    Repeated,
    Sid,
    Store,
    TurnRecord,
    Usage,
)
from tests.sessions.stores.contract import LEASE_S, LIFETIME_S, LIMITS, OWNER, STORES, STRANGER, Trial, asks, more


@pytest.fixture(params=STORES)
async def trial(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Trial]:
    async with STORES[request.param](tmp_path) as trial:
        yield trial


@pytest.fixture
def store(trial: Trial) -> Store:
    return trial.store


@pytest.fixture
def sid() -> Sid:
    return Sid(token_hex(16))


async def begun_by(store: Store, begin: Begin) -> Begun:
    answer = await store.begin(begin)
    assert isinstance(answer, Begun)
    return answer


async def loaded(store: Store, sid: Sid, cursor: Cursor = EMPTY) -> Loaded:
    found = await store.load(sid, OWNER, cursor)
    assert found is not None
    return found


async def a_turn(store: Store, sid: Sid, *entries: bytes) -> Begun:
    """One that has ended."""
    begun = await begun_by(store, asks(sid))
    await store.append(more(sid, begun, *entries, ends=True))
    return begun


async def made(store: Store, sid: Sid, *entries: bytes, turns: int = 0, lifetime_s: float = LIFETIME_S) -> bool:
    return await store.create(sid, OWNER, entries=entries, attributes=b"", turns=turns, lifetime_s=lifetime_s)


async def test_a_store_that_is_there_says_so(store: Store) -> None:
    async with asyncio.timeout(10):
        await store.ping()


# The log


async def test_a_first_turn_begins_a_session(store: Store, sid: Sid) -> None:
    begun = await begun_by(store, asks(sid))
    assert begun.generation
    assert begun == Begun(
        generation=begun.generation,
        fence=begun.fence,
        turn=1,
        head=0,
        epoch=0,
        view=None,
        starts_over=False,
        tail=[],
        appended=False,
        worker="",
    )


async def test_an_absent_session_is_not_created_where_that_was_not_asked(store: Store, sid: Sid) -> None:
    assert await store.begin(asks(sid, creates=False)) is None
    assert await store.load(sid, OWNER, EMPTY) is None


async def test_what_a_turn_appends_is_the_next_ones_tail_in_order(store: Store, sid: Sid) -> None:
    begun = await begun_by(store, asks(sid, entries=(b"1", b"2"), turn=1))
    assert (begun.appended, begun.head) == (True, 2)
    assert await store.append(more(sid, begun, b"3")) == 3
    assert await store.append(more(sid, begun, b"4", b"5", ends=True)) == 5
    second = await begun_by(store, asks(sid))
    assert list(second.tail) == [b"1", b"2", b"3", b"4", b"5"]
    assert (second.turn, second.head, second.starts_over) == (2, 5, True)


async def test_a_replica_is_told_what_it_does_not_have_and_nothing_else(store: Store, sid: Sid) -> None:
    first = await a_turn(store, sid, b"1", b"2", b"3")
    for head, tail in ((0, [b"1", b"2", b"3"]), (2, [b"3"]), (3, [])):
        found = await loaded(store, sid, Cursor(first.generation, head))
        assert (found.starts_over, list(found.tail), found.head) == (False, tail, 3)


async def test_entries_come_with_begin_where_all_else_is_known(store: Store, sid: Sid) -> None:
    first = await a_turn(store, sid, b"1", b"2")
    begun = await begun_by(store, asks(sid, cursor=Cursor(first.generation, 2), entries=(b"3",), turn=2))
    assert (begun.appended, begun.head, list(begun.tail)) == (True, 3, [])
    assert list((await loaded(store, sid)).tail) == [b"1", b"2", b"3"]


@pytest.mark.parametrize("head", [0, 1])
async def test_entries_do_not_come_with_begin_where_more_is_in_the_log(store: Store, sid: Sid, head: int) -> None:
    first = await a_turn(store, sid, b"1", b"2")
    begun = await begun_by(store, asks(sid, cursor=Cursor(first.generation, head), entries=(b"3",), turn=2))
    assert (begun.appended, begun.head, list(begun.tail)) == (False, 2, [b"1", b"2"][head:])
    assert (await loaded(store, sid)).head == 2


async def test_entries_do_not_come_with_begin_where_another_generation_was_known(store: Store, sid: Sid) -> None:
    await made(store, sid, b"1")
    begun = await begun_by(store, asks(sid, cursor=Cursor("another", 1), entries=(b"2",), turn=1))
    assert (begun.appended, begun.starts_over, begun.head, list(begun.tail)) == (False, True, 1, [b"1"])


async def test_who_knows_more_than_there_is_reads_all_of_it_anew(store: Store, sid: Sid) -> None:
    first = await a_turn(store, sid, b"1")
    more_than_all = Cursor(first.generation, 2)
    found = await loaded(store, sid, more_than_all)
    assert (found.starts_over, list(found.tail), found.head) == (True, [b"1"], 1)
    begun = await begun_by(store, asks(sid, cursor=more_than_all, entries=(b"2",), turn=2))
    assert (begun.appended, begun.starts_over, begun.head, list(begun.tail)) == (False, True, 1, [b"1"])


async def test_who_knows_entries_of_a_session_that_has_none_begins_anew(store: Store, sid: Sid) -> None:
    first = await a_turn(store, sid)
    begun = await begun_by(store, asks(sid, cursor=Cursor(first.generation, 2), entries=(b"3",), turn=2))
    assert (begun.appended, begun.starts_over, begun.head, list(begun.tail)) == (False, True, 0, [])


async def test_entries_do_not_come_with_begin_where_a_turn_was_begun_in_between(store: Store, sid: Sid) -> None:
    first = await a_turn(store, sid, b"1")
    failed = await begun_by(store, asks(sid))
    await store.release(sid, OWNER, failed.fence)
    begun = await begun_by(store, asks(sid, cursor=Cursor(first.generation, 1), entries=(b"2",), turn=2))
    assert (begun.turn, begun.appended, begun.head, list(begun.tail)) == (3, False, 1, [])


async def test_nothing_is_appended_where_nothing_is_brought(store: Store, sid: Sid) -> None:
    assert not (await begun_by(store, asks(sid, turn=1))).appended


async def test_a_session_that_was_deleted_is_another_when_it_comes_back(store: Store, sid: Sid) -> None:
    first = await a_turn(store, sid, b"old")
    assert await store.delete(sid, OWNER)
    assert await made(store, sid, b"new", b"newer")
    found = await loaded(store, sid, Cursor(first.generation, 1))
    assert found.generation != first.generation
    assert (found.starts_over, list(found.tail), found.turns) == (True, [b"new", b"newer"], 0)


async def test_entries_behind_those_of_a_deleted_session_do_not_come_into_one_that_has_none(
    store: Store, sid: Sid
) -> None:
    first = await a_turn(store, sid, b"old")
    await store.delete(sid, OWNER)
    failed = await begun_by(store, asks(sid))
    await store.release(sid, OWNER, failed.fence)
    begun = await begun_by(store, asks(sid, cursor=Cursor(first.generation, 1), entries=(b"new",), turn=2))
    assert (begun.turn, begun.starts_over, begun.appended, begun.head) == (2, True, False, 0)
    assert (await loaded(store, sid, Cursor(first.generation, 1))).starts_over


async def test_a_new_session_does_not_start_over_for_whoever_knew_no_entries(store: Store, sid: Sid) -> None:
    first = await a_turn(store, sid)
    await store.delete(sid, OWNER)
    begun = await begun_by(store, asks(sid, cursor=Cursor(first.generation, 0), entries=(b"new",), turn=1))
    assert (begun.starts_over, begun.appended, begun.head, begun.turn) == (False, True, 1, 1)


async def test_bytes_come_back_as_they_were(store: Store, sid: Sid) -> None:
    odd = (b"", b"\x00", bytes(range(256)), b"x" * 300_000, "\ud800".encode("utf-8", "surrogatepass"))
    begun = await begun_by(store, asks(sid, entries=odd, turn=1, record=odd[2], idempotency_key="ä:\x00 '"))
    await store.append(more(sid, begun, *odd))
    assert list((await loaded(store, sid)).tail) == [*odd, *odd]
    assert await store.read_turn(sid, OWNER, 1) == TurnRecord(False, odd[2])


async def test_two_thousand_entries_are_kept_in_order(store: Store, sid: Sid) -> None:
    entries = [b"%d" % n for n in range(2000)]
    begun = await begun_by(store, asks(sid, entries=entries[:1200], turn=1))
    assert await store.append(more(sid, begun, *entries[1200:], ends=True)) == 2000
    found = await loaded(store, sid)
    assert list(found.tail) == entries
    assert list((await loaded(store, sid, Cursor(found.generation, 1999))).tail) == entries[1999:]


async def test_sessions_do_not_meet(store: Store) -> None:
    one, other = Sid(token_hex(16)), Sid(token_hex(16))
    await a_turn(store, one, b"one")
    held = await begun_by(store, asks(other, idempotency_key="k"))
    again = await begun_by(store, asks(one, idempotency_key="k"))
    await store.append(more(other, held, b"other"))
    assert again.turn == 2
    assert list((await loaded(store, one)).tail) == [b"one"]


async def test_a_long_log_is_told_in_parts(store: Store, sid: Sid) -> None:
    entries = [bytes([n]) * (MAX_TAIL_BYTES // 4 + 1) for n in range(10)]
    begun = await begun_by(store, asks(sid))
    for entry in entries:
        await store.append(more(sid, begun, entry))
    found = await loaded(store, sid)
    read: list[bytes] = []
    while len(read) < len(entries):
        assert 0 < len(found.tail) < len(entries)
        assert (found.head, found.starts_over) == (len(entries), not read)
        read += found.tail
        found = await loaded(store, sid, Cursor(begun.generation, len(read)))
    assert read == entries
    assert list(found.tail) == []


async def test_an_entry_that_is_too_long_for_a_part_is_a_part(store: Store, sid: Sid) -> None:
    await made(store, sid, b"x" * (MAX_TAIL_BYTES + 1), b"y", turns=1)
    assert [len(entry) for entry in (await loaded(store, sid)).tail] == [MAX_TAIL_BYTES + 1]


# The claim


async def test_one_turn_at_a_time_holds_the_claim(store: Store, sid: Sid) -> None:
    await begun_by(store, asks(sid))
    assert (await loaded(store, sid)).is_claimed
    assert await store.begin(asks(sid, waits=False)) == Busy(0)


async def test_of_many_who_begin_at_once_one_does(store: Store, sid: Sid) -> None:
    answers = await asyncio.gather(*(store.begin(asks(sid)) for _ in range(20)))
    assert sum(isinstance(answer, Begun) for answer in answers) == 1
    assert sorted(answer.place for answer in answers if isinstance(answer, Busy)) == list(range(1, 20))


async def test_the_claim_ends_with_the_turn(store: Store, sid: Sid) -> None:
    first = await a_turn(store, sid, b"1")
    assert not (await loaded(store, sid)).is_claimed
    second = await begun_by(store, asks(sid))
    assert (second.turn, second.fence > first.fence) == (2, True)


async def test_a_turn_that_came_to_nothing_gives_the_claim_back_and_never_ends(store: Store, sid: Sid) -> None:
    first = await begun_by(store, asks(sid, record=b"r"))
    await store.release(sid, OWNER, first.fence)
    assert (await begun_by(store, asks(sid))).turn == 2
    assert await store.read_turn(sid, OWNER, 1) == TurnRecord(False, b"r")


async def test_a_claim_holds_for_its_lease(trial: Trial, sid: Sid) -> None:
    await begun_by(trial.store, asks(sid))
    await trial.advance(LEASE_S - 1)
    assert await trial.store.begin(asks(sid, waits=False)) == Busy(0)
    await trial.advance(2)
    assert not (await loaded(trial.store, sid)).is_claimed
    assert (await begun_by(trial.store, asks(sid))).turn == 2


async def test_a_renewed_claim_holds_for_another_lease(trial: Trial, sid: Sid) -> None:
    begun = await begun_by(trial.store, asks(sid))
    await trial.advance(LEASE_S - 1)
    await trial.store.renew(sid, OWNER, begun.fence, LEASE_S)
    await trial.advance(LEASE_S - 1)
    assert await trial.store.begin(asks(sid, waits=False)) == Busy(0)


async def test_a_lease_that_ran_out_is_no_loss_until_another_begins(trial: Trial, sid: Sid) -> None:
    begun = await begun_by(trial.store, asks(sid))
    await trial.advance(LEASE_S + 1)
    assert await trial.store.append(more(sid, begun, b"1")) == 1
    await trial.store.renew(sid, OWNER, begun.fence, LEASE_S)
    assert await trial.store.begin(asks(sid, waits=False)) == Busy(0)
    assert await trial.store.append(more(sid, begun, b"2", ends=True)) == 2


@pytest.mark.parametrize("ends", [False, True])
async def test_who_lost_the_claim_cannot_write(trial: Trial, sid: Sid, ends: bool) -> None:
    lost = await begun_by(trial.store, asks(sid))
    await trial.advance(LEASE_S + 1)
    held = await begun_by(trial.store, asks(sid))
    assert held.fence > lost.fence
    with pytest.raises(Fenced):
        await trial.store.append(more(sid, lost, b"x", ends=ends, record=b"x", worker="x"))
    with pytest.raises(Fenced):
        await trial.store.renew(sid, OWNER, lost.fence, LEASE_S)
    await trial.store.release(sid, OWNER, lost.fence)
    assert await trial.store.begin(asks(sid, waits=False)) == Busy(0)
    assert await trial.store.append(more(sid, held, b"1", ends=True)) == 1
    assert await trial.store.read_turn(sid, OWNER, 1) == TurnRecord(False, b"")
    assert (await begun_by(trial.store, asks(sid))).worker == ""


@pytest.mark.parametrize("how", ["released", "ended"])
async def test_who_released_or_ended_cannot_write(store: Store, sid: Sid, how: str) -> None:
    begun = await begun_by(store, asks(sid))
    if how == "released":
        await store.release(sid, OWNER, begun.fence)
    else:
        await store.append(more(sid, begun, ends=True))
    with pytest.raises(Fenced):
        await store.append(more(sid, begun, b"x"))
    with pytest.raises(Fenced):
        await store.renew(sid, OWNER, begun.fence, LEASE_S)
    assert (await loaded(store, sid)).head == 0


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("is_back", [False, True])
async def test_who_holds_a_session_that_was_deleted_cannot_write(
    store: Store, sid: Sid, is_late: bool, is_back: bool
) -> None:
    old = await begun_by(store, asks(sid))
    await store.delete(sid, OWNER)
    if is_back:
        await begun_by(store, asks(sid))
    with pytest.raises(Fenced):
        await store.append(more(sid, old, b"x", ends=True, is_late=is_late))
    with pytest.raises(Fenced):
        await store.renew(sid, OWNER, old.fence, LEASE_S)
    found = await store.load(sid, OWNER, EMPTY)
    assert found is None or (is_back and found.head == 0)


async def test_a_claim_on_a_deleted_session_is_none_on_the_next_of_its_name(store: Store, sid: Sid) -> None:
    old = await begun_by(store, asks(sid))
    await store.delete(sid, OWNER)
    await begun_by(store, asks(sid))
    with pytest.raises(Fenced):
        await store.renew(sid, OWNER, old.fence, LEASE_S)
    await store.release(sid, OWNER, old.fence)
    assert (await loaded(store, sid)).is_claimed


async def test_nobody_renews_or_appends_to_what_is_absent(store: Store, sid: Sid) -> None:
    with pytest.raises(Fenced):
        await store.renew(sid, OWNER, 1, LEASE_S)
    await store.release(sid, OWNER, 1)
    await store.leave(sid, OWNER, "nobody")
    assert await store.load(sid, OWNER, EMPTY) is None


# The line


async def test_a_holder_that_asks_again_begins_no_second_turn(store: Store, sid: Sid) -> None:
    begin = asks(sid)
    await begun_by(store, begin)
    assert isinstance(await store.begin(begin), Busy)
    assert (await loaded(store, sid)).turns == 1


async def test_those_who_wait_begin_in_the_order_they_came(store: Store, sid: Sid) -> None:
    begun = await begun_by(store, asks(sid))
    line = [asks(sid) for _ in range(3)]
    assert [await store.begin(each) for each in line] == [Busy(1), Busy(2), Busy(3)]
    assert [await store.begin(each) for each in line] == [Busy(1), Busy(2), Busy(3)]
    for each in line:
        await store.append(more(sid, begun, ends=True))
        for later in line[line.index(each) + 1 :]:
            assert isinstance(await store.begin(later), Busy)
        begun = await begun_by(store, each)
    assert begun.turn == 4


async def test_a_newcomer_does_not_pass_those_who_wait(store: Store, sid: Sid) -> None:
    begun = await begun_by(store, asks(sid))
    await store.begin(asks(sid))
    await store.append(more(sid, begun, ends=True))
    assert await store.begin(asks(sid, waits=False)) == Busy(0)
    assert await store.begin(asks(sid)) == Busy(2)


async def test_who_does_not_ask_again_loses_its_place(trial: Trial, sid: Sid) -> None:
    begun = await begun_by(trial.store, asks(sid))
    dead, alive = asks(sid), asks(sid)
    assert [await trial.store.begin(each) for each in (dead, alive)] == [Busy(1), Busy(2)]
    await trial.advance(LINE_PATIENCE_S - 1)
    assert await trial.store.begin(alive) == Busy(2)
    await trial.advance(2)
    assert await trial.store.begin(alive) == Busy(1)
    assert await trial.store.begin(dead) == Busy(2)
    await trial.store.append(more(sid, begun, ends=True))
    await begun_by(trial.store, alive)


async def test_those_who_died_in_the_line_are_passed(trial: Trial, sid: Sid) -> None:
    begun = await begun_by(trial.store, asks(sid))
    await trial.store.begin(asks(sid))
    await trial.advance(LINE_PATIENCE_S + 1)
    await trial.store.append(more(sid, begun, ends=True))
    assert (await begun_by(trial.store, asks(sid))).turn == 2


async def test_a_full_line_takes_nobody_and_keeps_who_is_in_it(store: Store, sid: Sid) -> None:
    await begun_by(store, asks(sid))
    line = [asks(sid, max_waiting=2) for _ in range(3)]
    assert [await store.begin(each) for each in line] == [Busy(1), Busy(2), Busy(0)]
    assert [await store.begin(each) for each in line] == [Busy(1), Busy(2), Busy(0)]
    await store.leave(sid, OWNER, line[0].token)
    assert await store.begin(line[2]) == Busy(2)


async def test_who_does_not_wait_gets_no_place(store: Store, sid: Sid) -> None:
    await begun_by(store, asks(sid))
    assert await store.begin(asks(sid, waits=False)) == Busy(0)
    assert await store.begin(asks(sid)) == Busy(1)


async def test_who_leaves_the_line_lets_the_others_move_up(store: Store, sid: Sid) -> None:
    begun = await begun_by(store, asks(sid))
    first, second = asks(sid), asks(sid)
    await store.begin(first)
    await store.begin(second)
    await store.leave(sid, OWNER, first.token)
    assert await store.begin(second) == Busy(1)
    await store.append(more(sid, begun, ends=True))
    await begun_by(store, second)


async def test_who_never_heard_that_it_holds_the_claim_gives_it_back_by_leaving(store: Store, sid: Sid) -> None:
    unheard = asks(sid, entries=(b"1",), turn=1)
    begun = await begun_by(store, unheard)
    await store.leave(sid, OWNER, unheard.token)
    with pytest.raises(Fenced):
        await store.append(more(sid, begun, b"x"))
    assert (await begun_by(store, asks(sid))).turn == 2


async def test_who_leaves_takes_nothing_from_others(store: Store, sid: Sid) -> None:
    ended, holding = asks(sid), asks(sid)
    first = await begun_by(store, ended)
    await store.append(more(sid, first, ends=True))
    second = await begun_by(store, holding)
    await store.leave(sid, OWNER, ended.token)
    assert await store.append(more(sid, second, b"1", ends=True)) == 1


# Idempotency keys


async def test_a_key_of_a_turn_that_ended_is_that_turn(store: Store, sid: Sid) -> None:
    begun = await begun_by(store, asks(sid, idempotency_key="k", record=b"asked"))
    await store.append(more(sid, begun, b"1", ends=True, record=b"answered"))
    await a_turn(store, sid, b"2")
    assert await store.begin(asks(sid, idempotency_key="k")) == Repeated(1, True, b"answered")
    assert (await loaded(store, sid)).turns == 2


async def test_a_key_of_a_turn_that_still_runs_is_that_turn(store: Store, sid: Sid) -> None:
    await begun_by(store, asks(sid, idempotency_key="k", record=b"asked"))
    assert await store.begin(asks(sid, idempotency_key="k")) == Repeated(1, False, b"asked")
    assert await store.begin(asks(sid, idempotency_key="other")) == Busy(1)


@pytest.mark.parametrize("failure", ["released", "lease ran out"])
async def test_a_key_of_a_turn_that_failed_begins_a_new_one(trial: Trial, sid: Sid, failure: str) -> None:
    begun = await begun_by(trial.store, asks(sid, idempotency_key="k"))
    if failure == "released":
        await trial.store.release(sid, OWNER, begun.fence)
    else:
        await trial.advance(LEASE_S + 1)
    again = await begun_by(trial.store, asks(sid, idempotency_key="k", record=b"again"))
    assert again.turn == 2
    assert await trial.store.begin(asks(sid, idempotency_key="k")) == Repeated(2, False, b"again")


async def test_a_failed_turns_key_waits_like_any_other_while_another_turn_runs(store: Store, sid: Sid) -> None:
    begun = await begun_by(store, asks(sid, idempotency_key="k"))
    await store.release(sid, OWNER, begun.fence)
    await begun_by(store, asks(sid))
    assert await store.begin(asks(sid, idempotency_key="k")) == Busy(1)


async def test_turns_without_a_key_are_never_taken_for_one_another(store: Store, sid: Sid) -> None:
    await a_turn(store, sid)
    assert (await begun_by(store, asks(sid, idempotency_key=""))).turn == 2


# Ends, and late ones


async def test_a_turn_that_ends_twice_ends_once(store: Store, sid: Sid) -> None:
    begun = await begun_by(store, asks(sid))
    last = more(sid, begun, b"1", ends=True, record=b"r", worker="w")
    assert [await store.append(last), await store.append(last)] == [1, 1]
    held = await begun_by(store, asks(sid))
    assert await store.append(more(sid, begun, b"x", ends=True, record=b"x", worker="x")) == 1
    assert await store.append(more(sid, held, b"2")) == 2
    assert await store.read_turn(sid, OWNER, 1) == TurnRecord(True, b"r")


async def test_a_late_end_is_kept_though_another_holds_the_claim(trial: Trial, sid: Sid) -> None:
    late = await begun_by(trial.store, asks(sid))
    await trial.advance(LEASE_S + 1)
    held = await begun_by(trial.store, asks(sid))
    last = more(sid, late, b"late", ends=True, is_late=True, record=b"r")
    assert [await trial.store.append(last), await trial.store.append(last)] == [1, 1]
    assert await trial.store.read_turn(sid, OWNER, 1) == TurnRecord(True, b"r")
    assert await trial.store.begin(asks(sid, waits=False)) == Busy(0)
    assert await trial.store.append(more(sid, held, b"2", ends=True)) == 2
    assert list((await loaded(trial.store, sid)).tail) == [b"late", b"2"]


async def test_a_late_end_by_who_still_holds_the_claim_frees_it(store: Store, sid: Sid) -> None:
    begun = await begun_by(store, asks(sid))
    await store.append(more(sid, begun, b"1", ends=True, is_late=True))
    assert (await begun_by(store, asks(sid, waits=False))).turn == 2


async def test_late_is_nothing_without_an_end(trial: Trial, sid: Sid) -> None:
    lost = await begun_by(trial.store, asks(sid))
    await trial.advance(LEASE_S + 1)
    await begun_by(trial.store, asks(sid))
    with pytest.raises(Fenced):
        await trial.store.append(more(sid, lost, b"x", is_late=True))
    assert (await loaded(trial.store, sid)).head == 0


# Turns, workers, views, attributes


async def test_a_turns_record_is_kept_and_replaced(store: Store, sid: Sid) -> None:
    begun = await begun_by(store, asks(sid, record=b"asked"))
    assert await store.read_turn(sid, OWNER, 1) == TurnRecord(False, b"asked")
    await store.append(more(sid, begun, record=b"half"))
    assert await store.read_turn(sid, OWNER, 1) == TurnRecord(False, b"half")
    await store.append(more(sid, begun, ends=True))
    assert await store.read_turn(sid, OWNER, 1) == TurnRecord(True, b"half")


async def test_a_record_may_be_replaced_by_an_empty_one(store: Store, sid: Sid) -> None:
    begun = await begun_by(store, asks(sid, record=b"asked"))
    await store.append(more(sid, begun, ends=True, record=b""))
    assert await store.read_turn(sid, OWNER, 1) == TurnRecord(True, b"")


@pytest.mark.parametrize("turn", [-1, 0, 2, 10**6])
async def test_there_is_no_record_of_a_turn_that_was_not_begun(store: Store, sid: Sid, turn: int) -> None:
    assert await store.read_turn(sid, OWNER, turn) is None
    await a_turn(store, sid)
    assert await store.read_turn(sid, OWNER, turn) is None


async def test_the_last_turns_worker_is_told_to_the_next(store: Store, sid: Sid) -> None:
    begun = await begun_by(store, asks(sid))
    await store.append(more(sid, begun, worker="w1"))
    await store.append(more(sid, begun, ends=True))
    assert (await begun_by(store, asks(sid))).worker == "w1"


async def test_a_view_is_replaced_by_one_who_knows_its_epoch(store: Store, sid: Sid) -> None:
    first = await a_turn(store, sid, b"1")
    assert await store.commit_view(sid, OWNER, first.generation, 0, b"v1")
    assert not await store.commit_view(sid, OWNER, first.generation, 0, b"x")
    assert not await store.commit_view(sid, OWNER, first.generation, 2, b"x")
    assert not await store.commit_view(sid, OWNER, "another", 1, b"x")
    found = await loaded(store, sid)
    assert (found.epoch, found.view) == (1, b"v1")


async def test_a_view_is_told_to_those_who_know_another(store: Store, sid: Sid) -> None:
    first = await a_turn(store, sid, b"1")
    await store.commit_view(sid, OWNER, first.generation, 0, b"v1")
    for known, view in (
        (Cursor(first.generation, 1, 0), b"v1"),
        (Cursor(first.generation, 1, 1), None),
        (Cursor("another", 1, 1), b"v1"),
    ):
        begun = await begun_by(store, asks(sid, cursor=known))
        assert (begun.epoch, begun.view, (await loaded(store, sid, known)).view) == (1, view, view)
        await store.release(sid, OWNER, begun.fence)


async def test_a_view_is_replaced_while_a_turn_goes_on(store: Store, sid: Sid) -> None:
    begun = await begun_by(store, asks(sid))
    assert await store.commit_view(sid, OWNER, begun.generation, 0, b"v1")
    assert await store.append(more(sid, begun, b"1", ends=True)) == 1


async def test_a_view_of_a_session_that_is_gone_is_not_kept(store: Store, sid: Sid) -> None:
    first = await a_turn(store, sid, b"1")
    await store.delete(sid, OWNER)
    assert not await store.commit_view(sid, OWNER, first.generation, 0, b"v1")
    await made(store, sid, b"1")
    assert not await store.commit_view(sid, OWNER, first.generation, 0, b"v1")
    assert (await loaded(store, sid)).view is None


async def test_attributes_are_kept_and_replaced(store: Store, sid: Sid) -> None:
    assert not await store.set_attributes(sid, OWNER, b"a")
    await store.create(sid, OWNER, entries=(), attributes=b"a", turns=0, lifetime_s=0)
    assert (await loaded(store, sid)).attributes == b"a"
    assert await store.set_attributes(sid, OWNER, b"")
    assert (await loaded(store, sid)).attributes == b""


async def test_a_session_is_created_with_what_it_begins_with(trial: Trial, sid: Sid) -> None:
    assert await made(trial.store, sid, b"1", b"2", turns=3)
    found = await loaded(trial.store, sid)
    assert (list(found.tail), found.head, found.turns, found.is_claimed) == ([b"1", b"2"], 2, 3, False)
    assert found.created_at == pytest.approx(trial.unix_time(), abs=30)
    assert await trial.store.read_turn(sid, OWNER, 3) == TurnRecord(True, b"")
    known = Cursor(found.generation, 2)
    begun = await begun_by(trial.store, asks(sid, cursor=known, entries=(b"3",), turn=4))
    assert (begun.turn, begun.appended) == (4, True)


async def test_a_session_that_is_there_is_not_created(store: Store, sid: Sid) -> None:
    first = await a_turn(store, sid, b"1")
    assert not await made(store, sid, b"x")
    assert list((await loaded(store, sid, Cursor(first.generation, 0))).tail) == [b"1"]


async def test_deleting_takes_all_of_it(store: Store, sid: Sid) -> None:
    begun = await begun_by(store, asks(sid, entries=(b"1",), turn=1, idempotency_key="k", record=b"r"))
    await store.append(more(sid, begun, worker="w"))
    await store.commit_view(sid, OWNER, begun.generation, 0, b"v")
    await store.set_attributes(sid, OWNER, b"a")
    await store.begin(asks(sid))
    assert [await store.delete(sid, OWNER), await store.delete(sid, OWNER)] == [True, False]
    assert await store.load(sid, OWNER, EMPTY) is None
    assert await store.read_turn(sid, OWNER, 1) is None
    fresh = await begun_by(store, asks(sid, idempotency_key="k", waits=False))
    assert (fresh.turn, fresh.head, fresh.epoch, fresh.view, fresh.worker) == (1, 0, 0, None, "")
    assert (await loaded(store, sid)).attributes == b""


# Owners


async def test_to_anybody_else_a_session_is_absent(store: Store, sid: Sid) -> None:
    begun = await begun_by(store, asks(sid, entries=(b"1",), turn=1, idempotency_key="k"))
    waiting = asks(sid)
    await store.begin(waiting)
    assert await store.begin(asks(sid, owner=STRANGER)) is None
    assert await store.begin(asks(sid, owner=STRANGER, idempotency_key="k", waits=False)) is None
    for is_late in (False, True):
        with pytest.raises(Fenced):
            await store.append(more(sid, begun, b"x", ends=True, owner=STRANGER, is_late=is_late))
    with pytest.raises(Fenced):
        await store.renew(sid, STRANGER, begun.fence, LEASE_S)
    await store.release(sid, STRANGER, begun.fence)
    await store.leave(sid, STRANGER, waiting.token)
    assert await store.load(sid, STRANGER, Cursor(begun.generation)) is None
    assert not await store.create(sid, STRANGER, entries=(b"x",), attributes=b"x", turns=0, lifetime_s=0)
    assert not await store.set_attributes(sid, STRANGER, b"x")
    assert not await store.commit_view(sid, STRANGER, begun.generation, 0, b"x")
    assert await store.read_turn(sid, STRANGER, 1) is None
    assert not await store.delete(sid, STRANGER)
    found = await loaded(store, sid)
    assert (list(found.tail), found.attributes, found.view, found.is_claimed) == ([b"1"], b"", None, True)
    assert await store.begin(asks(sid)) == Busy(2)
    assert await store.append(more(sid, begun, b"2", ends=True)) == 2


async def test_to_anybody_else_a_document_is_absent(store: Store, sid: Sid) -> None:
    await store.put_document(sid, OWNER, b"mine", 0)
    await store.put_document(sid, STRANGER, b"x", 0)
    assert await store.get_document(sid, STRANGER) is None
    assert not await store.delete_document(sid, STRANGER)
    assert await store.get_document(sid, OWNER) == b"mine"


async def test_what_expired_or_was_deleted_belongs_to_nobody(trial: Trial, sid: Sid) -> None:
    store = trial.store
    await made(store, sid, lifetime_s=5)
    await store.put_document(sid, OWNER, b"mine", 5)
    await trial.advance(6)
    assert await store.create(sid, STRANGER, entries=(), attributes=b"", turns=0, lifetime_s=0)
    await store.put_document(sid, STRANGER, b"theirs", 0)
    assert await store.get_document(sid, STRANGER) == b"theirs"
    assert await store.delete(sid, STRANGER)
    assert await store.delete_document(sid, STRANGER)
    assert await made(store, sid)
    await store.put_document(sid, OWNER, b"mine", 0)
    assert await store.get_document(sid, OWNER) == b"mine"


# Lifetimes


async def test_a_session_ends_with_its_lifetime_and_all_of_it_at_once(trial: Trial, sid: Sid) -> None:
    store = trial.store
    begun = await begun_by(store, asks(sid, lifetime_s=9, lease_s=60, entries=(b"1",), turn=1, idempotency_key="k"))
    await store.commit_view(sid, OWNER, begun.generation, 0, b"v")
    await trial.advance(10)
    assert await store.load(sid, OWNER, Cursor(begun.generation)) is None
    assert await store.read_turn(sid, OWNER, 1) is None
    assert not await store.set_attributes(sid, OWNER, b"a")
    assert not await store.delete(sid, OWNER)
    assert await store.begin(asks(sid, creates=False)) is None
    for is_late in (False, True):
        with pytest.raises(Fenced):
            await store.append(more(sid, begun, b"x", ends=True, is_late=is_late))
    fresh = await begun_by(store, asks(sid, idempotency_key="k", cursor=Cursor(begun.generation, 1)))
    assert (fresh.turn, fresh.head, fresh.view, fresh.generation != begun.generation) == (1, 0, None, True)


@pytest.mark.parametrize("refresh", ["begin", "append", "late"])
async def test_each_part_of_a_turn_gives_all_of_the_session_a_new_lifetime(
    trial: Trial, sid: Sid, refresh: str
) -> None:
    store = trial.store
    begun = await begun_by(store, asks(sid, lifetime_s=9, entries=(b"1",), turn=1, record=b"r"))
    await store.commit_view(sid, OWNER, begun.generation, 0, b"v")
    await trial.advance(7)
    if refresh == "begin":
        await store.release(sid, OWNER, begun.fence)
        await begun_by(store, asks(sid, lifetime_s=9))
    else:
        await store.append(more(sid, begun, ends=True, is_late=refresh == "late", lifetime_s=9))
    await trial.advance(7)
    found = await loaded(store, sid)
    assert (list(found.tail), found.view) == ([b"1"], b"v")
    assert await store.read_turn(sid, OWNER, 1) == TurnRecord(refresh != "begin", b"r")
    await trial.advance(4)
    assert await store.load(sid, OWNER, EMPTY) is None


async def test_reading_views_and_attributes_give_no_new_lifetime(trial: Trial, sid: Sid) -> None:
    store = trial.store
    begun = await begun_by(store, asks(sid, lifetime_s=9, lease_s=60))
    await trial.advance(7)
    await store.begin(asks(sid))
    await store.renew(sid, OWNER, begun.fence, 60)
    await store.commit_view(sid, OWNER, begun.generation, 0, b"v")
    await store.set_attributes(sid, OWNER, b"a")
    await loaded(store, sid)
    await trial.advance(3)
    assert await store.load(sid, OWNER, EMPTY) is None


async def test_lifetime_nought_is_for_ever(trial: Trial, sid: Sid) -> None:
    store = trial.store
    begun = await begun_by(store, asks(sid, lifetime_s=9))
    await store.append(more(sid, begun, b"1", ends=True, lifetime_s=0))
    await store.put_document(sid, OWNER, b"d", 0)
    await trial.advance(10**8)
    assert list((await loaded(store, sid)).tail) == [b"1"]
    assert await store.get_document(sid, OWNER) == b"d"


async def test_a_lifetime_may_end_what_was_for_ever(trial: Trial, sid: Sid) -> None:
    await made(trial.store, sid, lifetime_s=0)
    begun = await begun_by(trial.store, asks(sid, lifetime_s=9))
    await trial.store.release(sid, OWNER, begun.fence)
    await trial.advance(10)
    assert await trial.store.load(sid, OWNER, EMPTY) is None


async def test_when_a_session_was_created_does_not_change(trial: Trial, sid: Sid) -> None:
    await a_turn(trial.store, sid)
    before = (await loaded(trial.store, sid)).created_at
    await a_turn(trial.store, sid)
    assert (await loaded(trial.store, sid)).created_at == before


# Documents


async def test_a_document_is_kept_replaced_and_deleted(store: Store, sid: Sid) -> None:
    assert await store.get_document(sid, OWNER) is None
    await store.put_document(sid, OWNER, b"one", 0)
    await store.put_document(sid, OWNER, b"\x00two", LIFETIME_S)
    assert await store.get_document(sid, OWNER) == b"\x00two"
    assert [await store.delete_document(sid, OWNER) for _ in range(2)] == [True, False]
    assert await store.get_document(sid, OWNER) is None


async def test_a_document_ends_with_its_lifetime_which_replacing_it_renews(trial: Trial, sid: Sid) -> None:
    await trial.store.put_document(sid, OWNER, b"d", 9)
    await trial.advance(7)
    await trial.store.put_document(sid, OWNER, b"d", 9)
    await trial.advance(7)
    assert await trial.store.get_document(sid, OWNER) == b"d"
    await trial.advance(3)
    assert await trial.store.get_document(sid, OWNER) is None
    assert not await trial.store.delete_document(sid, OWNER)


async def test_a_document_is_no_session(store: Store, sid: Sid) -> None:
    await store.put_document(sid, OWNER, b"d", 0)
    assert await store.load(sid, OWNER, EMPTY) is None
    assert await made(store, sid, b"1")
    assert await store.delete(sid, OWNER)
    assert await store.get_document(sid, OWNER) == b"d"


# Room


async def test_an_owner_has_so_many_sessions_and_deleting_one_makes_room(trial: Trial, sid: Sid) -> None:
    sids = [Sid(f"{sid}{n}") for n in range(LIMITS.max_sessions)]
    for each in sids:
        assert await made(trial.store, each)
    await trial.usage()
    with pytest.raises(OwnerFull, match="200 sessions"):
        await made(trial.store, sid)
    with pytest.raises(OwnerFull):
        await trial.store.begin(asks(sid))
    assert await trial.store.load(sid, OWNER, EMPTY) is None
    assert await trial.store.create(sid, STRANGER, entries=(), attributes=b"", turns=0, lifetime_s=0)
    assert await trial.store.delete(sids[0], OWNER)
    await trial.usage()
    assert await made(trial.store, sids[0])


async def test_an_owner_has_so_many_documents_and_replacing_one_needs_no_room(trial: Trial, sid: Sid) -> None:
    keys = [Sid(f"{sid}{n}") for n in range(LIMITS.max_sessions)]
    for key in keys:
        await trial.store.put_document(key, OWNER, b"d", 0)
    await trial.usage()
    with pytest.raises(OwnerFull, match="200 responses"):
        await trial.store.put_document(sid, OWNER, b"d", 0)
    assert await trial.store.get_document(sid, OWNER) is None
    await trial.store.put_document(keys[0], OWNER, b"e", 0)
    await trial.store.put_document(sid, STRANGER, b"d", 0)


async def test_an_owner_has_so_many_bytes_and_a_turn_that_began_ends_all_the_same(trial: Trial, sid: Sid) -> None:
    begun = await begun_by(trial.store, asks(sid))
    for _ in range(7):
        await trial.store.append(more(sid, begun, b"x" * (8 << 20)))
    await trial.usage()
    with pytest.raises(OwnerFull, match="bytes"):
        await trial.store.append(more(sid, begun, b"x" * (8 << 20)))
    assert await trial.store.append(more(sid, begun, b"x" * (8 << 20), ends=True)) == 8
    await trial.usage()
    with pytest.raises(OwnerFull):
        await trial.store.begin(asks(sid))
    assert not (await loaded(trial.store, sid)).is_claimed
    assert await trial.store.delete(sid, OWNER)
    await trial.usage()
    await begun_by(trial.store, asks(sid))


async def test_what_is_deleted_or_expires_is_given_back(trial: Trial, sid: Sid) -> None:
    other = Sid(token_hex(16))
    begun = await begun_by(trial.store, asks(sid, record=b"r" * 100, entries=(b"1" * 50,), turn=1))
    await trial.store.append(more(sid, begun, b"2", ends=True, record=b"r" * 200, lifetime_s=10))
    await trial.store.commit_view(sid, OWNER, begun.generation, 0, b"v" * 300)
    await made(trial.store, other, b"3", turns=1)
    await trial.store.put_document(sid, OWNER, b"d" * 1000, 10)
    usage = (await trial.usage())[OWNER]
    assert (usage.sessions, usage.documents) == (2, 1)
    assert 1200 < usage.bytes < 6000
    await trial.advance(20)
    assert (await trial.usage())[OWNER].documents == 0
    assert await trial.store.delete(other, OWNER)
    assert (await trial.usage())[OWNER] == Usage()
