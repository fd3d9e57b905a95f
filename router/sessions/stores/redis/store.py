"""Sessions in Redis, shared by all replicas: every call of the contract is one script on one key.

Keys are ``wr1:{SID}:s`` for sessions, ``wr1:{KEY}:d`` for documents, and ``wr1:{u:OWNER}:u`` and ``…:ux`` for what an owner
has. Redis must be set up so:

- ``maxmemory-policy noeviction``: with another policy a full Redis deletes whole sessions, and no client is told.
- Where a primary may be replaced (Sentinel, Cluster): ``wait_replicas`` of at least 1, at least that many in
  ``min-replicas-to-write``, and three data nodes, so that one may be lost. A write is then acknowledged only when a replica has
  it as well. Otherwise the last writes that a primary acknowledged are lost when it dies, and so are those that a primary
  acknowledges after it was replaced without knowing.
- A user of its own needs ``+hello +select +ping +evalsha +eval +wait +time +exists +hget +hmget +hset
  +hdel +hstrlen +pexpireat +persist +unlink +zadd +zrem +zrangebyscore +info ~wr1:*``, and in a Cluster ``+asking`` and
  ``+cluster|slots`` besides.
- Leases and lifetimes go by the wall clock of the primary, so the clocks of the data nodes must agree.
- A primary that was replaced a moment ago may still answer a read. With ``wait_replicas`` it acknowledges no write.
- Redis replicates asynchronously, and ``WAIT`` is no consensus: two failures within moments can still lose a write.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Self

from router.core.request.request import NO_TENANT, Tenant
from router.runtime.breaker import BreakerState
from router.sessions.stores.contract import (
    DOCUMENT_OVERHEAD_BYTES,
    LINE_PATIENCE_S,
    SESSION_OVERHEAD_BYTES,
    Append,
    Begin,
    Begun,
    Busy,
    Cursor,
    Fenced,
    Loaded,
    Repeated,
    Sid,
    TurnRecord,
    Usage,
    size_of,
)
from router.sessions.stores.redis import scripts
from router.sessions.stores.redis.eviction import QUESTIONS, Evictions
from router.sessions.stores.redis.ledger import Ledger
from router.sessions.stores.redis.runner import RedisLimits, Runner
from router.sessions.stores.redis.url import parse

_PATIENCE_MS = int(LINE_PATIENCE_S * 1000)


PULSE, PULSE_LIFETIME_S = Sid("pulse"), 60.0
"""A document that is written to learn whether Redis takes writes."""


class RedisStore:
    def __init__(self, runner: Runner, limits: RedisLimits) -> None:
        self._runner = runner
        self._ledger = Ledger(limits.owner)
        self.evictions = Evictions()
        self.calls = runner.calls
        self.lines = (runner.calls,)
        self.max_pending = limits.max_connections

    @classmethod
    def from_url(cls, url: str, limits: RedisLimits, clock: Callable[[], float]) -> Self:
        """Connects with the first call. ``clock``: monotonic. Raises ValueError, whose message shows no secret."""
        return cls(Runner(parse(url), limits, clock), limits)

    @property
    def breaker_state(self) -> BreakerState:
        return self._runner.breaker_state

    @property
    def pending(self) -> int:
        return self._runner.pending

    async def ping(self) -> None:
        """Writes, since a full server and a replica refuse only writes."""
        await self._runner.run_now(scripts.PUT_DOCUMENT, _document(PULSE), NO_TENANT, b"", _ms(PULSE_LIFETIME_S), 1)

    async def begin(self, begin: Begin) -> Begun | Busy | Repeated | None:
        known = begin.cursor
        self._ledger.require_room(begin.owner, added_bytes=size_of(begin.entries) + len(begin.record))
        may_create = begin.creates and not self._ledger.is_full(begin.owner, sessions=1)
        reply = await self._runner.run(
            scripts.BEGIN,
            _session(begin.sid),
            begin.owner,
            begin.token,
            known.generation,
            known.head,
            known.epoch,
            int(may_create),
            int(begin.waits),
            begin.max_waiting,
            _ms(begin.lease_s),
            _ms(begin.lifetime_s),
            _PATIENCE_MS,
            begin.idempotency_key,
            begin.record,
            secrets.token_hex(8),
            begin.turn,
            *begin.entries,
        )
        match reply:
            case [b"absent"]:
                if begin.creates and not may_create:
                    self._ledger.require_room(begin.owner, sessions=1)
                return None
            case [b"busy", place]:
                return Busy(place)
            case [b"repeated", turn, has_ended, record]:
                return Repeated(turn, bool(has_ended), record)
        generation, fence, turn, head, epoch, view, starts_over, appended, worker, tail, total_bytes = reply[1:]
        self._ledger.note(
            begin.owner,
            f"{begin.sid}s",
            total_bytes,
            _ms(begin.lifetime_s),
            sessions=int(turn == 1),
            added_bytes=(size_of(begin.entries) if appended else 0) + len(begin.record),
        )
        return Begun(
            generation=generation.decode(),
            fence=fence,
            turn=turn,
            head=head,
            epoch=epoch,
            view=view,
            starts_over=bool(starts_over),
            tail=tail,
            appended=bool(appended),
            worker=worker.decode(),
        )

    async def append(self, append: Append) -> int:
        added_bytes = size_of(append.entries)
        if added_bytes and not append.ends:
            self._ledger.require_room(append.owner, added_bytes=added_bytes)
        reply = await self._runner.run(
            scripts.APPEND,
            _session(append.sid),
            append.owner,
            append.generation,
            append.fence,
            append.turn,
            int(append.ends),
            int(append.is_late),
            int(append.record is not None),
            append.record or b"",
            append.worker,
            _ms(append.lifetime_s),
            *append.entries,
        )
        if reply[0] == b"fenced":
            raise Fenced
        head: int = reply[1]
        if len(reply) > 2:  # else the turn had ended already
            self._ledger.note(append.owner, f"{append.sid}s", reply[2], _ms(append.lifetime_s), added_bytes=added_bytes)
        return head

    async def renew(self, sid: Sid, owner: Tenant, fence: int, lease_s: float) -> None:
        reply = await self._runner.run(scripts.RENEW, _session(sid), owner, fence, _ms(lease_s))
        if reply[0] == b"fenced":
            raise Fenced

    async def release(self, sid: Sid, owner: Tenant, fence: int) -> None:
        await self._runner.run(scripts.RELEASE, _session(sid), owner, fence)

    async def leave(self, sid: Sid, owner: Tenant, token: str) -> None:
        await self._runner.run(scripts.LEAVE, _session(sid), owner, token)

    async def load(self, sid: Sid, owner: Tenant, cursor: Cursor) -> Loaded | None:
        reply = await self._runner.run(scripts.LOAD, _session(sid), owner, cursor.generation, cursor.head, cursor.epoch)
        if reply[0] == b"absent":
            return None
        generation, head, epoch, view, starts_over, attributes, turns, is_claimed, created_us, tail = reply[1:]
        return Loaded(
            generation=generation.decode(),
            head=head,
            epoch=epoch,
            view=view,
            starts_over=bool(starts_over),
            tail=tail,
            attributes=attributes,
            turns=turns,
            is_claimed=bool(is_claimed),
            created_at=created_us / 1e6,
        )

    async def create(
        self, sid: Sid, owner: Tenant, *, entries: Sequence[bytes], attributes: bytes, turns: int, lifetime_s: float
    ) -> bool:
        about = (secrets.token_hex(8), attributes, turns, _ms(lifetime_s))
        added_bytes = SESSION_OVERHEAD_BYTES + size_of(entries) + len(attributes)
        self._ledger.require_room(owner, sessions=1, added_bytes=added_bytes)
        is_new = await self._does(b"created", scripts.CREATE, _session(sid), owner, *about, *entries)
        if is_new:
            self._ledger.note(owner, f"{sid}s", added_bytes, _ms(lifetime_s), sessions=1, added_bytes=added_bytes)
        return is_new

    async def set_attributes(self, sid: Sid, owner: Tenant, attributes: bytes) -> bool:
        return await self._does(b"set", scripts.SET_ATTRIBUTES, _session(sid), owner, attributes)

    async def commit_view(self, sid: Sid, owner: Tenant, generation: str, epoch: int, view: bytes) -> bool:
        return await self._does(b"committed", scripts.COMMIT_VIEW, _session(sid), owner, generation, epoch, view)

    async def read_turn(self, sid: Sid, owner: Tenant, turn: int) -> TurnRecord | None:
        reply = await self._runner.run(scripts.READ_TURN, _session(sid), owner, turn)
        if reply[0] == b"absent":
            return None
        return TurnRecord(bool(reply[1]), reply[2])

    async def delete(self, sid: Sid, owner: Tenant) -> bool:
        is_gone = await self._does(b"deleted", scripts.DELETE, _session(sid), owner)
        if is_gone:
            self._ledger.note(owner, f"{sid}s", 0, 0, sessions=-1)
        return is_gone

    async def put_document(self, key: Sid, owner: Tenant, body: bytes, lifetime_s: float) -> None:
        added_bytes = len(body) + DOCUMENT_OVERHEAD_BYTES
        may_add = not self._ledger.is_full(owner, documents=1, added_bytes=added_bytes)
        reply = await self._runner.run(scripts.PUT_DOCUMENT, _document(key), owner, body, _ms(lifetime_s), int(may_add))
        if reply[0] == b"full":
            self._ledger.require_room(owner, documents=1, added_bytes=added_bytes)
        elif reply[0] != b"anothers":
            is_new = reply[0] == b"put"
            more_bytes = added_bytes if is_new else 0
            self._ledger.note(
                owner, f"{key}d", added_bytes, _ms(lifetime_s), documents=int(is_new), added_bytes=more_bytes
            )

    async def get_document(self, key: Sid, owner: Tenant) -> bytes | None:
        reply = await self._runner.run(scripts.GET_DOCUMENT, _document(key), owner)
        if reply[0] == b"absent":
            return None
        body: bytes = reply[1]
        return body

    async def delete_document(self, key: Sid, owner: Tenant) -> bool:
        is_gone = await self._does(b"deleted", scripts.DELETE_DOCUMENT, _document(key), owner)
        if is_gone:
            self._ledger.note(owner, f"{key}d", 0, 0, documents=-1)
        return is_gone

    async def tidy(self) -> None:
        """To be called now and then: counts what owners have, and looks whether Redis evicts keys."""
        self.evictions.learn(await self._runner.ask(QUESTIONS))
        await self._ledger.bring(self._count)

    async def usage(self) -> Mapping[Tenant, Usage]:
        """Last count of each owner that wrote through this process."""
        return dict(self._ledger.usage)

    async def close(self) -> None:
        await self._runner.close()

    async def _count(self, owner: Tenant, notes: Sequence[str | int]) -> Usage:
        sessions, documents, total_bytes = (await self._runner.run_now(scripts.USAGE, _usage(owner), owner, *notes))[1:]
        return Usage(sessions, documents, total_bytes)

    async def _does(
        self, done: bytes, script: scripts.Script, key: bytes, owner: Tenant, *arguments: bytes | str | int
    ) -> bool:
        word: bytes = (await self._runner.run(script, key, owner, *arguments))[0]
        return word == done


def _session(sid: Sid) -> bytes:
    return f"wr1:{{{sid}}}:s".encode()


def _document(key: Sid) -> bytes:
    return f"wr1:{{{key}}}:d".encode()


def _usage(owner: Tenant) -> bytes:
    return f"wr1:{{u:{owner}}}:u".encode()


def _ms(seconds: float) -> int:
    """Rounded up: 0 only for 0."""
    return ceil(seconds * 1000)
