"""Sessions' histories: the store's logs, and what this replica has read of them. Raises errors as clients are told of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import msgspec

from router.config.sessions import SessionsConfig
from router.core.errors import (
    SessionBusy,
    SessionCorrupt,
    SessionFull,
    SessionNotFound,
    StateUnavailable,
)
from router.core.request.request import Tenant
from router.sessions.context.copies import TURN
from router.sessions.context.entry import BadEntry, Draft, encode_turn
from router.sessions.context.history import History
from router.sessions.context.log import size_of
from router.sessions.context.view import WHOLE, BadView, ContextOverrides, NewerView, View, decode_view, encode_view
from router.sessions.history_cache import HistoryCache
from router.sessions.store_errors import client_error, unreadable
from router.sessions.stores.contract import (
    EMPTY,
    Append,
    Begin,
    Begun,
    Busy,
    Corrupt,
    Crowded,
    Cursor,
    Loaded,
    OwnerFull,
    Repeated,
    Sid,
    Store,
    StoreUnavailable,
)

log = logging.getLogger("warmroute.sessions")

ENTRIES_AT_ONCE = 400
"""Entries that are read at once: two milliseconds."""

ATTEMPTS = 4
"""Attempts to change a view that others change, too."""

T = TypeVar("T")


def _unobserved(*_: object) -> None:
    return


async def _ignore(_history: History) -> None:
    return


DEFAULTS = SessionsConfig()


class Histories:
    """``wall_clock``: Unix time, for entries. ``observe_load(tier, stage, seconds)``: called when a history was fetched, and
    when it was parsed; the tier is ``memory`` if nothing was missing here, else ``store``. ``observe_size(items, bytes)``:
    called when a turn has ended, with its session's size. All calls raise StateUnavailable and SessionCorrupt."""

    def __init__(
        self,
        store: Store,
        cache: HistoryCache,
        wall_clock: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
        observe_load: Callable[[str, str, float], None] = _unobserved,
        observe_size: Callable[[int, int], None] = _unobserved,
        config: SessionsConfig = DEFAULTS,
    ) -> None:
        self.store = store
        self.failures = 0
        """Calls that the store did not answer, or not in time."""
        self.refused_for_room = 0
        """Calls that were refused because their tenant has stored as much as it may."""
        self.observe_load = observe_load
        self.config = config
        self.on_deleted: Callable[[History], Awaitable[None]] = _ignore
        """Called after a session is deleted, or an item that was already cut from its prompt."""
        self.full = 0
        """Turns and copies that were refused because a log has a bound."""
        self.observe_size = observe_size
        self._clock = clock
        self.cache = cache
        self.wall_clock = wall_clock

    async def begin(self, begin: Begin) -> Begun | Busy | Repeated | None:
        began_at = self._clock()
        begun = await self.ask(self.store.begin(begin))
        if isinstance(begun, Begun):
            self._observe_fetch(begun, began_at)
        return begun

    async def append(self, history: History, append: Append) -> None:
        """To the store and to the history. Raises Fenced."""
        self.grow(history, append.entries, await self.ask(self.store.append(append)))
        if append.ends:
            self.observe_size(len(history.items), history.log.item_bytes)

    def grow(self, history: History, entries: Sequence[bytes], head: int) -> None:
        """Add entries that the store has appended. ``head``: of the log with them. The history may have them already, from
        another reader of this replica."""
        first_number = head - len(entries) + 1
        if not 0 < first_number <= history.head + 1:
            self.cache.forget(Sid(history.sid))  # others wrote in between
            return
        history.add(entries, first_number)
        self.cache.keep(Sid(history.sid), history)

    def encode(self, history: History, drafts: Sequence[Draft], turn: int, *, ends: bool) -> list[bytes]:
        """The turn's next entries."""
        return encode_turn(
            drafts,
            sid=history.sid,
            owner=history.owner,
            turn=turn,
            at=self.wall_clock(),
            link=history.log.link_of(turn),
            ends=ends,
        )[0]

    def require_room(self, history: History, drafts: Sequence[Draft]) -> None:
        """Checked before anything of a turn is stored; its answer is stored in any case. Raises SessionFull."""
        self.require_size(history, len(drafts), size_of(drafts))

    def require_size(self, history: History, added: int, added_bytes: int) -> None:
        if (
            history.head + added > self.config.max_entries
            or history.log.bytes + added_bytes > self.config.max_session_bytes
        ):
            self.full += 1
            most, most_bytes = self.config.max_entries, self.config.max_session_bytes
            raise SessionFull(
                f"a session has at most {most} entries and {most_bytes} bytes: begin another, "
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
        """All entries of one generation, oldest first; none where there is no such session."""
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
        """The history with what the store ``found`` after the ``cursor``. A long log is read in parts, and other requests are
        served in between. Raises SessionNotFound."""
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
            raise unreadable(str(error), sid) from None
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
        """A view that cannot be read is dropped, since it follows from the log. Raises NewerView."""
        try:
            return decode_view(data)
        except BadView as error:
            log.warning("a session's view cannot be read: it is cut anew", extra={"why": str(error), "sid": sid})
            return WHOLE

    async def commit_view(self, history: History, view: View) -> bool:
        """Replace the history's view. False: another was committed first, and the history has that one now. Raises
        SessionNotFound."""
        sid, epoch = Sid(history.sid), history.epoch
        committing = self.store.commit_view(sid, history.owner, history.generation, epoch, encode_view(view))
        if await self.ask(committing):
            history.use_view(view, epoch + 1)
            return True
        await self.load(sid, history.owner)
        return False

    async def erase(self, history: History, number: int) -> None:
        """Erase a deleted item from summaries and from the search index. Neither shows it from its deletion on."""
        if number > history.view.cut.number:
            return
        await self.on_deleted(history)
        with suppress(StateUnavailable):
            for _ in range(ATTEMPTS):
                if await self.commit_view(history, history.view):
                    return

    async def override(self, sid: Sid, owner: Tenant, overrides: ContextOverrides) -> History:
        """Set the session's overrides, from its next turn on. Raises SessionNotFound, SessionBusy."""
        for _ in range(ATTEMPTS):
            history, _ = await self.load(sid, owner)
            if await self.commit_view(history, msgspec.structs.replace(history.view, overrides=overrides)):
                return history
        raise SessionBusy("the session's context is being changed by others", retry_after_s=1)

    def _observe_fetch(self, found: Begun | Loaded, began_at: float) -> None:
        self.observe_load(_tier_of(found), "fetch", self._clock() - began_at)

    async def create(
        self, sid: Sid, owner: Tenant, drafts: Sequence[Draft], lifetime_s: float, *, attributes: bytes = b""
    ) -> bool:
        """False: the session exists. Raises SessionFull."""
        self.require_room(History(sid, owner, ""), drafts)
        entries = self.encode(History(sid, owner, ""), drafts, TURN, ends=True)
        turns = 1 if entries else 0
        return await self.ask(
            self.store.create(sid, owner, entries=entries, attributes=attributes, turns=turns, lifetime_s=lifetime_s)
        )

    async def delete(self, sid: Sid, owner: Tenant) -> bool:
        """False: there is no such session. A session that cannot be read is deleted, too."""
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
        """Await any call of the store. Raises RouterError where the store fails or refuses."""
        try:
            return await call
        except (Crowded, OwnerFull, StoreUnavailable, Corrupt) as error:
            self.failures += isinstance(error, StoreUnavailable)
            self.refused_for_room += isinstance(error, OwnerFull)
            raise client_error(error) from None

    async def aclose(self) -> None:
        """After the last turn."""
        await self.store.close()


async def _add_all(history: History, tail: Sequence[bytes], first_number: int) -> None:
    """Raises BadEntry."""
    for start in range(0, len(tail), ENTRIES_AT_ONCE):
        if start:
            await asyncio.sleep(0)
        history.add(tail[start : start + ENTRIES_AT_ONCE], first_number + start)


def _tier_of(found: Begun | Loaded) -> str:
    return "store" if found.tail else "memory"
