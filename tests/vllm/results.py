"""Where the figures of these tests are kept: one JSON file each, with what one needs to judge them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def write_result(name: str, test: str, figures: dict[str, object]) -> None:
    """Replace ``bench/results/NAME.json``: how, when, where and of which commit, and then the figures."""
    document = {
        "command": f"pytest -m vllm {test}",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "load": os.getloadavg()[0]},
    }
    path = ROOT / f"bench/results/{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document | figures, indent=1) + "\n")


def commit() -> str:
    """The commit that was measured, marked if what was measured differs from it; "none" outside a checkout."""
    head = _git("rev-parse", "--verify", "HEAD")
    if not head:
        return "none"
    return head + (" (changed)" if _git("status", "--porcelain", "--", "router", "tests/vllm") else "")


def _git(*arguments: str) -> str:
    try:
        answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
