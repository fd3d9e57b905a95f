"""What of Kubernetes' API a router asks for, over HTTP as the real one: lists in pages, watches from a version, bookmarks,
versions that are forgotten, and connections that break."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

PATH = "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
ENDPOINTS_OF_A_SLICE = 100
TOKEN = "token-of-the-tests"

Endpoint = dict[str, Any]


def endpoint(host: str, *, ready: bool | None = True, terminating: bool | None = None) -> Endpoint:
    conditions = {"ready": ready, "serving": ready, "terminating": terminating}
    return {"addresses": [host], "conditions": {name: value for name, value in conditions.items() if value is not None}}


class KubernetesApi:
    """``history``: so many events are kept to watch from. ``page``: slices of one list's answer, whatever is asked for."""

    def __init__(self, history: int = 1000, page: int = 2) -> None:
        self.version = 1
        self.slices: dict[str, dict[str, Any]] = {}
        self.events: list[tuple[int, dict[str, Any]]] = []
        self.history = history
        self.page = page
        self.port = 0
        self.token = TOKEN
        self.lists = self.watches = 0
        self.watched_at: list[float] = []
        self.ends_watches = False
        self.fails = 0
        """Answer 500 so often."""
        self._slice_of: dict[str, int] = {}
        self._watching: set[web.StreamResponse] = set()
        self._changed = asyncio.Event()

    # What happens in the cluster

    def put(
        self, name: str, endpoints: list[Endpoint], *, service: str = "vllm", port: int = 8000, **more: Any
    ) -> None:
        kind = "MODIFIED" if name in self.slices else "ADDED"
        self.slices[name] = {
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
            **more,
        }
        self._happen(kind, self.slices[name])

    def put_all(self, hosts: dict[str, Endpoint], port: int) -> None:
        """Each stays in its slice. Only slices that changed are told of."""
        slices: dict[str, list[Endpoint]] = {}
        for host, told in hosts.items():
            number = self._slice_of.setdefault(host, len(self._slice_of) // ENDPOINTS_OF_A_SLICE)
            slices.setdefault(f"vllm-{number}", []).append(told)
        for name, endpoints in slices.items():
            if self.slices.get(name, {}).get("endpoints") != endpoints:
                self.put(name, endpoints, port=port)
        for name in self.slices.keys() - slices.keys():
            self.delete(name)

    def delete(self, name: str) -> None:
        self._happen("DELETED", self.slices.pop(name))

    def bookmark(self) -> None:
        self._happen("BOOKMARK", {"metadata": {}})

    def forget_history(self) -> None:
        self.version += 1
        self.events.clear()

    async def break_watches(self) -> None:
        for response in list(self._watching):
            if response._req is not None and response._req.transport is not None:
                response._req.transport.abort()
        await asyncio.sleep(0)

    def _happen(self, kind: str, what: dict[str, Any]) -> None:
        self.version += 1
        what["metadata"]["resourceVersion"] = str(self.version)
        event = {"type": kind, "object": json.loads(json.dumps(what))}
        self.events = [*self.events, (self.version, event)][-self.history :]
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # What a router asks

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"code": 401, "message": "Unauthorized"}, status=401)
        if self.fails:
            self.fails -= 1
            return web.json_response({"code": 500, "message": "no"}, status=500)
        selector = request.query.get("labelSelector", "")
        assert selector.startswith("kubernetes.io/service-name="), selector
        if "watch" in request.query:
            return await self._watch(request)
        return self._list(request, selector.partition("=")[2])

    def _list(self, request: web.Request, service: str) -> web.Response:
        self.lists += 1
        found = [
            each for each in self.slices.values() if each["metadata"]["labels"]["kubernetes.io/service-name"] == service
        ]
        start = int(request.query.get("continue", "0"))
        page = found[start : start + self.page]
        more = str(start + self.page) if start + self.page < len(found) else ""
        return web.json_response({"metadata": {"resourceVersion": str(self.version), "continue": more}, "items": page})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        self.watches += 1
        version = int(request.query["resourceVersion"])
        oldest = self.events[0][0] if self.events else self.version + 1
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if version + 1 < oldest and version < self.version:
            status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            await response.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
            return response
        self.watched_at.append(time.monotonic())
        if self.ends_watches:
            return response
        self._watching.add(response)
        try:
            async with asyncio.timeout(float(request.query["timeoutSeconds"])):
                while True:
                    changed = self._changed
                    for number, event in [each for each in self.events if each[0] > version]:
                        await response.write(json.dumps(event).encode() + b"\n")
                        version = number
                    await changed.wait()
        except (TimeoutError, ConnectionError):
            return response
        finally:
            self._watching.discard(response)

    def kubeconfig(self, folder: Path) -> str:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "tests",
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "router"}}],
            "clusters": [{"name": "tests", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "router", "user": {"token": TOKEN}}],
        }
        path = folder / "kubeconfig"
        path.write_text(json.dumps(config))
        return str(path)


@asynccontextmanager
async def kubernetes_api(**settings: Any) -> AsyncIterator[KubernetesApi]:
    api = KubernetesApi(**settings)
    app = web.Application()
    app.router.add_get(PATH, api.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        api.port = runner.addresses[0][1]
        yield api
    finally:
        await runner.cleanup()
