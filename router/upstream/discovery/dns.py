"""Workers behind one DNS name, such as a headless service. Each address of one family that the name resolves to is a worker.

A pod of two families has one address of each, and DNS does not say which two belong to one pod. Only one family is taken, so
that no worker counts twice: that of the first address, in the order of RFC 6724, as long as the name has an address of it.

A resolver whose servers do not answer may take a minute. The router does not wait that long, and does not ask again meanwhile,
since each query holds a thread.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ClassVar

from router.core.address import is_forbidden
from router.core.worker import WorkerAddress
from router.upstream.discovery import Unreadable

Resolve = Callable[[str, int], Coroutine[Any, Any, Sequence[str]]]
"""Resolves a name and a port to addresses, the best first, with repetitions. Raises OSError, UnicodeError."""


async def resolve(name: str, port: int) -> Sequence[str]:
    found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


TIMEOUT_S = 5.0
"""For one look; the last answer holds meanwhile."""


class DnsSource:
    """``name_and_port`` is ``NAME:PORT``. Workers are reached over plain HTTP. ``timeout_s`` limits one read."""

    kind: ClassVar[str] = "dns"

    def __init__(self, name_and_port: str, timeout_s: float = TIMEOUT_S, resolve: Resolve = resolve) -> None:
        self._name, _, port = name_and_port.rpartition(":")
        self._port = int(port)
        self._timeout_s = timeout_s
        self._resolve = resolve
        self._is_ipv6: bool | None = None
        """The family that was taken last; None before the first read."""
        self._asking: asyncio.Task[Sequence[str]] | None = None
        """A query without an answer yet, perhaps of an earlier read."""

    async def read(self) -> Sequence[WorkerAddress]:
        """Raises Unreadable."""
        try:
            hosts = sorted(self._of_one_family(await self._answer()))
        except (OSError, UnicodeError) as error:
            raise Unreadable(f"{self._name}: {error}") from None
        if forbidden := list(filter(is_forbidden, hosts)):
            raise Unreadable(f"{self._name}: resolves to {forbidden[0]}, where no worker may be")
        return [WorkerAddress("http", host, self._port) for host in hosts]

    def _of_one_family(self, hosts: Sequence[str]) -> set[str]:
        families = [":" in host for host in hosts]
        if families and self._is_ipv6 not in families:
            self._is_ipv6 = families[0]
        return {host for host, is_ipv6 in zip(hosts, families, strict=True) if is_ipv6 is self._is_ipv6}

    async def _answer(self) -> Sequence[str]:
        """Raises OSError, UnicodeError."""
        asking = self._asking = self._asking or asyncio.create_task(self._resolve(self._name, self._port))
        try:
            done, _ = await asyncio.wait({asking}, timeout=self._timeout_s)
        except asyncio.CancelledError:
            asking.cancel()
            raise
        if not done:
            raise TimeoutError(f"no answer within {self._timeout_s:g} s")
        self._asking = None
        return asking.result()
