"""Connections to real sockets: opened, kept, given up, and closed in whatever phase a request is left."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
from msgspec.structs import replace

from router.config.workers import FleetConfig, TimeoutsConfig
from router.core.fleet.patience import Signs
from router.core.index.fingerprint import Fingerprint
from router.core.request.attempt import AttemptFailed, CannotConnect, WorkerDied, WorkerErred, WorkerSilent
from router.core.request.record import Record
from router.core.request.reply import Reply, StreamEnd
from router.core.request.request import NO_TENANT, Request
from router.core.request.routes import Route
from router.core.worker import WorkerAddress, parse_address
from router.proxy import ports
from router.upstream.exchange import Exchange, Upstream
from router.upstream.pool import Pool
from router.wire.dialects import DIALECTS
from router.wire.framing import LAST_CHUNK, frame
from router.wire.sse import StreamFilter
from tests.fakes import FakeClient, a_holding
from tests.upstream.certificates import make_certificate
from tests.upstream.scripted import STREAM_HEAD, Asked, Peer, ScriptedWorker, answer, scripted, unused_url

LIMITS = TimeoutsConfig(
    max_reply_bytes=1 << 20,
    max_event_bytes=1 << 16,
    first_event_s=20,
    event_gap_s=20,
    answer_s=20,
    silence_s=20,
    connect_s=5.0,
)
FLEET = FleetConfig(idle_s=60.0, max_idle_connections=4)
TEXT = b'data: {"choices":[{"delta":{"content":"word"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


class Client(FakeClient):
    """A client that reads on whenever it is waited for, unless it has stalled."""

    def __init__(self, *, is_full_after: int | None = None, stalls: bool = False) -> None:
        super().__init__(is_full_after=is_full_after)
        self.stalls = stalls
        self.reads_on = asyncio.Event()

    def stream_head(self, reply: Reply, record: Record) -> bytes:
        return b""

    async def drained(self) -> bool:
        self.is_full_after = None
        if not self.stalls:
            self.reads_on.set()
        return not self.stalls


def a_request(body: bytes = b'{"model":"m"}', traceparent: str = "") -> Request:
    return Request(
        route=Route.CHAT,
        model="m",
        stream=False,
        body=body,
        fingerprint=Fingerprint((), 0),
        anchor=0,
        earlier_bytes=0,
        session=None,
        tenant=NO_TENANT,
        hides_usage=False,
        request_id="r-1",
        traceparent=traceparent,
    )


def a_record() -> Record:
    return Record(route=Route.CHAT, model="m", policy="p", request_id="r-1", stream=True, started_at=0.0)


def a_watch() -> StreamFilter:
    return StreamFilter(DIALECTS[Route.CHAT], hides_usage=False)


class Fixture:
    def __init__(self, worker: ScriptedWorker, pool: Pool) -> None:
        self.worker = worker
        self.pool = pool
        self.upstream = Upstream(pool, lambda _model: lambda _gap: None)

    @property
    def address(self) -> WorkerAddress:
        return parse_address(self.worker.url)

    def exchange(self) -> Exchange:
        return self.upstream.exchange(self.address)

    async def ask(self) -> Reply:
        with self.exchange() as exchange:
            return await exchange.ask(a_request(), None, a_holding())

    @property
    def idle(self) -> int:
        return len(self.pool.port(self.address).idle)


@asynccontextmanager
async def pooled(
    worker: ScriptedWorker,
    fleet: FleetConfig = FLEET,
    timeouts: TimeoutsConfig = LIMITS,
    signs: Callable[[WorkerAddress], Signs | None] = lambda _address: None,
) -> AsyncIterator[Fixture]:
    pool = Pool(fleet, timeouts, signs)
    sweep = asyncio.create_task(pool.run())
    try:
        async with asyncio.timeout(20):
            yield Fixture(worker, pool)
    finally:
        sweep.cancel()
        pool.close()
        await asyncio.gather(sweep, return_exceptions=True)


async def relay(exchange: Exchange, client: Client, record: Record) -> StreamEnd:
    return await exchange.relay(cast(ports.Client, client), record)


async def hang(_asked: Asked, peer: Peer) -> None:
    await peer.gone()


async def test_requests_one_after_another_share_a_connection_and_parallel_ones_do_not() -> None:
    async with scripted() as worker, pooled(worker) as fixture:
        for _ in range(3):
            await fixture.ask()
        assert {asked.connection for asked in worker.asked} == {0}
        await asyncio.gather(*[fixture.ask() for _ in range(6)])
        assert worker.connections == 6
        assert fixture.idle == FLEET.max_idle_connections
        await fixture.ask()
        assert worker.connections == 6


async def test_a_worker_sees_its_own_host_the_request_id_the_workers_key_and_nothing_of_the_client() -> None:
    async with scripted() as worker, pooled(worker, replace(FLEET, worker_key="s3cret")) as fixture:
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        with fixture.exchange() as exchange:
            await exchange.ask(a_request(b'{"a": "\xc3\xa9"}', trace), None, a_holding())
        asked = worker.asked[0]
        assert asked.line == "POST /v1/chat/completions HTTP/1.1"
        assert asked.body == b'{"a": "\xc3\xa9"}'
        assert re.fullmatch(r"r-1-[0-9a-f]{9,}", asked.headers.pop("x-request-id"))
        assert asked.headers == {
            "host": worker.url.removeprefix("http://"),
            "accept-encoding": "identity",
            "authorization": "Bearer s3cret",
            "traceparent": trace,
            "content-type": "application/json",
            "content-length": "11",
        }


async def test_a_kept_connection_that_turns_out_closed_is_replaced_once_by_a_fresh_one() -> None:
    async def answer_the_first_on_each(asked: Asked, peer: Peer) -> None:
        if sum(each.connection == asked.connection for each in worker.asked) > 1:
            peer.drop()
        else:
            await peer.send(answer(b'{"n":%d}' % asked.connection))

    async with scripted(answer_the_first_on_each) as worker, pooled(worker) as fixture:
        assert (await fixture.ask()).body == b'{"n":0}'
        assert (await fixture.ask()).body == b'{"n":1}'
        assert [asked.connection for asked in worker.asked] == [0, 0, 1]


async def test_a_request_that_the_router_gave_up_on_a_kept_connection_is_not_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fall_silent_at_the_second(_asked: Asked, peer: Peer) -> None:
        if len(worker.asked) == 1:
            await peer.send(answer())
            return
        fixture.pool.abort_unresponsive(fixture.address)
        await peer.gone()

    monkeypatch.setattr("router.upstream.connection.UNRESPONSIVE_WHOLE_S", 0.0)
    async with scripted(fall_silent_at_the_second) as worker, pooled(worker) as fixture:
        await fixture.ask()
        with pytest.raises(WorkerDied):
            await fixture.ask()
        assert len(worker.asked) == 2


async def test_a_worker_that_is_gone_with_a_request_on_a_kept_connection_died_with_it() -> None:
    async def die_at_the_second(asked: Asked, peer: Peer) -> None:
        if len(worker.asked) == 2:
            worker.close()
            peer.drop()
        else:
            await peer.send(answer())

    async with scripted(die_at_the_second) as worker, pooled(worker) as fixture:
        await fixture.ask()
        with pytest.raises(WorkerDied) as raised:
            await fixture.ask()
        assert not isinstance(raised.value, CannotConnect)
        with pytest.raises(CannotConnect):
            await fixture.ask()


async def test_a_fresh_connection_that_closes_without_an_answer_is_a_death() -> None:
    async def drop(_asked: Asked, peer: Peer) -> None:
        peer.drop()

    async with scripted(drop) as worker, pooled(worker) as fixture:
        with pytest.raises(WorkerDied):
            await fixture.ask()
        assert len(worker.asked) == 1


async def test_a_kept_connection_that_breaks_in_its_answer_is_a_death_and_the_request_is_not_sent_again() -> None:
    async def break_the_second(asked: Asked, peer: Peer) -> None:
        if len(worker.asked) == 1:
            await peer.send(answer())
        else:
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Le")
            peer.close()

    async with scripted(break_the_second) as worker, pooled(worker) as fixture:
        await fixture.ask()
        with pytest.raises(WorkerDied):
            await fixture.ask()
        assert len(worker.asked) == 2


async def test_a_connection_idle_for_too_long_is_not_used_again() -> None:
    async with scripted() as worker, pooled(worker, replace(FLEET, idle_s=0.0)) as fixture:
        await fixture.ask()
        await fixture.ask()
        assert worker.connections == 2


async def test_bytes_on_an_idle_connection_end_it() -> None:
    async def answer_twice(_asked: Asked, peer: Peer) -> None:
        await peer.send(answer())
        await peer.send(answer(b"{1}"))

    async with scripted(answer_twice) as worker, pooled(worker) as fixture:
        await fixture.ask()
        await worker.ended.get()
        assert (await fixture.ask()).body == b"{}"
        assert worker.connections == 2


async def test_a_port_at_which_nobody_listens_cannot_be_connected_to() -> None:
    async with scripted() as worker, pooled(worker) as fixture:
        worker.url = await unused_url()
        with pytest.raises(CannotConnect):
            await fixture.ask()
        assert fixture.pool.open_connections == 0


async def test_a_stream_is_relayed_and_its_connection_kept_even_if_its_last_chunk_comes_late() -> None:
    async def stream(asked: Asked, peer: Peer) -> None:
        await peer.send(STREAM_HEAD, frame(TEXT), frame(LAST + DONE))
        await relayed.wait()
        await peer.send(LAST_CHUNK)

    relayed = asyncio.Event()
    async with scripted(stream) as worker, pooled(worker) as fixture:
        client, record = Client(), a_record()
        with fixture.exchange() as exchange:
            assert (await exchange.ask(a_request(), a_watch(), a_holding())).is_stream
            assert await relay(exchange, client, record) is StreamEnd.DONE
        relayed.set()
        assert client.events == TEXT + LAST + DONE
        while not fixture.idle:
            await asyncio.sleep(0)
        worker.script = answer_at_once
        await fixture.ask()
        assert worker.connections == 1


async def answer_at_once(_asked: Asked, peer: Peer) -> None:
    await peer.send(answer())


@pytest.mark.parametrize("stalls", [False, True])
async def test_a_client_that_reads_slowly_is_waited_for_until_it_stalls(stalls: bool) -> None:
    async def stream(_asked: Asked, peer: Peer) -> None:
        await peer.send(STREAM_HEAD, frame(TEXT))
        if stalls:
            return
        await client.reads_on.wait()
        await peer.send(frame(LAST + DONE) + LAST_CHUNK)

    async with scripted(stream) as worker, pooled(worker) as fixture:
        client = Client(is_full_after=0, stalls=stalls)
        with fixture.exchange() as exchange:
            await exchange.ask(a_request(), a_watch(), a_holding())
            end = await relay(exchange, client, a_record())
        if stalls:
            assert end is StreamEnd.CLIENT_STALLED
            assert await worker.ended.get() == 0
        else:
            assert (end, client.events) == (StreamEnd.DONE, TEXT + LAST + DONE)


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\n", STREAM_HEAD, STREAM_HEAD + frame(TEXT)])
async def test_leaving_an_exchange_in_any_phase_closes_the_workers_connection(sent: bytes) -> None:
    async def stop_after(_asked: Asked, peer: Peer) -> None:
        await peer.send(sent)
        asked.set()
        await peer.gone()

    async def use(fixture: Fixture) -> None:
        with fixture.exchange() as exchange:
            await exchange.ask(a_request(), a_watch(), a_holding())
            await relay(exchange, Client(), a_record())

    asked = asyncio.Event()
    async with scripted(stop_after) as worker, pooled(worker) as fixture:
        using = asyncio.create_task(use(fixture))
        await asked.wait()
        using.cancel()
        await asyncio.gather(using, return_exceptions=True)
        assert await worker.ended.get() == 0
        assert fixture.idle == 0


async def test_a_silent_worker_is_given_up_by_the_sweep() -> None:
    quick = replace(LIMITS, answer_s=0.01, first_event_s=0.01, event_gap_s=0.01)

    async def stop_after_an_event(_asked: Asked, peer: Peer) -> None:
        await peer.send(STREAM_HEAD + frame(TEXT))
        await peer.gone()

    async with scripted(hang) as worker, pooled(worker, FLEET, quick) as fixture:
        with pytest.raises(WorkerSilent):
            await fixture.ask()
        worker.script = stop_after_an_event
        client = Client()
        with fixture.exchange() as exchange:
            await exchange.ask(a_request(), a_watch(), a_holding())
            assert await relay(exchange, client, a_record()) is StreamEnd.SILENT
        assert client.events == TEXT
        assert [await worker.ended.get() for _ in range(2)] == [0, 1]


async def test_a_silent_worker_that_is_at_work_is_waited_for_by_the_sweep() -> None:
    async def answer_when_told(_asked: Asked, peer: Peer) -> None:
        await was_waited_for.wait()
        await peer.send(answer())

    def signs(_address: WorkerAddress) -> Signs:
        looks.append(fixture.pool.overdue)
        if len(looks) == 2:
            was_waited_for.set()
        return Signs(running=1, waiting=0, moved_since_s=0.0, still_s=0.0, fresh_s=0.01)

    looks: list[int] = []
    was_waited_for = asyncio.Event()
    quick = replace(LIMITS, answer_s=0.01)
    async with scripted(answer_when_told) as worker, pooled(worker, FLEET, quick, signs) as fixture:
        assert (await fixture.ask()).status == 200
        assert looks == [1, 1]
        assert fixture.pool.overdue == 0


async def test_a_worker_that_left_keeps_its_live_request_and_no_connection_after_it() -> None:
    async def answer_when_told(_asked: Asked, peer: Peer) -> None:
        asked.set()
        await left.wait()
        await peer.send(answer())

    asked, left = asyncio.Event(), asyncio.Event()
    async with scripted() as worker, pooled(worker) as fixture:
        await asyncio.gather(fixture.ask(), fixture.ask())
        worker.script = answer_when_told
        live = asyncio.create_task(fixture.ask())
        await asked.wait()
        fixture.pool.forget(fixture.address)
        await worker.ended.get()
        left.set()
        assert (await live).status == 200
        await worker.ended.get()
        assert fixture.idle == 0


async def test_closing_the_pool_closes_every_connection() -> None:
    async with scripted() as worker:
        async with pooled(worker) as fixture:
            await asyncio.gather(fixture.ask(), fixture.ask())
        assert {await worker.ended.get(), await worker.ended.get()} == {0, 1}


async def test_a_worker_behind_tls_is_verified_and_served_alike(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)

    async def stream(_asked: Asked, peer: Peer) -> None:
        await peer.send(STREAM_HEAD, *[frame(TEXT)] * 300, frame(LAST + DONE) + LAST_CHUNK)

    async with scripted(tls=server) as worker:
        async with pooled(worker, replace(FLEET, ca_file=str(cert))) as fixture:
            assert (await fixture.ask()).body == b"{}"
            worker.script = stream
            client = Client(is_full_after=4000)
            with fixture.exchange() as exchange:
                await exchange.ask(a_request(), a_watch(), a_holding())
                assert await relay(exchange, client, a_record()) is StreamEnd.DONE
            assert client.events == TEXT * 300 + LAST + DONE
            assert worker.connections == 1
            worker.script = hang
            waiting = asyncio.create_task(fixture.ask())
            while len(worker.asked) < 3:
                await asyncio.sleep(0)
            waiting.cancel()
            assert await worker.ended.get() == 0
        async with pooled(worker) as fixture:
            with pytest.raises(CannotConnect):
                await fixture.ask()


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"", WorkerDied),
        (frame(b'data: {"error":{"message":"died","code":500}}\n\n'), WorkerErred),
        (frame(DONE), WorkerDied),
    ],
    ids=["closed", "error event", "done unfinished"],
)
async def test_a_stream_that_breaks_before_its_relay_says_so_and_sends_nothing(
    sent: bytes, error: type[AttemptFailed]
) -> None:
    async def break_later(_asked: Asked, peer: Peer) -> None:
        await peer.send(STREAM_HEAD + frame(TEXT))
        await begun.wait()
        if not sent:
            peer.drop()
        await peer.send(sent)

    begun = asyncio.Event()
    async with scripted(break_later) as worker, pooled(worker) as fixture:
        with fixture.exchange() as exchange:
            reply = await exchange.ask(a_request(), a_watch(), a_holding())
            assert reply.is_stream
            exchange.require_unbroken()
            begun.set()
            with pytest.raises(error):  # noqa: PT012
                while True:
                    exchange.require_unbroken()
                    await asyncio.sleep(0)
        assert fixture.idle == 0
