"""Opens the recall index that the configuration names, and the embedder that makes vectors for it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage

from router.app.session_store import NO_STORE, state_dir
from router.config.context import BUNDLED_MODEL, ContextConfig
from router.config.schema import Config, ConfigError
from router.config.secrets import read_secret
from router.proxy.ports import Dispatch
from router.runtime.sqlite_thread import IN_MEMORY
from router.sessions.recall.embedders.fleet import FleetEmbedder
from router.sessions.recall.index import Embedder, IndexUnavailable, MeasuredIndex
from router.sessions.recall.null_index import NullIndex
from router.sessions.recall.sqlite import IndexLimits, SqliteIndex

log = logging.getLogger("warmroute.sessions")

INDEX_FILE = "recall.db"
MIN_ROOM_BYTES = 128 << 10
"""If an index cannot be opened on a disk with less room, the cause is the full disk."""

Close = Callable[[], Awaitable[None]]

SEARCH_SHARE, EMBED_SHARE = 0.8, 0.4
"""Shares of ``context.recall_timeout_s`` for a search, and in it for the embedder. So words alone decide where a query is not
embedded in time, and the index gives up before the turn does, and notices that its server does not answer."""


@dataclass(frozen=True, slots=True)
class OpenedIndex:
    """``sqlite``: the index, if it is one in SQLite."""

    index: MeasuredIndex
    closes: tuple[Close, ...] = ()
    sweep: Callable[[], Awaitable[None]] | None = None
    """Deletes what has expired; None: nothing expires."""
    sqlite: SqliteIndex | None = None

    async def aclose(self) -> None:
        for close in self.closes:
            await close()


async def open_index(
    config: Config, dispatch: Dispatch, clock: Callable[[], float], wall_clock: Callable[[], float]
) -> OpenedIndex:
    """The index mirrors the log, so it is in memory where the store is encrypted or in memory. ``dispatch``: to the fleet,
    which may make vectors. Raises ConfigError."""
    sessions, context = config.sessions, config.context
    if sessions.store == NO_STORE or context.recall_index == "none":
        return OpenedIndex(NullIndex())
    if context.recall_in_postgres:
        return await _open_postgres(context, dispatch, clock)
    is_encrypted = bool(sessions.encryption_secret or sessions.encryption_secret_file)
    path = IN_MEMORY
    if context.recall_index == "sqlite" and not is_encrypted and not sessions.store.startswith("memory"):
        directory = state_dir(sessions)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"sessions.state_dir={str(directory)!r}: {error.strerror}") from None
        path = directory / INDEX_FILE
    embedder, close = await _open_embedder(context, dispatch, clock)
    try:
        index = await _open_sqlite(path, embedder, _sqlite_limits(context), wall_clock)
    except IndexUnavailable as error:
        raise ConfigError(f"context.recall_index={context.recall_index!r}: {error}") from None
    return OpenedIndex(index, (index.close, *([close] if close else [])), index.sweep, index)


async def _open_sqlite(
    path: Path, embedder: Embedder | None, limits: IndexLimits, wall_clock: Callable[[], float]
) -> SqliteIndex:
    """On a full disk, opens the index in memory until the next start. Raises IndexUnavailable."""
    try:
        return await SqliteIndex.open(path, embedder, limits, wall_clock=wall_clock)
    except IndexUnavailable as error:
        if path == IN_MEMORY or disk_usage(path.parent).free >= MIN_ROOM_BYTES:
            raise
        log.warning(
            "the recall index is in memory, since its disk is full: free some of the disk and restart",
            extra={"why": str(error)},
        )
        return await SqliteIndex.open(IN_MEMORY, embedder, limits, wall_clock=wall_clock)


def _sqlite_limits(context: ContextConfig) -> IndexLimits:
    return IndexLimits(
        max_bytes=context.max_recall_bytes,
        lifetime_s=context.recall_lifetime_s,
        search_timeout_s=context.recall_timeout_s * SEARCH_SHARE,
        embed_timeout_s=context.recall_timeout_s * EMBED_SHARE,
    )


async def _open_postgres(context: ContextConfig, dispatch: Dispatch, clock: Callable[[], float]) -> OpenedIndex:
    """Succeeds while the server is away. Raises ConfigError."""
    try:
        from router.sessions.recall.postgres import PostgresIndex, PostgresLimits
    except ImportError:
        raise ConfigError("context.recall_index=***: PostgreSQL needs the package of warmroute[postgres]") from None
    embedder, close = await _open_embedder(context, dispatch, clock)
    limits = PostgresLimits(
        search_timeout_s=context.recall_timeout_s * SEARCH_SHARE,
        embed_timeout_s=context.recall_timeout_s * EMBED_SHARE,
        lifetime_s=context.recall_lifetime_s,
    )
    index = PostgresIndex(context.recall_index, embedder, limits)
    return OpenedIndex(index, (index.close, *([close] if close else [])), index.sweep)


async def _open_embedder(
    context: ContextConfig, dispatch: Dispatch, clock: Callable[[], float]
) -> tuple[Embedder | None, Close | None]:
    """Opens an embedder behind a URL, in this process, or in the fleet. Raises ConfigError."""
    if not context.embed_model:
        return None, None
    if context.embed_url:
        from router.sessions.recall.embedders.remote import RemoteEmbedder, Service

        key = read_secret("context.embed_api_key", context.embed_api_key, context.embed_api_key_file).decode()
        service = Service(context.embed_url, context.embed_model, context.embed_dimensions, key)
        remote = await RemoteEmbedder.open(service)
        return remote, remote.close
    if context.embed_model != BUNDLED_MODEL:
        return FleetEmbedder(dispatch, clock, context.embed_model, context.embed_dimensions), None
    try:
        from router.sessions.recall.embedders.onnx import OnnxEmbedder
    except ImportError:
        needed = "needs the packages of warmroute[recall-onnx]"
        raise ConfigError(f"context.embed_model={context.embed_model!r}: {needed}") from None
    try:
        local = await OnnxEmbedder.open(context.embed_model)
    except IndexUnavailable as error:
        raise ConfigError(f"context.embed_model={context.embed_model!r}: {error}") from None
    return local, local.close
