"""Copies of sessions: a fork that lives on by itself, or a copy of one turn's own, which is only read."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from typing import NamedTuple, ParamSpec, TypeVar

from router.core.errors import SessionBusy
from router.core.request.request import Tenant
from router.sessions.context.copies import TURN, Copy, copy_of
from router.sessions.context.entry import Draft, Kind, encode_turn
from router.sessions.context.history import History
from router.sessions.context.item import Item
from router.sessions.context.log import size_of
from router.sessions.context.view import WHOLE
from router.sessions.histories import ENTRIES_AT_ONCE, Histories
from router.sessions.stores.contract import Append, Begin, Begun, Corrupt, Fenced, Sid, StoreUnavailable

COPIED_BYTES = 256 << 10
"""Most bytes of a copy that are written at once."""

COPYING_S = 60.0
"""A copy that its router did not finish within this time may be begun in by others."""

P = ParamSpec("P")
T = TypeVar("T")


class NoSuchItem(Exception):
    """The item that a copy shall end with does not count: its turn has not ended, or it was deleted."""


class TurnPosition(NamedTuple):
    """A turn, and the number that its answer was expected to have when it began."""

    turn: int
    number: int


async def copy_session(
    histories: Histories,
    sid: Sid,
    new: Sid,
    owner: Tenant,
    lifetime_s: float,
    *,
    upto: int | TurnPosition | None = None,
    attributes: bytes = b"",
) -> bool:
    """Create a session that begins as this one, with the system messages and tools that hold now. ``upto``: its last item, by
    the item's number or the turn's answer; None: the whole. O(its length); other requests are served in between. False: the
    new session exists. Raises SessionNotFound, SessionBusy, NoSuchItem."""
    history, _ = await histories.load(sid, owner)
    (drafts, view), parts, draft_bytes = await beside(len(history.items), _prepare_copy, _still(history), upto)
    if len(parts) == 1:
        is_new = await histories.create(new, owner, parts[0], lifetime_s, attributes=attributes)
    else:
        histories.require_size(History(new, owner, ""), len(drafts), draft_bytes)
        is_new = await _create_in_parts(histories, new, owner, parts, lifetime_s, attributes)
    if not is_new:
        return False
    if view != WHOLE:  # else the copy would send all that was cut here
        await histories.commit_view((await histories.load(new, owner))[0], view)
    return True


async def _create_in_parts(
    histories: Histories,
    sid: Sid,
    owner: Tenant,
    parts: Sequence[Sequence[Draft]],
    lifetime_s: float,
    attributes: bytes,
) -> bool:
    """Nothing counts before the last part is stored. A failure leaves nothing behind."""
    creating = histories.store.create(sid, owner, entries=(), attributes=attributes, turns=0, lifetime_s=lifetime_s)
    if not await histories.ask(creating):
        return False
    try:
        await _fill(histories, sid, owner, parts, lifetime_s)
    except BaseException:
        with suppress(StoreUnavailable, Corrupt):
            await histories.store.delete(sid, owner)
        raise
    return True


async def _fill(
    histories: Histories, sid: Sid, owner: Tenant, parts: Sequence[Sequence[Draft]], lifetime_s: float
) -> None:
    """Store the parts as one turn of a session that has none. Raises SessionBusy."""
    begin = Begin(
        sid=sid,
        owner=owner,
        token=secrets.token_hex(16),
        creates=False,
        waits=False,
        lease_s=COPYING_S,
        lifetime_s=lifetime_s,
    )
    begun = await histories.ask(histories.store.begin(begin))
    if not isinstance(begun, Begun) or begun.turn != TURN:
        raise _changed()
    link: int | None = None
    for number, part in enumerate(parts, 1):
        ends = number == len(parts)
        entries, link = encode_turn(
            part, sid=sid, owner=owner, turn=TURN, at=histories.wall_clock(), link=link, ends=ends
        )
        append = Append(
            sid=sid,
            owner=owner,
            generation=begun.generation,
            fence=begun.fence,
            turn=TURN,
            entries=entries,
            ends=ends,
            lifetime_s=lifetime_s,
        )
        try:
            await histories.ask(histories.store.append(append))
        except Fenced:
            raise _changed() from None


async def history_as_of(histories: Histories, sid: Sid, owner: Tenant, after: TurnPosition) -> History:
    """The history as it stood after that turn: read only. Raises SessionNotFound, NoSuchItem."""
    history, _ = await histories.load(sid, owner)
    if history.log.last_turn == after.turn:
        return history
    return _aside(histories, sid, owner, _copy_upto(history, after))


def copy_aside(histories: Histories, history: History) -> History:
    """A copy that is no session: it may be cut, and is never stored."""
    return _aside(histories, Sid(history.sid), history.owner, copy_of(history, len(history.items)))


def _aside(histories: Histories, sid: Sid, owner: Tenant, copy: Copy) -> History:
    history = History(sid, owner, "")
    history.add(histories.encode(history, copy.drafts, TURN, ends=True), 1)
    history.use_view(copy.view, 1)
    return history


def _changed() -> SessionBusy:
    return SessionBusy("the copy was changed or deleted by others before it was complete", retry_after_s=1)


def _parts_of(drafts: Sequence[Draft]) -> Iterator[Sequence[Draft]]:
    """Parts that are short enough for others to wait for; none is empty."""
    begin, part_bytes = 0, 0
    for at, draft in enumerate(drafts):
        if at > begin and (part_bytes + len(draft.body) > COPIED_BYTES or at - begin >= ENTRIES_AT_ONCE):
            yield drafts[begin:at]
            begin, part_bytes = at, 0
        part_bytes += len(draft.body)
    yield drafts[begin:]


async def beside(items: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Pure work on so many items that nobody else changes, in a thread where it would take long."""
    if items <= ENTRIES_AT_ONCE:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


def _still(history: History) -> History:
    """A copy to be read in a thread while the original changes."""
    still = copy(history)
    still.log = copy(history.log)
    still.log.items = history.items[:]
    return still


def _prepare_copy(history: History, upto: int | TurnPosition | None) -> tuple[Copy, list[Sequence[Draft]], int]:
    """The copy, its parts, and its bytes. Raises NoSuchItem."""
    found = _copy_upto(history, upto)
    return found, list(_parts_of(found.drafts or [Draft(Kind.END, b"null")])), size_of(found.drafts)


def _copy_upto(history: History, upto: int | TurnPosition | None) -> Copy:
    """Raises NoSuchItem."""
    end = len(history.items)
    if upto is not None:
        end = next((at for at, item in enumerate(history.items, 1) if _is_at(item, upto)), 0)
        if not end:
            raise NoSuchItem
    return copy_of(history, end)


def _is_at(item: Item, place: int | TurnPosition) -> bool:
    """An answer has the expected number, or a later one if another turn's late end came between."""
    if isinstance(place, int):
        return item.number == place
    return item.turn == place.turn and item.number >= place.number
