"""The fakes of ``tests.fakes`` keep the promises that the real client and the real workers keep."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from router.core.request.attempt import AttemptFailed, CannotConnect, WorkerDied
from router.core.request.reply import Reply, StreamEnd
from router.core.worker import WorkerAddress
from router.proxy import ports
from router.server.client import ClientConnection
from router.upstream import exchange as real
from router.wire.framing import LAST_CHUNK, frame
from tests import fakes
from tests.fakes import FakeClient, FakeUpstream, Script, a_holding
from tests.upstream.scripted import STREAM_HEAD, Asked, Peer, answer, scripted, unused_url
from tests.upstream.test_exchange import DONE, LAST, TEXT, a_record, a_request, a_watch, pooled

Workers = tuple[ports.Upstream, WorkerAddress]

PAIRS = [
    (ports.Client, FakeClient, ClientConnection),
    (ports.Exchange, fakes.FakeExchange, real.Exchange),
    (ports.Upstream, FakeUpstream, real.Upstream),
]


def parameters_of(owner: type, name: str) -> list[tuple[str, object]]:
    return [(each.name, each.default) for each in inspect.signature(getattr(owner, name)).parameters.values()]


@pytest.mark.parametrize(("port", "fake", "real_one"), PAIRS, ids=lambda each: each.__name__)
def test_a_fake_takes_what_the_real_one_takes(port: type, fake: type, real_one: type) -> None:
    names = [name for name, member in vars(port).items() if inspect.isfunction(member) and not name.startswith("_")]
    assert names
    for name in names:
        assert parameters_of(fake, name) == parameters_of(port, name) == parameters_of(real_one, name), name


@asynccontextmanager
async def real_workers(kind: str) -> AsyncIterator[Workers]:
    async def script(_asked: Asked, peer: Peer) -> None:
        if kind == "answers":
            await peer.send(answer(b"{}", 500))
        elif kind == "streams":
            await peer.send(STREAM_HEAD, frame(TEXT), frame(LAST + DONE), LAST_CHUNK)
        elif kind == "breaks":
            await peer.send(STREAM_HEAD, frame(TEXT))

    async with scripted(hangs_up(script)) as worker, pooled(worker) as fixture:
        if kind == "absent":
            worker.url = await unused_url()
        yield fixture.upstream, fixture.address


def hangs_up(script: Callable[[Asked, Peer], Awaitable[None]]) -> Callable[[Asked, Peer], Awaitable[None]]:
    async def then(asked: Asked, peer: Peer) -> None:
        await script(asked, peer)
        raise ConnectionError

    return then


@asynccontextmanager
async def fake_workers(kind: str) -> AsyncIterator[Workers]:
    events = [TEXT, LAST + DONE]
    script = {
        "answers": Script(answer=Reply(500, {}, b"{}", is_stream=False)),
        "streams": Script(events=lambda _request, _host: events),
        "breaks": Script(1, events=lambda _request, _host: events),
        "dies": Script(0, events=lambda _request, _host: events),
        "absent": Script(answer=CannotConnect("x")),
    }[kind]
    yield FakeUpstream(lambda _host: script), WorkerAddress("http", "w", 80)


MAKERS = [real_workers, fake_workers]


@pytest.mark.parametrize("workers", MAKERS)
async def test_an_answer_is_given_back_as_it_is(
    workers: Callable[[str], AbstractAsyncContextManager[Workers]],
) -> None:
    async with workers("answers") as (upstream, worker):
        with upstream.exchange(worker) as exchange:
            reply = await exchange.ask(a_request(), None, a_holding())
    assert (reply.status, reply.body, reply.is_stream) == (500, b"{}", False)


@pytest.mark.parametrize("workers", MAKERS)
@pytest.mark.parametrize(("kind", "failure"), [("dies", WorkerDied), ("absent", CannotConnect)])
async def test_a_worker_that_fails_before_its_first_event_is_a_failed_attempt(
    workers: Callable[[str], AbstractAsyncContextManager[Workers]], kind: str, failure: type[AttemptFailed]
) -> None:
    async with workers(kind) as (upstream, worker):
        with upstream.exchange(worker) as exchange, pytest.raises(failure):
            await exchange.ask(a_request(), a_watch(), a_holding())


@pytest.mark.parametrize("workers", MAKERS)
@pytest.mark.parametrize(
    ("kind", "end", "text"), [("streams", StreamEnd.DONE, TEXT + LAST + DONE), ("breaks", StreamEnd.DIED, TEXT)]
)
async def test_a_stream_is_relayed_as_far_as_it_goes(
    workers: Callable[[str], AbstractAsyncContextManager[Workers]], kind: str, end: StreamEnd, text: bytes
) -> None:
    client = FakeClient(is_chunked=False)
    async with workers(kind) as (upstream, worker):
        with upstream.exchange(worker) as exchange:
            assert (await exchange.ask(a_request(), a_watch(), a_holding())).is_stream
            exchange.require_unbroken()
            assert await exchange.relay(client, a_record()) is end
    assert client.sent == text
