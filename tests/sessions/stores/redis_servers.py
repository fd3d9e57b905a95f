"""Real Redis servers and Sentinels: processes on ports of their own, which can be killed, stopped and let go on."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from tests.not_tested import not_tested

START_S = 15.0
SERVICE = "sessions"


def need(program: str) -> None:
    """Skips where it is not installed; fails where ``CI`` is set."""
    if shutil.which(program) is None:
        not_tested(f"{program} is not installed: the Redis store is NOT TESTED")


class RedisProcess:
    """One server, or one Sentinel. It keeps its port and what it wrote from start to start."""

    def __init__(self, folder: Path, settings: Sequence[str], program: str = "redis-server") -> None:
        """``settings``: lines of its configuration."""
        self.port = _free_port()
        self._program = program
        self._folder = folder / str(self.port)
        self._folder.mkdir()
        self._config = self._folder / "redis.conf"
        own = (f"port {self.port}", "bind 127.0.0.1", f"dir {self._folder}", "daemonize no", 'logfile "log"')
        self._config.write_text("\n".join((*own, *settings)) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it answers."""
        self._process = subprocess.Popen([self._program, str(self._config)], stdout=subprocess.DEVNULL)
        until(lambda: self.ask("PING") is not None, f"{self._program} does not start: see {self._folder}/log")

    def ask(self, *command: str | bytes | int) -> Any:
        """Its answer to a client of the moment; None where there is none."""
        with redis.Redis(
            port=self.port, socket_timeout=1, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0), protocol=2
        ) as client:
            try:
                return client.execute_command(*command)
            except RedisError:
                return None

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def until(is_so: Any, otherwise: str, timeout_s: float = START_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


@contextmanager
def running(settings: Sequence[str] = ()) -> Iterator[RedisProcess]:
    """One server that answers, and writes nothing to disk."""
    need("redis-server")
    with TemporaryDirectory() as folder:
        server = RedisProcess(Path(folder), ('save ""', "appendonly no", *settings))
        try:
            server.start()
            yield server
        finally:
            server.kill()


class Watched:
    """Three data nodes, and three Sentinels that watch them."""

    def __init__(self, folder: Path, node_settings: Sequence[str]) -> None:
        self.nodes = [RedisProcess(folder, ('save ""', "appendonly no", *node_settings)) for _ in range(3)]
        first = self.nodes[0].port
        self.sentinels = [
            RedisProcess(
                folder,
                (
                    f"sentinel monitor {SERVICE} 127.0.0.1 {first} 2",
                    f"sentinel down-after-milliseconds {SERVICE} 1000",
                    f"sentinel failover-timeout {SERVICE} 2000",
                    f"sentinel parallel-syncs {SERVICE} 2",
                ),
                "redis-sentinel",
            )
            for _ in range(3)
        ]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}/0"

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        for node in self.nodes[1:]:
            node.ask("REPLICAOF", "127.0.0.1", self.nodes[0].port)
        until(lambda: self.replicas() == 2, "the replicas do not come up")
        for sentinel in self.sentinels:
            sentinel.start()
        until(self.is_watched, "the Sentinels do not find each other and the replicas")

    def primary(self) -> RedisProcess | None:
        """As the first Sentinel that answers has it."""
        for sentinel in self.sentinels:
            if found := sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE):
                return next((node for node in self.nodes if node.port == int(found[1])), None)
        return None

    def replicas(self) -> int:
        """That follow the primary, or the first node while nobody watches; none where that does not answer."""
        role = (self.primary() or self.nodes[0]).ask("ROLE")
        return len(role[2]) if role and role[0] == b"master" else 0

    def is_watched(self) -> bool:
        for sentinel in self.sentinels:
            state = sentinel.ask("SENTINEL", "MASTER", SERVICE)
            told = dict(zip(state[::2], state[1::2], strict=True)) if state else {}
            if int(told.get(b"num-slaves", 0)) < 2 or int(told.get(b"num-other-sentinels", 0)) < 2:
                return False
        return True

    def kill(self) -> None:
        for process in (*self.sentinels, *self.nodes):
            process.kill()


@contextmanager
def watched(node_settings: Sequence[str] = ()) -> Iterator[Watched]:
    need("redis-server")
    need("redis-sentinel")
    with TemporaryDirectory() as folder:
        all_of_them = Watched(Path(folder), node_settings)
        try:
            all_of_them.start()
            yield all_of_them
        finally:
            all_of_them.kill()


@contextmanager
def clustered(replicas: int = 0) -> Iterator[list[RedisProcess]]:
    """Three primaries that share the slots, each with so many replicas; the primaries stand first."""
    need("redis-server")
    need("redis-cli")
    with TemporaryDirectory() as folder, ExitStack() as stack:
        settings = ('save ""', "cluster-enabled yes", "cluster-node-timeout 1000")
        nodes = [RedisProcess(Path(folder), settings) for _ in range(3 * (1 + replicas))]
        for node in nodes:
            stack.callback(node.kill)
            node.start()
        hosts = [f"127.0.0.1:{node.port}" for node in nodes]
        command = ["redis-cli", "--cluster", "create", *hosts, "--cluster-replicas", str(replicas), "--cluster-yes"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
        until(lambda: all(_is_whole(node) for node in nodes), "the cluster does not form")
        yield nodes


def _is_whole(node: RedisProcess) -> bool:
    state = node.ask("CLUSTER", "INFO")
    return state is not None and b"cluster_state:ok" in state and b"cluster_slots_ok:16384" in state


def _free_port() -> int:
    """Below the ports that the system gives to clients; a cluster's second port lies 10,000 above."""
    while True:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port: int = free.getsockname()[1] - 28_500
        if port > 1024 and all(_is_free(number) for number in (port, port + 10_000)):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False
