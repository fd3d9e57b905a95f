"""What lies between the router and its workers fails: resets, refusals, packets that are dropped, names that do not resolve."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from router.simulator import Fault, SimulatorSettings, start_fleet
from tests.e2e.faults import CHAT_PATH, all_up, decisions_of, faulted, listen
from tests.e2e.routed import post, until
from tests.e2e.streams import answering
from tests.upstream.scripted import scripted

SIM = SimulatorSettings(workers=2, base_port=0, block_tokens=32, time_scale=10_000.0)
CHAT: dict[str, Any] = {"model": "sim", "max_tokens": 20, "messages": [{"role": "user", "content": "hello"}]}
UNLOOKED: dict[str, Any] = {
    "policy__name": "round_robin",
    "probes__interval_s": 60.0,
    "load__poll_interval_s": 60.0,
    "probes__ejection_s": 0.001,
    "probes__max_ejection_s": 0.001,
    "probes__ill_interval_s": 0.005,
}
"""No probe finds the fault before the requests do, and a worker that was ejected is soon asked again."""


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.CUT])
async def test_connections_that_are_reset_before_the_first_byte_are_never_seen(fault: Fault) -> None:
    async with await start_fleet(SIM) as fleet, faulted(*fleet.urls, **UNLOOKED) as router:
        fleet.set_fault(0, fault)
        for _ in range(10):
            assert (await post(router, CHAT_PATH, CHAT)).status == 200
            assert (await listen(router, CHAT_PATH, CHAT)).is_done
        assert {tuple(decision["retries"]) for decision in await decisions_of(router)} == {(), ("died",)}


async def test_a_worker_that_refuses_connections_is_never_seen() -> None:
    settings = {**UNLOOKED, "probes__ejection_s": 0.2, "probes__max_ejection_s": 0.2}
    async with await start_fleet(SIM) as fleet, faulted(*fleet.urls, **settings) as router:
        await fleet.kill(0)
        for _ in range(10):
            assert (await post(router, CHAT_PATH, CHAT)).status == 200
        retries = [decision["retries"] for decision in await decisions_of(router) if decision["retries"]]
        assert retries == [["connect"]], "it is ejected by the first of them, and its probes fail"


async def test_a_worker_whose_packets_are_dropped_is_given_up_in_time_and_never_seen() -> None:
    settings = {**UNLOOKED, "timeouts__connect_s": 0.2, "probes__timeout_s": 0.3, "probes__ill_interval_s": 60.0}
    async with await start_fleet(SIM) as fleet, faulted(*fleet.urls, **settings) as router:
        await fleet.kill(0)
        with black_hole(fleet.urls[0]):
            for _ in range(6):
                assert (await post(router, CHAT_PATH, CHAT)).status == 200
        retries = [decision["retries"] for decision in await decisions_of(router) if decision["retries"]]
        assert retries == [["connect"]]


@contextmanager
def black_hole(url: str) -> Iterator[None]:
    """A port whose queue of connections is full, so that the kernel drops whatever else would connect."""
    address = ("127.0.0.1", urlsplit(url).port)
    sockets = [socket.socket()]
    try:
        sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sockets[0].bind(address)
        sockets[0].listen(0)
        for _ in range(4):
            sockets.append(socket.socket())
            sockets[-1].setblocking(False)
            sockets[-1].connect_ex(address)
        yield
    finally:
        for each in sockets:
            each.close()


class Resolver:
    """In place of the module that the DNS source takes its loop from."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self.hosts = hosts
        self.is_down = False
        self.failures = 0

    async def getaddrinfo(self, _host: str, port: int, **_: Any) -> list[Any]:
        if self.is_down:
            self.failures += 1
            raise socket.gaierror(socket.EAI_AGAIN, "the name server is gone")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in self.hosts]


async def test_workers_whose_name_does_not_resolve_any_more_are_served_from_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolver = Resolver(["127.0.0.1"])
    asks_it = SimpleNamespace(**{**vars(asyncio), "get_running_loop": lambda: resolver})
    monkeypatch.setattr("router.upstream.discovery.dns.asyncio", asks_it, raising=True)
    async with scripted(answering()) as worker:
        port = urlsplit(worker.url).port
        async with faulted(fleet__workers_dns=f"vllm.example:{port}", fleet__discovery_interval_s=0.01) as router:
            resolver.is_down = True
            await until(lambda: resolver.failures > 5)
            assert (await post(router, CHAT_PATH, {**CHAT, "model": "m"})).status == 200
            assert len(router.fleet) == 1
            resolver.is_down, resolver.hosts = False, []
            await until(lambda: len(router.fleet) == 0)


async def test_many_requests_at_once_stand_a_worker_that_resets_them_all() -> None:
    async with await start_fleet(SIM) as fleet, faulted(*fleet.urls, **UNLOOKED) as router:
        await until(lambda: all_up(router, 2))
        fleet.set_fault(0, Fault.RESET)
        found = await asyncio.gather(*[post(router, CHAT_PATH, CHAT) for _ in range(64)])
        assert {answer.status for answer in found} == {200}
