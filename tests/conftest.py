"""For all tests: none is judged by the time that it takes, and none takes for ever."""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Time-outs of what takes longer than pyproject.toml's: many processes. Real engines take as long as they take."""
    for item in items:
        if item.get_closest_marker("timeout") is None:
            if item.get_closest_marker("vllm"):
                item.add_marker(pytest.mark.timeout(0))
            elif item.get_closest_marker("system"):
                item.add_marker(pytest.mark.timeout(300))
