"""One turn of a session, top to bottom.

    1  claim     store what the client sent, or wait for another turn, be refused, or go on in a copy
    2  prompt    the log and the new messages → the body for a worker
    3  dispatch  as any request; the answer flows to the client, all but its end
    4  save      store the answer and the turn's end; from here on the turn counts
    5  end       send the client the answer's end, so that every answer that ended well is stored

A turn that fails leaves its entries in the log without an end. No prompt ever has them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from hashlib import sha256

from router.config.sessions import SessionsConfig
from router.core.errors import (
    InvalidRequest,
    RouterError,
    SessionBusy,
    SessionCorrupt,
    SessionNotFound,
    StateUnavailable,
)
from router.core.request.request import SessionKey
from router.core.request.trace import TRACE
from router.core.tenants.tenant import Caller
from router.core.worker import WorkerName
from router.proxy.ports import Client, Dispatch
from router.sessions.claimer import Claimed, Claimer
from router.sessions.claims import Claim, Claims
from router.sessions.codec import AnswerCodec, CommitGate
from router.sessions.context.entry import BadEntry, Draft, decode
from router.sessions.context.history import History
from router.sessions.context.prompt import NothingNew, Recipe, replay
from router.sessions.context_window import ContextWindow
from router.sessions.copying import NoSuchItem, TurnPosition, beside, history_as_of
from router.sessions.histories import Histories
from router.sessions.planner import Plan, Planner, TurnRequest, read_note, read_same_note, request_of
from router.sessions.saver import Saver, read_answer
from router.sessions.session_ids import affinity_key
from router.sessions.stores.contract import Fenced, Repeated, Sid
from router.sessions.turn_counts import TurnCounts, TurnOutcome

KEY_CHARS = 32
"""Characters of the digest of a body and its request id."""

CUTS = 2
"""Cuts that one turn may make. A second one is needed if another changed the view in between."""


class Turns:
    """One for the process. ``claims.run`` must be running."""

    def __init__(
        self,
        config: SessionsConfig,
        histories: Histories,
        dispatch: Dispatch,
        remember_worker: Callable[[SessionKey, WorkerName], None],
        planner: Planner,
        context_window: ContextWindow,
        clock: Callable[[], float],
        observe_overhead: Callable[[float], None],
    ) -> None:
        self.histories = histories
        self._dispatch = dispatch
        self._planner = planner
        self.context_window = context_window
        self._clock = clock
        self._observe_overhead = observe_overhead
        self.claims = Claims(histories.store, config.lease_s, clock)
        self.counts = TurnCounts()
        self._claimer = Claimer(
            config, histories, planner, context_window, self.claims, self.counts, remember_worker, clock
        )
        self._saver = Saver(histories, planner.bytes_per_token)

    async def run(self, request: TurnRequest, codec: AnswerCodec, client: Client) -> None:
        """Answers the client, or raises the RouterError that says why not."""
        self._reach("receive")
        request = await self.context_window.count(request)

        async def run() -> TurnOutcome:
            with self.claims.wanted(request.sid, request.caller.rules.tenant) as claim:
                return await self._run(claim, request, codec, client)

        await self._run_counted(request, run())

    async def run_ephemeral(
        self, request: TurnRequest, codec: AnswerCodec, client: Client, after: tuple[Sid, TurnPosition] | None
    ) -> None:
        """Runs a turn that leaves nothing behind. ``after``: the place in a session whose history it sees."""
        await self._run_counted(
            request, self._run_ephemeral(await self.context_window.count(request), codec, client, after)
        )

    async def _run_counted(self, request: TurnRequest, turn: Awaitable[TurnOutcome]) -> None:
        """Counts the turn, and raises its errors as clients are told of them."""
        outcome = TurnOutcome.FAILED
        try:
            outcome = await turn
        except SessionNotFound:
            outcome = TurnOutcome.REFUSED
            raise request.absent() from None
        except NoSuchItem:
            outcome = TurnOutcome.REFUSED
            raise InvalidRequest(
                "nothing can follow a response that has not ended, did not end well, or was deleted from its conversation",
                param="previous_response_id",
            ) from None
        except RouterError as error:
            outcome = TurnOutcome.REFUSED if error.status < 500 else TurnOutcome.FAILED
            raise
        except Fenced:
            outcome = TurnOutcome.REFUSED
            raise self._fenced(request) from None
        finally:
            self.counts.turns[request.api, outcome] += 1

    async def _run_ephemeral(
        self, request: TurnRequest, codec: AnswerCodec, client: Client, after: tuple[Sid, TurnPosition] | None
    ) -> TurnOutcome:
        owner, session = request.caller.rules.tenant, None
        if after is None:
            history = History(request.sid, owner, "")
        else:
            sid, position = after
            history, session = await history_as_of(self.histories, sid, owner, position), affinity_key(sid)
        request = await self.context_window.recall(request, history)
        plan = self._planner.require_plan(request, history, 1)
        if (fitting := self.context_window.fit_aside(request, history, plan)) is not history:
            history, plan = fitting, self._planner.require_plan(request, fitting, 1)
        self.context_window.views.require_window(request, plan.prompt)
        codec.begin(request.sid, 1, history.head + 1)
        gate = CommitGate(client, codec)
        if not await self._dispatch_turn(request, session, plan, gate):
            return TurnOutcome.REFUSED
        try:
            read_answer(codec, gate)
        except RouterError as error:
            gate.fail_or_raise(error)
            return TurnOutcome.FAILED
        self.counts.count_prefix(plan, gate.record)
        await gate.finish()
        return TurnOutcome.OK

    async def _run(self, claim: Claim, request: TurnRequest, codec: AnswerCodec, client: Client) -> TurnOutcome:
        try:
            if request.copies:
                await self._claimer.branch(claim, request)
            else:
                await self._claimer.find_retry(claim, request)
            if (known := self.histories.cache.get(claim.sid)) is not None:
                request = await self.context_window.recall(request, known)
            begun = await self._claim(claim, request)
        except StateUnavailable:
            if request.on_lost is None:
                raise
            return await self._run_stateless(claim, request, request.on_lost, client)
        if isinstance(begun, Repeated):
            await codec.repeat(bytes(read_same_note(request, begun.record).note), client)
            return TurnOutcome.REPEATED
        history, plan = begun
        if plan is None:
            request = await self.context_window.recall(request, history)
            plan = await self._plan_surely(claim, request, history)
        self.counts.count_news(request, history, plan)
        number = history.head + 1
        codec.begin(claim.sid, claim.turn, number)
        if request.on_begun is not None:
            await request.on_begun(claim.sid, TurnPosition(claim.turn, number))
        return await self._answer(claim, request, history, plan, codec, CommitGate(client, codec))

    async def _answer(
        self, claim: Claim, request: TurnRequest, history: History, plan: Plan, codec: AnswerCodec, gate: CommitGate
    ) -> TurnOutcome:
        """Sends the turn to a worker, its answer to the client, and stores the answer."""
        if not await self._dispatch_turn(request, affinity_key(claim.sid), plan, gate):
            return TurnOutcome.REFUSED
        try:
            await self._saver.save_answer(claim, request, history, plan, codec, gate)
        except (RouterError, Fenced) as error:
            gate.fail_or_raise(self._fenced(request) if isinstance(error, Fenced) else error)
            return TurnOutcome.FAILED
        finally:
            self._reach("save")
        self.counts.count_prefix(plan, gate.record)
        self.context_window.on_end(claim.sid, request, history, plan, gate.record)
        await gate.finish()
        return TurnOutcome.OK

    async def _dispatch_turn(
        self, request: TurnRequest, session: SessionKey | None, plan: Plan, gate: CommitGate
    ) -> bool:
        """False: the worker refused the request, and the client has been told."""
        worker_request = request_of(request, session, plan)
        self.counts.spared_bytes += max(0, len(worker_request.body) - request.body_bytes)
        self._observe_overhead(self._clock() - request.started_at)
        await self._dispatch.dispatch(worker_request, gate, request.started_at, request.caller.rules)
        if gate.reply is not None and gate.reply.status != 200:
            await gate.refuse()
            return False
        return True

    def _reach(self, phase: str) -> None:
        if (trace := TRACE.get()) is not None:
            trace.reach(phase, self._clock())

    async def _run_stateless(
        self, claim: Claim, request: TurnRequest, on_lost: Callable[[], None], client: Client
    ) -> TurnOutcome:
        """Answers without history and stores nothing, as the request allows. Raises InvalidRequest."""
        on_lost()
        plan = self._planner.require_plan(request, History(claim.sid, claim.owner, ""), 1)
        worker_request = request_of(request, affinity_key(claim.sid), plan)
        await self._dispatch.dispatch(worker_request, client, request.started_at, request.caller.rules)
        return TurnOutcome.LOST

    async def add(self, request: TurnRequest) -> tuple[History, int]:
        """Adds messages to the session without asking a model, all at once. Returns the turn's number. The same body under the
        same X-Request-Id is the same turn: a retry. Raises SessionNotFound, SessionBusy, InvalidRequest, StateUnavailable,
        SessionCorrupt."""
        if not request.idempotency_key and (request_id := request.headers.get("X-Request-Id")):
            key = sha256(f"{request_id} {request.asked}".encode()).hexdigest()
            request = replace(request, idempotency_key=f"request:{key[:KEY_CHARS]}")
        return await self._append_turn(request, lambda history: self._planner.news(request, history))

    async def append(self, request: TurnRequest, drafts: Sequence[Draft]) -> tuple[History, int]:
        """Like ``add``, for entries that are not messages, such as deletions."""
        return await self._append_turn(request, lambda _: drafts)

    async def _append_turn(
        self, request: TurnRequest, drafts_for: Callable[[History], Sequence[Draft]]
    ) -> tuple[History, int]:
        try:
            with self.claims.wanted(request.sid, request.caller.rules.tenant) as claim:
                begun = await self._claimer.claim(claim, request, may_guess=False)
                if isinstance(begun, Repeated):
                    read_same_note(request, begun.record)
                    return (await self.histories.load(claim.sid, claim.owner))[0], begun.turn
                history = begun.history
                try:
                    drafts = drafts_for(history)
                except NothingNew:
                    raise InvalidRequest("there is no message among the items", param="items") from None
                self.histories.require_room(history, drafts)
                entries = self.histories.encode(history, drafts, claim.turn, ends=True)
                await self._saver.end(claim, request, history, entries, request.first_note())
                return history, claim.turn
        except SessionNotFound:
            raise request.absent() from None
        except Fenced:
            raise self._fenced(request) from None

    async def prompt_of(self, sid: Sid, caller: Caller, turn: int) -> bytes | None:
        """The body that a turn sent; None: it sent none. Reads the whole log. Raises StateUnavailable, SessionCorrupt."""
        owner = caller.rules.tenant
        record = await self.histories.ask(self.histories.store.read_turn(sid, owner, turn))
        if record is None or (recipe := read_note(record.record).recipe) is None:
            return None
        entries = await self.histories.log_of(sid, owner)
        try:
            return await beside(len(entries), _replay, recipe, entries)
        except (KeyError, BadEntry):
            raise SessionCorrupt("what is stored of this session cannot be read") from None

    async def _claim(self, claim: Claim, request: TurnRequest) -> Claimed | Repeated:
        try:
            return await self._claimer.claim(claim, request, may_guess=True)
        finally:
            self._reach("claim")

    async def _plan_surely(self, claim: Claim, request: TurnRequest, history: History) -> Plan:
        """Plans the turn from the log, cuts the history if the prompt does not fit, and stores what the turn adds. Raises
        InvalidRequest, StateUnavailable, Fenced."""
        try:
            plan = self._planner.require_plan(request, history, claim.turn)
            for _ in range(CUTS):
                if await self.context_window.fit(request, history, plan):
                    break
                plan = self._planner.require_plan(request, history, claim.turn)
            self.context_window.views.require_window(request, plan.prompt)
            self.histories.require_room(history, plan.drafts)
        except InvalidRequest:  # the record has the guess, which was never sent
            await self._saver.append(claim, request, history, [], request.first_note())
            raise
        await self._saver.append(claim, request, history, plan.entries, plan.note)
        return plan

    def _fenced(self, request: TurnRequest) -> SessionBusy:
        self.counts.fence_rejections += 1
        return request.busy("the turn lost its session to another, or the session was deleted", retry_after_s=1)


def _replay(recipe: Recipe, entries: Sequence[bytes]) -> bytes:
    """Raises KeyError, BadEntry."""
    return replay(recipe, {at: decode(data) for at, data in enumerate(entries, 1)})
