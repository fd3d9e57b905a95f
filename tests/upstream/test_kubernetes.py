"""Workers that are a Service's pods: found, watched, and left alone from the moment that they terminate."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from router.config.workers import FleetConfig
from router.upstream.discovery import Unreadable
from router.upstream.discovery.endpoint_slices import BadSlices, EndpointSlices, Gone, read_list
from router.upstream.discovery.kubernetes import KubernetesSource
from tests.e2e.routed import until
from tests.upstream.kubernetes_api import KubernetesApi, endpoint, kubernetes_api

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"


def event(kind: str, name: str = "s", **members: Any) -> bytes:
    metadata = {"name": name, "resourceVersion": "7"}
    return json.dumps({"type": kind, "object": {"metadata": metadata, **members}}).encode()


def slices(port: str = "", *endpoints: dict[str, Any], ports: Any = None, **members: Any) -> EndpointSlices:
    found = EndpointSlices("http", port)
    ports = [{"name": "http", "port": 8000}] if ports is None else ports
    found.apply(event("ADDED", endpoints=list(endpoints), ports=ports, **members))
    return found


def hosts(found: EndpointSlices) -> list[str]:
    return [address.host for address in found.addresses()]


@pytest.mark.parametrize(
    ("conditions", "is_routed_to"),
    [
        ({"ready": True}, True),
        ({}, True),
        ({"ready": False}, False),
        ({"ready": True, "terminating": True}, False),
        ({"ready": False, "serving": True, "terminating": True}, False),
        ({"ready": True, "terminating": False}, True),
    ],
)
def test_a_pod_is_routed_to_while_it_is_ready_and_does_not_terminate(
    conditions: dict[str, bool], is_routed_to: bool
) -> None:
    assert bool(hosts(slices("", {"addresses": [A], "conditions": conditions}))) == is_routed_to


def test_slices_of_two_families_are_one_pod_each() -> None:
    found = slices("", endpoint(A))
    found.apply(event("ADDED", "six", addressType="IPv6", endpoints=[endpoint("fd00::1")], ports=[{"port": 8000}]))
    assert hosts(found) == [A]


def test_pods_that_share_a_nodes_address_are_a_worker_each() -> None:
    found = slices("", endpoint(A), ports=[{"name": "http", "port": 8000}])
    found.apply(event("ADDED", "second", endpoints=[endpoint(A)], ports=[{"name": "http", "port": 8001}]))
    assert [(address.host, address.port) for address in found.addresses()] == [(A, 8000), (A, 8001)]


def test_a_pod_that_two_slices_name_is_one_worker() -> None:
    found = slices("", endpoint(A))
    found.apply(event("ADDED", "second", endpoints=[endpoint(A), endpoint(B)], ports=[{"port": 8000}]))
    assert hosts(found) == [A, B]


def test_an_endpoint_without_an_address_is_none() -> None:
    assert hosts(slices("", {"addresses": []}, endpoint(A))) == [A]


@pytest.mark.parametrize(
    ("port", "ports", "expected"),
    [
        ("", [{"name": "http", "port": 8000}, {"name": "metrics", "port": 9000}], 8000),
        ("", [{"name": "api", "port": 8123}], 8123),
        ("", [{"port": 8123}], 8123),
        ("metrics", [{"name": "http", "port": 8000}, {"name": "metrics", "port": 9000}], 9000),
        ("9000", [{"name": "http", "port": 8000}, {"name": "metrics", "port": 9000}], 9000),
    ],
)
def test_the_port_is_the_named_one_or_the_only_one(port: str, ports: Any, expected: int) -> None:
    assert slices(port, endpoint(A), ports=ports).addresses()[0].port == expected


@pytest.mark.parametrize(
    ("port", "ports"),
    [("grpc", [{"name": "http", "port": 1}]), ("", []), ("", [{"name": "a", "port": 1}, {"name": "b", "port": 2}])],
)
def test_a_port_that_is_not_there_is_said(port: str, ports: Any) -> None:
    with pytest.raises(BadSlices, match="has no port"):
        slices(port, endpoint(A), ports=ports).addresses()


def test_a_pod_where_no_worker_may_be_is_refused() -> None:
    with pytest.raises(BadSlices, match="where no worker may be"):
        slices("", endpoint("169.254.169.254")).addresses()


def test_events_follow_each_other() -> None:
    found = slices("", endpoint(A))
    assert found.apply(event("MODIFIED", endpoints=[endpoint(B)], ports=[{"port": 8000}]))
    assert hosts(found) == [B]
    assert not found.apply(event("BOOKMARK", ""))
    assert found.version == "7"
    assert found.apply(event("DELETED"))
    assert hosts(found) == []


def test_what_the_api_says_wrongly_is_told() -> None:
    found = slices()
    with pytest.raises(Gone):
        found.apply(b'{"type":"ERROR","object":{"code":410}}')
    for line in (b"{", b'{"type":"ADDED","object":[]}', b'{"type":"ERROR","object":{"code":500,"message":"no"}}'):
        with pytest.raises(BadSlices):
            found.apply(line)
    with pytest.raises(BadSlices):
        read_list(b"<html>")


# The watch


class Followed:
    def __init__(self, source: KubernetesSource) -> None:
        self.source = source
        self.changes = 0

    async def hosts(self) -> list[str]:
        return [address.host for address in await self.source.read()]

    async def has(self, *hosts: str) -> None:
        async with asyncio.timeout(10):
            while True:
                try:
                    if await self.hosts() == list(hosts):
                        return
                except Unreadable:
                    pass
                await asyncio.sleep(0.005)


@asynccontextmanager
async def following(api: KubernetesApi, folder: Path, **more: Any) -> AsyncIterator[Followed]:
    fleet = FleetConfig(workers_kubernetes="models/vllm", kubeconfig=api.kubeconfig(folder))
    followed: Followed

    def on_change() -> None:
        followed.changes += 1

    source = KubernetesSource(fleet, on_change, time.monotonic, random.Random(1), **{"timeout_s": 5.0, **more})
    followed = Followed(source)
    running = asyncio.create_task(source.run())
    try:
        yield followed
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_pods_are_listed_in_pages_and_then_watched(tmp_path: Path) -> None:
    async with kubernetes_api(page=1) as api:
        for number, host in enumerate((A, B, C)):
            api.put(f"s{number}", [endpoint(host)])
        api.put("other", [endpoint("10.9.9.9")], service="redis")
        async with following(api, tmp_path) as followed:
            await followed.has(A, B, C)
            assert api.lists == 3
            await until(lambda: api.watches == 1)
            api.put("s1", [endpoint(B, terminating=True)])
            await followed.has(A, C)
            assert api.lists == 3, "without another list"
            assert followed.changes == 2


async def test_a_watch_that_breaks_goes_on_where_it_was(tmp_path: Path) -> None:
    async with kubernetes_api() as api:
        api.put("s", [endpoint(A)])
        async with following(api, tmp_path) as followed:
            await followed.has(A)
            await until(lambda: api.watches == 1)
            api.fails = 1
            await api.break_watches()
            api.put("s", [endpoint(A), endpoint(B)])
            await followed.has(A, B)
            assert api.lists == 1
            assert followed.source.restarts >= 1


async def test_while_the_api_is_away_what_is_known_stays_and_is_said_to_be_old(tmp_path: Path) -> None:
    async with kubernetes_api() as api:
        api.put("s", [endpoint(A)])
        async with following(api, tmp_path) as followed:
            await followed.has(A)
            await until(lambda: api.watches == 1)
            api.fails = 1000
            await api.break_watches()
            await until(lambda: followed.source.restarts)
            with pytest.raises(Unreadable, match=r"models/vllm: "):
                await followed.source.read()
            api.fails = 0
            api.put("s", [endpoint(B)])
            await followed.has(B)


async def test_a_version_that_is_forgotten_means_another_list(tmp_path: Path) -> None:
    async with kubernetes_api() as api:
        api.put("s", [endpoint(A)])
        async with following(api, tmp_path) as followed:
            await followed.has(A)
            await until(lambda: api.watches == 1)
            api.fails = 1
            await api.break_watches()
            api.put("s", [endpoint(C)])
            api.forget_history()
            await followed.has(C)
            assert api.lists == 2


async def test_all_is_listed_anew_from_time_to_time(tmp_path: Path) -> None:
    async with kubernetes_api() as api:
        api.put("s", [endpoint(A)])
        async with following(api, tmp_path, watch_s=1.0, resync_s=1.0) as followed:
            await followed.has(A)
            await until(lambda: api.lists >= 2)


def move(folder: Path, old: str, new: str) -> None:
    (folder / old).rename(folder / new)


async def test_a_router_that_is_told_nothing_of_the_api_says_so_until_it_is(tmp_path: Path) -> None:
    async with kubernetes_api() as api:
        api.put("s", [endpoint(A)])
        async with following(api, tmp_path, timeout_s=0.3) as followed:
            move(tmp_path, "kubeconfig", "hidden")
            await until(lambda: followed.source.restarts)
            with pytest.raises(Unreadable, match="kube-config"):
                await followed.source.read()
            move(tmp_path, "hidden", "kubeconfig")
            await followed.has(A)


async def test_whoever_may_not_list_is_told_so(tmp_path: Path) -> None:
    async with kubernetes_api() as api:
        api.token = "another"
        async with following(api, tmp_path, timeout_s=0.3) as followed:
            await until(lambda: followed.source.restarts)
            with pytest.raises(Unreadable, match="401"):
                await followed.source.read()


async def test_a_service_that_names_what_is_no_worker_is_said_to_be_unreadable_until_it_does_not(
    tmp_path: Path,
) -> None:
    async with kubernetes_api() as api:
        api.put("s", [endpoint(A)])
        async with following(api, tmp_path) as followed:
            await followed.has(A)
            await until(lambda: api.watches == 1)
            api.put("s", [endpoint("169.254.169.254")])
            await until(lambda: followed.source.restarts >= 2)
            with pytest.raises(Unreadable, match="where no worker may be"):
                await followed.source.read()
            api.put("s", [endpoint(B)])
            await followed.has(B)


async def test_an_api_that_ends_watches_at_once_is_not_asked_in_a_loop(tmp_path: Path) -> None:
    async with kubernetes_api() as api:
        api.put("s", [endpoint(A)])
        api.ends_watches = True
        async with following(api, tmp_path) as followed:
            await followed.has(A)
            await until(lambda: api.watches >= 3)
            assert api.watched_at[2] - api.watched_at[0] > 0.35


async def test_a_service_without_pods_is_a_fleet_of_none(tmp_path: Path) -> None:
    async with kubernetes_api() as api, following(api, tmp_path) as followed:
        assert await followed.hosts() == []
