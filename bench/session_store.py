"""The cost of a turn in the SQLite store by the session's length, in microseconds.

A turn is its ``begin`` and its ``append`` together. It also measures a full read of the session.

    python -m bench.session_store [--synchronous FULL] [--turns 500]
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from router.core.request.request import Tenant
from router.sessions.stores.contract import EMPTY, Append, Begin, Begun, Cursor, Sid
from router.sessions.stores.sqlite import SqliteStore

OWNER = Tenant("ann")
ENTRY = b"x" * 1024
LIFETIME_S = 86400.0


async def make_session(store: SqliteStore, sid: Sid, entries: int) -> Cursor:
    await store.create(sid, OWNER, entries=[ENTRY] * entries, attributes=b"", turns=0, lifetime_s=LIFETIME_S)
    loaded = await store.load(sid, OWNER, EMPTY)
    assert loaded is not None
    return Cursor(loaded.generation, loaded.head, loaded.epoch)


async def take_turn(store: SqliteStore, sid: Sid, cursor: Cursor, turn: int) -> Cursor:
    """One turn: an entry with ``begin``, and one with the ``append`` that ends the turn."""
    begin = Begin(
        sid=sid,
        owner=OWNER,
        token=f"{sid}-{turn}",
        cursor=cursor,
        turn=turn,
        entries=(ENTRY,),
        record=b"r" * 200,
        lease_s=30,
        lifetime_s=LIFETIME_S,
    )
    begun = await store.begin(begin)
    assert isinstance(begun, Begun)
    assert begun.appended
    append = Append(
        sid=sid,
        owner=OWNER,
        generation=begun.generation,
        fence=begun.fence,
        turn=begun.turn,
        entries=(ENTRY,),
        ends=True,
        record=b"r" * 400,
        worker="worker-1",
        lifetime_s=LIFETIME_S,
    )
    return Cursor(begun.generation, await store.append(append), begun.epoch)


async def timed_us(times: int, call: Callable[[int], Awaitable[object]]) -> list[float]:
    taken = []
    for n in range(times):
        start = time.perf_counter()
        await call(n)
        taken.append((time.perf_counter() - start) * 1e6)
    return sorted(taken)


def show(what: str, taken_us: list[float]) -> None:
    p50, p99 = taken_us[len(taken_us) // 2], taken_us[len(taken_us) * 99 // 100]
    print(f"{what:34} p50 {p50:8.0f}   p99 {p99:8.0f}")


async def measure_turns(store: SqliteStore, entries: int, turns: int) -> None:
    """Each turn belongs to another session, so that no session outgrows the measured length."""
    sessions = [Sid(f"{entries:05}-{n:040}") for n in range(20)]
    cursor = [await make_session(store, sid, entries) for sid in sessions]

    async def one(n: int) -> None:
        place = n % len(sessions)
        cursor[place] = await take_turn(store, sessions[place], cursor[place], n // len(sessions) + 1)

    cpu = time.process_time()
    taken_us = await timed_us(turns, one)
    cpu_us = (time.process_time() - cpu) / turns * 1e6
    show(f"begin + append at {entries} entries", taken_us)
    print(f"{'':34} cpu {cpu_us:8.0f}")


async def measure(store: SqliteStore, turns: int) -> None:
    for entries in (20, 200, 2000):
        await measure_turns(store, entries, turns)
    sid = Sid("cold")
    await make_session(store, sid, 2000)
    show("load of 2000 entries", await timed_us(100, lambda _: store.load(sid, OWNER, EMPTY)))

    async def read_on() -> None:
        while True:
            await store.load(sid, OWNER, EMPTY)

    reader = asyncio.create_task(read_on())
    print("while another reads 2000 entries again and again:")
    await measure_turns(store, 21, turns)
    reader.cancel()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--synchronous", choices=("NORMAL", "FULL"), default="NORMAL")
    parser.add_argument("--turns", type=int, default=500)
    parser.add_argument("--directory", type=Path, help="on the disk that is to be measured")
    arguments = parser.parse_args()
    with TemporaryDirectory(dir=arguments.directory) as directory:
        path = Path(directory) / "sessions.db"
        store = await SqliteStore.open(path, time.monotonic, time.time, synchronous=arguments.synchronous)
        await measure(store, arguments.turns)
        await store.close()


if __name__ == "__main__":
    asyncio.run(main())
