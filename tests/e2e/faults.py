"""A router that has to stand a fault, what is asserted behind each of them, and clients that compare every token."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from router.app.serve import Running
from router.simulator import SimulatedFleet
from tests.e2e.routed import Broken, connected, get_admin, is_quiet, routed, until

CHAT_PATH, COMPLETIONS_PATH, MESSAGES_PATH = "/v1/chat/completions", "/v1/completions", "/v1/messages"
LEFT_WITHIN_S = 5.0
MAX_AMPLIFICATION, MIN_RETRIES = 1.2, 3


@asynccontextmanager
async def faulted(*workers: str, **settings: Any) -> AsyncIterator[Running]:
    """A router as ``routed`` gives it. Behind the block nothing of what was done is left: no lease, no request, no kept byte,
    no task, no socket; and workers were asked little more often than clients asked, but for those that died of it or were
    busy: they did none of the work."""
    tasks, files = asyncio.all_tasks(), open_files()
    async with routed(*workers, **{"admin__decisions": 20_000, **settings}) as router:
        yield router
        await until(lambda: is_quiet(router), LEFT_WITHIN_S)
        await _require_no_trace(router)
    await until(lambda: open_files() <= files and asyncio.all_tasks() <= tasks, LEFT_WITHIN_S)


async def _require_no_trace(router: Running) -> None:
    assert not sum(abs(tokens) for tokens in router.fleet.figures.queued_prefill_tokens)
    for name in ("resumption_kept_bytes", "live_requests", "retries_in_flight"):
        assert await metric(router, f"warmroute_{name}") == 0, name
    decisions = await decisions_of(router)
    attempts = sum(decision["attempts"] for decision in decisions)
    forced = await metric(router, "warmroute_resumptions_total", cause="died")
    forced += sum(cause in ("died", "connect", "busy") for decision in decisions for cause in decision["retries"])
    assert attempts - forced <= MAX_AMPLIFICATION * len(decisions) + MIN_RETRIES


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def metric(router: Running, name: str, **labels: str) -> float:
    """The sum over the series that have these labels."""
    text = (await get_admin(router, "/metrics")).body.decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items())


async def decisions_of(router: Running) -> list[dict[str, Any]]:
    """Newest first."""
    found: list[dict[str, Any]] = (await get_admin(router, "/decisions")).json["decisions"]
    return found


async def ejections_of(router: Running) -> float:
    return await metric(router, "warmroute_worker_ejections_total")


def number_of(router: Running, fleet: SimulatedFleet, name: str) -> int:
    """Which worker of the fleet the router calls so."""
    return fleet.urls.index(next(member.address.url for member in router.fleet.members() if member.name == name))


def all_up(router: Running, workers: int) -> bool:
    return (
        len(router.fleet.catalog.eligible("sim").positions) == workers
        and not router.fleet.catalog.eligible("sim").panic
    )


@dataclass(slots=True)
class Told:
    """What a client was told by one stream, so that two of them can be compared."""

    worker: str = field(default="", compare=False)
    text: str = ""
    ids: list[int] = field(default_factory=list)
    prompt_ids: list[int] = field(default_factory=list)
    ends: list[tuple[str, Any]] = field(default_factory=list)
    usage: list[tuple[int, int]] = field(default_factory=list)
    roles: int = 0
    names: int = 0
    """How many ids, times of creation and models its chunks named: one, or two streams were glued together."""
    is_done: bool = False
    events: int = field(default=0, compare=False)


async def listen(router: Running, path: str, body: dict[str, Any]) -> Told:
    """Raises Broken, AssertionError for what is no stream."""
    async with connected(router) as client:
        await client.post(path, {**body, "stream": True})
        answer = await client.answer()
    assert answer.status == 200, answer.body
    return told(answer.body, answer.headers["x-warmroute-worker"])


def told(body: bytes, worker: str = "") -> Told:
    """Every event has to be JSON, but for the last."""
    found, names = Told(worker), set()
    events = [event.removeprefix("data: ") for event in body.decode().split("\n\n")[:-1]]
    found.events = len(events)
    for number, event in enumerate(events):
        if event == "[DONE]":
            assert number == len(events) - 1
            found.is_done = True
            continue
        chunk = json.loads(event)
        assert "error" not in chunk, event
        names.add((chunk["id"], chunk["created"], chunk["model"]))
        found.prompt_ids += chunk.get("prompt_token_ids") or []
        for choice in chunk["choices"]:
            _take(choice, found)
        if usage := chunk.get("usage"):
            found.usage.append((usage["prompt_tokens"], usage["completion_tokens"]))
    found.names = len(names)
    return found


def _take(choice: dict[str, Any], found: Told) -> None:
    delta = choice.get("delta", choice)
    found.roles += "role" in delta
    found.text += delta.get("content") or delta.get("text") or ""
    found.ids += choice.get("token_ids") or []
    found.prompt_ids += choice.get("prompt_token_ids") or []
    if choice["finish_reason"]:
        found.ends.append((choice["finish_reason"], choice.get("stop_reason")))


async def broken_stream(router: Running, path: str, body: dict[str, Any]) -> bytes:
    """What came of a stream that must not end cleanly."""
    async with connected(router) as client:
        await client.post(path, {**body, "stream": True})
        try:
            answer = await client.answer()
        except Broken as broken:
            return broken.body
    raise AssertionError(f"it ended cleanly: {answer.body!r}")
