"""Checks the Host header and browsers' Origin against the lists in the configuration, if it has any."""

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
"""Headers of answers that pages may read, besides those that every page may read (Fetch standard, CORS-safelisted
response-header name)."""

PROBES = ("/health", "/ready")
"""Paths that Kubernetes requests by address. Their answers are useless to a page of another origin."""


class Origins:
    def __init__(self, server: ServerConfig) -> None:
        self._hosts = frozenset(map(str.lower, server.allowed_hosts))
        self._origins = frozenset(server.cors_origins)
        self.any_listed = bool(self._hosts or self._origins)

    def check(self, request: web.BaseRequest) -> web.StreamResponse | None:
        """The answer to a browser's preflight request; None for any other request. Raises HostNotAllowed."""
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
        """The CORS headers as lines of a head."""
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
        """The origin for the answer: the page's own, or * for any. Empty if it is not listed, or if the request is not a
        page's."""
        if not self._origins:
            return ""
        origin = request.headers.get("Origin", "")
        if origin and ANY_ORIGIN in self._origins:
            return ANY_ORIGIN
        return origin if origin in self._origins else ""


def host_name(header: str) -> str:
    """The name in a Host header (RFC 9110, section 7.2), without a port or the brackets of an address; empty if it has none."""
    match = _HOST.fullmatch(header)
    return (match[1] or match[2]).lower() if match else ""


def is_machines_own(header: str) -> bool:
    """True if a Host header is an address, or a name that means this machine in every browser. Any other name may be made to
    resolve to this machine for a moment, so that a foreign page could read the answer (DNS rebinding)."""
    name = host_name(header)
    if name == "localhost":
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def is_own_page(headers: Mapping[str, str]) -> bool:
    """False if a browser sends this for a page of another origin. Not every request of a page has an Origin, for example for
    an image, so Sec-Fetch-Site (W3C Fetch Metadata) is read, too. Programs send neither."""
    if headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
        return False
    origin = headers.get("Origin")
    return origin is None or urlsplit(origin).netloc.lower() == headers.get("Host", "").lower()
