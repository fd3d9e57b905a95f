"""The reference pages say what the code does, and nothing else."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

import pytest
import uvloop

from docs.generate import DOCS, PAGES, render


@pytest.mark.parametrize("page", sorted(PAGES))
def test_the_page_is_what_would_be_generated(page: str) -> None:
    written = (DOCS / page).read_text("utf-8")
    assert written == uvloop.run(render(page)), f"docs/{page} is not current: python -m docs.generate"


ROOT = DOCS.parent
WRITTEN = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "bench" / "README.md"]
_LINK = re.compile(r"(?:\]\(|srcset=\"|src=\")(?!https?://)([^)\s\"#]*)(?:#([^)\s\"]*))?")


def anchors(page: Path) -> set[str]:
    """Of its headings, as they are made where pages are shown."""
    titles = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in _LINK.findall(page.read_text("utf-8")):
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {path}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {path}#{anchor}"


def test_the_architecture_is_read_in_one_sitting_and_shows_the_import_order() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    assert len(text.encode()) <= 14_000
    contract = ConfigParser()
    contract.read(ROOT / ".importlinter")
    layers = contract["importlinter:contract:layers"]["layers"].split("\n")
    ordered = [re.split(r"\s*[|:]\s*", layer.strip()) for layer in layers if layer.strip() not in ("", "__main__")]
    picture = text.split("```")[1].split("▼")
    shown = [re.split(r" │ ", re.split(r"\s{2,}", layer.strip())[0]) for layer in picture]
    assert shown == ordered


def test_decisions_are_numbered_once_and_listed() -> None:
    pages = sorted((DOCS / "decisions").glob("[0-9]*.md"))
    index = (DOCS / "decisions" / "README.md").read_text("utf-8")
    for number, page in enumerate(pages, 1):
        title = page.read_text("utf-8").splitlines()[0].removeprefix("# ")
        assert page.name.startswith(f"{number:04d}-")
        assert title.startswith(f"{number}. ")
        assert f"- [{title}]({page.name})" in index
    assert index.count("\n- [") == len(pages)


def test_settings_and_metrics_that_pages_name_exist() -> None:
    keys = set(re.findall(r"(?m)^\| `(\w+\.\w+)` \|", (DOCS / "configuration.md").read_text("utf-8")))
    tables = {key.partition(".")[0] for key in keys} - {"server"}  # OpenTelemetry has attributes of that name
    metrics = set(re.findall(r"`(warmroute_\w+)`", (DOCS / "metrics.md").read_text("utf-8")))
    for page in WRITTEN:
        if page.name == "CHANGELOG.md":  # which also names what is gone
            continue
        text = page.read_text("utf-8")
        named = {
            f"{table}.{key}"
            for table, key in re.findall(r"`(\w+)\.(?!(?:db|json|py|md)`)(\w+)`", text)
            if table in tables
        }
        assert named <= keys, page.name
        assert set(re.findall(r"`(warmroute_[a-z_]+)`", text)) - {"warmroute_recall_1"} <= metrics, page.name
