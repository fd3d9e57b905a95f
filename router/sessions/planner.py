"""Plans a turn: what a client asks of a session → entries for the log and a request to a worker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import msgspec

from router.core.errors import InvalidRequest, RouterError, SessionBusy, SessionCorrupt, SessionNotFound
from router.core.request.request import Request, SessionKey
from router.core.tenants.tenant import Caller, OnBusy
from router.sessions.context.entry import Draft, Kind
from router.sessions.context.history import History
from router.sessions.context.prompt import (
    HistoryDiffers,
    Incoming,
    NothingNew,
    Prompt,
    Recipe,
    Scope,
    find_news,
    join_body,
    make_prompt,
)
from router.sessions.context.view import NO_OVERRIDES, ContextOverrides
from router.sessions.copying import TurnPosition
from router.sessions.histories import Histories
from router.sessions.stores.contract import Sid
from router.wire.requests import TurnBody, read_params, turn_request

T = TypeVar("T")

ApiName = Literal["sessions", "responses", "conversations"]
"""The API that a turn came by. A response that names a conversation counts as ``conversations``."""


class TurnNote(msgspec.Struct, frozen=True, kw_only=True):
    """A turn's record in the store. ``recipe``: None where no model is asked, or not yet. ``asked``: digest of the client's
    body. ``note``: the API's own, of the answer."""

    recipe: Recipe | None = None
    asked: str = ""
    note: msgspec.Raw = msgspec.Raw(b"null")


def no_session() -> RouterError:
    return SessionNotFound("there is no such session")


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRequest:
    """One request for a turn, by any API."""

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
    """Digest of the body, which tells a repetition from another request with the same idempotency key."""
    body_bytes: int = 0
    """Size of the client's body."""
    overrides: ContextOverrides = NO_OVERRIDES
    """The request's own context settings."""
    recalled: Draft | None = None
    """Text that a search found for the question."""
    has_searched: bool = False
    note: bytes = b"null"
    """The API's own note of the turn while it runs."""
    busy: type[SessionBusy] = SessionBusy
    absent: Callable[[], RouterError] = no_session
    """Makes the error for a session that does not exist, in the API's words."""
    after: TurnPosition | None = None
    """The turn that this one follows. If another has ended since, this turn goes on in a copy. None: it follows whichever is
    the last."""
    copies: bool = False
    """True: the turn goes on in a copy in any case."""
    fork: Callable[[], Sid] | None = None
    """Makes the id of a copy, for a turn that does not wait or does not follow the last one."""
    retried_in: Sid | None = None
    """The copy in which an earlier attempt with the same idempotency key may have gone on."""
    on_lost: Callable[[], None] | None = None
    """Called when the store is away and the turn goes on without its history. None: the turn fails then."""
    on_begun: Callable[[Sid, TurnPosition], Awaitable[None]] | None = None
    """Called before a worker is asked, with the session and turn, and the number that its answer will have. Raises RouterError.
    """

    def first_note(self) -> TurnNote:
        """The turn's record while its prompt is not known."""
        return TurnNote(asked=self.asked, note=msgspec.Raw(self.note))


class Plan(NamedTuple):
    """The entries that a turn adds to the log, and the request that it sends."""

    turn: int
    drafts: list[Draft]
    entries: list[bytes]
    prompt: Prompt
    body: TurnBody
    note: TurnNote


class Planner:
    """``bytes_per_token``: by model. ``resumes``: streams may be resumed by another worker."""

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

    def require_plan(self, request: TurnRequest, history: History, turn: int) -> Plan:
        """Like ``plan``, with errors for the client. Raises InvalidRequest."""
        try:
            return self.plan(request, history, turn)
        except HistoryDiffers:
            why = (
                "the messages repeat a history that is not this session's: send new messages only, or fork the session"
            )
        except NothingNew:
            why = "there is no message that the session does not have already"
        raise InvalidRequest(why, param="messages")

    def news(self, request: TurnRequest, history: History) -> list[Draft]:
        """Raises HistoryDiffers, NothingNew."""
        return find_news(history, request.incoming, self.bytes_per_token(request.incoming.model))


def _with_recalled(drafts: list[Draft], recalled: Draft | None) -> list[Draft]:
    """Puts recalled text before the newest message, if that is a user's."""
    if recalled is None or not _is_users(drafts[-1]):
        return drafts
    return [*drafts[:-1], recalled, drafts[-1]]


def _is_users(draft: Draft) -> bool:
    return draft.kind is Kind.MESSAGE and msgspec.json.decode(draft.body).get("role") == "user"


def request_of(request: TurnRequest, session: SessionKey | None, plan: Plan) -> Request:
    """``session``: where the turn runs, which may be a copy of the session in ``request``."""
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
    """Reads a turn's record. The turn that a session was created with has none. Raises SessionCorrupt."""
    return read_stored(record, TurnNote) if record else TurnNote()


def read_same_note(request: TurnRequest, record: bytes) -> TurnNote:
    """Like ``read_note``, for a turn that is repeated. Raises InvalidRequest where the turn had another request."""
    note = read_note(record)
    if note.asked != request.asked:
        raise InvalidRequest("this Idempotency-Key was used for another request", param="Idempotency-Key")
    return note


def read_stored(data: bytes, kind: type[T]) -> T:
    """Reads JSON that a router wrote into the store. Raises SessionCorrupt."""
    try:
        return msgspec.json.decode(data, type=kind)
    except ValueError:
        raise SessionCorrupt("what is stored of this session cannot be read") from None
