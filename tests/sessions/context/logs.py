"""Logs of sessions, for tests: turns written as stores hold them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from router.core.request.request import Tenant
from router.sessions.context.entry import Draft, Kind, encode_turn
from router.sessions.context.history import History
from router.sessions.context.messages import message_bytes

SID, OWNER = "s" * 32, Tenant("acme")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def message(content: dict[str, Any]) -> Draft:
    return Draft(Kind.MESSAGE, message_bytes(content), 1)


def deletion(number: int, part: int = 0) -> Draft:
    return Draft(Kind.DELETION, msgspec.json.encode([number, part]))


def turn(number: int, *drafts: Draft | dict[str, Any], ends: bool = True, link: int | None = None) -> list[bytes]:
    """Its entries, of which the last ends it."""
    made = [draft if isinstance(draft, Draft) else message(draft) for draft in drafts]
    return encode_turn(made, sid=SID, owner=OWNER, turn=number, at=1.0, link=link, ends=ends)[0]


def history(log: Iterable[bytes] = (), first_number: int = 1) -> History:
    read = History(SID, OWNER, "g")
    read.add(log, first_number)
    return read


def history_of(*turns: Sequence[Draft | dict[str, Any]]) -> History:
    """Turns that all ended, one behind the other."""
    return history(entry for number, drafts in enumerate(turns, 1) for entry in turn(number, *drafts))


def texts(read: History) -> list[Any]:
    return [msgspec.json.decode(item.body)["content"] for item in read.items]
