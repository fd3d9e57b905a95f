"""Every line of the route table is served as it says, also a line that nothing else in the code knows."""

from __future__ import annotations

from typing import Any

import pytest

from router.core.request.routes import Api, Route, RouteSpec
from tests.e2e.routed import get, get_admin, post, routed
from tests.upstream.scripted import scripted

BODIES: dict[Route, dict[str, Any]] = {
    Route.CHAT: {"messages": [{"role": "user", "content": "x"}]},
    Route.COMPLETIONS: {"prompt": "x"},
    Route.MESSAGES: {"messages": [{"role": "user", "content": "x"}]},
    Route.COUNT_TOKENS: {"messages": [{"role": "user", "content": "x"}]},
    Route.EMBEDDINGS: {"input": "x"},
    Route.RERANK: {"query": "x", "documents": ["x"]},
    Route.SCORE: {"text_1": "x", "text_2": "x"},
}


def add_line(monkeypatch: pytest.MonkeyPatch, spec: RouteSpec) -> Route:
    """What a new line of the table makes of the Enum when the module is imported."""
    route = object.__new__(Route)
    route._name_, route._value_ = "NEW", spec
    route.__init__(spec)  # type: ignore[misc]
    monkeypatch.setitem(Route._member_map_, "NEW", route)
    monkeypatch.setattr(Route, "_member_names_", [*Route._member_names_, "NEW"])
    return route


async def check(route: Route, body: dict[str, Any]) -> None:
    async with scripted() as worker, routed(worker.url) as router:
        answer = await post(router, route.path, {"model": "m", **body})
        assert (answer.status, answer.body) == (200, b"{}")
        assert [asked.path for asked in worker.asked] == [route.path]
        assert worker.asked[0].headers["content-type"] == "application/json"
        refused = await post(router, route.path, {"model": 1})
        assert refused.status == 400
        assert ("type" in refused.json) == (route.spec.errors is Api.ANTHROPIC)
        described = (await get(router, "/openapi.json")).json["paths"][route.path]["post"]
        assert described["summary"] == route.spec.title
        metrics = (await get_admin(router, "/metrics")).body.decode()
        assert f'warmroute_requests_total{{model="m",route="{route.path}",status="200"}} 1.0' in metrics


@pytest.mark.parametrize("route", Route)
async def test_a_route_is_served_as_its_line_says(route: Route) -> None:
    await check(route, BODIES[route])


async def test_a_new_route_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    await check(add_line(monkeypatch, RouteSpec("/v1/classify", "The class of each text", "classify")), {"input": "x"})


async def test_a_route_has_a_largest_body_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    route = add_line(monkeypatch, RouteSpec("/v1/classify", "The class of each text", "classify", max_body_bytes=99))
    async with scripted() as worker, routed(worker.url) as router:
        large = {"model": "m", "input": "x" * 99}
        assert (await post(router, route.path, large)).status == 413
        assert (await post(router, Route.EMBEDDINGS.path, large)).status == 200
