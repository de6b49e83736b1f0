"""The part of the contract that concerns recalibrators."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from firstcli.api.contract import (
    JSON,
    OUTDATED,
    BoolArray,
    FloatArray,
    IntArray,
    MassMode,
    OptionsT,
    PluginBase,
)


class FitInputs(NamedTuple):
    """The arguments of `Recalibrator.fit`; N positions, k tokens each."""

    topk: FloatArray  # (N, k)
    is_label: BoolArray  # (N, k)
    mass: FloatArray  # (N,)
    mass_mode: MassMode

    def rows(self, chosen: Any) -> FitInputs:
        """Return the chosen rows, by mask, index or slice."""
        return self._replace(
            topk=self.topk[chosen], is_label=self.is_label[chosen], mass=self.mass[chosen]
        )


@dataclass(frozen=True, slots=True)
class TopKRows:
    """N rows of k tokens, and what is known about each; all arrays are read-only.

    A row is one position of the teacher's knowledge. For most post-hoc recalibrators, it is one
    question, and its tokens stand for the candidates: `topk` then sums to 1 over them.
    """

    topk: FloatArray  # (N, k) probabilities, most likely first
    mass: FloatArray  # (N,) total probability that is learned for the k tokens
    mass_mode: MassMode
    candidate: IntArray
    """Index of the sample's candidate that each token stands for, (N, k); -1 for other tokens."""
    token_ids: IntArray | None
    """The tokens' ids, (N, k); None where a row's tokens are candidates."""
    sample_ids: Sequence[str]  # N
    position: IntArray  # (N,) number of the response's tokens before the row's position
    is_answer: BoolArray  # (N,) whether this is the position at which the candidates differ
    task: str
    """Name of the task that the samples come from."""

    def __len__(self) -> int:
        return len(self.topk)

    def rows(self, chosen: Any) -> TopKRows:
        """Return the chosen rows, by mask, index or slice."""
        return replace(
            self,
            topk=self.topk[chosen],
            mass=self.mass[chosen],
            candidate=self.candidate[chosen],
            token_ids=None if self.token_ids is None else self.token_ids[chosen],
            sample_ids=np.asarray(self.sample_ids, dtype=object)[chosen].tolist(),
            position=self.position[chosen],
            is_answer=self.is_answer[chosen],
        )


@dataclass(frozen=True, slots=True)
class Curve:
    """A criterion as a function of one parameter, evaluated on the validation part."""

    points: tuple[tuple[float, float], ...]  # (parameter, criterion value), ascending parameters
    best: float  # the parameter that minimises the criterion; one of the points
    interval: tuple[float, float] | None = None  # of the best parameter; contains `best`


RESERVED_FACTS = frozenset(
    {
        *("recalibrator", "options", "mass", "positions", "ranks", "state"),
        *("accuracy", "confidence_before", "confidence_after", "ece_before", "ece_after"),
    }
)
"""Other keys of `calibration/<arm>.json`, which facts cannot use."""


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """What a recalibrator reports about its fit."""

    facts: Mapping[str, JSON] = field(default_factory=dict)
    """Short facts for tables and `calibration/<arm>.json`; any name outside `RESERVED_FACTS`.

    Reports know `temperature`, its `interval` (two numbers), its `criterion` (the name of the curve
    that it minimises), `temperatures` by criterion, and the number of `rows` used, if not all.
    """
    warnings: tuple[str, ...] = ()
    """What makes the fit doubtful and what to do: one line each, without the arm's name."""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    """Criteria over a parameter, by name, for the report's figures."""

    def __post_init__(self) -> None:
        if clashes := sorted(RESERVED_FACTS & set(self.facts)):
            raise ValueError(f"a recalibrator's facts cannot be called {', '.join(clashes)}")


class Recalibrator(PluginBase[OptionsT]):
    """A plugin of the group `firstcli.recalibrators`: better probabilities for the teacher's top k.

    Arrays are float64. Each row is one position; columns run from the most to the least likely
    token. A row sums to 1 or less: the rest of the probability is outside the top k. The first
    value is above 0; the other values can be 0, and all can be subnormal.

    With k = 1, `fit` and `transform` may raise UserError.

    A recalibrator that needs more than the probabilities overrides `fit_rows` and `transform_rows`
    instead of `fit` and `transform`. firstcli checks every result, and passes read-only arrays.
    """

    order_preserving: ClassVar[bool] = True
    """Whether a row's probabilities never change their order."""
    fits_subsets: ClassVar[bool] = False
    """Whether the result for some of a row's tokens, renormalised, is the result for these tokens
    alone. A post-hoc recalibrator is then fitted on the model's top k tokens, otherwise on the
    candidates."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        try:
            inspect.signature(cls.fit).bind(cls, *FitInputs._fields)
        except TypeError as error:
            change = f"let `fit` accept ({', '.join(FitInputs._fields)})"
            raise TypeError(OUTDATED.format(cls.__name__, change)) from error

    @property
    def needs_fit(self) -> bool:
        """Whether `fit` or `restore` must run before `transform`, with these options."""
        return False

    def check(self, k: int, rows: int) -> None:
        """Check, before anything runs, that the recalibrator suits the data.

        Args:
            k: number of tokens per row.
            rows: number of rows that `fit` will get; 0 if `needs_fit` is False.

        Raises:
            UserError: it does not; says what to change.
        """

    def fit(
        self, topk: FloatArray, is_label: BoolArray, mass: FloatArray, mass_mode: MassMode
    ) -> None:
        """Learn from the validation part, without modifying the arrays.

        The result must be deterministic and, up to rounding, independent of the order of the rows.

        Args:
            topk: the teacher's probabilities, (N, k), from the softmax over the whole vocabulary.
            is_label: whether each of the k tokens is the label, (N, k); all false in a row whose
                label is not in the top k.
            mass: total probability that the student learns for the k tokens, (N,).
            mass_mode: where `mass` comes from: `teacher` for `topk.sum(1)`, `one` for all ones.

        Raises:
            UserError: these rows do not determine a fit; says what to change.
        """

    def transform(self, topk: FloatArray) -> FloatArray:
        """Return a distribution over the same k tokens, (N, k).

        Values are finite and not negative, and rows sum to 1. N can be 0. Each row's result depends
        on that row alone. Do not modify `topk`.

        Raises:
            Exception: `needs_fit` holds, but neither `fit` nor `restore` was called.
        """
        raise NotImplementedError("define `transform`, or `transform_rows`")

    def fit_rows(self, rows: TopKRows, is_label: BoolArray) -> None:
        """Learn from the validation part as `fit` does, which this method calls by default.

        Args:
            rows: everything that is known about the rows.
            is_label: whether each of the k tokens is the label, (N, k).

        Raises:
            UserError: as `fit`.
        """
        self.fit(rows.topk, is_label, rows.mass, rows.mass_mode)

    def transform_rows(self, rows: TopKRows) -> FloatArray:
        """Return a distribution over the k tokens, (N, k), by default that of `transform`.

        With `mass_mode: teacher`, the result can also have k + 1 columns, which sum to 1: the
        probability that the student learns for each token, and in the last column for all other
        tokens together. With k columns, `mass` stays as it is.
        """
        return self.transform(rows.topk)

    def state(self) -> dict[str, JSON]:
        """Return what `fit` learned as JSON without NaN or infinity; empty if it learns nothing."""
        return {}

    def restore(self, state: Mapping[str, JSON]) -> None:
        """Restore what `state` returned; `transform` then gives exactly the same result."""

    def summary(self) -> str:
        """Describe in a few words what `fit` learned, for tables; empty if there is nothing."""
        return ""

    def diagnostics(self) -> Diagnostics:
        """Describe the fit for reports; the same after `restore`, so derive it from the state."""
        return Diagnostics()
