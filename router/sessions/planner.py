"""What a client asks of a session, and what that makes of its turn: entries for the log, and a request to a worker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import msgspec

from router.core.errors import RouterError, SessionBusy, SessionCorrupt, SessionNotFound
from router.core.request.request import Request, SessionKey
from router.core.tenants.tenant import Caller, OnBusy
from router.sessions.context.entry import Draft, Kind
from router.sessions.context.history import History
from router.sessions.context.prompt import Incoming, Prompt, Recipe, Scope, find_news, join_body, make_prompt
from router.sessions.context.view import NO_OVERRIDES, ContextOverrides
from router.sessions.copying import TurnPosition
from router.sessions.histories import Histories
from router.sessions.stores.contract import Sid
from router.wire.requests import TurnBody, read_params, turn_request

T = TypeVar("T")

ApiName = Literal["sessions", "responses", "conversations"]
"""Through which door a turn came; a response that names a conversation came through that one's."""


class TurnNote(msgspec.Struct, frozen=True, kw_only=True):
    """A turn's record in the store. ``recipe``: None where no model is asked, or not yet; ``asked``: digest of what the client
    sent; ``note``: the door's, of the answer."""

    recipe: Recipe | None = None
    asked: str = ""
    note: msgspec.Raw = msgspec.Raw(b"null")


def no_session() -> RouterError:
    return SessionNotFound("there is no such session")


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRequest:
    """One request for a turn, through whichever door."""

    api: ApiName
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
    body_bytes: int = 0
    """What the client sent."""
    overrides: ContextOverrides = NO_OVERRIDES
    """How its history is to be kept within the window."""
    recalled: Draft | None = None
    """What a search found for it."""
    has_searched: bool = False
    note: bytes = b"null"
    """The door's, of the turn while it is under way."""
    busy: type[SessionBusy] = SessionBusy
    absent: Callable[[], RouterError] = no_session
    """What the client is told where there is no such session: it may know it by another word."""
    after: TurnPosition | None = None
    """Where that turn is the last no more, this one goes on in a copy up to it; None: behind whichever is the last."""
    copies: bool = False
    """It goes on in a copy in any case."""
    fork: Callable[[], Sid] | None = None
    """Names the copy in which a turn goes on that does not wait, or stands elsewhere than at the end."""
    retried_in: Sid | None = None
    """The copy in which an earlier attempt may have gone on that had the same idempotency key."""
    on_lost: Callable[[], None] | None = None
    """Told that the store is away and the turn goes on without its history; None: then it does not go on."""
    on_begun: Callable[[Sid, TurnPosition], Awaitable[None]] | None = None
    """Told which session and turn it is, and the number that its answer will have, before a worker is asked.
    Raises RouterError."""

    def first_note(self) -> TurnNote:
        """What is recorded of the turn while nothing is known of its prompt."""
        return TurnNote(asked=self.asked, note=msgspec.Raw(self.note))


class Plan(NamedTuple):
    """What a turn adds to the log, and sends."""

    turn: int
    drafts: list[Draft]
    entries: list[bytes]
    prompt: Prompt
    body: TurnBody
    note: TurnNote


class Planner:
    """``bytes_per_token``: by model. ``resumes``: streams are kept so that another worker may go on with them."""

    def __init__(self, histories: Histories, bytes_per_token: Callable[[str], float], *, resumes: bool) -> None:
        self._histories = histories
        self.bytes_per_token = bytes_per_token
        self._resumes = resumes

    def plan(self, request: TurnRequest, history: History, turn: int) -> Plan:
        """Raises HistoryDiffers, NothingNew, InvalidRequest."""
        incoming, caller = request.incoming, request.caller
        drafts = _with_recalled(self.news(request, history), request.recalled)
        salt = caller.salt_for(incoming.cache_salt)
        prompt = make_prompt(history, incoming, drafts, Scope(salt, caller.scope))
        body = read_params(incoming.params, incoming.model, caller, has_tools=bool(prompt.tools), resumes=self._resumes)
        recipe = prompt.recipe.with_own(drafts, history.head, body.shown)
        entries = self._histories.encode(history, drafts, turn, ends=False)
        note = msgspec.structs.replace(request.first_note(), recipe=recipe)
        return Plan(turn, drafts, entries, prompt, body, note)

    def news(self, request: TurnRequest, history: History) -> list[Draft]:
        """Raises HistoryDiffers, NothingNew."""
        return find_news(history, request.incoming, self.bytes_per_token(request.incoming.model))


def _with_recalled(drafts: list[Draft], recalled: Draft | None) -> list[Draft]:
    """Before the newest message, if that is a user's."""
    if recalled is None or not _is_users(drafts[-1]):
        return drafts
    return [*drafts[:-1], recalled, drafts[-1]]


def _is_users(draft: Draft) -> bool:
    return draft.kind is Kind.MESSAGE and msgspec.json.decode(draft.body).get("role") == "user"


def request_of(request: TurnRequest, session: SessionKey | None, plan: Plan) -> Request:
    """``session``: of the one that the turn is in, which may be a copy of the one that was asked."""
    prompt = plan.prompt
    return turn_request(
        plan.body,
        request.incoming.model,
        join_body(prompt.messages, prompt.tools, plan.body.params),
        prompt.fingerprint,
        prompt.anchor,
        prompt.earlier_bytes,
        session,
        request.headers,
        request.caller,
        request.request_id,
    )


def read_note(record: bytes) -> TurnNote:
    """Of a turn's record. Turns that a session was created with have none. Raises SessionCorrupt."""
    return read_stored(record, TurnNote) if record else TurnNote()


def read_stored(data: bytes, kind: type[T]) -> T:
    """JSON that a router wrote into the store. Raises SessionCorrupt."""
    try:
        return msgspec.json.decode(data, type=kind)
    except ValueError:
        raise SessionCorrupt("what is stored of this session cannot be read") from None
