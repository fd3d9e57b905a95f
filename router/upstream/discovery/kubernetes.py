"""Workers that are the pods of a Kubernetes Service: listed once, and then watched, so that a pod which begins to terminate is
sent nothing more as soon as the API says so.

A watch that breaks goes on from the version it had reached; what is known stays meanwhile. All is listed anew where the API no
longer has that version, and from time to time in any case. Needs the extra ``kubernetes``.
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
from router.upstream.discovery import Unreadable
from router.upstream.discovery.endpoint_slices import BadSlices, EndpointSlices, Gone, Slice, read_list

log = logging.getLogger("warmroute.fleet")

PAGE = 500
"""Slices of one answer, which has up to a hundred endpoints each."""

MAX_LIST_BYTES = 64 << 20
FIRST_PAUSE_S, MAX_PAUSE_S = 0.2, 15.0
GRACE_S = 10.0
"""How much later than it was asked to the API may end a watch, before it is given up."""

LEAST_BETWEEN_LISTS_S, LEAST_BETWEEN_WATCHES_S = 1.0, 0.2
"""An API that ends watches at once is not asked in a loop."""


WATCH_S, RESYNC_S, TIMEOUT_S = 60.0, 600.0, 10.0
"""How long a watch is, how often all pods are listed anew, and how long a list may take."""


class _Refused(Exception):
    """The message says how."""


class KubernetesSource:
    """``on_change`` is called after each change of the pods that may be sent requests. ``run`` must be running.

    ``watch_s``: length of one watch; the next begins where it ended. ``resync_s``: between two lists of all pods.
    ``timeout_s``: for a list, and for a watch to begin.
    """

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
        self._complaint = "not listed yet"
        self._listed_at = 0.0
        self._has_listed = asyncio.Event()
        self._pause_s = FIRST_PAUSE_S
        """Before the next attempt; twice as long each time that the API does not do as it is asked."""
        self.restarts = 0
        """Watches that broke, or could not begin."""

    async def read(self) -> Sequence[WorkerAddress]:
        """What is known now; at first it is waited for. Raises Unreadable."""
        if not self._has_listed.is_set():
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._has_listed.wait()
            except TimeoutError:
                pass
        if self._complaint:
            raise Unreadable(f"{self._namespace}/{self._service}: {self._complaint}")
        return self._addresses

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                async with self._api() as api:
                    await self._follow(api)
            except (ConfigException, OSError) as error:  # nobody says where the API is, or who is asking
                self._complain(error)
                await self._pause()

    async def _follow(self, api: DiscoveryV1Api) -> None:
        """Until cancelled."""
        while True:
            try:
                if not self._slices.version or self._clock() - self._listed_at > self._resync_s:
                    await self._list(api)
                began_at = self._clock()
                await self._watch(api)
                await asyncio.sleep(max(LEAST_BETWEEN_WATCHES_S - (self._clock() - began_at), 0.0))
                continue
            except Gone:
                self._slices.version = ""
                await asyncio.sleep(max(LEAST_BETWEEN_LISTS_S - (self._clock() - self._listed_at), 0.0))
                continue
            except BadSlices as error:  # what was understood of it is not what there is: list again
                self._slices.version = ""
                self._complain(error)
            except (ClientError, OSError, TimeoutError, ApiException, ConfigException, _Refused) as error:
                self._complain(error)
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
        self._tell()

    async def _watch(self, api: DiscoveryV1Api) -> None:
        """Until the API ends it, as it was asked to."""
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
                        self._tell()
        except ValueError as error:  # a line that is longer than any object may be
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

    def _tell(self) -> None:
        """Raises BadSlices, and leaves what was known."""
        self._addresses = self._slices.addresses()
        self._on_well()
        self._has_listed.set()
        self._on_change()

    def _on_well(self) -> None:
        """The API does as it is asked."""
        self._complaint = ""
        self._pause_s = FIRST_PAUSE_S

    def _complain(self, error: Exception) -> None:
        """What is known stays."""
        self.restarts += 1
        reason = getattr(error, "reason", None)
        self._complaint = str(reason or error) or type(error).__name__
        log.info("a watch broke", extra={"service": self._service, "error": self._complaint})
