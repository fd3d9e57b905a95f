"""Two turns at once on the same sessions, many times: is anything lost, doubled, reordered or interleaved?

    python -m bench.races [--pairs 10000] [--store redis://127.0.0.1:6379/0 --routers 2]

The worker answers with the name of its newest message and notes the messages before it. After the races every session's
log is compared with the clients' answers and the worker's prompts:

    kept          the log has every acknowledged message once, its answer right after it, and nothing else
    in order      a turn that was acknowledged before another one began stands before it
    as sent       the messages before a message in the log are those in the worker's prompt
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import uvloop
from aiohttp import ClientSession, TCPConnector, web

from bench.verdict import conclude, percentile, served

SESSIONS = 100
AT_ONCE = 16
"""Pairs at once."""


@dataclass
class Seen:
    """``before``: for each message the messages before it. ``taken``: by session, when turns began and were acknowledged."""

    before: dict[str, list[str]] = field(default_factory=dict)
    taken: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)


def worker_app(seen: Seen, pause_s: float = 0.0) -> web.Application:
    """``pause_s``: before each part of an answer."""

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m", "object": "model"}]})

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        texts = [message["content"] for message in body["messages"]]
        name = texts[-1]
        seen.before[name] = texts[:-1]
        answer = f"re {name}"
        usage = {"prompt_tokens": len(texts), "completion_tokens": 1, "total_tokens": len(texts) + 1}
        head = {"id": "c", "created": 1, "model": "m"}
        await asyncio.sleep(pause_s)
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
            return web.json_response({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for delta, reason in (({"role": "assistant", "content": answer}, None), ({}, "stop")):
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            event = {**head, "object": "chat.completion.chunk", "choices": [choice]}
            await asyncio.sleep(pause_s)
            await response.write(b"data: %b\n\n" % json.dumps(event).encode())
        last = {**head, "object": "chat.completion.chunk", "choices": [], "usage": usage}
        await response.write(b"data: %b\n\ndata: [DONE]\n\n" % json.dumps(last).encode())
        return response

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_get("/health", models)
    app.router.add_post("/v1/chat/completions", chat)
    return app


async def take(client: ClientSession, url: str, session: str, name: str, seen: Seen) -> None:
    """One turn; every second one is streamed."""
    body = {"model": "m", "messages": [{"role": "user", "content": name}], "stream": hash(name) % 2 == 0}
    began = time.monotonic()
    async with client.post(f"{url}/v1/sessions/{session}/chat/completions", json=body) as answer:
        text = await answer.text()
        is_whole = "[DONE]" in text or '"finish_reason":' in text
        if answer.status == 200 and is_whole and f"re {name}" in text:
            seen.taken[session][name] = (began, time.monotonic())
            seen.took_s.append(time.monotonic() - began)
        else:
            seen.failed.append(f"{answer.status} {text[:200]}")


async def race(urls: list[str], pairs: int, seen: Seen) -> None:
    limit = asyncio.Semaphore(AT_ONCE)
    async with ClientSession(connector=TCPConnector(limit=0)) as client:

        async def pair(number: int) -> None:
            session = f"s{number % SESSIONS}"
            async with limit:
                await asyncio.gather(
                    *(
                        take(client, urls[(number + half) % len(urls)], session, f"{number}{half}", seen)
                        for half in range(2)
                    )
                )

        await asyncio.gather(*map(pair, range(pairs)))


async def read_log(client: ClientSession, url: str, session: str) -> list[tuple[str, str]]:
    """Role and text of each item, oldest first; empty if the session does not exist."""
    items: list[tuple[str, str]] = []
    after = ""
    while True:
        query = f"order=asc&limit=100{f'&after={after}' if after else ''}"
        async with client.get(f"{url}/v1/sessions/{session}/items?{query}") as answer:
            if answer.status == 404:
                return []
            page: dict[str, Any] = await answer.json()
        items += [(item["role"], text_of(item)) for item in page["data"] if item["status"] == "completed"]
        if not page["has_more"]:
            return items
        after = page["last_id"]


def text_of(item: dict[str, Any]) -> str:
    content = item["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def check(session: str, log: list[tuple[str, str]], seen: Seen) -> list[str]:
    """All faults of a session's log."""
    wrong = []
    taken = seen.taken[session]
    asked = [text for role, text in log if role == "user"]
    if sorted(asked) != sorted(taken):
        wrong.append(f"{session}: lost {set(taken) - set(asked)}, doubled or invented {len(asked) - len(set(taken))}")
    if [text for role, text in log if role == "assistant"] != [f"re {name}" for name in asked]:
        wrong.append(f"{session}: answers are not right behind their messages")
    if [role for role, _ in log] != ["user", "assistant"] * (len(log) // 2):
        wrong.append(f"{session}: turns are interleaved")
    for at, name in enumerate(asked):
        if seen.before.get(name) != [text for _, text in log[: 2 * at]]:
            wrong.append(f"{session}: {name} was sent behind another history")
        late = [
            other for other in asked[at + 1 :] if other in taken and name in taken and taken[other][1] < taken[name][0]
        ]
        if late:
            wrong.append(f"{session}: {name} stands before {late[0]}, which was acknowledged before it began")
    return wrong


async def run(pairs: int, store: str, routers: int) -> int:
    seen = Seen(taken={f"s{number}": {} for number in range(SESSIONS)})
    runner = web.AppRunner(worker_app(seen), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    worker = str(runner.addresses[0][1])
    with tempfile.TemporaryDirectory() as state_dir:
        settings = {
            "WARMROUTE_SESSIONS__STORE": store,
            "WARMROUTE_SESSIONS__STATE_DIR": state_dir,
            "WARMROUTE_SESSIONS__SECRET": f"a secret of this run, {time.time_ns()}",
        }
        async with contextlib.AsyncExitStack() as stack:
            served_ones = [
                await stack.enter_async_context(served([f"http://127.0.0.1:{worker}"], settings))
                for _ in range(routers)
            ]
            urls = [one.url for one in served_ones]
            began = time.monotonic()
            await race(urls, pairs, seen)
            took_s = time.monotonic() - began
            async with ClientSession() as client:
                logs = {session: await read_log(client, urls[-1], session) for session in seen.taken}
    await runner.cleanup()
    wrong = [each for session, log in logs.items() for each in check(session, log, seen)]
    for each in (*wrong[:10], *seen.failed[:10]):
        print(each)
    name = urlsplit(store).scheme or "sqlite"
    acknowledged = sum(map(len, seen.taken.values()))
    figures = {
        "store": name,
        "routers": routers,
        "pairs": pairs,
        "acknowledged": acknowledged,
        "failed": len(seen.failed),
        "wrong": len(wrong),
        "turns_per_s": round(acknowledged / took_s),
        "p50_ms": round(percentile(seen.took_s, 0.5) * 1e3, 2),
        "p99_ms": round(percentile(seen.took_s, 0.99) * 1e3, 2),
    }
    return conclude(
        f"races-{name}",
        figures,
        {
            "nothing is lost, doubled, reordered or interleaved": not wrong,
            "every turn is acknowledged": not seen.failed and acknowledged == 2 * pairs,
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--store", default="", help="as sessions.store; empty: SQLite")
    parser.add_argument("--routers", type=int, default=1)
    asked = parser.parse_args()
    sys.exit(uvloop.run(run(asked.pairs, asked.store, asked.routers)))
