"""What a policy is: facts in, a ranking out. Pure and synchronous; health, retries and leases are not its question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from msgspec import Struct

from router.core.fleet.facts import Facts


class NoParameters(Struct):
    """For a policy that has none."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Every eligible position once, best first, and why the first is first."""

    order: Sequence[int]
    reason: str
    """One of the policy's ``reasons``: a label of the decision counter."""


class Policy(Protocol):
    name: str
    reasons: frozenset[str]
    """Every reason that ``rank`` can give, so that metric labels are a closed set."""

    def rank(self, facts: Facts) -> Ranking:
        """Order ``facts.eligible``: a permutation of it, nothing dropped and nothing added."""
        ...
