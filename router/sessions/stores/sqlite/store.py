"""Sessions in one SQLite file, for one machine, or in the memory of the process.

The claims are in the file, so several routers on one machine may share it. Leases go by the monotonic clock of the boot, and
end with a reboot, so that setting the wall clock takes no claim away. Lifetimes go by Unix time.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Concatenate, ParamSpec, Self, TypeVar

from router.core.request.request import NO_TENANT, Tenant
from router.runtime.fair_turns import FairTurns
from router.runtime.sqlite_thread import IN_MEMORY
from router.sessions.stores.contract import (
    DEFAULT_LIMITS,
    Append,
    Begin,
    Begun,
    Busy,
    Crowded,
    Cursor,
    Full,
    Loaded,
    OwnerLimits,
    Repeated,
    Sid,
    StoreUnavailable,
    TurnRecord,
    Usage,
    size_of,
)
from router.sessions.stores.sqlite import documents, rows, turns
from router.sessions.stores.sqlite.database import Clock, Database, Synchronous, Transaction

P = ParamSpec("P")
T = TypeVar("T")

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
WRITES_PER_CHECKPOINT = 64
SWEPT_ENTRIES, SWEPT_DOCUMENTS = 500, 50
"""Deleted by one transaction at most, so that other calls wait for a short time only."""

MAX_OWNER_CALLS = 2
"""Calls of one owner in the queue of each thread: two keep the thread busy, and others wait for no more than two."""
MAX_CALLS = 8
WEIGHT_BYTES = 1 << 20
"""Size of the write that shows whether a disk that was full has room again."""


class SqliteStore:
    def __init__(self, writer: Database, reader: Database, limits: OwnerLimits, timeout_s: float) -> None:
        self._writer = writer
        self._reader = reader
        self._limits = limits
        bounds = {"max_calls": MAX_CALLS, "max_owner_calls": MAX_OWNER_CALLS, "max_waiting": writer.max_pending}
        self.writes, self.reads = (FairTurns(max_wait_s=timeout_s, refuse=Crowded, **bounds) for _ in range(2))
        self.lines = (self.writes, self.reads)
        self._writes = 0
        self._is_untidy = False
        """Deleted data is still in the write-ahead log."""
        self._was_full = False
        """A write found no room, and no large write has succeeded since."""

    @classmethod
    async def open(
        cls,
        path: Path,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        *,
        synchronous: Synchronous = "NORMAL",
        max_pending: int = 256,
        timeout_s: float = 5.0,
        boot: str = "",
        limits: OwnerLimits = DEFAULT_LIMITS,
    ) -> Self:
        """``path``: a file, or ``IN_MEMORY``. A missing file is made, with its directory, so that only the owner can read it.
        ``clock``: the boot's monotonic one. ``timeout_s``: for a call to begin, from its place in the thread's queue on, and
        again for it to end; half of it may be spent on waiting for another process. ``boot``: by default this machine's. A disk
        without room is no reason not to open it. Raises StoreUnavailable or Corrupt."""
        open_ = partial(
            Database.open,
            path,
            Clock(clock, wall_clock, boot or read_boot()),
            max_pending=max_pending,
            timeout_s=timeout_s,
        )
        writer = await open_(synchronous)
        try:
            reader = writer if path == IN_MEMORY else await open_(None)
        except BaseException:
            await writer.close()
            raise
        store = cls(writer, reader, limits, timeout_s)
        with suppress(StoreUnavailable):
            await writer.fit_to_disk()
        return store

    @property
    def pending(self) -> int:
        """Calls that wait for the threads, and those that they run."""
        databases = {self._writer, self._reader}
        return sum(database.pending for database in databases) + self.writes.waiting + self.reads.waiting

    @property
    def max_pending(self) -> int:
        """For one owner."""
        return self._writer.max_pending + self._reader.max_pending

    async def ping(self) -> None:
        """Writes, since another process may hold the file and the disk may be full. On a full disk the write-ahead log is
        brought into the file first, where deletions may have freed room. After a write found no room, this write is large."""
        work = _weigh if self._was_full else _beat
        try:
            await self._writer.do(work)
        except Full:
            await self._writer.overwrite()
            await self._writer.do(work)
        if self._was_full:
            await self._writer.do(_lighten)
            self._was_full = False

    async def begin(self, begin: Begin) -> Begun | Busy | Repeated | None:
        return await self._write(begin.owner, turns.begin, begin, secrets.token_hex(8), self._limits)

    async def append(self, append: Append) -> int:
        return await self._write(append.owner, turns.append, append, self._limits)

    async def renew(self, sid: Sid, owner: Tenant, fence: int, lease_s: float) -> None:
        await self._write(owner, turns.renew, sid, owner, fence, lease_s)

    async def release(self, sid: Sid, owner: Tenant, fence: int) -> None:
        await self._write(owner, turns.release, sid, owner, fence)

    async def leave(self, sid: Sid, owner: Tenant, token: str) -> None:
        await self._write(owner, turns.leave, sid, owner, token)

    async def load(self, sid: Sid, owner: Tenant, cursor: Cursor) -> Loaded | None:
        def work(at: Transaction) -> Loaded | None:
            session = rows.find(at, sid, owner)
            return rows.load(at, session, cursor) if session else None

        return await self._read(owner, work)

    async def create(
        self, sid: Sid, owner: Tenant, *, entries: Sequence[bytes], attributes: bytes, turns: int, lifetime_s: float
    ) -> bool:
        def work(at: Transaction) -> bool:
            session = rows.add(at, sid, owner, secrets.token_hex(8))
            if session is None:
                return False
            added_bytes = size_of(entries) + len(attributes)
            rows.require_room(at, owner, self._limits, sessions=1, added_bytes=added_bytes)
            rows.extend(at, session, entries)
            rows.write_body(at, "attributes", session, attributes)
            session.turns = session.given_turns = turns
            session.expires_at = rows.end_of(at, lifetime_s)
            rows.save(at, session)
            return True

        return await self._write(owner, work)

    async def set_attributes(self, sid: Sid, owner: Tenant, attributes: bytes) -> bool:
        def work(at: Transaction) -> bool:
            session = rows.find(at, sid, owner)
            if session is None:
                return False
            rows.write_body(at, "attributes", session, attributes)
            rows.save(at, session)
            return True

        return await self._write(owner, work)

    async def commit_view(self, sid: Sid, owner: Tenant, generation: str, epoch: int, view: bytes) -> bool:
        def work(at: Transaction) -> bool:
            session = rows.find(at, sid, owner)
            if session is None or session.generation != generation or session.epoch != epoch:
                return False
            session.epoch += 1
            rows.write_body(at, "view", session, view)
            rows.save(at, session)
            return True

        return await self._write(owner, work)

    async def read_turn(self, sid: Sid, owner: Tenant, turn: int) -> TurnRecord | None:
        def work(at: Transaction) -> TurnRecord | None:
            session = rows.find(at, sid, owner)
            return rows.read_turn(at, session, turn) if session else None

        return await self._read(owner, work)

    async def delete(self, sid: Sid, owner: Tenant) -> bool:
        """The session is absent at once; its rows are deleted in small transactions. Works on a full disk as well."""
        if not await self._erase(owner, rows.hide, sid, owner):
            return False
        while not await self._erase(owner, rows.remove_part, sid, SWEPT_ENTRIES):
            pass
        return True

    async def put_document(self, key: Sid, owner: Tenant, body: bytes, lifetime_s: float) -> None:
        await self._write(owner, documents.put, key, owner, body, lifetime_s, self._limits)

    async def get_document(self, key: Sid, owner: Tenant) -> bytes | None:
        return await self._read(owner, lambda at: documents.get(at, key, owner))

    async def delete_document(self, key: Sid, owner: Tenant) -> bool:
        return await self._erase(owner, documents.delete, key, owner)

    async def usage(self) -> Mapping[Tenant, Usage]:
        """Counts of each owner that ever stored anything."""
        return await self._reader.do(rows.usage)

    async def tidy(self) -> None:
        """To be called now and then: removes deleted data from the write-ahead log, and restores the reserve for deletions."""
        if self._is_untidy:
            self._is_untidy = False
            try:
                await self._writer.overwrite()
            except BaseException:
                self._is_untidy = True
                raise
        await self._writer.fit_to_disk()

    async def sweep(self, limit: int) -> int:
        """Deletes at most ``limit`` expired sessions and as many documents, in small transactions. Returns the number of
        both."""
        swept = 0
        while gone := await self._erase(NO_TENANT, documents.sweep, min(limit - swept, SWEPT_DOCUMENTS)):
            swept += gone
        for _ in range(limit):
            while (is_gone := await self._erase(NO_TENANT, rows.sweep_session, SWEPT_ENTRIES)) is False:
                pass
            if is_gone is None:
                break
            swept += 1
        return swept

    async def _read(self, owner: Tenant, work: Callable[[Transaction], T]) -> T:
        async with self.reads.of(owner):
            return await self._reader.do(work)

    async def _write(
        self, owner: Tenant, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        self._writes += 1
        if self._writes % WRITES_PER_CHECKPOINT == 0:
            self._reader.checkpoint()
        async with self.writes.of(owner):
            try:
                return await self._writer.do(work, *args, **kwargs)
            except Full:
                self._was_full = True
                raise

    async def _erase(
        self, owner: Tenant, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """A write that deletes. On a full disk it takes the reserve, and leaves nothing in the write-ahead log."""
        self._is_untidy = True
        try:
            return await self._write(owner, work, *args, **kwargs)
        except Full:
            await self._writer.spend_reserve()
            with suppress(StoreUnavailable):
                await self._writer.overwrite()
            done = await self._write(owner, work, *args, **kwargs)
            with suppress(StoreUnavailable):
                await self._writer.overwrite()
            return done

    async def close(self) -> None:
        await self._reader.close()
        await self._writer.close()


def _beat(at: Transaction) -> None:
    at.connection.execute("UPDATE pulse SET beats = beats + 1")


def _weigh(at: Transaction) -> None:
    at.connection.execute("INSERT INTO pulse VALUES (zeroblob(?))", (WEIGHT_BYTES,))


def _lighten(at: Transaction) -> None:
    at.connection.execute("DELETE FROM pulse WHERE typeof(beats) = 'blob'")


def read_boot() -> str:
    """The id of this boot. Where the system has none, each process has its own: it does not see the leases of others, and only
    the fences keep turns apart."""
    with suppress(OSError):
        return BOOT_ID.read_text().strip()
    return secrets.token_hex(8)
