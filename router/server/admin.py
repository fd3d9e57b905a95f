"""The admin port: status page, metrics, workers, decisions. It is for the people who run the router, never for clients."""

from __future__ import annotations

import asyncio
import hmac
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from importlib.resources import files
from typing import Any

import msgspec
from aiohttp import web

from router.core.request.record import Record
from router.runtime.logs import redact
from router.server import status
from router.server.audit import Audit
from router.server.auth import bearer_token
from router.server.errors import SERVER
from router.server.failed_logins import WINDOW_S, FailedLogins
from router.server.origins import is_machines_own, is_own_page
from router.server.status.feed import StatusFeed, TooManyViewers

_PAGES = ("/metrics", "/workers", "/decisions", "/health", "/", "/events")
_STATUS = {
    path: (files(status).joinpath(name).read_bytes(), kind)
    for path, name, kind in (
        ("/", "page.html", "text/html"),
        ("/style.css", "style.css", "text/css"),
        ("/script.js", "script.js", "text/javascript"),
    )
}
"""Files without any figure, which a browser may load before it has a token."""
_STATUS_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_EVENTS_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}
WRITE_S = 10.0
"""How long a viewer may take to read an event."""


class AdminPort:
    """``decisions`` has the records of dispatch, the newest last."""

    def __init__(
        self,
        token: str,
        metrics: Callable[[], Awaitable[tuple[bytes, str]]],
        workers: Callable[[], list[dict[str, Any]]],
        decisions: deque[Record],
        feed: StatusFeed,
        audit: Audit,
        failed_logins: FailedLogins,
    ) -> None:
        self._token = token.encode()
        self._failed_logins = failed_logins
        self._audit = audit
        self._metrics = metrics
        self._workers = workers
        self._decisions = decisions
        self._feed = feed

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        answer: web.StreamResponse = self._answer(request)
        if request.path == "/events" and answer.status == 200 and request.method == "GET":
            answer = await self._stream(request)
        elif request.path == "/metrics" and answer.status == 200:
            body, content_type = await self._metrics()
            answer = web.Response(body=body, headers={"Content-Type": content_type})
        answer.headers["Server"] = SERVER
        page = request.path if request.path in _PAGES else "other"
        is_read = answer.status < 400
        if page != "/health" and not (page == "/metrics" and is_read):  # machines read these every few seconds
            self._audit.count("admin call", request.remote, is_read=is_read, page=page, status=answer.status)
        return answer

    async def _stream(self, request: web.BaseRequest) -> web.StreamResponse:
        """Send snapshots until the viewer leaves, stops reading, or has had its number of them."""
        events = self._feed.events()
        response = web.StreamResponse(headers={**_EVENTS_HEADERS, "Server": SERVER})
        try:
            async with aclosing(events):
                async for event in events:
                    if not response.prepared:
                        await response.prepare(request)
                    async with asyncio.timeout(WRITE_S):
                        await response.write(event)
        except TooManyViewers:
            text = f"{self._feed.max_viewers} viewers are connected, and admin.max_viewers allows no more\n"
            return web.Response(status=503, text=text)
        except (ConnectionError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
        return response

    def _answer(self, request: web.BaseRequest) -> web.Response:
        if request.path in _STATUS and request.method in ("GET", "HEAD"):
            body, content_type = _STATUS[request.path]
            return web.Response(body=body, content_type=content_type, charset="utf-8", headers=_STATUS_HEADERS)
        if request.path == "/health" and request.method in ("GET", "HEAD"):  # probes have no token
            return web.Response(text="ok\n")
        if not self._token and not is_machines_own(request.headers.get("Host", "")):
            return web.Response(status=421, text="without admin.token it is asked by address, or as localhost\n")
        if not is_own_page(request.headers):
            return web.Response(status=403, text="a page of another origin may not ask: open the address itself\n")
        if self._token and (refusal := self._refuse_token(request)) is not None:
            return refusal
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, text="GET only\n")
        if request.path == "/workers":
            return _json({"workers": self._workers()})
        if request.path == "/decisions":
            return _json({"decisions": [show_decision(record) for record in reversed(self._decisions)]})
        if request.path == "/events":
            return web.Response(headers=_EVENTS_HEADERS)
        if request.path == "/metrics":
            return web.Response()
        return web.Response(status=404, text="not found\n")

    def _refuse_token(self, request: web.BaseRequest) -> web.Response | None:
        """The refusal of a wrong token; None for the right one."""
        given = request.headers.getall("Authorization", ())
        required = web.Response(status=401, text="token required\n", headers={"WWW-Authenticate": "Bearer"})
        if not given:
            return required
        if not self._failed_logins.may_try(request.remote):
            retry = {"Retry-After": str(round(WINDOW_S))}
            return web.Response(status=429, text="too many wrong tokens from this address: wait\n", headers=retry)
        token = bearer_token(given[0]) if len(given) == 1 else ""
        if hmac.compare_digest(token.encode("utf-8", "surrogateescape"), self._token):
            return None
        self._failed_logins.was_wrong(request.remote)
        return required


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def show_decision(record: Record) -> dict[str, Any]:
    return {
        "request_id": record.request_id,
        "route": record.route.path,
        "model": redact(record.model),  # a client may write any text here
        "stream": record.stream,
        "worker": record.worker,
        "first_choice": record.first_choice,
        "policy": record.policy,
        "reason": record.reason,
        "status": record.status,
        "outcome": record.outcome,
        "attempts": record.attempts,
        "tried": [msgspec.structs.asdict(attempt) for attempt in record.tried],
        "retries": record.retries,
        "given_up": record.given_up,
        "resumptions": [resumption._asdict() for resumption in record.resumptions],
        "queued_s": round(record.queued_s, 6),
        "prompt_tokens": record.prompt_tokens,
        "predicted_cached_tokens": round(record.predicted_cached_tokens),
        "actual_cached_tokens": record.actual_cached_tokens,
        "decide_s": round(max(record.decided_at - record.started_at, 0.0), 6),
        "time_to_first_token_s": round(max(record.first_byte_at - record.started_at, 0.0), 6),
        "duration_s": round(max(record.ended_at - record.started_at, 0.0), 6),
    }
