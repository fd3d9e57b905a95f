"""Does a reply ever reach another session, and does a tenant ever see another tenant's state?

    python -m bench.cancellations [--scale 1]

1. 90,000 tasks are cancelled in this process at random points of calls to Redis, and 10,000 clients close their
   connections at random points of turns and reads. Every reply names its session, so a reply of another session is
   noticed.
2. Two tenants have sessions with the same names. One of them asks a million times for the other's state, by name and by
   the other's storage key. The answer must equal the answer for a session that nobody has.
3. The second check over HTTP, 10,000 times: status, body and header names must equal those of an absent session, which
   is asked for right afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvloop
from aiohttp import ClientError, ClientSession, TCPConnector, web

from bench.races import Seen, read_log, worker_app
from bench.verdict import conclude, served
from router.core.request.request import Tenant
from router.sessions.session_ids import Namespace, SessionIds
from router.sessions.stores.contract import EMPTY, Append, Begin, Begun, Sid, Store, StoreUnavailable
from router.sessions.stores.redis import RedisLimits, RedisStore, RedisUnavailable
from router.sessions.stores.sqlite import SqliteStore
from tests.sessions.stores.memory import MemoryStore
from tests.sessions.stores.redis_servers import running

TASKS, CLIENTS = 90_000, 10_000
PROBES = {"memory": 700_000, "sqlite": 150_000, "redis": 150_000}
HTTP_PROBES = 10_000
SESSIONS = 200
AT_ONCE = 32
MAX_TASK_S, MAX_CLIENT_S = 0.002, 0.06
"""The longest time until a task is cancelled, and until a client leaves."""
STAYING = 0.25
"""The share of clients that stay and read their answers."""
ANN, BOB = Tenant("ann"), Tenant("bob")
LIFETIME_S = 3600.0


class Calls:
    """Calls on sessions whose entries and documents are their own names. ``foreign``: replies of other sessions."""

    def __init__(self, store: Store, sids: list[Sid], chance: random.Random) -> None:
        self._store = store
        self._sids = sids
        self._chance = chance
        self.ends: Counter[str] = Counter()
        self.foreign = 0

    async def fill(self) -> None:
        for sid in self._sids:
            own = sid.encode()
            await self._store.create(sid, ANN, entries=[own], attributes=own, turns=1, lifetime_s=LIFETIME_S)
            await self._store.put_document(sid, ANN, own, LIFETIME_S)

    async def read_all(self) -> None:
        for sid in self._sids:
            loaded = await self._store.load(sid, ANN, EMPTY)
            self._judge(sid, loaded.tail if loaded else [None])

    async def cancel_many(self, count: int) -> None:
        """Runs until that many tasks were cancelled before their end."""
        while self.ends["cancelled"] < count:
            task = asyncio.create_task(self._one(self._chance.choice(self._sids)))
            if self._chance.random() < 0.5:
                for _ in range(self._chance.randrange(1, 13)):
                    await asyncio.sleep(0)
            else:
                await asyncio.sleep(self._chance.random() * MAX_TASK_S)
            task.cancel()
            try:
                await task
                self.ends["ended"] += 1
            except asyncio.CancelledError:
                self.ends["cancelled"] += 1
            except RedisUnavailable as error:
                self.ends[error.reason] += 1
            except StoreUnavailable:
                self.ends["unavailable"] += 1

    async def _one(self, sid: Sid) -> None:
        kind = self._chance.randrange(10)
        if kind < 4:
            self._judge(sid, [await self._store.get_document(sid, ANN)])
        elif kind < 8:
            loaded = await self._store.load(sid, ANN, EMPTY)
            self._judge(sid, [*loaded.tail, loaded.attributes] if loaded else [None])
        else:
            await self._turn(sid)

    async def _turn(self, sid: Sid) -> None:
        token = f"{self._chance.getrandbits(128):032x}"
        begin = Begin(sid=sid, owner=ANN, token=token, waits=False, lease_s=0.02, lifetime_s=LIFETIME_S)
        begun = await self._store.begin(begin)
        if not isinstance(begun, Begun):
            return
        self._judge(sid, begun.tail)
        end = Append(
            sid=sid,
            owner=ANN,
            generation=begun.generation,
            fence=begun.fence,
            turn=begun.turn,
            entries=[sid.encode()] if begun.head < 20 else [],
            ends=True,
            is_late=True,
            lifetime_s=LIFETIME_S,
        )
        await self._store.append(end)

    def _judge(self, sid: Sid, found: Any) -> None:
        self.foreign += sum(each != sid.encode() for each in found)


async def cancel_tasks(url: str, count: int) -> dict[str, Any]:
    store = RedisStore.from_url(url, RedisLimits(deadline_s=5.0, max_connections=AT_ONCE), time.monotonic)
    calls = Calls(store, [Sid(f"{number:032}") for number in range(SESSIONS)], random.Random(1))
    await calls.fill()
    await asyncio.gather(*(calls.cancel_many(count) for _ in range(AT_ONCE)))
    await calls.read_all()
    await store.close()
    return {**calls.ends, "foreign": calls.foreign}


async def leave_at_random(client: ClientSession, url: str, count: int) -> dict[str, Any]:
    """Turns and reads whose clients close their connections at random times."""
    ends: Counter[str] = Counter()
    chance = random.Random(2)
    numbers = iter(range(1 << 30))

    async def ask(session: str, number: int) -> None:
        path = f"{url}/v1/sessions/{session}"
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": f"{session}.{number}"}],
            "stream": number % 2 > 0,
        }
        call = (
            client.get(f"{path}/items?limit=5")
            if number % 3 == 0
            else client.post(f"{path}/chat/completions", json=body)
        )
        async with call as answer:
            text = await answer.text()
        others = [other for other in sessions if other != session and f"{other}." in text]
        ends["foreign"] += len(others)
        ends["ended"] += 1

    async def leave() -> None:
        while ends["cancelled"] < count:
            task = asyncio.create_task(ask(chance.choice(sessions), next(numbers)))
            if chance.random() < STAYING:
                await asyncio.wait([task])
            else:
                await asyncio.wait([task], timeout=chance.random() * MAX_CLIENT_S)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                ends["cancelled"] += 1
            except ClientError:
                ends["cut"] += 1

    sessions = [f"s{number:03}" for number in range(SESSIONS)]
    await asyncio.gather(*(leave() for _ in range(AT_ONCE // 2)))
    for session in sessions:
        for _, text in await read_log(client, url, session):
            ends["foreign"] += not text.removeprefix("re ").startswith(f"{session}.")
    return dict(ends)


async def probe(store: Store, count: int) -> dict[str, Any]:
    """Counts the answers to Bob that differ between Ann's sessions and sessions of nobody."""
    session_ids = SessionIds(b"a secret of the benchmark")
    chance = random.Random(3)
    for number in range(SESSIONS):
        sid = session_ids.sid(ANN, Namespace.SESSION, f"n{number}")
        await store.create(sid, ANN, entries=[b"e"], attributes=b"a", turns=1, lifetime_s=LIFETIME_S)
        await store.put_document(sid, ANN, b"d", LIFETIME_S)
    calls: list[Callable[[Sid], Awaitable[Any]]] = [
        lambda sid: store.load(sid, BOB, EMPTY),
        lambda sid: store.read_turn(sid, BOB, 1),
        lambda sid: store.get_document(sid, BOB),
        lambda sid: store.delete(sid, BOB),
        lambda sid: store.begin(Begin(sid=sid, owner=BOB, token="t", creates=False, lease_s=1, lifetime_s=LIFETIME_S)),
    ]
    told: Counter[str] = Counter()
    left = iter(range(count))

    async def ask() -> None:
        for number in left:
            owner = (BOB, ANN)[number % 2]
            sid = session_ids.sid(owner, Namespace.SESSION, f"n{chance.randrange(SESSIONS)}")
            at = chance.randrange(len(calls))
            told["wrong"] += bool(await calls[at](sid))  # absent is None, and nothing to delete False
            told["asked"] += 1

    began = time.monotonic()
    await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
    for number in range(SESSIONS):
        loaded = await store.load(session_ids.sid(ANN, Namespace.SESSION, f"n{number}"), ANN, EMPTY)
        told["wrong"] += loaded is None or list(loaded.tail) != [b"e"]
    return {"asked": told["asked"], "wrong": told["wrong"], "per_s": round(count / (time.monotonic() - began))}


async def probe_stores(url: str, scale: float) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        stores: dict[str, Store] = {
            "memory": MemoryStore(time.monotonic, time.time),
            "sqlite": await SqliteStore.open(Path(folder) / "s.db", time.monotonic, time.time),
            "redis": RedisStore.from_url(url, RedisLimits(deadline_s=5.0), time.monotonic),
        }
        found = {}
        for name, store in stores.items():
            found[name] = await probe(store, int(PROBES[name] * scale))
            await store.close()
        return found


KEYS = {"ann": "wr-" + "a" * 43, "bob": "wr-" + "b" * 43}


def keys_file(folder: str) -> Path:
    path = Path(folder) / "keys.toml"
    text = "[tenants.ann]\n[tenants.bob]\n"
    for name, key in KEYS.items():
        text += f'[[keys]]\nid = "{name}"\ntenant = "{name}"\nsha256 = "{sha256(key.encode()).hexdigest()}"\n'
    path.write_text(text, "utf-8")
    return path


async def probe_http(client: ClientSession, url: str, count: int) -> dict[str, Any]:
    """Bob asks over HTTP for Ann's sessions and for sessions of nobody."""
    ann, bob = ({"Authorization": f"Bearer {key}"} for key in KEYS.values())
    body = {"items": [{"type": "message", "role": "user", "content": "Ann's own"}]}
    for number in range(SESSIONS):
        async with client.post(f"{url}/v1/sessions/n{number}/items", json=body, headers=ann) as answer:
            answer.raise_for_status()
    chance = random.Random(4)
    told: Counter[str] = Counter()
    left = iter(range(count))
    ways = [("GET", ""), ("GET", "/items"), ("DELETE", ""), ("GET", "/turns/1/prompt"), ("POST", "/fork")]

    async def ask() -> None:
        for _ in left:
            method, rest = chance.choice(ways)
            answers = []
            for name in (f"n{chance.randrange(SESSIONS)}", f"absent{chance.randrange(SESSIONS)}"):
                wish = {"session_id": "mine"} if method == "POST" else None
                async with client.request(method, f"{url}/v1/sessions/{name}{rest}", json=wish, headers=bob) as answer:
                    told[str(answer.status)] += 1
                    answers.append((answer.status, await answer.read(), sorted(answer.headers)))
            told["different"] += answers[0] != answers[1]

    await asyncio.gather(*(ask() for _ in range(AT_ONCE // 2)))
    async with client.get(f"{url}/v1/sessions/n0/items", headers=ann) as answer:
        told["Ann's is there"] += "Ann's own" in await answer.text()
    return dict(told)


async def over_http(url: str, scale: float) -> tuple[dict[str, Any], dict[str, Any]]:
    runner = web.AppRunner(worker_app(Seen()), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    worker = f"http://127.0.0.1:{runner.addresses[0][1]}"
    with TemporaryDirectory() as folder:
        settings = {
            "WARMROUTE_SESSIONS__STORE": url,
            "WARMROUTE_SESSIONS__STATE_DIR": folder,
            "WARMROUTE_SESSIONS__SECRET": "a secret of the benchmark",
        }
        keyed = {
            "WARMROUTE_AUTH__KEYS_FILE": str(keys_file(folder)),
            "WARMROUTE_AUTH__SALT_SECRET": "a salt secret of the benchmark",
            "WARMROUTE_FLEET__WORKERS": worker,
            "WARMROUTE_SERVER__PORT": "0",
            "WARMROUTE_ADMIN__PORT": "0",
        }
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(ClientSession(connector=TCPConnector(limit=0)))
            router = await stack.enter_async_context(served([worker], settings))
            left = await leave_at_random(client, router.url, int(CLIENTS * scale))
            serve = (sys.executable, "-m", "router", "serve")
            router = await stack.enter_async_context(served([], settings | keyed, serve))
            probed = await probe_http(client, router.url, int(HTTP_PROBES * scale))
    await runner.cleanup()
    return left, probed


async def run(scale: float) -> int:
    with running() as server:
        tasks = await cancel_tasks(f"{server.url}/0", int(TASKS * scale))
        probes = await probe_stores(f"{server.url}/1", scale)
        clients, http = await over_http(f"{server.url}/2", scale)
    cancelled = tasks["cancelled"] + clients["cancelled"]
    asked = sum(found["asked"] for found in probes.values())
    figures = {"tasks": tasks, "clients": clients, "store_probes": probes, "http_probes": http}
    return conclude(
        "cancellations",
        figures,
        {
            f"of {cancelled} cancellations none brings a reply to another session": not tasks["foreign"]
            and not clients.get("foreign", 0)
            and clients["ended"] > clients["cancelled"] * STAYING / 4,
            f"of {asked} probes of stores none is told more than of an absent session": not any(
                found["wrong"] for found in probes.values()
            ),
            "over HTTP another tenant's session is 404, as an absent one": not http.get("different", 0)
            and set(http) <= {"404", "different", "Ann's is there"}
            and http["Ann's is there"] == 1,
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float, default=1.0, help="of all counts")
    sys.exit(uvloop.run(run(parser.parse_args().scale)))
