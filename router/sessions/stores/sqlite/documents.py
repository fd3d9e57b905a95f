"""Documents of owners, beside their sessions. Each call runs in a transaction."""

from __future__ import annotations

from router.core.request.request import Tenant
from router.sessions.stores.contract import DOCUMENT_OVERHEAD_BYTES, OwnerLimits, Sid
from router.sessions.stores.sqlite import rows
from router.sessions.stores.sqlite.database import Transaction


def put(at: Transaction, key: Sid, owner: Tenant, body: bytes, lifetime_s: float, limits: OwnerLimits) -> None:
    """Does nothing where another owner has a document of that key. Raises OwnerFull."""
    at.connection.execute(
        "DELETE FROM document WHERE id = ? AND (owner = ? OR expires_at <= ?)", (key, owner, at.unix_time)
    )
    rows.require_room(at, owner, limits, documents=1, added_bytes=len(body) + DOCUMENT_OVERHEAD_BYTES)
    at.connection.execute(
        "INSERT INTO document VALUES (?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
        (key, owner, body, rows.end_of(at, lifetime_s)),
    )


def get(at: Transaction, key: Sid, owner: Tenant) -> bytes | None:
    row = at.connection.execute(
        "SELECT body FROM document WHERE id = ? AND owner = ? AND expires_at > ?", (key, owner, at.unix_time)
    ).fetchone()
    return row[0] if row else None


def delete(at: Transaction, key: Sid, owner: Tenant) -> bool:
    deleted = at.connection.execute(
        "DELETE FROM document WHERE id = ? AND owner = ? AND expires_at > ?", (key, owner, at.unix_time)
    )
    return deleted.rowcount > 0


def sweep(at: Transaction, limit: int) -> int:
    """Deletes at most ``limit`` expired documents. Returns their number."""
    return at.connection.execute(
        "DELETE FROM document WHERE id IN (SELECT id FROM document WHERE expires_at <= ? LIMIT ?)",
        (at.unix_time, limit),
    ).rowcount
