"""The interface of a policy: it takes facts and returns a ranking. Pure and synchronous. Health, retries and leases are decided
elsewhere."""

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
    """Every eligible position once, best first, and the reason for the first."""

    order: Sequence[int]
    reason: str
    """One of the policy's ``reasons``: a label of the decision counter."""


class Policy(Protocol):
    name: str
    reasons: frozenset[str]
    """All reasons that ``rank`` gives, so that metric labels are a closed set."""

    def rank(self, facts: Facts) -> Ranking:
        """Returns a permutation of ``facts.eligible``: it never drops or adds a worker."""
        ...
