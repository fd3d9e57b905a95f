"""A tenant never gets more tokens than its limit, however it asks and whenever it leaves, and gets all of it where it behaves.

What is reserved for requests under way is part of the limit, so all of them together cannot pass it; the one exception is a
prompt, or a number of answers, that is larger than all that is left of an unused limit.

The workers write no more than ``max_tokens`` says, count as vLLM does, and stop when the router leaves. A stream's tokens are
paced, as decoding paces them, so that a worker is little ahead of its client.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from router.app.serve import Running
from router.simulator import Fault, SimulatorSettings, start_fleet
from router.wire.framing import LAST_CHUNK, frame
from tests.e2e.faults import COMPLETIONS_PATH, MESSAGES_PATH, metric
from tests.e2e.routed import Broken, RawClient, connected, post, routed, until
from tests.server.keys import ACME, bearer, entry, keyed
from tests.upstream.scripted import STREAM_HEAD, Asked, Peer, ScriptedWorker, answer, scripted

pytestmark = pytest.mark.system

LIMIT = 20_000
WANTED = 500
"""Tokens of an answer that nothing makes shorter."""
WINDOW = 100_000
TOKEN = "~"
"""Nothing else has this character."""
BATCH = 20
"""Tokens that a worker writes before it looks whether it is still wanted."""
CHAT_PATH, RESPONSES_PATH = "/v1/chat/completions", "/v1/responses"
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "say it"}]}
COMPLETION: dict[str, Any] = {"model": "m", "prompt": "say it", "max_tokens": None}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
STREAM = {"stream": True}


# A worker that counts


@dataclass
class Meter:
    """What all workers of a test did together. ``cuts``: of the streams to come, how many break in the middle."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    lengths: list[int] = field(default_factory=list)
    """Of each answer, what it might have had at the most."""
    cuts: int = 0
    paced: bool = False
    """Whole answers take their time."""

    async def serve(self, asked: Asked, peer: Peer) -> None:
        body = json.loads(asked.body)
        if asked.path == "/detokenize":
            await peer.send(answer(json.dumps({"prompt": TOKEN * len(body["tokens"])}).encode()))
            return
        prompts = prompts_of(body)
        prompt_tokens = sum(len(prompt) // 4 for prompt in prompts)
        self.prompt_tokens += prompt_tokens
        limit = limit_of(asked.path, body, prompt_tokens)
        length = min(limit, WANTED)
        self.lengths.append(length)
        answers = len(prompts) * max(body.get("n") or 1, body.get("best_of") or 1)
        write = self._stream if body.get("stream") else self._whole
        gone = asyncio.ensure_future(peer.gone()) if body.get("stream") or self.paced else None
        try:
            await write(asked.path, body, peer, prompt_tokens, answers, length, gone)
        finally:
            if gone is not None:
                gone.cancel()
                await asyncio.wait((gone,))  # it reads from the connection

    async def _whole(
        self,
        path: str,
        body: Any,
        peer: Peer,
        prompt: int,
        answers: int,
        length: int,
        gone: asyncio.Future[None] | None,
    ) -> None:
        for at in range(0, length, BATCH):
            self.completion_tokens += min(BATCH, length - at) * answers
            if gone is not None:
                await asyncio.sleep(0.05)
                if gone.done():
                    return
        await peer.send(answer(json.dumps(whole_of(path, body, prompt, answers, length)).encode()))

    async def _stream(
        self,
        path: str,
        body: Any,
        peer: Peer,
        prompt: int,
        answers: int,
        length: int,
        gone: asyncio.Future[None] | None,
    ) -> None:
        is_cut, self.cuts = self.cuts > 0, max(self.cuts - 1, 0)
        await peer.send(STREAM_HEAD, *map(frame, first_events(path, prompt)))
        word = b"".join(frame(word_event(path, body, index)) for index in range(answers))
        for at in range(0, length, BATCH):
            count = min(BATCH, length - at)
            self.completion_tokens += count * answers
            await peer.send(word * count)
            await asyncio.sleep(0)
            if is_cut and at >= length // 2:
                peer.drop()
                return
            if gone is not None and gone.done():
                return
        await peer.send(*map(frame, last_events(path, prompt, answers, length)), LAST_CHUNK)


def prompts_of(body: Any) -> list[str]:
    prompt = body.get("prompt")
    if prompt is None:
        return [json.dumps(body["messages"])]
    return [prompt] if isinstance(prompt, str) else prompt


def limit_of(path: str, body: Any, prompt_tokens: int) -> int:
    """As vLLM reads it: a completion has 16 unless something is said, and null is something."""
    limit = body.get("max_completion_tokens") if path == CHAT_PATH else None
    if limit is None:
        limit = body.get("max_tokens", 16 if path == COMPLETIONS_PATH else None)
    return WINDOW - prompt_tokens if limit is None else int(limit)


def whole_of(path: str, body: Any, prompt: int, answers: int, length: int) -> dict[str, Any]:
    text, finish = TOKEN * length, "length"
    if path == MESSAGES_PATH:
        content = [{"type": "text", "text": text}]
        usage = {"input_tokens": prompt, "output_tokens": length}
        return {"type": "message", "role": "assistant", "content": content, "stop_reason": "max_tokens", "usage": usage}
    usage = {"prompt_tokens": prompt, "total_tokens": prompt + length, "completion_tokens": length * answers}
    if path == COMPLETIONS_PATH:
        echoed = prompts_of(body)[0] if body.get("echo") else ""
        choices = [{"index": index, "text": echoed + text, "finish_reason": finish} for index in range(answers)]
    else:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if body.get("tools"):
            function = {"name": "f", "arguments": json.dumps({"a": text})}
            message = {
                **message,
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": function}],
            }
        choices = [{"index": index, "message": message, "finish_reason": finish} for index in range(answers)]
    if body.get("logprobs"):
        choices = [
            {**choice, "logprobs": {"content": [{"token": "x", "logprob": -1.0}] * length}} for choice in choices
        ]
    found = {"id": "c", "object": "x", "created": 1, "model": "m", "choices": choices, "usage": usage}
    return found | {"prompt_logprobs": [None, {"1": {"decoded_token": "usage", "rank": 1, "logprob": -1.0}}]}


def event(value: Any, name: str = "") -> bytes:
    return (f"event: {name}\n" if name else "").encode() + b"data: %b\n\n" % json.dumps(
        value, separators=(",", ":")
    ).encode()


def chunk(choices: list[Any], **more: Any) -> bytes:
    return event({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **more})


def first_events(path: str, prompt: int) -> list[bytes]:
    if path != MESSAGES_PATH:
        return []
    message = {"id": "c", "role": "assistant", "usage": {"input_tokens": prompt, "output_tokens": 0}}
    return [event({"type": "message_start", "message": message}, "message_start")]


def word_event(path: str, body: Any, index: int) -> bytes:
    if path == MESSAGES_PATH:
        delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TOKEN}}
        return event(delta, "content_block_delta")
    choice: dict[str, Any] = {"index": index, "finish_reason": None}
    if path == COMPLETIONS_PATH:
        choice["text"] = TOKEN
    elif body.get("tools"):
        choice["delta"] = {"tool_calls": [{"index": 0, "function": {"arguments": TOKEN}}]}
    else:
        choice["delta"] = {"content": TOKEN}
    if body.get("logprobs"):
        choice["logprobs"] = {"content": [{"token": "x", "logprob": -1.0}]}
    return chunk([choice])


def last_events(path: str, prompt: int, answers: int, length: int) -> list[bytes]:
    if path == MESSAGES_PATH:
        delta = {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": length}}
        return [event(delta, "message_delta"), event({"type": "message_stop"}, "message_stop")]
    ends = [chunk([{"index": index, "delta": {}, "text": "", "finish_reason": "length"}]) for index in range(answers)]
    usage = {"prompt_tokens": prompt, "completion_tokens": length * answers, "total_tokens": prompt + length}
    return [*ends, chunk([], usage=usage), b"data: [DONE]\n\n"]


# Ways to ask


@dataclass(frozen=True)
class Way:
    """``leaves``: at a random piece of the answer; "early": before its first byte."""

    path: str
    body: dict[str, Any]
    leaves: str = ""
    cuts: int = 0
    paced: bool = False

    def numbered(self, number: int) -> tuple[str, dict[str, Any]]:
        return self.path.replace("NUMBER", str(number % 7)), self.body


SESSION_PATH = "/v1/sessions/s-NUMBER/chat/completions"
MESSAGE = {**CHAT, "max_tokens": 50_000}
WAYS = {
    "whole": Way(CHAT_PATH, CHAT),
    "streamed": Way(CHAT_PATH, CHAT | STREAM),
    "n": Way(CHAT_PATH, CHAT | {"n": 4}),
    "n, streamed": Way(CHAT_PATH, CHAT | STREAM | {"n": 4}),
    "best_of": Way(COMPLETIONS_PATH, COMPLETION | {"best_of": 4}),
    "null": Way(COMPLETIONS_PATH, COMPLETION),
    "several prompts": Way(COMPLETIONS_PATH, COMPLETION | {"prompt": ["one", "two", "three"], "max_tokens": 50_000}),
    "echo": Way(COMPLETIONS_PATH, COMPLETION | {"echo": True, "max_tokens": 50_000}),
    "logprobs": Way(CHAT_PATH, CHAT | {"logprobs": True, "top_logprobs": 5}),
    "prompt_logprobs": Way(
        CHAT_PATH, CHAT | {"prompt_logprobs": 0, "messages": [{"role": "user", "content": "usage"}]}
    ),
    "tools": Way(CHAT_PATH, CHAT | {"tools": TOOLS}),
    "tools, streamed": Way(CHAT_PATH, CHAT | STREAM | {"tools": TOOLS}),
    "messages": Way(MESSAGES_PATH, MESSAGE),
    "messages, streamed": Way(MESSAGES_PATH, MESSAGE | STREAM),
    "session": Way(SESSION_PATH, CHAT),
    "session, streamed": Way(SESSION_PATH, CHAT | STREAM),
    "responses": Way(RESPONSES_PATH, {"model": "m", "input": "say it"}),
    "responses, streamed": Way(RESPONSES_PATH, {"model": "m", "input": "say it", "stream": True}),
    "cut and resumed": Way(CHAT_PATH, CHAT | STREAM, cuts=12),
}
LEFT = {
    "whole, left": Way(CHAT_PATH, CHAT | {"n": 8}, leaves="early", paced=True),
    "streamed, left": Way(CHAT_PATH, CHAT | STREAM, leaves="midway"),
    "n, left": Way(CHAT_PATH, CHAT | STREAM | {"n": 4}, leaves="midway"),
    "completions, left": Way(COMPLETIONS_PATH, COMPLETION | STREAM, leaves="midway"),
    "several prompts, left": Way(
        COMPLETIONS_PATH, COMPLETION | STREAM | {"prompt": ["one", "two", "three"]}, leaves="midway"
    ),
    "logprobs, left": Way(CHAT_PATH, CHAT | STREAM | {"logprobs": True}, leaves="midway"),
    "tools, left": Way(CHAT_PATH, CHAT | STREAM | {"tools": TOOLS}, leaves="midway"),
    "messages, left": Way(MESSAGES_PATH, MESSAGE | STREAM, leaves="midway"),
    "session, left": Way(SESSION_PATH, CHAT | STREAM, leaves="midway"),
    "cut, resumed and left": Way(CHAT_PATH, CHAT | STREAM, leaves="midway", cuts=12),
}


@asynccontextmanager
async def limited(limit: str, directory: Path) -> AsyncIterator[tuple[Meter, Running]]:
    meter = Meter()
    rules = f"[tenants.acme]\n{limit} = {LIMIT}\n" + entry("acme-1", "acme", ACME)
    async with scripted(meter.serve) as one, scripted(meter.serve) as other:
        for worker in (one, other):
            with_window(worker)
        settings = {
            **keyed(directory / "keys.toml", rules),
            "probes__ejection_s": 0.001,
            "probes__max_ejection_s": 0.001,
        }
        settings |= {"probes__ill_interval_s": 0.005, "admission__no_worker_wait_s": 5.0, "timeout_s": 110.0}
        async with routed(one.url, other.url, **settings) as router:
            await until(lambda: router.fleet.catalog.window("m") == WINDOW)
            yield meter, router


def with_window(worker: ScriptedWorker) -> None:
    card = {"data": [{"id": "m", "max_model_len": WINDOW}]}
    worker.probed["/v1/models"] = json.dumps(card).encode()


async def ask(router: Running, way: Way, number: int, chance: random.Random) -> tuple[int, int]:
    """Status, and how many tokens came."""
    path, body = way.numbered(number)
    async with connected(router) as client:
        await client.post(path, body, bearer(ACME))
        if way.leaves == "early":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(chance.uniform(0.01, 0.2)):  # the client's patience
                    return (await client.head())[0], 0
            return 0, 0
        try:
            if way.leaves:
                return await read_and_leave(client, chance.randrange(1, 40))
            found = await client.answer()
        except Broken as broken:
            return 200, tokens_in(broken.body)
        return found.status, tokens_in(found.body)


async def read_and_leave(client: RawClient, pieces: int) -> tuple[int, int]:
    status, headers = await client.head()
    got = 0
    if headers.get("transfer-encoding") != "chunked":
        return status, 0
    for _ in range(pieces * BATCH):
        piece = await client.chunk()
        if not piece:
            break
        got += tokens_in(piece)
    return status, got


def tokens_in(body: bytes) -> int:
    """Responses tell a whole text again when it is done, and once more with the whole response."""
    if b"event: response." in body:
        body = b"".join(line for line in body.split(b"\n") if b'"type":"response.output_text.delta"' in line)
    return body.count(TOKEN.encode())


async def ask_until_refused(router: Running, way: Way, chance: random.Random, numbers: Iterator[int]) -> int:
    """How many tokens came until the limit refused the next request, or there is no end in sight."""
    got = 0
    for _ in range(200):
        status, tokens = await ask(router, way, next(numbers), chance)
        got += tokens
        if status == 429:
            break
        assert status in (0, 200)
    return got


@pytest.mark.parametrize("at_once", [1, 16])
@pytest.mark.parametrize("short_ones", [0, 60])
@pytest.mark.parametrize("name", [*WAYS, *LEFT])
async def test_a_tenant_gets_no_more_than_its_limit(name: str, short_ones: int, at_once: int, tmp_path: Path) -> None:
    way = {**WAYS, **LEFT}[name]
    chance = random.Random(f"{name} {short_ones} {at_once}")
    async with limited("completion_tokens_per_day", tmp_path) as (meter, router):
        for _ in range(short_ones):
            assert (await post(router, CHAT_PATH, CHAT | {"max_tokens": 1}, bearer(ACME))).status == 200
        meter.cuts, meter.paced = way.cuts, way.paced
        meter.lengths.clear()
        numbers = iter(range(1 << 30))
        tasks = [ask_until_refused(router, way, chance, numbers) for _ in range(at_once)]
        got = short_ones + sum(await asyncio.gather(*tasks))
        assert got <= LIMIT
        ahead = 2 * BATCH * answers_of(way) * len(meter.lengths) if way.leaves else 0
        if not way.cuts:
            assert meter.completion_tokens <= LIMIT + ahead
        if name in LEFT:
            return
        await ask_until_refused(router, way, chance, numbers)
        left = await metric(router, "warmroute_tenant_day_tokens_left", kind="completion")
        assert left <= 2 * WANTED * answers_of(way), "refused while there was room for another"
        if at_once == 1:
            assert meter.lengths[0] == WANTED, "cut short far away from the limit"


def answers_of(way: Way) -> int:
    prompts = way.body.get("prompt")
    of_each = max(int(way.body.get("n", 1)), int(way.body.get("best_of", 1)))
    return of_each * (len(prompts) if isinstance(prompts, list) else 1)


PROMPT = "once upon a time " * 250
"""About 1,060 tokens."""
PROMPT_WAYS = {
    "whole": Way(CHAT_PATH, CHAT | {"max_tokens": 1}),
    "streamed": Way(CHAT_PATH, CHAT | STREAM | {"max_tokens": 1}),
    "echo": Way(COMPLETIONS_PATH, {"model": "m", "prompt": PROMPT, "echo": True, "max_tokens": 1}),
    "several prompts": Way(COMPLETIONS_PATH, {"model": "m", "prompt": [PROMPT, PROMPT], "max_tokens": 1}),
    "messages": Way(MESSAGES_PATH, CHAT | {"max_tokens": 1}),
    "session": Way(SESSION_PATH, CHAT | {"max_tokens": 1}),
    "responses": Way(RESPONSES_PATH, {"model": "m", "input": PROMPT, "max_output_tokens": 1}),
    "left before the first byte": Way(CHAT_PATH, CHAT, leaves="early", paced=True),
    "left midway": Way(CHAT_PATH, CHAT | STREAM, leaves="midway"),
    "messages, left midway": Way(MESSAGES_PATH, MESSAGE | STREAM, leaves="midway"),
}


@pytest.mark.parametrize("at_once", [1, 16])
@pytest.mark.parametrize("name", PROMPT_WAYS)
async def test_workers_compute_no_more_of_a_tenants_prompts_than_its_limit(
    name: str, at_once: int, tmp_path: Path
) -> None:
    """A prompt is reserved by its bytes: workers may count a little more, by which the limit may be passed once."""
    way = PROMPT_WAYS[name]
    if "messages" in way.body:
        way = Way(way.path, way.body | {"messages": [{"role": "user", "content": PROMPT}]}, way.leaves, 0, way.paced)
    chance = random.Random(f"{name} {at_once}")
    async with limited("prompt_tokens_per_day", tmp_path) as (meter, router):
        meter.paced = way.paced
        numbers = iter(range(1 << 30))
        refused = [prompts_until_refused(router, way, chance, numbers) for _ in range(at_once)]
        await asyncio.gather(*refused)
        assert meter.prompt_tokens <= LIMIT * 1.03
        assert await metric(router, "warmroute_admission_refusals_total", reason="budget_exceeded") >= 1
        if not way.leaves:
            left = await metric(router, "warmroute_tenant_day_tokens_left", kind="prompt")
            assert left <= 3 * len(PROMPT) // 4 or "session" in name, "refused while there was room for another"


async def prompts_until_refused(router: Running, way: Way, chance: random.Random, numbers: Iterator[int]) -> None:
    for _ in range(60):
        if (await ask(router, way, next(numbers), chance))[0] == 429:
            break


async def test_a_stream_that_goes_on_exactly_where_it_was_cut_counts_once_against_the_limit(tmp_path: Path) -> None:
    simulated = SimulatorSettings(workers=2, base_port=0, time_scale=10_000.0, stream_interval_ms=0.0)
    rules = f"[tenants.acme]\ncompletion_tokens_per_day = 600\n{entry('acme-1', 'acme', ACME)}"
    settings = {**keyed(tmp_path / "keys.toml", rules), "policy__name": "round_robin", "probes__ejection_s": 0.001}
    body = {"model": "sim", "messages": [{"role": "user", "content": "say it"}], "max_tokens": 100, "stream": True}
    body |= {"temperature": 0, "stream_options": {"include_usage": True}}
    got: list[int] = []
    async with await start_fleet(simulated) as fleet, routed(*fleet.urls, timeout_s=60.0, **settings) as router:
        while len(got) < 50:
            fleet.set_fault(len(got) % 2, Fault.CUT, after_events=5 + len(got))
            found = await post(router, CHAT_PATH, body, bearer(ACME))
            if found.status == 429:
                break
            with contextlib.suppress(StopIteration):
                usage = next(line for line in found.body.split(b"\n") if b'"usage":{' in line)
                got.append(json.loads(usage[6:])["usage"]["completion_tokens"])
        assert await metric(router, "warmroute_resumptions_total", outcome="exact") >= 1
        left = await metric(router, "warmroute_tenant_day_tokens_left", kind="completion")
    assert 0 < sum(got) <= 600 - left
