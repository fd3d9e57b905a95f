"""Stores what a turn adds to its session's log: what the client sent, and then the whole answer, with which the turn ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from router.core.errors import WorkerError
from router.sessions.claims import Claim
from router.sessions.codec import AnswerCodec, CommitGate, StoredAnswer
from router.sessions.context.entry import Draft, Kind
from router.sessions.context.history import History
from router.sessions.histories import Histories
from router.sessions.planner import Plan, TurnNote, TurnRequest
from router.sessions.stores.contract import Append
from router.wire.completion import BadAnswer

MAX_COUNTED_RATIO = 2.0
"""A worker's count is believed up to so many times the tokens that the answer's bytes make. Beyond, most of it are thoughts,
which no later prompt has."""

SAVING_S = 0.5
"""Longest time to store a whole answer whose client has left."""


@dataclass(frozen=True, slots=True)
class Saver:
    """``bytes_per_token``: by model."""

    histories: Histories
    bytes_per_token: Callable[[str], float]

    async def save_answer(
        self, claim: Claim, request: TurnRequest, history: History, plan: Plan, codec: AnswerCodec, gate: CommitGate
    ) -> None:
        """Raises Fenced, StateUnavailable, WorkerError."""
        kept = read_answer(codec, gate)
        bytes_per_token = self.bytes_per_token(request.incoming.model)
        drafts = [
            Draft(Kind.MESSAGE, message, _tokens_of(message, kept.tokens, bytes_per_token)) for message in kept.messages
        ]
        entries = self.histories.encode(history, drafts, claim.turn, ends=True)
        note = msgspec.structs.replace(plan.note, note=msgspec.Raw(codec.note()))
        worker = gate.record.worker if gate.record is not None else ""
        await self.end(claim, request, history, entries, note, worker)

    async def append(
        self, claim: Claim, request: TurnRequest, history: History, entries: list[bytes], note: TurnNote
    ) -> None:
        """Entries of a turn that goes on. Raises Fenced, StateUnavailable."""
        await self.histories.append(history, _append(claim, request, entries, note))

    async def end(
        self,
        claim: Claim,
        request: TurnRequest,
        history: History,
        entries: list[bytes],
        note: TurnNote,
        worker: str = "",
    ) -> None:
        """The turn's last entries; the claim ends with them. Raises Fenced, StateUnavailable."""
        append = _append(claim, request, entries, note, worker=worker, ends=True)
        # An answer that is whole is stored even if its client leaves now: the claim is not released before.
        saving = asyncio.create_task(self.histories.append(history, append))
        try:
            await asyncio.shield(saving)
        except asyncio.CancelledError:
            try:
                await asyncio.wait((saving,), timeout=SAVING_S)
            finally:
                saving.cancel()
            raise
        claim.fence = 0


def read_answer(codec: AnswerCodec, gate: CommitGate) -> StoredAnswer:
    """Raises RouterError where the answer is not whole."""
    if gate.error is not None:
        raise gate.error
    try:
        gate.translate()
        return codec.kept()
    except BadAnswer:
        raise WorkerError("the worker's answer cannot be understood") from None


def _append(
    claim: Claim, request: TurnRequest, entries: list[bytes], note: TurnNote, *, worker: str = "", ends: bool = False
) -> Append:
    return Append(
        sid=claim.sid,
        owner=claim.owner,
        generation=claim.generation,
        fence=claim.fence,
        turn=claim.turn,
        entries=entries,
        ends=ends,
        record=msgspec.json.encode(note),
        worker=worker,
        lifetime_s=request.lifetime_s,
    )


def _tokens_of(message: bytes, counted: int, bytes_per_token: float) -> int:
    """``counted``: by the worker; 0: it did not say."""
    estimate = len(message) / bytes_per_token
    return counted if 0 < counted <= MAX_COUNTED_RATIO * estimate else round(estimate)
