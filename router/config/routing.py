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

    name: Annotated[PolicyName, Meta(description="The policy.")] = "cache_aware"
    initial_prefill_rate: Annotated[
        float,
        Meta(ge=10, le=10_000_000, description="Tokens per second that a worker is believed to prefill at first."),
    ] = 10_000.0
    initial_bytes_per_token: Annotated[
        float, Meta(ge=0.5, le=64, description="Prompt bytes per token before a worker reported usage.")
    ] = 4.0
    seed: Annotated[int, Meta(description="Seed of the policies that draw lots.")] = 0


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
    """What the router remembers of prefixes."""

    max_blocks: Annotated[
        int, Meta(ge=1024, le=1 << 28, description="Blocks of 1,024 bytes remembered over all workers.")
    ] = 4_000_000
    default_worker_tokens: Annotated[
        int,
        Meta(ge=1, le=1 << 40, description="Cache size of a worker that reports none, in tokens, until it is learnt."),
    ] = 500_000
    max_sessions: Annotated[int, Meta(ge=1, le=1 << 26, description="Sessions whose last worker is remembered.")] = (
        200_000
    )


class RetriesConfig(Section, frozen=True):
    """How far a request is carried when workers fail it before its first byte."""

    max_attempts: Annotated[int, Meta(ge=1, le=100, description="Workers that one request is sent to at the most.")] = 5
    max_deaths: Annotated[
        int,
        Meta(
            ge=1,
            le=100,
            description="Workers that may die under one request, resumptions included, before it is given up; a stream that "
            "made progress since the last counts anew.",
        ),
    ] = 3
    budget_ratio: Annotated[
        float, Meta(ge=0, le=1, description="Retries of answered errors and time-outs, as a share of all requests.")
    ] = 0.2
    min_budget: Annotated[
        int, Meta(ge=0, le=1000, description="Such retries that are allowed besides, in ten seconds.")
    ] = 3


class ResumptionConfig(Section, frozen=True):
    """How a stream goes on when its worker breaks it after the first event."""

    max_attempts: Annotated[
        int, Meta(ge=0, le=100, description="Workers that are asked to go on with one request's stream; 0: none is.")
    ] = 5
    wait_s: Annotated[
        float, Meta(ge=0, le=600, description="Seconds that a broken stream waits while no worker is up.")
    ] = 10.0
    max_kept_bytes: Annotated[
        int,
        Meta(ge=1 << 16, le=1 << 30, description="What is kept of one stream beyond its newest 64 KiB, ids and text."),
    ] = 4 << 20
    max_total_kept_bytes: Annotated[
        int, Meta(ge=0, le=1 << 40, description="The same of all streams together; those beyond are not resumed.")
    ] = 512 << 20


class AdmissionConfig(Section, frozen=True):
    """Who may start, and how long others wait for it."""

    max_worker_requests: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description="Requests that a worker may have, others' included, before further ones wait in the router; "
            "0: any number.",
        ),
    ] = 256
    max_worker_prefill_tokens: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 40,
            description="Uncached prompt tokens that may wait on a worker for their first token before further requests wait "
            "in the router; 0: any number.",
        ),
    ] = 0
    max_queued: Annotated[
        int, Meta(ge=0, le=1_000_000, description="Requests that may wait; beyond, the longest tenant's newest goes.")
    ] = 1000
    max_queued_bytes: Annotated[int, Meta(ge=0, le=1 << 40, description="Bodies of those together, in bytes.")] = (
        256 << 20
    )
    max_wait_s: Annotated[float, Meta(ge=0, le=3600, description="Most seconds that a request waits for room.")] = 10.0
    no_worker_wait_s: Annotated[
        float, Meta(ge=0, le=3600, description="Most seconds that it waits while no worker of its model is up.")
    ] = 5.0
    warm_wait_s: Annotated[
        float,
        Meta(
            ge=0,
            le=60,
            description="Most seconds that it waits for the ranking's first worker to have room while others have, and "
            "never more than that worker's cache saves.",
        ),
    ] = 0.25
