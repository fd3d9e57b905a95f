"""Every error that a client may meet, in the shape of the API that it speaks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from router.server.data import Phase
from router.wire.framing import frame
from tests.e2e.routed import Answer, connected, get, post, routed, until
from tests.e2e.streams import CHAT, MESSAGES, STREAMED, answering, drop, hang, stream
from tests.upstream.scripted import STREAM_HEAD, Asked, Peer, Script, answer, scripted, unused_url

PATHS = ["/v1/chat/completions", "/v1/messages"]
SMALL: dict[str, Any] = {
    "limits__max_body_bytes": 2048,
    "limits__body_timeout_s": 0.05,
    "limits__max_header_bytes": 1024,
    "limits__max_headers": 16,
    "timeouts__answer_s": 0.05,
}
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "request_too_large",
    415: "invalid_request_error",
    421: "invalid_request_error",
    502: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def check(answer: Answer, path: str, status: int, code: str, param: str | None = None) -> None:
    """The error's shape, and that it names nothing that is not the client's to know."""
    assert answer.status == status, answer.body
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers["x-request-id"]
    assert b"127.0.0.1" not in answer.body
    assert answer.error["message"]
    if path == "/v1/messages":
        assert answer.json["type"] == "error"
        assert set(answer.error) == {"type", "message"}
        assert answer.error["type"] == ANTHROPIC_TYPES[status]
    else:
        assert set(answer.error) == {"message", "type", "param", "code"}
        assert (answer.error["code"], answer.error["param"]) == (code, param)
    assert ("retry-after" in answer.headers) == (status == 503)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("body", "lines", "status", "code", "param"),
    [
        (b"{", (), 400, "invalid_json", None),
        (b"", (), 400, "invalid_json", None),
        (b'{"model":"m","messages":[],"messages":[]}', (), 400, "invalid_json", None),
        ({"messages": []}, (), 400, "invalid_request_error", None),
        ({"model": "m"}, (), 400, "invalid_request_error", None),
        ({**CHAT, "stream": 5}, (), 400, "invalid_request_error", "stream"),
        ({**CHAT, "model": "unheard-of"}, (), 404, "model_not_found", "model"),
        (b"x" * 3000, (), 413, "request_too_large", None),
        (CHAT, ("Content-Encoding: gzip",), 415, "unsupported_encoding", None),
    ],
    ids=repr,
)
async def test_a_wrong_request_is_refused_before_any_worker_hears_of_it(
    path: str, body: Any, lines: tuple[str, ...], status: int, code: str, param: str | None
) -> None:
    async with scripted() as worker, routed(worker.url, **SMALL) as router:
        check(await post(router, path, body, *lines), path, status, code, param)
        assert worker.asked == []


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        (answering(status=500), 502, "worker_error"),
        (answering(status=502), 502, "worker_error"),
        (answering(status=503), 503, "overloaded"),
        (answering(status=429), 503, "overloaded"),
        (drop, 503, "no_worker_available"),
        (hang, 504, "worker_timeout"),
    ],
)
async def test_when_every_worker_failed_the_client_hears_how(path: str, script: Script, status: int, code: str) -> None:
    settings = {**SMALL, "probes__interval_s": 60, "admission__max_wait_s": 0}
    async with scripted(script) as worker, routed(worker.url, **settings) as router:
        check(await post(router, path, MESSAGES), path, status, code)


@pytest.mark.parametrize("path", PATHS)
async def test_without_a_worker_that_ever_came_up_the_client_is_told_to_come_back(path: str) -> None:
    async with routed(await unused_url()) as router:
        check(await post(router, path, MESSAGES), path, 503, "no_worker_available")


@pytest.mark.parametrize("path", PATHS)
async def test_a_model_that_nobody_serves_any_more_is_unavailable_and_one_that_never_was_is_not_found(
    path: str,
) -> None:
    async with scripted(models=("m", "n")) as worker, routed(worker.url) as router:
        worker.models = ("n",)
        await until(lambda: "m" not in router.fleet.catalog.served_models())
        check(await post(router, path, MESSAGES), path, 503, "model_unavailable")
        check(await post(router, path, {**MESSAGES, "model": "o"}), path, 404, "model_not_found", "model")
        worker.models = ("m",)
        await until(lambda: "m" in router.fleet.catalog.served_models())
        assert (await post(router, path, MESSAGES)).status == 200


@pytest.mark.parametrize("path", PATHS)
async def test_a_draining_router_takes_no_new_request_and_closes_the_connection(path: str) -> None:
    async with scripted() as worker, routed(worker.url) as router, connected(router) as client:
        router.data.phase = Phase.DRAINING
        await client.post(path, MESSAGES)
        check(await client.answer(), path, 503, "draining")
        assert await client.is_closed()
        assert (await get(router, "/ready")).status == 503
        assert (await get(router, "/health")).status == 200


@pytest.mark.parametrize("retry_after", [("7", "7"), ("0", "1"), ("99999", "3600"), ("soon", "1"), (None, "1")])
async def test_a_busy_workers_wish_is_passed_on_within_reason(retry_after: tuple[str | None, str]) -> None:
    given, passed = retry_after
    line = f"retry-after: {given}\r\n" if given else ""
    data = f"HTTP/1.1 503 Busy\r\n{line}content-length: 0\r\n\r\n".encode()

    async def busy(_asked: Any, peer: Any) -> None:
        await peer.send(data)

    async with scripted(busy) as worker, routed(worker.url, admission__max_wait_s=0) as router:
        assert (await post(router, PATHS[0], CHAT)).headers["retry-after"] == passed


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/chat/completions/", 404, "not_found"),
        ("GET", "/metrics", 404, "not_found"),
        ("GET", "/workers", 404, "not_found"),
        ("GET", "/v1/../metrics", 404, "not_found"),
        ("GET", "//health", 404, "not_found"),
        ("OPTIONS", "/v1/chat/completions", 405, "method_not_allowed"),
    ],
)
async def test_what_is_not_served_is_refused_and_passed_to_no_worker(
    method: str, path: str, status: int, code: str
) -> None:
    async with scripted() as worker, routed(worker.url) as router:
        check(await get(router, path, method=method), path, status, code)
        assert worker.asked == []


@pytest.mark.parametrize("path", PATHS)
async def test_a_body_that_comes_too_slowly_is_given_up(path: str) -> None:
    async with scripted() as worker, routed(worker.url, **SMALL) as router, connected(router) as client:
        await client.send(f"POST {path} HTTP/1.1\r\nHost: r\r\nContent-Length: 100\r\n\r\n{{".encode())
        check(await client.answer(), path, 408, "request_timeout")
        assert await client.is_closed()


@pytest.mark.parametrize("path", PATHS)
async def test_a_chunked_body_is_bounded_too(path: str) -> None:
    async with scripted() as worker, routed(worker.url, **SMALL) as router, connected(router) as client:
        head = f"POST {path} HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        await client.send(head, b"400\r\n" + b"x" * 1024 + b"\r\n", b"800\r\n" + b"x" * 2048 + b"\r\n")
        check(await client.answer(), path, 413, "request_too_large")


async def test_a_body_that_is_announced_too_large_is_refused_unread() -> None:
    async with scripted() as worker, routed(worker.url, **SMALL) as router, connected(router) as client:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: r\r\nContent-Length: 9000\r\nExpect: 100-continue\r\n\r\n"
        await client.send(head)
        check(await client.answer(), PATHS[0], 413, "request_too_large")
        assert await client.is_closed()


@pytest.mark.parametrize(
    "head",
    [
        "GET /health HTTP/1.1\r\nHost: r\r\nX-Long: " + "y" * 2000 + "\r\n\r\n",
        "GET /" + "y" * 2000 + " HTTP/1.1\r\nHost: r\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: r\r\n" + "".join(f"X-{n}: y\r\n" for n in range(30)) + "\r\n",
    ],
    ids=["field", "line", "fields"],
)
async def test_a_head_that_is_too_large_is_refused(head: str) -> None:
    async with scripted() as worker, routed(worker.url, **SMALL) as router, connected(router) as client:
        await client.send(head.encode())
        answer = await client.answer()
        assert (answer.status, answer.error["code"]) == (431, "headers_too_large")
        assert await client.is_closed()


@pytest.mark.parametrize("data", [b"garbage\r\n\r\n", b"\x16\x03\x01\x00\x00\r\n\r\n", b"GET / HTTP/1.1\nHost r\n\n"])
async def test_what_is_not_http_is_answered_in_the_same_shape(data: bytes) -> None:
    async with scripted() as worker, routed(worker.url) as router, connected(router) as client:
        await client.send(data)
        answer = await client.answer()
        assert (answer.status, answer.error["code"]) == (400, "invalid_request_error")
        assert await client.is_closed()


async def test_a_request_with_two_framings_is_refused() -> None:
    async with scripted() as worker, routed(worker.url) as router, connected(router) as client:
        await client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: r\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        assert (await client.answer()).status == 400
        assert worker.asked == []


HOSTS: list[tuple[str, bool]] = [
    ("router", True),
    ("ROUTER:8080", True),
    ("[::1]:8080", True),
    ("[::1]", True),
    ("other", False),
    ("router.evil", False),
    ("evil]router", False),
    ("", False),
]


@pytest.mark.parametrize(("host", "is_allowed"), HOSTS)
async def test_only_listed_hosts_are_served_where_any_is_listed(host: str, is_allowed: bool) -> None:
    async with scripted() as worker, routed(worker.url, server__allowed_hosts=["router", "::1"]) as router:
        async with connected(router) as client:
            await client.send(f"GET /openapi.json HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            answer = await client.answer()
        assert (answer.status == 200) == is_allowed
        assert is_allowed or answer.status in (400, 421)


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_probes_that_come_by_address_are_answered_whatever_hosts_are_listed(path: str) -> None:
    listed = {"server__allowed_hosts": ["router"]}
    async with scripted() as worker, routed(worker.url, **listed) as router, connected(router) as client:
        await client.send(f"GET {path} HTTP/1.1\r\nHost: 10.1.2.3:8080\r\n\r\n".encode())
        assert (await client.answer()).status == 200


async def test_a_worker_error_of_the_clients_making_is_passed_on_word_for_word() -> None:
    body = b'{"error":{"message":"maximum context length","type":"BadRequestError","param":"input","code":400}}'
    async with scripted(answering(body, 400)) as worker, routed(worker.url) as router:
        answer = await post(router, PATHS[0], CHAT)
        assert (answer.status, answer.body) == (400, body)
        assert len(worker.asked) == 1


@pytest.mark.parametrize("path", [*PATHS, "/v1/sessions/s/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("streams", [False, True])
async def test_clients_are_told_not_to_retry_for_an_answer_that_is_too_large(path: str, streams: bool) -> None:
    large = b'data: {"x":"%b"}\n\n' % (b"x" * 5000)

    async def answer_large(_asked: Asked, peer: Peer) -> None:
        await (peer.send(STREAM_HEAD, frame(large)) if streams else peer.send(answer(large)))

    bounds = {"timeouts__max_reply_bytes": 1024, "timeouts__max_event_bytes": 1024}
    async with (
        scripted(answer_large) as one,
        scripted(answer_large) as two,
        routed(one.url, two.url, **bounds) as router,
    ):
        body = {"model": "m", "input": "hi"} if path == "/v1/responses" else {**MESSAGES}
        refused = await post(router, path, {**body, "stream": streams})
        assert (refused.status, refused.headers.get("x-should-retry")) == (502, "false")
        assert "too large" in refused.error["message"]
        assert len(one.asked) + len(two.asked) == 1


def allowed(headers: Mapping[str, str]) -> str | None:
    return headers.get("access-control-allow-origin")


async def test_origins_are_allowed_only_where_they_are_listed() -> None:
    origin, other = "Origin: https://app.example", "Origin: https://evil.example"
    async with scripted() as worker, routed(worker.url) as router:
        assert allowed((await post(router, PATHS[0], CHAT, origin)).headers) is None
    async with scripted() as worker, routed(worker.url, server__cors_origins=["https://app.example"]) as router:
        for answer in (
            await post(router, PATHS[0], CHAT, origin),
            await post(router, PATHS[0], b"{", origin),
            await get(router, "/v1/models", origin),
            await get(router, "/nothing", origin),
        ):
            assert allowed(answer.headers) == "https://app.example"
            assert answer.headers["vary"] == "Origin"
        assert allowed((await post(router, PATHS[0], CHAT, other)).headers) is None
        asked = "Access-Control-Request-Headers: authorization, x-session-id"
        preflight = await get(router, PATHS[0], origin, asked, method="OPTIONS")
        assert (preflight.status, preflight.headers["server"]) == (204, "warmroute")
        assert preflight.headers["access-control-allow-headers"] == "authorization, x-session-id"
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert (await get(router, PATHS[0], other, method="OPTIONS")).status == 405


async def test_pages_of_every_origin_may_read_answers_where_a_star_is_listed() -> None:
    async with scripted() as worker, routed(worker.url, server__cors_origins=["*"]) as router:
        for origin in ("Origin: https://app.example", "Origin: http://localhost:3000", "Origin: null"):
            for answer in (
                await post(router, PATHS[0], CHAT, origin),
                await post(router, PATHS[0], b"{", origin),
                await get(router, "/v1/models", origin),
                await get(router, PATHS[0], origin, method="OPTIONS"),
            ):
                assert allowed(answer.headers) == "*"
            assert (await get(router, PATHS[0], origin, method="OPTIONS")).status == 204
        assert allowed((await post(router, PATHS[0], CHAT)).headers) is None
        assert (await get(router, PATHS[0], method="OPTIONS")).status == 405


async def test_pages_may_read_every_header_that_is_meant_for_clients() -> None:
    origin = "Origin: https://app.example"
    listed: dict[str, Any] = {"server__cors_origins": ["https://app.example"], "server__decision_headers": True}
    async with scripted(stream) as worker, routed(worker.url, **listed) as router:
        answers = [await post(router, PATHS[0], STREAMED, origin), await post(router, PATHS[0], b"{", origin)]
        answers.append(await post(router, "/v1/sessions/s/chat/completions", STREAMED, origin))
    async with routed(await unused_url(), **listed) as router:
        answers.append(await post(router, PATHS[0], CHAT, origin))
    assert answers[0].headers["x-warmroute-reason"]
    assert answers[-1].headers["retry-after"]
    for told in answers:
        exposed = {name.strip().lower() for name in told.headers["access-control-expose-headers"].split(",")}
        meant = {name for name in told.headers if name.startswith("x-") or name == "retry-after"}
        assert meant - exposed <= {"x-content-type-options", "x-accel-buffering"}, "for browsers and proxies themselves"
