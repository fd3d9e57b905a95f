"""Are acknowledged appends kept while Redis's primary is killed and stopped?

    python -m bench.failovers [--unsafe] [--failovers 20] [--appends 100000]

Three data nodes and three Sentinels run as processes. Eight writers take turns in four sessions. Half of them use one
store and half another, as with two routers; each session has a writer of either store. Every second failover kills the
primary with SIGKILL and starts it again after another node took over. The others stop it with SIGSTOP until then and let
it continue as if it were still the primary. The second store rests meanwhile, and writes over its old connections as soon
as the old primary continues. At the end each session's log is compared with the acknowledged appends.

``--unsafe``: the defaults, without ``wait_replicas`` and ``min-replicas-to-write``. This run makes no claim.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import uvloop

from bench.verdict import conclude, percentile
from router.core.request.request import Tenant
from router.sessions.stores.contract import EMPTY, Append, Begin, Begun, Cursor, Fenced, Sid
from router.sessions.stores.redis import RedisLimits, RedisStore, RedisUnavailable
from tests.sessions.stores.redis_servers import SERVICE, Watched, watched

OWNER = Tenant("bench")
WRITERS = 8
SESSIONS = 4
STOPPED_S = 3.0
"""Longer than Sentinels need to declare a node down (1 s) and to promote another."""
BETWEEN_TURNS_S = 0.002
SAFE_NODES = ("min-replicas-to-write 1", "min-replicas-max-lag 2", "repl-diskless-sync-delay 0")
UNSAFE_NODES = ("repl-diskless-sync-delay 0",)
AGAIN_S = 0.02
TURN_ENDS_S = 0.3
"""Writers that must rest end their turns within this time."""
LIFETIME_S = 86_400.0

T = TypeVar("T")


@dataclass(slots=True)
class Found:
    """The answers that the writers got."""

    acknowledged: dict[Sid, list[tuple[int, int, int]]] = field(default_factory=dict)
    """By session: writer, the writer's turn, and part, in order of acknowledgement."""
    refusals: Counter[str] = field(default_factory=Counter)
    fenced: int = 0
    last_at: float = 0.0
    may_write: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while the writers of the second store may write."""

    @property
    def count(self) -> int:
        return sum(map(len, self.acknowledged.values()))


class Writer:
    def __init__(self, number: int, sid: Sid, store: RedisStore, found: Found) -> None:
        self._number = number
        self._sid = sid
        self._store = store
        self._found = found
        self._known = EMPTY
        self._turns = 0

    async def run(self, goes_on: Callable[[], bool]) -> None:
        turn = 0
        while goes_on():
            turn += 1
            if self._number >= SESSIONS:
                await self._found.may_write.wait()
            await self._turn(turn)
            await asyncio.sleep(BETWEEN_TURNS_S)

    async def _turn(self, number: int) -> None:
        parts = [f"{self._number} {number} {part}".encode() for part in (0, 1)]
        token = secrets.token_hex(16)
        try:
            begun = await self._begin(token, parts[0])
        except RedisUnavailable as error:
            self._found.refusals[error.reason] += 1
            await self._insist(lambda: self._store.leave(self._sid, OWNER, token))
            return
        self._known = Cursor(begun.generation, begun.head, begun.epoch)
        self._turns = begun.turn
        rest = parts[1:] if begun.appended else parts
        about = Append(
            sid=self._sid,
            owner=OWNER,
            generation=begun.generation,
            fence=begun.fence,
            turn=begun.turn,
            entries=rest,
            ends=True,
            is_late=True,
            lifetime_s=LIFETIME_S,
        )
        try:
            head = await self._insist(lambda: self._store.append(about))
        except Fenced:
            self._found.fenced += 1
            return
        self._known = Cursor(begun.generation, head, begun.epoch)
        self._found.last_at = time.monotonic()
        self._found.acknowledged.setdefault(self._sid, []).extend((self._number, number, part) for part in (0, 1))

    async def _begin(self, token: str, entry: bytes) -> Begun:
        begin = Begin(
            sid=self._sid,
            owner=OWNER,
            token=token,
            cursor=self._known,
            lease_s=30,
            lifetime_s=LIFETIME_S,
            turn=self._turns + 1,
            entries=(entry,),
        )
        while not isinstance(answer := await self._store.begin(begin), Begun):
            await asyncio.sleep(AGAIN_S)
        return answer

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeats a call until it is answered. For calls only that may run twice."""
        while True:
            try:
                return await call()
            except RedisUnavailable as error:
                self._found.refusals[error.reason] += 1
                await asyncio.sleep(AGAIN_S)


async def fail_over(servers: Watched, fault: signal.Signals, found: Found) -> None:
    """Forces one failover. Returns when all three nodes follow the new primary."""
    old = await asyncio.to_thread(servers.primary)
    assert old is not None
    stopped_at = time.monotonic()
    if fault is signal.SIGKILL:
        old.kill()
    else:
        found.may_write.clear()
        await asyncio.sleep(TURN_ENDS_S)
        old.send(fault)
    while await asyncio.to_thread(servers.primary) in (old, None):
        await asyncio.sleep(0.1)
    if fault is signal.SIGKILL:
        await asyncio.to_thread(old.start)
    else:
        await asyncio.sleep(max(0.0, STOPPED_S - (time.monotonic() - stopped_at)))
        old.send(signal.SIGCONT)
        found.may_write.set()
    async with asyncio.timeout(120):
        while await asyncio.to_thread(servers.replicas) < 2:
            await asyncio.sleep(0.1)


async def fail_over_all(servers: Watched, failovers: int, appends: int, found: Found) -> list[float]:
    """For each failover the longest time without an acknowledgement, in seconds."""
    outages = []
    for number in range(failovers):
        while found.count < appends * number / failovers:
            await asyncio.sleep(0.05)
        began_at = time.monotonic()
        longest = asyncio.create_task(_longest_silence(found))
        await fail_over(servers, signal.SIGSTOP if number % 2 else signal.SIGKILL, found)
        await asyncio.sleep(1)
        longest.cancel()
        outages.append(max(await longest, 0.0))
        print(
            f"failover {number + 1}: {time.monotonic() - began_at:.1f} s, silent {outages[-1]:.2f} s", file=sys.stderr
        )
    return outages


async def _longest_silence(found: Found) -> float:
    """The longest time between two acknowledgements, until it is cancelled."""
    longest = 0.0
    try:
        while True:
            longest = max(longest, time.monotonic() - found.last_at)
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        return longest


async def compare(url: str, found: Found) -> dict[str, int]:
    """Compares the acknowledged appends with the logs."""
    faults = Counter(lost=0, doubled=0, reordered=0)
    store = RedisStore.from_url(url, RedisLimits(deadline_s=30), time.monotonic)
    for sid, acknowledged in found.acknowledged.items():
        loaded = await store.load(sid, OWNER, EMPTY)
        there = [tuple(map(int, entry.split())) for entry in loaded.tail] if loaded else []
        places = {entry: place for place, entry in enumerate(there)}
        faults["lost"] += sum(entry not in places for entry in acknowledged)
        faults["doubled"] += len(there) - len(places)
        kept = [entry for entry in acknowledged if entry in places]
        for writer in {entry[0] for entry in kept}:
            own = [places[entry] for entry in kept if entry[0] == writer]
            faults["reordered"] += sum(later < earlier for earlier, later in itertools.pairwise(own))
    await store.close()
    return dict(faults)


async def measure(servers: Watched, options: argparse.Namespace) -> dict[str, Any]:
    limits = RedisLimits() if options.unsafe else RedisLimits(wait_replicas=1)
    stores = [RedisStore.from_url(servers.url, limits, time.monotonic) for _ in range(2)]
    found = Found(last_at=time.monotonic())
    found.may_write.set()
    sids = [Sid(secrets.token_hex(16)) for _ in range(SESSIONS)]
    is_over = False

    def goes_on() -> bool:
        return not is_over or found.count < options.appends

    started_at = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(WRITERS):
            writer = Writer(number, sids[number % SESSIONS], stores[number // SESSIONS], found)
            group.create_task(writer.run(goes_on))
        outages = await fail_over_all(servers, options.failovers, options.appends, found)
        is_over = True
    elapsed_s = time.monotonic() - started_at
    for store in stores:
        await store.close()
    return {
        "service": SERVICE,
        "wait_replicas": limits.wait_replicas,
        "failovers": options.failovers,
        "acknowledged": found.count,
        **await compare(servers.url, found),
        "fenced": found.fenced,
        "refusals": dict(found.refusals),
        "silence_p50_s": round(percentile(outages, 0.5), 2),
        "silence_max_s": round(max(outages), 2),
        "elapsed_s": round(elapsed_s, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unsafe", action="store_true")
    parser.add_argument("--failovers", type=int, default=20)
    parser.add_argument("--appends", type=int, default=100_000)
    options = parser.parse_args()
    with watched(UNSAFE_NODES if options.unsafe else SAFE_NODES) as servers:
        figures = uvloop.run(measure(servers, options))
    if options.unsafe:
        return conclude("failovers_unsafe", figures, {})
    claims = {f"no acknowledged append was {fault}": figures[fault] == 0 for fault in ("lost", "doubled", "reordered")}
    return conclude("failovers", figures, claims)


if __name__ == "__main__":
    sys.exit(main())
