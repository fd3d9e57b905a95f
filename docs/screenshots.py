"""Draws docs/images/status-*.png: the status page of a router at work, in Chromium. Takes a minute and a half.

python -m docs.screenshots
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
from playwright.async_api import Browser, async_playwright

from router.app.serve import running
from router.config.loading import load_config
from router.simulator import SimulatorSettings, start_fleet

IMAGES = Path(__file__).parent / "images"
WORKERS, CLIENTS, SECONDS = 12, 10, 75
TEXTS = [
    f"You help the customers of shop {number}. " + "Be brief, be kind, and never guess. " * 120 for number in range(30)
]


async def talk(http: aiohttp.ClientSession, url: str, client: int) -> None:
    """Conversations with one of few openings each, for ever."""
    for number in range(10**6):
        text = TEXTS[(client * 7 + number // 4) % len(TEXTS)]
        messages = [
            {"role": "system", "content": text},
            {"role": "user", "content": f"question {number % 4}: " + "why? " * 40},
        ]
        body = {"model": "sim", "messages": messages, "max_tokens": 60, "stream": True}
        path = f"/v1/sessions/{client}-{number // 4}/chat/completions" if client % 2 else "/v1/chat/completions"
        async with http.post(url + path, json=body) as answer:
            await answer.read()


async def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    settings = SimulatorSettings(workers=WORKERS, base_port=0, cache_blocks=60, time_scale=2.0)
    flags = {"server.port": 0, "admin.port": 0, "server.insecure_no_auth": True, "sessions.store": "memory://"}
    async with (
        await start_fleet(settings) as fleet,
        aiohttp.ClientSession() as http,
        running(load_config(None, {}, {**flags, "fleet.workers": fleet.urls})) as router,
    ):
        clients = [asyncio.create_task(talk(http, router.url, client)) for client in range(CLIENTS)]
        await asyncio.sleep(SECONDS)
        await draw(router.admin_url)
        for client in clients:
            client.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*clients)


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """The system's, for as long as the block."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        await browser.close()


async def draw(url: str) -> None:
    async with chromium() as browser:
        for scheme in ("light", "dark"):
            page = await browser.new_page(color_scheme=scheme, viewport={"width": 1180, "height": 900})  # type: ignore[arg-type]
            await page.goto(url)
            await page.locator("#workers tbody tr").first.wait_for()
            await asyncio.sleep(2.0)
            await page.screenshot(path=IMAGES / f"status-{scheme}.png")


if __name__ == "__main__":
    asyncio.run(main())
