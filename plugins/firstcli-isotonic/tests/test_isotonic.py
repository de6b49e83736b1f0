"""The plugin alone; `firstcli.testing` holds what every recalibrator must keep."""

from __future__ import annotations

import numpy as np
import pytest
from firstcli_isotonic import Isotonic

from firstcli.api import PluginOptions
from firstcli.errors import UserError
from firstcli.testing import check_recalibrator
from firstcli.testing.recalibrators import overconfident_teacher


def fitted(mass_is_one: bool) -> Isotonic:
    isotonic = Isotonic(PluginOptions())
    isotonic.fit(*overconfident_teacher(5, mass_is_one))
    return isotonic


def test_conforms() -> None:
    check_recalibrator(Isotonic)


@pytest.mark.parametrize("mass_is_one", [False, True])
def test_teaches_the_regression_of_the_top_1_token(mass_is_one: bool) -> None:
    from sklearn.isotonic import IsotonicRegression

    topk, is_label, mass = overconfident_teacher(5, mass_is_one)
    regression = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
    expected = regression.fit_transform(topk[:, 0], is_label[:, 0].astype(float))
    taught = mass * fitted(mass_is_one).transform(topk)[:, 0]
    reachable = (expected <= mass * (1 - 1e-6)) & (expected >= mass * 1e-6)
    np.testing.assert_allclose(taught[reachable], expected[reachable], rtol=0, atol=1e-12)
    assert reachable.mean() > 0.8


def test_a_value_above_the_mass_takes_nearly_all_of_it() -> None:
    isotonic = Isotonic(PluginOptions())
    isotonic.restore({"top1": [0.0, 1.0], "right": [0.9, 0.9], "mass": "teacher", "rows": 2})
    target = isotonic.transform(np.array([[0.4, 0.1]]))
    np.testing.assert_allclose(target, [[1 - 1e-6, 1e-6]], rtol=1e-9)


def test_the_others_keep_their_proportions() -> None:
    target = fitted(True).transform(np.array([[0.6, 0.2, 0.1, 0.04, 0.01]]))[0]
    np.testing.assert_allclose(target[1:] / target[4], [20, 10, 4, 1])


def test_others_without_any_probability_share_equally() -> None:
    target = fitted(True).transform(np.array([[1.0, 0.0, 0.0, 0.0, 0.0]]))[0]
    assert target[1] > 0
    np.testing.assert_array_equal(target[1:], target[1])


def test_refuses_one_token_and_no_rows() -> None:
    with pytest.raises(UserError, match="top_k is 1"):
        Isotonic(PluginOptions()).fit(np.ones((3, 1)), np.ones((3, 1), dtype=bool), np.ones(3))
    with pytest.raises(UserError, match="no rows"):
        Isotonic(PluginOptions()).fit(np.ones((0, 5)), np.ones((0, 5), dtype=bool), np.ones(0))
