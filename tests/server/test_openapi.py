"""The description that the router serves is true: whatever is made from it, and from its opposite, gets an answer that it
names, and no request meets an error that nobody foresaw."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import schemathesis
import uvloop
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from router.app.serve import running
from router.config.schema import LimitsConfig, load_config
from router.core.request.routes import Route
from router.server.openapi import describe
from router.sessions.api.conversations import ConversationPages
from router.sessions.api.openapi import describe_state
from router.sessions.api.responses import ResponsePages
from router.sessions.api.sessions import SessionPages
from router.simulator import SimulatorSettings, start_fleet
from tests.e2e.routed import QUICK

DESCRIPTION = json.loads(describe(LimitsConfig(), describe_state))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
MOST_TOKENS = 16

schema = schemathesis.openapi.from_dict(DESCRIPTION)


class Serving(threading.Thread):
    """A router and simulated workers on a loop of their own, since the requests are made without one."""

    def __init__(self) -> None:
        super().__init__(name="router")
        self.is_up = threading.Event()
        self.url = ""

    def run(self) -> None:
        uvloop.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        async with await start_fleet(SimulatorSettings(workers=2, base_port=0, time_scale=1000)) as fleet:
            flags = {**QUICK, "fleet.workers": fleet.urls}
            async with running(load_config(None, {}, flags)) as router:
                self.url = router.url
                self.is_up.set()
                await self._ended.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self.join()


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """A router's URL. Nothing may be logged as unforeseen meanwhile."""
    errors: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: errors.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    serving = Serving()
    serving.start()
    assert serving.is_up.wait(20)
    try:
        yield serving.url
    finally:
        serving.stop()
        logging.getLogger().removeHandler(handler)
    assert errors == []


@schema.parametrize()
@settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_every_request_of_the_description_and_its_opposite_gets_a_described_answer(
    served: str, case: schemathesis.Case[Any]
) -> None:
    body = case.body
    for name in ("max_tokens", "max_output_tokens"):
        if isinstance(body, dict) and isinstance(asked := body.get(name), int):
            body[name] = min(asked, MOST_TOKENS)  # a simulated worker would speak that long
    is_state = case.path.startswith(("/v1/sessions", "/v1/responses"))
    if is_state and isinstance(body, dict) and isinstance(model := body.get("model"), str) and len(model) % 2:
        body["model"] = "sim"  # else few requests would come as far as a worker
    response = case.call(base_url=served, timeout=10)
    case.validate_response(response, checks=CHECKS)


def test_every_route_is_described() -> None:
    plain = {"/v1/models", "/health", "/ready", "/openapi.json"}
    stateless = {route.path for route in Route} | plain
    assert set(json.loads(describe(LimitsConfig()))["paths"]) == stateless
    turns: Any = SimpleNamespace(histories=None)
    unused: Any = None
    made = (turns, unused, unused, unused)
    doors = (SessionPages(*made), ResponsePages(*made, unused), ConversationPages(*made, unused))
    kept = {(path, method.lower()) for door in doors for method, path in door.pages()}
    described = {(path, method) for path, methods in DESCRIPTION["paths"].items() for method in methods}
    assert {each for each in described if each[0] not in stateless} == kept


def test_the_served_description_is_the_one_that_was_checked(served: str) -> None:
    response = schema["/openapi.json"]["GET"].Case().call(base_url=served)
    found = response.json()
    assert {**found, "info": DESCRIPTION["info"]} == DESCRIPTION
