"""How requests are routed, retried, resumed and admitted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, get_type_hints

import msgspec
from msgspec import Meta

from router.config.section import Section
from router.policies import POLICIES

if TYPE_CHECKING:
    PolicyName = str
else:
    PolicyName = Literal[tuple(POLICIES)]


class PolicyConfig(Section, frozen=True):
    """How workers are ranked."""

    name: Annotated[PolicyName, Meta(description="Policy that ranks the workers for each request.")] = "cache_aware"
    initial_prefill_rate: Annotated[
        float,
        Meta(
            ge=10,
            le=10_000_000,
            description="Prefill rate, in tokens per second, that is assumed of a worker before the router has learnt it.",
        ),
    ] = 10_000.0
    initial_bytes_per_token: Annotated[
        float,
        Meta(ge=0.5, le=64, description="Prompt bytes per token that are assumed before a worker has reported usage."),
    ] = 4.0
    seed: Annotated[int, Meta(description="Seed of the policies that choose at random.")] = 0


if not TYPE_CHECKING:  # each policy declares its own parameters, which stand in the same section
    PolicyConfig = msgspec.defstruct(
        "PolicyConfig",
        [
            (field.name, get_type_hints(kind.parameters, include_extras=True)[field.name], field.default)
            for kind in POLICIES.values()
            for field in msgspec.structs.fields(kind.parameters)
        ],
        bases=(PolicyConfig,),
        namespace={"__doc__": PolicyConfig.__doc__},
        frozen=True,
        kw_only=True,
    )


class IndexConfig(Section, frozen=True):
    """Bounds of what the router remembers of prefixes and sessions."""

    max_blocks: Annotated[
        int,
        Meta(
            ge=1024,
            le=1 << 28,
            description="Blocks of 1,024 bytes that the prefix index remembers for all workers together.",
        ),
    ] = 4_000_000
    default_worker_tokens: Annotated[
        int,
        Meta(
            ge=1,
            le=1 << 40,
            description="Cache size in tokens that is assumed of a worker that reports none, until the router has learnt "
            "it.",
        ),
    ] = 500_000
    max_sessions: Annotated[int, Meta(ge=1, le=1 << 26, description="Sessions whose last worker is remembered.")] = (
        200_000
    )


class RetriesConfig(Section, frozen=True):
    """How often a request is tried again when workers fail it before its first byte."""

    max_attempts: Annotated[int, Meta(ge=1, le=100, description="Most workers that one request is sent to.")] = 5
    max_deaths: Annotated[
        int,
        Meta(
            ge=1,
            le=100,
            description="Workers that may die under one request, resumptions included, before the request is given up. A "
            "stream that made progress since the last death counts anew.",
        ),
    ] = 3
    budget_ratio: Annotated[
        float, Meta(ge=0, le=1, description="Retries after answered errors and timeouts, as a share of all requests.")
    ] = 0.2
    min_budget: Annotated[
        int,
        Meta(ge=0, le=1000, description="Retries in ten seconds that are allowed in addition to retries.budget_ratio."),
    ] = 3


class ResumptionConfig(Section, frozen=True):
    """How a stream continues when its worker breaks it after the first event."""

    max_attempts: Annotated[
        int,
        Meta(
            ge=0,
            le=100,
            description="Most workers that are asked to continue a broken stream; 0: streams are not resumed.",
        ),
    ] = 5
    wait_s: Annotated[
        float, Meta(ge=0, le=600, description="Seconds for which a broken stream waits while no worker is up.")
    ] = 10.0
    max_total_kept_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 40,
            description="Most bytes kept of all streams together for their resumption; streams beyond it are not resumed.",
        ),
    ] = 512 << 20


class AdmissionConfig(Section, frozen=True):
    """Which requests may start, and how long others wait."""

    max_worker_requests: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description="Requests that a worker may have, those of other routers included, before further ones wait in the "
            "router; 0: no limit.",
        ),
    ] = 256
    max_worker_prefill_tokens: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 40,
            description="Uncached prompt tokens that may wait on a worker for their first token before further requests "
            "wait in the router; 0: no limit.",
        ),
    ] = 0
    max_queued: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description="Most requests that may wait. When more come, the newest request of the tenant with the longest "
            "queue is refused.",
        ),
    ] = 1000
    max_queued_bytes: Annotated[
        int, Meta(ge=0, le=1 << 40, description="Most bytes of the bodies of waiting requests.")
    ] = 256 << 20
    max_wait_s: Annotated[
        float, Meta(ge=0, le=3600, description="Most seconds for which a request waits for room.")
    ] = 10.0
    no_worker_wait_s: Annotated[
        float,
        Meta(ge=0, le=3600, description="Most seconds for which a request waits while no worker of its model is up."),
    ] = 5.0
    warm_wait_s: Annotated[
        float,
        Meta(
            ge=0,
            le=60,
            description="Most seconds for which a request waits for the best-ranked worker while others have room. It never "
            "waits longer than that worker's cache saves.",
        ),
    ] = 0.25
