"""The replay against a worker of its own: what it sends, what it counts, what it calls an error."""

import asyncio
import json
import lzma
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiohttp import web
from aiohttp.test_utils import TestServer

from router.replay import ReplayError, ReplaySettings, Spread, read_trace, replay
from router.replay.client import Client, Outcome
from router.replay.fleet import Counters, read_counters
from router.replay.report import Sending, make_report

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"index":0,"delta":{"content":""},"finish_reason":"length"}]}\n\n'
DONE = b"data: [DONE]\n\n"
WHOLE = ROLE + TEXT + LAST + DONE

Answer = Callable[[web.Request, bytes], Awaitable[web.StreamResponse]]


def stream_of(*reads: bytes, headers: dict[str, str] | None = None) -> Answer:
    async def answer(request: web.Request, _: bytes) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream", **(headers or {})})
        await reply.prepare(request)
        for read in reads:
            await reply.write(read)
        await reply.write_eof()
        return reply

    return answer


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """A worker, and (session, body) of what reached it."""
    seen: list[tuple[str, dict[str, Any]]] = []

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        seen.append((request.headers["X-Session-ID"], json.loads(body)))
        return await answer(request, body)

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "first"}, {"id": "second"}]})

    async def workers(request: web.Request) -> web.Response:
        return web.json_response({"workers": [{"name": "w0", "url": str(request.url.origin())}]})

    async def metrics(_: web.Request) -> web.Response:
        served = len(seen)
        lines = (
            f'vllm:prefix_cache_queries_total{{engine="0",model_name="first"}} {100.0 * served}\n'
            f'vllm:prefix_cache_hits_total{{engine="0",model_name="first"}} {25.0 * served}\n'
            f'vllm:request_success_total{{finished_reason="length"}} {float(served)}\n'
        )
        return web.Response(text=lines)

    app = web.Application(client_max_size=1 << 24)
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/workers", workers)
    app.router.add_get("/metrics", metrics)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/"), seen


def write_trace(path: Path, *rows: dict[str, Any]) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(lzma.compress(lines) if path.suffix == ".xz" else lines)
    return path


def a_row(timestamp: int, *blocks: int) -> dict[str, Any]:
    return {"timestamp": timestamp, "input_length": 16 * len(blocks), "output_length": 3, "hash_ids": list(blocks)}


async def outcome_of(answer: Answer) -> Outcome:
    async with serving(answer) as (url, _):
        client = Client(url, "/v1/chat/completions", {})
        try:
            return await client.post("s", b"{}", 5.0)
        finally:
            client.close()


async def test_every_row_is_sent_and_reported(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "t.jsonl.xz", a_row(0, 0, 1), a_row(10, 0, 2), a_row(20, 0, 1, 3))
    steps: list[tuple[int, int]] = []
    async with serving(stream_of(WHOLE, headers={"x-warmroute-worker": "w0"})) as (url, seen):
        settings = ReplaySettings(trace, (url,), speed=2, time_scale=50, block_tokens=16, admin_url=url)
        report = await replay(settings, lambda ended, total: steps.append((ended, total)))
    assert sorted(session for session, _ in seen) == ["block-1", "block-1", "block-2"]
    assert {body["model"] for _, body in seen} == {"first"}
    assert (report.requests, report.answered, report.errors) == (3, 3, {})
    assert report.hit_ratio == 0.25
    assert report.requests_by_worker == {"w0": 3}
    assert report.imbalance == 1.0
    assert report.settings["model"] == "first"
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert json.loads(json.dumps(report.as_dict()))["requests"] == 3
    assert report.as_table().row_count > 5


async def test_requests_are_spread_over_routers_the_same_way_each_time(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "t.jsonl", *(a_row(0, 0, block) for block in range(1, 21)))
    shares = []
    for _ in range(2):
        async with serving(stream_of(WHOLE)) as (one, at_one), serving(stream_of(WHOLE)) as (two, at_two):
            await replay(ReplaySettings(trace, (one, two), block_tokens=16, seed=3, model="m"))
            shares.append(sorted(session for session, _ in at_one))
            assert at_one
            assert at_two
    assert shares[0] == shares[1]


async def test_open_loop_does_not_wait_for_replies(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "t.jsonl", *(a_row(0, 0, block) for block in range(30)))
    all_came, came = asyncio.Event(), 0

    async def answer_when_all_came(request: web.Request, body: bytes) -> web.StreamResponse:
        nonlocal came
        came += 1
        if came == 30:
            all_came.set()
        await all_came.wait()
        return await stream_of(WHOLE)(request, body)

    async with serving(answer_when_all_came) as (url, _):
        report = await replay(ReplaySettings(trace, (url,), block_tokens=16, model="m", max_request_s=30))
    assert report.answered == 30


@pytest.mark.parametrize("step", [1, 7, 1000])
async def test_a_stream_is_judged_alike_however_it_is_cut(step: int) -> None:
    reads = [WHOLE[at : at + step] for at in range(0, len(WHOLE), step)]
    outcome = await outcome_of(stream_of(*reads))
    assert outcome.error is None
    assert outcome.sent_at <= outcome.first_event_at <= outcome.ended_at


@pytest.mark.parametrize(
    ("stream", "kind"),
    [
        (ROLE + TEXT + DONE, "no_finish_reason"),
        (ROLE + TEXT + LAST, "no_done"),
        (ROLE + b'data: {"error":{"message":"died"}}\n\n' + DONE, "error_event"),
        (ROLE + LAST.replace(b"length", b"abort") + DONE, "finish_abort"),
        (b": waiting\n\n", "no_finish_reason"),
    ],
)
async def test_a_stream_that_lacks_its_end_is_an_error(stream: bytes, kind: str) -> None:
    assert (await outcome_of(stream_of(stream))).error == kind


async def test_a_truncated_stream_is_an_error() -> None:
    async def cut(request: web.Request, _: bytes) -> web.StreamResponse:
        reply = web.StreamResponse()
        await reply.prepare(request)
        await reply.write(ROLE + TEXT + LAST + DONE)
        assert request.transport is not None
        request.transport.abort()
        return reply

    outcome = await outcome_of(cut)
    assert outcome.status == 200
    assert outcome.error == "truncated"


async def test_a_connection_closed_before_any_reply_is_an_error() -> None:
    async def hang_up(request: web.Request, _: bytes) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    assert (await outcome_of(hang_up)).error == "no_reply"


async def test_an_answer_that_is_not_http_is_an_error() -> None:
    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    async with server:
        client = Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "/", {})
        assert (await client.post("s", b"{}", 5)).error == "not_http"


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://host", "http://"])
def test_url_of_another_kind_says_so(url: str) -> None:
    with pytest.raises(ReplayError, match="must be an http"):
        Client(url, "/", {})


async def test_a_refusal_is_counted_by_status_and_code() -> None:
    async def refuse(_: web.Request, __: bytes) -> web.StreamResponse:
        return web.json_response({"error": {"message": "full", "code": "overloaded"}}, status=503)

    assert (await outcome_of(refuse)).error == "status_503 overloaded"


async def test_a_reply_that_never_comes_is_a_timeout() -> None:
    released = asyncio.Event()

    async def hang(_: web.Request, __: bytes) -> web.StreamResponse:
        await released.wait()
        return web.Response()

    async with serving(hang) as (url, _):
        client = Client(url, "/v1/chat/completions", {})
        assert (await client.post("s", b"{}", 0.01)).error == "timeout"
        released.set()


async def test_nobody_listening_is_an_error_of_each_request(tmp_path: Path, unused_tcp_port: int) -> None:
    trace = write_trace(tmp_path / "t.jsonl", a_row(0, 0), a_row(0, 1))
    url = f"http://127.0.0.1:{unused_tcp_port}"
    report = await replay(ReplaySettings(trace, (url,), block_tokens=16, model="m"))
    assert report.errors == {"connect": 2}
    assert report.ttft == Spread()


def test_uvloop_serves_as_well() -> None:
    async def answered() -> Outcome:
        return await outcome_of(stream_of(WHOLE))

    assert uvloop.run(answered()).error is None


async def test_a_connection_is_used_again_and_one_gone_stale_is_replaced() -> None:
    closes = False
    peers = set()

    async def answer(request: web.Request, body: bytes) -> web.StreamResponse:
        nonlocal closes
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        if closes:
            closes = False
            request.transport.abort()
            return web.Response()
        return await stream_of(WHOLE)(request, body)

    async with serving(answer) as (url, _):
        client = Client(url, "/v1/chat/completions", {})
        assert (await client.post("s", b"{}", 5)).error is None
        assert (await client.post("s", b"{}", 5)).error is None
        assert len(peers) == 1
        closes = True
        assert (await client.post("s", b"{}", 5)).error is None
        assert len(peers) == 2
        client.close()


async def test_session_names_cannot_add_header_lines() -> None:
    async with serving(stream_of(WHOLE)) as (url, seen):
        client = Client(url, "/v1/chat/completions", {})
        assert (await client.post("a\r\nX: y", b"{}", 5)).error is None
        client.close()
    assert seen[0][0] == "aX: y"


async def test_missing_model_list_says_so(tmp_path: Path, unused_tcp_port: int) -> None:
    trace = write_trace(tmp_path / "t.jsonl", a_row(0, 0))
    with pytest.raises(ReplayError, match="no answer"):
        await replay(ReplaySettings(trace, (f"http://127.0.0.1:{unused_tcp_port}",)))


def test_trace_is_read_in_order_of_time_up_to_its_limit(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "t.jsonl", a_row(5, 1), a_row(3, 2), a_row(0, 3))
    assert [row.timestamp for row in read_trace(trace)] == [0, 3, 5]
    assert [row.timestamp for row in read_trace(trace, 2)] == [3, 5]


@pytest.mark.parametrize("line", ["{", '{"timestamp": 1}', '{"timestamp": 1, "input_length": 0, "output_length": 1}'])
def test_bad_line_is_named(tmp_path: Path, line: str) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"timestamp": 1, "input_length": 1, "output_length": 1}\n\n' + line + "\n")
    with pytest.raises(ReplayError, match=r"t\.jsonl:3: "):
        read_trace(trace)


@pytest.mark.parametrize("name", ["none.jsonl", "none.jsonl.xz"])
def test_missing_trace_says_so(tmp_path: Path, name: str) -> None:
    with pytest.raises(ReplayError, match="cannot be read"):
        read_trace(tmp_path / name)


def test_empty_trace_says_so(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("\n")
    with pytest.raises(ReplayError, match="no requests"):
        read_trace(tmp_path / "t.jsonl")


@pytest.mark.parametrize("wrong", [{"speed": 0}, {"time_scale": -1}, {"limit": 0}, {"block_tokens": 4}, {"urls": ()}])
def test_settings_out_of_bounds_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ReplaySettings(Path("t.jsonl"), **wrong)


def test_spread_is_mean_and_nearest_ranks() -> None:
    assert Spread.of(float(value) for value in range(1, 201)) == Spread(100.5, 100, 180, 198, 200)
    assert Spread.of([3.0]) == Spread(3, 3, 3, 3, 3)
    assert Spread.of([]) == Spread()


def test_report_scales_to_trace_seconds_and_leaves_failures_out() -> None:
    sendings = [
        Sending(10.0, Outcome(sent_at=10.01, first_event_at=10.1, ended_at=10.4, worker="a")),
        Sending(11.0, Outcome(sent_at=11.0, first_event_at=11.3, ended_at=11.4, worker="a")),
        Sending(12.0, Outcome(sent_at=12.0, first_event_at=12.5, ended_at=12.5, worker="b", error="truncated")),
    ]
    counters = {"u": Counters(30, 100, 2), "v": Counters(0, 100, 1), "w": Counters()}
    report = make_report(sendings, settings={}, time_scale=20, counters=counters, wall_s=4.0, cpu_wall_s=1.0)
    assert report.ttft.mean == pytest.approx(4.0)
    assert report.ttft.max == pytest.approx(6.0)
    assert report.ttft_after_send.mean == pytest.approx(3.9)
    assert report.duration.mean == pytest.approx(8.0)
    assert report.hit_ratio == pytest.approx(0.15)
    assert report.errors == {"truncated": 1}
    assert report.imbalance == pytest.approx(2.0)
    assert report.request_rate == pytest.approx(2 / 80)
    assert report.lateness_wall_s == pytest.approx(0.01)
    assert report.warnings == []


def test_report_warns_of_lateness_and_of_unknown_hits() -> None:
    late = [Sending(1.0, Outcome(sent_at=1.1, first_event_at=1.2, ended_at=1.3))]
    report = make_report(late, settings={}, time_scale=1, counters={}, wall_s=1.0, cpu_wall_s=0.1)
    assert report.hit_ratio is None
    assert len(report.warnings) == 2


def test_workers_count_where_the_router_names_none() -> None:
    sendings = [Sending(0.0, Outcome(0.1, 0.2, 0.3))] * 4
    counters = {"u": Counters(0, 1, 3), "v": Counters(0, 1, 1)}
    report = make_report(sendings, settings={}, time_scale=1, counters=counters, wall_s=1.0, cpu_wall_s=0.1)
    assert report.requests_by_worker == {"u": 3, "v": 1}
    assert report.imbalance == 1.5


def test_counters_are_summed_over_engines_and_start_anew_with_the_worker() -> None:
    metrics = (
        "# TYPE vllm:prefix_cache_hits_total counter\n"
        'vllm:prefix_cache_hits_total{engine="0",model_name="a b"} 5.0\n'
        'vllm:prefix_cache_hits_total{engine="1",model_name="a b"} 7.0\n'
        'vllm:external_prefix_cache_hits_total{engine="1"} 9.0\n'
        "vllm:prefix_cache_queries_total 1.5e+03\n"
        'vllm:request_success_total{finished_reason="stop"} 2.0\n'
        'vllm:request_success_total{finished_reason="length"} 3.0\n'
    )
    counters = read_counters(metrics)
    assert counters == Counters(12, 1500, 5)
    assert counters.since(Counters(2, 500, 1)) == Counters(10, 1000, 4)
    assert counters.since(Counters(2, 5000, 1)) == counters
