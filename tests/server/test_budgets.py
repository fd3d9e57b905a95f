"""What clients may hold together: connections of one key, bodies of all, and the time of whoever waits for them to read."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from router.core.errors import ConnectionsLimited
from router.server.key_connections import KeyConnections
from router.server.slow_client import SlowClientRule
from tests.e2e.routed import connected, get_admin, post, routed, until
from tests.e2e.streams import CHAT, answering, hang
from tests.server.keys import ACME, BETA, bearer, keyed
from tests.upstream.scripted import Asked, Peer, scripted

PATH = "/v1/chat/completions"
MODELS = b"GET /v1/models HTTP/1.1\r\nHost: r\r\nAuthorization: Bearer %b\r\n\r\n"


async def test_a_key_has_so_many_connections_and_the_next_is_refused_and_closed(tmp_path: Path) -> None:
    settings = {**keyed(tmp_path / "keys.toml"), "limits__max_key_connections": 2}
    async with scripted(answering()) as worker, routed(worker.url, **settings) as router:
        async with connected(router) as first, connected(router) as second, connected(router) as third:
            for client in (first, second):
                await client.send(MODELS % ACME.encode())
                assert (await client.answer()).status == 200
            await third.send(MODELS % ACME.encode())
            answer = await third.answer()
            assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
            assert answer.headers["retry-after"] == "1"
            assert await third.is_closed()
            await first.send(MODELS % ACME.encode())
            assert (await first.answer()).status == 200, "connections that count already go on"
            async with connected(router) as other:
                await other.send(MODELS % BETA.encode())
                assert (await other.answer()).status == 200, "another key's are others"
                second.leave()
                await until(lambda: router.open_connections() == 2)
                await other.send(MODELS % ACME.encode())
                assert (await other.answer()).status == 200, "it counts for the key that it shows now"
        await until(lambda: not router.open_connections())
        assert not router.data.key_connections


async def test_an_answer_whose_client_left_gives_its_connection_back(tmp_path: Path) -> None:
    settings = {**keyed(tmp_path / "keys.toml"), "limits__max_key_connections": 1}
    async with scripted(hang) as worker, routed(worker.url, **settings) as router:
        async with connected(router) as client:
            await client.post(PATH, CHAT, bearer(ACME))
            await until(lambda: any(router.fleet.figures.in_flight))
            assert len(router.data.key_connections) == 1
        await until(lambda: not router.data.key_connections)


class Shown:
    key = b""


def test_a_connection_that_was_refused_counts_for_no_key() -> None:
    connections, one, other = KeyConnections(1), Shown(), Shown()
    connections.claim(one, b"a")
    connections.claim(other, b"b")
    for _ in range(3):
        with pytest.raises(ConnectionsLimited, match="the key has 1 connections"):
            connections.claim(other, b"a")
    assert other.key == b""
    connections.release(one)
    connections.claim(other, b"a")
    connections.release(other)
    connections.release(other)
    assert not connections


async def test_bodies_that_are_too_much_together_are_refused_until_some_have_ended() -> None:
    gate = asyncio.Event()

    async def wait(asked: Asked, peer: Peer) -> None:
        await gate.wait()
        await answering()(asked, peer)

    body = {**CHAT, "messages": [{"role": "user", "content": "x" * 40_000}]}
    async with scripted(wait) as worker, routed(worker.url, limits__max_held_bytes=60_000) as router:
        first = asyncio.create_task(post(router, PATH, body))
        await until(lambda: any(router.fleet.figures.in_flight))
        answer = await post(router, PATH, body)
        assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "overloaded", "1")
        assert (await get_admin(router, "/metrics")).body.count(b'warmroute_held_bytes{kind="body"} 40') == 1
        gate.set()
        assert (await first).status == 200
        assert (await post(router, PATH, body)).status == 200
        assert router.data.memory.bytes == 0


def test_a_client_must_read_so_much_in_a_while_or_all() -> None:
    rule = SlowClientRule(within_s=30.0, min_bytes=15_000.0)
    assert rule.is_too_slow(0)
    assert rule.is_too_slow(14_999)
    assert not rule.is_too_slow(15_000)


BOUNDED = {
    "client_connections": "max_client_connections",
    "admin_connections": "max_admin_connections",
    "status_viewers": "max_status_viewers",
    "admin_wrong_tokens": "max_admin_wrong_tokens",
    "peak_key_connections": "max_key_connections",
    "keys_loaded": "max_keys",
    "remembered_sessions": "max_remembered_sessions",
    "remembered_decisions": "max_remembered_decisions",
    "head_bytes": "max_head_bytes",
    "parsing_processes": "max_parsing_processes",
    "waiting_traces": "max_waiting_traces",
    "queue_depth": "queue_max",
    "queue_bytes": "queue_max_bytes",
}


async def test_every_bound_says_how_full_it_is(tmp_path: Path) -> None:
    settings = {**keyed(tmp_path / "keys.toml"), "admin__decisions": 1}
    async with scripted() as worker, routed(worker.url, **settings) as router, connected(router) as client:
        for _ in range(2):
            await client.send(MODELS % ACME.encode())
            assert (await client.answer()).status == 200
        text = (await get_admin(router, "/metrics")).body.decode()
    figures = dict(re.findall(r"(?m)^warmroute_(\w+) (\S+)$", text))
    for figure, most in BOUNDED.items():
        assert float(figures[figure]) <= float(figures[most]) or figures[most] == "0.0", figure
    assert float(figures["peak_key_connections"]) == 1
    assert float(figures["keys_loaded"]) == 4
    assert float(figures["audit_waiting_lines"]) <= 10
