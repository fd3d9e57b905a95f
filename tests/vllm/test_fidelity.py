"""The simulator's engine, calibrated on a few points, predicts when the real engine gives first tokens.

The bound is on the mean of a scene, in the round of it that was disturbed least: a quarter of it, or one step of the
real engine. Whether a request just catches a step is chance, and of a warm one's 10 ms a step is 3.
"""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict

import pytest

from tests.vllm.lab import VllmWorker
from tests.vllm.results import write_result
from tests.vllm.ttft import (
    CALIBRATION_SCENES,
    PREDICTED_SCENES,
    Calibration,
    Measured,
    calibrate,
    measure,
    predict,
)

pytestmark = pytest.mark.vllm

TEST = "tests/vllm/test_fidelity.py"
ROUNDS = 9
MAX_ERROR = 0.25
STEP_S = 0.003


async def test_predicted_first_tokens_are_within_a_quarter_of_the_real_engines(worker: VllmWorker) -> None:
    draw = random.Random(int.from_bytes(os.urandom(8)))  # a repeated seed would find a running worker's cache warm
    scenes, itl_s = await measure(worker.url, (*CALIBRATION_SCENES, *PREDICTED_SCENES), ROUNDS, draw)
    calibration = calibrate(scenes[: len(CALIBRATION_SCENES)], itl_s)
    off = compare(calibration, scenes)
    assert not off, f"of {len(scenes)} scenes: {off}"


def compare(calibration: Calibration, scenes: Sequence[Measured]) -> dict[str, str]:
    """The scenes that are out of bounds, after all of it was written to the result file."""
    off: dict[str, str] = {}
    rows = []
    for measured in scenes:
        predicted_s = predict(calibration, measured)
        real_s, simulated_s = statistics.mean(measured.ttft_s), statistics.mean(predicted_s)
        if abs(simulated_s - real_s) > max(MAX_ERROR * real_s, STEP_S):
            off[measured.scene.name] = f"{real_s * 1e3:.0f} ms, predicted {simulated_s * 1e3:.0f} ms"
        rows.append(asdict(measured) | {"predicted_s": predicted_s, "error": simulated_s / real_s - 1})
    figures = {"rounds": ROUNDS, "calibration": asdict(calibration), "scenes": rows}
    write_result("vllm-ttft", TEST, figures)
    return off
