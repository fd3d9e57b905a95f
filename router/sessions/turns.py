"""One turn of a session, top to bottom.

    1  claim     what the client sent is stored, if nobody else writes; else wait in line, be refused, or go on in a copy
    2  prompt    the log and what is new → the body that a worker is asked
    3  dispatch  as any request; the answer flows to the client, but for its end
    4  save      the answer, and with it the turn's end; from here on it counts
    5  end       the client is told: so whatever ended well is stored

A turn that fails anywhere leaves what was stored of it without an end, which no prompt ever has in it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from hashlib import sha256

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
from router.sessions.claimer import Claimed, Claimer, TurnSettings
from router.sessions.claims import Claim, Claims
from router.sessions.codec import AnswerCodec, CommitGate
from router.sessions.context.entry import BadEntry, Draft, decode
from router.sessions.context.history import History
from router.sessions.context.prompt import HistoryDiffers, NothingNew, Recipe, replay
from router.sessions.context_window import ContextWindow
from router.sessions.counts import TurnCounts
from router.sessions.histories import Histories, NoSuchItem, TurnPosition, beside
from router.sessions.names import affinity_key
from router.sessions.planner import Ask, Plan, Planner, TurnNote, read_note, request_of
from router.sessions.saver import Saver, read_answer
from router.sessions.stores.contract import Fenced, Repeated, Sid

KEY_CHARS = 32
"""Of the digest that stands for a request and its id."""

CUTS = 2
"""Of one turn's history: the second where the view was changed by another in between."""


class Turns:
    """One for the process. ``claims.run`` must be running."""

    def __init__(
        self,
        settings: TurnSettings,
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
        self.claims = Claims(histories.store, settings.lease_s, settings.max_give_backs, clock)
        self.counts = TurnCounts()
        self._claimer = Claimer(
            settings, histories, planner, context_window, self.claims, self.counts, remember_worker, clock
        )
        self._saver = Saver(histories, planner.bytes_per_token)

    async def run(self, ask: Ask, codec: AnswerCodec, client: Client) -> None:
        """Answer the client, or raise the RouterError that says why not."""
        self._reach("receive")
        ask = await self.context_window.count(ask)

        async def run() -> str:
            with self.claims.wanted(ask.sid, ask.caller.rules.tenant) as claim:
                return await self._run(claim, ask, codec, client)

        await self._judge(ask, run())

    async def run_ephemeral(
        self, ask: Ask, codec: AnswerCodec, client: Client, after: tuple[Sid, TurnPosition] | None
    ) -> None:
        """The same of a turn that leaves nothing behind. ``after``: the place in a session whose history it sees."""
        await self._judge(ask, self._run_ephemeral(await self.context_window.count(ask), codec, client, after))

    async def _judge(self, ask: Ask, turn: Awaitable[str]) -> None:
        """Counted, and what went wrong told in the client's words."""
        outcome = "failed"
        try:
            outcome = await turn
        except SessionNotFound:
            outcome = "refused"
            raise ask.absent() from None
        except NoSuchItem:
            outcome = "refused"
            raise InvalidRequest(
                "nothing can follow a response that has not ended, did not end well, or was deleted from its conversation",
                param="previous_response_id",
            ) from None
        except RouterError as error:
            outcome = "refused" if error.status < 500 else "failed"
            raise
        except Fenced:
            outcome = "refused"
            raise self._fenced(ask) from None
        finally:
            self.counts.turns[ask.api, outcome] += 1

    async def _run_ephemeral(
        self, ask: Ask, codec: AnswerCodec, client: Client, after: tuple[Sid, TurnPosition] | None
    ) -> str:
        owner, session = ask.caller.rules.tenant, None
        if after is None:
            history = History(ask.sid, owner, "")
        else:
            sid, position = after
            history, session = await self.histories.as_of(sid, owner, position), affinity_key(sid)
        ask = await self.context_window.recall(ask, history)
        plan = self._plan_anew(ask, history, 1)
        if (fitting := self.context_window.fit_aside(ask, history, plan)) is not history:
            history, plan = fitting, self._plan_anew(ask, fitting, 1)
        self.context_window.views.require_window(ask, plan.prompt)
        codec.begin(ask.sid, 1, history.head + 1)
        held = CommitGate(client, codec)
        if not await self._dispatch_turn(ask, session, plan, held):
            return "refused"
        try:
            read_answer(codec, held)
        except RouterError as error:
            held.fail_or_raise(error)
            return "failed"
        self.counts.count_prefix(plan, held.record)
        await held.finish()
        return "ok"

    async def _run(self, claim: Claim, ask: Ask, codec: AnswerCodec, client: Client) -> str:
        try:
            if ask.copies:
                await self._claimer.branch(claim, ask)
            else:
                await self._claimer.find_retry(claim, ask)
            if (known := self.histories.cache.get(claim.sid)) is not None:
                ask = await self.context_window.recall(ask, known)
            begun = await self._claim(claim, ask)
        except StateUnavailable:
            if ask.on_lost is None:
                raise
            return await self._run_stateless(claim, ask, ask.on_lost, client)
        if isinstance(begun, Repeated):
            await codec.repeat(bytes(_require_same(ask, begun).note), client)
            return "repeated"
        history, plan = begun
        if plan is None:
            ask = await self.context_window.recall(ask, history)
            plan = await self._plan_surely(claim, ask, history)
        self.counts.count_news(ask, history, plan)
        number = history.head + 1
        codec.begin(claim.sid, claim.turn, number)
        if ask.on_begun is not None:
            await ask.on_begun(claim.sid, TurnPosition(claim.turn, number))
        return await self._carry(claim, ask, history, plan, codec, CommitGate(client, codec))

    async def _carry(
        self, claim: Claim, ask: Ask, history: History, plan: Plan, codec: AnswerCodec, held: CommitGate
    ) -> str:
        """To a worker, its answer to the client, and both into the log."""
        if not await self._dispatch_turn(ask, affinity_key(claim.sid), plan, held):
            return "refused"
        try:
            await self._saver.save_answer(claim, ask, history, plan, codec, held)
        except (RouterError, Fenced) as error:
            held.fail_or_raise(self._fenced(ask) if isinstance(error, Fenced) else error)
            return "failed"
        finally:
            self._reach("save")
        self.counts.count_prefix(plan, held.record)
        self.context_window.on_end(claim.sid, ask, history, plan, held.record)
        await held.finish()
        return "ok"

    async def _dispatch_turn(self, ask: Ask, session: SessionKey | None, plan: Plan, held: CommitGate) -> bool:
        """False: the worker found the request wrong, and the client knows."""
        request = request_of(ask, session, plan)
        self.counts.spared_bytes += max(0, len(request.body) - ask.body_bytes)
        self._observe_overhead(self._clock() - ask.started_at)
        await self._dispatch.dispatch(request, held, ask.started_at, ask.caller.rules)
        if held.reply is not None and held.reply.status != 200:
            await held.refuse()
            return False
        return True

    def _reach(self, phase: str) -> None:
        if (trace := TRACE.get()) is not None:
            trace.reach(phase, self._clock())

    async def _run_stateless(self, claim: Claim, ask: Ask, on_lost: Callable[[], None], client: Client) -> str:
        """Without history, and without keeping anything, as was asked for. Raises InvalidRequest."""
        on_lost()
        plan = self._plan_anew(ask, History(claim.sid, claim.owner, ""), 1)
        request = request_of(ask, affinity_key(claim.sid), plan)
        await self._dispatch.dispatch(request, client, ask.started_at, ask.caller.rules)
        return "lost"

    async def add(self, ask: Ask) -> tuple[History, int]:
        """A turn that asks no model: its messages become part of the session, all at once. Returns the turn's number. The same
        body under the same X-Request-Id of the client's is the same turn: a retry.
        Raises SessionNotFound, SessionBusy, InvalidRequest, StateUnavailable, SessionCorrupt."""
        if not ask.idempotency_key and (request_id := ask.headers.get("X-Request-Id")):
            key = sha256(f"{request_id} {ask.asked}".encode()).hexdigest()
            ask = replace(ask, idempotency_key=f"request:{key[:KEY_CHARS]}")
        return await self._append_turn(ask, lambda history: self._planner.news(ask, history))

    async def append(self, ask: Ask, drafts: Sequence[Draft]) -> tuple[History, int]:
        """The same, of what is no message."""
        return await self._append_turn(ask, lambda _: drafts)

    async def _append_turn(self, ask: Ask, drafts_for: Callable[[History], Sequence[Draft]]) -> tuple[History, int]:
        try:
            with self.claims.wanted(ask.sid, ask.caller.rules.tenant) as claim:
                begun = await self._claimer.claim(claim, ask, may_guess=False)
                if isinstance(begun, Repeated):
                    _require_same(ask, begun)
                    return (await self.histories.load(claim.sid, claim.owner))[0], begun.turn
                history = begun.history
                try:
                    drafts = drafts_for(history)
                except NothingNew:
                    raise InvalidRequest("there is no message among the items", param="items") from None
                self.histories.require_room(history, drafts)
                entries = self.histories.encode(history, drafts, claim.turn, ends=True)
                await self._saver.end(claim, ask, history, entries, ask.first_note())
                return history, claim.turn
        except SessionNotFound:
            raise ask.absent() from None
        except Fenced:
            raise self._fenced(ask) from None

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

    async def _claim(self, claim: Claim, ask: Ask) -> Claimed | Repeated:
        try:
            return await self._claimer.claim(claim, ask, may_guess=True)
        finally:
            self._reach("claim")

    async def _plan_surely(self, claim: Claim, ask: Ask, history: History) -> Plan:
        """Cut to fit, if need be; and store what the turn adds. Raises InvalidRequest, StateUnavailable, Fenced."""
        try:
            plan = self._plan_anew(ask, history, claim.turn)
            for _ in range(CUTS):
                if await self.context_window.fit(ask, history, plan):
                    break
                plan = self._plan_anew(ask, history, claim.turn)
            self.context_window.views.require_window(ask, plan.prompt)
            self.histories.require_room(history, plan.drafts)
        except InvalidRequest:  # what was guessed is in the turn's record, and was never sent
            await self._saver.append(claim, ask, history, [], ask.first_note())
            raise
        await self._saver.append(claim, ask, history, plan.entries, plan.note)
        return plan

    def _plan_anew(self, ask: Ask, history: History, turn: int) -> Plan:
        """Raises InvalidRequest."""
        try:
            return self._planner.plan(ask, history, turn)
        except HistoryDiffers:
            raise InvalidRequest(
                "the messages repeat a history that is not this session's: send new messages only, or fork the session",
                param="messages",
            ) from None
        except NothingNew:
            raise InvalidRequest(
                "there is no message that the session does not have already", param="messages"
            ) from None

    def _fenced(self, ask: Ask) -> SessionBusy:
        self.counts.fence_rejections += 1
        return ask.busy("the turn lost its session to another, or the session was deleted", retry_after_s=1)


def _replay(recipe: Recipe, entries: Sequence[bytes]) -> bytes:
    """Raises KeyError, BadEntry."""
    return replay(recipe, {at: decode(data) for at, data in enumerate(entries, 1)})


def _require_same(ask: Ask, repeated: Repeated) -> TurnNote:
    """Of the turn that was taken before. Raises InvalidRequest."""
    note = read_note(repeated.record)
    if note.asked != ask.asked:
        raise InvalidRequest("this Idempotency-Key was used for another request", param="Idempotency-Key")
    return note
