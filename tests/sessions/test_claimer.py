"""What follows from a store's answer that does not give the claim."""

from __future__ import annotations

import pytest

from router.sessions.claimer import GoElsewhere, Outcome, Wait, outcome_of
from router.sessions.stores.contract import Busy, Repeated

ENDED = Repeated(turn=2, has_ended=True, record=b"")
UNDER_WAY = Repeated(turn=2, has_ended=False, record=b"")


@pytest.mark.parametrize(
    ("answer", "may_fork", "outcome"),
    [
        (ENDED, False, ENDED),
        (ENDED, True, ENDED),
        (UNDER_WAY, False, Wait(1)),
        (UNDER_WAY, True, Wait(1)),
        (Busy(3), False, Wait(3)),
        (Busy(3), True, GoElsewhere(is_busy=True)),
        (Busy(0), False, Wait(0)),
    ],
    ids=str,
)
def test_a_turn_without_the_claim_repeats_forks_or_waits(
    answer: Busy | Repeated, may_fork: bool, outcome: Outcome
) -> None:
    assert outcome_of(answer, may_fork=may_fork) == outcome
