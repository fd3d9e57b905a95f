"""The status page: anybody may have the page, and only who knows the token what it shows."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit

import pytest

from router.app.serve import Running
from router.server.failed_logins import MAX_WRONG
from router.server.status import feed as feed_module
from router.server.status.feed import StatusFeed, TooManyViewers
from tests.e2e.faults import metric
from tests.e2e.routed import RawClient, get_admin, post, routed
from tests.upstream.scripted import scripted

TOKEN = "t" * 20
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


async def look(router: Running, *lines: str, path: str = "/events") -> tuple[RawClient, int, dict[str, str]]:
    url = urlsplit(router.admin_url)
    client = RawClient(*await asyncio.open_connection(url.hostname, url.port))
    await client.send("\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode())
    return client, *await client.head()


async def snapshot_of(client: RawClient) -> Any:
    text = b""
    while not text.endswith(b"\n\n"):
        text += await client.reader.readuntil(b"\n")
        text = text[text.find(b"data:") :] if b"data:" in text else b""
    return json.loads(text[5:])


@pytest.mark.parametrize("path", ["/", "/style.css", "/script.js"])
async def test_the_page_needs_no_token_and_lets_nothing_in_from_elsewhere(path: str) -> None:
    async with scripted() as worker, routed(worker.url, admin__token=TOKEN) as router:
        page = await get_admin(router, path)
        assert page.status == 200
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert b"http://" not in page.body.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"https://" not in page.body
        assert b"innerHTML" not in page.body
        assert b"style=" not in page.body


async def test_what_it_shows_needs_the_token() -> None:
    async with scripted() as worker, routed(worker.url, admin__token=TOKEN) as router:
        client, status, _ = await look(router)
        client.leave()
        assert status == 401
        client, status, headers = await look(router, f"Authorization: Bearer {TOKEN}")
        assert (status, headers["content-type"]) == (200, "text/event-stream")
        client.leave()


async def test_it_shows_the_fleet_the_last_decisions_and_the_sessions() -> None:
    async with scripted() as worker, routed(worker.url) as router:
        assert (await post(router, "/v1/chat/completions", CHAT)).status == 200
        client, *_ = await look(router)
        shown = await snapshot_of(client)
        client.leave()
        (seen,) = shown["workers"]
        assert (seen["url"], seen["state"], seen["requests"]) == (worker.url, "up", 1)
        (decision,) = shown["decisions"]
        assert (decision["worker"], decision["status"]) == (seen["name"], 200)
        assert shown["sessions"]["store_up"]
        assert shown["live_requests"] == 0
        assert shown["history"]


async def test_no_more_look_than_may_and_who_left_makes_room() -> None:
    async with scripted() as worker, routed(worker.url, admin__max_viewers=1) as router:
        first, status, _ = await look(router)
        assert status == 200
        assert await metric(router, "warmroute_status_viewers") == 1
        second, status, _ = await look(router)
        assert status == 503
        second.leave()
        first.leave()
        async with asyncio.timeout(5):
            while await metric(router, "warmroute_status_viewers"):
                await asyncio.sleep(0.01)


async def test_who_asks_for_the_head_alone_gets_it_and_takes_nobodys_place() -> None:
    async with scripted() as worker, routed(worker.url, admin__max_viewers=1) as router:
        url = urlsplit(router.admin_url)
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        writer.write(b"HEAD /events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(5):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        assert b"text/event-stream" in head
        assert body == b""
        assert await metric(router, "warmroute_status_viewers") == 0


@pytest.mark.parametrize(
    "line", ["Origin: http://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site"]
)
async def test_pages_of_other_origins_get_no_figures_and_take_nobodys_place(line: str) -> None:
    async with scripted() as worker, routed(worker.url) as router:
        client, status, _ = await look(router, line)
        client.leave()
        assert status == 403
        for path in ("/metrics", "/workers", "/decisions"):
            assert (await get_admin(router, path, line)).status == 403
        assert await metric(router, "warmroute_status_viewers") == 0


@pytest.mark.parametrize("line", ["Origin: http://localhost", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: none"])
async def test_the_routers_own_page_and_people_are_answered(line: str) -> None:
    async with scripted() as worker, routed(worker.url) as router:
        client, status, _ = await look(router, line)
        client.leave()
        assert status == 200


async def test_a_viewer_gives_its_place_back_after_a_while_whether_it_reads_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed_module, "MAX_EVENTS", 2)
    monkeypatch.setattr(feed_module, "EVERY_S", 0.01)
    async with scripted() as worker, routed(worker.url, admin__max_viewers=1) as router:
        client, status, _ = await look(router)
        assert status == 200
        async with asyncio.timeout(5):
            while await metric(router, "warmroute_status_viewers"):
                await asyncio.sleep(0.01)
        client.leave()


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/workers", "/nothing", "/events"])
async def test_no_answer_tells_versions(path: str) -> None:
    async with scripted() as worker, routed(worker.url, admin__token=TOKEN) as router:
        for lines in ((), (f"Authorization: Bearer {TOKEN}",)):
            client, _, headers = await look(router, *lines, path=path)
            client.leave()
            assert headers["server"] == "warmroute"


async def test_an_address_that_guesses_tokens_hears_no_more_and_is_counted() -> None:
    async with scripted() as worker, routed(worker.url, admin__token=TOKEN) as router:
        right = f"Authorization: Bearer {TOKEN}"
        assert (await get_admin(router, "/workers")).status == 401
        for _ in range(MAX_WRONG):
            assert (await get_admin(router, "/workers", "Authorization: Bearer wrong")).status == 401
            assert (await get_admin(router, "/workers")).status == 401, "a question without a token is no guess"
        for line in ("Authorization: Bearer wrong", right):
            assert (await get_admin(router, "/workers", line)).status == 429
        assert (await get_admin(router, "/health")).status == 200


async def test_it_is_made_once_a_second_however_many_look_and_not_without_anybody() -> None:
    made: list[int] = []
    now = 100.0
    feed = StatusFeed(lambda: _count(made), lambda: (1, 1, 1), 2, lambda: now, lambda: now)
    assert not made
    async with aclosing(feed.events()) as one, aclosing(feed.events()) as two:
        assert await anext(one) == await anext(two)
        assert len(made) == 1
        with pytest.raises(TooManyViewers):
            await anext(feed.events())
        now += 1.0
        feed.event()
        assert len(made) == 2
    assert feed.viewers == 0


def _count(made: list[int]) -> dict[str, Any]:
    made.append(1)
    return {"n": len(made)}
