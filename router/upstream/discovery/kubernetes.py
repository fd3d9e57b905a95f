"""Workers that are the pods of a Kubernetes Service. The pods are listed once and then watched, so that a terminating pod gets
no request as soon as the API reports it.

A watch that breaks continues from the version that it had reached, and the known pods stay meanwhile. All pods are listed anew
when the API no longer has that version, and from time to time. Needs the extra ``kubernetes``.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing
from typing import Any, ClassVar

from aiohttp import ClientError, ClientResponse, ClientTimeout
from kubernetes_asyncio.client import ApiClient, ApiException, Configuration, DiscoveryV1Api
from kubernetes_asyncio.config import ConfigException, load_incluster_config, load_kube_config

from router.config.workers import FleetConfig
from router.core.worker import WorkerAddress
from router.runtime.bounded_body import read_body
from router.runtime.log_once import LogOnce
from router.upstream.discovery import Unreadable
from router.upstream.discovery.endpoint_slices import BadSlices, EndpointSlices, Gone, Slice, read_list

log = logging.getLogger("warmroute.fleet")

PAGE = 500
"""Slices in one answer. A slice has up to a hundred endpoints."""

MAX_LIST_BYTES = 64 << 20
FIRST_PAUSE_S, MAX_PAUSE_S = 0.2, 15.0
GRACE_S = 10.0
"""How late the API may end a watch. After that the watch is aborted."""

MIN_BETWEEN_LISTS_S, MIN_BETWEEN_WATCHES_S = 1.0, 0.2
"""Shortest times between two lists and two watches, in case the API ends each watch at once."""


class _Refused(Exception):
    """The API refused. The message has its status."""


WATCH_S, RESYNC_S, TIMEOUT_S = 60.0, 600.0, 10.0
"""How long a watch is, how often all pods are listed anew, and how long a list may take."""


class KubernetesSource:
    """``on_change`` is called after each change of the pods that may get requests. ``run`` must be running."""

    kind: ClassVar[str] = "kubernetes"

    def __init__(
        self,
        fleet: FleetConfig,
        on_change: Callable[[], None],
        clock: Callable[[], float],
        chance: random.Random,
        *,
        watch_s: float = WATCH_S,
        resync_s: float = RESYNC_S,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._namespace, _, rest = fleet.workers_kubernetes.partition("/")
        self._service, _, port = rest.partition(":")
        self._kubeconfig = fleet.kubeconfig
        self._watch_s, self._resync_s, self._timeout_s = watch_s, resync_s, timeout_s
        self._on_change = on_change
        self._clock = clock
        self._chance = chance
        self._slices = EndpointSlices("http", port)
        self._addresses: Sequence[WorkerAddress] = ()
        self._errors = LogOnce()
        self._listed_at = 0.0
        self._has_listed = asyncio.Event()
        self._pause_s = FIRST_PAUSE_S
        """Pause before the next attempt. It doubles with each failure."""

    @property
    def restarts(self) -> int:
        """Watches that broke or could not begin."""
        return self._errors.failures

    async def read(self) -> Sequence[WorkerAddress]:
        """The present addresses. The first call waits for the first list. Raises Unreadable."""
        if not self._has_listed.is_set():
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._has_listed.wait()
            except TimeoutError:
                pass
        error = self._errors.last or ("" if self._has_listed.is_set() else "not listed yet")
        if error:
            raise Unreadable(f"{self._namespace}/{self._service}: {error}")
        return self._addresses

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                async with self._api() as api:
                    await self._follow(api)
            except (ConfigException, OSError) as error:  # the address of the API or the account is missing
                self._on_error(error)
                await self._pause()

    async def _follow(self, api: DiscoveryV1Api) -> None:
        """Until cancelled."""
        while True:
            try:
                if not self._slices.version or self._clock() - self._listed_at > self._resync_s:
                    await self._list(api)
                began_at = self._clock()
                await self._watch(api)
                await asyncio.sleep(max(MIN_BETWEEN_WATCHES_S - (self._clock() - began_at), 0.0))
                continue
            except Gone:
                self._slices.version = ""
                await asyncio.sleep(max(MIN_BETWEEN_LISTS_S - (self._clock() - self._listed_at), 0.0))
                continue
            except BadSlices as error:  # the known slices may be incomplete: list again
                self._slices.version = ""
                self._on_error(error)
            except (ClientError, OSError, TimeoutError, ApiException, ConfigException, _Refused) as error:
                self._on_error(error)
            await self._pause()

    async def _pause(self) -> None:
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2.0, MAX_PAUSE_S)
        await asyncio.sleep(pause_s * (0.5 + self._chance.random()))

    @asynccontextmanager
    async def _api(self) -> AsyncIterator[DiscoveryV1Api]:
        """Raises ConfigException."""
        configuration = Configuration()
        if self._kubeconfig:
            await load_kube_config(self._kubeconfig, client_configuration=configuration)
        else:
            load_incluster_config(client_configuration=configuration)
        async with ApiClient(configuration) as client:
            yield DiscoveryV1Api(client)

    async def _list(self, api: DiscoveryV1Api) -> None:
        found: list[Slice] = []
        left = MAX_LIST_BYTES
        self._listed_at = self._clock()
        page = ""
        async with asyncio.timeout(self._timeout_s):
            while True:
                reply = await self._ask(api, limit=PAGE, **({"_continue": page} if page else {}))
                with closing(reply):
                    data = await read_body(reply, left)
                if data is None:
                    raise BadSlices(f"the API answered more than {MAX_LIST_BYTES} bytes")
                left -= len(data)
                listed = read_list(data)
                found += listed.items or ()
                page = listed.metadata.continue_
                if not page:
                    break
        self._slices.replace(found, listed.metadata.resource_version)
        self._publish()

    async def _watch(self, api: DiscoveryV1Api) -> None:
        """Follow one watch until the API ends it, as requested."""
        async with asyncio.timeout(self._timeout_s):
            reply = await self._ask(
                api,
                watch=True,
                allow_watch_bookmarks=True,
                resource_version=self._slices.version,
                timeout_seconds=max(round(self._watch_s), 1),
            )
        self._on_well()
        try:
            async with asyncio.timeout(self._watch_s + GRACE_S):
                while line := await reply.content.readline():
                    if self._slices.apply(line):
                        self._publish()
        except ValueError as error:  # a line is longer than any valid object
            raise BadSlices(str(error)) from None
        finally:
            reply.close()

    async def _ask(self, api: DiscoveryV1Api, **query: Any) -> ClientResponse:
        """Raises Gone, ApiException, _Refused."""
        asking: Awaitable[ClientResponse] = api.list_namespaced_endpoint_slice(
            self._namespace,
            label_selector=f"kubernetes.io/service-name={self._service}",
            _preload_content=False,
            _request_timeout=ClientTimeout(sock_connect=self._timeout_s),
            **query,
        )
        reply = await asking
        if reply.status == 410:
            reply.close()
            raise Gone
        if reply.status != 200:
            reply.close()
            raise _Refused(f"the API answered {reply.status} {reply.reason}")
        return reply

    def _publish(self) -> None:
        """Publish the present addresses. Raises BadSlices, and then the last ones stay."""
        self._addresses = self._slices.addresses()
        self._on_well()
        self._has_listed.set()
        self._on_change()

    def _on_well(self) -> None:
        """The API answers as it should."""
        self._errors.succeeded()
        self._pause_s = FIRST_PAUSE_S

    def _on_error(self, error: Exception) -> None:
        """Record the error. The known pods stay."""
        text = str(getattr(error, "reason", None) or error) or type(error).__name__
        if self._errors.failed(text):
            log.info("a watch of the Service failed", extra={"service": self._service, "error": text})
