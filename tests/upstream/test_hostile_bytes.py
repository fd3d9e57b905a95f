"""Workers that send what no worker should: each is ended by a bound, is counted, and costs others next to nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from router.config.workers import TimeoutsConfig
from router.core.request.attempt import AttemptFailed, ReplyTooLarge, WorkerDied
from router.core.request.request import NO_TENANT
from router.core.request.routes import Route
from router.core.tenants.memory import REPLY, Holding, MemoryBudget, MemoryFull
from router.upstream.connection import EAGER_BYTES
from router.upstream.connection_state import State
from router.upstream.read_scheduler import SLICE_BYTES, TURN_S, ReadScheduler
from router.upstream.relay import RelayEvent
from router.upstream.reply_reader import LARGE_BYTES, MAX_INTERIM_HEADS
from router.wire.dialects import DIALECTS
from router.wire.framing import LAST_CHUNK, frame
from router.wire.sse import MAX_EMPTY_EVENTS, MAX_LAST_BYTES, StreamFilter
from router.wire.transcript import Transcript, TranscriptBudget
from tests.upstream.wires import FakeClient, Wire, a_holding

LIMITS = TimeoutsConfig(
    max_reply_bytes=1 << 20,
    max_event_bytes=9 << 20,
    first_event_s=30.0,
    event_gap_s=5.0,
    answer_s=100.0,
    silence_s=50.0,
)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"word"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


def a_watch(*, hides: bool = False) -> StreamFilter:
    transcript = Transcript(1 << 20, TranscriptBudget(1 << 30)) if hides else None
    return StreamFilter(DIALECTS[Route.CHAT], hides_usage=hides, hides_ids=hides, transcript=transcript)


def asked(watch: StreamFilter | None = None, memory: Holding | None = None) -> Wire:
    wire = Wire(LIMITS)
    wire.connection.ask(b"POST / HTTP/1.1\r\n\r\n", b"{}", watch, memory=memory)
    return wire


async def flowing(*, hides: bool = False, memory: Holding | None = None) -> tuple[Wire, FakeClient]:
    wire, client = asked(a_watch(hides=hides), memory), FakeClient()
    wire.feed(STREAM_HEAD + frame(TEXT))
    await wire.connection.reply()
    wire.relay_to(client)
    return wire, client


def forever(wire: Wire, piece: bytes, times: int = 2000) -> int:
    """Pieces that were taken before the worker was ended."""
    for number in range(times):
        if wire.transport.closing:
            return number
        wire.feed(piece[:9], piece[9:])
    return times


# Heads


async def test_interim_heads_are_taken_up_to_a_bound_and_their_flood_is_no_recursion() -> None:
    wire = asked()
    wire.feed(b"HTTP/1.1 103 Hints\r\n\r\n" * MAX_INTERIM_HEADS + b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
    assert (await wire.connection.reply()).body == b"x"
    wire = asked()
    wire.feed(b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000)
    with pytest.raises(WorkerDied):
        await wire.connection.reply()
    assert wire.rejected_replies["head"] == 1


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 000 X\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 099 X\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 600 X\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 999 X\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"1" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"0" * 20 + b"1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * (40 << 10) + b"\r\n\r\n",
    ],
    ids=lambda head: repr(head[:30]),
)
async def test_a_head_that_no_server_sends_is_a_death(head: bytes) -> None:
    wire = asked()
    wire.feed(head)
    with pytest.raises(WorkerDied):
        await wire.connection.reply()
    assert wire.rejected_replies["head"] == 1
    assert wire.connection.has_answered, "or the request would be sent again"


# Floods


@pytest.mark.parametrize(
    ("piece", "kind", "most"),
    [
        (frame(b":\n\n" * 100), "stream", MAX_EMPTY_EVENTS // 100 + 1),
        (frame(b"\n\n") * 1000, "framing", 6),
        (frame(b"id: 1\n\n" * 100), "stream", MAX_EMPTY_EVENTS // 100 + 1),
        (frame(b"a") * 1000, "framing", 6),
        (frame(b"data: x\n" * 1000 + b"\n"), "stream", 1),
        (frame(b":" + b"\r" * 1000 + b"\n\n"), "stream", 1),
        (frame(b'data: {"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n\n"), "stream", 1),
        (frame(b'data: {"a":[' + b"[]," * 120_000 + b"1]}\n\n"), "stream", 1),
        (frame(b"data: " + b"x" * (1 << 20)), "size", 10),
    ],
    ids=["comments", "empty events", "ids", "chunks of a byte", "lines", "returns", "nesting", "brackets", "no end"],
)
async def test_a_flood_without_content_ends_its_worker_soon(piece: bytes, kind: str, most: int) -> None:
    wire, client = await flowing()
    assert forever(wire, piece) <= most
    assert await wire.connection.relay_event() is RelayEvent.FAILED
    assert wire.rejected_replies == {kind: 1}
    assert not client.has_ended


async def test_comments_between_chunks_end_nobody_however_many_there_are() -> None:
    wire, _ = await flowing()
    for _ in range(30):
        wire.feed(frame(b": ping\n\n" * (MAX_EMPTY_EVENTS // 10)), frame(TEXT))
    assert wire.connection.state is State.RELAY


async def test_reasons_for_finishing_without_end_are_not_kept_without_end() -> None:
    wire, client = await flowing(hides=True)
    piece = frame(b"".join(LAST[:-2] + b" " * 10_000 + b"\n\n" for _ in range(10)))
    assert forever(wire, piece) <= MAX_LAST_BYTES // len(piece) + 2
    assert isinstance(wire.connection.error, AttemptFailed)
    assert client.events == TEXT


async def test_trailers_without_end_end_the_connection() -> None:
    wire = asked()
    wire.feed(CHUNKED_HEAD + frame(b"{}") + b"0\r\n")
    assert forever(wire, b"a: " + b"b" * 100 + b"\r\n") < 200
    with pytest.raises(WorkerDied):
        await wire.connection.reply()


@pytest.mark.parametrize("is_stream", [True, False])
async def test_bytes_that_drip_into_something_large_are_looked_at_once(is_stream: bool) -> None:
    """Looked at again with each byte, they would be 800 GB."""
    if is_stream:
        wire, _ = await flowing()
        wire.feed(frame(b'data: {"a":"'), *[frame(b"x" * 60_000)] * 140)
    else:
        wire = asked()
        wire.feed(CHUNKED_HEAD, *[frame(b"x" * 60_000)] * 10)
    async with asyncio.timeout(60):
        for _ in range(100):
            wire.feed(*[frame(b"y" * 20)] * 1000)
            await asyncio.sleep(0)
            if wire.transport.closing:
                break
    assert wire.rejected_replies["size"] == 1


async def test_many_marks_of_ids_in_one_event_are_cut_out_in_one_pass() -> None:
    wire, client = await flowing(hides=True)
    event = b'data: {"a":[' + b",".join([b'{"b":1,"token_ids":[]}'] * 40_000) + b"]}\n\n"
    wire.feed(frame(event))
    assert client.events == TEXT + event.replace(b',"token_ids":[]', b"")


async def test_small_pieces_of_a_reply_are_put_together_as_they_come() -> None:
    wire = asked()
    wire.feed(CHUNKED_HEAD, *[frame(b"%016d" % number) for number in range(20_000)])
    assert len(wire.connection._reader.pieces) < 10
    wire.feed(LAST_CHUNK)
    assert (await wire.connection.reply()).body == b"".join(b"%016d" % number for number in range(20_000))


# ReadScheduler


class Slices:
    def __init__(self, name: str, slices: int, told: list[str], on_slice: Callable[[], None]) -> None:
        self.name, self.slices, self.told, self.on_slice = name, slices, told, on_slice

    def process_slice(self) -> bool:
        self.told.append(self.name)
        self.on_slice()
        self.slices -= 1
        return self.slices > 0


def test_who_waits_is_served_in_turn_and_no_turn_of_the_loop_takes_more_than_its_share() -> None:
    wire, told = Wire(), list[str]()
    clock = wire.clock

    def slow() -> None:
        clock.now += TURN_S * 0.6

    scheduler = wire.scheduler
    for name, slices in (("a", 3), ("b", 2), ("c", 1)):
        scheduler.add(Slices(name, slices, told, slow).process_slice)
    turns = []
    while clock._soon:
        before = len(told)
        clock._soon.popleft()()
        turns.append(told[before:])
    assert turns == [["a", "b"], ["c", "a"], ["b", "a"]]
    assert len(scheduler) == 0


def test_a_read_that_is_added_twice_waits_once() -> None:
    wire, told = Wire(), list[str]()
    slices = Slices("a", 1, told, lambda: None)
    wire.scheduler.add(slices.process_slice)
    wire.scheduler.add(slices.process_slice)
    wire.clock.run()
    assert told == ["a"]


async def test_a_large_read_leaves_the_loop_to_others_and_nothing_is_read_meanwhile() -> None:
    wire, client = await flowing()
    read = b"".join(frame(TEXT) for _ in range(1000))
    wire.connection.data_received(read)
    assert client.events == TEXT
    assert not wire.transport.is_reading()
    assert isinstance(wire.scheduler, ReadScheduler)
    assert len(wire.scheduler) == 1
    wire.connection.process_slice()
    assert 0 < len(client.sent) <= SLICE_BYTES + 2 * len(frame(TEXT))
    wire.clock.run()
    assert client.events == TEXT * 1001
    assert wire.transport.is_reading()


async def test_a_client_that_is_full_stops_a_large_read_where_it_is() -> None:
    wire, client = await flowing()
    client.is_full_behind = 3 * SLICE_BYTES
    wire.feed(b"".join(frame(TEXT) for _ in range(1000)))
    assert await wire.connection.relay_event() is RelayEvent.FULL
    assert len(client.sent) < 5 * SLICE_BYTES
    assert not wire.transport.is_reading()
    client.is_full_behind = None
    wire.connection.resume()
    wire.clock.run()
    assert client.events == TEXT * 1001
    assert wire.transport.is_reading()


async def test_surplus_behind_a_large_body_is_never_taken_for_the_next_answer() -> None:
    wire = asked()
    body = frame(b"x" * (2 * SLICE_BYTES - 12)) + LAST_CHUNK
    assert len(body) == 2 * SLICE_BYTES >= EAGER_BYTES
    wire.feed(CHUNKED_HEAD, body + b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nz")
    assert len((await wire.connection.reply()).body) == 2 * SLICE_BYTES - 12
    wire.connection.release()
    assert not wire.idled
    assert wire.transport.closing


async def test_a_stream_whose_owner_is_busy_is_not_read_on_without_end() -> None:
    wire, client = asked(a_watch()), FakeClient()
    wire.feed(STREAM_HEAD + frame(TEXT))
    await wire.connection.reply()
    piece = b"".join(frame(TEXT) for _ in range(40))
    while wire.transport.is_reading():
        wire.feed(piece)
    assert sum(map(len, wire.connection._reader.pieces)) < LARGE_BYTES + 2 * len(piece)
    wire.clock.now += 1000
    wire.connection.expire()
    assert wire.connection.error is None, "it is not the worker that is silent"
    wire.relay_to(client)
    wire.clock.run()
    assert wire.transport.is_reading()
    wire.feed(frame(LAST), frame(DONE) + LAST_CHUNK)
    assert await wire.connection.relay_event() is RelayEvent.DONE


# Memory


async def test_a_whole_reply_counts_while_it_comes() -> None:
    memory = a_holding()
    wire = asked(memory=memory)
    wire.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n", b"x" * 200_000)
    assert memory[REPLY] == 200_000
    wire.feed(b"x" * 100_000)
    reply = await wire.connection.reply()
    assert memory[REPLY] == len(reply.body) == 300_000
    assert sum(map(len, reply.pieces)) == 300_000
    wire.connection.release()
    assert memory[REPLY] == 300_000, "it is the client's until that has read it"
    assert not wire.connection._reader.pieces


async def test_a_reply_for_which_there_is_no_memory_ends_the_attempt_and_is_not_the_workers_fault() -> None:
    memory = a_holding(100_000)
    wire = asked(memory=memory)
    wire.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n", b"x" * 60_000, b"x" * 60_000)
    with pytest.raises(MemoryFull):
        await wire.connection.reply()
    assert wire.transport.closing
    assert not wire.rejected_replies
    assert not wire.connection._reader.pieces


async def test_of_answers_that_grow_beside_one_another_not_all_fail_where_there_is_room_for_some() -> None:
    budget = MemoryBudget(250_000)
    wires = [asked(memory=budget.hold(NO_TENANT)) for _ in range(20)]
    for wire in wires:
        wire.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
    for _ in range(12):
        for wire in wires:
            wire.feed(b"x" * 5000)
    errors = [wire.connection.error for wire in wires]
    assert errors.count(None) >= 3
    assert all(error is None or isinstance(error, MemoryFull) for error in errors)
    assert budget.bytes == 60_000 * errors.count(None)


async def test_a_large_event_counts_until_it_is_whole() -> None:
    memory = a_holding()
    wire, _ = await flowing(memory=memory)
    wire.feed(frame(b'data: {"a":"' + b"x" * 200_000))
    assert memory[REPLY] > 200_000 - SLICE_BYTES
    wire.feed(frame(b'"}\n\n'))
    assert memory[REPLY] == 0
    memory = a_holding(100_000)
    wire, _ = await flowing(memory=memory)
    wire.feed(frame(b'data: {"a":"' + b"x" * 200_000))
    assert await wire.connection.relay_event() is RelayEvent.FAILED
    assert isinstance(wire.connection.error, MemoryFull)


# The end


@pytest.mark.parametrize(
    "behind",
    [b"garbage\n\n", b'data: {"error":{"message":"x"}}\n\n', TEXT, LAST + DONE],
    ids=["none", "error", "text", "end"],
)
@pytest.mark.parametrize("is_one_read", [True, False])
async def test_what_comes_behind_the_closing_event_is_nobodys(behind: bytes, is_one_read: bool) -> None:
    wire, client = await flowing()
    wire.feed(*([frame(LAST + DONE + behind) + LAST_CHUNK] if is_one_read else [frame(LAST + DONE), frame(behind)]))
    assert await wire.connection.relay_event() is RelayEvent.DONE
    assert client.events == TEXT + LAST + DONE
    assert client.sent.count(b"\r\n0\r\n\r\n") == 1


async def test_a_reply_larger_than_its_asker_wants_is_given_up_early() -> None:
    wire = Wire(LIMITS)
    wire.connection.ask(b"GET / HTTP/1.1\r\n\r\n", b"", None, max_reply_bytes=1000)
    wire.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n", b"x" * 1001)
    with pytest.raises(ReplyTooLarge):
        await wire.connection.reply()
    assert wire.rejected_replies == {"size": 1}
