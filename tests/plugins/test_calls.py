"""What a plugin returns is checked at every call, and its exceptions become one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from firstcli.api import (
    JSON,
    BoolArray,
    Curve,
    Diagnostics,
    FloatArray,
    MassMode,
    PluginOptions,
    Recalibrator,
    TopKRows,
    UserError,
)
from firstcli.plugins import recalibrators
from firstcli.plugins.recalibrators import plain_rows
from firstcli.recalibration.builtin import TemperatureScalingOptions
from firstcli.testing import check_recalibrator, overconfident_teacher
from support.command_line import first, recipe, write_recipe
from support.recalibration import checked
from support.vector_scaling import VectorScaling, _target

if TYPE_CHECKING:
    from support.installed_plugins import Install

pytest_plugins = ["support.installed_plugins"]

PLAIN = PluginOptions()
TOPK = np.array([[0.6, 0.3], [0.5, 0.5]])


def rows(topk: FloatArray = TOPK, mode: MassMode = "teacher") -> TopKRows:
    mass = topk.sum(axis=1) if mode == "teacher" else np.ones(len(topk))
    return plain_rows(topk, mass, mode)


class Returning(Recalibrator[PluginOptions]):
    """A recalibrator that returns what a test gives it."""

    def __init__(self, result: Any, order_preserving: bool = True) -> None:
        super().__init__(PLAIN)
        self.result = result
        self.order_preserving = order_preserving  # type: ignore[misc]

    def transform(self, topk: FloatArray) -> FloatArray:
        return self.result  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        ([[0.3, 0.2]] * 2, "[0.3, 0.2] in row 0 and 1 more, which sum to 0.5 instead of 1"),
        ([[0.6, 0.4], [math.nan, 1]], "[nan, 1] in row 1 and 0 more, which are not all prob"),
        ([[1.5, -0.5]] * 2, "[1.5, -0.5] in row 0 and 1 more, which are not all probabilities"),
        ([0.5, 0.5], "returned an array of shape (2,) for one of (2, 2)"),
        ([[1.0]] * 2, "returned an array of shape (2, 1) for one of (2, 2)"),
        ([[0.4, 0.6]] * 2, "[0.4, 0.6] in row 0 and 1 more, in a different order than the given"),
        (None, "`transform` returned an array of shape ()"),
        ([["a", "b"]] * 2, "failed in `transform`: ValueError: could not convert string"),
    ],
)
def test_a_wrong_result_is_refused(result: Any, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        checked(Returning(result)).transform(rows())
    [message] = caught.value.messages
    assert message.startswith("recalibrator 'mine' from first-mine 1.2") and problem in message


def test_sound_results_pass() -> None:
    result = checked(Returning(np.array([[0.7, 0.3], [0.5, 0.5]], np.float32))).transform(rows())
    np.testing.assert_allclose(result.probabilities, [[0.63, 0.27], [0.5, 0.5]], rtol=1e-6)
    assert result.tail is None
    swapped = checked(Returning([[0.4, 0.6]] * 2, order_preserving=False)).transform(rows())
    assert swapped.distribution.tolist() == [[0.4, 0.6]] * 2


def test_one_more_column_moves_the_tail() -> None:
    moved = checked(Returning([[0.5, 0.1, 0.4], [0.0, 0.0, 1.0]])).transform(rows())
    np.testing.assert_allclose(moved.probabilities, [[0.5, 0.1], [0.0, 0.0]], atol=1e-15)
    assert moved.tail is not None and moved.tail.tolist() == [0.4, 1.0]
    np.testing.assert_allclose(moved.distribution.sum(axis=1), 1)
    with pytest.raises(UserError, match=r"only mass 'teacher' allows one more column"):
        checked(Returning([[0.5, 0.1, 0.4]] * 2)).transform(rows(mode="one"))


class Writing(Recalibrator[PluginOptions]):
    def transform(self, topk: FloatArray) -> FloatArray:
        topk /= topk.sum(axis=1, keepdims=True)
        return topk

    def fit(
        self, topk: FloatArray, is_label: BoolArray, mass: FloatArray, mass_mode: MassMode
    ) -> None:
        is_label[:] = False


def test_arguments_are_read_only() -> None:
    """Such a plugin changed the numbers of whatever was computed from them next."""
    topk, is_label = TOPK.copy(), np.eye(2, dtype=bool)
    with pytest.raises(UserError, match=r"`transform`: ValueError: .*read-only"):
        checked(Writing(PLAIN)).transform(rows(topk))
    with pytest.raises(UserError, match=r"`fit`: ValueError: .*read-only"):
        checked(Writing(PLAIN)).fit(rows(topk), is_label)
    assert topk.tolist() == TOPK.tolist() and is_label.any()
    topk[0, 0] = 0.5  # the caller's own arrays stay writable


class Reporting(Recalibrator[PluginOptions]):
    """Returns what a test gives it from `state` and `diagnostics`."""

    def __init__(self, result: Any) -> None:
        super().__init__(PLAIN)
        self.result = result

    def state(self) -> dict[str, JSON]:
        return self.result  # type: ignore[no-any-return]

    def restore(self, state: Mapping[str, JSON]) -> None:
        raise KeyError("weight")

    def diagnostics(self) -> Diagnostics:
        return self.result  # type: ignore[no-any-return]


@pytest.mark.parametrize("state", [{"w": np.ones(2)}, {"w": math.nan}, {"w": math.inf}, [1], None])
def test_a_state_that_is_no_json_is_refused(state: Any) -> None:
    with pytest.raises(
        UserError, match=r"'mine' from first-mine 1\.2: `state` (is not valid JSON|returned)"
    ):
        checked(Reporting(state)).state()


def test_diagnostics_and_restore_are_checked() -> None:
    with pytest.raises(UserError, match="does not return Diagnostics, but a dict"):
        checked(Reporting({})).diagnostics()
    with pytest.raises(UserError, match="`diagnostics` is not valid JSON"):
        checked(Reporting(Diagnostics({"w": math.nan}))).diagnostics()
    for curve in (Curve((), 1.0), Curve(((1.0, math.nan),), 1.0)):
        with pytest.raises(UserError, match="the curve 'nll' is malformed"):
            checked(Reporting(Diagnostics(curves={"nll": curve}))).diagnostics()
    with pytest.raises(UserError, match="failed in `restore`: KeyError: 'weight'"):
        checked(Reporting({})).restore({})


FAILING = """
from firstcli.api import PluginOptions, Recalibrator, Task, Split, Sample, ModelFamily
import numpy as np

class Mine(Recalibrator[PluginOptions]):
    needs_fit = True

    def fit(self, topk, is_label, mass, mass_mode):
        self.inner(topk)

    def inner(self, topk):
        return np.linalg.inv(0 * topk)  # singular

    def transform(self, topk):
        return topk
"""


def test_an_exception_names_the_innermost_line_of_the_plugin(install: Install) -> None:
    install("first-mine", FAILING)
    with pytest.raises(UserError) as caught:
        recalibrators.recalibrator("mine", PLAIN).fit(rows(), np.eye(2, dtype=bool))
    assert str(caught.value) == (
        "recalibrator 'mine' from first-mine 1.2 failed in `fit`: LinAlgError: Singular matrix "
        "(first_mine.py:12: `return np.linalg.inv(0 * topk)  # singular`); correct the plugin"
    )


def test_a_mistake_in_a_built_in_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="call fit or restore first"):
        recalibrators.recalibrator("temperature-scaling", TemperatureScalingOptions()).transform(
            rows()
        )


# Tasks and families.

TASK = """
from firstcli.api import PluginOptions, Sample, Split, Task

class Mine(Task[PluginOptions]):
    splits = ("train", "test")

    def load(self, split):
        {body}
"""
GOOD = "Sample.question(f'{i}?', (' a', ' b'), i % 2) for i in range(40)"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("return [1]", "`load` returned a list, expected a Split"),
        ("return Split(['what?'])", "sample number 0: found a str, expected a firstcli.api.Sample"),
        ("return Split([Sample('q', 'a'), Sample(3, 'a')])", "number 1: the prompt is a int"),
        ("return Split([Sample('q', ' b', 'x', (' a', ' b'), 0)])", "sample 'x': the response is"),
        ("return Split([Sample.question('q', [' a', ' b'], 1.0)])", "indices must be integers"),
        ("return Split([Sample('q', 'a', group=5)])", "the group is 5, expected text or None"),
        ("return Split([Sample('q', 'a', group='x'), Sample('r', 'a')])", "number 1: has no group"),
        ("return Split(1 / i for i in range(3))", "ZeroDivisionError: division by zero (first_mi"),
        ("raise SystemExit(0)", "failed in `load('train')`: SystemExit: 0"),
        ("return {}['rows']", "failed in `load('train')`: KeyError: 'rows' (first_mine.py:8"),
    ],
)
def test_a_task_that_yields_nonsense_is_named(
    install: Install, tmp_path: Any, body: str, sentence: str
) -> None:
    install("first-mine", TASK.format(body=body), kind="tasks")
    path = write_recipe(tmp_path, train={"task": {"name": "mine"}, "validation": 0.3})
    first("plan", path).mistake("task 'mine' from first-mine 1.2", sentence)


FAMILY = """
from firstcli.api import ModelFamily, PluginOptions

class Mine(ModelFamily[PluginOptions]):
    needs_checkpoint = False
    def tokenizer(self, ref, text):
        return self.missing
    def empty_model(self, ref, tokenizer): ...
    def model(self, ref, tokenizer, dtype, seed): ...
"""


def test_a_family_that_fails_is_named(install: Install, tmp_path: Any) -> None:
    install("first-mine", FAMILY, kind="families")
    path = write_recipe(tmp_path, student={"model": {"family": "mine"}})
    result = first("plan", path)
    assert result.code == 2
    assert {message for message in result.errors} == {
        "error: family 'mine' from first-mine 1.2 failed in `tokenizer`: AttributeError: 'Mine' "
        "object has no attribute 'missing' (first_mine.py:7: `return self.missing`); correct the "
        "plugin"
    }


BAD_OPTIONS = """
from firstcli.api import PluginOptions, Recalibrator
from pydantic import field_validator

class Options(PluginOptions):
    size: int = 1
    @field_validator("size")
    @classmethod
    def _check(cls, size):
        return size / 0

class Mine(Recalibrator[Options]):
    Options = Options
    def transform(self, topk):
        return topk
"""


def test_an_options_model_that_fails_is_named(install: Install, tmp_path: Any) -> None:
    install("first-mine", BAD_OPTIONS)
    arm = {"recalibrator": {"name": "mine", "options": {"size": 2}}}
    result = first("plan", write_recipe(tmp_path, arms={"arm": arm}))
    result.mistake("arms.arm.recalibrator.options", "'mine' from first-mine 1.2 failed in its opt")


# The richer argument: vector scaling.


def test_vector_scaling_conforms() -> None:
    check_recalibrator(VectorScaling, k=(3,))


def candidates(count: int, mode: MassMode) -> tuple[TopKRows, BoolArray]:
    """Simulate a teacher that is biased against its second candidate and over-confident."""
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(count, 3))
    biased = 2 * (logits - [0, 1, 0])
    weights = np.exp(np.hstack([biased, np.full((count, 1), -3.0)]))  # the last is the tail
    claimed = weights / weights.sum(axis=1, keepdims=True)
    odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    label = (draw.random((count, 1)) < odds.cumsum(axis=1)).argmax(axis=1)
    order = np.argsort(-claimed[:, :3], axis=1)
    topk = np.take_along_axis(claimed[:, :3], order, axis=1)
    mass = topk.sum(axis=1) if mode == "teacher" else np.ones(count)
    plain = plain_rows(topk, mass, mode)
    given = TopKRows(
        **{name: getattr(plain, name) for name in plain.__slots__} | {"candidate": order}
    )
    return given, order == label[:, None]


@pytest.mark.parametrize("mode", ["teacher", "one"])
def test_vector_scaling_finds_the_bias_of_a_candidate(mode: MassMode) -> None:
    given, is_label = candidates(4000, mode)
    fitted = checked(VectorScaling(PLAIN))
    assert fitted.uses_rows
    fitted.fit(given, is_label)
    state = fitted.state()
    first_bias, second, third = state["biases"]
    assert state["weight"] == pytest.approx(0.5, abs=0.05)
    assert second - first_bias == pytest.approx(1, abs=0.15)
    assert third == pytest.approx(first_bias, abs=0.15)
    outcome = is_label if mode == "one" else np.hstack([is_label, np.zeros((4000, 1), bool)])

    def loss(weights: FloatArray) -> float:
        target = (_target(weights, given) * outcome).sum(axis=1)
        return float(1e-3 * (weights[1:] ** 2).sum() - np.log(target).mean())

    found = np.array([state["weight"], *state["biases"]])
    assert abs(approx_fprime(found, loss, 1e-6)).max() < 1e-3
    result = fitted.transform(given)
    assert (result.tail is not None) == (mode == "teacher")
    before, after = given.topk, result.probabilities
    assert abs(after[:, 0].mean() - is_label[:, 0].mean()) < 0.02
    assert abs(before[:, 0].mean() - is_label[:, 0].mean()) > 0.1


def test_old_plugins_get_what_they_got() -> None:
    topk, is_label, mass, mode = overconfident_teacher(3, "teacher")
    received: list[Any] = []

    class Old(Recalibrator[PluginOptions]):
        def fit(
            self, topk: FloatArray, is_label: BoolArray, mass: FloatArray, mass_mode: MassMode
        ) -> None:
            received.extend([topk, is_label, mass, mass_mode])

        def transform(self, topk: FloatArray) -> FloatArray:
            shares: FloatArray = topk / topk.sum(axis=1, keepdims=True)
            return shares

    old = checked(Old(PLAIN))
    old.fit(plain_rows(topk, mass, mode), is_label)
    for got, given in zip(received, (topk, is_label, mass, mode), strict=True):
        np.testing.assert_array_equal(got, given)
    assert not old.uses_rows and old.summary() == ""


def test_the_recipe_has_a_plugin_with_neither_transform(install: Install, tmp_path: Any) -> None:
    code = "from firstcli.api import *\nclass Mine(Recalibrator[PluginOptions]): ..."
    install("first-mine", code)
    arms = recipe()["arms"] | {"mine": {"recalibrator": {"name": "mine"}}}
    result = first("plan", write_recipe(tmp_path, arms=arms))
    result.mistake("arms.mine.recalibrator", "define `transform`, or `transform_rows`")
