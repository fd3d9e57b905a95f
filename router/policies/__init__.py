"""The policies by name. A policy ranks; whether a worker may be tried at all is the fleet's question."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from router.policies.base import Policy
from router.policies.cache_aware import CacheAware
from router.policies.least_loaded import LeastLoaded
from router.policies.power_of_two import PowerOfTwo
from router.policies.prefix_ring import PrefixRing
from router.policies.round_robin import RoundRobin
from router.policies.session_affinity import SessionAffinity
from router.policies.uniform import Uniform

if TYPE_CHECKING:
    from random import Random


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """What the policies can be told; each reads its own. The meaning is in the policy's docstring."""

    ring_bound: float = 1.25
    miss_weight: float = 6.0
    prior: tuple[float, float] = (0.9, 0.3)
    leave_weight: float = 0.3
    alone: bool = False


def _cache_aware(settings: PolicySettings, _random: Random) -> Policy:
    return CacheAware(
        miss_weight=settings.miss_weight,
        prior=settings.prior,
        leave_weight=settings.leave_weight,
        alone=settings.alone,
    )


POLICIES: Mapping[str, Callable[[PolicySettings, Random], Policy]] = MappingProxyType(
    {
        "cache_aware": _cache_aware,
        "prefix_ring": lambda settings, _random: PrefixRing(settings.ring_bound),
        "session_affinity": lambda _settings, _random: SessionAffinity(),
        "power_of_two": lambda _settings, random: PowerOfTwo(random),
        "least_loaded": lambda _settings, random: LeastLoaded(random),
        "round_robin": lambda _settings, _random: RoundRobin(),
        "random": lambda _settings, random: Uniform(random),
    }
)
