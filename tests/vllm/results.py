"""Where the figures of these tests are kept: one JSON file each, with what one needs to judge them."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime

from bench.provenance import RESULTS, commit


def write_result(name: str, test: str, figures: dict[str, object]) -> None:
    """Replace ``bench/results/NAME.json``: how, when, where and of which commit, and then the figures."""
    document = {
        "command": f"pytest -m vllm {test}",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit("router", "tests/vllm"),
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "load": os.getloadavg()[0]},
    }
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document | figures, indent=1) + "\n")
