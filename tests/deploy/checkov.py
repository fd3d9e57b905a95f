"""checkov, in a virtual environment of its own, since it wants other releases of our packages; kept between runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from tests.not_tested import not_tested

LOCK = Path(__file__).with_name("checkov.lock")


@cache
def program() -> str:
    """Its path. Skipped loudly where it cannot be had, and failed in CI."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "warmroute-tests"
    made = home / f"checkov-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]}"
    if not (made / "done").exists():
        shutil.rmtree(made, ignore_errors=True)
        done = _run(sys.executable, "-m", "venv", str(made))
        if not done.returncode:
            done = _run(str(made / "bin" / "pip"), "install", "--quiet", "--require-hashes", "-r", str(LOCK))
        if done.returncode:
            not_tested(f"checkov cannot be installed: deploy/ is NOT SCANNED {done.stderr[-500:]}")
        (made / "done").touch()
    return str(made / "bin" / "checkov")


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)


def scan(framework: str, *files: Path) -> tuple[int, dict[str, set[str]]]:
    """How many checks passed, and of those that did not, by their ids: what they are about."""
    named = [word for file in files for word in ("--file", str(file))]
    done = _run(
        program(), "--framework", framework, "--output", "json", "--compact", "--quiet", "--skip-download", *named
    )
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert not found["summary"]["parsing_errors"]
    failed: dict[str, set[str]] = {}
    for each in found["results"]["failed_checks"]:
        failed.setdefault(each["check_id"], set()).add(each["resource"])
    return int(found["summary"]["passed"]), failed
