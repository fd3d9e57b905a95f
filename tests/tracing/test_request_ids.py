"""One id leads from the client's answer to the worker and to every line of the log; with tracing, to the spans as well."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from router.runtime.logs import JsonFormatter
from router.wire.framing import frame
from tests.e2e.routed import Broken, connected, post, routed
from tests.e2e.streams import CHAT, STREAMED, TEXT, drop
from tests.tracing.collector import collecting
from tests.tracing.test_tracing import PATH, tracing
from tests.upstream.scripted import STREAM_HEAD, Asked, Peer, scripted

ID = "X-Request-Id: r1"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    into = io.StringIO()
    handler = logging.StreamHandler(into)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    yield into
    root.handlers[:] = before
    root.setLevel(level)


def lines(written: io.StringIO, message: str) -> list[dict[str, Any]]:
    found = map(json.loads, written.getvalue().splitlines())
    return [line for line in found if line["message"] == message]


async def die_midway(_asked: Asked, peer: Peer) -> None:
    await peer.send(STREAM_HEAD, frame(TEXT))
    peer.drop()


async def test_a_clients_id_reaches_the_worker_and_comes_back() -> None:
    async with scripted() as worker, routed(worker.url) as router:
        given = await post(router, PATH, CHAT, ID)
        made = await post(router, PATH, CHAT)
        sent = [asked.headers["x-request-id"].rpartition("-")[0] for asked in worker.asked]
        assert sent == ["r1", made.headers["x-request-id"]]
        assert given.headers["x-request-id"] == "r1"


async def test_what_befalls_a_request_is_logged_with_its_id(written: io.StringIO) -> None:
    settings = {"retries__max_deaths": 1, "probes__failures": 1}
    async with scripted(drop) as worker, routed(worker.url, **settings) as router:
        assert (await post(router, PATH, CHAT, ID)).status == 502
    (given_up,) = lines(written, "request given up")
    assert given_up["request_id"] == "r1"
    assert "trace_id" not in given_up


async def test_a_line_leads_to_the_trace_of_its_request(written: io.StringIO) -> None:
    async with collecting() as collector, scripted(die_midway) as worker:
        settings = {"resumption__wait_s": 0, "retries__max_deaths": 10}
        async with routed(worker.url, **tracing(collector, **settings)) as router, connected(router) as client:
            await client.post(PATH, STREAMED, ID)
            with pytest.raises(Broken):
                await client.answer()
            tree = await collector.tree("r1")
    (line,) = lines(written, "stream not resumed")
    assert (line["request_id"], line["trace_id"]) == ("r1", tree.root.trace_id)
    assert tree.root.is_error
    assert tree.root.attributes["error.type"] == "broken"


async def test_a_trace_that_is_not_sampled_is_not_named(written: io.StringIO) -> None:
    async with collecting() as collector, scripted(drop) as worker:
        settings = {"retries__max_deaths": 1, "tracing__sample_ratio": 0}
        async with routed(worker.url, **tracing(collector, **settings)) as router:
            await post(router, PATH, CHAT, ID)
    (line,) = lines(written, "request given up")
    assert line["request_id"] == "r1"
    assert "trace_id" not in line
