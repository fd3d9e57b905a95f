"""An admin port that is none, or is somebody else's: a line of error, in bounded time and memory, and never a command to the
terminal."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any, get_type_hints

import pytest
from click.testing import CliRunner, Result

from router.cli.main import cli
from router.cli.terminal import admin_client
from router.cli.terminal.answers import Decision, Snapshot, Worker
from tests.cli.terminal.shown import a_decision, a_snapshot, a_worker, an_attempt

Send = Callable[[asyncio.StreamWriter], Awaitable[None]]

COMMANDS = {"/events": ("top", "--once"), "/workers": ("workers",), "/decisions": ("explain", "r-1")}
ODD: tuple[object, ...] = (None, "x", {}, 10**400, [[1]])
COMMAND_OF_A_TERMINAL = "\x1b]0;owned\x07\x9b2J\x1b[31m\r\x08"


@asynccontextmanager
async def answering_with(send: Send) -> AsyncIterator[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await send(writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def whole(body: bytes, *lines: str) -> Send:
    async def send(writer: asyncio.StreamWriter) -> None:
        head = "\r\n".join(["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *lines, "", ""])
        writer.write(head.encode() + body)

    return send


async def run(url: str, *words: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, cli, [*words, "--admin-url", url])


def body_of(path: str, worker: object = None, decision: object = None, **members: object) -> bytes:
    workers = [a_worker("w-1") if worker is None else worker]
    decisions = [a_decision() if decision is None else decision]
    if path == "/events":
        shown = a_snapshot(**{"workers": workers, "decisions": decisions, **members})
        return b"data: %b\n\n" % json.dumps(shown).encode()
    return json.dumps({"workers": workers} if path == "/workers" else {"decisions": decisions}).encode()


def odd_bodies() -> Iterator[tuple[str, bytes]]:
    """Each member of each answer in turn is odd, or absent."""
    for odd in ODD:
        for name in get_type_hints(Worker):
            yield "/workers", body_of("/workers", worker={**a_worker("w-1"), name: odd})
        for name in get_type_hints(Decision):
            yield "/decisions", body_of("/decisions", decision={**a_decision(), name: odd})
        for name in get_type_hints(Snapshot):
            yield "/events", body_of("/events", **{name: odd})
    for kind, made, path in ((Worker, a_worker("w-1"), "/workers"), (Decision, a_decision(), "/decisions")):
        for name in get_type_hints(kind):
            left = {key: value for key, value in made.items() if key != name}
            yield path, body_of(path, **{path.strip("/").rstrip("s"): left})


def test_whatever_member_is_odd_or_absent_there_is_no_traceback() -> None:
    async def main() -> None:
        for path, body in odd_bodies():
            async with answering_with(whole(body)) as url:
                result = await run(url, *COMMANDS[path])
            assert result.exception is None or isinstance(result.exception, SystemExit), (body, result.exception)
            assert result.exit_code in (0, 1)

    asyncio.run(main())


@pytest.mark.parametrize("path", COMMANDS)
async def test_no_text_of_an_answer_commands_the_terminal(path: str) -> None:
    hostile = COMMAND_OF_A_TERMINAL

    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poisoned(each) for key, each in value.items()}
        if isinstance(value, list):
            return [poisoned(each) for each in value]
        return value + hostile if isinstance(value, str) else value

    stop = {"cause": "died", "outcome": "exact", "gap_s": 0.1}
    decision = poisoned(
        a_decision(status=0, tried=[an_attempt("w-1", "died", broke=True), an_attempt("w-2")], resumptions=[stop])
    )
    body = body_of(path, poisoned(a_worker("w-1")), {**decision, "request_id": "r-1"}, version=hostile, policy=hostile)
    async with answering_with(whole(body)) as url:
        for words in (COMMANDS[path], (*COMMANDS[path], "--json") if path == "/workers" else COMMANDS[path]):
            result = await run(url, *words)
            assert result.exit_code == 0
            assert not [one for one in result.output if not one.isprintable() and one != "\n"]


async def test_no_refusal_commands_the_terminal() -> None:
    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 503 X\r\nContent-Length: 60\r\n\r\n" + COMMAND_OF_A_TERMINAL.encode().ljust(60))

    for path, words in COMMANDS.items():
        async with answering_with(send) as url:
            result = await run(url, *words)
            assert (result.exit_code, result.output.count("\n")) == (1, 1), path
            assert result.output.rstrip("\n").isprintable()


async def endless_body(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b" " * 65536)
        await writer.drain()


async def endless_events(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b": nothing\n" * 1000)
        await writer.drain()


async def dripping_head(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


async def dripping_body(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("send", [endless_body, endless_events, dripping_head, dripping_body])
@pytest.mark.parametrize("path", COMMANDS)
async def test_an_answer_that_never_ends_is_given_up(path: str, send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, bound in (("SILENT_S", 0.2), ("ANSWER_S", 0.2), ("MAX_ANSWER_BYTES", 1 << 20)):
        monkeypatch.setattr(admin_client, name, bound)
    async with asyncio.timeout(20), answering_with(send) as url:
        result = await run(url, *COMMANDS[path])
        assert (result.exit_code, result.output.count("\n")) == (1, 1), result.exception
        assert "is no router's admin port" in result.output


async def test_an_answer_that_would_be_unpacked_is_not() -> None:
    async with answering_with(whole(gzip.compress(b" " * (1 << 20)), "Content-Encoding: gzip")) as url:
        assert (await run(url, "workers")).exit_code == 1


@pytest.mark.parametrize("words", [("workers",), ("workers", "--json"), ("explain", "r-1")], ids=" ".join)
async def test_a_list_that_is_longer_than_any_routers_is_not_shown(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_client, "MAX_ROWS", 2)
    rows = {"workers": [a_worker("w-1")] * 3} if words[0] == "workers" else {"decisions": [a_decision()] * 3}
    async with answering_with(whole(json.dumps(rows).encode())) as url:
        refused = await run(url, *words)
        assert (refused.exit_code, refused.output.count("\n")) == (1, 1)
        assert "more than 2" in refused.output


@pytest.mark.parametrize("depth", [400, 100_000])
async def test_workers_that_are_nested_deep_are_no_answer(depth: int) -> None:
    body = b'{"workers":[{"x":%b%b}]}' % (b"[" * depth, b"]" * depth)
    async with answering_with(whole(body)) as url:
        result = await run(url, "workers", "--json")
        assert isinstance(result.exception, SystemExit | None), result.exception
        assert result.exit_code in (0, 1)
        assert result.exit_code == 0 or result.output.count("\n") == 1


async def test_events_without_end_do_not_keep_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """They come faster than they can be shown."""

    async def flood(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(body_of("/events") * 100)
            await writer.drain()

    async with answering_with(flood) as url:
        process, master, opened = await looked_at(url, "xterm")
        with opened:
            await read_until(master, b"workers up")
            draining = asyncio.create_task(read_until(master, b"\x1b[?1049l"))
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                assert b"\x1b[?25h" in await draining
                assert await process.wait() == 143


async def test_in_a_pipe_it_is_told_once_whatever_colours_are_wanted() -> None:
    async def send(writer: asyncio.StreamWriter) -> None:
        await whole(body_of("/events"))(writer)
        await writer.drain()

    async with asyncio.timeout(20), answering_with(send) as url:
        for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "router", "top", "--admin-url", url),
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, name: "1", "TERM": "xterm"},
            )
            told, _ = await process.communicate()
            assert process.returncode == 0
            assert b"w-1" in told
            assert b"\x1b[?1049h" not in told, "no screen of its own"


async def looked_at(url: str, term: str) -> tuple[asyncio.subprocess.Process, int, ExitStack]:
    opened = ExitStack()
    master, terminal = pty.openpty()
    opened.callback(os.close, master)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "router", "top", "--admin-url", url),
        stdout=terminal,
        env={**os.environ, "TERM": term, "COLUMNS": "200", "LINES": "50"},
    )
    os.close(terminal)
    return process, master, opened


async def read_until(terminal: int, mark: bytes) -> bytes:
    seen = b""
    while mark not in seen:
        seen += await asyncio.to_thread(os.read, terminal, 1 << 16)
    return seen


async def test_a_terminal_is_given_back_as_it_was_whoever_ends_it() -> None:
    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + body_of("/events"))
        await writer.drain()
        await asyncio.sleep(60)

    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        async with answering_with(send) as url:
            process, master, opened = await looked_at(url, "xterm")
            with opened:
                await read_until(master, b"workers up")
                process.send_signal(number)
                assert b"\x1b[?25h" in await read_until(master, b"\x1b[?1049l")
                assert await process.wait() == status


async def test_a_terminal_that_obeys_nothing_is_told_once_and_commanded_nothing() -> None:
    async with answering_with(whole(body_of("/events"))) as url:
        process, master, opened = await looked_at(url, "dumb")
        with opened:
            seen = await read_until(master, b"52 ms")
            assert b"\x1b" not in seen
            assert await process.wait() == 0
