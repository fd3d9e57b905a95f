"""``/v1/sessions/…``: sessions that clients name, for any client of chat completions."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any

import msgspec

from router.config.sessions import SessionsConfig
from router.core.errors import InvalidRequest, ModelNotFound, RouteNotFound, SessionBusy, SessionNotFound
from router.core.tenants.tenant import Caller
from router.server.page_routes import MAX_NAME_CHARS, Call, Page
from router.sessions.api.chat_codec import ChatCodec, repeated_record
from router.sessions.api.chat_requests import read_chat, streams, wants_usage
from router.sessions.api.items import ShownItem, find_item, items_of_turn, place_of, show, shown_items
from router.sessions.api.overrides import read_context_overrides, show_context
from router.sessions.api.pagination import list_page, read_paging
from router.sessions.api.rules import read_idempotency_key, read_on_busy, session_lifetime_s
from router.sessions.api.turn_requests import turn_request
from router.sessions.context.prompt import Incoming
from router.sessions.context.view import ContextOverrides
from router.sessions.copying import NoSuchItem, copy_session
from router.sessions.openai.objects import item_list, read_messages
from router.sessions.planner import TurnRequest
from router.sessions.session_ids import Namespace, SessionIds
from router.sessions.stores.contract import Sid
from router.sessions.turns import Turns
from router.wire.body_limits import BodyLimits, check_kept
from router.wire.strict_json import decode_object

log = logging.getLogger("warmroute.sessions")

FORK_CHARS = 16


class SessionPages:
    def __init__(self, turns: Turns, session_ids: SessionIds, limits: BodyLimits, config: SessionsConfig) -> None:
        self._turns = turns
        self._histories = turns.histories
        self._session_ids = session_ids
        self._limits = limits
        self._config = config

    def pages(self) -> Mapping[tuple[str, str], Page]:
        session = "/v1/sessions/{session}"
        return {
            ("POST", f"{session}/chat/completions"): self._chat,
            ("GET", session): self._show,
            ("DELETE", session): self._delete,
            ("GET", f"{session}/items"): self._list,
            ("POST", f"{session}/items"): self._add,
            ("POST", f"{session}/fork"): self._fork,
            ("GET", f"{session}/context"): self._show_context,
            ("POST", f"{session}/context"): self._set_context,
            ("GET", f"{session}/turns/{{turn}}/prompt"): self._prompt,
        }

    async def _chat(self, call: Call) -> None:
        incoming, asked = await call.read(partial(_read_chat, caller=call.caller, limits=self._limits))
        if not call.caller.rules.may_use(incoming.model):
            raise ModelNotFound.of(incoming.model)
        name = call.names[0]
        client = call.connect(call.caller.salt_for(incoming.cache_salt) if call.caller.salt_key else "")
        key = read_idempotency_key(call.headers)

        def fork() -> Sid:
            forked = _fork_name(name, key)
            client.add_head("x-warmroute-session", forked)
            return self._sid(call, forked)

        def lose() -> None:
            client.add_head("x-warmroute-state", "lost")
            log.warning("a turn goes on without its history", extra={"request_id": call.request_id})

        on_lost = lose if self._config.stateless_fallback else None
        record = repeated_record(incoming.model, call.request_id, stream=streams(incoming), started_at=call.started_at)
        codec = ChatCodec(record, stream=streams(incoming), wants_usage=wants_usage(incoming))
        request = self._ask(call, incoming, asked, fork=fork, on_lost=on_lost)
        if key and request.on_busy == "fork":
            request = replace(request, retried_in=self._sid(call, _fork_name(name, key)))
        await self._turns.run(request, codec, client)

    def _ask(self, call: Call, incoming: Incoming, asked: str, **more: Any) -> TurnRequest:
        return turn_request(call, "sessions", incoming, asked)(
            sid=self._sid(call, call.names[0]),
            lifetime_s=session_lifetime_s(self._config, call.caller.rules),
            on_busy=read_on_busy(call.headers, call.caller.rules, self._config),
            **more,
        )

    async def _show(self, call: Call) -> bytes:
        history, loaded = await self._histories.load(self._sid(call, call.names[0]), call.caller.rules.tenant)
        return msgspec.json.encode(
            {
                "id": call.names[0],
                "object": "session",
                "created_at": int(loaded.created_at),
                "turns": loaded.turns,
                "items": len(history.items),
                "tokens": sum(item.tokens for item in history.items),
                "bytes": history.log.item_bytes,
                "is_busy": loaded.is_claimed,
            }
        )

    async def _delete(self, call: Call) -> bytes:
        if not await self._histories.delete(self._sid(call, call.names[0]), call.caller.rules.tenant):
            raise SessionNotFound("there is no such session")
        return msgspec.json.encode({"id": call.names[0], "object": "session.deleted", "deleted": True})

    async def _list(self, call: Call) -> bytes:
        paging = read_paging(call.query)
        sid = self._sid(call, call.names[0])
        history, _ = await self._histories.load(sid, call.caller.rules.tenant)
        return list_page(sid, shown_items(history), paging)

    async def _add(self, call: Call) -> bytes:
        incoming, asked = await call.read(partial(_read_items, limits=self._limits))
        history, added = await self._turns.add(self._ask(call, incoming, asked))
        own = [ShownItem(item, {"status": "completed", "turn": added}) for item in items_of_turn(history, added)]
        items = [item for marked in own for item in show(Sid(history.sid), marked)]
        return msgspec.json.encode(item_list(items, has_more=False))

    async def _fork(self, call: Call) -> bytes:
        members = await call.read(decode_object)
        new, after = members.get("session_id"), members.get("after")
        if not isinstance(new, str) or not 1 <= len(new) <= MAX_NAME_CHARS or not new.isprintable():
            raise InvalidRequest("session_id must be the new session's name", param="session_id")
        owner = call.caller.rules.tenant
        sid = self._sid(call, call.names[0])
        upto = None
        if after is not None:
            history, _ = await self._histories.load(sid, owner)
            place = place_of(sid, after) if isinstance(after, str) else None
            if place is None or find_item(sid, history.items, after) is None:
                raise InvalidRequest("after names no item of this session", param="after")
            upto = place[0]
        lifetime_s = session_lifetime_s(self._config, call.caller.rules)
        try:
            is_new = await copy_session(self._histories, sid, self._sid(call, new), owner, lifetime_s, upto=upto)
        except NoSuchItem:  # deleted just now
            raise InvalidRequest("after names no item of this session", param="after") from None
        if not is_new:
            raise SessionBusy("there is a session of that name already", param="session_id", retryable=False)
        return msgspec.json.encode({"id": new, "object": "session"})

    async def _show_context(self, call: Call) -> bytes:
        history, _ = await self._histories.load(self._sid(call, call.names[0]), call.caller.rules.tenant)
        return show_context(call.names[0], history)

    async def _set_context(self, call: Call) -> bytes:
        overrides = await call.read(_read_context_overrides)
        history = await self._histories.override(self._sid(call, call.names[0]), call.caller.rules.tenant, overrides)
        return show_context(call.names[0], history)

    async def _prompt(self, call: Call) -> bytes:
        """The exact body that the worker got, but for the cache salt, which only caches use."""
        number = call.names[1]
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            raise RouteNotFound("turns are numbered from 1")
        body = await self._turns.prompt_of(self._sid(call, call.names[0]), call.caller, int(number))
        if body is None:
            raise SessionNotFound("there is no such turn")
        return body

    def _sid(self, call: Call, name: str) -> Sid:
        return self._session_ids.sid(call.caller.rules.tenant, Namespace.SESSION, name)


def _read_chat(body: bytes, *, caller: Caller, limits: BodyLimits) -> tuple[Incoming, str]:
    return read_chat(body, caller, limits), sha256(body).hexdigest()


def _read_items(body: bytes, *, limits: BodyLimits) -> tuple[Incoming, str]:
    members = decode_object(body)
    check_kept(members, body, limits)
    messages = [msgspec.json.decode(message) for message in read_messages(members, limits)]
    return Incoming(model="", messages=messages, params={}), sha256(body).hexdigest()


def _read_context_overrides(body: bytes) -> ContextOverrides:
    return read_context_overrides(decode_object(body))


def _fork_name(name: str, key: str) -> str:
    """Named so that the retry of a request finds the copy in which the first attempt went on."""
    suffix = sha256(key.encode()).hexdigest()[:FORK_CHARS] if key else secrets.token_hex(FORK_CHARS // 2)
    return f"{name[: MAX_NAME_CHARS - FORK_CHARS - 1]}~{suffix}"
