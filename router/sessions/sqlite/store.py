"""Sessions in one SQLite file: for one machine, with no server beside the router.

The claims are in the file, so several routers on one machine may share it. Leases are measured by the boot's monotonic clock
and void after a reboot, so that a wall clock that is put right takes no claim away; lifetimes go by Unix time.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Concatenate, ParamSpec, Self, TypeVar

from router.core.request import Tenant
from router.sessions.sqlite import rows, turns
from router.sessions.sqlite.database import Clock, Database, Synchronous, Transaction
from router.sessions.store import Append, Begin, Begun, Busy, Known, Loaded, Repeated, Sid, TurnRecord

P = ParamSpec("P")
T = TypeVar("T")

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
WRITES_PER_CHECKPOINT = 64
SWEPT_ENTRIES, SWEPT_DOCUMENTS = 500, 50
"""Deleted by one transaction at most, that others need not wait long."""


class SqliteStore:
    def __init__(self, writer: Database, reader: Database) -> None:
        self._writer = writer
        self._reader = reader
        self._writes = 0

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
    ) -> Self:
        """The file, and its directory where it is missing, are made so that only their owner can read them. ``clock``: the
        boot's monotonic one. ``timeout_s``: of a call, from its place in the thread's queue on; half of it may be spent on
        waiting for another process. ``boot``: by default this machine's. Raises StoreUnavailable or Corrupt."""
        open_ = partial(
            Database.open,
            path,
            Clock(clock, wall_clock, boot or read_boot()),
            max_pending=max_pending,
            timeout_s=timeout_s,
        )
        writer = await open_(synchronous)
        try:
            return cls(writer, await open_(None))
        except BaseException:
            await writer.close()
            raise

    @property
    def pending(self) -> int:
        """Calls that wait for the two threads, and those that they are at."""
        return self._writer.pending + self._reader.pending

    @property
    def max_pending(self) -> int:
        return self._writer.max_pending + self._reader.max_pending

    async def ping(self) -> None:
        """By the connection that writes: another process may have the file."""
        await self._writer.do(lambda _: None)

    async def begin(self, begin: Begin) -> Begun | Busy | Repeated | None:
        return await self._write(turns.begin, begin, secrets.token_hex(8))

    async def append(self, append: Append) -> int:
        return await self._write(turns.append, append)

    async def renew(self, sid: Sid, owner: Tenant, fence: int, lease_s: float) -> None:
        await self._write(turns.renew, sid, owner, fence, lease_s)

    async def release(self, sid: Sid, owner: Tenant, fence: int) -> None:
        await self._write(turns.release, sid, owner, fence)

    async def leave(self, sid: Sid, owner: Tenant, token: str) -> None:
        await self._write(turns.leave, sid, owner, token)

    async def load(self, sid: Sid, owner: Tenant, known: Known) -> Loaded | None:
        def work(at: Transaction) -> Loaded | None:
            session = rows.find(at, sid, owner)
            return rows.load(at, session, known) if session else None

        return await self._reader.do(work)

    async def create(
        self, sid: Sid, owner: Tenant, *, entries: Sequence[bytes], attributes: bytes, turns: int, lifetime_s: float
    ) -> bool:
        def work(at: Transaction) -> bool:
            session = rows.add(at, sid, owner, secrets.token_hex(8))
            if session is None:
                return False
            rows.extend(at, session, entries)
            rows.write_body(at, "attributes", sid, attributes)
            session.turns = session.given_turns = turns
            session.expires_at = rows.end_of(at, lifetime_s)
            rows.save(at, session)
            return True

        return await self._write(work)

    async def set_attributes(self, sid: Sid, owner: Tenant, attributes: bytes) -> bool:
        def work(at: Transaction) -> bool:
            if rows.find(at, sid, owner) is None:
                return False
            rows.write_body(at, "attributes", sid, attributes)
            return True

        return await self._write(work)

    async def commit_view(self, sid: Sid, owner: Tenant, generation: str, epoch: int, view: bytes) -> bool:
        def work(at: Transaction) -> bool:
            session = rows.find(at, sid, owner)
            if session is None or session.generation != generation or session.epoch != epoch:
                return False
            session.epoch += 1
            rows.write_body(at, "view", sid, view)
            rows.save(at, session)
            return True

        return await self._write(work)

    async def read_turn(self, sid: Sid, owner: Tenant, turn: int) -> TurnRecord | None:
        def work(at: Transaction) -> TurnRecord | None:
            session = rows.find(at, sid, owner)
            return rows.read_turn(at, session, turn) if session else None

        return await self._reader.do(work)

    async def delete(self, sid: Sid, owner: Tenant) -> bool:
        def work(at: Transaction) -> bool:
            if not rows.is_owned(at, sid, owner):
                return False
            rows.remove(at, sid)
            return True

        return await self._write(work)

    async def put_document(self, key: Sid, owner: Tenant, body: bytes, lifetime_s: float) -> None:
        def work(at: Transaction) -> None:
            at.connection.execute(
                "INSERT INTO document VALUES (?1, ?2, ?3, ?4) ON CONFLICT (id) DO UPDATE"
                " SET owner = ?2, body = ?3, expires_at = ?4 WHERE owner = ?2 OR expires_at <= ?5",
                (key, owner, body, rows.end_of(at, lifetime_s), at.unix_time),
            )

        await self._write(work)

    async def get_document(self, key: Sid, owner: Tenant) -> bytes | None:
        def work(at: Transaction) -> bytes | None:
            row = at.connection.execute(
                "SELECT body FROM document WHERE id = ? AND owner = ? AND expires_at > ?", (key, owner, at.unix_time)
            ).fetchone()
            return row[0] if row else None

        return await self._reader.do(work)

    async def delete_document(self, key: Sid, owner: Tenant) -> bool:
        def work(at: Transaction) -> bool:
            return bool(
                at.connection.execute(
                    "DELETE FROM document WHERE id = ? AND owner = ? AND expires_at > ?", (key, owner, at.unix_time)
                ).rowcount
            )

        return await self._write(work)

    async def sweep(self, limit: int) -> int:
        """Deletes what has expired, ``limit`` sessions and as many documents at most, in small transactions. How many of
        both it has deleted."""
        swept = 0
        while gone := await self._write(rows.sweep_documents, min(limit - swept, SWEPT_DOCUMENTS)):
            swept += gone
        for _ in range(limit):
            while (is_gone := await self._write(rows.sweep_session, SWEPT_ENTRIES)) is False:
                pass
            if is_gone is None:
                break
            swept += 1
        return swept

    async def _write(self, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        self._writes += 1
        if self._writes % WRITES_PER_CHECKPOINT == 0:
            self._reader.checkpoint()
        return await self._writer.do(work, *args, **kwargs)

    async def close(self) -> None:
        await self._reader.close()
        await self._writer.close()


def read_boot() -> str:
    """Where the system does not tell its boot, each process has one of its own: then none heeds the leases of another, and
    only the fences keep them apart."""
    with suppress(OSError):
        return BOOT_ID.read_text().strip()
    return secrets.token_hex(8)
