"""``/v1/responses``: responses are stored here, and asked of workers as chat completions."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from typing import Any

import msgspec

from router.config.sessions import SessionsConfig
from router.core.errors import (
    ConversationLocked,
    InvalidRequest,
    ModelNotFound,
    PreviousResponseNotFound,
    SessionNotFound,
)
from router.core.tenants.tenant import ContextStrategy
from router.server.page_routes import Call, Page
from router.sessions.api.chat_codec import repeated_record
from router.sessions.api.items import ShownItem
from router.sessions.api.pagination import list_page, read_paging
from router.sessions.api.responses_codec import ResponsesCodec
from router.sessions.api.rules import read_idempotency_key, read_on_busy, read_overrides
from router.sessions.api.turn_requests import turn_request
from router.sessions.context.prompt import Incoming
from router.sessions.context.view import ContextOverrides
from router.sessions.copying import TurnPosition
from router.sessions.openai.input import ResponsesRequest, read_create
from router.sessions.openai.objects import response_deleted
from router.sessions.openai.shapes import failure
from router.sessions.planner import TurnRequest, read_note, read_stored
from router.sessions.session_ids import Namespace, SessionIds
from router.sessions.stores.contract import Sid
from router.sessions.turns import Turns
from router.wire.body_limits import BodyLimits, check_kept
from router.wire.strict_json import decode_object

MAX_THRESHOLD = 10**9

MAX_TURNS_SEARCHED = 100
"""Most turns that are searched for a response of a chain."""


class ResponseRef(msgspec.Struct, frozen=True):
    """The place of a response in a session's log, stored under the response's id. ``number``: its answer's."""

    sid: Sid
    turn: int
    number: int
    is_in_conversation: bool = False

    @property
    def after(self) -> TurnPosition:
        return TurnPosition(self.turn, self.number)


class ResponsePages:
    """``wall_clock``: Unix time."""

    def __init__(
        self,
        turns: Turns,
        session_ids: SessionIds,
        limits: BodyLimits,
        config: SessionsConfig,
        wall_clock: Callable[[], float],
    ) -> None:
        self._turns = turns
        self._histories = turns.histories
        self._session_ids = session_ids
        self._limits = limits
        self._config = config
        self._wall_clock = wall_clock

    def pages(self) -> Mapping[tuple[str, str], Page]:
        response = "/v1/responses/{response}"
        return {
            ("POST", "/v1/responses"): self._create,
            ("GET", response): self._show,
            ("DELETE", response): self._delete,
            ("POST", f"{response}/cancel"): self._cancel,
            ("GET", f"{response}/input_items"): self._input_items,
        }

    async def _create(self, call: Call) -> None:
        asked, digest = await call.read(partial(_read_create, limits=self._limits))
        if not call.caller.rules.may_use(asked.model):
            raise ModelNotFound.of(asked.model)
        response_id = f"resp_{secrets.token_hex(24)}"
        record = repeated_record(asked.model, call.request_id, stream=asked.stream, started_at=call.started_at)
        codec = ResponsesCodec(
            record,
            response_id,
            asked.echo,
            self._wall_clock,
            stream=asked.stream,
            wants_logprobs=asked.wants_logprobs,
        )
        before = None
        if (
            asked.previous_response_id is not None
            and (before := await self._find(call, asked.previous_response_id)) is None
        ):
            raise _no_previous(asked)
        request = self._ask(call, asked, digest, response_id, codec, before)
        client = call.connect(call.caller.salt_for(request.incoming.cache_salt) if call.caller.salt_key else "")
        if asked.store or asked.conversation is not None:
            await self._turns.run(request, codec, client)
        else:
            request = dataclasses.replace(request, sid=self._own_sid(call, response_id))
            await self._turns.run_ephemeral(
                request, codec, client, None if before is None else (before.sid, before.after)
            )

    def _ask(
        self,
        call: Call,
        asked: ResponsesRequest,
        digest: str,
        response_id: str,
        codec: ResponsesCodec,
        before: ResponseRef | None,
    ) -> TurnRequest:
        """The turn, in a conversation, after another response, or at the start of its own chain. A turn that follows a
        conversation's response without naming the conversation runs in a copy."""
        tenant = call.caller.rules.tenant
        key = read_idempotency_key(call.headers)
        own = self._own_sid(call, f"key:{key}:{asked.previous_response_id or ''}" if key else response_id)
        on_busy = read_on_busy(call.headers, call.caller.rules, self._config, forks=False)
        copies = before is not None and before.is_in_conversation
        common = partial(
            turn_request(
                call, "responses" if asked.conversation is None else "conversations", incoming_of(asked), digest
            ),
            note=codec.under_way(),
            overrides=read_overrides(call.headers).over(overrides_of(asked)),
            on_begun=partial(self._put_ref, call, response_id, asked) if asked.store else None,
        )
        if asked.conversation is not None:
            return common(
                sid=self._session_ids.sid(tenant, Namespace.CONVERSATION, asked.conversation),
                lifetime_s=self._config.conversation_lifetime_s,
                creates=False,
                on_busy=on_busy,
                busy=ConversationLocked,
                absent=partial(_no_conversation, asked),
            )
        if before is None:
            return common(sid=own, lifetime_s=self._config.response_lifetime_s, on_busy=on_busy)
        return common(
            sid=before.sid,
            lifetime_s=self._config.response_lifetime_s,
            creates=False,
            on_busy="queue" if copies else "fork",
            absent=partial(_no_previous, asked),
            after=before.after,
            copies=copies,
            fork=lambda: own,
        )

    async def _put_ref(
        self, call: Call, response_id: str, asked: ResponsesRequest, sid: Sid, after: TurnPosition
    ) -> None:
        place = ResponseRef(sid, after.turn, after.number, asked.conversation is not None)
        tenant, lifetime_s = call.caller.rules.tenant, self._config.response_lifetime_s
        body = msgspec.json.encode(place)
        await self._histories.ask(
            self._histories.store.put_document(self._key(call, response_id), tenant, body, lifetime_s)
        )

    def _own_sid(self, call: Call, name: str) -> Sid:
        return self._session_ids.sid(call.caller.rules.tenant, Namespace.CHAIN, name)

    async def _show(self, call: Call) -> bytes:
        if call.query.get("stream") == "true":
            raise InvalidRequest("a stored response is not streamed again", param="stream")
        return msgspec.json.encode(await self._response(call))

    async def _delete(self, call: Call) -> bytes:
        key, tenant = self._key(call, call.names[0]), call.caller.rules.tenant
        place = await self._find(call, call.names[0])
        if place is None or not await self._histories.ask(self._histories.store.delete_document(key, tenant)):
            raise _absent(call)
        if not place.is_in_conversation and not await self._is_followed(call, place.sid):
            await self._histories.delete(place.sid, tenant)
        return msgspec.json.encode(response_deleted(call.names[0]))

    async def _is_followed(self, call: Call, sid: Sid) -> bool:
        """True if the chain has a response left, or a turn under way. The newest turns are searched; a longer chain counts as
        having one."""
        store, tenant = self._histories.store, call.caller.rules.tenant
        loaded = await self._histories.ask(store.load(sid, tenant, self._histories.cache.known(sid)))
        if loaded is None or loaded.is_claimed:
            return loaded is not None
        for turn in range(loaded.turns, max(0, loaded.turns - MAX_TURNS_SEARCHED), -1):
            record = await self._histories.ask(store.read_turn(sid, tenant, turn))
            response_id = _id_in(record.record) if record is not None else ""
            place = await self._find(call, response_id) if response_id else None
            if place is not None and place.sid == sid:  # else the turn ran in a copy
                return True
        return loaded.turns > MAX_TURNS_SEARCHED

    async def _cancel(self, call: Call) -> bytes:
        if await self._find(call, call.names[0]) is None:
            raise _absent(call)
        raise InvalidRequest("Cannot cancel a synchronous response.")  # the API's words

    async def _input_items(self, call: Call) -> bytes:
        """The items of its request."""
        paging = read_paging(call.query)
        place = await self._find(call, call.names[0])
        if place is None:
            raise _absent(call)
        try:
            history, _ = await self._histories.load(place.sid, call.caller.rules.tenant)
        except SessionNotFound:
            raise _absent(call) from None
        items = [item for item in history.items if item.turn == place.turn and item.number < place.number]
        items = items or [item for item in history.log.unfinished(place.turn) if item.number < place.number]
        return list_page(place.sid, [ShownItem(item) for item in items], paging)

    async def _response(self, call: Call) -> dict[str, Any]:
        """The response in its turn's record. It has failed if the turn stopped without an end."""
        tenant = call.caller.rules.tenant
        place = await self._find(call, call.names[0])
        store = self._histories.store
        record = None if place is None else await self._histories.ask(store.read_turn(place.sid, tenant, place.turn))
        if place is None or record is None:
            raise _absent(call)
        response: dict[str, Any] = read_stored(read_note(record.record).note, dict[str, Any])
        if not record.has_ended:
            loaded = await self._histories.ask(store.load(place.sid, tenant, self._histories.cache.known(place.sid)))
            if loaded is None or not loaded.is_claimed or loaded.turns != place.turn:
                return {**response, "status": "failed", "error": failure(500, "")}
        return response

    async def _find(self, call: Call, response_id: str) -> ResponseRef | None:
        store = self._histories.store
        body = await self._histories.ask(store.get_document(self._key(call, response_id), call.caller.rules.tenant))
        return None if body is None else read_stored(body, ResponseRef)

    def _key(self, call: Call, response_id: str) -> Sid:
        return self._session_ids.sid(call.caller.rules.tenant, Namespace.RESPONSE, response_id)


def _read_create(body: bytes, *, limits: BodyLimits) -> tuple[ResponsesRequest, str]:
    members = decode_object(body)
    check_kept(members, body, limits)
    return read_create(members, limits), sha256(body).hexdigest()


def incoming_of(asked: ResponsesRequest) -> Incoming:
    """Instructions and tools hold for this turn alone."""
    return Incoming(
        model=asked.model,
        messages=[msgspec.json.decode(message) for message in asked.messages],
        params={name: value for name, value in asked.params.items() if name != "model"},
        turn_system=[{"role": "system", "content": asked.instructions}] if asked.instructions else (),
        turn_tools=msgspec.json.decode(asked.tools) if asked.tools else [],
    )


def _id_in(record: bytes) -> str:
    """The id of the response in a turn's record; empty: there is none."""
    note = read_note(record).note
    return "" if bytes(note) == b"null" else str(read_stored(note, dict[str, Any]).get("id", ""))


def _absent(call: Call) -> SessionNotFound:
    return SessionNotFound(f"there is no response {call.names[0]!r}")


def _no_previous(asked: ResponsesRequest) -> PreviousResponseNotFound:
    return PreviousResponseNotFound(
        f"there is no response {asked.previous_response_id!r}", param="previous_response_id"
    )


def _no_conversation(asked: ResponsesRequest) -> SessionNotFound:
    return SessionNotFound(f"there is no conversation {asked.conversation!r}", param="conversation")


def overrides_of(asked: ResponsesRequest) -> ContextOverrides:
    """Context overrides from ``truncation`` and ``context_management``. Raises InvalidRequest."""
    for edit in asked.context_management:
        threshold = edit.get("compact_threshold", 0)
        if edit.get("type") != "compaction" or not isinstance(threshold, int) or not 0 <= threshold <= MAX_THRESHOLD:
            raise InvalidRequest(
                "context_management takes {type: compaction, compact_threshold: tokens}", param="context_management"
            )
        return ContextOverrides(strategy="summary", high_tokens=threshold)
    strategies: dict[str | None, ContextStrategy] = {"auto": "window", "disabled": "none"}
    return ContextOverrides(strategy=strategies.get(asked.truncation))
