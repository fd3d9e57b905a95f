"""The vendors' own clients, in front of simulated workers."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from router.app.serve import Running
from router.simulator import Fault, SimulatedFleet, SimulatorSettings, start_fleet
from router.wire.framing import frame
from tests.e2e.routed import routed
from tests.e2e.streams import TEXT, answering
from tests.not_tested import not_tested
from tests.upstream.scripted import STREAM_HEAD, Asked, Peer, scripted

SIM = SimulatorSettings(workers=2, base_port=0, block_tokens=32, time_scale=10_000.0, serves_pooling=True)
WORDS = "the fleet keeps what it has seen " * 30
USER: Any = [{"role": "user", "content": WORDS}]
NO_MESSAGES: Any = "none"
JAVASCRIPT = Path(__file__).parent / "js"


@asynccontextmanager
async def a_fleet(**settings: Any) -> AsyncIterator[tuple[SimulatedFleet, Running]]:
    async with await start_fleet(SIM) as fleet, routed(*fleet.urls, **settings) as router:
        yield fleet, router


def openai_client(router: Running) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=router.url + "/v1", api_key="any", max_retries=0)


def anthropic_client(router: Running) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=router.url, api_key="any", max_retries=0)


async def test_the_openai_client_reads_every_shape() -> None:
    async with a_fleet() as (_, router), openai_client(router) as client:
        assert [model.id async for model in client.models.list()] == ["sim"]
        whole = await client.chat.completions.create(model="sim", messages=USER, max_tokens=30)
        stream = await client.chat.completions.create(model="sim", messages=USER, max_tokens=30, stream=True)
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
        assert all(chunk.usage is None for chunk in chunks)
        counted = await client.chat.completions.create(
            model="sim", messages=USER, max_tokens=30, stream=True, stream_options={"include_usage": True}
        )
        usage = [chunk async for chunk in counted][-1].usage
        assert usage is not None
        assert usage == whole.usage or usage.completion_tokens == 30
        completion = await client.completions.create(model="sim", prompt=WORDS, max_tokens=5, stream=True)
        assert [part async for part in completion][-1].choices[0].finish_reason == "length"
        embedding = await client.embeddings.create(model="sim", input="one", encoding_format="float")
        assert len(embedding.data[0].embedding) == SIM.embedding_dims
        raw = await client.chat.completions.with_raw_response.create(model="sim", messages=USER, max_tokens=1)
        assert raw.headers["x-request-id"]


async def test_the_openai_client_maps_errors_to_its_own() -> None:
    async with a_fleet(limits__max_body_bytes=4096) as (fleet, router), openai_client(router) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="other", messages=USER)
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(model="sim", messages=NO_MESSAGES)
        with pytest.raises(openai.APIStatusError) as large:
            await client.completions.create(model="sim", prompt="x" * 5000)
        assert large.value.status_code == 413
        for worker in range(2):
            fleet.set_fault(worker, Fault.ERROR)
        with pytest.raises(openai.InternalServerError) as failed:
            await client.chat.completions.create(model="sim", messages=USER)
        assert (failed.value.status_code, failed.value.code) == (502, "worker_error")
        for worker in range(2):
            await fleet.kill(worker)
        with pytest.raises(openai.InternalServerError) as gone:
            await client.chat.completions.create(model="sim", messages=USER, stream=True)
        assert (gone.value.status_code, gone.value.code) == (503, "no_worker_available")


async def test_the_openai_client_raises_when_its_stream_breaks() -> None:
    async def die(_asked: Asked, peer: Peer) -> None:
        await peer.send(STREAM_HEAD, frame(TEXT))
        await read.wait()
        peer.drop()

    read = asyncio.Event()
    async with (
        scripted(die) as worker,
        routed(worker.url, resumption__max_attempts=0) as router,
        openai_client(router) as client,
    ):
        stream = await client.chat.completions.create(model="m", messages=USER, stream=True)
        assert (await anext(stream)).choices[0].delta.content == "word"
        read.set()
        with pytest.raises(openai.APIError) as broken:
            await anext(stream)
        assert broken.value.code == "worker_error"


async def test_official_clients_ask_once_for_an_answer_that_is_too_large() -> None:
    async with (
        scripted(answering(b"x" * 5000)) as worker,
        routed(worker.url, timeouts__max_reply_bytes=1024) as router,
        openai_client(router).with_options(max_retries=2) as ours,
        anthropic_client(router).with_options(max_retries=2) as theirs,
    ):
        with pytest.raises(openai.InternalServerError):
            await ours.embeddings.create(model="m", input=["one"] * 3, encoding_format="float")
        assert len(worker.asked) == 1
        with pytest.raises(anthropic.InternalServerError):
            await theirs.messages.create(model="m", max_tokens=3, messages=USER)
        assert len(worker.asked) == 2


async def test_the_anthropic_client_reads_every_shape() -> None:
    async with a_fleet() as (_, router), anthropic_client(router) as client:
        whole = await client.messages.create(model="sim", max_tokens=30, system="be brief", messages=USER)
        async with client.messages.stream(model="sim", max_tokens=30, system="be brief", messages=USER) as stream:
            text = "".join([part async for part in stream.text_stream])
            final = await stream.get_final_message()
        assert whole.content[0].type == "text"
        assert text == whole.content[0].text
        assert final.stop_reason == "max_tokens"
        assert final.usage.cache_read_input_tokens, "the second time goes where the first was"
        counted = await client.messages.count_tokens(model="sim", system="be brief", messages=USER)
        prompt_tokens = whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
        assert counted.input_tokens >= min(prompt_tokens, 1)


async def test_the_anthropic_client_maps_errors_to_its_own() -> None:
    async with a_fleet() as (fleet, router), anthropic_client(router) as client:
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(model="other", max_tokens=3, messages=USER)
        with pytest.raises(anthropic.BadRequestError):
            await client.messages.create(model="sim", max_tokens=3, messages=NO_MESSAGES)
        for worker in range(2):
            await fleet.kill(worker)
        with pytest.raises(anthropic.APIStatusError) as gone:
            await client.messages.create(model="sim", max_tokens=3, messages=USER)
        assert gone.value.status_code == 503


async def test_the_anthropic_client_raises_when_its_stream_breaks() -> None:
    start = (
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"a","type":"message","role":"assistant",'
        b'"content":[],"model":"m","stop_reason":null,"stop_sequence":null,'
        b'"usage":{"input_tokens":1,"output_tokens":0}}}\n\n'
    )

    async def die(_asked: Asked, peer: Peer) -> None:
        await peer.send(STREAM_HEAD, frame(start))
        await read.wait()
        peer.drop()

    read = asyncio.Event()
    async with scripted(die) as worker, routed(worker.url) as router, anthropic_client(router) as client:
        stream = await client.messages.create(model="m", max_tokens=3, messages=USER, stream=True)
        assert (await anext(stream)).type == "message_start"
        read.set()
        with pytest.raises(anthropic.APIError, match="worker"):
            await anext(stream)


def node_packages() -> Path:
    """Where the JavaScript clients are installed, as their lock file has them."""
    missing = [command for command in ("node", "npm") if shutil.which(command) is None]
    if missing:
        not_tested(f"{' and '.join(missing)} not installed: THE JAVASCRIPT CLIENTS ARE NOT TESTED")
    if not (JAVASCRIPT / "node_modules" / ".package-lock.json").exists():
        installed = subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=JAVASCRIPT, capture_output=True, text=True
        )
        if installed.returncode:
            not_tested(f"npm ci failed: THE JAVASCRIPT CLIENTS ARE NOT TESTED: {installed.stderr[-300:]}")
    return JAVASCRIPT


@pytest.mark.parametrize("script", ["openai.mjs", "anthropic.mjs"])
async def test_the_javascript_clients_read_and_raise_alike(script: str) -> None:
    folder = await asyncio.to_thread(node_packages)
    async with a_fleet() as (_, router):
        process = await asyncio.create_subprocess_exec(
            "node", script, router.url, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        assert output.decode().strip().endswith("ok")
