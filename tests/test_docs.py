"""The reference pages say what the code does, and nothing else."""

from __future__ import annotations

import re
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


def test_decisions_are_numbered_once_and_listed() -> None:
    pages = sorted((DOCS / "decisions").glob("[0-9]*.md"))
    index = (DOCS / "decisions" / "README.md").read_text("utf-8")
    for number, page in enumerate(pages, 1):
        title = page.read_text("utf-8").splitlines()[0].removeprefix("# ")
        assert page.name.startswith(f"{number:04d}-")
        assert title.startswith(f"{number}. ")
        assert f"- [{title}]({page.name})" in index
    assert index.count("\n- [") == len(pages)
