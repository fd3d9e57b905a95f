"""The status page in a real browser: Debian's Chromium, without a window. Skipped loudly where it is missing, failed in CI."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from router.app.serve import Running
from router.simulator import SimulatedFleet, SimulatorSettings, start_fleet
from tests.browser.relay import Relay, relaying
from tests.e2e.routed import post, routed, until
from tests.not_tested import not_tested

pytestmark = pytest.mark.system

WORKERS, TOKEN = 200, "t" * 20
EVIL = "<img src=x onerror=alert(1)>"


def chromium() -> str:
    found = shutil.which("chromium")
    if found is None:
        not_tested("chromium is not installed (Debian: apt-get install chromium)")
    return found


class Serving(threading.Thread):
    """A router and its fleet on a loop of their own: the browser's side waits without one."""

    def __init__(self) -> None:
        super().__init__(name="router")
        self.is_up, self.router, self.fleet, self.relay = threading.Event(), None, None, None
        self.failure: BaseException | None = None

    router: Running | None
    fleet: SimulatedFleet | None
    relay: Relay | None
    """To the admin port."""

    def run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self.failure = error
            self.is_up.set()

    async def _serve(self) -> None:
        settings = SimulatorSettings(workers=WORKERS, base_port=0, time_scale=100.0)
        quiet = {"probes__interval_s": 2.0, "load__poll_interval_s": 2.0, "admin__token": TOKEN}
        self.loop, self.ended = asyncio.get_running_loop(), asyncio.Event()
        async with await start_fleet(settings) as fleet, routed(*fleet.urls, **quiet, timeout_s=120) as router:
            self.fleet, self.router = fleet, router
            admin = urlsplit(router.admin_url)
            await until(lambda: len(router.fleet.catalog.eligible("sim").positions) == WORKERS, 30)
            for number in range(30):
                await post(router, "/v1/chat/completions", chat(f"{number % 3} " + "words " * 400))
            async with relaying(str(admin.hostname), int(admin.port or 0)) as self.relay:
                self.is_up.set()
                await self.ended.wait()

    def call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def stop(self) -> None:
        if self.failure is None:
            self.loop.call_soon_threadsafe(self.ended.set)
        self.join(20)


def chat(text: str, model: str = "sim") -> dict[str, Any]:
    return {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": text}], "stream": True}


@dataclass
class Seen:
    """What the browser complained of, and asked for."""

    errors: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    thread = Serving()
    thread.start()
    thread.is_up.wait(60)
    if thread.failure is not None:
        raise thread.failure
    yield thread
    thread.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


def opened(browser: Browser, serving: Serving, url: str = "", **options: Any) -> tuple[Page, Seen]:
    """The page, behind its token. ``url``: of the admin port, if it is another's."""
    assert serving.router is not None
    seen = Seen()
    page = browser.new_page(**options)
    page.on("console", lambda message: seen.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("request", lambda request: seen.urls.append(request.url))
    page.goto(url or serving.router.admin_url)
    expect(page.get_by_label("Admin token")).to_be_focused()
    page.keyboard.type(TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator("#link")).to_have_text("live")
    seen.errors.clear()  # of the 401, which browsers tell of
    return page, seen


def rows(page: Page) -> int:
    return page.locator("#workers tbody tr").count()


def test_the_whole_fleet_is_shown_live_and_nothing_is_asked_of_anybody_else(browser: Browser, serving: Serving) -> None:
    page, seen = opened(browser, serving)
    assert rows(page) == WORKERS
    expect(page.locator("#glance")).to_contain_text(f"{WORKERS} of {WORKERS}")
    expect(page.locator("#decisions tbody tr").first).to_contain_text("sim")
    assert serving.router is not None
    assert {url.partition("/")[0] for url in seen.urls if not url.startswith(serving.router.admin_url)} <= {"data:"}
    assert seen.errors == []
    page.close()


def test_a_worker_that_falls_ill_is_seen(browser: Browser, serving: Serving) -> None:
    page, _ = opened(browser, serving)
    assert serving.fleet is not None
    serving.call(serving.fleet.kill(7))
    page.get_by_label("State").select_option("ejected")
    expect(page.locator("#workers tbody tr")).to_have_count(1, timeout=20_000)
    expect(page.locator("#workers tbody")).to_contain_text(serving.fleet.urls[7])
    page.close()


def test_it_is_used_by_keyboard(browser: Browser, serving: Serving) -> None:
    page, _ = opened(browser, serving)
    page.get_by_label("Name or URL").focus()
    assert serving.fleet is not None
    port = serving.fleet.urls[3].rpartition(":")[2]
    page.keyboard.type(port)
    expect(page.locator("#workers tbody tr")).to_have_count(1)
    page.get_by_label("Name or URL").fill("")
    button = page.get_by_role("button", name="Hit ratio")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator("th[aria-sort=descending]")).to_have_text("Hit ratio")
    best = page.locator("#workers tbody tr").first.locator("td").nth(4)
    expect(best).to_contain_text("%")
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_in_light_and_dark(browser: Browser, serving: Serving, scheme: Any) -> None:
    page, _ = opened(browser, serving, color_scheme=scheme)
    colours = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    text, ground = (sum(int(part) for part in colour[4:-1].split(",")) for colour in colours)
    assert (text < 150, ground > 600) == ((True, True) if scheme == "light" else (False, False))
    page.close()


def test_a_phone_shows_it_without_scrolling_sideways(browser: Browser, serving: Serving) -> None:
    page, _ = opened(browser, serving, viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    expect(page.get_by_label("Name or URL")).to_be_visible()
    page.close()


def test_what_comes_from_outside_is_text(browser: Browser, serving: Serving) -> None:
    page, seen = opened(browser, serving)
    assert serving.router is not None
    serving.call(post(serving.router, "/v1/chat/completions", chat("hi"), "X-Request-Id: plain"))
    assert serving.call(post(serving.router, "/v1/chat/completions", chat("hi", EVIL))).status == 404
    expect(page.locator("#decisions")).to_contain_text(EVIL)
    page.evaluate(f"for (const name of ['name', 'url', 'state']) newest.workers[0][name] = {EVIL!r}; showWorkers()")
    expect(page.locator("#workers")).to_contain_text(EVIL)
    assert page.locator("main img").count() == 0
    assert seen.errors == []
    page.close()


def test_a_wrong_token_is_told(browser: Browser, serving: Serving) -> None:
    assert serving.router is not None
    page = browser.new_page()
    page.goto(serving.router.admin_url)
    page.get_by_label("Admin token").fill("wrong")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("alert")).to_have_text("This is not the token.")
    page.close()


def test_a_router_that_is_silent_is_not_shown_as_live_and_is_again_when_it_speaks(
    browser: Browser, serving: Serving
) -> None:
    assert serving.relay is not None
    page, _ = opened(browser, serving, serving.relay.url)
    serving.call(serving.relay.hold())
    expect(page.locator("#link")).to_contain_text("not connected", timeout=10_000)
    expect(page.locator("#link")).to_contain_text("figures are of")
    expect(page.locator("body")).to_have_class("old")
    serving.call(serving.relay.go_on())
    expect(page.locator("#link")).to_have_text("live", timeout=20_000)
    expect(page.locator("body")).not_to_have_class("old")
    page.close()


def test_however_often_a_token_is_tried_the_page_looks_once(browser: Browser, serving: Serving) -> None:
    assert serving.router is not None
    page, looks = browser.new_page(), []
    page.on(
        "response", lambda answer: looks.append(answer.url) if answer.url.endswith("/events") and answer.ok else None
    )
    page.goto(serving.router.admin_url)
    for token in ("wr\u00f6ng \u2192", "wrong", TOKEN):
        page.get_by_label("Admin token").fill(token)
        page.get_by_role("button", name="Show").click()
    expect(page.locator("#link")).to_have_text("live", timeout=10_000)
    page.wait_for_timeout(3000)  # for whatever else would try again in two seconds
    assert len(looks) == 1
    page.close()


def test_what_did_not_change_is_not_read_out_again(browser: Browser, serving: Serving) -> None:
    page, _ = opened(browser, serving)
    page.evaluate(
        "window.said = 0; for (const each of document.querySelectorAll('[role=status]'))"
        " new MutationObserver(() => said++).observe(each, { childList: true, characterData: true, subtree: true });"
        " for (let times = 0; times < 5; times++) show(newest)"
    )
    assert page.evaluate("said") == 0
    page.close()
