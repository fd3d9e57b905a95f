"""Encryption at rest: a store in which only sizes, numbers, times and names can be read: the tenant's, the last worker's, and
idempotency keys.

AES-256-GCM with a key of its own for every tenant and session (HKDF-SHA256, RFC 5869), and a fresh nonce of 96 random bits for
every value: NIST SP 800-38D bounds those to 2^32 values a key. What a value is, and where it belongs, is authenticated with it,
so that one moved elsewhere does not open. What cannot be opened is Corrupt, and never absent.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from router.core.request.request import Tenant
from router.sessions.stores.contract import (
    Append,
    Begin,
    Begun,
    Busy,
    Corrupt,
    Cursor,
    Loaded,
    Repeated,
    Sid,
    Store,
    TurnRecord,
)

VERSION = b"\x01"
NONCE_BYTES = 12
KEY_BYTES = 32
CACHED_KEYS = 4096
"""Derived keys that are kept; making one costs about 10 µs."""


class EncryptedStore:
    """Satisfies Store. ``secret``: at least 16 bytes; whoever loses it loses all that was stored with it."""

    def __init__(self, store: Store, secret: bytes) -> None:
        self._store = store
        self._secret = secret
        self._key = lru_cache(maxsize=CACHED_KEYS)(self._derive)

    async def ping(self) -> None:
        await self._store.ping()

    async def begin(self, begin: Begin) -> Begun | Busy | Repeated | None:
        sid, owner = begin.sid, begin.owner
        sealed = msgspec.structs.replace(
            begin,
            entries=self._seal_all(sid, owner, begin.entries),
            record=self._seal(sid, owner, b"record", begin.record),
        )
        answer = await self._store.begin(sealed)
        if isinstance(answer, Begun):
            return msgspec.structs.replace(
                answer, tail=self._open_all(sid, owner, answer.tail), view=self._open_view(sid, owner, answer.view)
            )
        if isinstance(answer, Repeated):
            return msgspec.structs.replace(answer, record=self._open(sid, owner, b"record", answer.record))
        return answer

    async def append(self, append: Append) -> int:
        sid, owner, record = append.sid, append.owner, append.record
        sealed = msgspec.structs.replace(
            append,
            entries=self._seal_all(sid, owner, append.entries),
            record=None if record is None else self._seal(sid, owner, b"record", record),
        )
        return await self._store.append(sealed)

    async def renew(self, sid: Sid, owner: Tenant, fence: int, lease_s: float) -> None:
        await self._store.renew(sid, owner, fence, lease_s)

    async def release(self, sid: Sid, owner: Tenant, fence: int) -> None:
        await self._store.release(sid, owner, fence)

    async def leave(self, sid: Sid, owner: Tenant, token: str) -> None:
        await self._store.leave(sid, owner, token)

    async def load(self, sid: Sid, owner: Tenant, cursor: Cursor) -> Loaded | None:
        loaded = await self._store.load(sid, owner, cursor)
        if loaded is None:
            return None
        return msgspec.structs.replace(
            loaded,
            tail=self._open_all(sid, owner, loaded.tail),
            view=self._open_view(sid, owner, loaded.view),
            attributes=self._open(sid, owner, b"attributes", loaded.attributes),
        )

    async def create(
        self, sid: Sid, owner: Tenant, *, entries: Sequence[bytes], attributes: bytes, turns: int, lifetime_s: float
    ) -> bool:
        return await self._store.create(
            sid,
            owner,
            entries=self._seal_all(sid, owner, entries),
            attributes=self._seal(sid, owner, b"attributes", attributes),
            turns=turns,
            lifetime_s=lifetime_s,
        )

    async def set_attributes(self, sid: Sid, owner: Tenant, attributes: bytes) -> bool:
        return await self._store.set_attributes(sid, owner, self._seal(sid, owner, b"attributes", attributes))

    async def commit_view(self, sid: Sid, owner: Tenant, generation: str, epoch: int, view: bytes) -> bool:
        return await self._store.commit_view(sid, owner, generation, epoch, self._seal(sid, owner, b"view", view))

    async def read_turn(self, sid: Sid, owner: Tenant, turn: int) -> TurnRecord | None:
        found = await self._store.read_turn(sid, owner, turn)
        return found and TurnRecord(found.has_ended, self._open(sid, owner, b"record", found.record))

    async def delete(self, sid: Sid, owner: Tenant) -> bool:
        return await self._store.delete(sid, owner)

    async def put_document(self, key: Sid, owner: Tenant, body: bytes, lifetime_s: float) -> None:
        await self._store.put_document(key, owner, self._seal(key, owner, b"document", body), lifetime_s)

    async def get_document(self, key: Sid, owner: Tenant) -> bytes | None:
        body = await self._store.get_document(key, owner)
        return None if body is None else self._open(key, owner, b"document", body)

    async def delete_document(self, key: Sid, owner: Tenant) -> bool:
        return await self._store.delete_document(key, owner)

    async def close(self) -> None:
        await self._store.close()

    def _derive(self, sid: Sid, owner: Tenant) -> AESGCM:
        info = f"warmroute session {len(owner)}:{owner}:{sid}".encode()
        return AESGCM(HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(self._secret))

    def _seal(self, sid: Sid, owner: Tenant, what: bytes, value: bytes) -> bytes:
        """Nothing is nothing, sealed or not."""
        if not value:
            return value
        nonce = os.urandom(NONCE_BYTES)
        return VERSION + nonce + self._key(sid, owner).encrypt(nonce, value, what)

    def _open(self, sid: Sid, owner: Tenant, what: bytes, value: bytes) -> bytes:
        if not value:
            return value
        if value[:1] != VERSION:
            raise Corrupt(f"a {what.decode()} of session {sid} is not sealed as it should be")
        try:
            return self._key(sid, owner).decrypt(value[1 : NONCE_BYTES + 1], value[NONCE_BYTES + 1 :], what)
        except (InvalidTag, ValueError):
            raise Corrupt(f"a {what.decode()} of session {sid} cannot be opened with this key") from None

    def _seal_all(self, sid: Sid, owner: Tenant, entries: Sequence[bytes]) -> list[bytes]:
        return [self._seal(sid, owner, b"entry", entry) for entry in entries]

    def _open_all(self, sid: Sid, owner: Tenant, entries: Sequence[bytes]) -> list[bytes]:
        return [self._open(sid, owner, b"entry", entry) for entry in entries]

    def _open_view(self, sid: Sid, owner: Tenant, view: bytes | None) -> bytes | None:
        return None if view is None else self._open(sid, owner, b"view", view)
