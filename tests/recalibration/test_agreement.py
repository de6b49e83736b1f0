"""The agreement temperature (DACA): against the definition, and what it can and cannot recover."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, rel_entr, softmax

from firstcli.api import FloatArray, UserError
from firstcli.recalibration import agreement
from firstcli.recalibration.builtin import LogitTemperature
from firstcli.recalibration.temperature_search import SEED, vertex


def drawn(count: int = 400, choices: int = 5, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    """Logits of a reference, and of a model that agrees with it on most questions."""
    generator = np.random.default_rng(seed)
    reference = generator.normal(scale=1.5, size=(count, choices))
    return reference, reference + generator.normal(scale=0.8, size=(count, choices))


def fitted(model: FloatArray, reference: FloatArray) -> dict[str, Any]:
    return agreement.fit_temperature(softmax(model, axis=1), softmax(reference, axis=1))


def test_it_is_the_minimum_of_the_definition() -> None:
    reference, model = drawn()
    f, z = softmax(reference, axis=1), 2.5 * model
    same = f.argmax(1) == z.argmax(1)

    def mean_kl(temperature: float) -> float:
        q = softmax(z[same] / temperature, axis=1)
        return float(rel_entr(f[same], q).sum(axis=1).mean())

    expected = minimize_scalar(mean_kl, bounds=(0.1, 10), options={"xatol": 1e-9}).x
    state = fitted(z, reference)
    assert state["temperature"] == pytest.approx(expected, rel=1e-5)
    assert state["rows"] == same.sum() and state["rows_left_out"] == (~same).sum() > 0
    low, high = state["interval"]
    assert low < state["temperature"] < high and high / low < 1.5
    assert not state["at_grid_end"] and not state["few_rows"] and not state["flat"]


def test_an_overconfident_copy_of_the_reference_is_recovered_exactly() -> None:
    reference, _ = drawn()
    assert fitted(3 * reference, reference)["temperature"] == pytest.approx(3, rel=1e-4)


def test_disagreement_does_not_count() -> None:
    """Whatever the model says where it disagrees, T is that of the other questions."""
    reference, model = drawn()
    same = reference.argmax(1) == model.argmax(1)
    changed = np.where(same[:, None], model, 7 * model)
    assert fitted(changed, reference)["temperature"] == fitted(model, reference)["temperature"]


def test_labels_order_and_missing_candidates_do_not_matter() -> None:
    reference, model = drawn(60)
    state = fitted(model, reference)
    order = np.random.default_rng(1).permutation(60)
    assert fitted(model[order], reference[order]) == state
    # Questions with fewer candidates are filled up with probability 0.
    wider = [np.pad(softmax(x, axis=1), ((0, 0), (0, 2))) for x in (model, reference)]
    padded = agreement.fit_temperature(*wider)
    assert padded["temperature"] == pytest.approx(state["temperature"], rel=1e-12)
    shuffled = np.argsort(np.random.default_rng(2).random(5))
    again = fitted(model[:, shuffled], reference[:, shuffled])
    assert again["temperature"] == pytest.approx(state["temperature"], rel=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_cross_entropies_are_those_of_the_definition(temperature: float) -> None:
    reference, model = drawn(20)
    f, g = softmax(reference, axis=1), softmax(30 * model, axis=1)  # some probabilities underflow
    expected = -(f * log_softmax(np.log(np.maximum(g, 1e-300)) / temperature, axis=1)).sum(axis=1)
    got = agreement.cross_entropies(g, f, temperature)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_a_certain_reference_wants_the_least_temperature() -> None:
    _, model = drawn(300)
    certain = np.eye(5)[model.argmax(axis=1)]
    state = agreement.fit_temperature(softmax(model, axis=1), certain)
    assert state["at_grid_end"] and state["temperature"] == pytest.approx(0.1, rel=0.2)


def test_without_agreement_there_is_nothing_to_fit() -> None:
    model, reference = np.eye(3)[[0, 1]] * 0.7 + 0.1, np.eye(3)[[1, 2]] * 0.7 + 0.1
    with pytest.raises(UserError, match="agrees with the teacher on none of 2 questions"):
        agreement.fit_temperature(model, reference)


def test_one_question_says_that_it_is_not_enough() -> None:
    state = fitted(np.array([[2.0, 0.0]]), np.array([[1.0, 0.0]]))
    assert state["temperature"] == pytest.approx(2, rel=1e-3)
    assert state["flat"] and state["few_rows"]


def test_the_state_is_that_of_a_logit_temperature() -> None:
    reference, model = drawn(100)
    recalibrator = LogitTemperature(LogitTemperature.Options())
    state = fitted(2 * model, reference)
    recalibrator.restore(state)
    g = softmax(2 * model, axis=1)
    expected = softmax(2 * model / state["temperature"], axis=1)
    np.testing.assert_allclose(recalibrator.transform(g), expected)
    diagnostics = recalibrator.diagnostics()
    assert diagnostics.facts["criterion"] == "agreement"
    assert set(diagnostics.curves) == {"agreement"}
    [warning] = diagnostics.warnings  # 100 rows are few
    assert "fitted by agreement" in warning


def test_the_interval_is_that_of_resampled_questions() -> None:
    """Against all resamples at once, in less memory than they take."""
    losses = np.random.default_rng(3).random((5, 3000))
    curve = dict(zip([0.5, 0.8, 1.0, 1.5, 2.0], losses.mean(axis=1).tolist(), strict=True))
    times = np.random.default_rng(SEED).multinomial(3000, np.full(3000, 1 / 3000), 200)
    found = [
        vertex(dict(zip(curve, row, strict=True))) for row in (times @ losses.T / 3000).tolist()
    ]
    tracemalloc.start()
    (low, high), spread = agreement._resampled(curve, losses, 1.0)
    assert tracemalloc.get_traced_memory()[1] < times.nbytes / 4
    tracemalloc.stop()
    assert spread == pytest.approx(np.std(found))
    expected = np.quantile(found, [0.025, 0.975])
    assert (low, high) == pytest.approx((min(expected[0], 1.0), max(expected[1], 1.0)))
