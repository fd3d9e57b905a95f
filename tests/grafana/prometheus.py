"""Debian's Prometheus, for tests: skipped loudly where it is missing, and failed in CI."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.not_tested import not_tested

SCRAPED_EVERY_S = 0.5
START_S = 20.0
JOB = "warmroute"


def program(name: str) -> str:
    """Its path."""
    found = shutil.which(name)
    if found is None:
        not_tested(f"{name} is not installed (Debian: apt-get install prometheus)")
    return found


@dataclass(frozen=True, slots=True)
class Prometheus:
    url: str

    def ask(self, path: str, **query: Any) -> Any:
        """``data`` of the answer. Raises AssertionError with what is wrong with the query."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {error.read().decode()}") from None

    def values(self, expr: str, began_at: float, ended_at: float) -> dict[str, list[float]]:
        """By series' labels, between two Unix times; numbers only, and only series that have some."""
        result = self.ask("query_range", query=expr, start=began_at, end=ended_at, step=SCRAPED_EVERY_S)["result"]
        found = {
            json.dumps(one["metric"], sort_keys=True): [float(value) for _, value in one["values"] if value != "NaN"]
            for one in result
        }
        return {labels: values for labels, values in found.items() if values}

    def is_up(self) -> bool:
        try:
            return bool(self.ask("query", query=f'up{{job="{JOB}"}} == 1')["result"])
        except OSError:
            return False


@contextmanager
def scraping(address: str, directory: Path) -> Iterator[Prometheus]:
    """``address``: host and port of an admin port."""
    server, every = program("prometheus"), f"{SCRAPED_EVERY_S * 1e3:.0f}ms"
    (directory / "prometheus.yaml").write_text(
        f"global: {{scrape_interval: {every}, scrape_timeout: {every}}}\n"
        f"scrape_configs: [{{job_name: {JOB}, static_configs: [{{targets: ['{address}']}}]}}]\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [server, f"--config.file={directory}/prometheus.yaml", f"--storage.tsdb.path={directory}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    with (directory / "prometheus.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            prometheus = Prometheus(f"http://127.0.0.1:{port}")
            _until_up(prometheus, process)
            yield prometheus
        finally:
            process.terminate()


def _until_up(prometheus: Prometheus, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    while not prometheus.is_up():
        if process.poll() is not None or time.monotonic() > until:
            raise AssertionError("Prometheus did not start, or reaches no router")
        time.sleep(0.1)
