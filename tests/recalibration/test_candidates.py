"""Distributions of answers are recalibrated row by row, whatever the order of their columns."""

from __future__ import annotations

import numpy as np
import pytest

from firstcli import plugins
from firstcli.plugins import calls
from firstcli.recalibration.candidates import correction


def test_a_temperature_applies_to_every_answer() -> None:
    options = plugins.load("recalibrators", "logit-temperature").Options(temperature=2.0)
    corrected = correction(calls.recalibrator("logit-temperature", options), "reasoning")
    rows = np.array([[0.1, 0.6, 0.0, 0.3], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 1.0, 0.0]])
    for row, found in zip(rows, corrected(rows), strict=True):
        expected = [p**0.5 / sum(q**0.5 for q in row) for p in row]
        assert found == pytest.approx(expected, abs=1e-9)
    assert corrected(rows[:0]).shape == (0, 4)
    assert corrected(np.ones((3, 1))).tolist() == [[1.0]] * 3
