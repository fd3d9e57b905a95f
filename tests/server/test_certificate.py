"""The data port's certificate: renewed while the router runs."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.e2e.faults import metric
from tests.e2e.routed import connected, routed
from tests.upstream.certificates import make_certificate
from tests.upstream.scripted import scripted

HEALTH = b"GET /health HTTP/1.1\r\nHost: r\r\n\r\n"


async def is_served(router: Any, trusted: ssl.SSLContext) -> bool:
    try:
        async with connected(router, trusted) as client:
            await client.send(HEALTH)
            return (await client.answer()).status == 200
    except ssl.SSLCertVerificationError:
        return False


async def comes(is_so: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(10):
        while not await is_so():
            pass


def spoil(folder: Path) -> None:
    (folder / "cert.pem").write_text("-----BEGIN CERTIFICATE-----")


def certified(folder: Path) -> tuple[dict[str, Any], ssl.SSLContext]:
    """Settings with a new certificate, and who trusts it alone."""
    cert, key = make_certificate(folder)
    settings = {"server__tls_cert": str(cert), "server__tls_key": str(key), "server__tls_reload_s": 0.05}
    return settings, ssl.create_default_context(cafile=cert)


async def test_a_renewed_certificate_is_shown_to_whoever_connects_and_nobody_is_cut(tmp_path: Path) -> None:
    settings, old = certified(tmp_path)
    async with scripted() as worker, routed(worker.url, **settings) as router, connected(router, old) as client:
        assert await is_served(router, old)
        _, new = certified(tmp_path)
        await comes(lambda: is_served(router, new))
        assert not await is_served(router, old)
        await client.send(HEALTH)
        assert (await client.answer()).status == 200


async def test_a_certificate_that_cannot_be_taken_leaves_the_old_one_and_is_counted(tmp_path: Path) -> None:
    settings, old = certified(tmp_path)
    async with scripted() as worker, routed(worker.url, **settings) as router:
        spoil(tmp_path)
        await comes(lambda: metric(router, "warmroute_certificate_reload_failures_total"))
        assert await is_served(router, old)
