"""One turn of a session, top to bottom.

    1  claim     what the client sent is stored, if nobody else writes; else wait in line, be refused, or go on in a copy
    2  prompt    the log and what is new → the body that a worker is asked
    3  dispatch  as any request; the answer flows to the client, but for its end
    4  save      the answer, and with it the turn's end; from here on it counts
    5  end       the client is told: so whatever ended well is stored

A turn that fails anywhere leaves what was stored of it without an end, which no prompt ever has in it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import msgspec

from router.context.entry import BadEntry, Draft, Kind, decode
from router.context.history import History
from router.context.messages import message_bytes
from router.context.prompt import (
    HistoryDiffers,
    Incoming,
    NothingNew,
    Prompt,
    Recipe,
    Scope,
    find_news,
    join_body,
    make_prompt,
    replay,
)
from router.core.errors import (
    InvalidRequest,
    RouterError,
    SessionBusy,
    SessionCorrupt,
    SessionNotFound,
    StateUnavailable,
    WorkerError,
)
from router.core.record import Record
from router.core.request import Request, SessionKey
from router.core.tenant import Caller, OnBusy, TenantRules
from router.core.worker import WorkerName
from router.sessions.door import Door, HeldClient
from router.sessions.logs import Logs
from router.sessions.names import affinity_key
from router.sessions.store import NOTHING, Append, Begin, Begun, Busy, Fenced, Known, Repeated, Sid
from router.sides import Client
from router.wire.answers import BadAnswer
from router.wire.requests import TurnBody, read_params, turn_request

FIRST_PAUSE_S, MAX_PAUSE_S = 0.004, 0.05
"""Between two looks at a claim that another replica holds. One of this replica's own that ends is noticed at once."""

RENEWALS = 3
"""In the time of one lease."""


class Dispatch(Protocol):
    async def dispatch(self, request: Request, client: Client, started_at: float, rules: TenantRules) -> None: ...


@dataclass(frozen=True, slots=True)
class TurnSettings:
    """``lease_s``: how long a claim outlives its replica. ``max_wait_s``: how long a turn waits for those before it.
    ``resumes``: streams are kept so that another worker may go on with them."""

    lease_s: float
    max_wait_s: float
    max_waiting: int
    resumes: bool


class TurnNote(msgspec.Struct, frozen=True, kw_only=True):
    """A turn's record in the store. ``asked``: digest of what the client sent; ``note``: the door's, of the answer."""

    recipe: Recipe = Recipe()
    asked: str = ""
    note: msgspec.Raw = msgspec.Raw(b"null")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a client asks of a session, through whichever door."""

    sid: Sid
    caller: Caller
    incoming: Incoming
    headers: Mapping[str, str]
    request_id: str
    started_at: float
    lifetime_s: float
    creates: bool = True
    on_busy: OnBusy = "queue"
    idempotency_key: str = ""
    asked: str = ""
    """Digest of it, by which a repetition is told from another request with the same idempotency key."""
    note: bytes = b"null"
    """The door's, of the turn while it is under way."""
    busy: type[SessionBusy] = SessionBusy
    fork: Callable[[], Sid] | None = None
    """Names the copy in which a busy session's turn goes on."""
    on_lost: Callable[[], None] | None = None
    """Told that the store is away and the turn goes on without its history; None: then it does not go on."""
    on_begun: Callable[[Sid, int], Awaitable[None]] | None = None
    """Told the turn's number before a worker is asked. Raises RouterError."""


@dataclass(slots=True, eq=False)
class _Live:
    """A turn that holds its session's claim (``fence`` is not 0), or wants it."""

    ask: Ask
    sid: Sid
    token: str
    generation: str = ""
    fence: int = 0
    turn: int = 0
    renewed_at: float = 0.0


class _Plan(NamedTuple):
    """What a turn adds to the log, and sends."""

    turn: int
    drafts: list[Draft]
    entries: list[bytes]
    prompt: Prompt
    body: TurnBody
    note: TurnNote


@dataclass(slots=True)
class TurnCounts:
    """What metrics read."""

    turns: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("ok", "repeated", "refused", "failed", "lost"), 0)
    )
    conflicts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("queue", "reject", "fork"), 0))
    prefixes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("warm", "cold", "unknown"), 0))
    """Was what earlier turns had computed still cached?"""
    breaks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("system_changed", "tools_changed"), 0))
    fence_rejections: int = 0
    spared_bytes: int = 0
    """Of prompts, what clients did not have to send."""
    resent_messages: int = 0


class Turns:
    """One for the process. ``run`` must be running: it keeps the claims of turns that take long."""

    def __init__(
        self,
        settings: TurnSettings,
        logs: Logs,
        dispatch: Dispatch,
        remember_worker: Callable[[SessionKey, WorkerName], None],
        bytes_per_token: Callable[[str], float],
        clock: Callable[[], float],
        observe_overhead: Callable[[float], None],
    ) -> None:
        self._settings = settings
        self.logs = logs
        self._dispatch = dispatch
        self._remember_worker = remember_worker
        self._bytes_per_token = bytes_per_token
        self._clock = clock
        self._observe_overhead = observe_overhead
        self.counts = TurnCounts()
        self.live: set[_Live] = set()
        self._ended: dict[Sid, asyncio.Event] = {}

    async def run(self) -> None:
        """Until cancelled."""
        lease_s = self._settings.lease_s
        while True:
            await asyncio.sleep(lease_s / RENEWALS / 2)
            now = self._clock()
            for live in tuple(self.live):
                if live.fence and now - live.renewed_at > lease_s / RENEWALS:
                    live.renewed_at = now
                    owner = live.ask.caller.rules.tenant
                    self.logs.give_back(self.logs.store.renew(live.sid, owner, live.fence, lease_s))

    async def take(self, ask: Ask, door: Door, client: Client) -> None:
        """Answer the client, or raise the RouterError that says why not."""
        live = _Live(ask, ask.sid, secrets.token_hex(16))
        self.live.add(live)
        outcome = "failed"
        try:
            outcome = await self._take(live, door, client)
        except RouterError as error:
            outcome = "refused" if error.status < 500 else "failed"
            raise
        except Fenced:
            raise self._fenced(ask) from None
        finally:
            self.live.discard(live)
            self.counts.turns[outcome] += 1
            self._give_up(live)

    async def _take(self, live: _Live, door: Door, client: Client) -> str:
        ask = live.ask
        try:
            begun = await self._claim(live)
        except StateUnavailable:
            if ask.on_lost is None:
                raise
            return await self._take_lost(live, ask.on_lost, client)
        if isinstance(begun, Repeated):
            await self._repeat(ask, begun, door, client)
            return "repeated"
        history, plan = begun
        request = self._request(live, plan)
        held = HeldClient(client, door)
        self._observe_overhead(self._clock() - ask.started_at)
        await self._dispatch.dispatch(request, held, ask.started_at, ask.caller.rules)
        if held.reply is not None and held.reply.status != 200:
            await held.refuse()
            return "refused"
        try:
            await self._save(live, history, plan, door, held)
        except (RouterError, Fenced) as error:
            if not held.has_begun:
                raise
            held.fail(self._fenced(ask) if isinstance(error, Fenced) else error)
            return "failed"
        self._count_prefix(plan, held.record)
        await held.finish()
        return "ok"

    async def _take_lost(self, live: _Live, on_lost: Callable[[], None], client: Client) -> str:
        """Without history, and without keeping anything: what was asked for by whoever allowed it."""
        ask = live.ask
        on_lost()
        plan = self._plan_surely(live, History(live.sid, ask.caller.rules.tenant, ""))
        await self._dispatch.dispatch(self._request(live, plan), client, ask.started_at, ask.caller.rules)
        return "lost"

    async def add(self, ask: Ask) -> tuple[History, int]:
        """A turn that asks no model: its messages become part of the session. Returns the turn's number.
        Raises SessionNotFound, SessionBusy, InvalidRequest, StateUnavailable, SessionCorrupt."""
        live = _Live(ask, ask.sid, secrets.token_hex(16))
        try:
            begun = await self._claim(live)
            if isinstance(begun, Repeated):
                self._require_same(ask, begun)
                return (await self.logs.load(live.sid, ask.caller.rules.tenant))[0], begun.turn
            history, plan = begun
            entries = self.logs.encode(history, [Draft(Kind.END, b"null")], live.turn, ends=True)
            await self._append(live, history, entries, plan.note, ends=True)
            live.fence = 0
            return history, live.turn
        except Fenced:
            raise self._fenced(ask) from None
        finally:
            self._give_up(live)

    async def prompt_of(self, sid: Sid, caller: Caller, turn: int) -> bytes | None:
        """The body that a turn sent. Reads the whole log. Raises SessionNotFound, StateUnavailable, SessionCorrupt."""
        owner = caller.rules.tenant
        record = await self.logs.ask(self.logs.store.read_turn(sid, owner, turn))
        loaded = await self.logs.ask(self.logs.store.load(sid, owner, NOTHING))
        if record is None or loaded is None:
            return None
        note = msgspec.json.decode(record.record, type=TurnNote)
        try:
            return replay(note.recipe, {at: bytes(decode(data).body) for at, data in enumerate(loaded.tail, 1)})
        except (KeyError, BadEntry):
            raise SessionCorrupt("what is stored of this session cannot be read") from None

    # 1  Claim

    async def _claim(self, live: _Live) -> tuple[History, _Plan] | Repeated:
        """Raises SessionNotFound, SessionBusy, InvalidRequest, Fenced."""
        ask = live.ask
        deadline = self._clock() + self._settings.max_wait_s
        pause_s = FIRST_PAUSE_S
        has_waited = False
        while True:
            known, guess = self.logs.hot.known(live.sid), self._guess(live)
            answer = await self.logs.begin(self._begin(live, known, guess))
            if isinstance(answer, Begun):
                return await self._read(live, known, answer, guess)
            if answer is None:
                raise SessionNotFound("there is no such session")
            if isinstance(answer, Repeated) and answer.has_ended:
                return answer
            if not has_waited:
                self.counts.conflicts[ask.on_busy] += 1
                has_waited = True
            if isinstance(answer, Busy) and ask.fork is not None and ask.on_busy == "fork":
                fork = ask.fork()
                await self.logs.copy(live.sid, fork, ask.caller.rules.tenant, ask.lifetime_s)
                live.sid = fork
            elif (isinstance(answer, Busy) and not answer.place) or self._clock() >= deadline:
                raise ask.busy("another turn of this session has not ended", retry_after_s=1)
            else:
                await self._pause(live.sid, pause_s)
                pause_s = min(pause_s * 1.5, MAX_PAUSE_S)

    def _guess(self, live: _Live) -> _Plan | None:
        """The turn, if the log is what this replica knows of it: then it begins with one question to the store."""
        history = self.logs.hot.get(live.sid) or History(live.sid, live.ask.caller.rules.tenant, "")
        try:
            return self._plan(live, history, history.turns + 1)
        except (HistoryDiffers, NothingNew):
            return None  # what is known may be old

    def _begin(self, live: _Live, known: Known, guess: _Plan | None) -> Begin:
        ask, settings = live.ask, self._settings
        return Begin(
            sid=live.sid,
            owner=ask.caller.rules.tenant,
            token=live.token,
            known=known,
            creates=ask.creates,
            waits=ask.on_busy == "queue",
            max_waiting=settings.max_waiting,
            lease_s=settings.lease_s,
            lifetime_s=ask.lifetime_s,
            idempotency_key=ask.idempotency_key,
            turn=guess.turn if guess else 0,
            entries=guess.entries if guess else (),
            record=msgspec.json.encode(guess.note if guess else TurnNote(asked=ask.asked)),
        )

    async def _read(self, live: _Live, known: Known, begun: Begun, guess: _Plan | None) -> tuple[History, _Plan]:
        """What this replica did not know of the log; and then what is to be done."""
        ask = live.ask
        live.generation, live.fence, live.turn = begun.generation, begun.fence, begun.turn
        live.renewed_at = self._clock()
        if begun.worker:
            self._remember_worker(affinity_key(live.sid), WorkerName(begun.worker))
        history = await self.logs.follow(live.sid, ask.caller.rules.tenant, known, begun)
        history.turns = begun.turn
        plan = guess
        if plan is not None and begun.appended:
            self.logs.grow(history, plan.entries)
        else:
            plan = self._plan_surely(live, history)
            await self._append(live, history, plan.entries, plan.note)
        self._count_news(ask, history, plan)
        if ask.on_begun is not None:
            await ask.on_begun(live.sid, begun.turn)
        return history, plan

    async def _pause(self, sid: Sid, at_most_s: float) -> None:
        event = self._ended.setdefault(sid, asyncio.Event())
        try:
            async with asyncio.timeout(at_most_s):
                await event.wait()
        except TimeoutError:
            return

    # 2  Prompt

    def _plan_surely(self, live: _Live, history: History) -> _Plan:
        """Raises InvalidRequest."""
        try:
            return self._plan(live, history, live.turn)
        except HistoryDiffers:
            raise InvalidRequest(
                "the messages repeat a history that is not this session's: send new messages only, or fork the session",
                param="messages",
            ) from None
        except NothingNew:
            raise InvalidRequest("the session has all of these messages already", param="messages") from None

    def _plan(self, live: _Live, history: History, turn: int) -> _Plan:
        """Raises HistoryDiffers, NothingNew, InvalidRequest."""
        ask = live.ask
        incoming = ask.incoming
        drafts = find_news(history, incoming, self._bytes_per_token(incoming.model))
        own_salt = incoming.params.get("cache_salt")
        salt = ask.caller.salt_for(own_salt if isinstance(own_salt, str) else "")
        prompt = make_prompt(history, incoming, drafts, Scope(salt, ask.caller.scope))
        body = read_params(
            incoming.params, incoming.model, ask.caller, has_tools=bool(prompt.tools), resumes=self._settings.resumes
        )
        recipe = prompt.recipe.with_own(drafts, history.head, body.shown)
        return _Plan(
            turn,
            drafts,
            self.logs.encode(history, drafts, turn, ends=False),
            prompt,
            body,
            TurnNote(recipe=recipe, asked=ask.asked, note=msgspec.Raw(ask.note)),
        )

    def _request(self, live: _Live, plan: _Plan) -> Request:
        ask, prompt = live.ask, plan.prompt
        return turn_request(
            plan.body,
            ask.incoming.model,
            join_body(prompt.messages, prompt.tools, plan.body.params),
            prompt.fingerprint,
            prompt.anchor,
            prompt.earlier_bytes,
            affinity_key(live.sid),
            ask.headers,
            ask.caller,
            ask.request_id,
        )

    # 4  Save

    async def _save(self, live: _Live, history: History, plan: _Plan, door: Door, held: HeldClient) -> None:
        """Raises Fenced, StateUnavailable, WorkerError."""
        if held.error is not None:
            raise held.error
        try:
            held.translate()
            answer = door.answer()
        except BadAnswer:
            raise WorkerError("the worker's answer cannot be understood") from None
        message = message_bytes(answer.message)
        tokens = answer.completion_tokens or round(len(message) / self._bytes_per_token(live.ask.incoming.model))
        entries = self.logs.encode(history, [Draft(Kind.MESSAGE, message, tokens)], live.turn, ends=True)
        note = msgspec.structs.replace(plan.note, note=msgspec.Raw(door.note()))
        worker = held.record.worker if held.record is not None else ""
        await self._append(live, history, entries, note, worker=worker, ends=True)
        live.fence = 0

    async def _append(
        self,
        live: _Live,
        history: History,
        entries: list[bytes],
        note: TurnNote,
        *,
        worker: str = "",
        ends: bool = False,
    ) -> None:
        """Raises Fenced, StateUnavailable."""
        await self.logs.append(
            history,
            Append(
                sid=live.sid,
                owner=live.ask.caller.rules.tenant,
                generation=live.generation,
                fence=live.fence,
                turn=live.turn,
                entries=entries,
                ends=ends,
                record=msgspec.json.encode(note),
                worker=worker,
                lifetime_s=live.ask.lifetime_s,
            ),
        )

    # And else

    async def _repeat(self, ask: Ask, repeated: Repeated, door: Door, client: Client) -> None:
        """The turn was taken before; the same answer again. Raises InvalidRequest."""
        note = self._require_same(ask, repeated)
        await door.repeat(bytes(note.note), client)

    @staticmethod
    def _require_same(ask: Ask, repeated: Repeated) -> TurnNote:
        note = msgspec.json.decode(repeated.record, type=TurnNote)
        if note.asked != ask.asked:
            raise InvalidRequest("this Idempotency-Key was used for another request", param="Idempotency-Key")
        return note

    def _give_up(self, live: _Live) -> None:
        """What the turn holds still, for whatever reason it ended; and whoever waits here may look again."""
        owner = live.ask.caller.rules.tenant
        if live.fence:
            self.logs.give_back(self.logs.store.release(live.sid, owner, live.fence))
        elif not live.turn:
            self.logs.give_back(self.logs.store.leave(live.sid, owner, live.token))
        if (event := self._ended.pop(live.sid, None)) is not None:
            event.set()

    def _fenced(self, ask: Ask) -> SessionBusy:
        self.counts.fence_rejections += 1
        return ask.busy("the turn lost its session to another, or the session was deleted", retry_after_s=1)

    def _count_news(self, ask: Ask, history: History, plan: _Plan) -> None:
        counts = self.counts
        own = [draft for draft in plan.drafts if draft.kind is Kind.MESSAGE]
        counts.spared_bytes += len(plan.prompt.messages) - sum(len(draft.body) for draft in own)
        counts.resent_messages += max(0, len(ask.incoming.messages) - len(own))
        kinds = {draft.kind for draft in plan.drafts}
        counts.breaks["system_changed"] += Kind.SYSTEM in kinds and history.system.number > 0
        counts.breaks["tools_changed"] += Kind.TOOLS in kinds and history.tools.number > 0

    def _count_prefix(self, plan: _Plan, record: Record | None) -> None:
        if record is None or not plan.prompt.earlier_bytes or not record.prompt_tokens:
            return
        if record.actual_cached_tokens is None:
            self.counts.prefixes["unknown"] += 1
        else:
            earlier_tokens = record.prompt_tokens * plan.prompt.earlier_bytes / plan.prompt.fingerprint.prompt_bytes
            self.counts.prefixes["warm" if record.actual_cached_tokens * 2 >= earlier_tokens else "cold"] += 1
