"""These tests run on the event loop that serves."""

from tests.server.conftest import pytest_asyncio_loop_factories as pytest_asyncio_loop_factories
