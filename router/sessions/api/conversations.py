"""``/v1/conversations``: histories that clients create and fill, and that responses continue."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from typing import Any

import msgspec

from router.config.sessions import SessionsConfig
from router.core.errors import ConversationLocked, SessionNotFound
from router.server.page_routes import Call, Page
from router.sessions.api.items import find_item, items_of_turn, place_of, plain_items, public_items
from router.sessions.api.pagination import list_page, read_paging
from router.sessions.api.rules import read_on_busy
from router.sessions.api.turn_requests import turn_request
from router.sessions.context.entry import Draft, Kind
from router.sessions.context.history import History
from router.sessions.context.prompt import Incoming
from router.sessions.openai.objects import (
    conversation,
    conversation_deleted,
    item_list,
    read_changed_metadata,
    read_new_conversation,
    read_new_items,
)
from router.sessions.planner import TurnRequest, read_stored
from router.sessions.session_ids import Namespace, SessionIds
from router.sessions.stores.contract import Loaded, Sid
from router.sessions.turns import Turns
from router.wire.body_limits import BodyLimits, check_kept
from router.wire.strict_json import decode_object


class ConversationPages:
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
        one = "/v1/conversations/{conversation}"
        return {
            ("POST", "/v1/conversations"): self._create,
            ("GET", one): self._show,
            ("POST", one): self._change,
            ("DELETE", one): self._delete,
            ("GET", f"{one}/items"): self._list,
            ("POST", f"{one}/items"): self._add,
            ("GET", f"{one}/items/{{item}}"): self._show_item,
            ("DELETE", f"{one}/items/{{item}}"): self._delete_item,
        }

    async def _create(self, call: Call) -> bytes:
        messages, metadata = await call.read(partial(_read_new, limits=self._limits))
        name = f"conv_{secrets.token_hex(24)}"
        drafts = [Draft(Kind.MESSAGE, message, tokens_of(message)) for message in messages]
        await self._histories.create(
            self._sid(call, name),
            call.caller.rules.tenant,
            drafts,
            self._config.conversation_lifetime_s,
            attributes=msgspec.json.encode(metadata),
        )
        return msgspec.json.encode(conversation(name, int(self._wall_clock()), metadata))

    async def _show(self, call: Call) -> bytes:
        _, loaded = await self._load(call)
        return self._shown(call, loaded)

    async def _change(self, call: Call) -> bytes:
        metadata = msgspec.json.encode(await call.read(partial(_read_changed, limits=self._limits)))
        store, owner = self._histories.store, call.caller.rules.tenant
        if not await self._histories.ask(store.set_attributes(self._sid(call), owner, metadata)):
            raise _absent(call)
        return await self._show(call)

    async def _delete(self, call: Call) -> bytes:
        if not await self._histories.delete(self._sid(call), call.caller.rules.tenant):
            raise _absent(call)
        return msgspec.json.encode(conversation_deleted(call.names[0]))

    async def _list(self, call: Call) -> bytes:
        paging = read_paging(call.query)
        history, _ = await self._load(call)
        return list_page(self._sid(call), plain_items(history.items), paging)

    async def _add(self, call: Call) -> bytes:
        history, turn = await self._turns.add(
            self._ask(call, *await call.read(partial(_read_items, limits=self._limits)))
        )
        added = public_items(self._sid(call), items_of_turn(history, turn))
        return msgspec.json.encode(item_list(added, has_more=False))

    async def _show_item(self, call: Call) -> bytes:
        history, _ = await self._load(call)
        item = find_item(self._sid(call), history.items, call.names[1])
        if item is None:
            raise _absent_item(call)
        return msgspec.json.encode(item)

    async def _delete_item(self, call: Call) -> bytes:
        """The item stays in the log, and is in no later prompt or list."""
        history, loaded = await self._load(call)
        place = place_of(self._sid(call), call.names[1])
        if place is None or find_item(self._sid(call), history.items, call.names[1]) is None:
            raise _absent_item(call)
        request = self._ask(call, Incoming(model="", messages=(), params={}), f"delete {call.names[1]}")
        history, _ = await self._turns.append(request, [Draft(Kind.DELETION, msgspec.json.encode(place))])
        await self._histories.erase(history, place[0])
        return self._shown(call, loaded)

    async def _load(self, call: Call) -> tuple[History, Loaded]:
        try:
            return await self._histories.load(self._sid(call), call.caller.rules.tenant)
        except SessionNotFound:
            raise _absent(call) from None

    def _shown(self, call: Call, loaded: Loaded) -> bytes:
        metadata = read_stored(loaded.attributes, dict[str, str]) if loaded.attributes else {}
        return msgspec.json.encode(conversation(call.names[0], int(loaded.created_at), metadata))

    def _ask(self, call: Call, incoming: Incoming, asked: str) -> TurnRequest:
        return turn_request(call, "conversations", incoming, asked)(
            sid=self._sid(call),
            lifetime_s=self._config.conversation_lifetime_s,
            creates=False,
            on_busy=read_on_busy(call.headers, call.caller.rules, self._config, forks=False),
            busy=ConversationLocked,
            absent=lambda: _absent(call),
        )

    def _sid(self, call: Call, name: str = "") -> Sid:
        return self._session_ids.sid(call.caller.rules.tenant, Namespace.CONVERSATION, name or call.names[0])


def _read_new(body: bytes, *, limits: BodyLimits) -> tuple[list[bytes], dict[str, str]]:
    return read_new_conversation(_members(body, limits), limits)


def _read_changed(body: bytes, *, limits: BodyLimits) -> dict[str, str]:
    return read_changed_metadata(_members(body, limits))


def _read_items(body: bytes, *, limits: BodyLimits) -> tuple[Incoming, str]:
    messages = [msgspec.json.decode(message) for message in read_new_items(_members(body, limits), limits)]
    return Incoming(model="", messages=messages, params={}), sha256(body).hexdigest()


def _members(body: bytes, limits: BodyLimits) -> dict[str, Any]:
    members = decode_object(body) if body else {}
    check_kept(members, body, limits)
    return members


def tokens_of(message: bytes) -> int:
    """An estimate of four bytes a token, while no model is known."""
    return max(1, len(message) // 4)


def _absent(call: Call) -> SessionNotFound:
    return SessionNotFound(f"there is no conversation {call.names[0]!r}")


def _absent_item(call: Call) -> SessionNotFound:
    return SessionNotFound(f"there is no item {call.names[1]!r} in this conversation")
