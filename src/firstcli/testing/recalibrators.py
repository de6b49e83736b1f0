"""Check the contract of a recalibrator on a simulated over-confident teacher."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from itertools import product
from typing import Any, Literal, get_args

import numpy as np

from firstcli.api import (
    JSON,
    FitInputs,
    FloatArray,
    MassMode,
    PluginOptions,
    Recalibrator,
    TopKRows,
    UserError,
)
from firstcli.plugins.facts import diagnostics_problem, json_problem
from firstcli.testing.requirements import require

ROWS = 240
TOLERANCE = 1e-9
_ARRAYS = ("topk", "mass", "candidate", "token_ids", "position", "is_answer")
ORDER_TOLERANCE = 1e-6  # a numerical optimum changes more than a sum when rows change their order


def check_recalibrator(
    cls: type[Recalibrator[Any]],
    options: PluginOptions | Mapping[str, JSON] | None = None,
    *,
    k: Sequence[int] = (1, 2, 5),
    seed: int = 0,
) -> None:
    """Check the contract of a recalibrator.

    It is fitted in both mass modes. For k = 1 it may raise UserError, since a single token always
    gets all the probability.

    Args:
        cls: the plugin's class.
        options: its options, as in a recipe; default: the plugin's defaults.
        k: the values of k to check.
        seed: seed of the simulated teacher.

    Raises:
        AssertionError: the class breaks the contract.
    """
    require(issubclass(cls, Recalibrator), f"{cls.__name__} is not a firstcli.api.Recalibrator")
    settings = cls.Options.model_validate(dict(options or {}))
    for width, mass_mode in product(k, get_args(MassMode)):
        try:
            _check_on(cls, settings, overconfident_teacher(width, mass_mode, seed))
        except UserError as error:
            if width > 1:
                raise AssertionError(f"{cls.__name__} rejects k = {width}: {error}") from error


def overconfident_teacher(k: int, mass_mode: MassMode, seed: int = 0) -> FitInputs:
    """Simulate the k largest probabilities of an over-confident teacher, and draw the labels."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=2.0, size=(ROWS, 4 * k + 8))  # (N, vocabulary)
    labels = [generator.choice(row.size, p=row) for row in _softmax(logits, 1.0)]
    claimed = _softmax(logits, 0.5)
    ranked = np.argsort(-claimed, axis=1)[:, :k]  # (N, k)
    topk = np.take_along_axis(claimed, ranked, axis=1)
    mass = np.ones(ROWS) if mass_mode == "one" else topk.sum(axis=1)
    return FitInputs(topk, ranked == np.array(labels)[:, None], mass, mass_mode)


def _softmax(logits: FloatArray, temperature: float) -> FloatArray:
    weights = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _extreme_rows(k: int) -> FloatArray:
    """Return extreme rows that a real teacher can produce; the first probability is never 0."""
    first, uniform = np.eye(1, k)[0], np.full(k, 1 / k)
    rows = (
        first,  # certain, all other tokens exactly 0
        np.where(first == 1, 1 - 1e-12, 1e-13 / k),  # nearly certain
        np.where(np.arange(k) < 2, 1 / min(k, 2), 0.0),  # a tie, all other tokens exactly 0
        uniform,
        uniform * 1e-4,  # nearly all mass outside the top k
        uniform * 1e-45,  # the smallest subnormal of float32
    )
    return np.stack(rows)


def _rows_of(inputs: FitInputs) -> TopKRows:
    """Return rows as firstcli passes them: every token stands for a candidate."""
    count, k = inputs.topk.shape
    ranks = np.tile(np.arange(k), (count, 1))
    return TopKRows(
        topk=inputs.topk,
        mass=inputs.mass,
        mass_mode=inputs.mass_mode,
        candidate=ranks,
        token_ids=ranks,
        sample_ids=[f"sample {number}" for number in range(count)],
        position=np.zeros(count, np.int64),
        is_answer=np.ones(count, np.bool_),
        task="simulated",
    )


def _like(inputs: FitInputs, topk: FloatArray) -> TopKRows:
    """Return other probabilities with the mass that they have in the same mode."""
    mass = np.ones(len(topk)) if inputs.mass_mode == "one" else topk.sum(axis=1)
    return _rows_of(FitInputs(topk, np.zeros(topk.shape, np.bool_), mass, inputs.mass_mode))


def _check_on(cls: type[Recalibrator[Any]], options: PluginOptions, inputs: FitInputs) -> None:
    rows, width = _rows_of(inputs), inputs.topk.shape[1]
    if (unfitted := cls(options)).needs_fit:
        try:
            unfitted.transform_rows(rows)
        except Exception:
            pass
        else:
            problem = "needs a fit, but its transform works without one"
            raise AssertionError(f"{cls.__name__} {problem}")
    unfitted.check(width, len(rows) if unfitted.needs_fit else 0)
    fitted = _fitted(cls(options), inputs)
    _check_distribution(fitted, rows, "ordinary rows")
    _check_distribution(fitted, _like(inputs, _extreme_rows(width)), "extreme rows")
    _check_distribution(fitted, _like(inputs, np.empty((0, width))), "no rows")
    _check_rows_are_independent(fitted, rows)
    _check_subsets(fitted, inputs)
    _check_fit_is_determined(fitted, inputs)
    _check_diagnostics(fitted)
    _check_state(fitted, inputs)
    for case, unusual in _unusual_inputs(inputs):
        try:
            fitted = _fitted(cls(options), unusual)
        except UserError:
            continue  # it may reject such rows
        _check_distribution(fitted, _rows_of(unusual), f"ordinary rows, fitted where {case}")
        _check_diagnostics(fitted)


def _check_distribution(fitted: Recalibrator[Any], given: TopKRows, rows: str) -> None:
    name, passed, topk = f"{type(fitted).__name__}.transform", deepcopy(given), given.topk
    target = fitted.transform_rows(passed)
    for key in _ARRAYS:
        unchanged = np.array_equal(getattr(passed, key), getattr(given, key))
        require(unchanged, f"{name} modifies its input ({key}, {rows})")
    (count, k), shape = topk.shape, np.shape(target)
    with_tail = given.mass_mode == "teacher" and shape == (count, k + 1)
    require(
        shape == (count, k) or with_tail, f"{name} turns shape {topk.shape} into {shape} ({rows})"
    )
    require(np.isfinite(target).all(), f"{name} returns NaN or infinity ({rows})")
    require((target >= 0).all(), f"{name} returns a negative probability ({rows})")
    require(_close(target.sum(axis=1), 1), f"{name} returns rows that do not sum to 1 ({rows})")
    steps = np.diff(target[:, :k], axis=1)
    ordered = not fitted.order_preserving or (steps <= TOLERANCE).all()
    problem = f"changes the order within a row ({rows}): set order_preserving = False"
    require(ordered, f"{name} {problem}")


def _check_rows_are_independent(fitted: Recalibrator[Any], rows: TopKRows) -> None:
    name = f"{type(fitted).__name__}.transform"
    whole = fitted.transform_rows(rows)
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = fitted.transform_rows(rows.rows(order))
    require(_close(shuffled, whole[order]), f"{name} depends on the order of the rows")
    cuts = (slice(0, 1), slice(1, 7), slice(7, None))
    parts = np.concatenate([fitted.transform_rows(rows.rows(cut)) for cut in cuts])
    require(_close(parts, whole), f"{name} depends on how the rows are split into batches")


def _check_subsets(fitted: Recalibrator[Any], inputs: FitInputs) -> None:
    if not fitted.fits_subsets or inputs.topk.shape[1] == 1:
        return
    whole = fitted.transform_rows(_rows_of(inputs))[:, : inputs.topk.shape[1] - 1]
    part = fitted.transform_rows(_like(inputs, inputs.topk[:, :-1]))
    same = _close(part, whole / whole.sum(axis=1, keepdims=True))
    problem = "depends on tokens that are left out: set fits_subsets = False"
    require(same, f"{type(fitted).__name__}.transform {problem}")


def _check_fit_is_determined(fitted: Recalibrator[Any], inputs: FitInputs) -> None:
    cls, options, name = type(fitted), fitted.options, f"{type(fitted).__name__}.fit"
    rows = _rows_of(inputs)
    again, target = _fitted(cls(options), inputs), fitted.transform_rows(rows)
    same = _as_json(fitted, "state") == _as_json(again, "state")
    require(same, f"{name} is not deterministic: the same rows give a different state")
    same = np.array_equal(target, again.transform_rows(rows))
    require(same, f"{name} is not deterministic: transform differs after the same rows")
    order = np.random.default_rng(0).permutation(len(target))
    shuffled = _fitted(cls(options), inputs.rows(order)).transform_rows(rows)
    same = _close(shuffled, target, ORDER_TOLERANCE)
    require(same, f"{name} depends on the order of the rows")


def _check_diagnostics(fitted: Recalibrator[Any]) -> None:
    summary = fitted.summary()
    has_one_line = isinstance(summary, str) and len(summary.splitlines()) <= 1
    require(has_one_line, f"{type(fitted).__name__}.summary: {summary!r} is not one line of text")
    problem = diagnostics_problem(fitted.diagnostics())
    require(not problem, f"{type(fitted).__name__}.diagnostics {problem}")


def _check_state(fitted: Recalibrator[Any], inputs: FitInputs) -> None:
    name, saved = type(fitted).__name__, _as_json(fitted, "state")
    restored = type(fitted)(fitted.options)
    try:
        restored.restore(json.loads(saved))
        target = restored.transform_rows(_rows_of(inputs))
    except Exception as error:
        raise AssertionError(f"{name} cannot be restored from its state: {error!r}") from error
    same = np.array_equal(target, fitted.transform_rows(_rows_of(inputs)))
    require(same, f"{name}.transform differs after its state went through JSON")
    same = _as_json(restored, "state") == saved
    require(same, f"{name}.state differs from the state that was restored")
    same = _as_json(restored, "diagnostics") == _as_json(fitted, "diagnostics")
    require(same, f"{name}.diagnostics differs after its state went through JSON")
    same = restored.summary() == fitted.summary()
    require(same, f"{name}.summary differs after its state went through JSON")


def _fitted(recalibrator: Recalibrator[Any], inputs: FitInputs) -> Recalibrator[Any]:
    method, passed = f"{type(recalibrator).__name__}.fit", deepcopy(inputs)
    recalibrator.fit_rows(_rows_of(passed), passed.is_label)
    for name, after, before in zip(inputs._fields, passed, inputs, strict=True):
        require(np.array_equal(after, before), f"{method} modifies its input '{name}'")
    return recalibrator


def _unusual_inputs(inputs: FitInputs) -> list[tuple[str, FitInputs]]:
    """Return inputs for which a careless fit divides by zero or mistakes the mass mode."""
    column = np.arange(inputs.topk.shape[1])  # (k,)
    first, second, never = (np.tile(column == label, (ROWS, 1)) for label in (0, 1, -1))
    shares = inputs.topk / inputs.topk.sum(axis=1, keepdims=True)
    return [
        ("the label is always the first token", inputs._replace(is_label=first)),
        ("the label is always the second token", inputs._replace(is_label=second)),
        ("the label is never in the top k", inputs._replace(is_label=never)),
        ("the top k holds all probability", inputs._replace(topk=shares, mass=np.ones(ROWS))),
    ]


def _as_json(recalibrator: Recalibrator[Any], method: Literal["state", "diagnostics"]) -> str:
    content = recalibrator.state() if method == "state" else asdict(recalibrator.diagnostics())
    problem = json_problem(content)
    require(not problem, f"{type(recalibrator).__name__}.{method} {problem}")
    return json.dumps(content, sort_keys=True)


def _close(values: FloatArray, expected: FloatArray | float, tolerance: float = TOLERANCE) -> bool:
    return np.allclose(values, expected, rtol=0, atol=tolerance)
