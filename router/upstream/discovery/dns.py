"""Workers behind one DNS name, such as a headless service: every address that it resolves to is a worker."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import ClassVar

from router.core.address import is_forbidden
from router.core.worker import WorkerAddress
from router.upstream.discovery import Unreadable


class DnsSource:
    """``name_and_port`` is ``NAME:PORT``; workers are reached over plain HTTP."""

    kind: ClassVar[str] = "dns"

    def __init__(self, name_and_port: str) -> None:
        self._name, _, port = name_and_port.rpartition(":")
        self._port = int(port)

    async def read(self) -> Sequence[WorkerAddress]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self._name, self._port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise Unreadable(f"{self._name}: {error}") from None
        hosts = sorted({str(entry[4][0]) for entry in found})
        if forbidden := list(filter(is_forbidden, hosts)):
            raise Unreadable(f"{self._name}: resolves to {forbidden[0]}, where no worker may be")
        return [WorkerAddress("http", host, self._port) for host in hosts]
