"""Loads the data port's certificate, and loads it anew when its files change. Files that are missing or do not match leave the
old certificate in use.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

from router.runtime.log_once import LogOnce
from router.server.listen import tls_context

log = logging.getLogger("warmroute.tls")


RELOAD_S = 10.0
"""Between two checks of the files."""


class Certificate:
    """``cert`` and ``key`` are PEM files. Raises OSError if the first load fails."""

    def __init__(self, cert: str, key: str) -> None:
        self._cert = cert
        self._key = key
        self._errors = LogOnce()
        self._content, self._newest = self._load()
        self.context = self._newest
        """The context to listen with. Each handshake switches to the newest one."""
        self.context.sni_callback = self._show

    async def run(self) -> None:
        """Check the files at intervals, until cancelled."""
        while True:
            await asyncio.sleep(RELOAD_S)
            await self.refresh()

    async def refresh(self) -> None:
        """Check the files once."""
        try:
            if await asyncio.to_thread(self._read) != self._content:
                self._content, self._newest = await asyncio.to_thread(self._load)
                log.info("certificate renewed", extra={"file": self._cert})
        except OSError as error:  # errors of ssl are among them
            self._on_error(str(error))
        else:
            self._errors.succeeded()

    @property
    def failures(self) -> int:
        """Checks that failed."""
        return self._errors.failures

    def _show(self, handshake: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Called in each handshake, also if the client names no host."""
        handshake.context = self._newest

    def _read(self) -> tuple[bytes, bytes]:
        return Path(self._cert).read_bytes(), Path(self._key).read_bytes()

    def _load(self) -> tuple[tuple[bytes, bytes], ssl.SSLContext]:
        """The files are read before they are loaded. A change in between causes one more load."""
        return self._read(), tls_context(self._cert, self._key)

    def _on_error(self, error: str) -> None:
        if self._errors.failed(error):
            log.error("certificate not renewed: the old one is shown", extra={"file": self._cert, "error": error})
