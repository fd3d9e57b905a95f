"""Simulated workers for a test, and a client that asks them over real sockets."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from router.simulator import SimulatedFleet, SimulatorSettings, start_fleet


class Client:
    """One worker of a fleet, and a session to ask it."""

    def __init__(self, fleet: SimulatedFleet, session: aiohttp.ClientSession) -> None:
        self.fleet = fleet
        self.session = session

    async def post(self, path: str, worker: int = 0, **body: Any) -> tuple[int, Any]:
        async with self.session.post(self.fleet.urls[worker] + path, json=body) as response:
            assert response.content_type == "application/json"
            return response.status, await response.json()

    async def get(self, path: str, worker: int = 0) -> tuple[int, str]:
        async with self.session.get(self.fleet.urls[worker] + path) as response:
            return response.status, await response.text()

    async def stream(self, path: str, worker: int = 0, **body: Any) -> list[Any]:
        """The data of each event, decoded but for [DONE]."""
        async with self.session.post(self.fleet.urls[worker] + path, json={**body, "stream": True}) as response:
            assert response.status == 200
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            raw = await response.text()
        events = [event.split("data: ", 1)[1] for event in raw.removesuffix("\n\n").split("\n\n")]
        return [event if event == "[DONE]" else json.loads(event) for event in events]

    async def metric(self, name: str, worker: int = 0, **labels: str) -> float:
        families = text_string_to_metric_families((await self.get("/metrics", worker))[1])
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return next(s.value for s in samples if all(s.labels.get(key) == value for key, value in labels.items()))


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[Client]:
    defaults: dict[str, Any] = {"workers": 1, "base_port": 0, "block_tokens": 32, "time_scale": 10_000.0}
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(await start_fleet(SimulatorSettings(**{**defaults, **settings})))
        yield Client(fleet, await stack.enter_async_context(aiohttp.ClientSession()))


def text_of(events: list[Any]) -> str:
    choices = [choice for event in events if event != "[DONE]" for choice in event["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)
