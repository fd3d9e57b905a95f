"""Reads the pods of a Service from Kubernetes' EndpointSlices. Pure: bytes in, addresses out.

A pod counts as long as its endpoint is ready and not terminating. In ``discovery.k8s.io/v1`` a missing condition means ready,
and not terminating. The worker itself reports whether its model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from router.core.address import is_forbidden
from router.core.worker import WorkerAddress

MAX_ADDRESSES = 10_000
"""Most endpoints of a Service of workers."""


T = TypeVar("T")


class BadSlices(Exception):
    """The API's answer is invalid, or names addresses that cannot be workers. The message is for the operator."""


class Gone(Exception):
    """The API no longer has the version from which the watch would continue. The slices must be listed again."""


class _Metadata(msgspec.Struct, rename="camel"):
    name: str = ""
    resource_version: str = ""


class _ListMetadata(msgspec.Struct, rename="camel"):
    resource_version: str
    continue_: str = msgspec.field(default="", name="continue")


class _Conditions(msgspec.Struct, frozen=True):
    ready: bool | None = None
    terminating: bool | None = None


class _Endpoint(msgspec.Struct, frozen=True):
    addresses: list[str]
    conditions: _Conditions = _Conditions()

    @property
    def is_routed_to(self) -> bool:
        return self.conditions.ready is not False and not self.conditions.terminating


class _Port(msgspec.Struct):
    name: str | None = None
    port: int | None = None


class Slice(msgspec.Struct, rename="camel"):
    metadata: _Metadata
    address_type: str = "IPv4"
    endpoints: list[_Endpoint] | None = None
    ports: list[_Port] | None = None


class SliceList(msgspec.Struct):
    metadata: _ListMetadata
    items: list[Slice] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Status(msgspec.Struct):
    code: int = 0
    message: str = ""


def read_list(data: bytes) -> SliceList:
    """Raises BadSlices."""
    return _decode(data, SliceList)


class EndpointSlices:
    """The slices of one Service, kept up to date by events. ``port`` is a port's name or number; empty means the only port, or
    the one named http. ``version`` is the last version seen, from which a watch continues."""

    def __init__(self, scheme: str, port: str) -> None:
        self._scheme = scheme
        self._port = port
        self._slices: dict[str, Slice] = {}
        self.version = ""

    def replace(self, slices: Sequence[Slice], version: str) -> None:
        """Replace all slices by those of a list."""
        self._slices = {each.metadata.name: each for each in slices}
        self.version = version

    def apply(self, line: bytes) -> bool:
        """Apply one event of a watch. True if the slices changed. Raises Gone, BadSlices."""
        event = _decode(line, _Event)
        if event.type == "ERROR":
            status = _decode(event.object, _Status)
            if status.code == 410:
                raise Gone
            raise BadSlices(f"the API ended the watch: {status.code} {status.message}")
        changed = _decode(event.object, Slice)
        self.version = changed.metadata.resource_version or self.version
        if event.type == "BOOKMARK":
            return False
        if event.type == "DELETED":
            return self._slices.pop(changed.metadata.name, None) is not None
        self._slices[changed.metadata.name] = changed
        return True

    def addresses(self) -> list[WorkerAddress]:
        """Addresses of the pods that may get requests, sorted. Of a Service with two address families only one is taken, so
        that no pod is two workers. Pods that share their node's address differ by port. Raises BadSlices."""
        families = {each.address_type for each in self._slices.values()}
        family = next((name for name in ("IPv4", "IPv6", "FQDN") if name in families), "")
        found: set[tuple[str, int]] = set()
        for each in self._slices.values():
            if each.address_type != family:
                continue
            routed_to = [host for one in each.endpoints or () if one.is_routed_to for host in one.addresses[:1]]
            port = self._port_of(each) if routed_to else 0
            for host in routed_to:
                if is_forbidden(host):
                    raise BadSlices(f"an endpoint is {host}, where no worker may be")
                found.add((host, port))
        if len(found) > MAX_ADDRESSES:
            raise BadSlices(f"the Service has more than {MAX_ADDRESSES} endpoints")
        return [WorkerAddress(self._scheme, host, port) for host, port in sorted(found)]

    def _port_of(self, each: Slice) -> int:
        ports = {port.name or "": port.port for port in each.ports or () if port.port}
        if self._port.isdigit() and int(self._port) in ports.values():
            return int(self._port)
        wanted = ports.get(self._port or "http") or (next(iter(ports.values())) if len(ports) == 1 else None)
        if wanted is None or (self._port and self._port not in ports):
            raise BadSlices(f"the Service has no port {self._port or 'http'!r}, but {sorted(ports) or 'none'}")
        return wanted


def _decode(data: bytes | msgspec.Raw, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise BadSlices(f"the API's answer cannot be understood: {error}") from None
