"""Reads the URL of a session store in Redis. Errors say what is wrong with it, and never show what may be a secret.

    redis://  rediss://  unix://                          one server, as redis-py writes it
    redis+sentinel://[user:password@]h:p,h:p/service/db   the primary that Sentinels name; also rediss+sentinel
    redis+cluster://[user:password@]h:p,h:p               Redis Cluster; also rediss+cluster

User and password are those of the data servers; those of Sentinels are ``?sentinel_username=…&sentinel_password=…``. Other
options are ``client_name`` and those of redis-py for TLS (``ssl_ca_certs=…``).

redis-py reads the part that it knows. It knows neither Sentinels nor clusters in a URL, and its messages may quote a password.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection, parse_url

Address = tuple[str, int]
"""Host and port."""

DEFAULT_PORT = 6379
DEFAULT_SENTINEL_PORT = 26379
_OPTION = re.compile(r"ssl_\w+|client_name|db|sentinel_username|sentinel_password")
_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9_.-]+))(?::(?P<port>\d{1,5}))?\Z")


@dataclass(frozen=True, slots=True)
class Target:
    kind: Literal["alone", "sentinel", "cluster"]
    addresses: tuple[Address, ...]
    """The server, the Sentinels, or some nodes of the cluster; empty for a socket in the file system."""
    service: str
    """Name of the primary for the Sentinels."""
    connection_class: type[Connection | UnixDomainSocketConnection]
    options: dict[str, Any]
    """Options of every connection to a data server, without host and port. They may hold a password."""
    sentinel_options: dict[str, Any]

    def __repr__(self) -> str:
        return f"Target({self.kind!r}, {self.addresses!r}, {self.service!r})"


def parse(url: str) -> Target:
    """Raises ValueError."""
    scheme, separator, rest = url.partition("://")
    _check_options(url)
    if not separator:
        raise ValueError("a session store's URL begins with its scheme: redis://, rediss+sentinel://, …")
    transport, _, kind = scheme.partition("+")
    if transport == "unix" and not kind:
        return _parse_alone(url)
    if transport not in ("redis", "rediss") or kind not in ("", "sentinel", "cluster"):
        raise ValueError(
            f"{scheme!r} is no scheme of a Redis: use redis, rediss, unix, redis+sentinel or redis+cluster"
        )
    if not kind:
        return _parse_alone(url)
    return _parse_many(transport, "sentinel" if kind == "sentinel" else "cluster", rest)


def _parse_alone(url: str) -> Target:
    options = _redis_options(url)
    connection_class = options.pop("connection_class", Connection)
    if connection_class is UnixDomainSocketConnection:
        if not options.get("path"):
            raise ValueError("unix:// needs the path of a socket: unix:///run/redis/redis.sock")
        return Target("alone", (), "", connection_class, options, {})
    path = urlsplit(url).path.strip("/")
    if path and not path.isdigit():
        raise ValueError("the part after the host in redis://host:port/N must be the number of a database")
    address = (options.pop("host", "localhost"), options.pop("port", DEFAULT_PORT))
    return Target("alone", (address,), "", connection_class, options, {})


def _parse_many(transport: str, kind: Literal["sentinel", "cluster"], rest: str) -> Target:
    place, _, query = rest.partition("?")
    authority, _, path = place.partition("/")
    credentials, at, hosts = authority.rpartition("@")
    port = DEFAULT_SENTINEL_PORT if kind == "sentinel" else DEFAULT_PORT
    addresses = tuple(_parse_host(host, port) for host in hosts.split(","))
    service, _, database = path.strip("/").partition("/")
    if kind == "sentinel" and not service:
        raise ValueError(
            "redis+sentinel://host:port,…/SERVICE: the name of the service that the Sentinels watch is missing"
        )
    if kind == "cluster" and service not in ("", "0"):
        raise ValueError("a Redis Cluster has no databases: nothing may follow its hosts")
    if database and not database.isdigit():
        raise ValueError("the part after the service in redis+sentinel://…/service/N must be the number of a database")
    options = _redis_options(f"{transport}://{credentials}{at}host/{database}?{query}")
    options.pop("host")
    connection_class = options.pop("connection_class", Connection)
    shared = {name: value for name, value in options.items() if name.startswith("ssl_")}
    named = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    return Target(
        kind,
        addresses,
        service if kind == "sentinel" else "",
        connection_class,
        options,
        shared | named | {"ssl": connection_class is SSLConnection},
    )


def _parse_host(text: str, default_port: int) -> Address:
    found = _HOST.match(text)
    if found is None:
        raise ValueError("write hosts as host:port,host:port (or [::1]:port): one of them is not")
    port = int(found["port"] or default_port)
    if not 0 < port < 65536:
        raise ValueError(f"{port} is not a port: use 1 to 65535")
    return found["v6"] or found["name"], port


def _check_options(url: str) -> None:
    for name in parse_qs(url.partition("?")[2], keep_blank_values=True):
        if not _OPTION.fullmatch(name):
            shown = name if re.fullmatch(r"\w{1,40}", name) else "that"
            raise ValueError(
                f"{shown} is no option of a session store's URL: set deadlines and bounds in the section sessions"
            )


def _redis_options(url: str) -> dict[str, Any]:
    try:
        return dict(parse_url(url))
    except ValueError as error:
        # The message of redis-py may quote the URL, and with it the password.
        raise ValueError(
            "not a URL that redis-py understands: check that ports and numbers of TLS options are numbers"
        ) from (None if "@" in url else error)
