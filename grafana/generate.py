"""Writes ``dashboards/*.json``, which Grafana reads, and ``rules/warmroute.yaml``, which Prometheus does.

python -m grafana.generate [--check]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana.alerts import rules
from grafana.boards import cache, fleet, latency, state, tenants
from grafana.panels import Board

BOARDS: tuple[Board, ...] = tuple(module.BOARD for module in (cache, latency, fleet, state, tenants))
FOLDER = Path(__file__).parent
HEADER = "# Written by python -m grafana.generate: make no change here.\n"


def render(board: Board) -> str:
    return str(JSONEncoder(sort_keys=True, indent=1).encode(board.build())) + "\n"


def files() -> Iterator[tuple[Path, str]]:
    for board in BOARDS:
        yield FOLDER / "dashboards" / f"{board.name}.json", render(board)
    yield FOLDER / "rules" / "warmroute.yaml", HEADER + yaml.safe_dump(rules(), sort_keys=False, width=1000)


def main(arguments: list[str]) -> int:
    old = [path for path, text in files() if not path.exists() or path.read_text() != text]
    if "--check" in arguments:
        for path in old:
            print(f"{path} is not what its module says: python -m grafana.generate", file=sys.stderr)
        return bool(old)
    for path, text in files():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
