"""What of a client's request reaches a worker, and where a worker may lead the router: nowhere."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tests.e2e.routed import post, routed
from tests.e2e.streams import CHAT
from tests.upstream.certificates import make_certificate
from tests.upstream.scripted import Asked, Peer, scripted

PATH = "/v1/chat/completions"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OWN = {"host", "accept-encoding", "x-request-id", "content-type", "content-length"}
HOSTILE = (
    "Connection: keep-alive, X-Hop, Content-Type, X-Request-Id",
    "X-Hop: a",
    "Keep-Alive: timeout=5",
    "Proxy-Authorization: Basic YQ==",
    "Proxy-Connection: keep-alive",
    "TE: trailers",
    "Trailer: X-Later",
    "Upgrade: h2c",
    "Forwarded: for=10.0.0.1",
    "Via: 1.1 x",
    "X-Forwarded-For: 10.0.0.1",
    "X-Forwarded-Host: evil",
    "X-Forwarded-Proto: https",
    "X-Real-IP: 10.0.0.1",
    "X-Original-URL: /admin",
    "X-HTTP-Method-Override: DELETE",
    "X-Tenant-Id: other",
    "X_Tenant_Id: other",
    "Content_Length: 5",
    "Transfer_Encoding: chunked",
    "Authorization: Bearer client",
    "x-api-key: client",
    "Cookie: a=b",
    "Accept: text/html",
    "Accept-Encoding: gzip",
    "User-Agent: client",
    "Origin: https://evil.example",
    "Referer: https://evil.example",
    "Range: bytes=0-1",
    "X-Session-ID: a-session",
    "Idempotency-Key: a",
    "tracestate: a=b",
    "baggage: a=b",
    "X-Data-Parallel-Rank: 3",
    "X-Late: \xe9",
)


async def test_of_a_clients_headers_only_a_checked_trace_and_request_id_reach_the_worker() -> None:
    async with scripted() as worker, routed(worker.url) as router:
        lines = (*HOSTILE, f"traceparent: {TRACE}", "X-Request-Id: mine")
        found = await post(router, PATH, CHAT, *lines)
        assert found.status == 200
        (asked,) = worker.asked
        assert set(asked.headers) == OWN | {"traceparent", "tracestate"}
        assert asked.headers["tracestate"] == "a=b"
        assert asked.headers["traceparent"] == TRACE
        assert asked.headers["x-request-id"].startswith("mine-")
        assert asked.headers["accept-encoding"] == "identity"
        assert asked.headers["host"] == worker.url.removeprefix("http://")
        assert asked.line == f"POST {PATH} HTTP/1.1"


@pytest.mark.parametrize("trace", [TRACE.upper(), TRACE[:-1], f"{TRACE}, {TRACE}", "00-x", f"{TRACE}\xa0"])
async def test_a_trace_that_is_none_is_left_out(trace: str) -> None:
    async with scripted() as worker, routed(worker.url) as router:
        assert (await post(router, PATH, CHAT, f"traceparent: {trace}", "X-Request-Id: a b")).status == 200
        assert set(worker.asked[0].headers) == OWN
        assert worker.asked[0].headers["x-request-id"] != "a b"


async def test_a_path_and_its_query_never_reach_a_worker_but_for_the_route() -> None:
    async with scripted() as worker, routed(worker.url) as router:
        assert (await post(router, f"http://other{PATH}?a=b&key=c", CHAT)).status == 200
        assert worker.asked[0].line == f"POST {PATH} HTTP/1.1"


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
async def test_a_worker_that_sends_elsewhere_has_failed_and_nobody_goes_there(status: int) -> None:
    async with scripted() as elsewhere:

        async def redirect(_asked: Asked, peer: Peer) -> None:
            body = b"" if status == 304 else b"go"
            await peer.send(
                b"HTTP/1.1 %d Go\r\nLocation: %b/v1/chat/completions\r\nContent-Length: %d\r\n\r\n%b"
                % (status, elsewhere.url.encode(), len(body), body)
            )

        async with scripted(redirect) as worker, routed(worker.url) as router:
            found = await post(router, PATH, CHAT)
            assert found.status == 502
            assert "location" not in found.headers
            assert elsewhere.asked == []
            assert len(worker.asked) == 1


async def test_the_next_worker_answers_in_place_of_one_that_sends_elsewhere() -> None:
    async def redirect(_asked: Asked, peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 307 Go\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n")

    async with scripted(redirect) as one, scripted() as two, routed(one.url, two.url) as router:
        for number in range(6):
            found = await post(router, PATH, {**CHAT, "messages": [{"role": "user", "content": str(number)}]})
            assert found.status == 200


async def test_no_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted() as proxy, scripted() as worker:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        async with routed(worker.url) as router:
            assert (await post(router, PATH, CHAT)).status == 200
        assert len(worker.asked) == 1
        assert proxy.connections == 0


async def test_a_worker_that_wants_a_certificate_of_its_clients_gets_the_routers(tmp_path: Path) -> None:
    for name in ("worker", "router"):
        (tmp_path / name).mkdir()
    worker_cert, worker_key = make_certificate(tmp_path / "worker")
    router_cert, router_key = make_certificate(tmp_path / "router")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(worker_cert, worker_key)
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(router_cert)
    async with scripted(tls=server) as worker:
        known = {"fleet__client_cert": str(router_cert), "fleet__client_key": str(router_key)}
        async with routed(worker.url, fleet__ca_file=str(worker_cert), **known) as router:
            assert (await post(router, PATH, CHAT)).status == 200
        assert len(worker.asked) == 1
        async with routed(worker.url, fleet__ca_file=str(worker_cert)) as router:
            assert (await post(router, PATH, CHAT)).status == 503
        assert len(worker.asked) == 1


async def test_a_worker_behind_tls_that_nobody_vouches_for_is_not_spoken_to(tmp_path: Path) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*make_certificate(tmp_path))
    async with scripted(tls=server) as worker, routed(worker.url) as router:
        assert (await post(router, PATH, CHAT)).status == 503
        assert worker.asked == []
