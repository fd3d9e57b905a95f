"""Counts texts by the workers that will read them, over vLLM's /tokenize: always the right tokenizer, for a round trip.

A request has one text, so several are under way at once. Nothing is retried: an estimate takes the place of a failed count, and
a turn is waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from router.core.errors import RouterError
from router.core.fleet.fleet import Fleet
from router.core.request.attempt import AttemptFailed
from router.core.worker import WorkerAddress
from router.proxy.ports import Upstream
from router.sessions.tokens.counter import CannotCount, CounterName

MAX_TOKENS_PER_BYTE = 8
"""Most tokens that a worker may count a byte. One that counts more is mistaken."""


class _Answer(msgspec.Struct):
    count: int


TIMEOUT_S = 0.25
"""For all texts of a turn together."""

MAX_CALLS = 16
"""Texts that workers count at once; others wait."""


class WorkerCounter:
    """One for all models whose workers count."""

    name: CounterName = "worker"

    def __init__(self, fleet: Fleet, upstream: Upstream) -> None:
        self._fleet = fleet
        self._upstream = upstream
        self._seats = asyncio.Semaphore(MAX_CALLS)

    async def count(self, model: str, texts: Sequence[str]) -> Sequence[int]:
        """Raises CannotCount."""
        worker = self._choose(model)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                counts = await asyncio.gather(*(self._count(worker, model, text) for text in texts))
        except TimeoutError:
            raise CannotCount("timeout", "no worker counted in time") from None
        return [_require(count) for count in counts]

    def _choose(self, model: str) -> WorkerAddress:
        """The worker with the fewest requests. Raises CannotCount."""
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
        """The count, or why there is none."""
        body = msgspec.json.encode({"model": model, "prompt": text, "add_special_tokens": False})
        async with self._seats:
            try:
                with self._upstream.exchange(worker) as exchange:
                    reply = await exchange.post("/tokenize", body, TIMEOUT_S)
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
