"""The plugin alone; `firstcli.testing` holds what every recalibrator must keep."""

from __future__ import annotations

import json
import math
from typing import Any

import firstcli_adaptive
import numpy as np
import pytest
from firstcli_adaptive import Adaptive, features, objective, standardisation, standardised

from firstcli.api import PluginOptions
from firstcli.errors import UserError
from firstcli.recalibration.builtin import LogitTemperature, scale_logits, softmax
from firstcli.testing import check_recalibrator
from firstcli.testing.recalibrators import Knowledge, overconfident_teacher


def fitted(given: Knowledge) -> Adaptive:
    adaptive = Adaptive(PluginOptions())
    adaptive.fit(*given)
    return adaptive


def teacher(count: int, heats: tuple[float, float], seed: int = 0) -> Knowledge:
    """Sharp rows are too sure by the first factor, flat rows by the second."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=generator.choice([1.0, 4.0], (count, 1)), size=(count, 5))
    sharp = np.sort(softmax(logits, 1.0), axis=1)[:, -1] > 0.8
    heat = np.where(sharp, *heats)[:, None]
    drawn = generator.random((count, 1)) > softmax(logits / heat, 1.0).cumsum(axis=1)
    order = np.argsort(-logits, axis=1)
    topk = np.take_along_axis(softmax(logits, 1.0), order, axis=1)
    return Knowledge(topk, order == np.minimum(drawn.sum(axis=1), 4)[:, None], topk.sum(axis=1))


def nll(target: Any, given: Knowledge) -> float:
    return -float(np.log((target * given.is_label).sum(axis=1)).mean())


def test_conforms() -> None:
    check_recalibrator(Adaptive)


def test_features_are_entropy_margin_and_tail() -> None:
    row = [0.6, 0.2, 0.1]
    shares = [value / sum(row) for value in row]
    expected = [
        -sum(share * math.log(share) for share in shares),
        math.log(0.6) - math.log(0.2),
        math.log(0.1),
    ]
    np.testing.assert_allclose(features(np.array([row]))[0], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([1.0, 0.0, 0.0], [0.0, math.log(1e12), math.log(1e-4)]),
        ([1 / 3] * 3, [math.log(3), 0.0, math.log(1e-4)]),
        ([1e-45, 1e-45, 0.0], [math.log(2), 0.0, 0.0]),
        ([0.5], [0.0, 0.0, math.log(0.5)]),
    ],
)
def test_features_of_extreme_rows(row: list[float], expected: list[float]) -> None:
    np.testing.assert_allclose(features(np.array([row]))[0], expected, rtol=1e-12, atol=1e-15)


def test_standard_features_stay_within_what_was_seen() -> None:
    raw = np.array([[0.0, 1.0, 7.0], [2.0, 3.0, 7.0]])
    scale = standardisation(raw)
    np.testing.assert_allclose(standardised(raw, scale), [[-1, -1, 0], [1, 1, 0]])
    np.testing.assert_allclose(standardised(np.array([[-9.0, 9.0, 9.0]]), scale), [[-1, 1, 0]])


@pytest.mark.parametrize("strength", [0.0, 0.1])
def test_the_gradient_is_that_of_finite_differences(strength: float) -> None:
    topk, is_label, _ = overconfident_teacher(5, mass_is_one=False)
    inside = is_label.any(axis=1)
    raw = features(topk[inside])
    scaled = standardised(raw, standardisation(raw))
    data = firstcli_adaptive._data(topk[inside], is_label[inside], scaled)
    weights = np.array([0.5, 0.2, -0.3, 0.1])
    value, gradient = objective(weights, data, strength)
    temperatures = np.exp(weights[0] + scaled @ weights[1:])
    rows = zip(np.split(topk[inside], inside.sum()), temperatures, strict=True)
    taught = np.concatenate([scale_logits(row, temperature) for row, temperature in rows])
    expected = nll(taught, Knowledge(topk[inside], is_label[inside], topk[inside, 0]))
    penalty = strength * (0.2**2 + 0.3**2 + 0.1**2) / 2
    assert value == pytest.approx(expected + penalty, rel=1e-12)
    for i in range(4):
        step = np.zeros(4)
        step[i] = 1e-6
        rise = objective(weights + step, data, strength)[0]
        fall = objective(weights - step, data, strength)[0]
        assert gradient[i] == pytest.approx((rise - fall) / 2e-6, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("mass_is_one", [False, True])
def test_one_temperature_for_all_is_logit_temperature_by_nll(
    mass_is_one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firstcli_adaptive, "STRENGTHS", (math.inf,))
    given = overconfident_teacher(5, mass_is_one)
    adaptive = fitted(given)
    assert adaptive.state()["weights"][1:] == [0.0, 0.0, 0.0]
    same = LogitTemperature(LogitTemperature.Options(criterion="nll"))
    same.fit(*given)
    temperature = same.state()["temperature"]
    assert adaptive.state()["temperature_of_all"] == pytest.approx(temperature, rel=1e-6)
    np.testing.assert_allclose(adaptive.temperatures(given.topk), temperature, rtol=1e-6)
    np.testing.assert_allclose(
        adaptive.transform(given.topk), same.transform(given.topk), atol=1e-6
    )


def test_a_teacher_that_needs_one_temperature_gets_one() -> None:
    kept = [fitted(teacher(200, (2.0, 2.0), seed)).state()["strength"] for seed in range(10)]
    assert sum(strength is None for strength in kept) >= 7


def test_a_teacher_that_needs_two_gets_more_than_one() -> None:
    train, test = teacher(2000, (3.0, 1.0)), teacher(2000, (3.0, 1.0), seed=1)
    adaptive = fitted(train)
    assert adaptive.state()["strength"] is not None
    single = LogitTemperature(LogitTemperature.Options(criterion="nll"))
    single.fit(*train)
    assert nll(adaptive.transform(test.topk), test) < nll(single.transform(test.topk), test) - 0.01
    sharp = adaptive.temperatures(np.array([[0.96, 0.01, 0.01, 0.01, 0.01]]))
    even = adaptive.temperatures(np.array([[0.24, 0.2, 0.2, 0.18, 0.18]]))
    assert sharp > 1.5 * even


def test_few_rows_share_a_temperature() -> None:
    few = fitted(Knowledge(*(array[:99] for array in teacher(2000, (3.0, 1.0)))))
    assert few.state()["strength"] is None
    assert len(set(few.temperatures(np.array([[0.9, 0.05], [0.5, 0.4]])).tolist())) == 1


def test_the_state_is_json_and_brings_everything_back() -> None:
    given = teacher(2000, (3.0, 1.0))
    adaptive = fitted(given)
    restored = Adaptive(PluginOptions())
    restored.restore(json.loads(json.dumps(adaptive.state(), allow_nan=False)))
    np.testing.assert_array_equal(restored.transform(given.topk), adaptive.transform(given.topk))


def test_temperatures_stay_within_a_factor_of_ten() -> None:
    adaptive = Adaptive(PluginOptions())
    sides = {"centre": [0.0] * 3, "scale": [1.0] * 3, "low": [-9.0] * 3, "high": [9.0] * 3}
    adaptive.restore({"weights": [0.0, 50.0, -50.0, 0.0], **sides})
    found = adaptive.temperatures(np.array([[0.5, 0.5], [0.999, 0.001]]))
    np.testing.assert_allclose(found, [10.0, 0.1])


def test_refuses_rows_that_say_nothing() -> None:
    topk = np.tile([0.6, 0.3, 0.0], (4, 1))
    zero = np.tile([False, False, True], (4, 1))
    for is_label in (zero, np.zeros((4, 3), dtype=bool)):
        with pytest.raises(UserError, match="none of the 4 true tokens"):
            Adaptive(PluginOptions()).fit(topk, is_label, np.ones(4))
    with pytest.raises(UserError, match="none of the 0 true tokens"):
        Adaptive(PluginOptions()).fit(np.ones((0, 5)), np.ones((0, 5), dtype=bool), np.ones(0))
