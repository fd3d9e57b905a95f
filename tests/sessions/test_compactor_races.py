"""Janitors that are slow, die, write nonsense and meet each other, while turns go on: no item is lost, no turn waits, and
nothing is told of twice. Over every store, through two replicas that have nothing but the store in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from router.core.errors import WorkerError
from router.sessions.context.provenance import ACKNOWLEDGEMENT
from tests.sessions.desk import ACME, Points, Replica, contents, user
from tests.sessions.kept_histories import FakeWriter, SlowWriter
from tests.sessions.site import LONG, RETRY_S, WORK_S, BusyWriter, Site, opened, results
from tests.sessions.stores.contract import STORES


@pytest.fixture(params=STORES)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    url = request.getfixturevalue("redis_server").url if request.param == "redis" else ""
    async with opened(request.param, tmp_path, url) as site:
        yield site


async def test_another_replica_sends_the_same_after_a_cut(site: Site) -> None:
    one, two = (site.replica(which, FakeWriter()) for which in range(2))
    await one.turns.context_window.compactor.do(await site.pile_up(one))
    await two.take(user("there"), sid=site.sid)
    await one.take(user("here"), sid=site.sid)
    assert sent(two)[0].startswith("[Notes on the earlier conversation.")
    assert sent(one)[:-2] == [*sent(two)[:-1], "there"]
    await site.require_whole(8)


async def test_no_turn_of_any_replica_waits_for_a_janitor_that_is_slow(site: Site) -> None:
    writer = SlowWriter()
    one, two = site.replica(0, writer), site.replica(1, FakeWriter())
    working = asyncio.create_task(one.turns.context_window.compactor.do(await site.pile_up(one)))
    await writer.asked.wait()
    for number in range(100):
        replica = (one, two)[number % 2]
        client = await replica.take(user(f"meanwhile {number}"), sid=site.sid)
        assert client.text == f"to meanwhile {number}"
    assert not working.done()
    writer.go.set()
    await working
    assert results(one) == {"summarized": 1}
    history = await site.require_whole(106)
    assert [segment.upto.number for segment in history.view.segments] == [8]
    assert len(history.bodies) == 204


async def test_turns_and_two_compactors_that_race_lose_nothing_and_cover_nothing_twice(site: Site) -> None:
    writers = BusyWriter(), BusyWriter()
    replicas = [site.replica(which, writer) for which, writer in enumerate(writers)]
    running = [
        asyncio.create_task(replica.turns.context_window.compactor.run()) for replica in replicas for _ in range(2)
    ]
    said: list[str] = []
    for number in range(100):
        replica, text = replicas[number % 2], f"{number} {LONG}"
        client = await replica.take(user(text), sid=site.sid)
        assert sent(replica)[-1] == text
        assert (
            after_the_summaries(sent(replica)[:-1]) == said[len(said) - len(after_the_summaries(sent(replica)[:-1])) :]
        )
        said += [text, client.text]
    for replica in replicas:
        await done(replica)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    history = await site.require_whole(100)
    assert contents(history) == said
    assert not any(count for replica in replicas for count in replica.turns.counts.conflicts.values())
    told = [item.number for writer in writers for source in writer.sources for item in source.items]
    assert len(told) == len(set(told))
    assert set(told) == {item.number for item in history.items if item.place <= history.view.summarized_upto}
    assert len(history.bodies) <= 2 * 6, "the compactors kept up"


async def done(replica: Replica) -> None:
    """Its janitor has nothing more to do."""
    compactor = replica.turns.context_window.compactor
    while compactor.waiting or compactor.at_work:
        await asyncio.sleep(0)


async def test_two_compactors_that_begin_at_once_write_summaries_once(site: Site) -> None:
    writer = SlowWriter()
    one, two = (site.replica(which, writer) for which in range(2))
    job = await site.pile_up(one)
    working = {asyncio.create_task(replica.turns.context_window.compactor.do(job)) for replica in (one, two)}
    async with asyncio.timeout(10):
        await writer.asked.wait()
        await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
        writer.go.set()
        await asyncio.gather(*working)
    assert len(writer.sources) == 1
    assert sorted([*results(one), *results(two)]) == ["raced", "summarized"]
    assert len((await site.require_whole(6)).view.segments) == 1


async def test_a_janitor_that_comes_when_another_has_cut_leaves_the_history_alone(site: Site) -> None:
    one, two = (site.replica(which, FakeWriter()) for which in range(2))
    await site.pile_up(two, 5)
    job = await site.pile_up(one, 1)
    await one.turns.context_window.compactor.do(job)
    before = await site.require_whole(6)
    await two.turns.context_window.compactor.do(job)
    assert results(two) == {"nothing": 1}
    assert (await site.require_whole(6)).view == before.view


async def test_a_janitor_that_dies_anywhere_leaves_what_another_can_finish(site: Site) -> None:
    """Killed before and behind each call of the store, and over the notes."""
    places = Points()
    whole = site.replica(0, FakeWriter(), places)
    job = await site.pile_up(whole)
    before = len(places.passed)
    await whole.turns.context_window.compactor.do(job)
    for place in range(len(places.passed) - before):
        await die_and_be_followed(site.again(), place)
    assert places.passed[before:].count("behind commit_view") == 2


async def die_and_be_followed(site: Site, place: int) -> None:
    points, writer = Points(), FakeWriter(["second"])
    one, two = site.replica(0, FakeWriter(["first"]), points), site.replica(1, writer)
    job = await site.pile_up(one)
    points.stopped_at = len(points.passed) + place
    dying = asyncio.create_task(one.turns.context_window.compactor.do(job))
    await points.reached.wait()
    dying.cancel()
    await asyncio.gather(dying, return_exceptions=True)
    client = await two.take(user("meanwhile"), sid=site.sid)
    assert client.text == "to meanwhile", "no turn waits for the dead"
    site.now += WORK_S + 1.0
    await two.turns.context_window.compactor.do(job)
    history = await site.require_whole(7)
    assert len(history.view.segments) == 1
    assert (history.view.segments[0].text == "second") == bool(writer.sources)


async def test_a_janitor_that_was_slow_and_is_followed_counts_no_more(site: Site) -> None:
    writer = SlowWriter()
    one, two = site.replica(0, writer), site.replica(1, FakeWriter(["second"]))
    job = await site.pile_up(one)
    slow = asyncio.create_task(one.turns.context_window.compactor.do(job))
    await writer.asked.wait()
    await two.turns.context_window.compactor.do(job)
    assert results(two) == {"raced": 1}, "not while there is time"
    site.now += WORK_S + 1.0
    await two.turns.context_window.compactor.do(job)
    assert results(two) == {"raced": 1, "summarized": 1}
    writer.go.set()
    await slow
    assert results(one) == {"stale": 1}
    assert [segment.text for segment in (await site.require_whole(6)).view.segments] == ["second"]


@pytest.mark.parametrize(
    "text", ["", "I'm sorry, I can't do that.", "long " * 1000, WorkerError("it died")], ids=lambda text: str(text)[:6]
)
async def test_bad_summaries_leave_the_view_to_all_replicas_and_none_tries_again_at_once(
    site: Site, text: str | Exception
) -> None:
    writer = FakeWriter(["good notes"])
    one, two = site.replica(0, FakeWriter([text])), site.replica(1, writer)
    job = await site.pile_up(one)
    await one.turns.context_window.compactor.do(job)
    assert len((await site.require_whole(6)).bodies) == 12
    await two.turns.context_window.compactor.do(job)
    assert (results(two), writer.sources) == ({"raced": 1}, [])
    site.now += RETRY_S + 1.0
    await two.turns.context_window.compactor.do(job)
    assert [segment.text for segment in (await site.require_whole(6)).view.segments] == ["good notes"]


async def test_a_session_that_is_deleted_meanwhile_takes_no_summaries_into_its_next_life(site: Site) -> None:
    writer = SlowWriter()
    one, two = site.replica(0, writer), site.replica(1, FakeWriter())
    working = asyncio.create_task(one.turns.context_window.compactor.do(await site.pile_up(one)))
    await writer.asked.wait()
    await two.histories.delete(site.sid, ACME.rules.tenant)
    for number in range(6):
        await two.take(user(f"new {number}"), sid=site.sid)
    writer.go.set()
    await working
    assert results(one) == {"stale": 1}
    history = await site.require_whole(6)
    assert (history.view.segments, len(history.bodies)) == ([], 12)


def sent(replica: Replica) -> list[str]:
    return [str(message["content"]) for message in replica.dispatch.sent()]


def after_the_summaries(prompt: list[str]) -> list[str]:
    return prompt[2:] if prompt[1:2] == [ACKNOWLEDGEMENT] else prompt
