"""Loads API keys from a file, and loads them anew when it changes. A file that cannot be read, or is invalid, leaves the old
keys in use.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from router.config.schema import ConfigError
from router.config.secrets import read_salt_secret
from router.config.serving import AuthConfig
from router.core.request.request import Tenant
from router.core.tenants.keyring import AuthRefusal, BadKeys, KeyList, Keyring, joined, parse_entries, parse_keys
from router.runtime.log_once import LogOnce
from router.server.audit import Audit
from router.server.auth import KeyGate

log = logging.getLogger("warmroute.auth")

MAX_KEYS = 100_000
MAX_FILE_BYTES = 256 << 20
MAX_NAMED_IDS = 50
"""Most key ids in one line of the audit log."""


def read_keys_file(file: str) -> bytes:
    """Raises BadKeys."""
    try:
        with Path(file).open("rb") as source:
            content = source.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadKeys(f"cannot be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise BadKeys(f"is larger than {MAX_FILE_BYTES} bytes")
    return content


def list_keys(auth: AuthConfig, content: bytes) -> KeyList:
    """The keys of the file's content and of ``auth.keys``. Raises BadKeys."""
    try:
        listed = joined(parse_keys(content.decode()), parse_entries(auth.keys))
    except UnicodeDecodeError:
        raise BadKeys("is not UTF-8") from None
    if len(listed.entries) > MAX_KEYS:
        raise BadKeys(f"lists {len(listed.entries)} keys, and {MAX_KEYS} is the most")
    return listed


def load_keys(auth: AuthConfig) -> tuple[bytes, KeyList]:
    """The file's content, and all keys. Raises ConfigError."""
    try:
        content = read_keys_file(auth.keys_file) if auth.keys_file else b""
        return content, list_keys(auth, content)
    except BadKeys as error:
        raise ConfigError(f"auth.keys_file={auth.keys_file!r}: {error}") from None


class KeyFile:
    """``now``: seconds since the epoch. ``on_tenants`` is called with all tenants after each change. ``max_connections`` may
    show one key; 0 means any number. Raises ConfigError if the first load fails."""

    def __init__(
        self,
        auth: AuthConfig,
        audit: Audit,
        now: Callable[[], float],
        on_tenants: Callable[[Collection[Tenant]], None] = lambda _tenants: None,
        max_connections: int = 0,
    ) -> None:
        self._on_tenants = on_tenants
        self._auth = auth
        self._audit = audit
        self._salt_secret = read_salt_secret(auth)
        self._woken = asyncio.Event()
        self._errors = LogOnce()
        self._content, listed = load_keys(auth)
        keyring = Keyring(listed, self._salt_secret)
        self.gate = KeyGate(keyring, audit, now, max_connections)
        audit.note("keys loaded", file=auth.keys_file, keys=len(keyring))

    @property
    def failures(self) -> int:
        """Checks of the file that failed."""
        return self._errors.failures

    @property
    def loaded_keys(self) -> int:
        return len(self.gate.keyring)

    @property
    def refusals(self) -> Mapping[AuthRefusal, int]:
        return self.gate.refusals

    def wake(self) -> None:
        """Check the file now."""
        self._woken.set()

    async def run(self) -> None:
        """Check the file at intervals, until cancelled."""
        while self._auth.keys_file:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._auth.reload_s):
                    await self._woken.wait()
            self._woken.clear()
            await self.refresh()

    async def refresh(self) -> None:
        """Check the file once, off the loop, since a long list takes seconds."""
        try:
            content = await asyncio.to_thread(read_keys_file, self._auth.keys_file)
            if content != self._content:
                self.gate.keyring = await self._replaced(content, self.gate.keyring)
                self._content = content
                self._on_tenants(self.gate.keyring.tenants)
        except BadKeys as error:
            self._on_error(str(error))
        else:
            self._errors.succeeded()

    async def _replaced(self, content: bytes, old: Keyring) -> Keyring:
        new = await asyncio.to_thread(lambda: Keyring(list_keys(self._auth, content), self._salt_secret))
        self._audit.note(
            "keys reloaded",
            file=self._auth.keys_file,
            keys=len(new),
            **_named("added", new.live - old.live),
            **_named("revoked", old.live - new.live),
        )
        return new

    def _on_error(self, error: str) -> None:
        if self._errors.failed(error):
            fields = {"file": self._auth.keys_file, "error": error}
            log.error("keys not reloaded: the old ones hold", extra=fields)
            self._audit.note("keys not reloaded", **fields)


def _named(what: str, keys: frozenset[tuple[str, str]]) -> dict[str, object]:
    ids = sorted(key_id for key_id, _digest in keys)
    return {what: len(ids), f"{what}_ids": ids[:MAX_NAMED_IDS]} if ids else {}
