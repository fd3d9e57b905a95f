"""A worker's address, and the name that is derived from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType
from urllib.parse import urlsplit

import xxhash

from router.core.address import is_forbidden

WorkerName = NewType("WorkerName", str)
"""An opaque, stable name, which clients, metrics and logs see in place of a URL."""


@dataclass(frozen=True, slots=True)
class WorkerAddress:
    """Where a worker listens: an origin (scheme, host, port), without a path."""

    scheme: str
    host: str
    port: int

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def name(self) -> WorkerName:
        """Derived from the URL alone, so that every replica calls a worker by the same name."""
        return WorkerName(f"w-{xxhash.xxh3_64_hexdigest(self.url.encode())[:8]}")


def parse_address(url: str) -> WorkerAddress:
    """``http(s)://host[:port]`` → address. Raises ValueError, saying what is wrong with the URL."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"worker URL {url!r} must begin with http:// or https://")
    if not parts.hostname:
        raise ValueError(f"worker URL {url!r} names no host")
    if is_forbidden(parts.hostname):
        raise ValueError(f"worker URL {url!r} is link-local or a cloud's metadata service, where no worker may be")
    if parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(f"worker URL {url!r} must be an origin only: no path, query or user")
    port = parts.port if parts.port is not None else (443 if parts.scheme == "https" else 80)
    if port == 0:
        raise ValueError(f"worker URL {url!r} must name a port from 1 to 65535")
    return WorkerAddress(parts.scheme, parts.hostname, port)
