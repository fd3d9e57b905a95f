"""Workers: where they are found, how they are reached and probed, how long they may take."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from router.config.section import SECRET, Section


class FleetConfig(Section, frozen=True):
    """Which workers there are, and how they are reached."""

    workers: Annotated[list[str], Meta(description="URLs of workers, each an origin.")] = []
    workers_file: Annotated[
        str, Meta(description="File with one worker URL a line, or 'none', read again and again.")
    ] = ""
    workers_dns: Annotated[str, Meta(description="NAME:PORT, resolved again and again; every address is a worker.")] = (
        ""
    )
    workers_kubernetes: Annotated[
        str,
        Meta(
            description="NAMESPACE/SERVICE[:PORT], whose pods are the workers; PORT is a port's name or number, by default the "
            "only one or http. Needs the extra kubernetes."
        ),
    ] = ""
    kubeconfig: Annotated[
        str, Meta(description="File that says how to reach Kubernetes; empty: as a pod of the cluster does.")
    ] = ""
    discovery_interval_s: Annotated[
        float, Meta(gt=0, le=3600, description="Seconds between looks at file and DNS.")
    ] = 2.0
    simulate: Annotated[int, Meta(ge=0, le=64, description="Simulated workers to start inside this process.")] = 0
    models: Annotated[
        list[str],
        Meta(
            description="Models that exist even while no worker serves them, as with a fleet that is scaled to zero: a request "
            "for one waits, and is then answered 503 instead of 404."
        ),
    ] = []
    worker_key: Annotated[
        str, Meta(description="Key that workers ask for; sent as their Bearer token.", extra=SECRET)
    ] = ""
    ca_file: Annotated[str, Meta(description="PEM file of authorities for https workers; empty: the system's.")] = ""
    client_cert: Annotated[
        str, Meta(description="PEM certificate chain that the router shows to https workers; empty: none.")
    ] = ""
    client_key: Annotated[str, Meta(description="PEM private key that belongs to client_cert.")] = ""
    max_idle_connections: Annotated[
        int, Meta(ge=0, le=100_000, description="Idle connections kept for each worker.")
    ] = 256
    idle_s: Annotated[
        float, Meta(gt=0, le=3600, description="Seconds an idle connection is reused; keep it below the worker's own.")
    ] = 4.0


class ProbesConfig(Section, frozen=True):
    """How illness is found, and how long it keeps a worker out."""

    interval_s: Annotated[float, Meta(gt=0, le=3600, description="Seconds between probes of a healthy worker.")] = 2.0
    timeout_s: Annotated[float, Meta(gt=0, le=600, description="Seconds that a probe may take.")] = 2.0
    failures: Annotated[int, Meta(ge=1, le=100, description="Failed probes, or answers of 500, that eject.")] = 3
    ejection_s: Annotated[
        float, Meta(gt=0, le=3600, description="First ejection; each further one is twice as long.")
    ] = 1.0
    max_ejection_s: Annotated[float, Meta(gt=0, le=86400, description="Longest ejection.")] = 60.0
    slow_start_s: Annotated[
        float, Meta(ge=0, le=3600, description="Seconds in which a returned worker regains its share.")
    ] = 10.0


class LoadConfig(Section, frozen=True):
    """What workers say of their load."""

    poll_interval_s: Annotated[
        float, Meta(gt=0, le=60, description="Seconds between reads of a worker's /metrics.")
    ] = 0.25
    timeout_s: Annotated[float, Meta(gt=0, le=60, description="Seconds that such a read may take.")] = 2.0
    stale_s: Annotated[float, Meta(gt=0, le=3600, description="Age after which polled load is not believed.")] = 5.0


class TimeoutsConfig(Section, frozen=True):
    """How long a worker may keep us waiting."""

    connect_s: Annotated[float, Meta(gt=0, le=600, description="Seconds to connect.")] = 2.0
    first_event_s: Annotated[
        float,
        Meta(gt=0, le=86400, description="Most seconds to a stream's first event of a worker that shows no work."),
    ] = 300.0
    min_first_event_s: Annotated[
        float,
        Meta(
            gt=0,
            le=86400,
            description="Least of such a deadline; to it come ten times the seconds that the prefill is expected to take.",
        ),
    ] = 30.0
    event_gap_s: Annotated[
        float,
        Meta(gt=0, le=86400, description="Seconds between two events of a stream of a worker that shows no work."),
    ] = 60.0
    answer_s: Annotated[float, Meta(gt=0, le=86400, description="Seconds to a whole answer that is not streamed.")] = (
        1800.0
    )
    silence_s: Annotated[
        float,
        Meta(
            gt=0,
            le=86400,
            description="Most seconds of silence, past these deadlines, of a worker whose load shows that it is at work.",
        ),
    ] = 600.0
    max_reply_bytes: Annotated[
        int, Meta(ge=1024, le=1 << 30, description="Largest reply that is held until it is whole.")
    ] = 64 << 20
    max_event_bytes: Annotated[
        int,
        Meta(ge=1024, le=1 << 28, description="Largest event of a stream; its first may hold the prompt's token ids."),
    ] = 8 << 20
