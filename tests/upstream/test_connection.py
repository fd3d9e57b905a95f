"""One connection to a worker, byte by byte: what is an answer, what is a failure, and what a client may see of either."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from router.core.fleet.patience import Signs
from router.core.request.attempt import AttemptFailed, ReplyTooLarge, WorkerDied, WorkerHungUp, WorkerSilent, WorkerSlow
from router.core.request.reply import Reply
from router.core.request.routes import Route
from router.upstream.connection import TAIL_S
from router.upstream.relay import RelayEvent
from router.wire.dialects import DIALECTS
from router.wire.framing import LAST_CHUNK, frame
from router.wire.sse import StreamFilter
from tests.upstream.wires import LIMITS, FakeClient, Wire
from tests.wire.cuts import bytewise, cut, cuts

TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"word"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3}}\n\n'
ERROR = b'data: {"error":{"message":"died"}}\n\n'
DONE = b"data: [DONE]\n\n"
EVENTS = [TEXT, TEXT, LAST, USAGE, DONE]
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM = STREAM_HEAD + b"".join(map(frame, EVENTS)) + LAST_CHUNK


def a_watch(*, hides_usage: bool = False) -> StreamFilter:
    return StreamFilter(DIALECTS[Route.CHAT], hides_usage=hides_usage)


def ask(wire: Wire, watch: StreamFilter | None = None) -> None:
    wire.connection.ask(b"POST / HTTP/1.1\r\n\r\n", b"{}", watch)


async def reply_of(wire: Wire) -> Reply:
    """All bytes are here already, so nothing is waited for."""
    async with asyncio.timeout(1):
        return await wire.connection.reply()


async def exchange(*pieces: bytes, closes: bool = False) -> tuple[Reply, Wire]:
    wire = Wire()
    ask(wire)
    wire.feed(*pieces)
    if closes:
        wire.lose()
    return await reply_of(wire), wire


async def stream_to(client: FakeClient, *pieces: bytes, hides_usage: bool = False) -> tuple[RelayEvent | None, Wire]:
    """The client reads from the first event on; None where the stream still flows behind the last piece."""
    wire = Wire()
    ask(wire, a_watch(hides_usage=hides_usage))
    is_flowing = False
    for piece in pieces:
        wire.feed(piece)
        if not is_flowing and wire.connection.state.name == "EVENTS" and wire.connection._reader.pieces:
            assert (await reply_of(wire)).is_stream
            wire.relay_to(client)
            is_flowing = True
    if wire.connection.state.name == "RELAY":
        return None, wire
    async with asyncio.timeout(1):
        return await wire.connection.relay_event(), wire


# Whole replies


@given(
    st.sampled_from(
        [
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", b"hello"),
            (b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\nTrailer: x\r\n\r\n", b"no"),
            (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
            (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", b"x"),
            (
                b"HTTP/1.1 103 Hints\r\nA: b\r\n\r\nHTTP/1.1 102 P\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
                b"x",
            ),
        ]
    ),
    cuts(),
)
def test_a_whole_reply_is_the_same_however_it_is_cut_and_leaves_the_connection_clean(
    given: tuple[bytes, bytes], places: list[int]
) -> None:
    async def check() -> None:
        data, body = given
        reply, wire = await exchange(*cut(data, places))
        assert reply.body == body
        assert not reply.is_stream
        wire.connection.release()
        assert wire.idled == [wire.connection]
        assert wire.connection.is_usable

    asyncio.run(check())


async def test_a_body_that_ends_with_its_connection_is_whole_and_the_connection_is_not_kept() -> None:
    reply, wire = await exchange(b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo", closes=True)
    assert reply.body == b"hello"
    wire.connection.release()
    assert not wire.idled


async def test_a_body_without_framing_that_is_reset_is_no_answer() -> None:
    wire = Wire()
    ask(wire)
    wire.feed(b"HTTP/1.1 200 OK\r\n\r\nhel")
    wire.lose(ConnectionResetError())
    with pytest.raises(WorkerDied):
        await reply_of(wire)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokSURPLUS",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    ],
)
async def test_an_answer_whose_connection_cannot_be_trusted_is_given_and_the_connection_aborted(data: bytes) -> None:
    reply, wire = await exchange(data)
    assert reply.body == b"ok"
    assert wire.transport.closing
    wire.connection.release()
    assert not wire.idled


@pytest.mark.parametrize(
    "data",
    [
        b"garbage that goes on",
        b"garbage\r\n\r\n",
        b"\x16\x03\x01",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * (70 << 10),
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * (70 << 10) + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokXX0\r\n\r\n",
    ],
    ids=lambda data: repr(data[:60]),
)
@pytest.mark.parametrize("bytewise_", [False, True])
async def test_what_is_not_http_is_a_death_and_ends_the_connection(data: bytes, bytewise_: bool) -> None:
    wire = Wire()
    ask(wire)
    wire.feed(*(bytewise(data) if bytewise_ and len(data) < 1000 else [data]))
    with pytest.raises(WorkerDied):
        await reply_of(wire)
    assert wire.transport.closing
    wire.connection.release()
    assert not wire.idled


@pytest.mark.parametrize("at", [0, 1, 20, 37, 38, 42])
async def test_a_reply_that_is_cut_short_anywhere_is_a_death(at: int) -> None:
    with pytest.raises(WorkerDied):
        await exchange(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"[:at], closes=True)


async def test_only_a_reply_of_which_a_byte_came_counts_as_answered() -> None:
    wire = Wire()
    ask(wire)
    assert not wire.connection.has_answered
    wire.feed(b"H")
    assert wire.connection.has_answered


@pytest.mark.parametrize("head", [b"Content-Length: 3000", b"Transfer-Encoding: chunked"])
async def test_a_reply_larger_than_may_be_held_is_given_up(head: bytes) -> None:
    wire = Wire()
    ask(wire)
    wire.feed(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + (frame(b"x" * 3000) if b"chunked" in head else b"x" * 3000))
    with pytest.raises(ReplyTooLarge):
        await reply_of(wire)
    assert wire.transport.closing


async def test_a_line_end_without_its_return_never_becomes_a_head_and_the_deadline_ends_it() -> None:
    wire = Wire()
    ask(wire)
    wire.feed(b"HTTP/1.1 200 OK\nContent-Length: 0\n\n")
    assert wire.connection.deadline == wire.clock.now + LIMITS.answer_s
    wire.connection.expire()
    with pytest.raises(WorkerSilent):
        await reply_of(wire)


async def test_bytes_that_nobody_asked_for_end_an_idle_connection() -> None:
    _, wire = await exchange(b"HTTP/1.1 204 No Content\r\n\r\n")
    wire.connection.release()
    wire.feed(b"HTTP/1.1 200 OK\r\n\r\n")
    assert wire.transport.closing
    assert not wire.connection.is_usable


async def test_a_request_on_a_closed_connection_is_a_death_at_once() -> None:
    wire = Wire()
    wire.lose()
    with pytest.raises(WorkerDied):
        ask(wire)


async def test_the_request_is_written_whole_and_small_ones_in_one_piece() -> None:
    wire = Wire()
    wire.connection.ask(b"HEAD", b"body", None)
    assert wire.transport.written == [b"HEADbody"]
    wire = Wire()
    wire.connection.ask(b"HEAD", b"x" * 20_000, None)
    assert b"".join(wire.transport.written) == b"HEAD" + b"x" * 20_000


async def test_a_connection_serves_one_request_after_another() -> None:
    wire = Wire()
    for number in range(3):
        ask(wire)
        wire.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number)
        assert (await reply_of(wire)).body == b"%d" % number
        wire.connection.release()
        ask(wire, a_watch())
        wire.feed(*cut(STREAM, [number * 7]))
        assert (await reply_of(wire)).is_stream
        client = FakeClient()
        wire.relay_to(client)
        assert await wire.connection.relay_event() is RelayEvent.DONE
        assert client.events == b"".join(EVENTS)
        wire.connection.release()
    assert len(wire.idled) == 6


# Streams


@given(cuts(40), st.booleans(), st.booleans())
def test_a_stream_is_the_same_however_it_is_cut_and_leaves_the_connection_clean(
    places: list[int], hides_usage: bool, is_chunked: bool
) -> None:
    async def check() -> None:
        client = FakeClient(is_chunked=is_chunked)
        turn, wire = await stream_to(client, *cut(STREAM, places), hides_usage=hides_usage)
        assert turn is RelayEvent.DONE
        assert client.events == b"".join(event for event in EVENTS if not (hides_usage and event is USAGE))
        assert client.has_ended == is_chunked
        wire.connection.release()
        assert wire.idled == [wire.connection]
        assert wire.connection.is_usable

    asyncio.run(check())


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=12),
    st.sampled_from([b"content-length: %d", b"transfer-encoding: chunked", b"connection: close"]),
    cuts(20),
)
def test_how_a_worker_frames_a_stream_makes_no_difference(sizes: list[int], framing: bytes, places: list[int]) -> None:
    async def check() -> None:
        body = b"".join(EVENTS)
        if b"chunked" in framing:
            wire_body, at, number = b"", 0, 0
            while at < len(body):
                piece = body[at : at + sizes[number % len(sizes)]]
                wire_body += frame(piece)
                at, number = at + len(piece), number + 1
            wire_body += LAST_CHUNK
        else:
            wire_body = body
        named = framing.replace(b"%d", b"%d" % len(body))
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n%b\r\n\r\n" % named
        client = FakeClient()
        turn, wire = await stream_to(client, *cut(head + wire_body, places))
        assert turn is RelayEvent.DONE
        assert client.events == body
        assert client.has_ended
        if b"close" in framing:
            wire.lose()
        wire.connection.release()
        assert bool(wire.idled) == (b"close" not in framing)

    asyncio.run(check())


@pytest.mark.parametrize("pieces", [[STREAM], bytewise(STREAM), [STREAM_HEAD, *map(frame, EVENTS), LAST_CHUNK]])
async def test_every_write_to_the_client_is_whole_events_in_whole_frames(pieces: list[bytes]) -> None:
    client = FakeClient()
    turn, _ = await stream_to(client, *pieces)
    assert turn is RelayEvent.DONE
    for number in range(1, len(client.writes) + 1):
        so_far = FakeClient()
        so_far.writes = client.writes[:number]
        assert so_far.events.endswith(b"\n\n")


async def test_a_read_that_is_one_frame_of_whole_plain_events_leaves_as_it_came() -> None:
    client = FakeClient()
    await stream_to(client, STREAM_HEAD + frame(TEXT), b"00%x\r\n" % len(TEXT) + TEXT + b"\r\n", frame(TEXT + TEXT))
    assert client.writes[1:] == [b"00%x\r\n" % len(TEXT) + TEXT + b"\r\n", frame(TEXT + TEXT)]


async def test_the_head_leaves_with_the_first_events_and_the_end_with_the_last() -> None:
    wire, client = Wire(), FakeClient(is_chunked=False)
    ask(wire, a_watch())
    wire.feed(STREAM_HEAD + frame(TEXT))
    await reply_of(wire)
    wire.relay_to(client, b"HEAD\r\n\r\n")
    assert client.writes == [b"HEAD\r\n\r\n" + TEXT]
    wire.feed(frame(LAST + DONE))
    assert client.writes[1:] == [LAST + DONE]


@pytest.mark.parametrize("reset", [None, ConnectionResetError()])
def test_a_death_at_any_byte_gives_whole_events_only_and_never_a_clean_end(reset: Exception | None) -> None:
    end_of_done = len(STREAM) - len(LAST_CHUNK) - 2

    async def check(at: int) -> None:
        wire, client = Wire(), FakeClient()
        ask(wire, a_watch())
        wire.feed(STREAM[: len(STREAM_HEAD) + len(frame(TEXT))])
        await reply_of(wire)
        wire.relay_to(client)
        wire.feed(*bytewise(STREAM[len(STREAM_HEAD) + len(frame(TEXT)) : at]))
        wire.lose(reset)
        turn = await wire.connection.relay_event()
        assert b"".join(EVENTS).startswith(client.events)
        assert client.events.endswith(b"\n\n")
        assert (turn, client.has_ended) == (
            (RelayEvent.DONE, True) if at >= end_of_done else (RelayEvent.FAILED, False)
        )
        wire.connection.release()
        assert not wire.idled

    async def check_all() -> None:
        for at in range(len(STREAM_HEAD) + len(frame(TEXT)), len(STREAM)):
            await check(at)

    asyncio.run(check_all())


@pytest.mark.parametrize(
    "bad",
    [b"zz\r\n", b"-1\r\n", b"+5\r\nhello\r\n", frame(TEXT)[:-2] + b"XX", frame(ERROR), frame(DONE), LAST_CHUNK],
    ids=repr,
)
async def test_what_was_whole_in_a_read_leaves_before_its_error_is_acted_on(bad: bytes) -> None:
    client = FakeClient()
    turn, wire = await stream_to(client, STREAM_HEAD + frame(TEXT), frame(TEXT) + bad)
    assert turn is RelayEvent.FAILED
    assert client.events in (TEXT + TEXT, TEXT + TEXT + TEXT)
    assert not client.has_ended
    assert wire.transport.closing


@pytest.mark.parametrize(
    ("code", "status"), [(b'"code":400', 400), (b'"code": 503', 503), (b'"code":200', 500), (b'"x":1', 500)]
)
async def test_a_stream_that_begins_with_an_error_is_an_answer_of_that_error(code: bytes, status: int) -> None:
    wire = Wire()
    ask(wire, a_watch())
    body = b'{"error":{"message":"no",' + code + b"}}"
    wire.feed(STREAM_HEAD + frame(b"data: " + body + b"\n\n") + frame(DONE) + LAST_CHUNK)
    reply = await reply_of(wire)
    assert (reply.status, reply.body, reply.is_stream) == (status, body, False)
    assert wire.transport.closing


@pytest.mark.parametrize("first", [DONE, b""], ids=["done", "nothing"])
async def test_a_stream_that_fails_before_its_first_event_fails_the_attempt(first: bytes) -> None:
    wire = Wire()
    ask(wire, a_watch())
    wire.feed(STREAM_HEAD + (frame(first) if first else b"") + LAST_CHUNK)
    with pytest.raises(WorkerDied):
        await reply_of(wire)


async def test_an_event_without_end_is_given_up_before_it_takes_memory() -> None:
    client = FakeClient()
    turn, wire = await stream_to(client, STREAM_HEAD + frame(TEXT), *[frame(b"data: " + b"x" * 300)] * 5)
    assert turn is RelayEvent.FAILED
    assert isinstance(wire.connection.error, ReplyTooLarge)
    assert client.events == TEXT


async def test_an_answer_that_is_no_stream_is_held_whole_though_a_stream_was_asked_for() -> None:
    wire = Wire()
    ask(wire, a_watch())
    wire.feed(b"HTTP/1.1 400 Bad\r\nContent-Length: 2\r\n\r\n{}")
    reply = await reply_of(wire)
    assert (reply.status, reply.body, reply.is_stream) == (400, b"{}", False)


async def test_a_last_chunk_that_comes_later_than_the_closing_event_saves_the_connection() -> None:
    client = FakeClient()
    turn, wire = await stream_to(client, STREAM_HEAD, *map(frame, EVENTS))
    assert turn is RelayEvent.DONE
    assert client.has_ended
    wire.connection.release()
    assert not wire.idled
    assert wire.connection.deadline == wire.clock.now + TAIL_S
    wire.feed(LAST_CHUNK[:2], LAST_CHUNK[2:])
    assert wire.idled == [wire.connection]
    assert wire.connection.is_usable
    assert wire.connection.deadline == float("inf")


@pytest.mark.parametrize("late", [b"zz\r\n", LAST_CHUNK + b"x", None])
async def test_a_last_chunk_that_is_wrong_or_never_comes_costs_the_connection_and_nothing_else(
    late: bytes | None,
) -> None:
    client = FakeClient()
    turn, wire = await stream_to(client, STREAM_HEAD, *map(frame, EVENTS))
    wire.connection.release()
    if late is None:
        wire.connection.expire()
    else:
        wire.feed(late)
    assert turn is RelayEvent.DONE
    assert wire.transport.closing
    assert not wire.connection.is_usable


# Clients that are slow or gone


async def test_a_client_that_is_full_stops_the_reading_until_it_has_read_on() -> None:
    client = FakeClient(is_full_behind=0)
    wire = Wire()
    ask(wire, a_watch())
    wire.feed(STREAM_HEAD + frame(TEXT))
    await reply_of(wire)
    wire.relay_to(client)
    assert await wire.connection.relay_event() is RelayEvent.FULL
    assert not wire.transport.is_reading()
    wire.clock.now += 1000
    wire.connection.expire()
    assert wire.connection.error is None, "a slow client is not a silent worker"
    client.is_full_behind = None
    wire.connection.resume()
    assert wire.transport.is_reading()
    assert wire.connection.deadline == wire.clock.now + LIMITS.event_gap_s
    wire.feed(frame(LAST), frame(DONE) + LAST_CHUNK)
    assert await wire.connection.relay_event() is RelayEvent.DONE


@pytest.mark.parametrize("tail", [LAST_CHUNK, b""])
async def test_a_connection_is_never_kept_with_its_reading_stopped(tail: bytes) -> None:
    client = FakeClient()
    wire = Wire()
    ask(wire, a_watch())
    wire.feed(STREAM_HEAD + frame(TEXT))
    await reply_of(wire)
    wire.relay_to(client)
    client.is_full_behind = 0
    wire.feed(frame(LAST + DONE) + tail)
    assert await wire.connection.relay_event() is RelayEvent.DONE
    wire.connection.release()
    wire.feed(LAST_CHUNK[len(tail) :])
    assert wire.idled == [wire.connection]
    assert wire.transport.is_reading()


@pytest.mark.parametrize("pieces", [[frame(TEXT)], [frame(LAST + DONE) + LAST_CHUNK], bytewise(frame(TEXT))])
async def test_a_client_that_is_gone_ends_the_workers_work(pieces: list[bytes]) -> None:
    client = FakeClient()
    wire = Wire()
    ask(wire, a_watch())
    wire.feed(STREAM_HEAD + frame(TEXT))
    await reply_of(wire)
    wire.relay_to(client)
    client.gone = True
    wire.feed(*pieces)
    assert await wire.connection.relay_event() is RelayEvent.CLIENT_GONE
    assert wire.transport.closing


@pytest.mark.parametrize("data", [STREAM_HEAD + frame(TEXT), STREAM])
async def test_a_client_that_is_gone_before_the_first_event_gets_nothing(data: bytes) -> None:
    client = FakeClient()
    client.gone = True
    wire = Wire()
    ask(wire, a_watch())
    wire.feed(data)
    await reply_of(wire)
    wire.relay_to(client)
    assert await wire.connection.relay_event() is RelayEvent.CLIENT_GONE
    assert wire.transport.closing


@pytest.mark.parametrize("fed", [b"", STREAM_HEAD[:30], STREAM_HEAD, STREAM_HEAD + frame(TEXT)])
async def test_leaving_in_the_middle_of_an_exchange_closes_the_connection(fed: bytes) -> None:
    wire = Wire()
    ask(wire, a_watch())
    wire.feed(*([fed] if fed else []))
    wire.connection.release()
    assert wire.transport.closing
    assert not wire.idled


# Deadlines


async def test_each_phase_has_the_deadline_of_its_kind() -> None:
    wire = Wire()
    ask(wire, a_watch())
    assert wire.connection.deadline == wire.clock.now + LIMITS.first_event_s
    wire.clock.now += 20
    wire.feed(STREAM_HEAD)
    assert wire.connection.deadline == wire.clock.now - 20 + LIMITS.first_event_s, "a head is not an event"
    wire.feed(frame(TEXT))
    await reply_of(wire)
    wire.relay_to(FakeClient())
    assert wire.connection.deadline == wire.clock.now + LIMITS.event_gap_s
    wire.clock.now += 3
    wire.feed(frame(TEXT))
    assert wire.connection.deadline == wire.clock.now + LIMITS.event_gap_s
    wire.feed(frame(LAST + DONE) + LAST_CHUNK)
    wire.connection.release()
    assert wire.connection.deadline == float("inf")


@pytest.mark.parametrize("fed", [b"", STREAM_HEAD, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhel"])
async def test_a_worker_that_falls_silent_fails_the_attempt(fed: bytes) -> None:
    wire = Wire()
    ask(wire, a_watch())
    wire.feed(*([fed] if fed else []))
    wire.connection.expire()
    with pytest.raises(WorkerSilent):
        await reply_of(wire)
    assert wire.transport.closing


async def test_a_worker_that_falls_silent_in_its_stream_fails_the_stream() -> None:
    client = FakeClient()
    _, wire = await stream_to(client, STREAM_HEAD + frame(TEXT))
    wire.connection.expire()
    assert await wire.connection.relay_event() is RelayEvent.FAILED
    assert isinstance(wire.connection.error, WorkerSilent)
    assert isinstance(wire.connection.error, AttemptFailed)
    assert client.events == TEXT


AT_WORK = Signs(running=1, waiting=0, moved_since_s=0.5, still_s=0.0, fresh_s=4.0)


def ask_patiently(wire: Wire, watch: StreamFilter | None) -> None:
    wire.connection.ask(b"POST / HTTP/1.1\r\n\r\n", b"{}", watch, may_wait=True)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_silence_before_an_answer_is_waited_for_while_the_worker_is_at_work(is_stream: bool) -> None:
    wire = Wire(replace(LIMITS, answer_s=30.0))
    ask_patiently(wire, a_watch() if is_stream else None)
    wire.clock.now += 30.0
    assert not wire.connection.is_overdue(wire.clock.now)
    wire.clock.now += 0.25
    wire.connection.expire(AT_WORK)
    assert wire.connection.is_overdue(wire.clock.now)
    assert wire.connection.deadline == wire.clock.now + AT_WORK.fresh_s
    wire.feed(STREAM_HEAD + frame(TEXT) if is_stream else b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    assert (await reply_of(wire)).status == 200


async def test_silence_in_a_stream_is_waited_for_while_the_worker_is_at_work_and_no_longer() -> None:
    wire, client = Wire(), FakeClient()
    ask_patiently(wire, a_watch())
    wire.feed(STREAM_HEAD + frame(TEXT))
    await reply_of(wire)
    wire.relay_to(client)
    for _ in range(3):
        wire.clock.now += LIMITS.event_gap_s
        wire.connection.expire(AT_WORK)
    assert wire.connection.is_overdue(wire.clock.now)
    wire.feed(frame(TEXT))
    assert not wire.connection.is_overdue(wire.clock.now)
    assert wire.connection.deadline == wire.clock.now + LIMITS.event_gap_s
    wire.clock.now += LIMITS.event_gap_s
    wire.connection.expire(AT_WORK._replace(moved_since_s=LIMITS.event_gap_s + 0.1))
    assert await wire.connection.relay_event() is RelayEvent.FAILED
    assert type(wire.connection.error) is WorkerSilent
    assert client.events == TEXT + TEXT


async def test_even_a_worker_at_work_may_be_silent_for_only_so_long_and_is_slow_then_and_not_ill() -> None:
    wire = Wire()
    ask_patiently(wire, a_watch())
    wire.clock.now += LIMITS.silence_s - 1.0
    wire.connection.expire(AT_WORK)
    assert wire.connection.deadline == wire.clock.now + 1.0
    wire.clock.now += 1.0
    wire.connection.expire(AT_WORK)
    with pytest.raises(WorkerSlow):
        await reply_of(wire)


async def test_what_the_router_asks_for_itself_is_not_waited_for_and_costs_no_health() -> None:
    wire = Wire()
    wire.connection.ask(b"POST /tokenize HTTP/1.1\r\n\r\n", b"{}", None, 5.0)
    wire.clock.now += 5.0
    wire.connection.expire(AT_WORK)
    with pytest.raises(WorkerSlow):
        await reply_of(wire)


async def test_a_closed_connection_is_told_from_one_that_was_given_up() -> None:
    closed, given_up = Wire(), Wire()
    for wire in (closed, given_up):
        ask(wire, a_watch())
        wire.clock.now += 60.0
    closed.lose()
    given_up.connection.abort_unresponsive()
    assert isinstance(closed.connection.error, WorkerHungUp)
    assert type(given_up.connection.error) is WorkerDied


async def test_waiting_for_a_reply_can_be_cancelled_and_the_connection_is_closed() -> None:
    wire = Wire()
    ask(wire, a_watch())
    waiting = asyncio.ensure_future(wire.connection.reply())
    asyncio.get_running_loop().call_soon(waiting.cancel)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    wire.connection.release()
    assert wire.transport.closing


async def test_the_gaps_between_reads_are_counted() -> None:
    wire, client, gaps = Wire(), FakeClient(), list[float]()
    ask(wire, a_watch())
    wire.feed(STREAM_HEAD + frame(TEXT))
    await reply_of(wire)
    relay = wire.relay_to(client, observe_gap=gaps.append)
    for gap in (0.5, 0.25):
        wire.clock.now += gap
        wire.feed(frame(TEXT))
    assert gaps == [0.5, 0.25]
    assert relay.reads == 2
