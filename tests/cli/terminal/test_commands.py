"""The commands, against a router that serves."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from router.app.serve import Running
from router.cli.main import cli
from router.cli.terminal.admin_client import admin_url
from router.config.serving import AdminConfig
from router.simulator import SimulatorSettings, start_fleet
from tests.e2e.routed import post, routed, until

SIM = SimulatorSettings(workers=2, base_port=0, time_scale=1000.0)
ASKED = {"model": "sim", "max_tokens": 2, "messages": [{"role": "user", "content": "hello"}]}
TOKEN = "a token of the tests"


async def run(router: Running | None, *words: str, **environment: str) -> Result:
    where = ("--admin-url", router.admin_url) if router else ()
    return await asyncio.to_thread(CliRunner().invoke, cli, [*words, *where], env=environment)


async def test_top_prints_once_where_nobody_looks_at_a_terminal() -> None:
    async with await start_fleet(SIM) as fleet, routed(*fleet.urls) as router:
        await until(lambda: len(router.fleet.catalog.eligible("sim").positions) == 2)
        await post(router, "/v1/chat/completions", ASKED, "X-Request-Id: r-77")
        for words in (("top",), ("top", "--once")):
            result = await run(router, *words)
            assert result.exit_code == 0
            assert "2 of 2 workers up" in result.output
            assert "r-77" in result.output


async def test_workers_are_listed_for_people_and_for_programs() -> None:
    async with await start_fleet(SIM) as fleet, routed(*fleet.urls) as router:
        told = (await run(router, "workers")).output
        assert all(url in told for url in fleet.urls)
        listed = json.loads((await run(router, "workers", "--json")).output)
        assert {worker["url"] for worker in listed} == set(fleet.urls)


async def test_explain_tells_of_a_request_by_its_id() -> None:
    async with await start_fleet(SIM) as fleet, routed(*fleet.urls) as router:
        await post(router, "/v1/chat/completions", ASKED, "X-Request-Id: r-77")
        told = await run(router, "explain", "r-77")
        assert told.exit_code == 0
        assert told.output.startswith("r-77: /v1/chat/completions, model sim\n  ended      ok, status 200")
        unknown = await run(router, "explain", "r-78")
        assert unknown.exit_code == 1
        assert "r-78 is not among the last" in unknown.output


async def test_the_token_is_that_of_the_routers_configuration(tmp_path: Path) -> None:
    async with routed("http://127.0.0.1:1", admin__token=TOKEN) as router:
        refused = await run(router, "workers")
        assert refused.exit_code == 1
        assert "WARMROUTE_ADMIN__TOKEN" in refused.output
        assert (await run(router, "workers", WARMROUTE_ADMIN__TOKEN=TOKEN)).exit_code == 0
        file = tmp_path / "warmroute.toml"
        port = router.admin_url.rpartition(":")[2]
        file.write_text(f"[admin]\nport = {port}\ntoken = '{TOKEN}'\n", "utf-8")
        assert (await run(None, "workers", "--config", str(file))).exit_code == 0


async def test_too_many_viewers_are_told_so() -> None:
    async with routed("http://127.0.0.1:1", admin__max_viewers=0) as router:
        refused = await run(router, "top")
        assert refused.exit_code == 1
        assert "admin.max_viewers" in refused.output


@pytest.mark.parametrize("words", [("top",), ("top", "--once"), ("workers",), ("explain", "r-1")])
async def test_a_router_that_is_away_is_said_in_a_line(words: tuple[str, ...]) -> None:
    result = await run(None, *words, "--admin-url", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert "http://127.0.0.1:1 is no router's admin port" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("words", [("top", "--once"), ("workers",), ("explain", "r-1")])
@pytest.mark.parametrize("body", [b"{}", b"[]", b"<html>", b"data: {}\n\n", b"data: 7\n\n", b"data: " + b"[" * 200_000])
async def test_what_is_no_routers_answer_is_said_in_a_line(words: tuple[str, ...], body: bytes) -> None:
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(other, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        result = await run(None, *words, "--admin-url", f"http://127.0.0.1:{port}")
        assert isinstance(result.exception, SystemExit)
        assert (result.exit_code, result.output.count("\n")) == (1, 1)


async def test_another_port_than_the_admin_ports_is_told_so() -> None:
    async with routed("http://127.0.0.1:1") as router:
        result = await run(None, "workers", "--admin-url", router.url)
        assert result.exit_code == 1
        assert "answers 404" in result.output


@pytest.mark.parametrize(
    ("host", "url"), [("0.0.0.0", "http://127.0.0.1:1"), ("::", "http://[::1]:1"), ("10.0.0.1", "http://10.0.0.1:1")]
)
def test_a_router_that_listens_everywhere_is_asked_on_loopback(host: str, url: str) -> None:
    assert admin_url(AdminConfig(host=host, port=1)) == url


async def _read_until(terminal: int, mark: bytes) -> None:
    seen = b""
    while mark not in seen:
        seen += await asyncio.to_thread(os.read, terminal, 1 << 16)


async def test_in_a_terminal_it_goes_on_until_it_is_interrupted_and_outlives_the_router() -> None:
    with ExitStack() as opened:
        master, terminal = pty.openpty()
        for end in (master, terminal):
            opened.callback(os.close, end)
        async with await start_fleet(SIM) as fleet, routed(*fleet.urls) as router:
            words = ("-m", "router", "top", "--admin-url", router.admin_url)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *words,
                stdout=terminal,
                env={**os.environ, "TERM": "xterm", "COLUMNS": "200", "LINES": "50"},
            )
            await _read_until(master, b"2 of 2 workers up")
        await _read_until(master, b"Trying again each second")
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
