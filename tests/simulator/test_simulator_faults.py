"""How streams break: what stands, what strikes once and where, over real sockets."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from router.simulator import Fault
from router.simulator.faults import BREAKING, Faults
from tests.simulator.serving import Client, serving

MESSAGES = [{"role": "user", "content": "the fleet keeps what it has seen " * 8}]
CHAT = "/v1/chat/completions"
HEAD_END = b"\r\n\r\n"


class Wire:
    """A connection that shows each byte of a reply."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def ask(cls, client: Client, **changes: Any) -> "Wire":
        port = int(client.fleet.urls[0].rsplit(":", 1)[1])
        wire = cls(*await asyncio.open_connection("127.0.0.1", port))
        body = json.dumps({"messages": MESSAGES, "max_tokens": 60, "stream": True, **changes}).encode()
        wire.writer.write(
            b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (CHAT.encode(), len(body)) + body
        )
        return wire

    async def read_to_end(self) -> bytes:
        async with asyncio.timeout(10):
            data = await self.reader.read()
        self.writer.close()
        return data

    async def is_silent(self) -> bool:
        """Whether nothing has come, the end included, that was not read; what has is read."""
        try:
            async with asyncio.timeout(0):
                await self.reader.read(1 << 20)
        except TimeoutError:
            return not self.reader.at_eof()
        return False

    async def read_until(self, mark: bytes) -> bytes:
        async with asyncio.timeout(10):
            return await self.reader.readuntil(mark)


async def until_idle(client: Client) -> None:
    """Let the engine end all that it has, and what it wrote arrive."""
    while client.fleet._servers[0].worker.engine.running:
        await asyncio.sleep(0)
    assert (await client.get("/health"))[0] == 200


def count_events(reply: bytes) -> int:
    return reply.count(b"data: {")


@pytest.mark.parametrize("after", [0, 1, 2, 7, 30])
async def test_a_strike_cuts_one_stream_after_exactly_so_many_events(after: int) -> None:
    async with serving(stream_interval_ms=0.0) as client:
        assert (await client.post("/simulator/fault", fault="cut", after_events=after))[0] == 200
        reply = await (await Wire.ask(client)).read_to_end()
        assert count_events(reply) == after
        assert not reply.endswith(b"0" + HEAD_END)
        assert len(await client.stream(CHAT, messages=MESSAGES, max_tokens=60)) == 62, "and no other"


async def test_a_strike_counts_the_events_of_all_streams() -> None:
    async with serving(stream_interval_ms=0.0) as client:
        client.fleet.set_fault(0, Fault.CUT, after_events=70)
        assert len(await client.stream(CHAT, messages=MESSAGES, max_tokens=60)) == 62
        reply = await (await Wire.ask(client)).read_to_end()
        assert count_events(reply) == 70 - 62


async def test_a_strike_that_is_taken_back_never_comes() -> None:
    async with serving(stream_interval_ms=0.0) as client:
        client.fleet.set_fault(0, Fault.CUT, after_events=5)
        client.fleet.set_fault(0, Fault.NONE)
        assert len(await client.stream(CHAT, messages=MESSAGES, max_tokens=60)) == 62


@pytest.mark.parametrize("asked", [{"fault": "slow", "after_events": 3}, {"fault": "cut", "after_events": -1}])
async def test_a_strike_that_cannot_be_is_refused(asked: dict[str, Any]) -> None:
    async with serving() as client:
        status, reply = await client.post("/simulator/fault", **asked)
        assert (status, reply["error"]["param"]) == (400, "after_events")
        assert client.fleet._servers[0].worker.fault is Fault.NONE


async def test_a_truncated_stream_ends_inside_an_event() -> None:
    async with serving(stream_interval_ms=0.0) as client:
        client.fleet.set_fault(0, Fault.TRUNCATE, after_events=4)
        reply = await (await Wire.ask(client)).read_to_end()
        assert count_events(reply) == 5
        assert reply.endswith(b"\r\n"), "the chunk is whole, the event is not"
        assert not reply.endswith(b"\n\n\r\n")


async def test_a_garbled_stream_has_bytes_that_are_no_chunk_and_stays_open() -> None:
    async with serving(stream_interval_ms=0.0) as client:
        client.fleet.set_fault(0, Fault.GARBAGE, after_events=4)
        wire = await Wire.ask(client)
        reply = await wire.read_until(b"\x00\xff")
        assert count_events(reply) == 4
        assert reply.endswith(b"\r\n\x00\xff")
        assert not wire.reader.at_eof()
        wire.writer.close()
        client.fleet.set_fault(0, Fault.GARBAGE)
        wire = await Wire.ask(client)
        assert count_events(await wire.read_until(b"\x00\xff")) == 0
        wire.writer.close()


async def test_a_reset_stream_ends_in_a_reset() -> None:
    async with serving(time_scale=1.0, prefill_rate=1e6) as client:
        wire = await Wire.ask(client, max_tokens=9_000)
        await wire.read_until(b"data: {")
        client.fleet.set_fault(0, Fault.RESET)
        with pytest.raises(ConnectionResetError):
            await wire.read_to_end()


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.TRUNCATE, Fault.GARBAGE, Fault.CUT])
async def test_a_reply_that_is_not_streamed_breaks_too(fault: Fault) -> None:
    async with serving(fault=fault) as client:
        with pytest.raises(aiohttp.ClientError):
            await client.post(CHAT, messages=MESSAGES, max_tokens=5)
        assert (await client.get("/health"))[0] == 200


async def test_a_worker_that_hangs_silences_one_stream_and_stays_healthy() -> None:
    async with serving(stream_interval_ms=0.0) as client:
        worker = client.fleet._servers[0].worker
        client.fleet.set_fault(0, Fault.HANG, after_events=4)
        wire = await Wire.ask(client)
        for _ in range(4):
            await wire.read_until(b"data: {")
        await wire.read_until(b"\n\n\r\n")
        await until_idle(client)
        assert await wire.is_silent()
        assert (await client.post(CHAT, messages=MESSAGES, max_tokens=5))[0] == 200, "the strike is for one stream"
        wire.writer.close()
        await worker.wait_idle()


async def test_a_standing_hang_silences_what_runs_whether_streamed_or_not() -> None:
    async with serving(time_scale=200.0) as client:
        worker = client.fleet._servers[0].worker
        wire = await Wire.ask(client, max_tokens=2_000)
        await wire.read_until(b"data: {")
        whole = asyncio.ensure_future(client.post(CHAT, messages=MESSAGES, max_tokens=2_000))
        while worker.engine.running < 2:
            await asyncio.sleep(0)
        client.fleet.set_fault(0, Fault.HANG)
        assert (await client.get("/health"))[0] == 200
        while not await wire.is_silent():
            pass  # what was on its way when the fault was set
        await until_idle(client)
        assert await wire.is_silent()
        assert not whole.done()
        whole.cancel()
        wire.writer.close()
        await worker.wait_idle()


async def test_a_slow_worker_runs_at_a_tenth_and_its_time_never_jumps() -> None:
    async with serving(time_scale=1_000.0) as client:
        worker = client.fleet._servers[0].worker
        before_ns = worker.now_ns()
        client.fleet.set_fault(0, Fault.SLOW)
        assert worker._ns_per_wall_s == pytest.approx(100.0 * 1e9)
        slow_ns = worker.now_ns()
        client.fleet.set_fault(0, Fault.NONE)
        assert before_ns <= slow_ns <= worker.now_ns()
        assert worker._ns_per_wall_s == pytest.approx(1_000.0 * 1e9)


async def test_requests_that_run_while_a_worker_slows_down_still_end() -> None:
    async with serving(time_scale=10_000.0) as client:
        wire = await Wire.ask(client, max_tokens=300)
        await wire.read_until(b"data: {")
        client.fleet.set_fault(0, Fault.SLOW)
        await wire.read_until(b"[DONE]")
        wire.writer.close()


@pytest.mark.parametrize("fault", sorted(BREAKING))
def test_a_strike_lets_through_what_it_was_told_and_is_gone(fault: Fault) -> None:
    faults = Faults(Fault.NONE)
    faults.set(fault, 5)
    assert faults.befall(3) == (Fault.NONE, 3)
    assert faults.befall(2) == (Fault.NONE, 2)
    assert faults.befall(4) == (fault, 0)
    assert faults.befall(4) == (Fault.NONE, 4)
    assert faults.is_quiet


async def test_a_poisoned_request_crashes_its_worker_and_no_other() -> None:
    async with serving(workers=2, poison="hemlock") as client:
        with pytest.raises(aiohttp.ClientError):
            await client.post(CHAT, messages=[{"role": "user", "content": "a cup of hemlock"}])
        with pytest.raises(aiohttp.ClientError):
            await client.get("/health")
        assert (await client.post(CHAT, 1, messages=MESSAGES))[0] == 200
        await client.fleet.restart(0)
        assert (await client.post(CHAT, messages=MESSAGES))[0] == 200
