"""The reference pages say what the code does, and nothing else."""

from __future__ import annotations

import pytest
import uvloop

from docs.generate import DOCS, PAGES, render


@pytest.mark.parametrize("page", sorted(PAGES))
def test_the_page_is_what_would_be_generated(page: str) -> None:
    written = (DOCS / page).read_text("utf-8")
    assert written == uvloop.run(render(page)), f"docs/{page} is not current: python -m docs.generate"
