"""Every command of the guides is run, and prints what they show."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.grafana.prometheus import program
from tests.guides.page import Block, blocks, is_as_shown, outputs, script, with_ports

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GUIDES = ("how-to.md", "migration.md", "openai-clients.md", "operations.md", "sessions.md", "tenants.md", "tuning.md")
"""Pages that run in seconds, in an empty directory, with this environment's commands."""
ROUTER_PORTS = ("8080", "8081", "8082", "8083", "9090")
WORKER_PORTS = ("9500", "9501", "9502", "9503")
GUIDE_S = 90.0
QUICK_START_S = 600.0
"""Packages are fetched, maybe slowly."""


def free_ports() -> dict[str, int]:
    """For those that pages name; the workers' are one behind the other."""
    with ExitStack() as held:
        found = {name: _free(held) for name in ROUTER_PORTS}
        while True:
            first = _free(held)
            try:
                for at in range(1, len(WORKER_PORTS)):
                    held.enter_context(socket.create_server(("127.0.0.1", first + at)))
            except (OSError, OverflowError):
                continue
            return found | {name: first + at for at, name in enumerate(WORKER_PORTS)}


def _free(held: ExitStack) -> int:
    port: int = held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
    return port


def environment(home: Path, ports: dict[str, int], programs: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name == "LANG" or name.startswith("PIP_")}
    return kept | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "WARMROUTE_SERVER__PORT": str(ports["8080"]),
        "WARMROUTE_ADMIN__PORT": str(ports["8081"]),
    }


def fresh_copy(directory: Path) -> None:
    """Of what a clone would have, changes that are not committed included."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, directory / name, follow_symlinks=False)


def run(page: Path, directory: Path, home: Path, programs: Path, limit_s: float = GUIDE_S) -> None:
    """Asserts that every block ends well and prints what the page shows. Nothing that it started is left."""
    ports = free_ports()
    found = blocks(with_ports(page.read_text("utf-8"), ports))
    assert found, f"{page.name} has nothing that is run"
    printed = home / "printed"
    with printed.open("wb") as sink:  # not a pipe, which a server in the background would keep open
        shell = subprocess.Popen(
            ["bash", "-c", script(found)],
            cwd=directory,
            env=environment(home, ports, programs),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = shell.wait(limit_s)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
    _judge(page, directory, found, printed.read_text("utf-8"), status)


def _judge(page: Path, directory: Path, found: list[Block], printed: str, status: int) -> None:
    done = outputs(printed)
    for block, output in zip(found, done, strict=False):
        where = f"{page.name}:{block.line}"
        if status and output is done[-1]:
            logs = "".join(f"\n{log.name}: {log.read_text('utf-8')[-2000:]}" for log in directory.glob("*.log"))
            pytest.fail(f"{where} failed ({status}):\n{block.text}\n{output}{logs}")
        if block.printed is not None:
            assert is_as_shown(block.printed, output), f"{where} shows\n{block.printed}\nand printed\n{output}"
    assert len(done) == len(found)


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_does_what_it_says(name: str, tmp_path: Path) -> None:
    home, directory = tmp_path / "home", tmp_path / "empty"
    home.mkdir()
    directory.mkdir()
    run(DOCS / name, directory, home, Path(sys.executable).parent)


@pytest.mark.system
def test_the_quick_start_leads_from_a_clone_to_dashboards_with_data(tmp_path: Path) -> None:
    """Of this environment it has the interpreter alone."""
    program("prometheus")
    home, clone = tmp_path / "home", tmp_path / "clone"
    for directory in (home, clone):
        directory.mkdir()
    fresh_copy(clone)
    run(DOCS / "quick-start.md", clone, home, Path(sys.base_prefix) / "bin", QUICK_START_S)
