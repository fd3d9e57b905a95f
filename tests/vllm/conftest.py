"""Two real workers for the tests in this directory, which run only when asked for by ``-m vllm``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.vllm.lab import VllmWorker, lab_directory

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "vllm" in config.getoption("markexpr"):
        return
    ours = [item for item in items if HERE in item.path.parents]
    if ours:
        config.hook.pytest_deselected(items=ours)
        items[:] = [item for item in items if HERE not in item.path.parents]


@pytest.fixture(scope="session")
def fleet() -> Iterator[Sequence[VllmWorker]]:
    lab = lab_directory()
    if not (lab / "venv/bin/vllm").exists():
        pytest.fail(f"no vLLM in {lab}: run python -m tests.vllm.setup")
    workers = [VllmWorker(lab), VllmWorker(lab)]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.stop()


@pytest.fixture
def workers(fleet: Sequence[VllmWorker]) -> Sequence[VllmWorker]:
    """Both workers, up: one that an earlier test killed is started again."""
    down = [worker for worker in fleet if not worker.is_running]
    for worker in down:
        worker.start()
    for worker in down:
        worker.wait_until_up()
    return fleet


@pytest.fixture
def worker(workers: Sequence[VllmWorker]) -> VllmWorker:
    return workers[0]
