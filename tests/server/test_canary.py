"""Planted keys and prompts go through a router in every way that requests go well or wrong, and show nowhere."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest

from router.app.serve import Running
from router.runtime.logs import JsonFormatter, TextFormatter
from tests.e2e.routed import Answer, Broken, connected, get_admin, routed
from tests.e2e.streams import answering, drop, hang, stream
from tests.server.keys import ACME, BETA, DISABLED, EXPIRED, SALT_SECRET, bearer, digest, keyed
from tests.upstream.scripted import STREAM_HEAD, Asked, Peer, answer, scripted

ROUNDS = 36
AT_ONCE = 20
PROMPT = "canary7prompt"
UNKNOWN = "wr-canary7unknown7key7canary7unknown7key7canary"
FOREIGN = "sk-canary7foreign7key7canary"
SECRETS = (PROMPT, ACME, BETA, EXPIRED, DISABLED, UNKNOWN, FOREIGN, digest(ACME), SALT_SECRET, ACME[:20], UNKNOWN[:20])
KEYS = (ACME, UNKNOWN, FOREIGN, EXPIRED, DISABLED, PROMPT)
PATHS = ("/v1/chat/completions", "/v1/messages", "/v1/completions", "/v1/embeddings")


def chat(**more: object) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "prompt": PROMPT, "input": PROMPT}
    return json.dumps({**body, "cache_salt": PROMPT, "user": PROMPT, **more}).encode()


BAD_BODIES = (
    chat()[:-1],
    PROMPT.encode(),
    f'{{"{PROMPT}": 1, "{PROMPT}": 2}}'.encode(),
    f'{{"model": "m", "messages": [{PROMPT}]}}'.encode(),
    f'{{"model": "m", "messages": ["\\{PROMPT}"]}}'.encode(),
    f'{{"model": "m", "messages": "\xff{PROMPT}"}}'.encode("latin-1"),
    chat(messages=PROMPT),
    chat(messages=[PROMPT], prompt={PROMPT: 1}, model=[PROMPT]),
    chat(stream=PROMPT),
    chat(model={PROMPT: PROMPT}),
    chat(model=PROMPT * 100),
    chat(cache_salt=PROMPT * 100),
    chat(cache_salt=[PROMPT]),
    chat(stream=True, stream_options={"include_usage": PROMPT}),
    chat(prompt=[1, PROMPT], messages=[]),
    chat(x=PROMPT * 1000),
)
HEADS = (
    f"GET /{PROMPT} HTTP/1.1",
    f"GET /v1/models/{ACME}?key={UNKNOWN} HTTP/1.1",
    f"DELETE /v1/models?key={ACME} HTTP/1.1",
    f"GET /v1/models?key={ACME} HTTP/1.1",
    f"PUT /v1/chat/completions?key={ACME} HTTP/1.1",
    f"GET /v1/chat/completions HTTP/1.1\r\nCookie: {ACME}",
    f"{PROMPT} / HTTP/1.1",
    f"GET /{PROMPT} HTTP/9.9",
    f"GET {PROMPT} {ACME}",
    f"GET / HTTP/1.1\r\n{ACME}",
    f"GET / HTTP/1.1\r\nX-{PROMPT}: \x00{ACME}",
    f"GET / HTTP/1.1\r\nX-Long: {PROMPT * 2000}",
    f"GET /{PROMPT * 2000} HTTP/1.1",
    "GET / HTTP/1.1\r\n" + "\r\n".join(f"X-{i}: {PROMPT}" for i in range(100)),
    f"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: {PROMPT}",
    f"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n{bearer(ACME)}\r\n\r\n{PROMPT}",
    f"POST /v1/chat/completions HTTP/1.1\r\nExpect: {PROMPT}\r\nContent-Length: 0\r\n{bearer(ACME)}",
    f"POST /v1/chat/completions HTTP/1.1\r\nContent-Encoding: {PROMPT}\r\nContent-Length: 0\r\n{bearer(ACME)}",
    f"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 99999999\r\n{bearer(ACME)}",
)


async def fail_in_turn(asked: Asked, peer: Peer) -> None:
    """Each kind of failure, all of them quoting the prompt, and good answers among them."""
    number = crc32(asked.headers["x-request-id"].encode() + asked.body) % 8
    if number == 0:
        await drop(asked, peer)
    elif number == 1:
        await answering(asked.body, 500)(asked, peer)
    elif number == 2:
        await answering(asked.body, 429)(asked, peer)
    elif number == 3:
        await peer.send(f"HTTP/1.1 {PROMPT}\r\n\r\n".encode())
    elif number == 4:
        await peer.send(STREAM_HEAD, f"{PROMPT}\r\n".encode())
        peer.close()
    elif number == 5:
        await peer.send(answer(asked.body)[:-5])
        peer.close()
    else:
        await (stream(asked, peer) if b'"stream": true' in asked.body else peer.send(answer()))


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What goes to the log, every level of it, as both formats write it."""
    into = io.StringIO()
    handlers = [logging.StreamHandler(into), logging.StreamHandler(into)]
    for handler, formatter in zip(handlers, (JsonFormatter(), TextFormatter()), strict=True):
        handler.setFormatter(formatter)
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers[:] = handlers
    root.setLevel(logging.DEBUG)
    yield into
    root.handlers[:] = before
    root.setLevel(level)


def requests(number: int) -> Iterator[bytes]:
    """One round: each kind of request once, with keys that differ from round to round."""
    key = KEYS[number % len(KEYS)]
    request_id = f"{number}" if key == PROMPT else f"{key}-{number}"  # ids are for showing, unless they look like keys
    for path in PATHS:
        for body in (chat(), chat(stream=True), chat(model=UNKNOWN), BAD_BODIES[number % len(BAD_BODIES)]):
            for line in (bearer(ACME), bearer(key), f"x-api-key: {key}", f"Authorization: {key}"):
                lines = (line, f"X-Request-Id: {request_id}", f"X-Session-ID: {PROMPT}", f"traceparent: {key}")
                yield head(f"POST {path} HTTP/1.1", *lines, f"Content-Length: {len(body)}") + body
    for start in HEADS:
        yield head(start)


def head(*lines: str) -> bytes:
    return "\r\n".join([*lines, "Host: r", "Connection: close", "", ""]).encode("latin-1")


async def ask(router: Running, request: bytes, slots: asyncio.Semaphore) -> Answer | None:
    async with slots, connected(router) as client:
        try:
            await client.send(request)
            async with asyncio.timeout(10):
                return await client.answer()
        except (Broken, ConnectionError):
            return None


def hits(text: str) -> set[str]:
    return {secret for secret in SECRETS if secret in text}


async def test_planted_keys_and_prompts_show_nowhere(written: io.StringIO, tmp_path: Path) -> None:
    settings = {
        **keyed(tmp_path / "keys.toml"),
        "limits__max_body_bytes": 8192,
        "timeouts__answer_s": 1.0,
        "admission__max_wait_s": 0.0,
        "retries__max_attempts": 2,
        "admin__decisions": 100_000,
    }
    async with scripted(fail_in_turn) as one, scripted(fail_in_turn) as two, scripted(hang) as ill:
        ill.is_ill = True
        async with routed(one.url, two.url, ill.url, **settings) as router:
            slots = asyncio.Semaphore(AT_ONCE)
            work = [ask(router, each, slots) for number in range(ROUNDS) for each in requests(number)]
            assert len(work) >= 2000
            answers = [found for found in await asyncio.gather(*work) if found is not None]
            pages = [await get_admin(router, page) for page in ("/metrics", "/decisions", "/workers", f"/{ACME}")]
    assert len(answers) > 2000
    statuses = {found.status for found in answers}
    assert {200, 400, 401, 404, 405, 413, 431} <= statuses
    assert statuses & {502, 503}
    for page in pages:
        assert hits(page.body.decode()) == set()
    assert written.getvalue().count("\n") > 10
    assert hits(written.getvalue()) == set()
    for found in answers:
        told = f"{found.headers}{found.body.decode()}"
        if found.status >= 400 and f"the model '{UNKNOWN}'" not in told:  # a client's own model name, back to itself
            assert hits(told) == set(), found
