"""Does the time of a 404 show whether another tenant has a thing?

    python -m bench.absent [--asks 5000]

Ann has sessions, responses and conversations. Bob requests Ann's things and as many things that nobody has, one request
after another in random order, on one connection. The figure is the area under the ROC curve: the chance that, of two
answers, one of each kind, the answer for Ann's thing took longer. At 0.5 the time shows nothing. Bob also requests
sessions of his own, which proves that the measurement would show a difference.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import uvloop
from aiohttp import web

from bench.cancellations import KEYS, keys_file
from bench.races import Seen, worker_app
from bench.verdict import conclude, percentile, served
from tests.sessions.stores.redis_servers import running

NAMES = 100
"""Things of each kind that Ann has. Equally many names of nobody are requested equally often."""
WARM_UP = 500
MAX_TOLD = 0.05
MIN_SEEN = 0.2
"""Distance from 0.5 that Bob's own sessions must reach, to prove that the measurement shows a difference."""
CONFIDENT = 1.96
"""Standard errors for 95 %."""
TEXT = "word " * 200

Kind = Literal["session", "response", "conversation"]
Answer = tuple[int, bytes]


class Way(NamedTuple):
    """One kind of request. ``status``: of the answer for a thing that does not exist."""

    kind: Kind
    method: str
    path: str
    status: int = 404

    def ask(self, name: str) -> tuple[str, str, Any]:
        body = {"model": "m", "input": "hello", "previous_response_id": name} if self.method == "POST" else None
        return self.method, self.path.format(name), body


WAYS = {
    "GET session": Way("session", "GET", "/v1/sessions/{}"),
    "GET items": Way("session", "GET", "/v1/sessions/{}/items"),
    "GET response": Way("response", "GET", "/v1/responses/{}"),
    "GET conversation": Way("conversation", "GET", "/v1/conversations/{}"),
    "POST previous_response_id": Way("response", "POST", "/v1/responses", 400),
}
OWN = "own session"


class Client:
    """One keep-alive connection of one tenant."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> None:
        self._reader, self._writer, self._key = reader, writer, key

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[float, Answer]:
        """Seconds until the whole answer is there."""
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: r\r\nAuthorization: Bearer {self._key}\r\n"
        request = f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data
        began = time.perf_counter()
        self._writer.write(request)
        told = await self._reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in told.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        text = await self._reader.readexactly(length)
        return time.perf_counter() - began, (int(told[9:12]), text)

    async def make(self, path: str, body: Any) -> Any:
        _, (status, text) = await self.ask("POST", path, body)
        if status != 200:
            raise RuntimeError(f"{path}: {status} {text[:200]!r}")
        return json.loads(text)

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def connected(url: str, key: str) -> AsyncIterator[Client]:
    parts = urlsplit(url)
    client = Client(*await asyncio.open_connection(parts.hostname, parts.port), key)
    try:
        yield client
    finally:
        client.close()


async def fill(client: Client, session: str) -> dict[Kind, str]:
    """Create one thing of each kind, with a turn in it."""
    message = {"role": "user", "content": TEXT}
    await client.make(f"/v1/sessions/{session}/chat/completions", {"model": "m", "messages": [message]})
    conversation = (await client.make("/v1/conversations", {}))["id"]
    await client.make(f"/v1/conversations/{conversation}/items", {"items": [{"type": "message", **message}]})
    response = (await client.make("/v1/responses", {"model": "m", "input": TEXT}))["id"]
    return {"session": session, "conversation": conversation, "response": response}


def of_nobody(chance: random.Random) -> dict[Kind, str]:
    """Names of things that nobody has, as long as the names that the router gives."""
    name = f"{chance.getrandbits(192):048x}"
    return {"session": name[:16], "conversation": f"conv_{name}", "response": f"resp_{name}"}


@dataclass(slots=True)
class Found:
    """By way: seconds of answers for Ann's things and for things of nobody; and the answers, without the names in them."""

    others: defaultdict[str, list[float]]
    nobodys: defaultdict[str, list[float]]
    answers: defaultdict[str, set[Answer]]


async def probe(url: str, asks: int, chance: random.Random) -> Found:
    async with connected(url, KEYS["ann"]) as ann, connected(url, KEYS["bob"]) as bob:
        anns = [await fill(ann, f"{chance.getrandbits(64):016x}") for _ in range(NAMES)]
        bobs = [await fill(bob, f"{chance.getrandbits(64):016x}") for _ in range(NAMES)]
        nobodys = [of_nobody(chance) for _ in range(NAMES)]
        plan = [(name, is_there) for name in (*WAYS, OWN) for is_there in (True, False) for _ in range(asks)]
        chance.shuffle(plan)
        found = Found(defaultdict(list), defaultdict(list), defaultdict(set))
        for at, (name, is_there) in enumerate([*plan[:WARM_UP], *plan]):
            way = WAYS.get(name, WAYS["GET session"])
            there = bobs if name == OWN else anns
            thing = chance.choice(there if is_there else nobodys)[way.kind]
            seconds, (status, text) = await bob.ask(*way.ask(thing))
            if at >= WARM_UP:
                (found.others if is_there else found.nobodys)[name].append(seconds)
                found.answers[name].add((status, text.replace(thing.encode(), b"NAME")))
    return found


def area(positives: Sequence[float], negatives: Sequence[float]) -> tuple[float, float, float]:
    """The area under the ROC curve and its interval, by the standard error of Hanley and McNeil."""
    ordered = sorted(negatives)
    below = sum(bisect_left(ordered, each) + bisect_right(ordered, each) for each in positives) / 2
    many, few = len(positives), len(negatives)
    found = below / (many * few)
    both, twice = found / (2 - found), 2 * found**2 / (1 + found)
    variance = found * (1 - found) + (many - 1) * (both - found**2) + (few - 1) * (twice - found**2)
    margin = CONFIDENT * sqrt(variance / (many * few))
    return found, found - margin, found + margin


def figures_of(found: Found) -> dict[str, Any]:
    return {name: _of_way(found.others[name], found.nobodys[name]) for name in (*WAYS, OWN)}


def _of_way(others: Sequence[float], nobodys: Sequence[float]) -> dict[str, Any]:
    auc, low, high = area(others, nobodys)
    return {
        "auc": round(auc, 4),
        "interval": [round(low, 4), round(high, 4)],
        "asks": [len(others), len(nobodys)],
        "there_p50_us": round(percentile(others, 0.5) * 1e6, 1),
        "nobodys_p50_us": round(percentile(nobodys, 0.5) * 1e6, 1),
    }


def claims_of(store: str, figures: dict[str, Any], found: Found) -> dict[str, bool]:
    told = {name: max(abs(end - 0.5) for end in figures[name]["interval"]) for name in WAYS}
    return {
        f"{store}: time tells nothing of what is another's, within {MAX_TOLD:g} of 0.5": max(told.values()) < MAX_TOLD,
        f"{store}: nor does the answer": all(
            [status for status, _ in found.answers[name]] == [way.status] for name, way in WAYS.items()
        ),
        f"{store}: a difference would be seen": abs(figures[OWN]["auc"] - 0.5) > MIN_SEEN,
    }


@asynccontextmanager
async def keyed_router(store: Callable[[str], str]) -> AsyncIterator[str]:
    """The URL of a router that asks for keys. ``store``: its ``sessions.store``, of a directory."""
    runner = web.AppRunner(worker_app(Seen()), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    with TemporaryDirectory() as folder:
        settings = {
            "WARMROUTE_SESSIONS__STORE": store(folder),
            "WARMROUTE_SESSIONS__STATE_DIR": folder,
            "WARMROUTE_SESSIONS__SECRET": "a secret of the benchmark",
            "WARMROUTE_AUTH__KEYS_FILE": str(keys_file(folder)),
            "WARMROUTE_AUTH__SALT_SECRET": "a salt secret of the benchmark",
            "WARMROUTE_FLEET__WORKERS": f"http://127.0.0.1:{runner.addresses[0][1]}",
            "WARMROUTE_SERVER__PORT": "0",
            "WARMROUTE_ADMIN__PORT": "0",
        }
        async with served([], settings, (sys.executable, "-m", "router", "serve")) as router:
            yield router.url
    await runner.cleanup()


async def run(asks: int) -> int:
    figures: dict[str, Any] = {}
    claims: dict[str, bool] = {}
    with running() as server:
        stores: dict[str, Callable[[str], str]] = {
            "sqlite": lambda folder: f"sqlite://{Path(folder) / 'sessions.db'}",
            "redis": lambda _: f"{server.url}/0",
        }
        for name, store in stores.items():
            async with keyed_router(store) as url:
                found = await probe(url, asks, random.Random(7))
            figures[name] = figures_of(found)
            claims |= claims_of(name, figures[name], found)
    return conclude("absent", figures, claims)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--asks", type=int, default=5000, help="of each kind, each way")
    sys.exit(uvloop.run(run(parser.parse_args().asks)))
