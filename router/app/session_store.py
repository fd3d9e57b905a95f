"""Opens the session store that the configuration names, with encryption and the journal in front of it."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from router.config.schema import ConfigError
from router.config.secrets import read_secret
from router.config.sessions import SessionsConfig
from router.runtime.sqlite_thread import IN_MEMORY
from router.sessions.stores.contract import Corrupt, OwnerLimits, Store, StoreUnavailable
from router.sessions.stores.opened import OpenedStore
from router.sessions.stores.redis import RedisLimits, RedisStore
from router.sessions.stores.sqlite import SqliteStore
from router.sessions.stores.write_behind import Journal, JournaledStore

log = logging.getLogger("warmroute.sessions")

NO_STORE = "none"
SECRET_BYTES = 32
SECRET_FILE, DATABASE_FILE = "sessions.secret", "sessions.db"
WAIT_SHARE = 0.5
"""Redis replicas must confirm a write within this share of a call's deadline."""

SCHEMES = "sqlite:///PATH, memory://, redis://, rediss://, unix://, redis+sentinel://, redis+cluster://, none"


async def open_store(
    config: SessionsConfig, clock: Callable[[], float], wall_clock: Callable[[], float]
) -> OpenedStore:
    """``clock``: monotonic since the system's boot. Succeeds while Redis is away. Raises ConfigError."""
    scheme, separator, rest = config.store.partition("://")
    secret = read_secret("sessions.secret", config.secret, config.secret_file)
    limits = OwnerLimits(config.max_tenant_sessions, config.max_tenant_bytes)
    if config.store == NO_STORE or scheme == "memory":
        opened = await _open_sqlite(config, IN_MEMORY, clock, wall_clock, limits)
        secret = secret or secrets.token_bytes(SECRET_BYTES)
        return OpenedStore("memory", opened, opened, secret, limits=limits)
    if not config.store or scheme == "sqlite":
        path = Path(f"/{rest.lstrip('/')}") if separator else state_dir(config) / DATABASE_FILE
        opened = await _open_sqlite(config, path, clock, wall_clock, limits)
        if not secret:
            secret_path = path.parent / SECRET_FILE
            is_new = not secret_path.exists()
            secret = kept_secret(secret_path)
            _warn_of_readers(secret_path)
            if is_new:
                await _warn_of_lost(opened, secret_path)
        return OpenedStore("sqlite", opened, _encrypted(config, opened), secret, limits=limits)
    if scheme not in ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster"):
        raise ConfigError(f"sessions.store=***: must be one of {SCHEMES}")
    if not secret:
        raise ConfigError("sessions.secret='': required with Redis, or sessions.secret_file: one for all replicas")
    return await _open_redis(config, clock, wall_clock, secret, limits)


async def _open_sqlite(
    config: SessionsConfig,
    path: Path,
    clock: Callable[[], float],
    wall_clock: Callable[[], float],
    limits: OwnerLimits,
) -> SqliteStore:
    try:
        return await SqliteStore.open(
            path,
            clock,
            wall_clock,
            synchronous=config.sqlite_synchronous,
            max_pending=config.max_store_calls,
            limits=limits,
        )
    except (StoreUnavailable, Corrupt) as error:
        raise ConfigError(f"sessions.store={config.store!r}: {path}: {error}") from None


async def _open_redis(
    config: SessionsConfig,
    clock: Callable[[], float],
    wall_clock: Callable[[], float],
    secret: bytes,
    owner: OwnerLimits,
) -> OpenedStore:
    limits = RedisLimits(
        deadline_s=config.timeout_s,
        max_connections=config.max_store_calls,
        max_waiting=config.max_store_calls,
        wait_replicas=config.wait_replicas,
        wait_s=config.timeout_s * WAIT_SHARE,
        owner=owner,
    )
    try:
        redis = RedisStore.from_url(config.store, limits, clock)
    except ValueError as error:
        raise ConfigError(f"sessions.store=***: {error}") from None
    if not config.max_journal_bytes:
        return OpenedStore("redis", redis, _encrypted(config, redis), secret, limits=owner)
    directory = state_dir(config)
    journaled = JournaledStore(redis, Journal(directory, config.max_journal_bytes), wall_clock)
    try:
        await journaled.open()
    except OSError as error:
        raise ConfigError(
            f"sessions.state_dir={str(directory)!r}: {error.strerror}; sessions.max_journal_bytes = 0 turns the journal off"
        ) from None
    return OpenedStore("redis", redis, _encrypted(config, journaled), secret, journaled, limits=owner)


def state_dir(config: SessionsConfig) -> Path:
    """The directory of files that only their owner may read."""
    if config.state_dir:
        return Path(config.state_dir)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "warmroute"


def kept_secret(path: Path) -> bytes:
    """Creates the secret if it is missing. Of several processes that start at once the first one's secret stays, and no
    process reads a half-written file. Raises ConfigError."""
    if not path.exists():
        try:
            with NamedTemporaryFile("w", dir=path.parent) as whole:  # readable by its owner only
                whole.write(secrets.token_hex(SECRET_BYTES))
                whole.flush()
                with suppress(FileExistsError):
                    os.link(whole.name, path)
        except OSError as error:
            raise ConfigError(f"sessions.secret_file={str(path)!r}: {error.strerror}") from None
    return read_secret("sessions.secret", "", str(path))


def _warn_of_readers(path: Path) -> None:
    if path.stat().st_mode & 0o077:
        log.warning(
            "other users can read the secret that sessions' keys are made of: chmod 600", extra={"path": str(path)}
        )


async def _warn_of_lost(store: SqliteStore, path: Path) -> None:
    """Logs an error where a new secret was made and the store has sessions of an old one."""
    with suppress(StoreUnavailable, Corrupt):
        if lost := sum(usage.sessions for usage in (await store.usage()).values()):
            log.error(
                "the secret that sessions' keys are made of was missing, and a new one was made: sessions stored before "
                "cannot be found. Put the old file back and restart, or delete the database",
                extra={"path": str(path), "sessions": lost},
            )


def _encrypted(config: SessionsConfig, store: Store) -> Store:
    """Raises ConfigError."""
    key = read_secret("sessions.encryption_secret", config.encryption_secret, config.encryption_secret_file)
    if not key:
        return store
    try:
        from router.sessions.stores.encrypted import EncryptedStore
    except ImportError:
        raise ConfigError(
            "sessions.encryption_secret=***: needs the package cryptography: warmroute[encryption]"
        ) from None
    return EncryptedStore(store, key)
