"""A process that takes turns of the sessions in a file until it is killed, and prints each that was acknowledged.

python -m tests.sessions.stores.sqlite_child FILE
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from pathlib import Path
from secrets import token_hex

from router.sessions.stores.contract import Begun, Busy, Fenced, Sid
from router.sessions.stores.sqlite import SqliteStore
from tests.sessions.stores.contract import asks, more

SIDS = [Sid(f"session-{n}") for n in range(4)]


async def take_turn(store: SqliteStore, sid: Sid) -> int | None:
    """Its number once it has ended."""
    begin = asks(sid, token=token_hex(16), lease_s=0.2, lifetime_s=0)
    while isinstance(begun := await store.begin(begin), Busy):
        await asyncio.sleep(0.005)
    assert isinstance(begun, Begun)
    try:
        await store.append(more(sid, begun, b"%d asked" % begun.turn, lifetime_s=0))
        answer = (b"%d answered" % begun.turn, b"%d done" % begun.turn)
        await store.append(more(sid, begun, *answer, ends=True, record=b"%d" % begun.turn, lifetime_s=0))
    except Fenced:
        return None
    return begun.turn


async def main() -> None:
    store = await SqliteStore.open(Path(sys.argv[1]), time.monotonic, time.time)
    for sid in itertools.cycle(SIDS):
        if turn := await take_turn(store, sid):
            print(sid, turn, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
