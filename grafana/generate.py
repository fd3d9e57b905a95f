"""Writes ``dashboards/*.json``, which Grafana reads.

python -m grafana.generate [--check]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana.boards import cache, fleet, latency, state, tenants
from grafana.panels import Board

BOARDS: tuple[Board, ...] = tuple(module.BOARD for module in (cache, latency, fleet, state, tenants))
FOLDER = Path(__file__).parent / "dashboards"


def render(board: Board) -> str:
    return str(JSONEncoder(sort_keys=True, indent=1).encode(board.build())) + "\n"


def files() -> Iterator[tuple[Path, str]]:
    for board in BOARDS:
        yield FOLDER / f"{board.name}.json", render(board)


def main(arguments: list[str]) -> int:
    old = [path for path, text in files() if not path.exists() or path.read_text() != text]
    if "--check" in arguments:
        for path in old:
            print(f"{path} is not what its module says: python -m grafana.generate", file=sys.stderr)
        return bool(old)
    FOLDER.mkdir(exist_ok=True)
    for path, text in files():
        path.write_text(text)
        print(f"{path.name}: {len(json.loads(text)['panels'])} panels and rows")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
