"""A page of docs/ as a program: its fenced blocks, run from top to bottom in one shell.

``sh`` is run, ``python`` too; ``toml`` is written to the file that its first line names (``# warmroute.toml``). ``text`` right
behind one of them is what it prints: ``…`` is anything within a line, and a line of ``…`` alone any lines. Other kinds, such
as ``console``, are shown and not run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

MARK = "\x1e"
"""Printed before each block, so that its output is known."""
RUN = ("sh", "python", "toml")
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """``printed``: what the page says that it prints; None: nothing is said."""

    kind: str
    text: str
    line: int
    printed: str | None = None


def blocks(page: str) -> list[Block]:
    """Those that are run, in order."""
    found: list[Block] = []
    run_until = -1
    for match in _FENCED.finditer(page):
        kind, text = match.groups()
        if kind in RUN:
            found.append(Block(kind, text, page.count("\n", 0, match.start()) + 1))
            run_until = match.end()
        elif kind == "text" and run_until >= 0 and not page[run_until : match.start()].strip():
            found[-1] = replace(found[-1], printed=text)
    return found


def script(found: list[Block]) -> str:
    """For ``bash``."""
    parts = [f"printf '{MARK}{number}\\n'\n{_command(block)}" for number, block in enumerate(found)]
    return "set -eu -o pipefail\n" + "\n".join(parts)


def _command(block: Block) -> str:
    if block.kind == "python":
        return f"python - <<'PYTHON'\n{block.text}PYTHON\n"
    if block.kind == "toml":
        name = block.text.partition("\n")[0].removeprefix("# ").strip()
        assert re.fullmatch(r"[\w.-]+\.toml", name), f"line {block.line}: the first line names no file: {name!r}"
        checked = f"warmroute check-config {name} > /dev/null\n" if name.endswith("warmroute.toml") else ""
        return f"cat > {name} <<'TOML'\n{block.text}TOML\n{checked}"
    return block.text


def outputs(printed: str) -> list[str]:
    """Of each block that was begun."""
    return [part.partition("\n")[2] for part in printed.split(MARK)[1:]]


def with_ports(text: str, ports: Mapping[str, int]) -> str:
    """Pages name the ports that people would take; a test takes free ones."""
    named = "|".join(ports)
    return re.sub(rf"(?<![\w.])({named})(?!\w)", lambda match: str(ports[match[0]]), text)


def is_as_shown(shown: str, printed: str) -> bool:
    lines = [
        r"(?:.*\n)*?" if line == "…" else re.escape(line).replace("…", ".*") + r"\n" for line in shown.splitlines()
    ]
    return re.fullmatch("".join(lines), printed if printed.endswith("\n") else printed + "\n") is not None
