"""The router as a user runs it: ``warmroute serve`` in a process of its own, in front of given workers."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from tests.vllm.lab import free_port


class Reachable(Protocol):
    @property
    def url(self) -> str: ...


@contextlib.contextmanager
def routed(workers: Sequence[Reachable], log: Path, *options: str, config: Path | None = None) -> Iterator[str]:
    """The URL of a router that is ready to serve with all of ``workers``; everybody, if no ``config`` says whom."""
    port, admin_port = free_port(), free_port()
    urls = [part for worker in workers for part in ("--worker", worker.url)]
    ports = ["--port", str(port), "--admin-port", str(admin_port)]
    whom = ["--insecure-no-auth"] if config is None else ["--config", str(config)]
    command = [sys.executable, "-m", "router", "serve", *ports, *urls, *whom, *options]
    # The lab's own variable has the prefix of the router's settings, and is none of them.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WARMROUTE_")}
    environment |= {"WARMROUTE_SERVER__LEAVE_S": "0", "WARMROUTE_PROBES__EJECTION_S": "0.2"}
    environment |= {"WARMROUTE_SESSIONS__STORE": "memory://"}
    with log.open("wb") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as process:
        try:
            _wait_until_ready(process, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Ready, and some moments more: /ready means one worker, and both shall be known."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/ready", timeout=2):
            time.sleep(1.0)
            return
        time.sleep(0.1)
    raise RuntimeError(f"the router did not become ready:\n{log.read_text()[-3000:]}")
