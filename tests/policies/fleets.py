"""Facts for tests, with what a test does not name left quiet: no load, equal rates, nothing cached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from router import policies
from router.core.fleet.facts import Facts
from router.core.fleet.figures import Figures
from router.core.fleet.ring import Ring
from router.core.index.prefix_index import Matches
from router.core.worker import WorkerName
from router.policies.base import Policy


def make_facts(
    workers: int = 4,
    *,
    eligible: Sequence[int] | None = None,
    in_flight: Mapping[int, int] | None = None,
    foreign: Mapping[int, int] | None = None,
    queued: Mapping[int, float] | None = None,
    foreign_queued: Mapping[int, float] | None = None,
    seconds: Mapping[int, float] | None = None,
    slowdown: Mapping[int, float] | None = None,
    prompt: float = 4000.0,
    earlier: float = 0.0,
    anchor: int = 0,
    matches: Sequence[tuple[int, float, int]] = (),
    session: int | None = None,
    on_ring: Sequence[int] | None = None,
) -> Facts:
    positions = range(workers)
    names = [WorkerName(f"w-{position}") for position in positions]
    view = Figures(
        names,
        [(in_flight or {}).get(position, 0) for position in positions],
        [(foreign or {}).get(position, 0) for position in positions],
        [(queued or {}).get(position, 0.0) for position in positions],
        [(foreign_queued or {}).get(position, 0.0) for position in positions],
        [(seconds or {}).get(position, 1e-4) for position in positions],
        [(slowdown or {}).get(position, 1.0) for position in positions],
    )
    return Facts(
        fleet=view,
        eligible=list(positions) if eligible is None else eligible,
        prompt_tokens=prompt,
        earlier_tokens=earlier,
        anchor=anchor,
        ring=Ring({names[position]: position for position in (positions if on_ring is None else on_ring)}),
        matches=Matches(list(matches)),
        session_worker=session,
    )


def make_policy(name: str, seed: int = 1, **parameters: object) -> Policy:
    return policies.make_policy(name, parameters, Random(seed))


def walk(facts: Facts) -> list[int]:
    return list(facts.ring.walk(facts.anchor))
