"""What to do where a test needs a program that this machine does not have."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def not_tested(why: str) -> NoReturn:
    """Skips, and says why; fails where ``CI`` is set, which has to have everything."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
