"""When a model's window is believed to have shrunk."""

from __future__ import annotations

from router.sessions.window_sizes import MAX_MODELS, SHRINK_S, WindowSizes


class Fleet:
    def __init__(self) -> None:
        self.now = 1000.0
        self.window = 8192
        self.windows = WindowSizes(lambda _model: self.window, lambda: self.now)

    def after(self, seconds: float, window: int) -> int:
        self.now += seconds
        self.window = window
        return self.windows("m")


def test_a_window_that_grows_counts_at_once() -> None:
    fleet = Fleet()
    assert [fleet.after(0, window) for window in (8192, 9000, 20_000)] == [8192, 9000, 20_000]


def test_a_window_that_shrinks_counts_once_it_has_stayed_so() -> None:
    fleet = Fleet()
    assert fleet.after(0, 8192) == 8192
    assert fleet.after(3600, 50) == 8192
    assert fleet.after(SHRINK_S - 1, 50) == 8192
    assert fleet.after(1, 50) == 50


def test_a_window_that_comes_back_has_not_shrunk() -> None:
    fleet = Fleet()
    fleet.after(0, 8192)
    for _ in range(10):
        assert fleet.after(SHRINK_S - 1, 50) == 8192
        assert fleet.after(1, 8192) == 8192


def test_a_window_that_is_unknown_for_a_while_stays_as_it_was() -> None:
    fleet = Fleet()
    assert fleet.after(0, 0) == 0
    fleet.after(0, 8192)
    assert fleet.after(1, 0) == 8192
    assert fleet.after(SHRINK_S, 0) == 0


def test_names_that_clients_make_up_are_not_remembered() -> None:
    windows = WindowSizes(lambda _model: 0, lambda: 0.0)
    for number in range(10):
        assert windows(f"made up {number}") == 0
    assert not windows._settled
    many = WindowSizes(lambda _model: 5, lambda: 0.0)
    for number in range(MAX_MODELS + 10):
        assert many(f"m{number}") == 5
    assert len(many._settled) == MAX_MODELS
