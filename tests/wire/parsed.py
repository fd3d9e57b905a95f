"""A body, read and changed as the data port does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router.core.request.request import Request
from router.core.request.routes import Route
from router.core.tenants.tenant import Caller
from router.wire.requests import parse_apart


def parse_request(
    route: Route, body: bytes, headers: Mapping[str, str], caller: Caller, request_id: str, **more: Any
) -> Request:
    return parse_apart(body, route, headers, caller, request_id, **more).of(body)
