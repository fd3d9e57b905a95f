"""Claims a session for one turn, and stores what the client sent if this replica knows the log. Never asks a worker.

The store's answer, together with what the request allows, gives one of four outcomes:

    Claimed       the claim is held
    Repeated      the turn ended earlier: it is answered from its record
    GoElsewhere   the turn goes on in a copy, which is claimed next
    Wait          another turn holds the claim: ask again, until the deadline
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from router.config.sessions import SessionsConfig
from router.core.errors import SessionNotFound
from router.core.request.request import SessionKey
from router.core.worker import WorkerName
from router.sessions.claims import Claim, Claims
from router.sessions.context.history import History
from router.sessions.context.prompt import HistoryDiffers, NothingNew
from router.sessions.context_window import ContextWindow
from router.sessions.copying import copy_session
from router.sessions.histories import Histories
from router.sessions.planner import Plan, Planner, TurnRequest
from router.sessions.session_ids import affinity_key
from router.sessions.store_errors import NotAsked
from router.sessions.stores.contract import Begin, Begun, Busy, Cursor, Fenced, Repeated
from router.sessions.turn_counts import TurnCounts

FIRST_PAUSE_S, MAX_PAUSE_S, PAUSE_GROWTH = 0.004, 0.05, 1.5
"""Pauses between two requests for a claim that another replica holds. The end of a turn on this replica ends a pause."""


class Claimed(NamedTuple):
    """``plan``: of the turn, if its messages are in the log already; None: it has yet to be planned."""

    history: History
    plan: Plan | None


class GoElsewhere(NamedTuple):
    """``is_busy``: another turn holds the claim. Else the turn follows one that is no longer the last."""

    is_busy: bool


class Wait(NamedTuple):
    """``place``: in the line, from 1; 0: the turn may not wait."""

    place: int


Outcome = Claimed | Repeated | GoElsewhere | Wait


@dataclass(frozen=True, slots=True)
class Claimer:
    """One for the process. ``remember_worker``: called with each session's last worker, so that routing prefers it."""

    config: SessionsConfig
    histories: Histories
    planner: Planner
    context_window: ContextWindow
    claims: Claims
    counts: TurnCounts
    remember_worker: Callable[[SessionKey, WorkerName], None]
    clock: Callable[[], float]

    async def claim(self, claim: Claim, request: TurnRequest, *, may_guess: bool) -> Claimed | Repeated:
        """``may_guess``: plan the turn from what this replica knows of the log, unless it waited for another replica or after
        other turns. Raises SessionNotFound, SessionBusy, InvalidRequest, Fenced."""
        deadline = self.clock() + self.config.max_wait_s
        pause_s, guesses, was_busy = FIRST_PAUSE_S, may_guess, False
        while True:
            outcome = await self._request(claim, request, guesses=guesses)
            if isinstance(outcome, Claimed | Repeated):
                return outcome
            is_busy = isinstance(outcome, Wait) or outcome.is_busy
            self.counts.conflicts[request.on_busy] += is_busy and not was_busy
            was_busy |= is_busy
            match outcome:
                case GoElsewhere():
                    await self.branch(claim, request)
                    guesses = may_guess
                case Wait(place):
                    if not place or self.clock() >= deadline:
                        raise request.busy("another turn of this session has not ended", retry_after_s=1)
                    has_ended = await self.claims.pause(claim.sid, pause_s)
                    guesses = may_guess and has_ended and place == 1
                    pause_s = min(pause_s * PAUSE_GROWTH, MAX_PAUSE_S)

    async def branch(self, claim: Claim, request: TurnRequest) -> None:
        """Copies the session and wants the copy. Raises SessionNotFound, SessionBusy, NoSuchItem."""
        if request.fork is None:
            raise request.busy("another turn has ended in this session", retry_after_s=1)
        fork = request.fork()
        await copy_session(self.histories, claim.sid, fork, claim.owner, request.lifetime_s, upto=request.after)
        claim.sid = fork

    async def find_retry(self, claim: Claim, request: TurnRequest) -> None:
        """Wants the copy in which an earlier attempt of this request went on, if there is one."""
        if request.retried_in is None or request.fork is None:
            return
        try:
            await self.histories.load(request.retried_in, claim.owner)
        except SessionNotFound:
            return
        claim.sid = request.fork()

    async def _request(self, claim: Claim, request: TurnRequest, *, guesses: bool) -> Outcome:
        """Asks the store for the claim, once."""
        known = self.histories.cache.known(claim.sid)
        guess = self._guess(claim, request) if guesses else None
        was_asked, claim.is_asked = claim.is_asked, True
        try:
            answer = await self.histories.begin(self._begin(claim, request, known, guess))
        except NotAsked:
            claim.is_asked = was_asked
            raise
        if answer is None:
            raise request.absent()
        if not isinstance(answer, Begun):
            may_fork = request.fork is not None and request.on_busy == "fork" and claim.sid == request.sid
            return outcome_of(answer, may_fork=may_fork)
        history, came_true = await self._follow(claim, known, answer, guess)
        if request.after is None or claim.sid != request.sid or history.log.last_turn == request.after.turn:
            return Claimed(history, came_true)
        self.claims.drop(claim)
        return GoElsewhere(is_busy=False)

    def _guess(self, claim: Claim, request: TurnRequest) -> Plan | None:
        """The turn's plan, if the log is as this replica knows it. Then one call of the store begins the turn."""
        history = self.histories.cache.get(claim.sid) or History(claim.sid, claim.owner, "")
        try:
            plan = self.planner.plan(request, history, history.turns + 1)
            self.histories.require_room(history, plan.drafts)
        except (HistoryDiffers, NothingNew):
            return None  # what is known may be old
        return plan if self.context_window.fits(request, history, plan) else None

    def _begin(self, claim: Claim, request: TurnRequest, cursor: Cursor, guess: Plan | None) -> Begin:
        return Begin(
            sid=claim.sid,
            owner=claim.owner,
            token=claim.token,
            cursor=cursor,
            creates=request.creates,
            waits=request.on_busy == "queue",
            max_waiting=self.config.max_waiting,
            lease_s=self.config.lease_s,
            lifetime_s=request.lifetime_s,
            idempotency_key=request.idempotency_key,
            turn=guess.turn if guess else 0,
            entries=guess.entries if guess else (),
            record=msgspec.json.encode(guess.note if guess else request.first_note()),
        )

    async def _follow(
        self, claim: Claim, cursor: Cursor, begun: Begun, guess: Plan | None
    ) -> tuple[History, Plan | None]:
        """The claim is held. Reads the part of the log that this replica lacks, and returns the guess if it came true. Raises
        Fenced, SessionNotFound, SessionCorrupt, StateUnavailable."""
        self.claims.hold(claim, begun)
        if begun.worker:
            self.remember_worker(affinity_key(claim.sid), WorkerName(begun.worker))
        history = await self.histories.follow(claim.sid, claim.owner, cursor, begun)
        if history.generation != begun.generation:
            raise Fenced
        history.turns = begun.turn
        if guess is None or not begun.appended:
            return history, None
        self.histories.grow(history, guess.entries, begun.head)
        return history, guess


def outcome_of(answer: Busy | Repeated, *, may_fork: bool) -> Outcome:
    """The outcome where the store did not give the claim."""
    if isinstance(answer, Repeated):
        return answer if answer.has_ended else Wait(1)
    return GoElsewhere(is_busy=True) if may_fork else Wait(answer.place)
