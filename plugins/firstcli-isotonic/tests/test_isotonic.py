"""The plugin's own behaviour; `firstcli.testing` checks the contract of recalibrators."""

from __future__ import annotations

import numpy as np
import pytest
from firstcli_isotonic import Isotonic

from firstcli.api import MassMode, PluginOptions, UserError
from firstcli.testing import check_recalibrator, overconfident_teacher


def fitted(mass_mode: MassMode) -> Isotonic:
    isotonic = Isotonic(PluginOptions())
    isotonic.fit(*overconfident_teacher(5, mass_mode))
    return isotonic


def test_conforms() -> None:
    check_recalibrator(Isotonic)


@pytest.mark.parametrize("mass_mode", ["teacher", "one"])
def test_the_top_1_token_gets_the_regression(mass_mode: MassMode) -> None:
    from sklearn.isotonic import IsotonicRegression

    topk, is_label, mass, _ = overconfident_teacher(5, mass_mode)
    regression = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
    expected = regression.fit_transform(topk[:, 0], is_label[:, 0].astype(float))
    top1 = mass * fitted(mass_mode).transform(topk)[:, 0]
    reachable = (expected <= mass * (1 - 1e-6)) & (expected >= mass * 1e-6)
    np.testing.assert_allclose(top1[reachable], expected[reachable], rtol=0, atol=1e-12)
    assert reachable.mean() > 0.8


@pytest.mark.parametrize("mass_mode", ["teacher", "one"])
def test_the_mass_mode_is_not_inferred_from_the_mass(mass_mode: MassMode) -> None:
    topk, is_label, _, _ = overconfident_teacher(5, "teacher")
    isotonic = Isotonic(PluginOptions())
    isotonic.fit(topk, is_label, np.ones(len(topk)), mass_mode)
    assert isotonic.state()["mass"] == mass_mode


def test_few_rows_are_warned_of() -> None:
    topk, is_label, mass, mode = overconfident_teacher(5, "one")
    isotonic = fitted("one")
    [warning] = isotonic.diagnostics().warnings
    assert "on 240 rows, which may overfit; raise train.validation" in warning
    assert isotonic.diagnostics().facts["rows"] == 240
    isotonic.fit(np.tile(topk, (5, 1)), np.tile(is_label, (5, 1)), np.tile(mass, 5), mode)
    assert not isotonic.diagnostics().warnings


def test_a_value_above_the_mass_takes_nearly_all_of_it() -> None:
    isotonic = Isotonic(PluginOptions())
    isotonic.restore({"top1": [0.0, 1.0], "right": [0.9, 0.9], "mass": "teacher", "rows": 2})
    target = isotonic.transform(np.array([[0.4, 0.1]]))
    np.testing.assert_allclose(target, [[1 - 1e-6, 1e-6]], rtol=1e-9)


def test_the_other_tokens_keep_their_proportions() -> None:
    target = fitted("one").transform(np.array([[0.6, 0.2, 0.1, 0.04, 0.01]]))[0]
    np.testing.assert_allclose(target[1:] / target[4], [20, 10, 4, 1])


def test_other_tokens_without_probability_share_equally() -> None:
    target = fitted("one").transform(np.array([[1.0, 0.0, 0.0, 0.0, 0.0]]))[0]
    assert target[1] > 0
    np.testing.assert_array_equal(target[1:], target[1])


@pytest.mark.parametrize(("shape", "reason"), [((3, 1), "top_k is 1"), ((0, 5), "no rows")])
def test_one_token_and_no_rows_are_rejected(shape: tuple[int, int], reason: str) -> None:
    isotonic = Isotonic(PluginOptions())
    with pytest.raises(UserError, match=reason):
        isotonic.fit(np.ones(shape), np.ones(shape, dtype=bool), np.ones(shape[0]), "one")


def test_it_checks_tokens_and_rows_and_says_what_it_learned() -> None:
    isotonic = Isotonic(PluginOptions())
    isotonic.check(5, 100)
    for k, rows in ((1, 100), (5, 0)):
        with pytest.raises(UserError, match="isotonic"):
            isotonic.check(k, rows)
    isotonic.restore({"top1": [0.1, 0.9], "right": [0.25, 0.75], "mass": "one", "rows": 9})
    assert isotonic.summary() == "2 points from 0.25 to 0.75"
