"""How each router is started for the comparison: the same two workers, keep-alive on both sides, logs off.

Every router runs as it would be deployed on this machine, with its own number of threads and on any CPU: pinning
would favour one event loop over a pool of threads, and what is compared is CPU time, not speed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PEERS = ("vllm-router==0.1.17", "sglang-router==0.3.2")
NGINX_CONF = """
worker_processes 1;
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    client_max_body_size 16m;
    client_body_buffer_size 1m;
    keepalive_requests 1000000000;
    upstream workers {{
        hash $http_x_session_id consistent;
        {servers}
        keepalive 256;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location / {{
            proxy_pass http://workers;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Router:
    """A running router. ``pid``: the process whose tree is accounted for."""

    name: str
    ports: Sequence[int]
    pid: int | None
    command: str


class MissingError(Exception):
    """A router that is not installed; the text says how to install it."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def command_for(name: str, port: int, worker_ports: Sequence[int], peers: Path, directory: Path) -> list[str]:
    """The command line of router ``name``. Raises MissingError."""
    urls = [f"http://127.0.0.1:{worker}" for worker in worker_ports]
    if name == "warmroute":
        where = ["--port", str(port), "--admin-port", str(free_port())]
        workers = [part for url in urls for part in ("--worker", url)]
        return [sys.executable, "-m", "router", "serve", *where, *workers, "--insecure-no-auth"]
    if name == "nginx":
        return _nginx(port, worker_ports, directory)
    program = peers / "bin" / name
    if not program.exists():
        raise MissingError(
            f"{program} is missing: python3 -m venv {peers} && {peers}/bin/pip install {' '.join(PEERS)}"
        )
    where = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port()), "--worker-urls", *urls]
    if name == "vllm-router":
        return [str(program), *where, "--policy", "consistent_hash", "--log-level", "warning"]
    return [str(program), "launch", *where, "--policy", "cache_aware", "--log-level", "warn"]


def _nginx(port: int, worker_ports: Sequence[int], directory: Path) -> list[str]:
    program = next((path for path in ("/usr/sbin/nginx", "/usr/local/bin/nginx") if os.access(path, os.X_OK)), None)
    if program is None:
        raise MissingError("nginx is missing: apt-get install nginx-light")
    servers = "\n        ".join(f"server 127.0.0.1:{worker};" for worker in worker_ports)
    conf = directory / "nginx.conf"
    conf.write_text(NGINX_CONF.format(directory=directory, port=port, servers=servers))
    return [program, "-p", str(directory), "-c", str(conf)]


@contextlib.contextmanager
def running(command: Sequence[str], port: int, log: Path) -> Iterator[int]:
    """The process id of ``command`` once ``port`` answers HTTP; its whole process group is ended on leaving."""
    with log.open("wb") as output:
        environment = {**os.environ, "WARMROUTE_SESSIONS__STORE": "memory://"}
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        try:
            _wait_for(process, port, log)
            yield process.pid
        finally:
            _end(process)


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path, timeout_s: float = 30.0) -> None:
    """Until /v1/models comes through: a router that listens may not know its workers yet."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        url = f"http://127.0.0.1:{port}/v1/models"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"{process.args!r} did not come up on port {port}:\n{log.read_text()[-2000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    for how, patience_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
