"""Each documented bound, pressed upon by hostile clients: a line of BOUNDS says which setting it is, who presses, and which
metric shows how full it is.

Asserted of each: the metric comes near its bound and never passes it; the router's memory grows by what the bound allows and
MORE_BYTES at the most; meanwhile the other tenant's requests are all answered; and when the pressure ends, metric and memory
are back where they were. Times are only held against ceilings that a busy machine does not reach.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import pytest

from bench.hostile_clients import KINDS
from bench.pressure import TOKEN, Asked, Metrics, Router, hostile_clients, router_before, shaped_workers, until

pytestmark = pytest.mark.system

KB, MB = 1 << 10, 1 << 20
MORE_BYTES = 64 * MB
LEFT_BYTES = 32 * MB
BACK_WITHIN_S = 25.0
SLOWEST_S = 5.0
RATE = 20.0
MIN_ANSWERS = 10
LOOK_EVERY_S, MIN_LOOKS, MAX_LOOKS = 0.05, 20, 300


@dataclass(frozen=True, slots=True)
class Bound:
    """``setting`` is ``value`` in this test, so ``metric`` is at most ``most``. ``connections`` of ``kind`` press until it has
    come to ``reaches`` of that. ``bytes``: what the router may take for it. ``stays``: what is remembered is not given back.
    ``beside``: other settings."""

    setting: str
    value: int
    kind: str
    connections: int
    metric: str
    labels: Mapping[str, str] = field(default_factory=dict)
    reaches: float = 0.9
    bytes: int = 0
    stays: bool = False
    most: int = 0
    beside: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "most", self.most or self.value)

    def __str__(self) -> str:
        return f"{self.setting}-{self.kind}"

    @property
    def settings(self) -> dict[str, str]:
        return {"limits.write_stall_s": "5", self.setting: str(self.value), **self.beside}

    def fill(self, metrics: Metrics) -> float:
        return metrics.sum_of(self.metric, **self.labels)


HELD = "limits.max_held_bytes"
LONG_HEADS = {"limits.max_head_bytes": str(MB)}  # so that one is not refused before they are many
FEW = {"admission.max_worker_requests": "2"}

BOUNDS = (
    # Connections and heads
    Bound("limits.max_connections", 100, "silence", 200, "client_connections"),
    Bound("limits.max_key_connections", 3, "small_unfinished_bodies", 100, "peak_key_connections", bytes=48 * MB),
    Bound("limits.max_total_head_bytes", MB, "unfinished_heads", 200, "head_bytes", bytes=2 * MB),
    Bound(
        "limits.max_total_head_bytes",
        MB,
        "endless_heads",
        100,
        "head_bytes",
        bytes=2 * MB,
        reaches=0.3,
        beside=LONG_HEADS,
    ),
    # What is held of requests and answers, of which a tenant alone has half
    Bound(HELD, 32 * MB, "unfinished_bodies", 50, "held_bytes", {"kind": "body"}, 0.4, 32 * MB),
    Bound(HELD, 32 * MB, "costly_turns", 50, "held_bytes", {"kind": "decoded"}, 0.3, 32 * MB),
    Bound(HELD, 32 * MB, "unfinished_answers", 50, "held_bytes", {"kind": "reply"}, 0.3, 32 * MB),
    Bound(HELD, 32 * MB, "unread_answers", 50, "held_bytes", {"kind": "reply"}, 0.3, 32 * MB),
    Bound(HELD, 2 * MB, "unread_streams", 100, "held_bytes", {"kind": "unread"}, 0.2, 32 * MB),
    Bound("limits.max_parsing_bodies", 3, "costly_bodies", 10, "parsing_processes", reaches=0.6, bytes=64 * MB),
    # The queue
    Bound("admission.max_queued", 50, "waiting_answers", 200, "queue_depth", beside=FEW),
    Bound("admission.max_queued_bytes", 200 * KB, "waiting_answers", 200, "queue_bytes", beside=FEW),
    # What is remembered
    Bound("resumption.max_total_kept_bytes", 4 * MB, "long_streams", 60, "resumption_kept_bytes", bytes=12 * MB),
    Bound("index.max_blocks", 1024, "prompts", 10, "prefix_index_blocks", reaches=0.45, stays=True),
    Bound("index.max_sessions", 100, "prompts", 10, "remembered_sessions", stays=True),
    Bound("sessions.max_cache_bytes", 4 * MB, "turns", 50, "session_cache_bytes", bytes=32 * MB, stays=True),
    Bound("admin.decisions", 50, "quick_answers", 20, "remembered_decisions", stays=True),
    # The admin port
    Bound("admin.max_viewers", 4, "viewers", 20, "status_viewers"),
    Bound("admin.max_viewers", 4, "admin_silence", 200, "admin_connections", most=68),
    Bound("admin.max_viewers", 4, "guesses", 60, "admin_wrong_tokens", most=1024, beside={"admin.token": TOKEN}),
)


@pytest.fixture
async def workers() -> AsyncIterator[list[str]]:
    async with shaped_workers() as urls:
        yield urls


@dataclass(slots=True)
class Peaks:
    """The most that was seen."""

    fill: float = 0.0
    memory_bytes: int = 0

    async def look(self, router: Router, bound: Bound) -> None:
        self.fill = max(self.fill, bound.fill(await router.metrics()))
        self.memory_bytes = max(self.memory_bytes, router.memory_bytes())


async def fill(router: Router, bound: Bound, asked: Asked) -> Peaks:
    """Press until the bound is met, and a little longer. Raises AssertionError."""
    kind, peaks, looks = KINDS[bound.kind], Peaks(), 0
    async with hostile_clients(bound.kind, router, bound.connections, is_for_admin_port=kind.is_for_admin_port):
        for looks in range(MAX_LOOKS):
            await peaks.look(router, bound)
            if looks >= MIN_LOOKS and peaks.fill >= bound.reaches * bound.most and len(asked.times_s) >= MIN_ANSWERS:
                return peaks
            await asyncio.sleep(LOOK_EVERY_S)
    pytest.fail(f"{bound.metric} came to {peaks.fill:g} of {bound.most:g}")


async def is_back(router: Router, bound: Bound, fill: float, memory_bytes: int) -> bool:
    is_empty = bound.stays or bound.fill(await router.metrics()) <= fill
    return is_empty and router.memory_bytes() - memory_bytes < (bound.bytes if bound.stays else 0) + LEFT_BYTES


@pytest.mark.parametrize("bound", BOUNDS, ids=str)
async def test_a_bound_holds_under_pressure_and_is_given_back(bound: Bound, workers: list[str]) -> None:
    async with router_before(workers, bound.settings) as router:
        before, memory_bytes = bound.fill(await router.metrics()), router.memory_bytes()
        async with router.asked_on(RATE) as asked:
            peaks = await fill(router, bound, asked)
        grown_bytes = peaks.memory_bytes - memory_bytes
        figures = (
            f"{peaks.fill:g} of {bound.most:g}, {grown_bytes / MB:+.0f} MB, {asked.ms(0.5):g} to {asked.ms(1):g} ms"
        )
        print(f"{bound}: {figures}")  # with -s: how near the bounds it is
        assert peaks.fill <= bound.most
        assert grown_bytes < bound.bytes + MORE_BYTES
        assert not asked.errors
        assert max(asked.times_s) < SLOWEST_S
        await until(lambda: is_back(router, bound, before, memory_bytes), BACK_WITHIN_S)
