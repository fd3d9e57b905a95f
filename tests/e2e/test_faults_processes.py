"""Workers and routers that are killed and stopped by signals, as the kernel does it. Needs several processes: ``system``."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import pytest

from router.app.serve import Running
from router.core.fleet.health import WorkerState
from router.core.fleet.member import Member
from router.wire.framing import LAST_CHUNK, frame
from tests.e2e.faults import CHAT_PATH, Told, all_up, decisions_of, faulted, listen, metric, told
from tests.e2e.processes import WorkerProcess, until_running, worker_processes
from tests.e2e.routed import RawClient, connected, post, until
from tests.e2e.streams import DONE, LAST, STREAMED, TEXT
from tests.e2e.test_drain import served
from tests.upstream.scripted import STREAM_HEAD, Asked, Peer, scripted

pytestmark = pytest.mark.system

STEADY = ("--time-scale", "1", "--itl-ms", "10", "--answers", "bytes", "--stream-interval-ms", "0")
"""A token every 10 ms, in an event of its own, in characters that tokens split."""


def body_of(number: int, tokens: int = 60) -> dict[str, Any]:
    """Half of them ask for ids, half for usage."""
    content = f"tell me of the {number}th thing " * 10
    body: dict[str, Any] = {"model": "sim", "max_tokens": tokens, "temperature": 0}
    body["messages"] = [{"role": "user", "content": content}]
    if number % 2:
        body["return_token_ids"] = True
    if number % 4 < 2:
        body["stream_options"] = {"include_usage": True}
    return body


def member_of(router: Running, worker: WorkerProcess) -> Member:
    return next(member for member in router.fleet.members() if member.address.url == worker.url)


async def test_streams_and_whole_answers_outlive_the_workers_that_are_killed_under_them() -> None:
    async with worker_processes(3, *STEADY) as workers, faulted(*[each.url for each in workers]) as router:
        await until(lambda: all_up(router, 3))
        bodies = [body_of(number) for number in range(20)]
        whole = await asyncio.gather(*[listen(router, CHAT_PATH, body) for body in bodies])
        for worker in workers[:2]:
            await until(lambda: all_up(router, 3))
            streams = [asyncio.create_task(listen(router, CHAT_PATH, body)) for body in bodies]
            answers = [asyncio.create_task(post(router, CHAT_PATH, body_of(number, 20))) for number in (2, 3, 6, 7)]
            await until_running(worker, lambda running: running >= 3)
            await worker.kill()
            assert await asyncio.gather(*streams) == whole
            assert {found.status for found in await asyncio.gather(*answers)} == {200}
            await worker.start()
        assert await metric(router, "warmroute_resumptions_total", outcome="exact") >= 2
        assert await metric(router, "warmroute_resumptions_total", outcome="failed") == 0
        assert await longest_gap(router) <= 1.0


async def longest_gap(router: Running) -> float:
    """An upper bound, in seconds, from the histogram."""
    count = await metric(router, "warmroute_resumption_gap_seconds_count")
    for bound in ("0.1", "0.25", "0.5", "1.0"):
        if await metric(router, "warmroute_resumption_gap_seconds_bucket", le=bound) == count:
            return float(bound)
    return float("inf")


async def test_a_worker_that_accepts_and_never_answers_is_soon_asked_no_more_until_it_is_back() -> None:
    settings: dict[str, Any] = {
        "policy__name": "round_robin",
        "timeouts__min_first_event_s": 0.3,
        "timeouts__event_gap_s": 0.3,
        "probes__timeout_s": 0.3,
        "probes__failures": 100,
    }
    async with worker_processes(2, *STEADY) as workers, faulted(*[each.url for each in workers], **settings) as router:
        await until(lambda: all_up(router, 2))
        whole = await listen(router, CHAT_PATH, body_of(1, 20))
        stopped = member_of(router, workers[0])
        workers[0].send(signal.SIGSTOP)
        for _ in range(8):
            assert await listen(router, CHAT_PATH, body_of(1, 20)) == whole
        assert stopped.health.state is WorkerState.EJECTED
        late = [decision for decision in await decisions_of(router) if "timeout" in decision["retries"]]
        assert len(late) <= 2
        assert max(decision["time_to_first_token_s"] for decision in late) <= 0.3 + 1.0
        workers[0].send(signal.SIGCONT)
        await until(lambda: all_up(router, 2))
        before = len(await decisions_of(router))
        await listen(router, CHAT_PATH, body_of(1, 20))
        await listen(router, CHAT_PATH, body_of(1, 20))
        after = await decisions_of(router)
        assert stopped.name in {decision["worker"] for decision in after[: len(after) - before]}


async def test_a_stream_whose_worker_is_stopped_goes_on_within_the_deadline_and_a_second() -> None:
    settings: dict[str, Any] = {"timeouts__event_gap_s": 0.3, "probes__timeout_s": 0.3}
    async with worker_processes(2, *STEADY) as workers, faulted(*[each.url for each in workers], **settings) as router:
        await until(lambda: all_up(router, 2))
        whole = await listen(router, CHAT_PATH, body_of(1, 100))
        async with connected(router) as client:
            events = await begin(client, body_of(1, 100))
            silent = next(each for each in workers if router.fleet.figures.in_flight[member_of(router, each).position])
            silent.send(signal.SIGSTOP)
            started = time.monotonic()
            found = await read_stream(client, events)
            assert time.monotonic() - started <= 1.0 + 0.3 + 1.0, "the stream itself takes a second"
        silent.send(signal.SIGCONT)
        assert found == whole
        assert await metric(router, "warmroute_resumptions_total", cause="timeout", outcome="exact") == 1
        await until(lambda: all_up(router, 2))


async def begin(client: RawClient, body: dict[str, Any]) -> bytes:
    """The first events of a stream."""
    await client.post(CHAT_PATH, {**body, "stream": True})
    assert (await client.head())[0] == 200
    return await client.chunk() + await client.chunk()


async def read_stream(client: RawClient, events: bytes) -> Told:
    while piece := await client.chunk():
        events += piece
    return told(events)


async def test_a_router_that_stops_lets_fifty_live_streams_end() -> None:
    async def stream_when_told(_asked: Asked, peer: Peer) -> None:
        await peer.send(STREAM_HEAD, frame(TEXT))
        await told_to_end.wait()
        await peer.send(frame(LAST + DONE) + LAST_CHUNK)

    told_to_end = asyncio.Event()
    async with scripted(stream_when_told) as worker, served(worker.url) as command:

        async def one_stream() -> bytes:
            async with connected(command.router) as client:
                await client.post(CHAT_PATH, STREAMED)
                return (await client.answer()).body

        streams = [asyncio.create_task(one_stream()) for _ in range(50)]
        await until(lambda: len(worker.asked) == 50)
        command.stop()
        told_to_end.set()
        assert await asyncio.gather(*streams) == [TEXT + LAST + DONE] * 50
        assert await command.process.wait() == 0


async def test_what_a_killed_router_had_under_way_is_given_up_by_its_workers() -> None:
    async with worker_processes(1, *STEADY) as workers, served(workers[0].url) as command:

        async def one_request(is_stream: bool) -> None:
            async with connected(command.router) as client:
                await client.post(CHAT_PATH, {**body_of(0, 5000), "stream": is_stream, "stream_options": None})
                await client.reader.read()

        asking = [asyncio.create_task(one_request(number % 2 == 0)) for number in range(10)]
        await until_running(workers[0], lambda running: running == 10)
        command.process.kill()
        await until_running(workers[0], lambda running: running == 0, timeout_s=1.0)
        assert await asyncio.gather(*asking, return_exceptions=True)
        await command.process.wait()


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_prompt_that_crashes_its_workers_is_given_up_before_it_has_crashed_them_all(is_stream: bool) -> None:
    async with (
        worker_processes(5, *STEADY, "--poison", "hemlock") as workers,
        faulted(*[each.url for each in workers]) as router,
    ):
        await until(lambda: all_up(router, 5))
        await asyncio.gather(*[listen(router, CHAT_PATH, body_of(number, 5)) for number in range(20)])
        poison = {"model": "sim", "stream": is_stream, "messages": [{"role": "user", "content": "a cup of hemlock"}]}
        found = await post(router, CHAT_PATH, poison)
        assert (found.status, found.error["code"], found.headers["x-should-retry"]) == (502, "worker_error", "false")
        assert "3 workers died" in found.error["message"]
        assert await metric(router, "warmroute_given_up_requests_total") == 1
        assert await metric(router, "warmroute_worker_ejections_total", cause="died") == 3
        assert (await post(router, CHAT_PATH, body_of(2, 5))).status == 200, "two live on"
