"""Texts counted by the workers that will read them, over vLLM's /tokenize: always the right tokenizer, for a round trip.

A request has one text, so several are under way at once. There are no retries: whoever asks has an estimate to fall back on,
and a turn that waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from router.core.errors import RouterError
from router.core.fleet.fleet import Fleet
from router.core.request.attempt import AttemptFailed
from router.core.worker import WorkerAddress
from router.proxy.ports import Upstream
from router.sessions.tokens.counter import CannotCount, CounterName

MAX_TOKENS_PER_BYTE = 8
"""A worker that counts more is mistaken, whatever its tokenizer makes of a text before it cuts it."""


class _Answer(msgspec.Struct):
    count: int


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    timeout_s: float
    """For all texts of a call together, from its beginning."""
    max_calls: int
    """Requests that may be under way at once, of all calls."""


class WorkerCounter:
    """One for all models whose workers count."""

    name: CounterName = "worker"

    def __init__(self, fleet: Fleet, upstream: Upstream, limits: WorkerLimits) -> None:
        self._fleet = fleet
        self._upstream = upstream
        self._timeout_s = limits.timeout_s
        self._seats = asyncio.Semaphore(limits.max_calls)

    async def count(self, model: str, texts: Sequence[str]) -> Sequence[int]:
        """Raises CannotCount."""
        worker = self._choose(model)
        try:
            async with asyncio.timeout(self._timeout_s):
                counts = await asyncio.gather(*(self._count(worker, model, text) for text in texts))
        except TimeoutError:
            raise CannotCount("timeout", "no worker counted in time") from None
        return [_require(count) for count in counts]

    def _choose(self, model: str) -> WorkerAddress:
        """The one with the fewest requests. Raises CannotCount."""
        fleet = self._fleet
        try:
            eligible = fleet.catalog.eligible(model)
        except RouterError:
            raise CannotCount("no_worker", "no worker serves the model") from None
        if eligible.panic:
            raise CannotCount("no_worker", "all workers of the model are ejected")
        least = min(
            eligible.positions, key=lambda at: fleet.figures.in_flight[at] + fleet.figures.foreign_in_flight[at]
        )
        return fleet.member(least).address

    async def _count(self, worker: WorkerAddress, model: str, text: str) -> int | str:
        """Or why not."""
        body = msgspec.json.encode({"model": model, "prompt": text, "add_special_tokens": False})
        async with self._seats:
            try:
                with self._upstream.exchange(worker) as exchange:
                    reply = await exchange.post("/tokenize", body, self._timeout_s)
            except AttemptFailed as error:
                return f"the worker failed: {type(error).__name__}"
        if reply.status != 200 or reply.is_stream:
            return f"the worker answered {reply.status}"
        try:
            count = msgspec.json.decode(reply.body, type=_Answer).count
        except (msgspec.DecodeError, UnicodeDecodeError):
            return "the worker's answer cannot be understood"
        return count if 0 <= count <= MAX_TOKENS_PER_BYTE * len(body) else "the worker counts what cannot be"


def _require(count: int | str) -> int:
    """Raises CannotCount."""
    if isinstance(count, str):
        raise CannotCount("worker", count)
    return count
