"""One entry of a session's log, as bytes in a store. Entries never change.

A message is kept as the JSON that workers are sent, so that a prompt is made by joining bytes. Each entry names its owner and
has a hash that is chained through its turn. So an entry that is missing, or belongs elsewhere, is noticed on reading.
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
    """A later release wrote it."""


class Kind(StrEnum):
    MESSAGE = "message"
    SYSTEM = "system"
    """JSON array of the messages before all others. It replaces the earlier one."""
    TOOLS = "tools"
    """JSON array. It replaces the earlier one; ``[]``: there are no tools."""
    DELETION = "deletion"
    """``[number, part]`` of an item that is deleted."""
    RECALL = "recall"
    """JSON string: what a search found for the turn's next message, as it is sent with that."""
    END = "end"
    """The end of a turn whose last message is stored already."""


class Draft(NamedTuple):
    """An entry to be. ``body``: JSON. ``tokens``: counted by the worker, or estimated."""

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
    """The turn's last entry; with it they all count."""
    link: int
    body: msgspec.Raw


_decoder = msgspec.json.Decoder(Entry)
_encoder = msgspec.json.Encoder()
_schema = msgspec.json.Decoder(list[msgspec.Raw])


def encode_turn(
    drafts: Sequence[Draft], *, sid: str, owner: Tenant, turn: int, at: float, link: int | None, ends: bool
) -> tuple[list[bytes], int]:
    """Entries of one turn, and the link for its next one. ``link``: of the turn's last entry; None: there is none. ``ends``:
    the last entry ends the turn."""
    link = first_link(sid, turn) if link is None else link
    entries = []
    for number, (kind, body, tokens) in enumerate(drafts, 1):
        link = xxh3_64_intdigest(body, link)
        is_last = ends and number == len(drafts)
        entry = Entry(SCHEMA, kind, owner, turn, round(at, 3), tokens, is_last, link, msgspec.Raw(body))
        entries.append(_encoder.encode(entry))
    return entries, link


def decode(data: bytes) -> Entry:
    """Raises BadEntry, NewerSchema. ``Log`` judges owner and place."""
    try:
        entry = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise _judge(data, error) from None
    if entry.schema != SCHEMA:
        raise NewerSchema(f"an entry has schema {entry.schema}, newer than {SCHEMA}")
    return entry


def first_link(sid: str, turn: int) -> int:
    """The link that a turn's first entry follows. No two turns share one."""
    return xxh3_64_intdigest(f"{sid}:{turn}".encode())


def _judge(data: bytes, error: msgspec.DecodeError) -> BadEntry:
    try:
        schema = int(bytes(_schema.decode(data)[0]))
    except (msgspec.DecodeError, ValueError, IndexError):
        return BadEntry(f"an entry cannot be read: {error}")
    if schema > SCHEMA:
        return NewerSchema(f"an entry has schema {schema}, newer than {SCHEMA}")
    return BadEntry(f"an entry cannot be read: {error}")
