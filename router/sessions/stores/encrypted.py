"""Encryption at rest. Only sizes, numbers, times and names stay readable in the store: of the tenant, of the last worker, and
idempotency keys.

AES-256-GCM with a key for every tenant and session (HKDF-SHA256, RFC 5869), and a nonce of 96 random bits for every value: NIST
SP 800-38D bounds these to 2^32 values for each key. The key depends on the session, and the kind of the value is authenticated,
so a value that was moved elsewhere cannot be decrypted. A value that cannot be decrypted is Corrupt, and never absent.
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
"""Derived keys that are kept. Deriving one costs about 10 µs."""


class EncryptedStore:
    """Satisfies Store. ``secret``: at least 16 bytes. Without it nothing that was stored with it can be read."""

    def __init__(self, store: Store, secret: bytes) -> None:
        self._store = store
        self._secret = secret
        self._key = lru_cache(maxsize=CACHED_KEYS)(self._derive)
        self.ping = store.ping
        self.renew = store.renew
        self.release = store.release
        self.leave = store.leave
        self.delete = store.delete
        self.delete_document = store.delete_document
        self.close = store.close

    async def begin(self, begin: Begin) -> Begun | Busy | Repeated | None:
        sid, owner = begin.sid, begin.owner
        encrypted = msgspec.structs.replace(
            begin,
            entries=self._encrypt_all(sid, owner, begin.entries),
            record=self._encrypt(sid, owner, b"record", begin.record),
        )
        answer = await self._store.begin(encrypted)
        if isinstance(answer, Begun):
            return msgspec.structs.replace(
                answer,
                tail=self._decrypt_all(sid, owner, answer.tail),
                view=self._decrypt_view(sid, owner, answer.view),
            )
        if isinstance(answer, Repeated):
            return msgspec.structs.replace(answer, record=self._decrypt(sid, owner, b"record", answer.record))
        return answer

    async def append(self, append: Append) -> int:
        sid, owner, record = append.sid, append.owner, append.record
        encrypted = msgspec.structs.replace(
            append,
            entries=self._encrypt_all(sid, owner, append.entries),
            record=None if record is None else self._encrypt(sid, owner, b"record", record),
        )
        return await self._store.append(encrypted)

    async def load(self, sid: Sid, owner: Tenant, cursor: Cursor) -> Loaded | None:
        loaded = await self._store.load(sid, owner, cursor)
        if loaded is None:
            return None
        return msgspec.structs.replace(
            loaded,
            tail=self._decrypt_all(sid, owner, loaded.tail),
            view=self._decrypt_view(sid, owner, loaded.view),
            attributes=self._decrypt(sid, owner, b"attributes", loaded.attributes),
        )

    async def create(
        self, sid: Sid, owner: Tenant, *, entries: Sequence[bytes], attributes: bytes, turns: int, lifetime_s: float
    ) -> bool:
        return await self._store.create(
            sid,
            owner,
            entries=self._encrypt_all(sid, owner, entries),
            attributes=self._encrypt(sid, owner, b"attributes", attributes),
            turns=turns,
            lifetime_s=lifetime_s,
        )

    async def set_attributes(self, sid: Sid, owner: Tenant, attributes: bytes) -> bool:
        return await self._store.set_attributes(sid, owner, self._encrypt(sid, owner, b"attributes", attributes))

    async def commit_view(self, sid: Sid, owner: Tenant, generation: str, epoch: int, view: bytes) -> bool:
        return await self._store.commit_view(sid, owner, generation, epoch, self._encrypt(sid, owner, b"view", view))

    async def read_turn(self, sid: Sid, owner: Tenant, turn: int) -> TurnRecord | None:
        found = await self._store.read_turn(sid, owner, turn)
        return found and TurnRecord(found.has_ended, self._decrypt(sid, owner, b"record", found.record))

    async def put_document(self, key: Sid, owner: Tenant, body: bytes, lifetime_s: float) -> None:
        await self._store.put_document(key, owner, self._encrypt(key, owner, b"document", body), lifetime_s)

    async def get_document(self, key: Sid, owner: Tenant) -> bytes | None:
        body = await self._store.get_document(key, owner)
        return None if body is None else self._decrypt(key, owner, b"document", body)

    def _derive(self, sid: Sid, owner: Tenant) -> AESGCM:
        info = f"warmroute session {len(owner)}:{owner}:{sid}".encode()
        return AESGCM(HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(self._secret))

    def _encrypt(self, sid: Sid, owner: Tenant, what: bytes, value: bytes) -> bytes:
        """An empty value stays empty."""
        if not value:
            return value
        nonce = os.urandom(NONCE_BYTES)
        return VERSION + nonce + self._key(sid, owner).encrypt(nonce, value, what)

    def _decrypt(self, sid: Sid, owner: Tenant, what: bytes, value: bytes) -> bytes:
        if not value:
            return value
        if value[:1] != VERSION:
            raise Corrupt(f"a {what.decode()} of session {sid} is not encrypted")
        try:
            return self._key(sid, owner).decrypt(value[1 : NONCE_BYTES + 1], value[NONCE_BYTES + 1 :], what)
        except (InvalidTag, ValueError):
            raise Corrupt(
                f"a {what.decode()} of session {sid} cannot be decrypted with sessions.encryption_secret"
            ) from None

    def _encrypt_all(self, sid: Sid, owner: Tenant, entries: Sequence[bytes]) -> list[bytes]:
        return [self._encrypt(sid, owner, b"entry", entry) for entry in entries]

    def _decrypt_all(self, sid: Sid, owner: Tenant, entries: Sequence[bytes]) -> list[bytes]:
        return [self._decrypt(sid, owner, b"entry", entry) for entry in entries]

    def _decrypt_view(self, sid: Sid, owner: Tenant, view: bytes | None) -> bytes | None:
        return None if view is None else self._decrypt(sid, owner, b"view", view)
