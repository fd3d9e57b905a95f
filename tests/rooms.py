"""Rooms of the package and the imports between them, drawn from the code.

    python -m tests.rooms

A room is a package directly in ``router/``, or directly in ``router/sessions/``; modules that lie loose in one of the two are
the room of that package. A floor is one more than the highest floor that a room imports from; the lowest is 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from graphlib import TopologicalSorter

import grimp

HOUSES = ("router", "router.sessions")

Rooms = Mapping[str, Set[str]]
"""Each room with the rooms that it imports from."""


def room_of(module: str, packages: Set[str]) -> str:
    """``router.sessions.api.codec`` → ``sessions/api``; ``router.sessions.turns`` → ``sessions``."""
    house = max((each for each in HOUSES if module == each or module.startswith(f"{each}.")), key=len)
    room = ".".join(module.split(".")[: house.count(".") + 2])
    return (room if room in packages else house).removeprefix("router.").replace(".", "/")


def rooms() -> Rooms:
    graph = grimp.build_graph("router", exclude_type_checking_imports=True, cache_dir=None)
    packages = {module for module in graph.modules if graph.find_children(module)}
    found: dict[str, set[str]] = {}
    for module in graph.modules - {"router", "router.__main__"}:
        room = room_of(module, packages)
        below = {room_of(imported, packages) for imported in graph.find_modules_directly_imported_by(module)}
        found.setdefault(room, set()).update(below - {room})
    return found


def floors(house: Rooms) -> dict[str, int]:
    """By room. Raises graphlib.CycleError."""
    found: dict[str, int] = {}
    for room in TopologicalSorter(house).static_order():
        found[room] = 1 + max((found[below] for below in house[room]), default=0)
    return found


def main() -> None:
    house = rooms()
    levels = floors(house)
    for level in range(max(levels.values()), 0, -1):
        names = sorted(room for room, floor in levels.items() if floor == level)
        print(f"{level}  " + "  ".join(names))
    arrows = sum(map(len, house.values()))
    print(f"{len(house)} rooms on {max(levels.values())} floors, {arrows} arrows, none of them upward, no circle")


if __name__ == "__main__":
    main()
