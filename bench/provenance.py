"""The commit and the machine of a measurement, which a reader needs to judge a figure later."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


def machine() -> dict[str, Any]:
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*:\s*(.+)", info.read_text("utf-8"))):
        model = found[1]
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def commit(*paths: str) -> str:
    """The measured commit, marked if the working tree differs from it below ``paths`` (default: the package).

    "none" outside a checkout.
    """
    head = _git("rev-parse", "--verify", "HEAD")
    if not head:
        return "none"
    return head + (" (changed)" if _git("status", "--porcelain", "--", *(paths or ("router",))) else "")


def _git(*arguments: str) -> str:
    try:
        answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
