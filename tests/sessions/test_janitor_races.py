"""Janitors that are slow, die, write nonsense and meet each other, while turns go on: no item is lost, no turn waits, and
nothing is told of twice. Over every store, through two replicas that have nothing but the store in common."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.sessions.contract import STORES
from tests.sessions.site import Site, opened, results
from tests.sessions.upkeep import FakeWriter


@pytest.fixture(params=STORES)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    url = request.getfixturevalue("redis_server").url if request.param == "redis" else ""
    async with opened(request.param, tmp_path, url) as site:
        yield site


async def test_a_janitor_that_comes_when_another_has_cut_leaves_the_history_alone(site: Site) -> None:
    one, two = (site.replica(which, FakeWriter()) for which in range(2))
    await site.pile_up(two, 5)
    chore = await site.pile_up(one, 1)
    await one.turns.upkeep.janitor.do(chore)
    before = await site.require_whole(6)
    await two.turns.upkeep.janitor.do(chore)
    assert results(two) == {"nothing": 1}
    assert (await site.require_whole(6)).view == before.view
