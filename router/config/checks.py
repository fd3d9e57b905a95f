"""Checks that need more than one key or a file: keys that belong together, files, hosts and URLs."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from router.config.context import BUNDLED_MODEL, ContextConfig
from router.config.schema import MODELS, Config, ConfigError
from router.config.secrets import MIN_SECRET_BYTES, is_loopback, read_salt_secret
from router.config.serving import ANY_ORIGIN, AdminConfig, TracingConfig
from router.config.sessions import TOKENIZERS
from router.config.workers import FleetConfig
from router.core.tenants.keyring import BadKeys, parse_entries
from router.core.worker import parse_address

_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?:\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)(?::(?P<port>[1-9][0-9]{0,4}))?"
)
"""An origin as browsers write it (RFC 6454, section 6.1): in lower case, without a path, without the scheme's own port."""

_OWN_PORTS = {"http": "80", "https": "443"}

_SERVED_HOST = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
"""A host name, or an address without brackets."""

_MEDIA_HOST = re.compile(r"\[[0-9A-Fa-f:.]+\]|\.?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")

_SERVICE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?/[a-z]([a-z0-9-]{0,61}[a-z0-9])?(?::[a-z0-9-]{1,15})?")
"""A namespace, a Service and a port, by the rules of Kubernetes."""


def check_across(config: Config) -> None:
    """Raises ConfigError."""
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


def _check_names(config: Config) -> None:
    """Refuses entries that can match nothing: nobody would notice such a mistake."""
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
    """The dimensions of vectors must be known before the embedder is asked."""
    if context.embed_url and not context.embed_model:
        raise ConfigError("context.embed_model='': required with context.embed_url")
    makes_vectors_here = not context.embed_url and context.embed_model in ("", BUNDLED_MODEL)
    if not makes_vectors_here and not context.embed_dimensions:
        whose = "with context.embed_url" if context.embed_url else f"for context.embed_model={context.embed_model!r}"
        raise ConfigError(
            f"context.embed_dimensions=0: required {whose}; only {BUNDLED_MODEL}, without a URL, runs in this process"
        )


def _check_recall(config: Config) -> None:
    """A shared database must not hold texts that are encrypted elsewhere, or sessions that end with the process."""
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
        if tokenizer and tokenizer not in TOKENIZERS and not is_file:
            raise ConfigError(
                f"{section}.tokenizer={tokenizer!r}: must be {', '.join(TOKENIZERS)}, or the path of a tokenizer.json"
            )


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
