"""One entry of a session's log, as bytes in a store.

Entries are never changed. What a message is, is kept as the JSON that workers are sent, so a prompt is made by joining bytes.
Each entry names its owner and carries a hash chained through its turn, so that one which belongs elsewhere, or is missing, is
noticed when it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest

from router.core.request.request import Tenant

SCHEMA = 1


class BadEntry(Exception):
    """The bytes are no entry of this turn, owner and place. The message is for the operator."""


class NewerSchema(BadEntry):
    """Written by a later release."""


class Kind(StrEnum):
    MESSAGE = "message"
    SYSTEM = "system"
    """JSON array of the messages that stand before all others; it replaces the one before."""
    TOOLS = "tools"
    """JSON array; likewise. ``[]``: none any more."""
    DELETION = "deletion"
    """``[number, part]`` of an item that is to be left out from now on."""
    RECALL = "recall"
    """JSON string: what a search found of the log for the message that comes next in the turn, as it is sent with it."""
    END = "end"
    """Nothing but the end of a turn that brought no further message."""


class Draft(NamedTuple):
    """What shall be an entry. ``body``: JSON. ``tokens``: counted by the worker, or estimated."""

    kind: Kind
    body: bytes
    tokens: int = 0


class Entry(msgspec.Struct, frozen=True, array_like=True):
    schema: int
    kind: Kind
    owner: Tenant
    turn: int
    at: float
    """Unix time."""
    tokens: int
    ends: bool
    """The turn's last: from here on its entries count."""
    link: int
    body: msgspec.Raw


_decoder = msgspec.json.Decoder(Entry)
_encoder = msgspec.json.Encoder()
_schema = msgspec.json.Decoder(list[msgspec.Raw])


def encode_turn(
    drafts: Sequence[Draft], *, sid: str, owner: Tenant, turn: int, at: float, link: int | None, ends: bool
) -> tuple[list[bytes], int]:
    """Entries of one turn, and the link that its next entry follows. ``link``: of its entry before these; None: there is none.
    Where the turn ``ends``, the last of them says so."""
    link = first_link(sid, turn) if link is None else link
    entries = []
    for number, (kind, body, tokens) in enumerate(drafts, 1):
        link = xxh3_64_intdigest(body, link)
        is_last = ends and number == len(drafts)
        entry = Entry(SCHEMA, kind, owner, turn, round(at, 3), tokens, is_last, link, msgspec.Raw(body))
        entries.append(_encoder.encode(entry))
    return entries, link


def decode(data: bytes) -> Entry:
    """Raises BadEntry, NewerSchema. Whose it is and whether it belongs here is for ``History`` to judge."""
    try:
        entry = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise _judge(data, error) from None
    if entry.schema != SCHEMA:
        raise NewerSchema(f"an entry has schema {entry.schema}, newer than {SCHEMA}")
    return entry


def first_link(sid: str, turn: int) -> int:
    """What the first entry of a turn follows: turns of two sessions, or two of one, have no link in common."""
    return xxh3_64_intdigest(f"{sid}:{turn}".encode())


def _judge(data: bytes, error: msgspec.DecodeError) -> BadEntry:
    try:
        schema = int(bytes(_schema.decode(data)[0]))
    except (msgspec.DecodeError, ValueError, IndexError):
        return BadEntry(f"an entry cannot be read: {error}")
    if schema > SCHEMA:
        return NewerSchema(f"an entry has schema {schema}, newer than {SCHEMA}")
    return BadEntry(f"an entry cannot be read: {error}")
