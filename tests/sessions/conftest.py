from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sessions.stores.redis_servers import RedisProcess, running


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisProcess]:
    """One for all tests that leave it as they found it: each takes sessions of its own."""
    with running() as server:
        yield server
