"""Hostile clients of one kind: ``python -m bench.hostile_clients KIND URL N [KEY …]``, until it is killed.

It opens N connections, each from an address of its own, BEGUN_PER_S of them a second. A connection that ends begins again,
so the pressure on a bound never stops. ``URL`` is the data port, or the admin port for the kinds that attack it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

MB = 1 << 20
BEGUN_PER_S = 1_000
AGAIN_S = 2.0
"""From the end of a connection to the next."""

RECEIVE_BYTES = 4 << 10
"""The kernel's receive buffer of a client that does not read."""

CHAT_PATH = "/v1/chat/completions"
FIELD = b"x-f: " + b"a" * 8_000 + b"\r\n"
Send = Iterator[bytes]


def head(path: str, key: str, *lines: str, method: str = "POST") -> bytes:
    authorization = [f"Authorization: Bearer {key}"] if key else []
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *authorization, *lines, "", ""]).encode()


def post(key: str, body: bytes, path: str = CHAT_PATH) -> bytes:
    return head(path, key, f"Content-Length: {len(body)}") + body


def chat(model: str, key: str, *, text: str = "hello", **members: Any) -> bytes:
    messages = [{"role": "user", "content": text}]
    return post(key, json.dumps({"model": model, "messages": messages, **members}).encode())


# The pieces that one connection sends. ``number``: the connection's number, counted from the start of all.


def silence(_number: int, _key: str) -> Send:
    """Sends nothing."""
    yield from ()


def endless_head(_number: int, key: str) -> Send:
    yield head(CHAT_PATH, key)[:-2]
    yield from itertools.repeat(FIELD)


def unfinished_head(_number: int, key: str) -> Send:
    """A head of 24 kB without its end."""
    yield head(CHAT_PATH, key)[:-2] + FIELD * 3


def dripped_head(_number: int, key: str) -> Send:
    yield head(CHAT_PATH, key)[:-2]
    yield from itertools.repeat(b"x-f: a\r\n")


def unfinished_body(_number: int, key: str) -> Send:
    """A body of 8 MB without its last byte."""
    yield head(CHAT_PATH, key, f"Content-Length: {8 * MB}")
    yield from itertools.repeat(b" " * (64 << 10), 127)


def small_unfinished_body(_number: int, key: str) -> Send:
    """A body of a megabyte without its last byte."""
    yield head(CHAT_PATH, key, f"Content-Length: {MB}")
    yield from itertools.repeat(b" " * (64 << 10), 15)


def dripped_body(_number: int, key: str) -> Send:
    yield head(CHAT_PATH, key, f"Content-Length: {MB}")
    yield from itertools.repeat(b" " * 2_000)


def tiny_chunks(_number: int, key: str) -> Send:
    yield head(CHAT_PATH, key, "Transfer-Encoding: chunked")
    yield from itertools.repeat(b"1\r\na\r\n" * 2_000)


def costly_body(number: int, key: str) -> Send:
    """A body that is slow to parse: a million lists."""
    lists = ",".join(["[]"] * MB)
    yield post(key, f'{{"model":"well","x":[{lists}],"messages":[{{"role":"user","content":"{number}"}}]}}'.encode())


def costly_turn(number: int, key: str) -> Send:
    """A turn whose parsed values stay in memory while a worker answers."""
    lists = ",".join(["[]"] * 10_000)
    body = f'{{"model":"stuck","x":[{lists}],"messages":[{{"role":"user","content":"{number}"}}]}}'
    yield post(key, body.encode(), f"/v1/sessions/s{number}/chat/completions")


def asking(model: str, **members: Any) -> Callable[[int, str], Send]:
    """One request."""

    def sends(number: int, key: str) -> Send:
        yield chat(model, key, text=f"hello {number}", **members)

    return sends


def asking_on(number: int, key: str) -> Send:
    yield from itertools.repeat(chat("well", key, text=f"hello {number}"))


def turn(number: int, key: str) -> Send:
    """A turn of 100 kB in a session of its own."""
    body = {"model": "well", "messages": [{"role": "user", "content": "word " * 20_000}]}
    yield post(key, json.dumps(body).encode(), f"/v1/sessions/s{number}/chat/completions")


def prompts(number: int, key: str) -> Send:
    """New prompts of 40 blocks each."""
    for count in itertools.count():
        yield chat("well", key, text=f"{number} {count} " + "word " * 8_000, user=f"u{number}-{count}")


def pipelined(_number: int, key: str) -> Send:
    yield from itertools.repeat(chat("well", key) * 100)


def viewer(_number: int, _key: str) -> Send:
    yield head("/events", "", method="GET")


def guess(number: int, _key: str) -> Send:
    yield head("/workers", f"guess-{number}", "Connection: close", method="GET")


@dataclass(frozen=True, slots=True)
class Kind:
    """``pause_s``: between two pieces. ``again_s``: between two connections.

    ``reads``: whether it reads its answers; otherwise it never reads from the socket.
    """

    sends: Callable[[int, str], Send]
    pause_s: float = 0.0
    again_s: float = AGAIN_S
    reads: bool = True
    is_for_admin_port: bool = False


KINDS = {
    "silence": Kind(silence),
    "endless_heads": Kind(endless_head),
    "unfinished_heads": Kind(unfinished_head),
    "dripped_heads": Kind(dripped_head, pause_s=0.5),
    "unfinished_bodies": Kind(unfinished_body),
    "small_unfinished_bodies": Kind(small_unfinished_body),
    "dripped_bodies": Kind(dripped_body, pause_s=0.5),
    "tiny_chunks": Kind(tiny_chunks),
    "costly_bodies": Kind(costly_body),
    "costly_turns": Kind(costly_turn),
    "turns": Kind(turn, pause_s=0.1),
    "prompts": Kind(prompts, pause_s=0.05),
    "quick_answers": Kind(asking_on, pause_s=0.1),
    "waiting_answers": Kind(asking("stuck", x="y" * 4_000)),
    "unfinished_answers": Kind(asking("held")),
    "unread_answers": Kind(asking("large"), reads=False),
    "unread_streams": Kind(asking("endless", stream=True), reads=False),
    "long_streams": Kind(asking("long", stream=True)),
    "evil_streams": Kind(asking("evil", stream=True)),
    "pipelined": Kind(pipelined, reads=False),
    "viewers": Kind(viewer, reads=False, is_for_admin_port=True),
    "admin_silence": Kind(silence, is_for_admin_port=True),
    "guesses": Kind(guess, again_s=0.1, is_for_admin_port=True),
}


class Hostile(asyncio.Protocol):
    """One connection. It sends as fast as the router reads, with the pauses of its kind."""

    def __init__(self, kind: Kind, sends: Send) -> None:
        self._kind = kind
        self._sends = sends
        self._is_paused = False
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._kind.reads:
            self._transport.pause_reading()
        self._go_on()

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._go_on()

    def _go_on(self) -> None:
        """Sends one piece and schedules the next."""
        if self._is_paused or self._transport.is_closing() or (piece := next(self._sends, None)) is None:
            return
        self._transport.write(piece)
        if not self._is_paused:
            asyncio.get_running_loop().call_later(self._kind.pause_s, self._go_on)

    def connection_lost(self, _: Exception | None) -> None:
        self.closed.set_result(None)


async def attack(kind: Kind, url: str, count: int, keys: tuple[str, ...]) -> None:
    """Runs until cancelled."""
    parts, numbers = urlsplit(url), itertools.count()

    async def go_on(place: int) -> None:
        await asyncio.sleep(place / BEGUN_PER_S)
        while True:
            number = next(numbers)
            own = socket.socket()
            own.setblocking(False)
            if not kind.reads:
                own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
            try:
                own.bind((f"127.1.{number >> 8 & 255}.{number & 255}", 0))
                await asyncio.get_running_loop().sock_connect(own, (parts.hostname, parts.port))
                sends = kind.sends(number, keys[place % len(keys)])
                _, client = await asyncio.get_running_loop().create_connection(lambda: Hostile(kind, sends), sock=own)  # noqa: B023
                await client.closed
            except OSError:
                own.close()
            await asyncio.sleep(kind.again_s)

    await asyncio.gather(*(go_on(place) for place in range(count)))


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _, granted = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (granted, granted))
    name, url, count, *keys = sys.argv[1:]
    asyncio.run(attack(KINDS[name], url, int(count), tuple(keys) or ("",)))


if __name__ == "__main__":
    main()
