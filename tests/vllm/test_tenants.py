"""Who shares cache entries on real workers, and who never does, by what the workers count themselves."""

from __future__ import annotations

import random
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from router.core.request.request import Tenant
from router.core.tenants.tenant import TenantRules, make_caller
from tests.vllm.lab import BLOCK_TOKENS, MODEL, VllmWorker
from tests.vllm.routed import routed

pytestmark = pytest.mark.vllm

TENANTS = ("alone", "stranger", "one", "other")
GROUPED = ("one", "other")
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/messages")


def write_config(directory: Path) -> Path:
    lines = ["[auth]", f'keys_file = "{directory / "keys.toml"}"', 'salt_secret = "a secret of the test"']
    config = directory / "warmroute.toml"
    config.write_text("\n".join(lines), "utf-8")
    keys = []
    for name in TENANTS:
        keys.append(f'[tenants.{name}]\nsharing_group = "{"g" if name in GROUPED else ""}"')
        keys.append(f'[[keys]]\nid = "{name}"\ntenant = "{name}"\nsha256 = "{sha256(name.encode()).hexdigest()}"')
    (directory / "keys.toml").write_text("\n".join(keys), "utf-8")
    return config


def some_text() -> str:
    """Never sent before: some 600 tokens or more."""
    return " ".join(random.choices("alpha beta gamma delta epsilon zeta eta theta iota kappa".split(), k=600))  # noqa: SIM905


async def cached_tokens(session: aiohttp.ClientSession, route: str, who: str, text: str, salt: str = "") -> int:
    """Of the prompt's tokens those that the worker had, as it says."""
    body: dict[str, Any] = {"model": MODEL, "max_tokens": 1, **({"cache_salt": salt} if salt else {})}
    body |= {"prompt": text} if route == "/v1/completions" else {"messages": [{"role": "user", "content": text}]}
    async with session.post(route, json=body, headers={"Authorization": f"Bearer {who}"}) as answer:
        said = await answer.json()
        assert answer.status == 200, said
    usage = said["usage"]
    if route == "/v1/messages":
        return int(usage.get("cache_read_input_tokens") or 0)
    return int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


@pytest.mark.parametrize("route", ROUTES)
async def test_a_tenant_and_a_group_share_their_prefixes_and_nobody_else_meets_them(
    workers: Sequence[VllmWorker], tmp_path: Path, route: str
) -> None:
    """On a single worker, so that nothing but the salt can keep them apart."""
    config = write_config(tmp_path)
    with routed(workers[:1], tmp_path / "router.log", config=config) as url:
        async with aiohttp.ClientSession(url) as session:
            text = some_text()
            assert await cached_tokens(session, route, "alone", text) == 0
            assert await cached_tokens(session, route, "alone", text) >= 10 * BLOCK_TOKENS
            assert await cached_tokens(session, route, "stranger", text) == 0
            assert await cached_tokens(session, route, "one", text) == 0
            assert await cached_tokens(session, route, "other", text) >= 10 * BLOCK_TOKENS
            assert await cached_tokens(session, route, "alone", text, salt="mine") == 0
            assert await cached_tokens(session, route, "alone", text, salt="mine") >= 10 * BLOCK_TOKENS
            assert await cached_tokens(session, route, "stranger", text, salt="mine") == 0


async def test_tenants_of_a_group_meet_on_one_worker_of_two(workers: Sequence[VllmWorker], tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with routed(workers, tmp_path / "router.log", config=config) as url:
        async with aiohttp.ClientSession(url) as session:
            for _ in range(4):
                text = some_text()
                assert await cached_tokens(session, ROUTES[0], "one", text) == 0
                assert await cached_tokens(session, ROUTES[0], "other", text) >= 10 * BLOCK_TOKENS


async def test_no_client_can_reach_another_tenants_entries_by_a_salt_of_its_own(
    workers: Sequence[VllmWorker], tmp_path: Path
) -> None:
    """Not even by the very salt that the worker was sent for them, if it ever came to be known."""
    config = write_config(tmp_path)
    with routed(workers[:1], tmp_path / "router.log", config=config) as url:
        async with aiohttp.ClientSession(url) as session:
            text = some_text()
            await cached_tokens(session, ROUTES[0], "alone", text)
            for salt in ("alone", "tenant:alone", _salt_of_alone()):
                assert await cached_tokens(session, ROUTES[0], "stranger", text, salt=salt) == 0
        async with aiohttp.ClientSession(workers[0].url) as direct:
            assert await cached_tokens(direct, ROUTES[0], "nobody", text) == 0
            assert await cached_tokens(direct, ROUTES[0], "nobody", text, salt=_salt_of_alone()) > 0


def _salt_of_alone() -> str:
    rules = TenantRules(tenant=Tenant("alone"))
    return make_caller(rules, b"a secret of the test").salt
