"""Costly bodies are read beside the router: what comes back is what they say, whatever becomes of the process."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from router.core.errors import InvalidRequest, RequestTooLarge
from router.core.request.request import Tenant
from router.server.parsing import pool
from router.server.parsing.pool import CHEAP_BYTES, LARGE_BYTES, ParserDied, Parsers, is_cheap
from router.server.parsing.weight import expected_weight, weight_of
from router.wire.strict_json import decode_object
from tests.e2e.routed import until
from tests.server.parsing.parses import die, fill, length, note_and_wait, refuse, swell, whose

A, B = Tenant("a"), Tenant("b")


@asynccontextmanager
async def parsers(processes: int = 1, max_body_bytes: int = 1 << 20) -> AsyncIterator[Parsers]:
    made = Parsers(processes, max_body_bytes)
    try:
        yield made
    finally:
        await made.aclose()
    assert made.processes == 0


async def test_a_body_is_read_in_another_process_and_the_next_by_the_same() -> None:
    async with parsers() as many:
        first = await many.run(A, whose, b"")
        assert first != os.getpid()
        assert await many.run(B, whose, b"") == first
        assert await many.run(B, length, bytes(1 << 20)) == 1 << 20


async def test_the_router_goes_before_what_it_has_read() -> None:
    async with parsers() as many:
        reader = await many.run(A, whose, b"")
        assert os.getpriority(os.PRIO_PROCESS, reader) > os.getpriority(os.PRIO_PROCESS, 0)


async def test_an_error_comes_back_as_it_was_raised_and_the_process_serves_on() -> None:
    async with parsers() as many:
        first = await many.run(A, whose, b"")
        with pytest.raises(InvalidRequest, match="it is wrong") as raised:
            await many.run(A, refuse, b"")
        assert (raised.value.param, raised.value.status) == ("messages[3]", 400)
        assert await many.run(A, whose, b"") == first


async def test_a_process_that_dies_costs_its_own_body_only() -> None:
    async with parsers() as many:
        with pytest.raises(ParserDied) as raised:
            await many.run(A, die, b"x")
        assert (raised.value.status, raised.value.retry_after_s) == (503, 1)
        assert await many.run(A, length, b"x") == 1


async def test_a_body_takes_no_more_memory_than_a_process_may() -> None:
    async with parsers(max_body_bytes=1) as many:
        with pytest.raises(RequestTooLarge, match="memory"):
            await many.run(A, fill, bytes(64 << 10))
        assert await many.run(A, length, b"x") == 1


async def test_tenants_take_turns_however_many_bodies_one_of_them_sent(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    notes = {name: tmp_path / name for name in ("a0", "a1", "a2", "b0")}
    async with parsers() as many:
        work = []
        for name, note in notes.items():
            parse = partial(note_and_wait, began=str(note), gate=str(gate))
            work.append(asyncio.ensure_future(many.run(Tenant(name[0]), parse, b"")))
            await asyncio.sleep(0)
        assert many.turns.waiting == 3
        began: list[str] = []

        def has_another_begun() -> bool:
            began.extend(name for name, each in notes.items() if each.exists() and name not in began)
            return len(began) > at

        for at in range(len(notes)):  # noqa: B007  # the function above reads it
            await until(has_another_begun)
            await asyncio.to_thread(gate.write_text, "go")
        await asyncio.gather(*work)
    assert began == ["a0", "a1", "b0", "a2"]


async def test_whoever_leaves_the_line_is_not_waited_for_and_a_seat_is_never_lost(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    parse = partial(note_and_wait, began=str(tmp_path / "note"), gate=str(gate))
    async with parsers() as many:
        at_work, waiting = (asyncio.ensure_future(many.run(A, parse, b"")) for _ in range(2))
        await until((tmp_path / "note").exists)
        for task in (waiting, at_work):
            task.cancel()
        await asyncio.wait((waiting, at_work))
        assert (many.turns.waiting, many.turns.under_way) == (0, 1), "the process is still at work"
        await asyncio.to_thread(gate.write_text, "go")
        await until(lambda: many.turns.under_way == 0)
        assert await many.run(A, length, b"x") == 1


async def test_a_process_without_work_ends_and_gives_its_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "IDLE_S", 0.01)
    async with parsers() as many:
        await many.run(A, length, b"x")
        await until(lambda: many.processes == 0)
        assert await many.run(A, length, b"x") == 1


async def test_a_process_that_ended_while_it_had_no_work_is_replaced() -> None:
    async with parsers() as many:
        first = await many.run(A, whose, b"")
        os.kill(first, signal.SIGKILL)
        await asyncio.to_thread(os.waitid, os.P_PID, first, os.WEXITED | os.WNOWAIT)
        assert await many.run(A, whose, b"") != first


async def test_signals_for_the_whole_group_leave_the_work_under_way_alone() -> None:
    async with parsers() as many:
        first = await many.run(A, whose, b"")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(first, number)
        assert await many.run(A, whose, b"") == first


async def test_a_process_that_cannot_be_begun_costs_no_descriptor_and_no_seat() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with parsers() as many:
        for spare in range(6):
            before = len(os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (before + spare, hard))
            try:
                await many.run(A, length, b"x")
                break
            except ParserDied:
                pass
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert (len(os.listdir("/proc/self/fd")), many.turns.under_way) == (before, 0)
        assert await many.run(A, length, b"x") == 1


async def test_nothing_is_imported_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "router").mkdir()
    (tmp_path / "router" / "__init__.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    async with parsers() as many:
        assert await many.run(A, length, b"x") == 1


async def test_an_answer_that_takes_too_much_memory_to_send_is_the_bodys_fault() -> None:
    async with parsers(max_body_bytes=1) as many:
        with pytest.raises(RequestTooLarge, match="memory"):
            await many.run(A, swell, b"")


async def test_no_process_is_left_behind_one_that_closes_at_work(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    parse = partial(note_and_wait, began=str(tmp_path / "note"), gate=str(gate))
    async with parsers() as many:
        first = await many.run(A, whose, b"")
        at_work = asyncio.ensure_future(many.run(A, parse, b""))
        await until((tmp_path / "note").exists)
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert (await asyncio.wait((at_work,)))[0].pop().cancelled()


@pytest.mark.parametrize(
    ("body", "cheap"),
    [
        (b"x" * (LARGE_BYTES - 1), True),
        (b"x" * LARGE_BYTES, False),
        (b"[]" * (CHEAP_BYTES // 4), True),
        (b"[]" * (CHEAP_BYTES // 2), False),
        (b"9" * (CHEAP_BYTES - 1), True),
        (b"9" * CHEAP_BYTES, False),
    ],
)
def test_small_bodies_are_cheap_and_larger_ones_that_are_mostly_text(body: bytes, cheap: bool) -> None:
    assert is_cheap(body) is cheap


@pytest.mark.parametrize(
    "value",
    [b"[]", b"{}", b'{"a":1}', b"1", b'"a"', b'"\\ud83d\\ude00"', b"1.5", b'{"a":[1,"b",{"c":null}]}', b'"\xc3\xa9"'],
)
def test_values_take_no_more_than_was_expected(value: bytes) -> None:
    body = b'{"x":[%b]}' % b",".join([value] * 2000)
    assert weight_of(decode_object(body)) <= expected_weight(body)
