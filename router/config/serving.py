"""Ports, keys, limits, logs and traces."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from router.config.section import SECRET, Section

ANY_ORIGIN = "*"
"""Value of ``server.cors_origins`` that allows pages of every origin to read answers."""


class ServerConfig(Section, frozen=True):
    """The port for clients."""

    host: Annotated[str, Meta(min_length=1, description="Address of the port for clients.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port for clients; 0 takes any free port.")] = 8080
    tls_cert: Annotated[str, Meta(description="PEM certificate chain of the port for clients; empty: no TLS.")] = ""
    tls_key: Annotated[str, Meta(description="PEM private key of server.tls_cert.")] = ""
    cors_origins: Annotated[
        list[str],
        Meta(
            description="Origins whose web pages may call the router, SCHEME://HOST or SCHEME://HOST:PORT each; * allows "
            "all; empty: CORS is off."
        ),
    ] = []
    allowed_hosts: Annotated[
        list[str], Meta(description="Host names, without a port, that requests may name; empty: any.")
    ] = []
    insecure_no_auth: Annotated[
        bool,
        Meta(
            description="Serve everybody who reaches the port, without API keys. Not together with auth.keys_file or "
            "auth.keys."
        ),
    ] = False
    decision_headers: Annotated[
        bool, Meta(description="Add x-warmroute-reason and x-warmroute-predicted-cached-tokens to answers.")
    ] = False
    leave_s: Annotated[
        float,
        Meta(
            ge=0,
            le=600,
            description="Seconds after SIGTERM in which /ready fails while requests are still served, so that load "
            "balancers stop sending clients first. SIGINT skips them.",
        ),
    ] = 5.0
    drain_s: Annotated[
        float, Meta(ge=0, le=3600, description="Seconds that live requests may take to end after server.leave_s.")
    ] = 20.0


class AuthConfig(Section, frozen=True):
    """API keys, and the secret that keeps tenants' cache entries apart."""

    keys_file: Annotated[
        str, Meta(description="TOML file of tenants and API keys. It is read again when it changes.")
    ] = ""
    keys: Annotated[
        list[str],
        Meta(
            description="API keys without a file, TENANT:SHA256 each, with the key's digest in hexadecimal digits.",
            extra=SECRET,
        ),
    ] = []
    reload_s: Annotated[
        float,
        Meta(ge=0.05, le=3600, description="Seconds between two reads of auth.keys_file. SIGHUP reads it at once."),
    ] = 2.0
    salt_secret: Annotated[
        str,
        Meta(
            description="Secret of at least 16 bytes from which the tenants' cache salts are made; the same for all "
            "replicas.",
            extra=SECRET,
        ),
    ] = ""
    salt_secret_file: Annotated[str, Meta(description="File that holds auth.salt_secret.")] = ""

    @property
    def asks_for_keys(self) -> bool:
        return bool(self.keys_file or self.keys)


class AdminConfig(Section, frozen=True):
    """The admin port: metrics, workers, decisions and the status page, for operators."""

    host: Annotated[str, Meta(min_length=1, description="Address of the admin port.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Admin port; 0 takes any free port.")] = 8081
    token: Annotated[
        str,
        Meta(
            description="Bearer token of the admin port, at least 16 bytes; required unless admin.host is loopback.",
            extra=SECRET,
        ),
    ] = ""
    decisions: Annotated[int, Meta(ge=0, le=100_000, description="Recent decisions that /decisions shows.")] = 200
    max_viewers: Annotated[int, Meta(ge=0, le=1000, description="Viewers of the status page allowed at once.")] = 16


class LimitsConfig(Section, frozen=True):
    """Bounds on what clients may cost."""

    max_body_bytes: Annotated[int, Meta(ge=1024, le=1 << 30, description="Largest request body, in bytes.")] = 32 << 20
    head_timeout_s: Annotated[
        float,
        Meta(gt=0, le=3600, description="Seconds in which a request's head must arrive, and a TLS handshake end."),
    ] = 8.5
    body_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="Longest pause of a body, in seconds. limits.min_body_bytes_per_s bounds the time of the whole "
            "body.",
        ),
    ] = 30.0
    body_grace_s: Annotated[
        float,
        Meta(
            gt=0, le=3600, description="First seconds of a body in which limits.min_body_bytes_per_s is not enforced."
        ),
    ] = 5.0
    min_body_bytes_per_s: Annotated[
        float, Meta(gt=0, le=1 << 30, description="Slowest mean rate at which a body may arrive, in bytes per second.")
    ] = 1024.0
    max_connections: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Most client connections to one port; further ones are closed.")
    ] = 12_000
    keepalive_s: Annotated[
        float, Meta(gt=0, le=3600, description="Seconds after which an idle client connection is closed.")
    ] = 75.0
    write_stall_s: Annotated[
        float,
        Meta(gt=0, le=3600, description="Seconds after which a client that reads nothing of its answer is cut off."),
    ] = 30.0
    min_drain_bytes_per_s: Annotated[
        float,
        Meta(
            ge=0,
            le=1 << 30,
            description="Slowest rate at which a client may read its answer, in bytes per second, averaged over "
            "limits.write_stall_s.",
        ),
    ] = 512.0
    max_key_connections: Annotated[
        int,
        Meta(ge=0, le=1_000_000, description="Most client connections of one API key; 0: no limit."),
    ] = 256
    max_held_bytes: Annotated[
        int,
        Meta(
            ge=1024,
            le=1 << 40,
            description="Most bytes held in memory for clients' requests and answers together: incoming bodies, decoded "
            "values, whole answers, and data that clients have not read. Requests beyond it are refused. A tenant gets "
            "at most what is still free, so a tenant that is alone gets half: set twice what your largest tenant needs. "
            "Without API keys all clients share the whole.",
        ),
    ] = 512 << 20
    max_head_bytes: Annotated[
        int, Meta(ge=1024, le=1 << 20, description="Largest head of a request, with all fields, in bytes.")
    ] = 32 << 10
    max_total_head_bytes: Annotated[
        int,
        Meta(ge=1024, le=1 << 32, description="Most bytes of incomplete request heads, of all connections together."),
    ] = 16 << 20
    max_parsing_bodies: Annotated[
        int,
        Meta(
            ge=1,
            le=64,
            description="Processes that parse costly bodies. They start when they are needed; further bodies wait.",
        ),
    ] = 3
    max_json_depth: Annotated[int, Meta(ge=4, le=256, description="Deepest nesting of a body's JSON.")] = 64
    max_messages: Annotated[int, Meta(ge=1, le=1 << 20, description="Most messages of one request.")] = 2048
    max_inputs: Annotated[
        int, Meta(ge=1, le=1 << 20, description="Most prompts, texts to embed or documents of one request.")
    ] = 2048
    max_choices: Annotated[int, Meta(ge=1, le=16384, description="Largest n and largest best_of of a request.")] = 8
    max_logprobs: Annotated[
        int, Meta(ge=0, le=1 << 20, description="Largest logprobs, top_logprobs and prompt_logprobs of a request.")
    ] = 20
    max_stops: Annotated[int, Meta(ge=0, le=1 << 16, description="Most strings in stop and in stop_sequences.")] = 16
    allowed_media_domains: Annotated[
        list[str],
        Meta(
            description="Hosts from which prompts may name images, audio and video by http or https; a leading dot allows "
            "the hosts below. data: URIs are always allowed."
        ),
    ] = []


class LogConfig(Section, frozen=True):
    """The log, which goes to standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least severe level that is logged.")
    ] = "info"
    format: Annotated[
        Literal["json", "text"], Meta(description="json: an object per line; text: lines for people.")
    ] = "json"
    audit_file: Annotated[str, Meta(description="File to which the audit log is also written; empty: none.")] = ""


class TracingConfig(Section, frozen=True):
    """Spans of requests for an OpenTelemetry collector; needs the extra otel."""

    endpoint: Annotated[
        str,
        Meta(
            description="URL to which spans are sent by OTLP over HTTP, such as http://HOST:4318/v1/traces; empty: tracing "
            "is off."
        ),
    ] = ""
    headers: Annotated[
        list[str], Meta(description="Headers that the collector requires, NAME=VALUE each.", extra=SECRET)
    ] = []
    sample_ratio: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Share of the traces that start at the router whose spans are sent. A client that sends traceparent "
            "decides for its own.",
        ),
    ] = 0.1
    service_name: Annotated[str, Meta(min_length=1, description="The router's service.name in traces.")] = "warmroute"
