"""Learning curves against cases that can be computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from firstcli.metrics.learning_curves import (
    LearningCurve,
    MeanOverSeeds,
    NotReached,
    mean_curve,
    needed_by_all,
    needed_difference,
)


def curve(*points: tuple[float, float]) -> LearningCurve:
    places, values = zip(*points, strict=True)
    return LearningCurve(np.array(places, np.float64), np.array(values, np.float64))


RISING = curve((0, 0.2), (100, 0.4), (200, 0.8))


@pytest.mark.parametrize(
    ("level", "needed"),
    [(0.1, 0.0), (0.2, 0.0), (0.3, 50.0), (0.4, 100.0), (0.6, 150.0), (0.8, 200.0), (0.81, None)],
)
def test_what_is_needed_is_linear_between_rounds(level: float, needed: float | None) -> None:
    found = RISING.needed(level)
    assert found is None if needed is None else found == pytest.approx(needed)


def test_the_first_crossing_counts() -> None:
    bumpy = curve((0, 0.2), (100, 0.6), (200, 0.3), (300, 0.9))
    assert bumpy.needed(0.5) == pytest.approx(75.0)


def test_outside_its_rounds_a_curve_says_nothing() -> None:
    found = RISING.at(np.array([-1.0, 50.0, 200.0, 201.0]))
    assert np.isnan(found[[0, 3]]).all()
    assert found[1:3] == pytest.approx([0.3, 0.8])


def test_the_interval_is_students() -> None:
    found = MeanOverSeeds.of([0.1, 0.2, 0.6])
    deviation = math.sqrt(((0.2**2) + (0.1**2) + (0.3**2)) / 2)
    assert found.value == pytest.approx(0.3)
    assert found.half_width == pytest.approx(4.302653 * deviation / math.sqrt(3), rel=1e-6)
    assert found.interval is not None
    assert sum(found.interval) == pytest.approx(0.6)


def test_one_seed_has_no_interval() -> None:
    assert MeanOverSeeds.of([0.5]) == MeanOverSeeds(0.5, None, 1)
    assert MeanOverSeeds.of([0.5]).interval is None


def test_seeds_with_other_rounds_are_interpolated() -> None:
    other = curve((0, 0.0), (50, 0.5), (150, 0.5))
    found = dict(mean_curve([RISING, other]))
    assert list(found) == [0.0, 50.0, 100.0, 150.0]
    assert found[50.0].value == pytest.approx((0.3 + 0.5) / 2)
    assert found[100.0].value == pytest.approx((0.4 + 0.5) / 2)


def test_differences_are_paired_by_seed() -> None:
    slow = [curve((0, 0.0), (100 * k, 1.0)) for k in (2, 3, 4)]
    fast = [curve((0, 0.0), (100 * k, 1.0)) for k in (1, 2, 3)]
    found = needed_difference(slow, fast, [1.0, 1.0, 1.0])
    assert isinstance(found, MeanOverSeeds)
    assert found.value == pytest.approx(100.0)
    assert found.half_width == pytest.approx(0.0)  # it is the same in every seed


def test_a_level_that_one_seed_never_reaches() -> None:
    assert needed_by_all([RISING, RISING], [0.4, 0.9]) == NotReached(1, 2)
    assert needed_by_all([RISING, RISING], [0.4, 0.8]) == MeanOverSeeds.of([100.0, 200.0])
    assert needed_difference([RISING] * 2, [RISING] * 2, [0.4, 0.9]) == NotReached(1, 2)
