"""A configured store warns of its secret, and each kind deletes what has expired."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from router.app.session_store import open_store
from router.config.sessions import SessionsConfig
from router.runtime.sqlite_thread import IN_MEMORY
from router.sessions.stores.contract import Sid
from router.sessions.stores.opened import OpenedStore
from router.sessions.stores.sqlite import SqliteStore
from tests.sessions.stores.contract import OWNER, Clocks


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[OpenedStore]:
    store = await open_store(SessionsConfig(state_dir=str(directory)), time.monotonic, time.time)
    try:
        yield store
    finally:
        await store.store.close()


async def keep(store: OpenedStore) -> None:
    assert await store.store.create(Sid("a"), OWNER, entries=(b"1",), attributes=b"", turns=1, lifetime_s=0)


async def test_a_lost_secret_is_told_of_where_there_are_sessions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path) as store:
        assert not caplog.messages
        await keep(store)
    (tmp_path / "sessions.secret").unlink()
    async with opened(tmp_path):
        assert ["was missing" in line for line in caplog.messages] == [True]
    async with opened(tmp_path):
        assert len(caplog.messages) == 1


@pytest.mark.parametrize(("mode", "is_told"), [(0o600, False), (0o640, True), (0o604, True)])
async def test_a_secret_that_others_can_read_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, is_told: bool
) -> None:
    async with opened(tmp_path):
        (tmp_path / "sessions.secret").chmod(mode)
    async with opened(tmp_path):
        assert ["chmod 600" in line for line in caplog.messages] == [True] * is_told


async def test_what_has_expired_in_memory_is_swept_though_nobody_asks_for_it() -> None:
    clocks = Clocks()
    store = await SqliteStore.open(IN_MEMORY, clocks.monotonic, clocks.unix_time)
    for number, lifetime_s in enumerate((5.0, 5.0, 50.0, 0.0)):
        sid = Sid(f"{number}")
        assert await store.create(sid, OWNER, entries=(b"1",), attributes=b"", turns=1, lifetime_s=lifetime_s)
        await store.put_document(sid, OWNER, b"d", lifetime_s)
    await clocks.advance(10)
    assert [await store.sweep(1) for _ in range(3)] == [2, 2, 0], "a session and a document at a time"
    usage = (await store.usage())[OWNER]
    assert (usage.sessions, usage.documents) == (2, 2)
    await store.close()


async def test_a_configured_store_in_memory_is_swept() -> None:
    store = await open_store(SessionsConfig(store="memory://"), time.monotonic, time.time)
    assert (store.kind, store.pending) == ("memory", 0)
    assert store.sweep is not None
    assert await store.sweep(10) == 0
    for tidy in store.tidy:
        await tidy()
    await keep(store)
    assert (await store.count())[OWNER].sessions == 1
    await store.store.close()
