"""Every use of a recalibrator: it gets read-only arrays, and its results are checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np

from firstcli import plugins
from firstcli.api import (
    JSON,
    BoolArray,
    Diagnostics,
    FloatArray,
    MassMode,
    PluginOptions,
    Recalibrator,
    TopKRows,
    UserError,
)
from firstcli.plugins.calls import built, explained
from firstcli.plugins.facts import diagnostics_problem, json_problem
from firstcli.plugins.registry import Plugin

SUM_TOLERANCE = 1e-6  # allows for a plugin that computes in float32
ORDER_TOLERANCE = 1e-9


class Recalibrated(NamedTuple):
    """The result of a recalibrator for N rows."""

    distribution: FloatArray  # (N, k) over the k tokens; rows sum to 1
    mass: FloatArray  # (N,) total probability of the k tokens
    tail: FloatArray | None  # (N,) probability of all other tokens, if the recalibrator changed it

    @property
    def probabilities(self) -> FloatArray:
        """The probability that the student learns for each token, (N, k)."""
        return np.asarray(self.mass[:, None] * self.distribution)


class CheckedRecalibrator:
    """A recalibrator whose every result is checked."""

    def __init__(self, plugin: Plugin, recalibrator: Recalibrator[Any]) -> None:
        self.plugin = plugin
        self._recalibrator = recalibrator

    @property
    def order_preserving(self) -> bool:
        return self._recalibrator.order_preserving

    @property
    def fits_subsets(self) -> bool:
        return self._recalibrator.fits_subsets

    @property
    def needs_fit(self) -> bool:
        with explained(self.plugin, "`needs_fit`"):
            return bool(self._recalibrator.needs_fit)

    @property
    def uses_rows(self) -> bool:
        """Whether it needs more than the probabilities."""
        cls, base = type(self._recalibrator), Recalibrator
        return (cls.fit_rows, cls.transform_rows) != (base.fit_rows, base.transform_rows)

    def check(self, k: int, rows: int) -> None:
        """Check that the recalibrator suits k tokens and a number of rows."""
        with explained(self.plugin, "`check`"):
            self._recalibrator.check(k, rows)

    def try_out(self, k: int) -> None:
        """Recalibrate one row of k tokens, because a plugin may accept some numbers only."""
        even = plain_rows(np.full((1, k), 1 / k), np.ones(1), "one")
        self.transform(replace(even, token_ids=np.zeros((1, k), np.int64)))

    def fit(self, rows: TopKRows, is_label: BoolArray) -> None:
        """Fit it on the validation part."""
        with explained(self.plugin, "`fit`"):
            self._recalibrator.fit_rows(_read_only(rows), _frozen(is_label))

    def transform(self, rows: TopKRows) -> Recalibrated:
        """Return the recalibrated rows."""
        with explained(self.plugin, "`transform`"):
            result = self._recalibrator.transform_rows(_read_only(rows))
            values = np.asarray(result, np.float64)
        if problem := self._problem(values, rows):
            raise self._mistake(f"`transform` {problem}")
        k = rows.topk.shape[1]
        if values.shape[1] == k:
            return Recalibrated(values, rows.mass, None)
        tail, total = values[:, k], values[:, :k].sum(axis=1, keepdims=True)
        shares = np.divide(values[:, :k], total, np.full((len(rows), k), 1 / k), where=total > 0)
        return Recalibrated(shares, 1 - tail, tail)

    def _problem(self, values: FloatArray, rows: TopKRows) -> str | None:
        count, k = rows.topk.shape
        shapes = [(count, k), (count, k + 1)][: 2 if rows.mass_mode == "teacher" else 1]
        if values.shape not in shapes:
            also = "; only mass 'teacher' allows one more column" if rows.mass_mode == "one" else ""
            return f"returned an array of shape {values.shape} for one of {(count, k)}{also}"
        invalid = np.asarray(~(np.isfinite(values) & (values >= 0)).all(axis=1))
        if invalid.any():
            return f"returned {_row(values, invalid)}, which are not all probabilities"
        sums = values.sum(axis=1)
        if (wrong := abs(sums - 1) > SUM_TOLERANCE).any():
            first = float(sums[np.flatnonzero(wrong)[0]])
            return f"returned {_row(values, wrong)}, which sum to {first:.4g} instead of 1"
        swapped = np.asarray((np.diff(values[:, :k], axis=1) > ORDER_TOLERANCE).any(axis=1))
        if self.order_preserving and swapped.any():
            return (
                f"returned {_row(values, swapped)}, in a different order than the given "
                f"{_numbers(rows.topk[np.flatnonzero(swapped)[0]])}, although it declares "
                "`order_preserving`"
            )
        return None

    def state(self) -> dict[str, JSON]:
        """Return what was learned, as JSON."""
        with explained(self.plugin, "`state`"):
            state = self._recalibrator.state()
        if not isinstance(state, dict):
            raise self._mistake(f"`state` returned a {type(state).__name__}, expected a dict")
        if problem := json_problem(state):
            raise self._mistake(f"`state` {problem}")
        return state

    def restore(self, state: Mapping[str, JSON]) -> None:
        """Restore what `state` returned."""
        with explained(self.plugin, "`restore`"):
            self._recalibrator.restore(state)

    def summary(self) -> str:
        """Return in a few words what was learned."""
        with explained(self.plugin, "`summary`"):
            return " ".join(str(self._recalibrator.summary()).split())

    def diagnostics(self) -> Diagnostics:
        """Return facts, warnings and curves."""
        with explained(self.plugin, "`diagnostics`"):
            diagnostics = self._recalibrator.diagnostics()
        if problem := diagnostics_problem(diagnostics):
            raise self._mistake(f"`diagnostics` {problem}")
        return diagnostics

    def _mistake(self, text: str) -> UserError:
        return UserError(f"{self.plugin.title}: {text}; correct the plugin")


def plain_rows(topk: FloatArray, mass: FloatArray, mass_mode: MassMode) -> TopKRows:
    """Return rows of which no more than the probabilities is known."""
    count = len(topk)
    return TopKRows(
        topk=topk,
        mass=mass,
        mass_mode=mass_mode,
        candidate=np.full(topk.shape, -1),
        token_ids=None,
        sample_ids=[str(number) for number in range(count)],
        position=np.zeros(count, np.int64),
        is_answer=np.zeros(count, np.bool_),
        task="",
    )


def _read_only(rows: TopKRows) -> TopKRows:
    values = {field.name: getattr(rows, field.name) for field in fields(rows)}
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    return replace(rows, **{name: _frozen(array) for name, array in arrays.items()})


def _frozen(array: Any) -> Any:
    view = array.view()
    view.flags.writeable = False
    return view


def _row(values: FloatArray, bad: BoolArray) -> str:
    first = int(np.flatnonzero(bad)[0])
    return f"{_numbers(values[first])} in row {first} and {int(bad.sum()) - 1} more"


def _numbers(row: FloatArray) -> str:
    shown = ", ".join(f"{value:.4g}" for value in row[:6])
    return f"[{shown}{', ...' if len(row) > 6 else ''}]"


def recalibrator(name: str, options: PluginOptions) -> CheckedRecalibrator:
    """Return a new, unfitted recalibrator with its options."""
    plugin = plugins.find("recalibrators", name)
    return CheckedRecalibrator(plugin, built(plugin, options))
