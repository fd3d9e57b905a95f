"""Every setting: type, unit, default, bound, and one sentence. Read from TOML, environment and flags, checked once.

Flags win over the environment, the environment over the file, the file over the defaults written here, and nowhere
else are there defaults. A key ``a.b`` is ``WARMROUTE_A__B`` in the environment; lists are separated by commas there.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from router.core.tenants.keyring import BadKeys, parse_entries
from router.core.tenants.tenant import ContextStrategy, OnBusy
from router.core.worker import parse_address
from router.policies import POLICIES
from router.runtime.logs import redact

PREFIX = "WARMROUTE_"

if TYPE_CHECKING:
    PolicyName = str
else:
    PolicyName = Literal[tuple(POLICIES)]

_S = TypeVar("_S", bound="Section")

_SECRET = {"secret": True}

ANY_ORIGIN = "*"
"""Of ``server.cors_origins``: pages of every origin may read answers."""

_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?:\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)(?::(?P<port>[1-9][0-9]{0,4}))?"
)
"""As browsers write them (RFC 6454, section 6.1): in lower case, without a path, and without the scheme's own port."""

_OWN_PORTS = {"http": "80", "https": "443"}

_SERVED_HOST = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
"""A name, or an address without brackets."""

_MEDIA_HOST = re.compile(r"\[[0-9A-Fa-f:.]+\]|\.?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")

_SERVICE_LINK = re.compile(r"(\w+_)?(SERVICE_HOST=.*|SERVICE_PORT\w*=.*|PORT_\d+_\w+=.*|PORT=\w+://.*)")
"""What Kubernetes puts into every container's environment for a service called ``warmroute``, behind the prefix."""


_SERVICE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?/[a-z]([a-z0-9-]{0,61}[a-z0-9])?(?::[a-z0-9-]{1,15})?")
"""As Kubernetes names them."""


class ConfigError(Exception):
    """One line that names the key, its value and its bound. It shows no password of a URL, whatever it quotes."""

    def __init__(self, text: str) -> None:
        super().__init__(redact(text))


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every table of the configuration is."""


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
            extra=_SECRET,
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
            extra=_SECRET,
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
            extra=_SECRET,
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


class FleetConfig(Section, frozen=True):
    """Which workers there are, and how they are reached."""

    workers: Annotated[list[str], Meta(description="URLs of workers, each an origin.")] = []
    workers_file: Annotated[
        str, Meta(description="File with one worker URL a line, or 'none', read again and again.")
    ] = ""
    workers_dns: Annotated[str, Meta(description="NAME:PORT, resolved again and again; every address is a worker.")] = (
        ""
    )
    dns_timeout_s: Annotated[
        float,
        Meta(gt=0, le=600, description="Seconds that resolving it is waited for; its last answer holds meanwhile."),
    ] = 5.0
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
    kubernetes_watch_s: Annotated[
        float, Meta(ge=1, le=3600, description="Seconds of one watch of the Service; the next goes on where it ended.")
    ] = 60.0
    kubernetes_resync_s: Annotated[
        float, Meta(ge=1, le=86_400, description="Seconds after which all of its pods are listed anew.")
    ] = 600.0
    kubernetes_timeout_s: Annotated[
        float, Meta(gt=0, le=600, description="Seconds for a list, and for a watch to begin.")
    ] = 10.0
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
        str, Meta(description="Key that workers ask for; sent as their Bearer token.", extra=_SECRET)
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
    ill_interval_s: Annotated[float, Meta(gt=0, le=3600, description="Seconds between probes of an ill worker.")] = 0.25
    models_interval_s: Annotated[float, Meta(gt=0, le=3600, description="Seconds between looks at /v1/models.")] = 5.0
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


class SessionsConfig(Section, frozen=True):
    """The state that the router keeps: sessions, responses, conversations."""

    store: Annotated[
        str,
        Meta(
            description="Where: sqlite:///PATH, memory://, redis://, rediss://, redis+sentinel://HOST:PORT,…/SERVICE/DB, "
            "redis+cluster://HOST:PORT,…; none: no state is kept; empty: SQLite in the state directory.",
            extra=_SECRET,
        ),
    ] = ""
    state_dir: Annotated[
        str, Meta(description="Directory of what the router keeps itself; empty: ~/.local/state/warmroute.")
    ] = ""
    secret: Annotated[
        str,
        Meta(
            description="Secret of at least 16 bytes that sessions' keys in the store are made of; one for all replicas; "
            "empty: made once, and kept in the state directory.",
            extra=_SECRET,
        ),
    ] = ""
    secret_file: Annotated[str, Meta(description="File that holds secret instead.")] = ""
    lifetime_s: Annotated[
        float, Meta(ge=0, le=10**9, description="Seconds that a session lives behind its last use; 0: for ever.")
    ] = 86_400.0
    response_lifetime_s: Annotated[
        float, Meta(ge=0, le=10**9, description="Seconds that a response lives; 0: for ever.")
    ] = 2_592_000.0
    conversation_lifetime_s: Annotated[
        float, Meta(ge=0, le=10**9, description="Seconds that a conversation lives behind its last use; 0: for ever.")
    ] = 0.0
    on_busy: Annotated[OnBusy, Meta(description="What a turn does while another of its session has not ended.")] = (
        "queue"
    )
    max_wait_s: Annotated[
        float, Meta(ge=0, le=3600, description="Most seconds that a turn waits for those of its session before it.")
    ] = 60.0
    max_waiting: Annotated[
        int, Meta(ge=0, le=10_000, description="Turns of one session that may wait; others are refused.")
    ] = 64
    max_entries: Annotated[
        int,
        Meta(
            ge=10,
            le=10**9,
            description="Entries of a session's log, of turns that failed, too; full, it takes no more.",
        ),
    ] = 100_000
    max_session_bytes: Annotated[
        int, Meta(ge=1 << 16, le=1 << 40, description="The same in bytes, as it is kept in memory.")
    ] = 64 << 20
    lease_s: Annotated[
        float,
        Meta(ge=1, le=3600, description="Seconds that a turn's claim on its session outlives a replica that died."),
    ] = 15.0
    timeout_s: Annotated[
        float, Meta(gt=0, le=60, description="Seconds that Redis may take for one call; beyond, it is unavailable.")
    ] = 0.2
    sqlite_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            le=600,
            description="Seconds that a call may wait for SQLite to begin it; beyond, it is not done, and the store is "
            "unavailable.",
        ),
    ] = 5.0
    max_store_calls: Annotated[
        int, Meta(ge=1, le=10_000, description="Connections to Redis; calls of one tenant that may wait for the store.")
    ] = 256
    max_tenant_sessions: Annotated[
        int,
        Meta(
            ge=1,
            le=10**12,
            description="Sessions, conversations and chains of responses that a tenant may have together, and responses that "
            "it may have; beyond, what would make another is refused until some are deleted or expire.",
        ),
    ] = 1_000_000
    max_tenant_bytes: Annotated[
        int,
        Meta(
            ge=1 << 20,
            le=1 << 40,
            description="Bytes that a tenant may have stored, roughly; beyond, turns are refused until it deletes some.",
        ),
    ] = 4 << 30
    max_give_backs: Annotated[
        int,
        Meta(
            ge=0,
            le=100_000,
            description="Claims of turns that failed, which a store that is away is asked to take back; others' leases end by "
            "themselves.",
        ),
    ] = 1000
    sqlite_synchronous: Annotated[
        Literal["NORMAL", "FULL"],
        Meta(description="NORMAL survives the router's death, FULL also the machine's, at the price of a disk flush."),
    ] = "NORMAL"
    wait_replicas: Annotated[
        int, Meta(ge=0, le=10, description="Redis replicas that must have a write before it counts (WAIT).")
    ] = 0
    max_journal_bytes: Annotated[
        int,
        Meta(ge=0, le=1 << 40, description="Ends of turns kept on disk while Redis is away, in bytes; 0: no journal."),
    ] = 64 << 20
    stateless_fallback: Annotated[
        bool,
        Meta(description="While the store is away, answer turns of named sessions without their history, and say so."),
    ] = False
    encryption_secret: Annotated[
        str,
        Meta(
            description="Secret of at least 16 bytes by which all that is stored is encrypted; empty: it is not.",
            extra=_SECRET,
        ),
    ] = ""
    encryption_secret_file: Annotated[str, Meta(description="File that holds encryption_secret instead.")] = ""
    max_hot_bytes: Annotated[
        int, Meta(ge=1 << 20, le=1 << 40, description="Histories kept in memory between turns, in bytes.")
    ] = 256 << 20


BUNDLED_MODEL = "all-MiniLM-L6-v2-int8"
"""Which makes vectors in this process."""


class ContextConfig(Section, frozen=True):
    """How a session's history is kept within its model's window. Tenants, sessions and requests may wish otherwise."""

    strategy: Annotated[
        ContextStrategy,
        Meta(
            description="none: a prompt that is too long is refused; window: it is cut at marks; summary: with notes on what "
            "was cut; recall: with a search of it for each question; hybrid: with both."
        ),
    ] = "hybrid"
    high_tokens: Annotated[
        int,
        Meta(
            ge=0,
            le=10**9,
            description="A history of so many tokens is cut; 0: three quarters of what the window leaves.",
        ),
    ] = 0
    low_tokens: Annotated[
        int,
        Meta(
            ge=0, le=10**9, description="Tokens of a history that a cut leaves; 0: a quarter of what the window leaves."
        ),
    ] = 0
    max_tokens: Annotated[
        int,
        Meta(ge=0, le=10**9, description="Tokens of a session's whole prompt; 0: as many as the model's window has."),
    ] = 0
    answer_tokens: Annotated[
        int,
        Meta(
            ge=0,
            le=10**9,
            description="Tokens left free for an answer whose request does not bound it; at most a quarter of the window.",
        ),
    ] = 4096
    summary_model: Annotated[
        str, Meta(description="Model of the fleet that writes notes; empty: each session's own.")
    ] = ""
    summary_url: Annotated[
        str,
        Meta(description="Base URL of an OpenAI-compatible API that writes them instead, such as https://HOST/v1."),
    ] = ""
    summary_api_key: Annotated[str, Meta(description="API key for summary_url.", extra=_SECRET)] = ""
    summary_api_key_file: Annotated[str, Meta(description="File that holds summary_api_key instead.")] = ""
    summary_tokens: Annotated[
        int, Meta(ge=16, le=100_000, description="Most tokens of the notes on what one cut removes.")
    ] = 400
    summary_source_tokens: Annotated[
        int,
        Meta(
            ge=200,
            le=10_000_000,
            description="Most tokens that one request for notes tells of; what is more is told of part by part. Less where the "
            "window of a model of the fleet is smaller.",
        ),
    ] = 32_000
    summary_timeout_s: Annotated[
        float, Meta(gt=0, le=3600, description="Seconds that notes may take, before another replica may try.")
    ] = 60.0
    summary_retry_s: Annotated[
        float,
        Meta(
            gt=0, le=3600, description="Seconds to the next attempt when they came to nothing; twice as long each time."
        ),
    ] = 10.0
    summary_tokens_per_day: Annotated[
        int,
        Meta(
            ge=0, le=10**12, description="Tokens, of prompts and notes, that a tenant's notes may cost; 0: any number."
        ),
    ] = 0
    max_waiting: Annotated[int, Meta(ge=1, le=1_000_000, description="Sessions that may wait for the janitor.")] = (
        10_000
    )
    janitors: Annotated[int, Meta(ge=1, le=1000, description="Sessions that it looks at at once.")] = 4
    recall_index: Annotated[
        str,
        Meta(
            description="Where what left prompts is searched: sqlite, a file in the state directory, which may be deleted and "
            "is made again; memory, also for sqlite where the store is in memory or encrypted; "
            "postgresql://USER@HOST:PORT/DATABASE, which routers share; or none.",
            extra=_SECRET,
        ),
    ] = "sqlite"
    recall_connections: Annotated[
        int, Meta(ge=1, le=1000, description="Connections to PostgreSQL, where that is the index; other calls wait.")
    ] = 8
    recall_lifetime_s: Annotated[
        float,
        Meta(
            ge=0,
            le=10**9,
            description="Seconds that a session stays in the index behind the last that left its prompt; if more leaves it "
            "later, all is indexed again; 0: for ever.",
        ),
    ] = 2_592_000.0
    embed_model: Annotated[
        str,
        Meta(
            description=f"Model that searches go by meaning with, beside words: {BUNDLED_MODEL}, of the extra recall-onnx; one "
            "that embed_url serves; or without that, one of the fleet; empty: words alone."
        ),
    ] = ""
    embed_url: Annotated[
        str, Meta(description="URL of an OpenAI-compatible /embeddings; this router's own /v1/embeddings will do.")
    ] = ""
    embed_dimensions: Annotated[
        int, Meta(ge=0, le=65_536, description=f"Of its vectors; required of all but {BUNDLED_MODEL}.")
    ] = 0
    embed_api_key: Annotated[str, Meta(description="API key for embed_url.", extra=_SECRET)] = ""
    embed_api_key_file: Annotated[str, Meta(description="File that holds embed_api_key instead.")] = ""
    recall_tokens: Annotated[
        int, Meta(ge=0, le=100_000, description="Most tokens of what is recalled beside one question.")
    ] = 150
    recall_items: Annotated[int, Meta(ge=1, le=1000, description="Items that a search may find for it.")] = 10
    recall_timeout_s: Annotated[
        float, Meta(gt=0, le=10, description="Seconds that a search may take; beyond, the question goes alone.")
    ] = 0.1
    max_recall_bytes: Annotated[
        int,
        Meta(
            ge=1,
            le=1 << 40,
            description="Texts and vectors that SQLite's index may have, which takes up to twice that; sessions that were not "
            "added to for longest go first.",
        ),
    ] = 1 << 30
    max_recall_calls: Annotated[int, Meta(ge=1, le=10_000, description="Calls that may wait for it.")] = 256

    @property
    def recall_in_postgres(self) -> bool:
        return self.recall_index.startswith(("postgresql://", "postgres://"))


ENCODINGS = ("cl100k_base", "o200k_base", "o200k_harmony")
"""Of tiktoken."""

WORKER, ESTIMATE = "worker", "estimate"

_TOKENIZERS = (WORKER, ESTIMATE, *(f"tiktoken:{encoding}" for encoding in ENCODINGS))


class TokensConfig(Section, frozen=True):
    """How many tokens a message of a session is."""

    tokenizer: Annotated[
        str,
        Meta(
            description="Who counts, for models that no table of models names: worker (its /tokenize), "
            "tiktoken:o200k_base, tiktoken:o200k_harmony, tiktoken:cl100k_base, the path of a tokenizer.json, or estimate: "
            "bytes, by what workers reported; empty: estimate."
        ),
    ] = ""
    vocabulary_dir: Annotated[
        str, Meta(description="Directory of tiktoken's vocabularies; empty: that of TIKTOKEN_CACHE_DIR.")
    ] = ""
    max_loop_bytes: Annotated[
        int,
        Meta(ge=0, le=1 << 20, description="Text that the router counts without a thread, in bytes; larger is slower."),
    ] = 8 << 10
    max_threads: Annotated[int, Meta(ge=1, le=64, description="Threads that count larger texts; others wait.")] = 2
    max_exact_bytes: Annotated[
        int,
        Meta(
            ge=0, le=1 << 30, description="New text of one turn that is counted exactly, in bytes; more is estimated."
        ),
    ] = 1 << 20
    media_tokens: Annotated[
        int, Meta(ge=0, le=1_000_000, description="What an image, or another part that is no text, is taken for.")
    ] = 1024
    max_known_counts: Annotated[
        int, Meta(ge=0, le=10_000_000, description="Texts whose counts are remembered, by their digests.")
    ] = 10_000
    worker_timeout_s: Annotated[
        float, Meta(gt=0, le=60, description="Seconds that a worker may take to count a turn's texts.")
    ] = 0.25
    max_worker_calls: Annotated[
        int, Meta(ge=1, le=10_000, description="Texts that workers count at once; others wait.")
    ] = 16


class ModelConfig(Section, frozen=True):
    """One table for each model, by its name, or by a pattern such as `"gpt-oss-*"`: the name itself goes before patterns, and
    these in their order."""

    tokenizer: Annotated[str, Meta(description="As tokens.tokenizer; empty: that one.")] = ""


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
        list[str], Meta(description="Headers that the collector asks for, NAME=VALUE each.", extra=_SECRET)
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


class Config(Section, frozen=True):
    """The whole configuration."""

    server: ServerConfig = ServerConfig()
    auth: AuthConfig = AuthConfig()
    admin: AdminConfig = AdminConfig()
    limits: LimitsConfig = LimitsConfig()
    fleet: FleetConfig = FleetConfig()
    probes: ProbesConfig = ProbesConfig()
    load: LoadConfig = LoadConfig()
    policy: PolicyConfig = PolicyConfig()
    index: IndexConfig = IndexConfig()
    retries: RetriesConfig = RetriesConfig()
    resumption: ResumptionConfig = ResumptionConfig()
    admission: AdmissionConfig = AdmissionConfig()
    sessions: SessionsConfig = SessionsConfig()
    context: ContextConfig = ContextConfig()
    tokens: TokensConfig = TokensConfig()
    models: dict[str, ModelConfig] = {}
    timeouts: TimeoutsConfig = TimeoutsConfig()
    log: LogConfig = LogConfig()
    tracing: TracingConfig = TracingConfig()

    def tokenizer_of(self, model: str) -> str:
        """As ``tokens.tokenizer`` has it, and never empty."""
        named = self.models.get(model)
        patterns = (each for pattern, each in self.models.items() if each.tokenizer and fnmatchcase(model, pattern))
        found = named if named is not None and named.tokenizer else next(patterns, None)
        return (found.tokenizer if found is not None else self.tokens.tokenizer) or ESTIMATE


MODELS, ANY_MODEL = "models", "NAME"
"""The table whose tables are named by whoever writes them, and what stands for such a name in the reference."""


class Setting(Struct, frozen=True):
    """One line of the reference."""

    key: str
    type: str
    default: Any
    bound: str
    description: str
    is_secret: bool

    @property
    def variable(self) -> str:
        return PREFIX + self.key.replace(".", "__").upper()


def load_config(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> Config:
    """Merge file, environment and flags (``"a.b"`` → value; None: not given) and check all of it.

    Raises ConfigError, whose text is one line.
    """
    tree: dict[str, Any] = {}
    if file is not None:
        tree = _read_toml(file)
    for key, value in _from_environment(environment).items():
        _put(tree, key, value)
    for key, value in flags.items():
        if value is not None:
            _put(tree, key, value)
    models = tree.pop(MODELS, {})
    if not isinstance(models, dict):
        raise ConfigError(f"{MODELS}={_shown(models)}: must be table")
    config = msgspec.structs.replace(
        _convert(tree, Config), models={name: _convert(table, ModelConfig, name) for name, table in models.items()}
    )
    _check_across(config)
    return config


def sections() -> Iterator[tuple[str, type[Section]]]:
    """Every table in order."""
    for field in msgspec.structs.fields(Config):
        yield (f"{MODELS}.{ANY_MODEL}", ModelConfig) if field.name == MODELS else (field.name, field.type)


def settings() -> Iterator[Setting]:
    """Every key in order, for the reference."""
    for section, kind in sections():
        hints = get_type_hints(kind, include_extras=True)
        for field in msgspec.structs.fields(kind):
            base, meta = get_args(hints[field.name])
            default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
            yield Setting(
                key=f"{section}.{field.name}",
                type=_type_name(base),
                default=default,
                bound=_bound(base, meta),
                description=meta.description,
                is_secret=meta.extra == _SECRET,
            )


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: is not TOML: {error}") from None


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    known = {setting.variable: setting for setting in settings()}
    found: dict[str, Any] = {}
    for name, text in environment.items():
        if not name.startswith(PREFIX) or _SERVICE_LINK.fullmatch(f"{name.removeprefix(PREFIX)}={text}"):
            continue
        template, key = _key_of(name)
        if template not in known:
            raise ConfigError(f"{name}: no such setting")
        setting = known[template]
        is_list = setting.type.startswith("list")
        value = [part.strip() for part in text.split(",") if part.strip()] if is_list else text
        found[key or setting.key] = value
    return found


def _key_of(variable: str) -> tuple[str, str]:
    """The variable that the reference has in its place, and the key where that is another."""
    prefix = f"{PREFIX}{MODELS.upper()}__"
    model, separator, name = variable.removeprefix(prefix).rpartition("__")
    if not (variable.startswith(prefix) and model and separator):
        return variable, ""
    return f"{prefix}{ANY_MODEL}__{name}", f"{MODELS}.{model}.{name.lower()}"


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    """A model's name may have dots."""
    section, _, rest = key.partition(".")
    model, _, name = rest.rpartition(".")
    table = tree
    for part in (section, model) if section == MODELS else (section,):
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{section}={_shown(table)}: must be a table")
    table[name if section == MODELS else rest] = value


def _convert(tree: Any, kind: type[_S], model: str = "") -> _S:
    """``model``: whose table it is. Raises ConfigError."""
    try:
        return msgspec.convert(tree, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), tree, model)) from None


def _explain(error: str, tree: Any, model: str) -> str:
    """msgspec's ``what - at `$.a.b` `` → ``a.b=value: what``."""
    what, _, where = error.partition(" - at `$")
    path = where.rstrip("`").lstrip(".")
    prefix, template = (f"{MODELS}.{model}", f"{MODELS}.{ANY_MODEL}.") if model else ("", "")
    if what.startswith("Object contains unknown field"):
        name = what.split("`")[1]
        return f"{'.'.join(filter(None, (prefix, path, name)))}: no such setting"
    value: Any = tree
    path = path.split("[")[0]
    for part in filter(None, path.split(".")):
        value = value.get(part) if isinstance(value, dict) else value
    setting = next((setting for setting in settings() if setting.key == template + path), None)
    rule = f"{setting.type} {setting.bound}".strip() if setting else "table"
    shown = _shown(value) if setting is None else "***" if setting.is_secret else repr(value)
    return f"{'.'.join(filter(None, (prefix, path)))}={shown}: must be {rule}"


def _shown(table: object) -> str:
    """Of what should be a table: its text may hold secrets."""
    return "***" if isinstance(table, str | list | dict) else repr(table)


def _check_sources(fleet: FleetConfig) -> None:
    for url in fleet.workers:
        try:
            parse_address(url)
        except ValueError as error:
            raise ConfigError(f"fleet.workers={url!r}: {error}") from None
    dns = fleet.workers_dns
    if dns and not (re.fullmatch(r"[^:\s]+:[0-9]{1,5}", dns) and 0 < int(dns.rpartition(":")[2]) <= 65535):
        raise ConfigError(f"fleet.workers_dns={dns!r}: must be NAME:PORT with a port from 1 to 65535")
    kubernetes = fleet.workers_kubernetes
    if kubernetes and not _SERVICE.fullmatch(kubernetes):
        raise ConfigError(
            f"fleet.workers_kubernetes={kubernetes!r}: must be NAMESPACE/SERVICE, or NAMESPACE/SERVICE:PORT"
        )


def _check_across(config: Config) -> None:
    """What no single key can say."""
    _check_sources(config.fleet)
    if bool(config.server.tls_cert) != bool(config.server.tls_key):
        raise ConfigError(f"server.tls_key={config.server.tls_key!r}: must be given together with server.tls_cert")
    _check_names(config)
    if bool(config.fleet.client_cert) != bool(config.fleet.client_key):
        raise ConfigError(
            f"fleet.client_key={config.fleet.client_key!r}: must be given together with fleet.client_cert"
        )
    for key in ("server.tls_cert", "server.tls_key", "fleet.ca_file", "fleet.client_cert", "fleet.client_key"):
        section, name = key.split(".")
        path = getattr(getattr(config, section), name)
        if path and not Path(path).is_file():
            raise ConfigError(f"{key}={path!r}: must be a file that can be read")
    if config.probes.max_ejection_s < config.probes.ejection_s:
        raise ConfigError(
            f"probes.max_ejection_s={config.probes.max_ejection_s}: must be >= probes.ejection_s={config.probes.ejection_s}"
        )
    _check_admin(config.admin)
    _check_embedder(config.context)
    _check_recall(config)
    _check_tokenizers(config)
    _check_auth(config)
    _check_tracing(config.tracing)


def _check_names(config: Config) -> None:
    """An entry that can match nothing is a mistake that nobody would notice."""
    for origin in config.server.cors_origins:
        if origin not in (ANY_ORIGIN, "null") and not _is_origin(origin):
            raise ConfigError(
                f"server.cors_origins={origin!r}: must be * or an origin as browsers send it, SCHEME://HOST or "
                "SCHEME://HOST:PORT, in lower case, without a path, a slash at the end, or the scheme's own port"
            )
    for host in config.server.allowed_hosts:
        if not _SERVED_HOST.fullmatch(host):
            raise ConfigError(
                f"server.allowed_hosts={host!r}: must be a host's name or address, without scheme, port or path; to serve "
                "any host, leave the list empty"
            )
    for host in config.limits.allowed_media_domains:
        if not _MEDIA_HOST.fullmatch(host):
            raise ConfigError(
                f"limits.allowed_media_domains={host!r}: must be a host's name, with or without a dot before it"
            )


def _is_origin(text: str) -> bool:
    match = _ORIGIN.fullmatch(text)
    if match is None:
        return False
    port = match["port"]
    return port is None or (int(port) <= 65535 and port != _OWN_PORTS.get(match["scheme"]))


def _check_admin(admin: AdminConfig) -> None:
    if not is_loopback(admin.host) and len(admin.token.encode()) < MIN_SECRET_BYTES:
        shown = "***" if admin.token else "''"
        raise ConfigError(
            f"admin.token={shown}: required because admin.host={admin.host!r} is not loopback, and must hold at least "
            f"{MIN_SECRET_BYTES} bytes"
        )


def _check_tracing(tracing: TracingConfig) -> None:
    if tracing.endpoint and not re.fullmatch(r"https?://[^/\s@?#]+/[^\s@?#]*", tracing.endpoint):
        raise ConfigError(
            "tracing.endpoint=***: must be a whole URL without user and query, such as http://HOST:4318/v1/traces"
        )
    for header in tracing.headers:
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+=[ -~]*", header):
            raise ConfigError("tracing.headers=***: must be NAME=VALUE each")


def _check_embedder(context: ContextConfig) -> None:
    """How long vectors are has to be known before those who make them are asked."""
    if context.embed_url and not context.embed_model:
        raise ConfigError("context.embed_model='': required with context.embed_url")
    makes_vectors_here = not context.embed_url and context.embed_model in ("", BUNDLED_MODEL)
    if not makes_vectors_here and not context.embed_dimensions:
        whose = "with context.embed_url" if context.embed_url else f"for context.embed_model={context.embed_model!r}"
        raise ConfigError(
            f"context.embed_dimensions=0: required {whose}; only {BUNDLED_MODEL}, without a URL, runs in this process"
        )


def _check_recall(config: Config) -> None:
    """A database that others reach is no place for what is encrypted elsewhere, nor for sessions that end with a process."""
    if config.context.recall_index in ("sqlite", "memory", "none"):
        return
    try:
        hosts = urlsplit(config.context.recall_index).netloc.rpartition("@")[2].split(",")
        has_ports = all(urlsplit(f"//{host}").port != 0 for host in hosts)
    except ValueError:
        has_ports = False
    if not (config.context.recall_in_postgres and has_ports):
        raise ConfigError(
            "context.recall_index=***: must be sqlite, memory, none, or postgresql://USER@HOST:PORT/DATABASE"
        )
    if config.sessions.encryption_secret or config.sessions.encryption_secret_file:
        raise ConfigError(
            "context.recall_index=***: must not be PostgreSQL together with sessions.encryption_secret: it holds texts in clear"
        )
    if config.sessions.store.startswith("memory:"):
        raise ConfigError("context.recall_index=***: must not be PostgreSQL together with sessions.store='memory://'")


def _check_tokenizers(config: Config) -> None:
    named = {f"{MODELS}.{name}": table.tokenizer for name, table in config.models.items()}
    for section, tokenizer in {"tokens": config.tokens.tokenizer, **named}.items():
        is_file = tokenizer.endswith(".json") and Path(tokenizer).is_file()
        if tokenizer and tokenizer not in _TOKENIZERS and not is_file:
            raise ConfigError(
                f"{section}.tokenizer={tokenizer!r}: must be {', '.join(_TOKENIZERS)}, or the path of a tokenizer.json"
            )


MIN_SECRET_BYTES = 16


def _check_auth(config: Config) -> None:
    auth = config.auth
    if auth.asks_for_keys and config.server.insecure_no_auth:
        raise ConfigError("server.insecure_no_auth=True: must not be given together with auth.keys_file or auth.keys")
    try:
        parse_entries(auth.keys)
    except BadKeys as error:
        raise ConfigError(f"auth.keys=***: {error}") from None
    if not read_salt_secret(auth) and auth.asks_for_keys:
        raise ConfigError(
            "auth.salt_secret='': required with API keys, or auth.salt_secret_file: tenants' cache salts are made of it"
        )


def read_salt_secret(auth: AuthConfig) -> bytes:
    """Raises ConfigError."""
    return read_secret("auth.salt_secret", auth.salt_secret, auth.salt_secret_file)


def read_secret(key: str, text: str, file: str) -> bytes:
    """From its setting or its file, without white space around it; empty where there is none. Raises ConfigError."""
    if text and file:
        raise ConfigError(f"{key}=***: must not be given together with {key}_file")
    named, secret = f"{key}=***", text.encode()
    if file:
        named = f"{key}_file={file!r}"
        try:
            secret = Path(file).read_bytes()
        except OSError as error:
            raise ConfigError(f"{named}: cannot be read: {error.strerror}") from None
    elif not secret:
        return b""
    if len(secret := secret.strip()) < MIN_SECRET_BYTES:
        raise ConfigError(f"{named}: must hold at least {MIN_SECRET_BYTES} bytes")
    return secret


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _type_name(base: Any) -> str:
    if get_origin(base) is list:
        return f"list of {get_args(base)[0].__name__}"
    if get_origin(base) is tuple:
        element, _meta = get_args(get_args(base)[0])
        return f"list of {len(get_args(base))} {element.__name__}"
    return "one of" if get_origin(base) is Literal else str(base.__name__)


def _bound(base: Any, meta: Meta) -> str:
    if get_origin(base) is Literal:
        return ", ".join(get_args(base))
    if get_origin(base) is tuple:
        return f"each {_bound(*get_args(get_args(base)[0]))}"
    if meta.min_length:
        return "not empty"
    signs = (("≥", meta.ge), (">", meta.gt), ("≤", meta.le))
    return " ".join(f"{sign} {limit}" for sign, limit in signs if limit is not None)
