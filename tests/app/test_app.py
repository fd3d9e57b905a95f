"""What is composed: it serves, it ends, and it leaves nothing behind."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from random import Random
from typing import Any

import pytest

from router.app.serve import running
from router.config.loading import load_config
from router.config.reference import settings
from router.config.schema import Config, ConfigError
from router.policies import POLICIES, make_policy
from tests.e2e.routed import get, get_admin, until
from tests.upstream.scripted import scripted, unused_url


def config(*workers: str, **settings: Any) -> Config:
    named = {key.replace("__", "."): value for key, value in settings.items()}
    flags = {"server.port": 0, "admin.port": 0, "sessions.store": "memory://", "fleet.workers": list(workers), **named}
    return load_config(None, {}, flags)


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Behind the block there are the tasks that were there before it, and no more."""
    before = asyncio.all_tasks()
    yield
    await until(lambda: asyncio.all_tasks() <= before, 2.0)


async def test_a_router_leaves_no_task_behind() -> None:
    async with nothing_left(), scripted() as worker:
        async with running(config(worker.url, await unused_url(), probes__timeout_s=1)) as router:
            assert router.fleet.catalog.is_ready()
            assert (await get(router, "/health")).status == 200
        # What is left here is the worker's own.
        assert not [
            task for task in asyncio.all_tasks() if task.get_name().startswith(("health_check", "fleet_sync", "sweep"))
        ]


async def test_a_router_that_fails_inside_its_block_leaves_no_task_behind() -> None:
    async with nothing_left():
        with pytest.raises(RuntimeError):
            async with running(config()):
                raise RuntimeError


async def test_port_0_takes_a_real_one_for_each_port() -> None:
    async with running(config()) as router:
        assert router.url.rpartition(":")[2] != "0"
        assert router.url != router.admin_url
        assert (await get(router, "/health")).status == 200
        assert (await get_admin(router, "/metrics")).status == 200


async def test_ports_are_free_again_behind_the_block() -> None:
    async with running(config()) as router:
        port = int(router.url.rpartition(":")[2])
    async with running(config(server__port=port)) as router:
        assert router.url.endswith(f":{port}")


@pytest.mark.parametrize("key", ["server__port", "admin__port"])
async def test_a_port_that_is_taken_ends_the_start_and_leaves_no_task_behind(key: str) -> None:
    async with nothing_left():
        setting = key.replace("__", ".")
        with taken_port() as port, pytest.raises(ConfigError, match=f"^{setting}={port}: .* in use$"):
            async with running(config(**{key: port})):
                pytest.fail("nobody can serve there")


async def test_a_worker_that_does_not_answer_does_not_keep_the_router_from_serving() -> None:
    async with running(config(await unused_url(), probes__timeout_s=0.05)) as router:
        assert (await get(router, "/health")).status == 200
        assert (await get(router, "/ready")).status == 503


async def test_two_routers_in_one_process_share_nothing() -> None:
    async with scripted() as worker, running(config(worker.url)) as one, running(config()) as two:
        assert (await get(one, "/ready")).status == 200
        assert (await get(two, "/ready")).status == 503
        assert b'worker="w-' in (await get_admin(one, "/metrics")).body
        assert b'worker="w-' not in (await get_admin(two, "/metrics")).body


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_can_be_configured(name: str) -> None:
    policy = load_config(None, {}, {"policy.name": name}).policy
    assert make_policy(name, policy, Random(1)).name == name


def test_configuration_knows_just_the_policies_that_there_are() -> None:
    (bound,) = (setting.bound for setting in settings() if setting.key == "policy.name")
    assert set(bound.split(", ")) == set(POLICIES)
