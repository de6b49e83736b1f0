"""Check that a recalibrator keeps its contract, on an invented over-confident teacher."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from firstcli.api import PluginOptions, Recalibrator
from firstcli.errors import UserError
from firstcli.recalibration.builtin import softmax
from firstcli.testing.requirements import GivenOptions, options_of, require

if TYPE_CHECKING:
    from firstcli.api import BoolArray, FloatArray

ROWS = 240
TOLERANCE = 1e-9


class Knowledge(NamedTuple):
    """What a recalibrator is fitted on."""

    topk: FloatArray  # (N, k)
    is_label: BoolArray  # (N, k)
    mass: FloatArray  # (N,)


def check_recalibrator(
    cls: type[Recalibrator[Any]],
    options: GivenOptions = None,
    *,
    k: Sequence[int] = (1, 2, 5),
    seed: int = 0,
) -> None:
    """Check the contract of a recalibrator.

    It is fitted with `mass: teacher` and with `mass: one`. For k = 1 it may refuse with a
    UserError, since a single token can only be given everything.

    Args:
        cls: the plugin's class.
        options: its options, as in a recipe; its defaults when left out.
        k: how many tokens a row has, in turn.
        seed: draws the invented teacher.

    Raises:
        AssertionError: the class breaks the contract.
    """
    require(issubclass(cls, Recalibrator), f"{cls.__name__} is no firstcli.api.Recalibrator")
    settings = options_of(cls, options)
    for width in k:
        for mass_is_one in (False, True):
            try:
                _check_on(cls, settings, overconfident_teacher(width, mass_is_one, seed))
            except UserError as error:
                if width > 1:
                    raise AssertionError(f"{cls.__name__} refuses k = {width}: {error}") from error


def overconfident_teacher(k: int, mass_is_one: bool, seed: int = 0) -> Knowledge:
    """Invent a teacher that is surer than it should be, and draw what came true.

    Args:
        k: number of tokens that are kept.
        mass_is_one: whether all mass is taught to the k tokens, or what the teacher gave them.
        seed: draws everything.
    """
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=2.0, size=(ROWS, 4 * k + 8))  # (N, vocabulary)
    drawn = [generator.choice(row.size, p=row) for row in softmax(logits, 1.0)]
    claimed = softmax(logits, 0.5)
    ranked = np.argsort(-claimed, axis=1)[:, :k]  # (N, k)
    topk = np.take_along_axis(claimed, ranked, axis=1)
    mass = np.ones(ROWS) if mass_is_one else topk.sum(axis=1)
    return Knowledge(topk, ranked == np.array(drawn)[:, None], mass)


def extreme_rows(k: int) -> FloatArray:
    """Return rows that a real teacher can give; the first token is never at 0."""
    first, uniform = np.eye(1, k)[0], np.full(k, 1 / k)
    return np.stack(
        [
            first,  # certain, the others exactly 0
            np.where(first == 1, 1 - 1e-12, 1e-13 / k),  # nearly so
            np.where(np.arange(k) < 2, 1 / min(k, 2), 0.0),  # a tie, the others exactly 0
            uniform,
            uniform * 1e-4,  # nearly all mass in the tail
            uniform * 1e-45,  # the smallest that float32 holds
        ]
    )


def _check_on(cls: type[Recalibrator[Any]], options: PluginOptions, given: Knowledge) -> None:
    if cls(options).needs_fit:
        _check_refuses_unfitted(cls(options), given.topk)
    fitted = _fitted(cls, options, given)
    width = given.topk.shape[1]
    _check_distribution(fitted, given.topk, "ordinary rows")
    _check_distribution(fitted, extreme_rows(width), "extreme rows")
    _check_distribution(fitted, np.empty((0, width)), "no rows")
    _check_rows_are_independent(fitted, given.topk)
    _check_determinism(cls, options, given)
    _check_state(cls, options, given)
    for what, is_label in _one_sided(given.is_label):
        try:
            fitted = _fitted(cls, options, given._replace(is_label=is_label))
        except UserError:
            continue  # to refuse such a validation part is an answer
        _check_distribution(fitted, given.topk, f"ordinary rows, fitted where {what}")


def _check_refuses_unfitted(unfitted: Recalibrator[Any], topk: FloatArray) -> None:
    try:
        unfitted.transform(topk)
    except Exception:
        return
    raise AssertionError(
        f"{type(unfitted).__name__} needs to be fitted, but its transform works before it is"
    )


def _check_distribution(fitted: Recalibrator[Any], topk: FloatArray, what: str) -> None:
    name, before = f"{type(fitted).__name__}.transform", topk.copy()
    target = fitted.transform(topk)
    require(np.array_equal(topk, before), f"{name} changes its input ({what})")
    require(
        target.shape == topk.shape,
        f"{name} turns shape {topk.shape} into {target.shape} ({what})",
    )
    require(np.isfinite(target).all(), f"{name} gives NaN or infinity ({what})")
    require((target >= 0).all(), f"{name} gives a negative probability ({what})")
    require(_close(target.sum(axis=1), 1), f"{name} gives rows that do not sum to 1 ({what})")
    if fitted.order_preserving:
        require(
            (np.diff(target, axis=1) <= TOLERANCE).all(),
            f"{name} changes the order within a row ({what}): declare order_preserving = False",
        )


def _check_rows_are_independent(fitted: Recalibrator[Any], topk: FloatArray) -> None:
    name = f"{type(fitted).__name__}.transform"
    whole = fitted.transform(topk)
    order = np.random.default_rng(0).permutation(len(topk))
    parts = [fitted.transform(part) for part in (topk[:1], topk[1:7], topk[7:])]
    require(
        _close(fitted.transform(topk[order]), whole[order]),
        f"{name} depends on the order of the rows",
    )
    require(
        _close(np.concatenate(parts), whole),
        f"{name} depends on how the rows are split into batches",
    )


def _check_determinism(
    cls: type[Recalibrator[Any]], options: PluginOptions, given: Knowledge
) -> None:
    once, again = _fitted(cls, options, given), _fitted(cls, options, given)
    require(
        _as_json(once) == _as_json(again), f"{cls.__name__}.fit learns something else each time"
    )
    require(
        np.array_equal(once.transform(given.topk), again.transform(given.topk)),
        f"{cls.__name__}.transform gives something else after each fit",
    )


def _check_state(cls: type[Recalibrator[Any]], options: PluginOptions, given: Knowledge) -> None:
    name, fitted = cls.__name__, _fitted(cls, options, given)
    saved = _as_json(fitted)
    restored = cls(options)
    try:
        restored.restore(json.loads(saved))
        target = restored.transform(given.topk)
    except Exception as error:
        raise AssertionError(f"{name} cannot be restored from its state: {error!r}") from error
    require(
        np.array_equal(target, fitted.transform(given.topk)),
        f"{name}.transform gives something else after its state went through JSON",
    )
    require(_as_json(restored) == saved, f"{name}.state is not what restore was given")


def _fitted(
    cls: type[Recalibrator[Any]], options: PluginOptions, given: Knowledge
) -> Recalibrator[Any]:
    recalibrator, passed = cls(options), deepcopy(given)
    recalibrator.fit(*passed)
    for name, array, before in zip(given._fields, passed, given, strict=True):
        require(np.array_equal(array, before), f"{cls.__name__}.fit changes its input '{name}'")
    return recalibrator


def _one_sided(is_label: BoolArray) -> list[tuple[str, BoolArray]]:
    """Return validation parts on which a careless fit divides by zero."""
    right, wrong = np.zeros_like(is_label), np.zeros_like(is_label)
    right[:, 0] = True
    wrong[:, 1:2] = True
    return [
        ("the first token is always right", right),
        ("the second token is always right", wrong),
        ("no true token is among the k", np.zeros_like(is_label)),
    ]


def _as_json(recalibrator: Recalibrator[Any]) -> str:
    try:
        return json.dumps(recalibrator.state(), allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{type(recalibrator).__name__}.state is no JSON: {error}") from error


def _close(found: FloatArray, expected: FloatArray | float) -> bool:
    return np.allclose(found, expected, rtol=0, atol=TOLERANCE)
