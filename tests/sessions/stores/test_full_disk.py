"""On a full disk the store reports it, tenants can free room by deleting, and calls that need no room go on."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from router.app.session_store import open_store
from router.config.sessions import SessionsConfig
from router.core.request.request import Tenant
from router.sessions.stores.contract import EMPTY, Full, OwnerFull, Sid
from router.sessions.stores.sqlite import SqliteStore
from tests.not_tested import not_tested
from tests.sessions.stores.contract import OWNER, asks

DISK_BYTES = 24 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small one of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        not_tested("a full disk: only root may mount one")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@asynccontextmanager
async def opened(disk: Path) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(disk / "sessions.db", time.monotonic, time.time)
    try:
        yield store
    finally:
        await store.close()


async def fill(store: SqliteStore, disk: Path) -> int:
    """With sessions s0, s1, …, until nothing more goes in."""
    count = 0
    with suppress(Full, OwnerFull):
        while True:
            await keep(store, f"s{count}")
            count += 1
    take_the_rest(disk)
    with suppress(Full):
        for number in range(10_000):
            await store.put_document(Sid(f"{number}"), Tenant(f"small{number % 100}"), b"d" * 1000, 0)
    return count


async def keep(store: SqliteStore, name: str, owner: Tenant = OWNER) -> None:
    assert await store.create(Sid(name), owner, entries=[b"x" * 100_000] * 5, attributes=b"", turns=1, lifetime_s=0)


def take_the_rest(disk: Path) -> Path:
    """Another program's file, as long as there is room for."""
    path = disk / "others"
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(b"z" * 4096):
            pass
    return path


async def test_a_tenant_that_stores_all_it_can_leaves_room_to_others(disk: Path) -> None:
    async with opened(disk) as store:
        count = 0
        with suppress(OwnerFull):
            while True:
                await keep(store, f"s{count}")
                count += 1
        for number in range(5):
            await keep(store, f"others{number}", Tenant("other"))
        for number in range(count - 5):
            assert await store.delete(Sid(f"s{number}"), OWNER)
        await keep(store, "again")


async def test_a_full_disk_takes_no_write_and_deletions_make_room(disk: Path) -> None:
    async with opened(disk) as store:
        count = await fill(store, disk)
        with pytest.raises(Full):
            await store.ping()
        for number in range(count // 2):
            assert await store.delete(Sid(f"s{number}"), OWNER)
        await store.ping()
        await store.tidy()
        for number in range(count // 4):
            await keep(store, f"new{number}")
        left = await store.load(Sid(f"s{count - 1}"), OWNER, EMPTY)
        assert left is not None
        assert left.head == 5


async def test_a_store_on_a_full_disk_opens_when_there_is_room(disk: Path) -> None:
    async with opened(disk) as store:
        await keep(store, "kept")
        await store.delete(Sid("nothing"), OWNER)
        await store._writer.spend_reserve()
    others = take_the_rest(disk)
    async with opened(disk) as store:
        for call in (store.ping(), store.load(Sid("kept"), OWNER, EMPTY), store.begin(asks(Sid("kept")))):
            with pytest.raises(Full):
                await call
        others.unlink()
        await store.ping()
        loaded = await store.load(Sid("kept"), OWNER, EMPTY)
        assert loaded is not None
        assert len(loaded.tail) == 5


async def test_the_configured_store_opens_on_a_full_disk(disk: Path) -> None:
    config = SessionsConfig(state_dir=str(disk))
    first = await open_store(config, time.monotonic, time.time)
    await first.store.put_document(Sid("kept"), OWNER, b"d", 0)
    await first.store.close()
    (disk / "sessions.db-reserve").unlink()
    others = take_the_rest(disk)
    again = await open_store(config, time.monotonic, time.time)
    with pytest.raises(Full):
        await again.store.ping()
    others.unlink()
    assert await again.store.get_document(Sid("kept"), OWNER) == b"d"
    await again.store.close()
