"""The policies by name. A policy ranks workers; the fleet decides which of them may be tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct, convert

from router.policies.base import NoParameters, Policy
from router.policies.cache_aware import CacheAware, CacheAwareParameters
from router.policies.least_loaded import LeastLoaded
from router.policies.power_of_two import PowerOfTwo
from router.policies.prefix_ring import PrefixRing, PrefixRingParameters
from router.policies.round_robin import RoundRobin
from router.policies.session_affinity import SessionAffinity
from router.policies.uniform import Uniform

if TYPE_CHECKING:
    from random import Random


class PolicyKind(NamedTuple):
    make: Callable[[Any, Random], Policy]
    """From its parameters, and a generator for those that draw lots."""
    parameters: type[Struct] = NoParameters
    """Each field is a setting of the ``policy`` section: type, default, bounds and description."""


POLICIES: Mapping[str, PolicyKind] = MappingProxyType(
    {
        "cache_aware": PolicyKind(lambda parameters, _: CacheAware(parameters), CacheAwareParameters),
        "prefix_ring": PolicyKind(lambda parameters, _: PrefixRing(parameters), PrefixRingParameters),
        "session_affinity": PolicyKind(lambda *_: SessionAffinity()),
        "power_of_two": PolicyKind(lambda _, random: PowerOfTwo(random)),
        "least_loaded": PolicyKind(lambda _, random: LeastLoaded(random)),
        "round_robin": PolicyKind(lambda *_: RoundRobin()),
        "random": PolicyKind(lambda _, random: Uniform(random)),
    }
)


def make_policy(name: str, section: object, random: Random) -> Policy:
    """``section``: an object or mapping with the parameters; what it lacks has its default, and the rest is ignored.
    Raises msgspec.ValidationError."""
    kind = POLICIES[name]
    return kind.make(convert(section, kind.parameters, from_attributes=True), random)
