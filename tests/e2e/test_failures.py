"""Workers that die, fail or fall silent, and clients that leave or stop reading, in every phase of a request."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from router.app.serve import Running
from router.simulator import Fault, SimulatorSettings, start_fleet
from router.wire.framing import LAST_CHUNK, frame
from tests.e2e.faults import metric
from tests.e2e.routed import Broken, RawClient, connected, get_admin, is_quiet, post, routed, until
from tests.e2e.streams import (
    CHAT,
    DONE,
    LAST,
    MESSAGES,
    STREAMED,
    TEXT,
    WHOLE,
    answering,
    drop,
    hang,
    sending,
    stream,
    stream_without_end,
)
from tests.upstream.scripted import STREAM_HEAD, Asked, Peer, Script, answer, scripted

PATH = "/v1/chat/completions"
SIM = SimulatorSettings(workers=3, base_port=0, block_tokens=32, time_scale=10_000.0)
SIM_CHAT: dict[str, Any] = {**CHAT, "model": "sim", "max_tokens": 20}
DYING = sending(STREAM_HEAD + frame(b'data: {"error":{"message":"died"}}\n\n'))
CLOSING = sending(STREAM_HEAD + frame(DONE) + LAST_CHUNK)


# Before the first byte


@pytest.mark.parametrize(
    "script",
    [
        drop,
        answering(status=500),
        answering(status=503),
        answering(status=429),
        sending(b"garbage\r\n\r\n"),
        sending(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
        sending(STREAM_HEAD + b"zz\r\n"),
        hang,
        DYING,
        CLOSING,
    ],
    ids=["drop", "500", "503", "429", "garbage", "two framings", "bad chunk", "silence", "error event", "bare done"],
)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_worker_that_fails_before_its_first_byte_is_never_seen(script: Script, is_stream: bool) -> None:
    if script in (DYING, CLOSING) and not is_stream:
        return  # only a stream has events
    good = stream if is_stream else answering(b'{"good":1}')
    async with (
        scripted(script) as bad,
        scripted(good) as well,
        routed(bad.url, well.url, timeouts__first_event_s=0.05, timeouts__answer_s=0.05) as router,
    ):
        for _ in range(6):
            found = await post(router, PATH, STREAMED if is_stream else CHAT)
            assert (found.status, found.body) == (200, WHOLE if is_stream else b'{"good":1}')
            assert found.headers["x-warmroute-worker"]


async def test_a_worker_that_is_killed_is_invisible_to_those_that_have_nothing_from_it_yet() -> None:
    async with await start_fleet(SIM) as fleet, routed(*fleet.urls, policy__name="round_robin") as router:
        fleet.set_fault(0, Fault.HANG)
        asking = [asyncio.create_task(post(router, PATH, SIM_CHAT)) for _ in range(12)]
        await until(lambda: sum(router.fleet.figures.in_flight) == router.fleet.figures.in_flight[0] == 4)
        await fleet.kill(0)
        assert {found.status for found in await asyncio.gather(*asking)} == {200}


async def test_a_worker_that_answers_errors_attracts_no_traffic() -> None:
    async with (
        await start_fleet(SIM) as fleet,
        routed(*fleet.urls, probes__ejection_s=30.0, probes__max_ejection_s=60.0) as router,
    ):
        fleet.set_fault(0, Fault.ERROR)
        for number in range(60):
            body = {**SIM_CHAT, "messages": [{"role": "user", "content": f"{number} " * 100}]}
            assert (await post(router, PATH, body)).status == 200
        decisions = (await get_admin(router, "/decisions")).json["decisions"]
        assert sum(decision["attempts"] for decision in decisions) <= 63
        assert {decision["status"] for decision in decisions} == {200}


async def test_with_all_workers_gone_requests_are_told_to_come_back_and_are_served_once_one_is_there() -> None:
    async with await start_fleet(SIM) as fleet, routed(*fleet.urls) as router:
        for worker in range(3):
            await fleet.kill(worker)
        for _ in range(5):
            found = await post(router, PATH, SIM_CHAT)
            assert (found.status, found.error["code"]) == (503, "no_worker_available")
            assert int(found.headers["retry-after"]) >= 1
        await until(lambda: not router.fleet.catalog.is_ready())
        await fleet.restart(1)
        assert (await post(router, PATH, SIM_CHAT)).status == 200, (
            "panic: an ejected worker is tried when no other is left"
        )
        await until(router.fleet.catalog.is_ready)


async def test_a_worker_that_left_the_fleet_is_not_tried_again_by_a_request_under_way(tmp_path: Any) -> None:
    async def fail_when_told(_asked: Asked, peer: Peer) -> None:
        asked.set()
        await left.wait()
        await peer.send(answer(status=500))

    asked, left = asyncio.Event(), asyncio.Event()
    file = tmp_path / "workers"
    async with scripted(fail_when_told) as one, scripted(fail_when_told) as two:
        file.write_text(f"{one.url}\n{two.url}\n")
        async with routed(fleet__workers_file=str(file)) as router:
            asking = asyncio.create_task(post(router, PATH, CHAT))
            await asked.wait()
            tried = one if one.asked else two
            file.write_text(f"{tried.url}\n")
            await until(lambda: len(router.fleet) == 1)
            left.set()
            assert (await asking).status == 502
            assert len(one.asked) + len(two.asked) == 1


async def test_a_worker_that_left_the_fleet_ends_its_stream_well(tmp_path: Any) -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3000}}\n\n'

    async def finish_when_told(_asked: Asked, peer: Peer) -> None:
        await peer.send(STREAM_HEAD, frame(TEXT))
        await left.wait()
        await peer.send(frame(LAST + usage + DONE) + LAST_CHUNK)

    left = asyncio.Event()
    file = tmp_path / "workers"
    async with scripted(finish_when_told) as worker:
        file.write_text(worker.url)
        async with routed(fleet__workers_file=str(file)) as router, connected(router) as client:
            await client.post(PATH, STREAMED)
            await client.head()
            assert await client.chunk() == TEXT
            file.write_text("none\n")
            await until(lambda: len(router.fleet) == 0)
            left.set()
            assert await client.chunk() == LAST + DONE
            assert await client.chunk() == b""
            await client.send(b"GET /health HTTP/1.1\r\nHost: r\r\n\r\n")
            assert (await client.answer()).status == 200


# In the middle of a stream

BREAKS = {
    "death": b"",
    "in a frame": b"4\r\nda",
    "in an event": frame(b"data: {half"),
    "error event": frame(b'data: {"error":{"message":"secret"}}\n\n') + frame(DONE) + LAST_CHUNK,
    "bare done": frame(DONE) + LAST_CHUNK,
    "end without done": LAST_CHUNK,
    "bad chunk": b"+5\r\nhello\r\n",
}
STARTED = b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":1}}}\n\n'
MESSAGES_BREAKS = {
    **BREAKS,
    "error event": frame(b'event: error\ndata: {"type":"error","error":{"message":"secret"}}\n\n') + LAST_CHUNK,
    "bare done": frame(b'event: message_stop\ndata: {"type":"message_stop"}\n\n') + LAST_CHUNK,
}


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("is_messages", [False, True])
async def test_a_stream_that_breaks_ends_with_an_error_event_and_never_cleanly(how: str, is_messages: bool) -> None:
    opening, breaks = (STARTED, MESSAGES_BREAKS) if is_messages else (TEXT, BREAKS)

    async def break_off(_asked: Asked, peer: Peer) -> None:
        await peer.send(STREAM_HEAD, frame(opening))
        await read.wait()
        await peer.send(breaks[how])
        peer.close()

    read = asyncio.Event()
    async with (
        scripted(break_off) as worker,
        routed(worker.url, resumption__max_attempts=0) as router,
        connected(router) as client,
    ):
        await client.post("/v1/messages" if is_messages else PATH, {**MESSAGES, "stream": True})
        await client.head()
        assert await client.chunk() == opening
        read.set()
        event = await client.chunk()
        assert event.startswith(b"event: error\ndata: " if is_messages else b"data: ")
        error = json.loads(event.partition(b"data: ")[2])
        assert error["error"]["type"] == "api_error"
        assert b"secret" not in event
        with pytest.raises(Broken):
            await client.chunk()


async def test_a_worker_that_falls_silent_in_its_stream_is_given_up() -> None:
    async with (
        scripted(sending(STREAM_HEAD + frame(TEXT))) as worker,
        routed(worker.url, timeouts__event_gap_s=0.05, resumption__max_attempts=0) as router,
        connected(router) as client,
    ):
        await client.post(PATH, STREAMED)
        with pytest.raises(Broken) as broken:
            await client.answer()
        assert broken.value.body.startswith(TEXT + b'data: {"error"')
        assert await worker.ended.get() >= 0


async def test_an_answer_that_is_held_may_take_longer_than_a_streams_first_event() -> None:
    async def answer_when_told(_asked: Asked, peer: Peer) -> None:
        await swept.wait()
        await peer.send(answer(b'{"good":1}'))

    swept = asyncio.Event()
    async with scripted(answer_when_told) as worker, routed(worker.url, timeouts__min_first_event_s=0.001) as router:
        asking = asyncio.create_task(post(router, PATH, CHAT))
        await until(lambda: worker.asked)
        (waiting,) = [each for each in router.pool._open if each.state.name == "HEAD"]
        assert waiting.deadline > asyncio.get_running_loop().time() + 1000
        swept.set()
        assert (await asking).status == 200


class Polled(dict[str, bytes]):
    """What a worker says of its load: at each poll as many tokens more. ``read`` polls were answered."""

    def __init__(self, running: int, waiting: int, step: int) -> None:
        super().__init__({"/metrics": b""})
        self.load = running, waiting
        self.step = step
        self.read = 0

    def __getitem__(self, path: str) -> bytes:
        self.read += 1
        figures = *self.load, 100 + self.step * self.read
        return (
            b"vllm:num_requests_running %d\nvllm:num_requests_waiting %d\nvllm:generation_tokens_total %d\n" % figures
        )


AT_WORK, COMPILING, STUCK = (1, 1, 7), (0, 1, 0), (1, 0, 0)
"""A worker that counts tokens up; one at which requests only wait; one that claims to run, and counts nothing."""


def outlasted(router: Running, deadline: float) -> bool:
    """One request is waited for beyond a deadline."""
    now = asyncio.get_running_loop().time()
    return any(each.is_overdue(now) and deadline < each.deadline < float("inf") for each in router.pool._open)


@pytest.mark.parametrize("load", [AT_WORK, COMPILING])
@pytest.mark.parametrize("is_stream", [False, True])
async def test_the_first_event_of_a_worker_that_is_at_work_is_waited_for(
    load: tuple[int, int, int], is_stream: bool
) -> None:
    async def answer_when_told(asked: Asked, peer: Peer) -> None:
        await was_late.wait()
        await (stream if is_stream else answering(b'{"good":1}'))(asked, peer)

    was_late = asyncio.Event()
    settings = {"timeouts__min_first_event_s": 1.0, "timeouts__answer_s": 1.0}
    async with scripted(answer_when_told) as worker, routed(worker.url, **settings) as router:
        worker.probed = Polled(*load)
        asking = asyncio.create_task(post(router, PATH, STREAMED if is_stream else CHAT))
        await until(lambda: worker.asked)
        (waiting,) = [each for each in router.pool._open if each.state.name == "HEAD" and each._silence._longest_s]
        await until(partial(outlasted, router, waiting.deadline))
        assert await metric(router, "warmroute_overdue_requests") == 1
        was_late.set()
        assert (await asking).status == 200
        assert len(worker.asked) == 1
        assert await metric(router, "warmroute_worker_ejections_total") == 0
        (member,) = router.fleet.members()
        assert member.health.failed_requests == 0


async def test_a_pause_of_a_worker_that_is_at_work_is_waited_for_and_one_that_stands_still_is_given_up() -> None:
    async def pause(_asked: Asked, peer: Peer) -> None:
        await peer.send(STREAM_HEAD, frame(TEXT))
        await was_late.wait()
        await peer.send(frame(TEXT))
        await peer.gone()

    was_late = asyncio.Event()
    async with (
        scripted(pause) as worker,
        routed(worker.url, timeouts__event_gap_s=1.0, resumption__max_attempts=0) as router,
        connected(router) as client,
    ):
        worker.probed = Polled(*AT_WORK)
        await client.post(PATH, STREAMED)
        await client.head()
        assert await client.chunk() == TEXT
        (flowing,) = [each for each in router.pool._open if each.state.name == "RELAY"]
        await until(partial(outlasted, router, flowing.deadline))
        worker.probed = Polled(*STUCK)
        was_late.set()
        assert await client.chunk() == TEXT
        assert (await client.chunk()).startswith(b'data: {"error"')
        with pytest.raises(Broken):
            await client.chunk()
        (member,) = router.fleet.members()
        assert member.health.failed_requests == 1


async def test_a_request_that_waits_for_a_seat_is_answered_there_and_the_full_worker_stays() -> None:
    full = SimulatorSettings(workers=1, base_port=0, max_num_seqs=1, itl_ms=20.0, time_scale=1.0)
    async with (
        await start_fleet(full) as fleet,
        routed(*fleet.urls, timeouts__min_first_event_s=0.5) as router,
    ):
        await until(router.fleet.catalog.is_ready)
        long = {**SIM_CHAT, "max_tokens": 100, "ignore_eos": True, "stream": True}
        seated = asyncio.create_task(post(router, PATH, long))
        await until(lambda: any(each.state.name == "RELAY" for each in router.pool._open))
        assert (await post(router, PATH, {**SIM_CHAT, "max_tokens": 2, "stream": True})).status == 200
        assert (await seated).status == 200
        decisions = (await get_admin(router, "/decisions")).json["decisions"]
        assert [decision["attempts"] for decision in decisions] == [1, 1]
        assert max(decision["time_to_first_token_s"] for decision in decisions) > 0.5 + 0.25
        assert await metric(router, "warmroute_worker_ejections_total") == 0


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_worker_that_answers_nothing_at_all_is_given_up_long_before_any_deadline(
    is_stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fall_silent(asked: Asked, peer: Peer) -> None:
        for worker in (one, other):
            worker.script = stream if is_stream else answering(b'{"good":1}')
        (one if asked in one.asked else other).is_ill = True
        if is_stream:
            await peer.send(STREAM_HEAD + frame(b'data: {"choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n'))
        await peer.gone()

    monkeypatch.setattr("router.upstream.connection.UNRESPONSIVE_S", 0.05)
    monkeypatch.setattr("router.upstream.connection.UNRESPONSIVE_WHOLE_S", 0.05)
    async with (
        scripted(fall_silent) as one,
        scripted(fall_silent) as other,
        routed(one.url, other.url, probes__timeout_s=0.05) as router,
    ):
        found = await post(router, PATH, STREAMED if is_stream else CHAT)
        assert found.status == 200
        assert (DONE in found.body) if is_stream else found.body == b'{"good":1}'
        assert len(one.asked) + len(other.asked) == 2


async def test_a_worker_killed_in_its_stream_breaks_the_stream_and_is_out_until_it_is_back() -> None:
    settings = SimulatorSettings(workers=1, base_port=0, time_scale=1.0, itl_ms=5.0)
    async with await start_fleet(settings) as fleet, routed(*fleet.urls) as router, connected(router) as client:
        await client.post(PATH, {**SIM_CHAT, "stream": True, "max_tokens": 10_000})
        await client.head()
        await client.chunk()
        await fleet.kill(0)
        with pytest.raises(Broken):
            await client.read_on()
        assert not router.fleet.catalog.is_ready()
        await fleet.restart(0)
        await until(router.fleet.catalog.is_ready)
        assert (await post(router, PATH, SIM_CHAT)).status == 200


async def test_a_workers_file_that_is_half_written_takes_no_worker_away(tmp_path: Path) -> None:
    """With a real file, written in place, as a careless script does."""
    file = tmp_path / "workers"
    async with scripted() as one, scripted() as two:
        whole = f"{one.url}\n{two.url}\n"
        file.write_text(whole)
        async with routed(fleet__workers_file=str(file)) as router:
            await until(lambda: len(router.fleet) == 2)
            failures = 0.0
            for torn in ("", f"{one.url}\nhttp:", f"{one.url}\nnonsense\n"):
                file.write_text(torn)
                await until_more(router, failures)
                failures = await metric(router, "warmroute_workers_reload_failures_total", source="file")
                assert len(router.fleet) == 2
                assert (await post(router, PATH, CHAT)).status == 200
            file.write_text(f"{two.url}\n")
            await until(lambda: len(router.fleet) == 1)
            file.write_text("none\n")
            await until(lambda: len(router.fleet) == 0)


async def until_more(router: Running, failures: float) -> None:
    while await metric(router, "warmroute_workers_reload_failures_total", source="file") <= failures:
        await asyncio.sleep(0.02)


# Clients


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_client_that_leaves_before_its_answer_ends_the_workers_work(reset: bool, is_stream: bool) -> None:
    async with scripted(hang) as worker, routed(worker.url, load__poll_interval_s=60, probes__interval_s=60) as router:
        async with connected(router) as client:
            await client.post(PATH, STREAMED if is_stream else CHAT)
            await until(lambda: worker.asked)
            client.leave(reset=reset)
            await until(lambda: is_quiet(router))
            number = worker.asked[0].connection
            await until(lambda: number in ended_of(worker))
        decision = (await get_admin(router, "/decisions")).json["decisions"][0]
        assert (decision["status"], decision["outcome"]) == (499, "client_gone")


def ended_of(worker: Any) -> set[int]:
    found: set[int] = set(worker.ended._queue)
    return found


@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_that_leaves_in_its_stream_ends_the_workers_work(reset: bool) -> None:
    async with scripted(stream_without_end) as worker, routed(worker.url) as router, connected(router) as client:
        await client.post(PATH, STREAMED)
        await client.head()
        await client.chunk()
        client.leave(reset=reset)
        await until(lambda: is_quiet(router))
        await until(lambda: worker.asked[0].connection in ended_of(worker))


async def test_a_client_that_stops_reading_is_cut_and_its_worker_freed() -> None:
    async with (
        scripted(stream_without_end) as worker,
        routed(worker.url, limits__write_stall_s=0.05) as router,
        connected(router, receive_bytes=16384) as client,
    ):
        await client.post(PATH, STREAMED)
        await client.head()
        await until(lambda: sum(router.fleet.figures.in_flight) == 1)
        await until(lambda: is_quiet(router))
        await until(lambda: worker.asked[0].connection in ended_of(worker))
        with pytest.raises((Broken, ConnectionError)):
            await client.read_on()
        decision = (await get_admin(router, "/decisions")).json["decisions"][0]
        assert decision["outcome"] == "client_stalled"


async def test_a_client_that_never_reads_the_end_of_its_answer_holds_no_worker_and_is_cut() -> None:
    async with (
        scripted(answering(b"x" * 30_000_000)) as worker,
        routed(worker.url, limits__write_stall_s=0.1) as router,
        connected(router, receive_bytes=16384) as client,
    ):
        await client.post(PATH, CHAT)
        await client.head()
        assert sum(router.fleet.figures.in_flight) == 0
        assert router.data.live == 1
        await until(lambda: router.data.live == 0)
        with pytest.raises((Broken, ConnectionError, asyncio.IncompleteReadError)):
            await client.reader.readexactly(30_000_000)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_client_that_is_slower_than_the_stall_limit_but_makes_progress_is_not_cut(is_stream: bool) -> None:
    size = 1_500_000
    event = b'data: {"x":"' + b"x" * (size // 2) + b'"}\n\n'

    async def much(_asked: Asked, peer: Peer) -> None:
        await peer.send(STREAM_HEAD, frame(event), frame(event), frame(LAST + DONE) + LAST_CHUNK)

    async with (
        scripted(much if is_stream else answering(b"x" * size)) as worker,
        routed(worker.url, limits__write_stall_s=0.15) as router,
        connected(router, receive_bytes=16384) as client,
    ):
        await client.post(PATH, STREAMED if is_stream else CHAT)
        await client.head()
        read = b""
        while len(read) < size:
            read += await client.reader.readexactly(10_000)
            await asyncio.sleep(0.01)
        if is_stream:
            read += await client.reader.readuntil(b"\r\n" + LAST_CHUNK)
        await client.send(b"GET /health HTTP/1.1\r\nHost: r\r\n\r\n")
        assert (await client.answer()).status == 200


async def test_a_client_that_reads_slowly_but_reads_gets_everything() -> None:
    burst = frame(TEXT) * 2000

    async def much(_asked: Asked, peer: Peer) -> None:
        await peer.send(STREAM_HEAD, *[burst] * 20, frame(LAST + DONE) + LAST_CHUNK)

    async with (
        scripted(much) as worker,
        routed(worker.url, limits__write_stall_s=5) as router,
        connected(router) as client,
    ):
        for _ in range(2):
            await client.post(PATH, STREAMED)
            assert await slowly(client) == TEXT * 40_000 + LAST + DONE


async def slowly(client: RawClient) -> bytes:
    await client.head()
    pieces = []
    while piece := await client.chunk():
        pieces.append(piece)
        if len(pieces) % 50 == 0:
            await asyncio.sleep(0.001)
    return b"".join(pieces)
