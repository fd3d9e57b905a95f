"""The house stays small enough to be held in one's head."""

from __future__ import annotations

from tests.rooms import floors, rooms


def test_the_house_has_at_most_22_rooms_on_9_floors_and_no_circle() -> None:
    house = rooms()
    assert {"core", "proxy", "sessions", "sessions/context"} <= set(house)
    assert len(house) <= 22
    assert max(floors(house).values()) <= 9
