"""What is kept of a worker's answers to probes, however large and strange they are."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from router.config.workers import FleetConfig, LoadConfig, ProbesConfig, TimeoutsConfig
from router.core.fleet.fleet import Fleet
from router.core.fleet.health import HealthRules, WorkerState
from router.core.fleet.patience import Signs
from router.core.fleet.rules import FleetRules
from router.core.index.prefix_index import PrefixIndex
from router.core.worker import parse_address
from router.upstream.exchange import Upstream
from router.upstream.health_check import (
    MAX_LOGGED,
    MAX_METRICS_BYTES,
    MAX_PROBE_BYTES,
    WorkerMonitor,
)
from router.upstream.load import SLICE_BYTES, BadLoad, LoadReader, parse_load, slices
from router.upstream.model_list import MAX_MODELS, read_models
from router.upstream.pool import Pool
from tests.upstream.certificates import make_certificate
from tests.upstream.scripted import METRICS, ScriptedWorker, scripted, unused_url

LIMITS = TimeoutsConfig(
    max_reply_bytes=64 << 20,
    max_event_bytes=8 << 20,
    first_event_s=20,
    event_gap_s=20,
    answer_s=20,
    silence_s=20,
    connect_s=5.0,
)


def listing(*cards: Any) -> bytes:
    return json.dumps({"object": "list", "data": cards}).encode()


def test_of_a_card_a_few_short_members_are_kept() -> None:
    card = {"id": "m", "object": "model", "created": 1, "owned_by": "vllm", "root": "/m", "max_model_len": 4096}
    odd = {"permission": [{"id": "p"}], "x": [[]] * 1000, "parent": "a" * 600}
    assert read_models(listing(card | odd)) == {"m": card}
    assert read_models(listing({"id": "m", "parent": None, "root": ["a"]})) == {"m": {"id": "m", "parent": None}}


@pytest.mark.parametrize("name", ["", "a" * 257, "a\nb", "\x1b[31m", 5, None, ["m"], {"m": 1}], ids=repr)
def test_a_name_that_is_none_is_left_out(name: Any) -> None:
    assert list(read_models(listing({"id": name}, {"id": "m"}, {}))) == ["m"]


def test_a_worker_lists_so_many_models_and_no_more() -> None:
    assert len(read_models(listing(*({"id": f"m{number}"} for number in range(MAX_MODELS + 5))))) == MAX_MODELS


@pytest.mark.parametrize("body", [b"", b"[]", b'{"data":{}}', b'{"data":[' + b"[" * 100_000, b'{"data":[5]}'], ids=repr)
def test_what_is_no_list_of_models_raises(body: bytes) -> None:
    with pytest.raises((msgspec.MsgspecError, RecursionError)):
        read_models(body)


def test_metrics_are_read_in_slices_of_whole_lines_and_none_is_lost() -> None:
    line = b'vllm:num_requests_running{engine="0"} 1.0\n'
    text = b"# a comment that is no figure\n" * 9000 + line * 9000
    parts = list(slices(text))
    assert b"".join(parts) == text
    assert all(len(part) <= SLICE_BYTES and part.endswith(b"\n") for part in parts)
    assert parse_load(text).running == 9000


@pytest.mark.parametrize(
    "text",
    [
        b"vllm:cache_config_info{" + b"a" * (2 * SLICE_BYTES) + b"} 1\n" + b"\n" * SLICE_BYTES,
        b"vllm:num_requests_running 1\n" * 20_000,
        b"vllm:num_requests_running 1e300\n",
        b"vllm:num_requests_waiting -1e18\n",
        b"vllm:num_requests_running 1e308\n" * 2,
    ],
    ids=["a line without end", "too many", "large", "small", "infinite"],
)
def test_metrics_that_no_worker_has_are_refused(text: bytes) -> None:
    with pytest.raises(BadLoad):
        parse_load(text)


def test_a_figure_of_many_digits_is_none() -> None:
    reader = LoadReader()
    reader.feed(b"vllm:num_requests_running " + b"9" * 100_000 + b"\nvllm:num_requests_waiting 2\n")
    assert (reader.report().running, reader.report().waiting) == (0, 2)


async def test_a_poll_says_whether_the_worker_is_at_work_while_requests_are_there_though_it_is_ejected() -> None:
    async with scripted() as worker, watched(worker) as (watch, fleet, _pool):
        (member,) = fleet.members()
        await watch.probe()
        for tokens in (5, 9):
            worker.probed["/metrics"] = b"vllm:num_requests_running 1.0\nvllm:generation_tokens_total %d\n" % tokens
            with fleet.lease(member.position, 0.0, 1000.0, shows_first_token=True):
                assert member.health.on_death(1000.0) == (tokens == 5)
                await watch.poll()
        assert fleet.signs(member.address, 1000.0) == Signs(1, 0, 0.0, 0.0, 5.0)
        worker.probed["/metrics"] = METRICS
        await watch.poll()
        assert fleet.signs(member.address, 1000.0) == Signs(1, 0, 0.0, 0.0, 5.0), "nobody is there, and it is not asked"
        fleet.set_members([])
        assert fleet.signs(member.address, 1000.0) is None


@asynccontextmanager
async def watched(
    worker: ScriptedWorker, *, has_worker_key: bool = False, now: list[float] | None = None
) -> AsyncIterator[tuple[WorkerMonitor, Fleet, Pool]]:
    times = now or [1000.0]
    pool = Pool(FleetConfig(idle_s=60.0, max_idle_connections=4), LIMITS)
    fleet = Fleet(FleetRules(HealthRules(), 10_000.0, 4.0, 5.0, 100_000), PrefixIndex(1000, 100))
    fleet.set_members([parse_address(worker.url)])
    (member,) = fleet.members()
    upstream = Upstream(pool, lambda _model: lambda _gap: None)
    probes, load = ProbesConfig(timeout_s=10.0), LoadConfig()
    monitor = WorkerMonitor(member, fleet, upstream, probes, load, lambda: times[0], has_worker_key=has_worker_key)
    try:
        yield monitor, fleet, pool
    finally:
        pool.close()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models", b'{"data":[{"id":"a","x":[' + b"[]," * MAX_PROBE_BYTES + b"1]}]}"),
        ("/metrics", METRICS + b"junk 1\n" * MAX_METRICS_BYTES),
        ("/health", b"x" * (MAX_PROBE_BYTES + 1)),
    ],
    ids=["models", "metrics", "health"],
)
async def test_an_answer_to_a_probe_that_is_too_large_is_read_no_further_and_counted(path: str, body: bytes) -> None:
    async with scripted() as worker, watched(worker) as (watch, fleet, pool):
        worker.probed[path] = body
        (member,) = fleet.members()
        await watch.probe()
        await watch.poll()
        assert pool.rejected_replies["size"] == pool.rejected_replies["probe"] == 1
        assert (member.health.state is WorkerState.UP) == (path == "/metrics")
        assert (member.load is None) == (path == "/metrics")


async def the_error_of(worker: ScriptedWorker, **settings: bool) -> str:
    """After a probe and a poll."""
    async with watched(worker, **settings) as (watch, fleet, _pool):  # type: ignore[arg-type]
        (member,) = fleet.members()
        await watch.probe()
        await watch.poll()
        assert member.last_error is not None
        assert member.last_error.isprintable()
        return member.last_error


@pytest.mark.parametrize(
    ("path", "status", "has_worker_key", "error"),
    [
        ("/v1/models", 401, False, "GET /v1/models: HTTP status 401: the worker asks for a key: set fleet.worker_key"),
        ("/v1/models", 401, True, "GET /v1/models: HTTP status 401: the worker refuses the key of fleet.worker_key"),
        ("/v1/models", 502, False, "GET /v1/models: HTTP status 502"),
        ("/health", 404, False, "GET /health: HTTP status 404: is this a vLLM server?"),
        ("/health", 503, False, "GET /health: HTTP status 503"),
        ("/metrics", 404, False, "GET /metrics: HTTP status 404: is this a vLLM server?"),
    ],
)
async def test_a_worker_that_refuses_a_probe_says_why(path: str, status: int, has_worker_key: bool, error: str) -> None:
    async with scripted() as worker:
        worker.statuses[path] = status
        assert await the_error_of(worker, has_worker_key=has_worker_key) == error


@pytest.mark.parametrize("body", [b"<html>", b'{"data":[]}'], ids=["no list", "an empty list"])
async def test_a_worker_that_lists_no_model_says_so(body: bytes) -> None:
    async with scripted() as worker:
        worker.probed["/v1/models"] = body
        assert "list of models" in await the_error_of(worker)


async def test_a_worker_that_cannot_be_reached_says_why(tmp_path: Path) -> None:
    assert "refused" in (await the_error_of(ScriptedWorker(url=await unused_url()))).lower()
    assert "its host is no host name" in await the_error_of(ScriptedWorker(url="http://a..b:80"))
    assert "cannot connect: " in await the_error_of(ScriptedWorker(url="http://no-such-host.invalid:80"))

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as plain:
        url = f"https://127.0.0.1:{plain.sockets[0].getsockname()[1]}"
        assert "does not speak TLS" in await the_error_of(ScriptedWorker(url=url))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*make_certificate(tmp_path))
    async with scripted(tls=context) as worker:
        assert "certificate verify failed" in await the_error_of(worker)
        worker.url = worker.url.replace("https://", "http://")
        assert "https://?" in await the_error_of(worker)


async def test_an_error_that_lasts_is_logged_at_once_and_then_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = [1000.0]
    async with scripted() as worker, watched(worker, now=now) as (watch, fleet, _pool):
        (member,) = fleet.members()
        worker.statuses["/v1/models"] = 401
        logged = []
        for _ in range(130):
            await watch.probe()
            logged.append(len(caplog.records))
            now[0] += 1.0
        assert [logged.index(count) for count in (1, 2, 3)] == [0, 60, 120]
        assert member.health.since == 1000.0
        worker.statuses.clear()
        await watch.probe()
        assert member.last_error is None
        assert member.health.state is WorkerState.UP
        assert member.health.since == now[0]


async def test_errors_that_alternate_do_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with scripted() as worker, watched(worker) as (watch, _fleet, _pool):
        for status in (*range(400, 440), *range(400, 440)):
            worker.statuses["/health"] = status
            await watch.probe()
        assert len(caplog.records) == MAX_LOGGED


async def test_metrics_of_a_worker_that_is_not_healthy_are_not_told_of(caplog: pytest.LogCaptureFixture) -> None:
    worker = ScriptedWorker(url=await unused_url())
    async with watched(worker) as (watch, _fleet, _pool):
        await watch.probe()
        await watch.poll()
    assert [record.path for record in caplog.records] == ["/health"]  # type: ignore[attr-defined]


async def test_a_worker_that_was_ejected_in_its_sleep_is_back_with_the_poll_that_finds_it_awake() -> None:
    line = b'vllm:engine_sleep_state{engine="0",sleep_state="weights_offloaded"} %d.0\n'
    async with scripted() as worker, watched(worker) as (watch, fleet, _pool):
        (member,) = fleet.members()
        await watch.probe()
        worker.probed["/metrics"] = METRICS + line % 1
        await watch.poll()
        member.health.on_death(1000.0)
        fleet.on_health_changed(member)
        states = [member.state]
        worker.probed["/metrics"] = METRICS + line % 0
        await watch.poll()
        assert [*states, member.state] == [WorkerState.ASLEEP, WorkerState.UP]
