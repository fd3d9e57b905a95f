"""The data port's certificate: whoever connects is shown what its files hold, also where they were renewed since the router
began. Files that cannot be had, or do not belong together, leave the old one as it is.
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
"""Between two reads of the files."""


class Certificate:
    """``cert``, ``key``: PEM files. Raises OSError where they cannot be taken at first."""

    def __init__(self, cert: str, key: str) -> None:
        self._cert = cert
        self._key = key
        self._errors = LogOnce()
        self._content, self._newest = self._load()
        self.context = self._newest
        """What to listen with: each handshake goes on with the newest."""
        self.context.sni_callback = self._show

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(RELOAD_S)
            await self.refresh()

    async def refresh(self) -> None:
        """Look once."""
        try:
            if await asyncio.to_thread(self._read) != self._content:
                self._content, self._newest = await asyncio.to_thread(self._load)
                log.info("certificate renewed", extra={"file": self._cert})
        except OSError as error:  # ssl's own are among them
            self._on_error(str(error))
        else:
            self._errors.succeeded()

    @property
    def failures(self) -> int:
        """Looks that failed."""
        return self._errors.failures

    def _show(self, handshake: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Called in each handshake, also where the client names no host."""
        handshake.context = self._newest

    def _read(self) -> tuple[bytes, bytes]:
        return Path(self._cert).read_bytes(), Path(self._key).read_bytes()

    def _load(self) -> tuple[tuple[bytes, bytes], ssl.SSLContext]:
        """Read before it is loaded: what changes between is loaded once more."""
        return self._read(), tls_context(self._cert, self._key)

    def _on_error(self, error: str) -> None:
        if self._errors.failed(error):
            log.error("certificate not renewed: the old one is shown", extra={"file": self._cert, "error": error})
