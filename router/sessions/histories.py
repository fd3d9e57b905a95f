"""Sessions' histories: the store's logs, of which what this replica has read stays in memory. Says what went wrong as clients
are to hear it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple, ParamSpec, TypeVar

import msgspec

from router.core.errors import (
    RateLimited,
    SessionBusy,
    SessionCorrupt,
    SessionFull,
    SessionNotFound,
    StateUnavailable,
    StorageFull,
)
from router.core.request.request import Tenant
from router.sessions.context.copies import TURN, Copy, copy_of
from router.sessions.context.entry import BadEntry, Draft, Kind, encode_turn
from router.sessions.context.history import History
from router.sessions.context.item import Item
from router.sessions.context.log import ITEM_OVERHEAD_BYTES
from router.sessions.context.view import WHOLE, BadView, ContextOverrides, NewerView, View, decode_view, encode_view
from router.sessions.history_cache import HistoryCache
from router.sessions.stores.contract import (
    EMPTY,
    Append,
    Begin,
    Begun,
    Busy,
    Corrupt,
    Crowded,
    Cursor,
    Fenced,
    Loaded,
    OwnerFull,
    Repeated,
    Sid,
    Store,
    StoreUnavailable,
)

log = logging.getLogger("warmroute.sessions")

ENTRIES_AT_ONCE = 400
"""Two milliseconds' reading."""

COPIED_BYTES = 256 << 10
"""Of a copy, what is written at once."""

COPYING_S = 60.0
"""After which a copy that its router did not finish may be begun in by others."""

ATTEMPTS = 4
"""To change a view that others change, too."""

P = ParamSpec("P")
T = TypeVar("T")


class NotAsked(StateUnavailable):
    """The store was spared the call, and holds nothing of it."""


class NoSuchItem(Exception):
    """What a copy is to end with does not count: its turn has not ended, or it was deleted."""


class TurnPosition(NamedTuple):
    """A place in a log: a turn, and the number that was foreseen for its last entry when it began."""

    turn: int
    number: int


def _unobserved(*_: object) -> None:
    return


async def _nobody_cares(_history: History) -> None:
    return


@dataclass(frozen=True, slots=True)
class LogBounds:
    """Of one session's log."""

    max_entries: int
    max_bytes: int


UNBOUNDED = LogBounds(1 << 62, 1 << 62)


class Histories:
    """``wall_clock``: Unix time, which entries are stamped with. ``observe_load(tier, stage, seconds)``: a history was fetched,
    or what was fetched of it parsed; its tier is memory where nothing of it was missing here. ``observe_size(items, bytes)``: a
    turn has ended, and its session counts so many. All calls raise StateUnavailable and SessionCorrupt."""

    def __init__(
        self,
        store: Store,
        cache: HistoryCache,
        wall_clock: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
        observe_load: Callable[[str, str, float], None] = _unobserved,
        observe_size: Callable[[int, int], None] = _unobserved,
        bounds: LogBounds = UNBOUNDED,
    ) -> None:
        self.store = store
        self.failures = 0
        """Calls that the store did not take, or not in time."""
        self.observe_load = observe_load
        self.bounds = bounds
        self.on_deleted: Callable[[History], Awaitable[None]] = _nobody_cares
        """Told of each session that is deleted here, or loses an item that its prompt has left behind."""
        self.full = 0
        """Turns and copies that were refused for a log's bound."""
        self.refused_for_room = 0
        """What was refused since its tenant has stored as much as it may."""
        self.observe_size = observe_size
        self._clock = clock
        self.cache = cache
        self._wall_clock = wall_clock

    async def begin(self, begin: Begin) -> Begun | Busy | Repeated | None:
        began_at = self._clock()
        begun = await self.ask(self.store.begin(begin))
        if isinstance(begun, Begun):
            self._observe_fetch(begun, began_at)
        return begun

    async def append(self, history: History, append: Append) -> None:
        """The history has the entries, too. Raises Fenced."""
        self.grow(history, append.entries, await self.ask(self.store.append(append)))
        if append.ends:
            self.observe_size(len(history.items), history.log.item_bytes)

    def grow(self, history: History, entries: Sequence[bytes], head: int) -> None:
        """By what the store has appended for this replica; ``head``: the log's, then. Another reader of this replica may have
        met the entries before."""
        first_number = head - len(entries) + 1
        if not 0 < first_number <= history.head + 1:
            self.cache.forget(Sid(history.sid))  # others wrote in between, or nobody knows
            return
        history.add(entries, first_number)
        self.cache.keep(Sid(history.sid), history)

    def encode(self, history: History, drafts: Sequence[Draft], turn: int, *, ends: bool) -> list[bytes]:
        """What is next of that turn, as entries behind those that the history has of it."""
        return encode_turn(
            drafts,
            sid=history.sid,
            owner=history.owner,
            turn=turn,
            at=self._wall_clock(),
            link=history.log.link_of(turn),
            ends=ends,
        )[0]

    def require_room(self, history: History, drafts: Sequence[Draft]) -> None:
        """Whoever asks for a turn is told before anything of it is stored; the answer of one that has begun always fits.
        Raises SessionFull."""
        self._require_room(history, len(drafts), _size_of(drafts))

    def _require_room(self, history: History, added: int, added_bytes: int) -> None:
        if history.head + added > self.bounds.max_entries or history.log.bytes + added_bytes > self.bounds.max_bytes:
            self.full += 1
            raise SessionFull(
                f"a session has at most {self.bounds.max_entries} entries and {self.bounds.max_bytes} bytes: begin another, "
                "or fork this one after an earlier item"
            )

    async def load(self, sid: Sid, owner: Tenant) -> tuple[History, Loaded]:
        """Raises SessionNotFound."""
        known = self.cache.known(sid)
        began_at = self._clock()
        loaded = await self.ask(self.store.load(sid, owner, known))
        if loaded is None:
            self.cache.forget(sid)
            raise SessionNotFound("there is no such session")
        self._observe_fetch(loaded, began_at)
        history = await self.follow(sid, owner, known, loaded)
        history.turns = max(history.turns, loaded.turns)
        return history, loaded

    async def log_of(self, sid: Sid, owner: Tenant) -> list[bytes]:
        """All entries, oldest first; none where there is no such session. Of no more than one generation."""
        entries: list[bytes] = []
        known = EMPTY
        while (loaded := await self.ask(self.store.load(sid, owner, known))) is not None:
            if loaded.starts_over:
                entries.clear()
            entries += loaded.tail
            if len(entries) >= loaded.head:
                return entries
            known = Cursor(loaded.generation, len(entries), loaded.epoch)
        return []

    async def follow(self, sid: Sid, owner: Tenant, cursor: Cursor, found: Begun | Loaded) -> History:
        """The history, with what the store told beyond ``cursor``, and what that left out. A long log is read in parts, with
        others served in between. Raises SessionNotFound."""
        if found.starts_over:
            self.cache.forget(sid)
        history = self.cache.find(sid, owner, EMPTY if found.starts_over else cursor, found.generation)
        if history is None:
            return (await self.load(sid, owner))[0]
        began_at = self._clock()
        first_number = 1 if found.starts_over or cursor.generation != found.generation else cursor.head + 1
        try:
            await _add_all(history, found.tail, first_number)
            while found.tail and history.head < found.head:
                await self._read_on(history, sid, owner)
            if found.view is not None:
                history.use_view(self._view_of(found.view, sid), found.epoch)
        except (BadEntry, NewerView) as error:
            self.cache.forget(sid)
            raise _unreadable(str(error), sid) from None
        self.observe_load(_tier_of(found), "parse", self._clock() - began_at)
        self.cache.keep(sid, history)
        return history

    async def _read_on(self, history: History, sid: Sid, owner: Tenant) -> None:
        """Raises SessionNotFound, BadEntry."""
        known = Cursor(history.generation, history.head, history.epoch)
        more = await self.ask(self.store.load(sid, owner, known))
        if more is None or more.generation != history.generation or more.starts_over:
            self.cache.forget(sid)
            raise SessionNotFound("there is no such session")  # it was deleted just now
        await _add_all(history, more.tail, known.head + 1)

    def _view_of(self, data: bytes, sid: Sid) -> View:
        """One that cannot be read is as none: all that it says follows from the log. Raises NewerView."""
        try:
            return decode_view(data)
        except BadView as error:
            log.warning("a session's view cannot be read: it is cut anew", extra={"why": str(error), "sid": sid})
            return WHOLE

    async def commit_view(self, history: History, view: View) -> bool:
        """Instead of the one that the history has. False: another came before, and the history has that now. Raises
        SessionNotFound."""
        sid, epoch = Sid(history.sid), history.epoch
        committing = self.store.commit_view(sid, history.owner, history.generation, epoch, encode_view(view))
        if await self.ask(committing):
            history.use_view(view, epoch + 1)
            return True
        await self.load(sid, history.owner)
        return False

    async def erase(self, history: History, number: int) -> None:
        """Of an item that was deleted, what is kept elsewhere: notes that told of it, and what made it searchable. No notes
        that tell of it are sent in any case, nor is it found."""
        if number > history.view.cut.number:
            return
        await self.on_deleted(history)
        with suppress(StateUnavailable):
            for _ in range(ATTEMPTS):
                if await self.commit_view(history, history.view):
                    return

    async def override(self, sid: Sid, owner: Tenant, overrides: ContextOverrides) -> History:
        """Of the session, from its next turn on. Raises SessionNotFound, SessionBusy."""
        for _ in range(ATTEMPTS):
            history, _ = await self.load(sid, owner)
            if await self.commit_view(history, msgspec.structs.replace(history.view, overrides=overrides)):
                return history
        raise SessionBusy("the session's context is being changed by others", retry_after_s=1)

    def _observe_fetch(self, found: Begun | Loaded, began_at: float) -> None:
        self.observe_load(_tier_of(found), "fetch", self._clock() - began_at)

    async def copy(
        self,
        sid: Sid,
        new: Sid,
        owner: Tenant,
        lifetime_s: float,
        *,
        upto: int | TurnPosition | None = None,
        attributes: bytes = b"",
    ) -> bool:
        """A session of its own that begins as this one, up to the item of that number or the turn's answer, with the system
        messages and tools that hold now; ``upto`` None: whole. O(its length), with others' calls in between. False: the new
        one exists. Raises SessionNotFound, SessionBusy, NoSuchItem."""
        history, _ = await self.load(sid, owner)
        (drafts, view), parts, draft_bytes = await beside(len(history.items), _prepare_copy, _still(history), upto)
        if len(parts) == 1:
            is_new = await self.create(new, owner, parts[0], lifetime_s, attributes=attributes)
        else:
            self._require_room(History(new, owner, ""), len(drafts), draft_bytes)
            is_new = await self._create_in_parts(new, owner, parts, lifetime_s, attributes)
        if not is_new:
            return False
        if view != WHOLE:  # without it the copy would begin with all that this one has left behind
            await self.commit_view((await self.load(new, owner))[0], view)
        return True

    async def _create_in_parts(
        self, sid: Sid, owner: Tenant, parts: Sequence[Sequence[Draft]], lifetime_s: float, attributes: bytes
    ) -> bool:
        """Until the last part is there, nothing of it counts, and what fails leaves nothing behind."""
        creating = self.store.create(sid, owner, entries=(), attributes=attributes, turns=0, lifetime_s=lifetime_s)
        if not await self.ask(creating):
            return False
        try:
            await self._fill(sid, owner, parts, lifetime_s)
        except BaseException:
            with suppress(StoreUnavailable, Corrupt):
                await self.store.delete(sid, owner)
            raise
        return True

    async def _fill(self, sid: Sid, owner: Tenant, parts: Sequence[Sequence[Draft]], lifetime_s: float) -> None:
        """A session without turns, by one. Raises SessionBusy."""
        begin = Begin(
            sid=sid,
            owner=owner,
            token=secrets.token_hex(16),
            creates=False,
            waits=False,
            lease_s=COPYING_S,
            lifetime_s=lifetime_s,
        )
        begun = await self.ask(self.store.begin(begin))
        if not isinstance(begun, Begun) or begun.turn != TURN:
            raise _changed()
        link: int | None = None
        for number, part in enumerate(parts, 1):
            ends = number == len(parts)
            entries, link = encode_turn(
                part, sid=sid, owner=owner, turn=TURN, at=self._wall_clock(), link=link, ends=ends
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
                await self.ask(self.store.append(append))
            except Fenced:
                raise _changed() from None

    async def as_of(self, sid: Sid, owner: Tenant, after: TurnPosition) -> History:
        """As it stood behind that turn: to be read, not to be written. Raises SessionNotFound, NoSuchItem."""
        history, _ = await self.load(sid, owner)
        if history.log.last_turn == after.turn:
            return history
        return self._aside(sid, owner, _copy_upto(history, after))

    def aside(self, history: History) -> History:
        """A copy that is no session: to be read and cut, not to be written."""
        return self._aside(Sid(history.sid), history.owner, copy_of(history, len(history.items)))

    def _aside(self, sid: Sid, owner: Tenant, copy: Copy) -> History:
        history = History(sid, owner, "")
        history.add(self.encode(history, copy.drafts, TURN, ends=True), 1)
        history.use_view(copy.view, 1)
        return history

    async def create(
        self, sid: Sid, owner: Tenant, drafts: Sequence[Draft], lifetime_s: float, *, attributes: bytes = b""
    ) -> bool:
        """False: it exists. Raises SessionFull."""
        self.require_room(History(sid, owner, ""), drafts)
        entries = self.encode(History(sid, owner, ""), drafts, TURN, ends=True)
        turns = 1 if entries else 0
        return await self.ask(
            self.store.create(sid, owner, entries=entries, attributes=attributes, turns=turns, lifetime_s=lifetime_s)
        )

    async def delete(self, sid: Sid, owner: Tenant) -> bool:
        """False: there is none. One that cannot be read, or not in time, is deleted all the same."""
        known = self.cache.get(sid)
        if known is None:
            with suppress(SessionNotFound, SessionCorrupt, StateUnavailable):
                known, _ = await self.load(sid, owner)
        self.cache.forget(sid)
        is_deleted = await self.ask(self.store.delete(sid, owner))
        if is_deleted and known is not None and known.owner == owner:
            known.is_deleted = True
            await self.on_deleted(known)
        return is_deleted

    async def ask(self, call: Awaitable[T]) -> T:
        """Anything of the store."""
        try:
            return await call
        except Crowded as error:
            raise RateLimited(f"{error}: send fewer at once, or smaller ones", retry_after_s=1) from None
        except OwnerFull as error:
            self.refused_for_room += 1
            raise StorageFull(f"the tenant has stored {error}: delete sessions, conversations or responses") from None
        except StoreUnavailable as error:
            self.failures += 1
            log.warning("the session store failed", extra={"why": str(error)})
            kind = StateUnavailable if error.was_asked else NotAsked
            raise kind("the session store cannot be reached", retry_after_s=1) from None
        except Corrupt as error:
            raise _unreadable(str(error)) from None

    async def aclose(self) -> None:
        """Behind the last turn."""
        await self.store.close()


async def _add_all(history: History, tail: Sequence[bytes], first_number: int) -> None:
    """Raises BadEntry."""
    for start in range(0, len(tail), ENTRIES_AT_ONCE):
        if start:
            await asyncio.sleep(0)
        history.add(tail[start : start + ENTRIES_AT_ONCE], first_number + start)


def _tier_of(found: Begun | Loaded) -> str:
    return "store" if found.tail else "memory"


def _changed() -> SessionBusy:
    return SessionBusy("another has begun in the copy, or deleted it, before it was whole", retry_after_s=1)


def _parts_of(drafts: Sequence[Draft]) -> Iterator[Sequence[Draft]]:
    """Each is what others may have to wait for; none is empty."""
    begin, part_bytes = 0, 0
    for at, draft in enumerate(drafts):
        if at > begin and (part_bytes + len(draft.body) > COPIED_BYTES or at - begin >= ENTRIES_AT_ONCE):
            yield drafts[begin:at]
            begin, part_bytes = at, 0
        part_bytes += len(draft.body)
    yield drafts[begin:]


def _size_of(drafts: Sequence[Draft]) -> int:
    return sum(len(draft.body) + ITEM_OVERHEAD_BYTES for draft in drafts)


async def beside(items: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Pure work on so many items of nobody else's: in a thread, where it would hold up others."""
    if items <= ENTRIES_AT_ONCE:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


def _still(history: History) -> History:
    """To be read in a thread, while the other goes on."""
    still = copy(history)
    still.log = copy(history.log)
    still.log.items = history.items[:]
    return still


def _prepare_copy(history: History, upto: int | TurnPosition | None) -> tuple[Copy, list[Sequence[Draft]], int]:
    """With its parts, and how large it is. Raises NoSuchItem."""
    found = _copy_upto(history, upto)
    return found, list(_parts_of(found.drafts or [Draft(Kind.END, b"null")])), _size_of(found.drafts)


def _copy_upto(history: History, upto: int | TurnPosition | None) -> Copy:
    """Raises NoSuchItem."""
    end = len(history.items)
    if upto is not None:
        end = next((at for at, item in enumerate(history.items, 1) if _is_at(item, upto)), 0)
        if not end:
            raise NoSuchItem
    return copy_of(history, end)


def _is_at(item: Item, place: int | TurnPosition) -> bool:
    """An answer has the number that was foreseen for it, or a later one where another turn's late end came between."""
    if isinstance(place, int):
        return item.number == place
    return item.turn == place.turn and item.number >= place.number


def _unreadable(why: str, sid: str = "") -> SessionCorrupt:
    log.error("a session cannot be read", extra={"why": why, "sid": sid})
    return SessionCorrupt("what is stored of this session cannot be read")
