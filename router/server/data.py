"""The data port: routes a request, admits it, reads its body, and maps errors to answers. Dispatch selects the worker.

Paths are matched exactly, and any other path is 404. aiohttp's low-level server calls ``handle`` for each request, since its
router, middlewares and access log would cost more than the whole selection.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable, Collection
from enum import Enum
from functools import partial

import msgspec
from aiohttp import web
from multidict import CIMultiDict

from router.config.serving import LimitsConfig, ServerConfig
from router.core.errors import (
    BodyTimeout,
    ConnectionsLimited,
    Draining,
    MalformedRequest,
    MethodNotAllowed,
    ModelNotFound,
    RouterError,
    UnsupportedEncoding,
)
from router.core.fleet.catalog import Catalog
from router.core.request.request import NO_TENANT
from router.core.request.routes import Api, Route
from router.core.request.trace import TRACE
from router.core.tenants.memory import UNCOUNTED_BYTES, UNREAD, Holding, MemoryBudget
from router.core.tenants.tenant import Caller
from router.proxy.ports import Dispatch
from router.proxy.tenant_limits import TenantLimits
from router.runtime.logs import ABOUT, redact
from router.runtime.reference_cycles import untie_error
from router.server.auth import Gate
from router.server.bodies import answer_unread, body_limits, read_body, require_room
from router.server.client import ClientConnection
from router.server.errors import SERVER, error_response
from router.server.openapi import describe
from router.server.origins import Origins
from router.server.page_routes import Call, Match, PageRoutes
from router.server.parsing.pool import CHEAP_BYTES, Parsers, is_cheap
from router.server.plain_pages import PlainPages
from router.server.slow_client import slow_client_rule
from router.wire.client_head import check_fields, check_target, exact_path
from router.wire.requests import Parsed, parse_apart

log = logging.getLogger("warmroute.server")

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

REQUEST_ID_BYTES = 9


class Phase(Enum):
    """How a router stops: it announces that, and serves on; then it takes nothing new."""

    OPEN = 0
    LEAVING = 1
    DRAINING = 2


class DataPort:
    """Answers every request of the data port."""

    def __init__(
        self,
        server: ServerConfig,
        limits: LimitsConfig,
        dispatch: Dispatch,
        catalog: Catalog,
        clock: Callable[[], float],
        observe_refusal: Callable[[str, int], None],
        gate: Gate,
        observe_cut: Callable[[str], None],
        memory: MemoryBudget,
        parsers: Parsers,
        tenant_limits: TenantLimits,
        state: PageRoutes | None = None,
        *,
        resumes: bool = True,
    ) -> None:
        """``state``: the stateful routes, if there are any. ``resumes``: keep streams so that another worker can resume
        them."""
        self.memory = memory
        self._parsers = parsers
        self._tenant_limits = tenant_limits
        self._state = state
        self._gate = gate
        self._server = server
        self._limits = limits
        self._routes = {route.path: route for route in Route}
        self._limits_of = {
            route: msgspec.structs.replace(limits, max_body_bytes=route.spec.max_body_bytes or limits.max_body_bytes)
            for route in Route
        }
        self._dispatch = dispatch
        self._clock = clock
        self._observe_refusal = observe_refusal
        self._observe_cut = observe_cut
        self._slow_rule = slow_client_rule(limits)
        self.key_connections = gate.connections
        self._parse = partial(parse_apart, limits=body_limits(limits), resumes=resumes)
        description = describe(limits, state.describe if state is not None else None)
        self._plain = PlainPages(gate, catalog, description, lambda: self.phase is Phase.OPEN)
        self._origins = Origins(server)
        self.phase = Phase.OPEN
        self.live = 0
        self._clients: dict[asyncio.BaseProtocol, ClientConnection] = {}
        """Clients by connection. A connection has one request at a time."""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; called by aiohttp. Only this function catches unexpected exceptions."""
        started_at = self._clock()
        path = request.raw_path
        route = self._routes.get(path) or self._routes.get(exact_path(path))
        request_id = self._request_id(request)
        if (trace := TRACE.get()) is not None:
            trace.request_id, trace.route = request_id, route.path if route else ""
        ABOUT.set((request_id, trace.trace_id if trace is not None and trace.is_sampled else ""))
        memory = self.memory.hold(NO_TENANT)
        self.live += 1
        try:
            check_fields(request.raw_headers, request.version)
            if path not in self._routes:
                check_target(request.method, path)
            if self._origins.any_listed and (early := self._origins.check(request)) is not None:
                return early
            if route is not None:
                return await self._infer(request, route, request_id, started_at, memory)
            if self._state is not None and (match := self._state.find(path)) is not None:
                return await self._answer_state(request, match, request_id, started_at, memory)
            return await self._written(request, self._plain.answer(request), memory)
        except RouterError as error:
            untie_error(error)
            memory.release()
            return await self._answer_error(request, error, route, request_id)
        except Exception as error:
            log.exception("unexpected error", extra={"request_id": request_id})
            untie_error(error)
            begun = self._clients.get(request.protocol)
            if begun is not None and begun.has_started:
                begun.abort()
                return begun.sent()
            self._observe_refusal(route.path if route else "other", 500)
            return error_response(RouterError("internal error"), route, request_id)
        finally:
            self.live -= 1
            memory.release()
            self._clients.pop(request.protocol, None)

    async def _infer(
        self, request: web.BaseRequest, route: Route, request_id: str, started_at: float, memory: Holding
    ) -> web.StreamResponse:
        """Answer a request by a worker."""
        limits = self._limits_of[route]
        takes_x_api_key = route.spec.errors is Api.ANTHROPIC
        caller = self._admit(request, route.path, ("POST",), memory, limits, takes_x_api_key=takes_x_api_key)
        body = await read_body(request, limits, memory)
        if len(body) < CHEAP_BYTES:
            parsed = self._parse(body, route, request.headers, caller, request_id).of(body)
        else:
            parsed = (await self._parse_large(route, body, request, caller, request_id)).of(body)
        del body  # the request holds it now
        if not caller.rules.may_use(parsed.model):
            raise ModelNotFound.of(parsed.model)
        client = self._connect(request, route, request_id, caller, parsed.hidden_salt, memory)
        await self._dispatch.dispatch(parsed, client, started_at, caller.rules)
        return await self._sent(request, client)

    async def _answer_state(
        self, request: web.BaseRequest, match: Match, request_id: str, started_at: float, memory: Holding
    ) -> web.StreamResponse:
        """Answer a request of a stateful route. Its page returns JSON, or answers the client's connection itself."""
        if (trace := TRACE.get()) is not None:
            trace.route = match.template
        caller = self._admit(request, match.template, match.by_method, memory, self._limits)
        with self._tenant_limits.visit(caller.rules):
            call = Call(
                names=match.names,
                query=request.query,
                headers=request.headers,
                body=await read_body(request, self._limits, memory),
                caller=caller,
                request_id=request_id,
                started_at=started_at,
                connect=partial(self._connect, request, Route.CHAT, request_id, caller, memory=memory),
                parsers=self._parsers,
                memory=memory,
            )
            answer = await match.by_method[request.method](call)
        if answer is None:
            return await self._sent(request, self._clients[request.protocol])
        headers = {"X-Request-Id": request_id, "Server": SERVER}
        response = web.Response(body=answer, content_type="application/json", headers=headers)
        return await self._written(request, response, memory)

    async def _written(self, request: web.BaseRequest, response: web.Response, memory: Holding) -> web.StreamResponse:
        """Send an answer of the router itself. Most of a large one has been read when this returns."""
        self._origins.add_to(request, response)
        if self.phase is not Phase.OPEN:
            response.force_close()
        if isinstance(response.body, bytes) and len(response.body) > UNCOUNTED_BYTES:
            memory.grow(UNREAD, len(response.body))
            await response.prepare(request)
            await response.write_eof()
        return response

    async def _sent(self, request: web.BaseRequest, client: ClientConnection) -> web.StreamResponse:
        """Wait until the client has read the answer. Workers and sessions are released already."""
        del self._clients[request.protocol]
        await client.drained()
        return client.sent()

    def _connect(
        self, request: web.BaseRequest, route: Route, request_id: str, caller: Caller, hidden: str, memory: Holding
    ) -> ClientConnection:
        client = ClientConnection(
            request,
            route,
            memory=memory,
            extra_head=b"X-Request-Id: %b\r\n%b" % (request_id.encode(), self._origins.head(request)),
            slow_rule=self._slow_rule,
            decision_headers=self._server.decision_headers or caller.rules.sees_decisions,
            stays_open=self.phase is Phase.OPEN,
            hidden=hidden,
        )
        self._clients[request.protocol] = client
        return client

    def new_request_id(self) -> str:
        return os.urandom(REQUEST_ID_BYTES).hex()

    def cut_short(self) -> None:
        """End all requests: a stream by an error event, and a request without an answer by a 503."""
        for client in tuple(self._clients.values()):
            client.cut_short(Draining("the router is shutting down", retry_after_s=1))

    # Requests

    def _admit(
        self,
        request: web.BaseRequest,
        path: str,
        methods: Collection[str],
        memory: Holding,
        limits: LimitsConfig,
        *,
        takes_x_api_key: bool = False,
    ) -> Caller:
        """The caller of a request with a body, which is refused by its head if possible. Raises ClientError, Draining."""
        caller = self._gate.admit(request, takes_x_api_key=takes_x_api_key)
        memory.owner = caller.rules.tenant
        if request.method not in methods:
            raise MethodNotAllowed(f"{path} takes {', '.join(sorted(methods))}")
        if self.phase is Phase.DRAINING:
            raise Draining("the router is shutting down", retry_after_s=1)
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedEncoding("this Content-Encoding is not supported: send the body as it is")
        require_room(request.content_length or 0, limits)
        return caller

    def _request_id(self, request: web.BaseRequest) -> str:
        given = request.headers.get("X-Request-Id")
        if given and _REQUEST_ID.fullmatch(given) and redact(given) == given:
            return given
        return self.new_request_id()

    async def _parse_large(
        self, route: Route, body: bytes, request: web.BaseRequest, caller: Caller, request_id: str
    ) -> Parsed:
        headers = CIMultiDict(request.headers)
        parse = partial(self._parse, route=route, headers=headers, caller=caller, request_id=request_id)
        return parse(body) if is_cheap(body) else await self._parsers.run(caller.rules.tenant, parse, body)

    # Errors

    async def _answer_error(
        self, request: web.BaseRequest, error: RouterError, route: Route | None, request_id: str
    ) -> web.StreamResponse:
        """Count the error, and answer it without waiting for the rest of the body."""
        if not error.is_counted:
            self._observe_refusal(route.path if route else "other", error.status)
        response = error_response(error, route, request_id)
        self._origins.add_to(request, response)
        if isinstance(error, MalformedRequest | ConnectionsLimited) or self.phase is not Phase.OPEN:
            response.force_close()
        if isinstance(error, BodyTimeout):
            self._observe_cut("body_timeout")
        if not request.content.is_eof():
            is_lost = isinstance(error, BodyTimeout | MalformedRequest)
            await answer_unread(request, response, 0 if is_lost else self._limits.max_body_bytes)
        return response
