"""Strangers who connect as often as they can leave the router the descriptors that it needs itself."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from router.app.ports import ADMIN_CONNECTIONS, OWN_DESCRIPTORS, connections_within
from tests.server.keys import ACME, SALT_SECRET, TWO_TENANTS, entry

DESCRIPTORS = 120


@pytest.mark.parametrize("granted", [8, 64, 100, 1024, 4096, 1 << 20])
def test_both_ports_together_leave_descriptors_for_the_rest(granted: int) -> None:
    clients, admins = connections_within(granted, 12_000, 16)
    assert clients >= 1
    assert admins >= 1
    assert granted - clients - admins >= min(OWN_DESCRIPTORS, granted // 4)


def test_where_there_are_enough_everybody_may_connect_that_settings_let() -> None:
    for granted in (1 << 20, resource.RLIM_INFINITY):
        assert connections_within(granted, 12_000, 16) == (12_000, ADMIN_CONNECTIONS + 16)
        assert connections_within(granted, 5, 16) == (5, 5)


async def logged(process: asyncio.subprocess.Process, message: str) -> dict[str, Any]:
    assert process.stderr is not None
    async for line in process.stderr:
        assert line.startswith(b"{"), line + await process.stderr.read()
        told: dict[str, Any] = json.loads(line)
        assert told["message"] != "keys not reloaded", told
        if told["message"] == message:
            return told
    raise AssertionError("the router ended")


async def test_a_key_can_be_revoked_while_strangers_hold_all_connections(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(TWO_TENANTS, "utf-8")
    serve = f"ulimit -n {DESCRIPTORS}; exec '{sys.executable}' -m router serve --port 0 --admin-port 0 --worker http://127.0.0.1:1"
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", serve),
        env={
            "PATH": "/usr/bin:/bin",
            "WARMROUTE_SESSIONS__STORE": "memory://",
            "WARMROUTE_AUTH__KEYS_FILE": str(keys),
            "WARMROUTE_AUTH__SALT_SECRET": SALT_SECRET,
            "WARMROUTE_LOG__FORMAT": "json",
        },
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(40):
            url = urlsplit((await logged(process, "serving"))["url"])
            with ExitStack() as strangers:
                for _ in range(2 * DESCRIPTORS):
                    _, writer = await asyncio.open_connection(url.hostname, url.port)
                    strangers.callback(writer.close)
                fresh = tmp_path / "fresh.toml"
                fresh.write_text("[tenants.acme]\n" + entry("acme-1", "acme", ACME), "utf-8")
                fresh.rename(keys)
                process.send_signal(signal.SIGHUP)
                assert (await logged(process, "keys reloaded"))["keys"] == 1
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
