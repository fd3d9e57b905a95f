"""Writes errors in the shape that clients read: OpenAI's, and Anthropic's on its routes."""

from __future__ import annotations

import msgspec
from aiohttp import web

from router.core.errors import RouterError
from router.core.request.routes import Api, Route

SERVER = "warmroute"
"""Value of the Server header. It has no version, which would help attackers."""

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

_RETRIED = frozenset({408, 409, 429})
"""Statuses that official clients retry by default, besides every 5xx."""


def error_body(error: RouterError, route: Route | None) -> bytes:
    if route is not None and route.spec.errors is Api.ANTHROPIC:
        kind = _ANTHROPIC_TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
        return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": error.message}})
    return msgspec.json.encode(
        {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}
    )


def error_response(error: RouterError, route: Route | None, request_id: str) -> web.Response:
    headers = {"X-Request-Id": request_id, "Server": SERVER}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if not error.retryable and (error.status >= 500 or error.status in _RETRIED):
        headers["x-should-retry"] = "false"
    return web.Response(
        status=error.status, body=error_body(error, route), content_type="application/json", headers=headers
    )
