"""Writes the parts of the reference pages that the code knows best: ``python -m docs.generate``.

A page may hold text of its own around the two marks; only what stands between them is written anew. tests/test_docs.py
fails where a page is not what would be written.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import aiohttp
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from router.app.serve import Running, running
from router.config.loading import load_config
from router.config.reference import Setting, sections, settings
from router.simulator import Fault, SimulatorSettings, start_fleet

DOCS = Path(__file__).resolve().parent
BEGIN, END = "<!-- generated: make no change here -->", "<!-- end of what is generated -->"
KEY = "wr-of-the-reference-pages"
KEYS = f"""
[tenants.t]
prompt_tokens_per_day = 1_000_000
summary_tokens_per_day = 1_000_000
[[keys]]
id = "k"
tenant = "t"
sha256 = "{sha256(KEY.encode()).hexdigest()}"
"""
HEADERS = {"Authorization": f"Bearer {KEY}"}
CHAT = {"model": "sim", "stream": True, "max_tokens": 8, "messages": [{"role": "user", "content": "hello"}]}


async def describe_metrics() -> str:
    """A table of what a router exports that has streamed, failed and ejected a worker, so that every label is there."""
    fleet_settings = SimulatorSettings(workers=2, base_port=0, time_scale=1000)
    flags: dict[str, Any] = {"server.port": 0, "admin.port": 0, "load.poll_interval_s": 0.05}
    with TemporaryDirectory() as state_dir:
        keys_file = Path(state_dir, "keys.toml")
        keys_file.write_text(KEYS)  # noqa: ASYNC240  # nobody waits here
        flags |= {"auth.keys_file": str(keys_file), "auth.salt_secret": "s" * 16, "admission.no_worker_wait_s": 0}
        flags["sessions.state_dir"] = state_dir
        text = await _scrape(fleet_settings, flags)
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for family in text_string_to_metric_families(text):
        if not family.name.startswith("warmroute_"):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        shown = ", ".join(f"`{label}`" for label in labels)
        rows.append(f"| `{name}` | {family.type} | {shown} | {family.documentation} |")
    return "\n".join(rows)


async def _scrape(fleet_settings: SimulatorSettings, flags: dict[str, Any]) -> str:
    async with await start_fleet(fleet_settings) as fleet:
        flags["fleet.workers"] = fleet.urls
        async with running(load_config(None, {}, flags)) as router, aiohttp.ClientSession(headers=HEADERS) as session:
            await _ask(session, router)
            for worker in range(fleet_settings.workers):
                fleet.set_fault(worker, Fault.CUT)
            await _ask(session, router)
            async with session.get(f"{router.admin_url}/metrics") as answer:
                return await answer.text()


async def _ask(session: aiohttp.ClientSession, router: Running) -> None:
    async with session.post(f"{router.url}/v1/chat/completions", json=CHAT) as answer:
        await answer.read()


FIRST = (
    *("fleet.workers", "fleet.workers_kubernetes", "fleet.worker_key", "server.host", "server.port", "server.tls_cert"),
    *("auth.keys_file", "auth.salt_secret", "admin.token", "policy.name", "admission.max_worker_requests"),
    *("limits.max_held_bytes", "sessions.store", "sessions.secret", "context.strategy"),
)
"""The settings that most installations look at, in the order in which one meets them."""


async def describe_settings() -> str:
    """The settings that matter most, then a table for each section of the configuration."""
    by_key = {setting.key: setting for setting in settings()}
    parts = ["## The settings that matter most", "", *_table(by_key[key] for key in FIRST), ""]
    for section, kind in sections():
        own = (setting for key, setting in by_key.items() if key.rpartition(".")[0] == section)
        parts += [f"## {section}", "", str(kind.__doc__), "", *_table(own), ""]
    return "\n".join(parts).rstrip()


def _table(rows: Iterable[Setting]) -> Iterator[str]:
    yield from ("| key | type and bound | default | meaning |", "|---|---|---|---|")
    for each in rows:
        rule = f"{each.type} {each.bound}".strip()
        yield f"| `{each.key}` | {rule} | {_as_toml(each.default)} | {each.description} |"


def _as_toml(value: object) -> str:
    return f"`{json.dumps(value)}`"


PAGES: Mapping[str, Callable[[], Awaitable[str]]] = MappingProxyType(
    {"configuration.md": describe_settings, "metrics.md": describe_metrics}
)


async def render(page: str) -> str:
    """The whole page as it should be. Raises ValueError where it lacks its marks."""
    before, begin, rest = (DOCS / page).read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"docs/{page} lacks the marks of what is generated")
    return f"{before}{BEGIN}\n\n{await PAGES[page]()}\n\n{END}{after}"


async def _write_all() -> None:
    for page in PAGES:
        text = await render(page)
        (DOCS / page).write_text(text, "utf-8")


if __name__ == "__main__":
    uvloop.run(_write_all())
