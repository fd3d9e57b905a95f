"""API keys as the key file and the environment list them: the tenant of each digest, and when it expires. Pure.

Only SHA-256 digests of keys are here: a key has 256 random bits, so no slower hash is needed. A list is accepted or refused
as a whole; a refusal is one line that names the entry and its bound.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from router.core.request.request import Tenant
from router.core.tenants.tenant import Caller, Name, TenantRules, make_caller

_ENTRY = re.compile(r"([A-Za-z0-9_.-]{1,64}):([0-9a-fA-F]{64})")

Digest = Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{64}\Z")]


class BadKeys(Exception):
    """One line that names the entry and what it must be. It quotes no digest and no key."""


class AuthRefusal(Enum):
    """Why a key was refused; the value is a metric label. Clients never learn the reason."""

    ABSENT = "absent"
    MALFORMED = "malformed"
    UNKNOWN = "unknown"
    DISABLED = "disabled"
    EXPIRED = "expired"


class KeyEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``sha256``: the key's digest in hex. ``expires``: the first moment at which the key is refused."""

    id: Name
    tenant: Name
    sha256: Digest
    expires: Annotated[datetime, Meta(tz=True)] | None = None
    disabled: bool = False


class Key(msgspec.Struct, frozen=True):
    id: str
    digest: bytes
    caller: Caller
    expires_at: float
    """Seconds since the epoch; infinite: never."""
    is_disabled: bool


class KeyList(msgspec.Struct, frozen=True):
    """A checked list."""

    tenants: Mapping[str, TenantRules]
    entries: Sequence[KeyEntry]


class Keyring:
    """Immutable; a reload replaces it. ``find`` is O(1)."""

    def __init__(self, listed: KeyList, salt_secret: bytes) -> None:
        callers = {name: make_caller(rules, salt_secret) for name, rules in listed.tenants.items()}
        self._keys = {key.digest: key for key in (_key(entry, callers[entry.tenant]) for entry in listed.entries)}
        self.tenants = frozenset(map(Tenant, callers))
        self.rules = tuple(caller.rules for caller in callers.values())
        self.live = frozenset((entry.id, entry.sha256.lower()) for entry in listed.entries if not entry.disabled)
        """Ids and digests of the keys that are not disabled, by which two keyrings are compared."""

    def __repr__(self) -> str:
        return f"Keyring({len(self._keys)} keys of {len(self.tenants)} tenants)"

    def __len__(self) -> int:
        """All listed keys, disabled and expired ones included."""
        return len(self._keys)

    def find(self, digest: bytes, now: float) -> Caller | AuthRefusal:
        """``digest``: SHA-256 of the presented key; ``now``: seconds since the epoch.

        The time of the look-up reveals nothing: a client that guesses keys cannot choose the bits of their digests.
        """
        key = self._keys.get(digest)
        if key is None:
            return AuthRefusal.UNKNOWN
        if key.is_disabled:
            return AuthRefusal.DISABLED
        return AuthRefusal.EXPIRED if now >= key.expires_at else key.caller


def parse_keys(text: str) -> KeyList:
    """TOML: ``[tenants.NAME]`` with the fields of TenantRules, ``[[keys]]`` with those of KeyEntry. Raises BadKeys."""
    try:
        tree = tomllib.loads(text)
    except ValueError as error:
        raise BadKeys(f"is not TOML: {error}") from None
    except RecursionError:
        raise BadKeys("is nested too deeply") from None
    if unknown := tree.keys() - {"tenants", "keys"}:
        raise BadKeys(f"{min(unknown)}: no such table; there are tenants and keys")
    tables, rows = tree.get("tenants", {}), tree.get("keys", [])
    if not isinstance(tables, dict) or not isinstance(rows, list):
        raise BadKeys("must have [tenants.NAME] tables and [[keys]] entries")
    tenants = {name: _tenant(name, table) for name, table in tables.items()}
    return _checked(tenants, [_entry(number, row) for number, row in enumerate(rows, start=1)])


def parse_entries(entries: Iterable[str]) -> KeyList:
    """``TENANT:SHA256`` each; their tenants have the defaults of TenantRules. Raises BadKeys."""
    found = []
    for number, entry in enumerate(entries, start=1):
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise BadKeys(f"entry {number}: must be TENANT:SHA256, the digest of a key in 64 hexadecimal digits")
        tenant, digest = match[1], match[2].lower()
        found.append(KeyEntry(id=f"{tenant}-{digest[:8]}", tenant=tenant, sha256=digest))
    return _checked({entry.tenant: TenantRules(tenant=Tenant(entry.tenant)) for entry in found}, found)


def joined(first: KeyList, second: KeyList) -> KeyList:
    """Both lists. If both have a tenant, its rules are those of ``first``. Raises BadKeys."""
    return _checked({**second.tenants, **first.tenants}, [*first.entries, *second.entries])


def _tenant(name: str, table: Any) -> TenantRules:
    if not isinstance(table, dict) or "tenant" in table:
        raise BadKeys(f"tenants.{name[:64]}: must be a table of rules, without a field 'tenant'")
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError:
        raise BadKeys(f"tenants.{name[:64]!r}: a name is 1 to 64 letters, digits, '_', '.' or '-'") from None
    try:
        return msgspec.convert({"tenant": name, **table}, TenantRules)
    except msgspec.ValidationError as error:
        raise BadKeys(f"tenants.{name}{_explain(error)}") from None


def _entry(number: int, row: Any) -> KeyEntry:
    name = row.get("id") if isinstance(row, dict) else None
    try:
        return msgspec.convert(row, KeyEntry)
    except msgspec.ValidationError as error:
        known = f" ({name})" if isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name) else ""
        raise BadKeys(f"keys entry {number}{known}{_explain(error)}") from None


def _explain(error: msgspec.ValidationError) -> str:
    """``what - at `$.field` `` → ``.field: what``. It names a type or a bound, never a value."""
    what, _, where = str(error).partition(" - at `$")
    return f"{where.rstrip('`')}: {what}"


def _checked(tenants: Mapping[str, TenantRules], entries: Sequence[KeyEntry]) -> KeyList:
    """Check what concerns several entries."""
    by_digest: dict[str, str] = {}
    ids: set[str] = set()
    for entry in entries:
        if entry.tenant not in tenants:
            raise BadKeys(f"key {entry.id}: there is no table tenants.{entry.tenant}")
        if entry.id in ids:
            raise BadKeys(f"key {entry.id}: its id is given twice")
        ids.add(entry.id)
        if (other := by_digest.setdefault(entry.sha256.lower(), entry.id)) != entry.id:
            raise BadKeys(f"key {entry.id}: has the sha256 of {other}")
    return KeyList(tenants, entries)


def _key(entry: KeyEntry, caller: Caller) -> Key:
    expires_at = entry.expires.timestamp() if entry.expires is not None else float("inf")
    return Key(entry.id, bytes.fromhex(entry.sha256), caller, expires_at, entry.disabled)
