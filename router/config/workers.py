"""Workers: where they are found, how they are reached and probed, how long they may take."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from router.config.section import SECRET, Section


class FleetConfig(Section, frozen=True):
    """Which workers there are, and how the router reaches them."""

    workers: Annotated[list[str], Meta(description="URLs of workers, each an origin such as http://HOST:8000.")] = []
    workers_file: Annotated[
        str, Meta(description="File with one worker URL per line, or the line none. It is read again when it changes.")
    ] = ""
    workers_dns: Annotated[
        str, Meta(description="NAME:PORT that is resolved every fleet.discovery_interval_s; every address is a worker.")
    ] = ""
    workers_kubernetes: Annotated[
        str,
        Meta(
            description="NAMESPACE/SERVICE[:PORT] whose pods are the workers. PORT is a port's name or number; by default "
            "the only port, or the port named http. Needs the extra kubernetes."
        ),
    ] = ""
    kubeconfig: Annotated[
        str, Meta(description="File that says how to reach Kubernetes; empty: use the pod's service account.")
    ] = ""
    discovery_interval_s: Annotated[
        float, Meta(gt=0, le=3600, description="Seconds between two reads of fleet.workers_file and fleet.workers_dns.")
    ] = 2.0
    simulate: Annotated[int, Meta(ge=0, le=64, description="Simulated workers to start inside this process.")] = 0
    models: Annotated[
        list[str],
        Meta(
            description="Models that exist even while no worker serves them, as when a fleet is scaled to zero. A request "
            "for such a model waits and then gets a 503 instead of a 404."
        ),
    ] = []
    worker_key: Annotated[
        str, Meta(description="Key that workers require; the router sends it as their Bearer token.", extra=SECRET)
    ] = ""
    ca_file: Annotated[
        str, Meta(description="PEM file of certificate authorities for https workers; empty: the system's.")
    ] = ""
    client_cert: Annotated[
        str, Meta(description="PEM certificate chain that the router shows to https workers; empty: none.")
    ] = ""
    client_key: Annotated[str, Meta(description="PEM private key of fleet.client_cert.")] = ""
    max_idle_connections: Annotated[
        int, Meta(ge=0, le=100_000, description="Most idle connections kept to each worker.")
    ] = 256
    idle_s: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="Seconds for which an idle connection to a worker is reused; keep it below the worker's own "
            "keep-alive.",
        ),
    ] = 4.0


class ProbesConfig(Section, frozen=True):
    """How ill workers are found, and how long they are kept out."""

    interval_s: Annotated[
        float, Meta(gt=0, le=3600, description="Seconds between two health probes of a healthy worker.")
    ] = 2.0
    timeout_s: Annotated[
        float, Meta(gt=0, le=600, description="Seconds in which a worker must answer a health probe.")
    ] = 2.0
    failures: Annotated[
        int, Meta(ge=1, le=100, description="Failed probes, or answers with status 500, in a row that eject a worker.")
    ] = 3
    ejection_s: Annotated[
        float,
        Meta(gt=0, le=3600, description="Seconds of a worker's first ejection; each further one lasts twice as long."),
    ] = 1.0
    max_ejection_s: Annotated[float, Meta(gt=0, le=86400, description="Longest ejection of a worker, in seconds.")] = (
        60.0
    )
    slow_start_s: Annotated[
        float,
        Meta(
            ge=0, le=3600, description="Seconds in which a worker that returns gets its full share of requests again."
        ),
    ] = 10.0


class LoadConfig(Section, frozen=True):
    """How workers' load is read."""

    poll_interval_s: Annotated[
        float, Meta(gt=0, le=60, description="Seconds between two reads of a worker's /metrics.")
    ] = 0.25


class TimeoutsConfig(Section, frozen=True):
    """How long a worker may take."""

    connect_s: Annotated[
        float, Meta(gt=0, le=600, description="Seconds in which a connection to a worker must open.")
    ] = 2.0
    first_event_s: Annotated[
        float,
        Meta(
            gt=0,
            le=86400,
            description="Most seconds to the first event of a stream, if the worker's load figures show no work.",
        ),
    ] = 300.0
    min_first_event_s: Annotated[
        float,
        Meta(
            gt=0,
            le=86400,
            description="Least deadline for the first event of a stream. Ten times the expected prefill time is added to "
            "it.",
        ),
    ] = 30.0
    event_gap_s: Annotated[
        float,
        Meta(
            gt=0,
            le=86400,
            description="Most seconds between two events of a stream, if the worker's load figures show no work.",
        ),
    ] = 60.0
    answer_s: Annotated[
        float, Meta(gt=0, le=86400, description="Seconds in which an answer that is not streamed must be complete.")
    ] = 1800.0
    silence_s: Annotated[
        float,
        Meta(
            gt=0,
            le=86400,
            description="Most seconds of silence beyond the other deadlines, if the worker's load figures show that it is "
            "at work.",
        ),
    ] = 600.0
    max_reply_bytes: Annotated[
        int, Meta(ge=1024, le=1 << 30, description="Largest answer that is not streamed, in bytes.")
    ] = 64 << 20
    max_event_bytes: Annotated[
        int,
        Meta(
            ge=1024,
            le=1 << 28,
            description="Largest event of a stream, in bytes. The first event may hold the prompt's token ids.",
        ),
    ] = 8 << 20
