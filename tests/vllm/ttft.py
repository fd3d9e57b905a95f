"""Times to first token: measured on a real worker, and predicted by the simulator's engine for the same arrivals.

A *scene* is some requests that arrive together; a measurement is when each got its first token, in seconds after the
first was sent. Prompts are token ids drawn at random, so that a cold prompt was never seen and a warm one was seen
whole. Calibration uses a few scenes of one request, and every other scene is a prediction.
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
    """Medians over the rounds: when the k-th first token came, and how long after the first each request was sent."""

    scene: Scene
    ttft_s: Sequence[float]
    sent_s: Sequence[float]


@dataclass(frozen=True, slots=True)
class Calibration:
    """The simulator's parameters. A lone token's gap is taken as the fixed cost of any step, prefill or not."""

    prefill_rate: float
    attention_cost: float
    step_overhead_s: float
    request_overhead_s: float


CALIBRATION_SCENES = (Scene(1000), Scene(4000), Scene(8000), Scene(500, is_warm=True), Scene(8000, is_warm=True))
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
    Scene(1000, count=8, is_warm=True),
    Scene(4000, count=4, is_warm=True),
)


async def measure(url: str, scenes: Sequence[Scene], rounds: int, draw: random.Random) -> list[Measured]:
    """Every scene once a round, so that a machine that is slow for a while is slow for all of them."""
    runs: list[list[list[tuple[float, float]]]] = [[] for _ in scenes]
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=300)) as session:
        await _play(session, [_prompt(draw, 64)])
        for _ in range(rounds):
            for scene, of_scene in zip(scenes, runs, strict=True):
                of_scene.append(await _play_scene(session, scene, draw))
    return [_summarise(scene, of_scene) for scene, of_scene in zip(scenes, runs, strict=True)]


async def measure_itl(url: str, draw: random.Random, tokens: int = 64) -> float:
    """Mean gap between two tokens of a lone stream, in seconds."""
    gaps_s = []
    async with aiohttp.ClientSession(url) as session:
        for _ in range(5):
            stamps = [stamp async for stamp in _stream(session, _prompt(draw, 200), tokens)]
            gaps_s.append((stamps[-1] - stamps[0]) / (tokens - 1))
    return statistics.median(gaps_s)


async def _play_scene(session: aiohttp.ClientSession, scene: Scene, draw: random.Random) -> list[tuple[float, float]]:
    prompts = [_prompt(draw, scene.prompt_tokens) for _ in range(scene.count)]
    if scene.is_warm:
        for prompt in prompts:
            await _play(session, [prompt])
    return await _play(session, prompts)


def _summarise(scene: Scene, runs: Sequence[Sequence[tuple[float, float]]]) -> Measured:
    firsts = [sorted(first for _, first in run) for run in runs]
    sent = [[at for at, _ in run] for run in runs]
    return Measured(scene, _medians(firsts), _medians(sent))


def _medians(runs: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.median(column) for column in zip(*runs, strict=True)]


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
    """Fit overhead + p · tokens + a · tokens · context to scenes of one request; relative errors count.

    A chunk of u tokens on c tokens of context costs u/rate + a · u · (c + u/2), so that a whole prompt costs the same
    however it is cut, but for the steps' overhead.
    """
    rows, targets = [], []
    for point in points:
        total, seconds = point.scene.prompt_tokens, point.ttft_s[0]
        cached = (total - 1) // BLOCK_TOKENS * BLOCK_TOKENS if point.scene.is_warm else 0
        fresh = total - cached
        steps = -(-fresh // MAX_NUM_BATCHED_TOKENS)
        rows.append([1 / seconds, fresh / seconds, fresh * (cached + fresh / 2) / seconds])
        targets.append(1 - steps * itl_s / seconds)
    overhead_s, per_token_s, attention_cost = _least_squares(rows, targets)
    return Calibration(1 / per_token_s, attention_cost, itl_s, overhead_s)


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
    engine = Engine(_limits(calibration), PrefixCache(CACHE_BLOCKS))
    now_ns = 0
    if scene.is_warm:
        for index in range(scene.count):
            engine.submit(_generation(scene, index), now_ns)
            now_ns = _run_dry(engine, now_ns)
    generations = [_generation(scene, index) for index in range(scene.count)]
    for generation, sent_s in zip(generations, sorted(measured.sent_s), strict=True):
        sent_ns = now_ns + round(sent_s * NS_PER_S)
        engine.submit(generation, sent_ns, sent_ns + round(calibration.request_overhead_s * NS_PER_S))
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
