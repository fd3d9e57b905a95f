"""Clients that leave, guess and forge, and a wall clock that jumps: what does it cost the workers and the router?"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import router as package
from router.app.serve import Running
from router.simulator import SimulatorSettings, start_fleet
from tests.e2e.faults import CHAT_PATH, ejections_of, faulted
from tests.e2e.routed import RawClient, connected, get, get_admin, is_quiet, post, routed, until
from tests.e2e.streams import answering
from tests.simulator.serving import Client
from tests.upstream.scripted import scripted

STEADY = SimulatorSettings(workers=1, base_port=0, block_tokens=32, time_scale=1.0, itl_ms=10.0, stream_interval_ms=0.0)
CHAT: dict[str, Any] = {"model": "sim", "max_tokens": 10_000, "messages": [{"role": "user", "content": "hello"}]}
WASTED_TOKENS = 20
"""What a worker may generate, at one in 10 ms, between a client's leaving and its request's end."""


@asynccontextmanager
async def steady_worker() -> AsyncIterator[tuple[Running, Client]]:
    """One worker with a token every 10 ms, and its own figures."""
    connector = aiohttp.TCPConnector(force_close=True)
    async with (
        await start_fleet(STEADY) as fleet,
        aiohttp.ClientSession(connector=connector) as session,
        faulted(*fleet.urls) as router,
    ):
        yield router, Client(fleet, session)


async def until_metric(worker: Client, name: str, value: float) -> None:
    while await worker.metric(name) != value:
        pass


@pytest.mark.parametrize("reset", [False, True])
async def test_of_a_stream_that_its_client_left_the_worker_generates_no_more(reset: bool) -> None:
    async with steady_worker() as (router, worker), connected(router) as client:
        await client.post(CHAT_PATH, {**CHAT, "stream": True})
        await client.head()
        for _ in range(5):
            await client.chunk()
        before = await worker.metric("vllm:generation_tokens_total")
        client.leave(reset=reset)
        await until_metric(worker, "vllm:num_requests_running", 0.0)
        assert await worker.metric("vllm:generation_tokens_total") - before <= WASTED_TOKENS
        assert await worker.metric("vllm:request_success_total", finished_reason="abort") == 1


@pytest.mark.parametrize("reset", [False, True])
async def test_of_an_answer_that_its_client_does_not_wait_for_the_worker_generates_no_more(reset: bool) -> None:
    async with steady_worker() as (router, worker), connected(router) as client:
        await client.post(CHAT_PATH, CHAT)
        await until_metric(worker, "vllm:num_requests_running", 1.0)
        before = await worker.metric("vllm:generation_tokens_total")
        client.leave(reset=reset)
        await until_metric(worker, "vllm:num_requests_running", 0.0)
        assert await worker.metric("vllm:generation_tokens_total") - before <= WASTED_TOKENS
        assert await worker.metric("vllm:request_success_total", finished_reason="abort") == 1


async def test_clients_that_leave_say_nothing_of_their_worker() -> None:
    async with steady_worker() as (router, worker):
        for number in range(10):
            async with connected(router) as client:
                await client.post(CHAT_PATH, {**CHAT, "stream": number % 2 == 0})
                await until_metric(worker, "vllm:num_requests_running", 1.0)
                client.leave(reset=number % 4 < 2)
            await until_metric(worker, "vllm:num_requests_running", 0.0)
        await until(lambda: is_quiet(router))
        assert await ejections_of(router) == 0
        assert router.fleet.catalog.is_ready()


async def test_ten_thousand_names_of_models_that_nobody_serves_leave_no_trace_but_a_count() -> None:
    async with scripted(answering()) as worker, faulted(worker.url) as router, connected(router) as client:
        await ask_for_models(client, range(100))
        before = (await get_admin(router, "/metrics")).body
        await ask_for_models(client, range(100, 10_000))
        after = (await get_admin(router, "/metrics")).body
        assert before.count(b"\n") == after.count(b"\n")
        assert len(after) < len(before) + 2000
        assert b"guess" not in after
        assert worker.asked == []
        (count,) = re.findall(rb'^warmroute_requests_total\{.*status="404"\} (\S+)$', after, re.MULTILINE)
        assert float(count) == 10_000


async def ask_for_models(client: RawClient, numbers: range) -> None:
    """One after another on one connection, fifty at a time on their way."""
    for first in numbers[::50]:
        bodies = [json.dumps({**CHAT, "model": f"guess-{number}"}).encode() for number in range(first, first + 50)]
        head = f"POST {CHAT_PATH} HTTP/1.1\r\nHost: r\r\nContent-Length: "
        await client.send(b"".join([f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]))
        for _ in bodies:
            found = await client.answer()
            assert (found.status, found.error["code"]) == (404, "model_not_found")


FORGED = ["/metrics", "/workers", "/decisions", "/add_worker?url=http://evil", "/admin", "/v1/../workers", "//workers"]


async def test_forged_admin_calls_are_not_found_on_the_data_port_and_refused_on_the_other() -> None:
    async with scripted(answering()) as worker, routed(worker.url, admin__token="secret") as router:
        for path in FORGED:
            assert (await get(router, path)).status == 404
            assert (await get(router, path, "Authorization: Bearer secret")).status == 404
            assert (await post(router, path, {"url": "http://evil"})).status == 404
        found = await get_admin(router, "/workers", "Authorization: Bearer secret")
        assert [each["url"] for each in found.json["workers"]] == [worker.url]
        for path in ("/metrics", "/workers", "/decisions", "/events", "/nothing"):
            assert (await get_admin(router, path)).status == 401
            for forged in ("Bearer", "Bearer ", "Bearer guess", "Basic secret", "bearer secretsecret", "secre"):
                assert (await get_admin(router, path, f"Authorization: {forged}")).status in (401, 429)
        assert worker.asked == []


WALL_CLOCKS = re.compile(r"\btime\.(time|time_ns|localtime|gmtime|strftime|ctime)\b|\bdatetime\b|\bfrom time import\b")
MAY_READ_IT = {"runtime/logs.py", "app/serve.py", "app/sessions.py", "cli/keys.py", "core/tenants/keyring.py"}
"""The log, what makes API keys and lets them expire on a date, and what stamps entries and lets sessions expire: app/serve.py
and app/sessions.py hand the clock to these."""
STANDS_APART = {"simulator", "replay"}


def test_nothing_but_the_log_and_the_dates_of_keys_reads_the_clock_on_the_wall() -> None:
    root = Path(package.__file__).parent
    files = [path for path in root.rglob("*.py") if path.relative_to(root).parts[0] not in STANDS_APART]
    readers = {str(path.relative_to(root)) for path in files if WALL_CLOCKS.search(path.read_text("utf-8"))}
    assert len(files) > 50
    assert readers <= MAY_READ_IT
