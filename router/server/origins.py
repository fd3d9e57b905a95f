"""Host names that are served, and browsers' origins that may read answers: for those who listed any."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import web

from router.config.serving import ANY_ORIGIN, ServerConfig
from router.core.errors import HostNotAllowed
from router.server.errors import SERVER
from router.wire.client_head import target_host

_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]+))(?::\d*)?")
_METHODS = "GET, POST, DELETE"
EXPOSED = (
    "Retry-After",
    "X-Request-Id",
    "x-should-retry",
    "x-warmroute-predicted-cached-tokens",
    "x-warmroute-reason",
    "x-warmroute-session",
    "x-warmroute-state",
    "x-warmroute-worker",
)
"""Headers of answers that pages may read, beside those that every page may (Fetch standard, CORS-safelisted response-header
name)."""

PROBES = ("/health", "/ready")
"""Asked for by address, as Kubernetes' nodes do: they tell nothing that a page of another origin could use."""


class Origins:
    def __init__(self, server: ServerConfig) -> None:
        self._hosts = frozenset(map(str.lower, server.allowed_hosts))
        self._origins = frozenset(server.cors_origins)
        self.any_listed = bool(self._hosts or self._origins)

    def check(self, request: web.BaseRequest) -> web.StreamResponse | None:
        """The answer to a browser's question whether it may ask. Raises HostNotAllowed."""
        named = target_host(request.raw_path) or request.headers.get("Host", "")
        if self._hosts and request.path not in PROBES and host_name(named) not in self._hosts:
            raise HostNotAllowed("this host name is not served here")
        if request.method == "OPTIONS" and self._origin_of(request):
            response = web.Response(status=204, headers={"Server": SERVER})
            self.add_to(request, response)
            response.headers["Access-Control-Allow-Methods"] = _METHODS
            response.headers["Access-Control-Allow-Headers"] = request.headers.get(
                "Access-Control-Request-Headers", "authorization, content-type"
            )
            response.headers["Access-Control-Max-Age"] = "600"
            return response
        return None

    def add_to(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        response.headers.update(self._headers(request))

    def head(self, request: web.BaseRequest) -> bytes:
        """The same as lines of a head."""
        return "".join(f"{name}: {value}\r\n" for name, value in self._headers(request).items()).encode("latin-1")

    def _headers(self, request: web.BaseRequest) -> dict[str, str]:
        origin = self._origin_of(request)
        if not origin:
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": ", ".join(EXPOSED),
            "Vary": "Origin",
        }

    def _origin_of(self, request: web.BaseRequest) -> str:
        """As it may be told: itself, or * for any; empty where it is not listed, or nobody asks for a page."""
        if not self._origins:
            return ""
        origin = request.headers.get("Origin", "")
        if origin and ANY_ORIGIN in self._origins:
            return ANY_ORIGIN
        return origin if origin in self._origins else ""


def host_name(header: str) -> str:
    """Of a Host header (RFC 9110, section 7.2) the name, without a port or an address's brackets; empty if it is none."""
    match = _HOST.fullmatch(header)
    return (match[1] or match[2]).lower() if match else ""


def is_machines_own(header: str) -> bool:
    """Whether a Host header is an address, or the name that is this machine's for every browser: no name that somebody else may
    let lead here for a moment, so that a page of theirs reads what is answered (DNS rebinding)."""
    name = host_name(header)
    if name == "localhost":
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def is_own_page(headers: Mapping[str, str]) -> bool:
    """Whether no browser asks this for a page of another origin. Origin is not sent with every question of a page (an image has
    none), so Sec-Fetch-Site (W3C Fetch Metadata) is read too; programs send neither."""
    if headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
        return False
    origin = headers.get("Origin")
    return origin is None or urlsplit(origin).netloc.lower() == headers.get("Host", "").lower()
