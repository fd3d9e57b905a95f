"""The measured cases. Each runs one load through one router and gives figures by name.

A case warms its connections up first, then measures inside a window, and checks every answer of the whole run.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.cpu.accounting import CpuReading, read_cpu
from bench.cpu.bodies import Conversation
from bench.cpu.client import Load
from bench.cpu.routers import Router

GAP_S = 0.01
STREAMS = 50
WARM_UP_S = 0.5


@dataclass(frozen=True, slots=True)
class Outcome:
    figures: Mapping[str, float]
    requests: int
    failures: int
    complaints: Sequence[str]


Case = Callable[[Router, Sequence[Conversation], float], Awaitable[Outcome]]


def _read(router: Router) -> CpuReading:
    return CpuReading({}, {}) if router.pid is None else read_cpu(router.pid)


def _outcome(load: Load, **figures: float) -> Outcome:
    tally = load.tally
    return Outcome(figures, tally.requests, tally.failures, tuple(tally.complaints))


async def measure_requests(
    router: Router, conversations: Sequence[Conversation], seconds: float, connections: int, per_second: float = 0.0
) -> Outcome:
    """Non-streamed requests, as fast as they go or ``per_second``: µs of CPU for each, and the median latency in ms."""
    period_s = connections / per_second if per_second else 0.0
    load = Load(router.ports, conversations, period_s=period_s)
    await load.connect(connections)
    await load.start(period_s / connections)
    await asyncio.sleep(WARM_UP_S)
    answered, before, began = load.tally.requests, _read(router), time.perf_counter()
    await asyncio.sleep(seconds)
    after, elapsed_s = _read(router), time.perf_counter() - began
    latencies_s = load.tally.latencies_s[answered:]
    await load.stop()
    if not latencies_s:
        return _outcome(load)
    return _outcome(
        load,
        cpu_us=after.seconds_since(before) / len(latencies_s) * 1e6,
        per_second=len(latencies_s) / elapsed_s,
        p50_ms=statistics.median(latencies_s) * 1e3,
    )


async def measure_stream(router: Router, conversations: Sequence[Conversation], seconds: float) -> Outcome:
    """``STREAMS`` streams side by side, one event every ``GAP_S`` in each: µs of CPU for each event.

    The window lies inside all streams: neither their requests nor their ends are counted.
    """
    spread_s = 2 * GAP_S
    opening_s = STREAMS * spread_s + WARM_UP_S
    load = Load(router.ports, conversations, stream_events=round((opening_s + seconds + 0.5) / GAP_S))
    await load.connect(STREAMS)
    began = time.perf_counter()
    await load.start(spread_s * 0.97, limit=STREAMS)
    await asyncio.sleep(max(0.0, began + opening_s - time.perf_counter()))
    events, before, opened = load.tally.events, _read(router), time.perf_counter()
    await asyncio.sleep(seconds)
    seen, after, elapsed_s = load.tally.events - events, _read(router), time.perf_counter() - opened
    await load.stop()
    if not seen:
        return _outcome(load)
    return _outcome(load, cpu_us=after.seconds_since(before) / seen * 1e6, per_second=seen / elapsed_s)


async def measure_idle(router: Router, _: Sequence[Conversation], seconds: float) -> Outcome:
    """What a router costs that serves nobody: probes and polls, in ms of CPU for each second."""
    before, began = _read(router), time.perf_counter()
    await asyncio.sleep(seconds)
    used_s = _read(router).seconds_since(before)
    return Outcome({"cpu_ms_per_s": used_s / (time.perf_counter() - began) * 1e3}, 0, 0, ())
