"""Bodies of HTTP answers are read up to a bound."""

from __future__ import annotations

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from router.runtime.bounded_body import read_body


@pytest.mark.parametrize(("max_bytes", "is_read"), [(10_000, True), (9_999, False)])
async def test_a_body_is_read_up_to_its_bound(max_bytes: int, is_read: bool) -> None:
    body = b"x" * 10_000

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=body)

    app = web.Application()
    app.router.add_get("/", answer)
    async with TestServer(app) as server, ClientSession() as client, client.get(server.make_url("/")) as reply:
        assert await read_body(reply, max_bytes) == (body if is_read else None)
