"""Pages of the data port that need no worker: models, health, readiness, and the description of the API."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from aiohttp import web

from router.core.errors import MethodNotAllowed, RouteNotFound
from router.core.fleet.catalog import Catalog
from router.server.auth import Gate
from router.server.errors import SERVER
from router.wire.client_head import exact_path


class PlainPages:
    def __init__(self, gate: Gate, catalog: Catalog, description: bytes, is_open: Callable[[], bool]) -> None:
        """``description``: of the API, in JSON. ``is_open``: False from the moment at which the router starts to leave."""
        self._gate = gate
        self._catalog = catalog
        self._description = description
        self._is_open = is_open
        self._pages: dict[str, Callable[[web.BaseRequest], web.Response]] = {
            "/v1/models": self._models,
            "/health": lambda _request: web.Response(text="ok\n"),
            "/ready": self._ready,
            "/openapi.json": self._describe,
        }

    def answer(self, request: web.BaseRequest) -> web.Response:
        """Raises RouteNotFound, MethodNotAllowed, InvalidApiKey."""
        path = exact_path(request.raw_path)
        page = self._pages.get(path)
        if page is None:
            raise RouteNotFound("there is no such path")  # the path is not quoted, since people put keys into URLs
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed(f"{path} takes GET")
        response = page(request)
        response.headers["Server"] = SERVER
        return response

    def _ready(self, _request: web.BaseRequest) -> web.Response:
        if not self._is_open():
            return web.Response(status=503, text="draining\n")
        if not self._catalog.is_ready():
            return web.Response(status=503, text="no worker can serve yet\n")
        return web.Response(text="ready\n")

    def _describe(self, _request: web.BaseRequest) -> web.Response:
        return web.Response(body=self._description, content_type="application/json")

    def _models(self, request: web.BaseRequest) -> web.Response:
        rules = self._gate.admit(request, takes_x_api_key=True).rules
        cards = [card for name, card in self._catalog.served_models().items() if rules.may_use(name)]
        return web.Response(
            body=msgspec.json.encode({"object": "list", "data": cards}), content_type="application/json"
        )
