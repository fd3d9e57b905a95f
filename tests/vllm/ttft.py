"""Times to first token: measured on a real worker, and predicted by the simulator's engine for the same arrivals.

A *scene* is some requests that arrive together; a measurement is when each got its first token, in seconds after the
first was sent. Prompts are token ids drawn at random, so that a cold prompt was never seen and a warm one was seen
whole. Calibration uses a few scenes of one request and one of many, and every other scene is a prediction.

A scene's figures are those of its fastest round: the machine is shared, and whatever else runs on it only ever adds.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import aiohttp

from router.simulator.engine import NS_PER_S, Engine, EngineLimits, Generation
from router.simulator.prefix_cache import PrefixCache
from tests.vllm.lab import BLOCK_TOKENS, CACHE_BLOCKS, MAX_NUM_BATCHED_TOKENS, MAX_NUM_SEQS, MODEL

OUTPUT_TOKENS = 8
VOCABULARY = range(300, 8000)


@dataclass(frozen=True, slots=True)
class Scene:
    """``count`` requests of ``prompt_tokens`` each that arrive together."""

    prompt_tokens: int
    count: int = 1
    is_warm: bool = False

    @property
    def name(self) -> str:
        return f"{self.count} x {self.prompt_tokens} {'warm' if self.is_warm else 'cold'}"


@dataclass(frozen=True, slots=True)
class Measured:
    """Of the fastest round: when the k-th first token came, and how long after the first each request was sent.

    ``round_means_s``: the mean first token of every round, in order of time.
    """

    scene: Scene
    ttft_s: Sequence[float]
    sent_s: Sequence[float]
    round_means_s: Sequence[float]


@dataclass(frozen=True, slots=True)
class Calibration:
    """The simulator's parameters. A lone token's gap is taken as the fixed cost of any step, prefill or not.

    ``request_work_s`` and ``token_work_s`` are the front end's, for each request and for each token of its prompt.
    """

    prefill_rate: float
    attention_cost: float
    step_overhead_s: float
    request_overhead_s: float
    request_work_s: float
    token_work_s: float


CALIBRATION_SCENES = (
    Scene(1000),
    Scene(4000),
    Scene(8000),
    Scene(500, is_warm=True),
    Scene(8000, is_warm=True),
    Scene(500, count=8, is_warm=True),
)
PREDICTED_SCENES = (
    Scene(500),
    Scene(2000),
    Scene(6000),
    Scene(1000, is_warm=True),
    Scene(2000, is_warm=True),
    Scene(4000, is_warm=True),
    Scene(1000, count=2),
    Scene(1000, count=4),
    Scene(1000, count=8),
    Scene(2000, count=4),
    Scene(1000, count=2, is_warm=True),
    Scene(1000, count=4, is_warm=True),
    Scene(1000, count=8, is_warm=True),
    Scene(4000, count=4, is_warm=True),
)


async def measure(url: str, scenes: Sequence[Scene], rounds: int, draw: random.Random) -> tuple[list[Measured], float]:
    """The scenes, and the gap between two tokens of a lone stream, in seconds.

    Every scene is played once a round, so that a machine that is slow for a while is slow for all of them.
    """
    itls_s: list[float] = []
    runs: list[list[list[tuple[float, float]]]] = [[] for _ in scenes]
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=300)) as session:
        await _play(session, [_prompt(draw, 64)])
        for _ in range(rounds):
            itls_s.append(await _measure_itl(session, draw))
            for scene, of_scene in zip(scenes, runs, strict=True):
                of_scene.append(await _play_scene(session, scene, draw))
    measured = [_summarise(scene, of_scene) for scene, of_scene in zip(scenes, runs, strict=True)]
    # The median here: tokens that the client was late to read look closer than they were.
    return measured, statistics.median(itls_s)


async def _measure_itl(session: aiohttp.ClientSession, draw: random.Random, tokens: int = 64) -> float:
    stamps = [stamp async for stamp in _stream(session, _prompt(draw, 200), tokens)]
    return (stamps[-1] - stamps[0]) / (tokens - 1)


async def _play_scene(session: aiohttp.ClientSession, scene: Scene, draw: random.Random) -> list[tuple[float, float]]:
    prompts = [_prompt(draw, scene.prompt_tokens) for _ in range(scene.count)]
    if scene.is_warm:
        for prompt in prompts:
            await _play(session, [prompt])
    return await _play(session, prompts)


def _summarise(scene: Scene, runs: Sequence[Sequence[tuple[float, float]]]) -> Measured:
    means_s = [statistics.mean(first for _, first in run) for run in runs]
    fastest = runs[means_s.index(min(means_s))]
    return Measured(scene, sorted(first for _, first in fastest), [sent for sent, _ in fastest], means_s)


async def _play(session: aiohttp.ClientSession, prompts: Sequence[Sequence[int]]) -> list[tuple[float, float]]:
    """Send all at once; for each request when it was sent and when its first token came, after the first sending."""
    began = time.perf_counter()

    async def one(prompt: Sequence[int]) -> tuple[float, float]:
        sent = time.perf_counter()
        stamps = [stamp async for stamp in _stream(session, prompt, OUTPUT_TOKENS)]
        return sent - began, stamps[0] - began

    return await asyncio.gather(*(one(prompt) for prompt in prompts))


async def _stream(session: aiohttp.ClientSession, prompt: Sequence[int], tokens: int) -> AsyncIterator[float]:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "stream": True, "ignore_eos": True}
    async with session.post("/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if line.startswith(b"data: {") and json.loads(line[6:])["choices"]:
                yield time.perf_counter()


def _prompt(draw: random.Random, tokens: int) -> list[int]:
    return draw.choices(VOCABULARY, k=tokens)


def calibrate(points: Sequence[Measured], itl_s: float) -> Calibration:
    """Fit the mean first token of all but a scene's first request, or of its only one; relative errors count.

    It is linear in all parameters but the overhead of steps:

        overhead + n · (w + v · prompt) + fresh · p + a · fresh · context + steps · itl

    n requests that come together are through the front end together, so that each waits for the work of all. A
    chunk of u tokens on c tokens of context costs u · p + a · u · (c + u/2), so that a whole prompt costs the same
    however it is cut. The first of several decodes by the time, and the others wait for half of a step of that.
    """
    rows, targets = [], []
    for point in points:
        count, total = point.scene.count, point.scene.prompt_tokens
        seconds = statistics.mean(point.ttft_s[1:] or point.ttft_s)
        cached = (total - 1) // BLOCK_TOKENS * BLOCK_TOKENS if point.scene.is_warm else 0
        fresh = total - cached
        steps = -(-fresh // MAX_NUM_BATCHED_TOKENS) + (0.5 if count > 1 else 0.0)
        in_step = fresh * max(1, count - 1)
        costs = [1, count, count * total, in_step, in_step * (cached + fresh / 2)]
        rows.append([cost / seconds for cost in costs])
        targets.append(1 - steps * itl_s / seconds)
    overhead_s, work_s, token_work_s, per_token_s, attention_cost = _least_squares(rows, targets)
    return Calibration(1 / per_token_s, attention_cost, itl_s, max(0.0, overhead_s), work_s, token_work_s)


def _least_squares(rows: Sequence[Sequence[float]], targets: Sequence[float]) -> list[float]:
    """By the normal equations, each column scaled to 1."""
    width = len(rows[0])
    scales = [max(abs(row[i]) for row in rows) for i in range(width)]
    scaled = [[row[i] / scales[i] for i in range(width)] for row in rows]
    system = [
        [sum(row[i] * row[j] for row in scaled) for j in range(width)]
        + [sum(row[i] * target for row, target in zip(scaled, targets, strict=True))]
        for i in range(width)
    ]
    for pivot in range(width):
        for other in range(width):
            if other != pivot:
                factor = system[other][pivot] / system[pivot][pivot]
                system[other] = [x - factor * y for x, y in zip(system[other], system[pivot], strict=True)]
    return [system[i][width] / system[i][i] / scales[i] for i in range(width)]


def predict(calibration: Calibration, measured: Measured) -> list[float]:
    """When the simulator's engine gives the k-th first token, for the arrivals of ``measured``."""
    scene = measured.scene
    latency_ns = round(calibration.request_overhead_s * NS_PER_S)
    engine = Engine(_limits(calibration), PrefixCache(CACHE_BLOCKS), request_latency_ns=latency_ns)
    work_ns = round((calibration.request_work_s + calibration.token_work_s * scene.prompt_tokens) * NS_PER_S)
    now_ns = 0
    if scene.is_warm:
        for index in range(scene.count):
            engine.submit(_generation(scene, index), now_ns)
            now_ns = _run_dry(engine, now_ns)
    generations = [_generation(scene, index) for index in range(scene.count)]
    for generation, sent_s in zip(generations, sorted(measured.sent_s), strict=True):
        engine.submit(generation, now_ns + round(sent_s * NS_PER_S), work_ns)
    _run_dry(engine, now_ns)
    return sorted((generation.first_ns - now_ns) / NS_PER_S for generation in generations)


def _limits(calibration: Calibration) -> EngineLimits:
    return EngineLimits(
        block_tokens=BLOCK_TOKENS,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
        prefill_rate=calibration.prefill_rate,
        attention_cost=calibration.attention_cost,
        itl_ns=0,
        step_overhead_ns=round(calibration.step_overhead_s * NS_PER_S),
    )


def _generation(scene: Scene, index: int) -> Generation:
    blocks = scene.prompt_tokens // BLOCK_TOKENS
    hashes = range(index * CACHE_BLOCKS, index * CACHE_BLOCKS + blocks)
    return Generation(prompt_tokens=scene.prompt_tokens, output_tokens=OUTPUT_TOKENS, hashes=hashes)


def _run_dry(engine: Engine, now_ns: int) -> int:
    """Advance until nothing is left to do; the time of the last event."""
    while (next_ns := engine.next_event_ns()) is not None:
        now_ns = next_ns
        engine.advance(now_ns)
    return now_ns
