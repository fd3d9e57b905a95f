"""What clients and operators meet: ports, keys, limits, logs, traces."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from router.config.section import SECRET, Section

ANY_ORIGIN = "*"
"""Of ``server.cors_origins``: pages of every origin may read answers."""


class ServerConfig(Section, frozen=True):
    """What clients meet."""

    host: Annotated[str, Meta(min_length=1, description="Address that the data port listens on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Data port; 0 takes any free one.")] = 8080
    tls_cert: Annotated[str, Meta(description="PEM certificate chain of the data port; empty: no TLS.")] = ""
    tls_key: Annotated[str, Meta(description="PEM private key that belongs to tls_cert.")] = ""
    tls_reload_s: Annotated[
        float, Meta(ge=0.05, le=3600, description="Seconds between looks whether these two files were renewed.")
    ] = 10.0
    cors_origins: Annotated[
        list[str],
        Meta(
            description="Origins that browsers may call from, SCHEME://HOST or SCHEME://HOST:PORT each; * stands for all; "
            "empty: CORS is off."
        ),
    ] = []
    allowed_hosts: Annotated[
        list[str], Meta(description="Host names that requests may carry, without a port; empty: any.")
    ] = []
    insecure_no_auth: Annotated[
        bool, Meta(description="Serve everybody who reaches the port. Not together with API keys.")
    ] = False
    decision_headers: Annotated[
        bool, Meta(description="Answer with x-warmroute-reason and x-warmroute-predicted-cached-tokens.")
    ] = False
    leave_s: Annotated[
        float,
        Meta(
            ge=0,
            le=600,
            description="Seconds after SIGTERM in which /ready fails and everybody is served still, so that whoever sends "
            "clients here notices first; SIGINT skips them.",
        ),
    ] = 5.0
    drain_s: Annotated[
        float, Meta(ge=0, le=3600, description="Seconds after those that live requests may take to end.")
    ] = 20.0


class AuthConfig(Section, frozen=True):
    """Who may ask, and whose cache entries are kept apart."""

    keys_file: Annotated[str, Meta(description="TOML file of tenants and API keys, read again and again.")] = ""
    keys: Annotated[
        list[str],
        Meta(
            description="API keys without a file: TENANT:SHA256 each, the key's digest in hexadecimal digits.",
            extra=SECRET,
        ),
    ] = []
    reload_s: Annotated[
        float, Meta(ge=0.05, le=3600, description="Seconds between looks at keys_file; SIGHUP is a look at once.")
    ] = 2.0
    max_keys: Annotated[int, Meta(ge=1, le=1_000_000, description="API keys that may be listed.")] = 100_000
    salt_secret: Annotated[
        str,
        Meta(
            description="Secret of at least 16 bytes that tenants' cache salts are made of; one for all replicas.",
            extra=SECRET,
        ),
    ] = ""
    salt_secret_file: Annotated[str, Meta(description="File that holds salt_secret instead.")] = ""

    @property
    def asks_for_keys(self) -> bool:
        return bool(self.keys_file or self.keys)


class AdminConfig(Section, frozen=True):
    """Metrics, workers and decisions: for the people who run it."""

    host: Annotated[str, Meta(min_length=1, description="Address that the admin port listens on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Admin port; 0 takes any free one.")] = 8081
    token: Annotated[
        str,
        Meta(
            description="Bearer token; required, with at least 16 bytes, when the admin host is not loopback.",
            extra=SECRET,
        ),
    ] = ""
    decisions: Annotated[int, Meta(ge=0, le=100_000, description="How many recent decisions /decisions remembers.")] = (
        200
    )
    max_viewers: Annotated[int, Meta(ge=0, le=1000, description="Who may look at the status page at once.")] = 16


class LimitsConfig(Section, frozen=True):
    """What a client may cost."""

    max_body_bytes: Annotated[int, Meta(ge=1024, le=1 << 30, description="Largest request body, in bytes.")] = 32 << 20
    max_header_bytes: Annotated[int, Meta(ge=512, le=1 << 20, description="Largest header field, in bytes.")] = 8190
    max_headers: Annotated[int, Meta(ge=8, le=1000, description="Most header fields of a request.")] = 64
    head_timeout_s: Annotated[
        float, Meta(gt=0, le=3600, description="Seconds for a request's head to arrive, and for TLS to begin.")
    ] = 8.5
    body_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="Most seconds that a body may pause, however fast it came before. min_body_bytes_per_s alone bounds "
            "how long all of it takes.",
        ),
    ] = 30.0
    body_grace_s: Annotated[
        float, Meta(gt=0, le=3600, description="First seconds of a body, in which it may come as slowly as it likes.")
    ] = 5.0
    min_body_bytes_per_s: Annotated[
        float, Meta(gt=0, le=1 << 30, description="Slowest pace of a body after those, in bytes per second.")
    ] = 1024.0
    max_connections: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Clients' connections on one port; the newest beyond are closed.")
    ] = 12_000
    keepalive_s: Annotated[float, Meta(gt=0, le=3600, description="Seconds that an idle client connection stays.")] = (
        75.0
    )
    write_stall_s: Annotated[
        float,
        Meta(gt=0, le=3600, description="Seconds in which a client must read some of what waits for it, or is cut."),
    ] = 30.0
    min_drain_bytes_per_s: Annotated[
        float,
        Meta(
            ge=0,
            le=1 << 30,
            description="Slowest that a client may read what waits for it, over write_stall_s, in bytes.",
        ),
    ] = 512.0
    max_key_connections: Annotated[
        int,
        Meta(ge=0, le=1_000_000, description="Clients' connections that show the same API key; 0: any number."),
    ] = 256
    max_held_bytes: Annotated[
        int,
        Meta(
            ge=1024,
            le=1 << 40,
            description="Memory for what is held of clients' requests and answers together: bodies while they come, decoded "
            "values, whole answers, and what clients have not read. Requests beyond are refused. A tenant gets as much as is "
            "still free, so one that is alone gets half: set twice what your largest tenant needs. Without keys there are no "
            "tenants, and all clients share the whole.",
        ),
    ] = 512 << 20
    max_head_bytes: Annotated[
        int, Meta(ge=1024, le=1 << 20, description="Largest head of a request, all fields together, in bytes.")
    ] = 32 << 10
    max_total_head_bytes: Annotated[
        int,
        Meta(ge=1024, le=1 << 32, description="Heads that are not whole yet, of all connections together, in bytes."),
    ] = 16 << 20
    max_parsing_bodies: Annotated[
        int,
        Meta(
            ge=1, le=64, description="Processes that read costly bodies, begun when needed; other bodies wait in turn."
        ),
    ] = 3
    max_json_depth: Annotated[int, Meta(ge=4, le=256, description="Deepest nesting of a body's JSON.")] = 64
    max_messages: Annotated[int, Meta(ge=1, le=1 << 20, description="Most messages of one request.")] = 2048
    max_inputs: Annotated[
        int, Meta(ge=1, le=1 << 20, description="Most prompts, texts to embed or documents of one request.")
    ] = 2048
    max_choices: Annotated[int, Meta(ge=1, le=16384, description="Largest n, and largest best_of.")] = 8
    max_logprobs: Annotated[
        int, Meta(ge=0, le=1 << 20, description="Largest logprobs, top_logprobs and prompt_logprobs.")
    ] = 20
    max_stops: Annotated[int, Meta(ge=0, le=1 << 16, description="Most strings of stop, and of stop_sequences.")] = 16
    allowed_media_domains: Annotated[
        list[str],
        Meta(
            description="Hosts that prompts may name images, sound and films of by http or https; one that begins with a dot "
            "stands for those below it. data: URIs are always allowed."
        ),
    ] = []


class LogConfig(Section, frozen=True):
    """What is said on standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least severe line that is written.")
    ] = "info"
    format: Annotated[Literal["json", "text"], Meta(description="A JSON object a line, or a line for people.")] = "json"
    audit_file: Annotated[str, Meta(description="File that the audit log goes to as well; empty: none.")] = ""


class TracingConfig(Section, frozen=True):
    """Spans of requests, for a collector of OpenTelemetry; with the extra otel."""

    endpoint: Annotated[
        str,
        Meta(
            description="URL that spans are sent to by OTLP over HTTP, such as http://HOST:4318/v1/traces; empty: none are."
        ),
    ] = ""
    headers: Annotated[
        list[str], Meta(description="Headers that the collector asks for, NAME=VALUE each.", extra=SECRET)
    ] = []
    sample_ratio: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Share of the traces that begin here whose spans are sent; of others their clients have decided.",
        ),
    ] = 0.1
    service_name: Annotated[str, Meta(min_length=1, description="What the router is called there, service.name.")] = (
        "warmroute"
    )
    max_queue: Annotated[
        int,
        Meta(ge=1, le=1_000_000, description="Requests whose spans may wait to be sent; those of others are dropped."),
    ] = 2048
    interval_s: Annotated[
        float, Meta(gt=0, le=60, description="Seconds that spans wait for others to be sent with.")
    ] = 1.0
    timeout_s: Annotated[
        float, Meta(gt=0, le=60, description="Seconds that the collector may take for what is sent at once.")
    ] = 5.0
    flush_s: Annotated[
        float, Meta(ge=0, le=60, description="Seconds that a router which stops waits for its last spans to be sent.")
    ] = 2.0
