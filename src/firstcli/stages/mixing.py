"""The domains of `train.mixture` in a student's training, and the teacher's loss on each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firstcli.api import BoolArray, FloatArray
from firstcli.data.encoded import EncodedStore, IntArray
from firstcli.data.encoding import EncodedSample
from firstcli.errors import UserError
from firstcli.knowledge.store import KnowledgeSource
from firstcli.stages import inputs, shared_tokens, teacher_knowledge
from firstcli.training.mixture import MixturePlan
from firstcli.training.soft_targets import CHUNK_SAMPLES, Positions, SoftTargets, positions_of
from firstcli.workspace.run import Run
from firstcli.workspace.units import Part, Unit, learned_parts

LOG_FLOOR = float(np.log(1e-12))
"""The least log-probability that a teacher's loss counts, as in the fitting of recalibrators."""


def check(run: Run, unit: Unit) -> None:
    """Require training and held-out samples of every domain; warn if shares are computed once.

    Raises:
        UserError: a domain has none.
    """
    count, settings = len(domains_of(run, unit)), run.training_settings(unit)
    _held_out(run)
    steps = math.ceil(-(-count // settings.batch_size) * settings.epochs)
    mixture = run.recipe.train.mixture
    assert mixture
    if steps <= mixture.every:
        run.console.warn(
            f"train.mixture.every: {unit.subject} trains for {steps} steps, so its shares are "
            f"computed once, before the first step; lower it from {mixture.every}"
        )


def plan(run: Run, unit: Unit) -> MixturePlan:
    """Return the domains of a student's training, with the teacher's loss on each.

    Raises:
        UserError: a domain has no training or held-out sample.
    """
    section = run.recipe.train.mixture
    assert section
    arm = run.recipe.arms[unit.arm]
    held_out = _held_out(run)
    targets = TrueOutcomes(
        teacher_knowledge.stored_knowledge(run, "validation"),
        arm.top_k,
        shared_tokens.exchanged_eos(run),
    )
    return MixturePlan(
        names=tuple(section.tasks),
        domain_of=domains_of(run, unit),
        held_out=held_out,
        targets=targets,
        teacher=tuple(targets.teacher_loss(rows) for rows in held_out),
        every=section.every,
        smoothing=section.smoothing,
    )


def domains_of(run: Run, unit: Unit) -> IntArray:
    """Return the domain of each of a student's training samples, (R,).

    Raises:
        UserError: a domain has none.
    """
    section = run.recipe.train.mixture
    assert section
    arm = run.recipe.arms[unit.arm]
    parts = [part for part in learned_parts(run.recipe, arm) if run.is_written(part)]
    found = _numbers(run, parts, inputs.rows_of(run, unit))
    counts = np.bincount(found, minlength=len(section.tasks))
    for name, count in zip(section.tasks, counts, strict=True):
        if not count:
            raise UserError(
                f"train.mixture.tasks.{name}: no sample is left to train on; lower "
                "train.validation, or leave the task out"
            )
    return found


def _held_out(run: Run) -> list[EncodedStore]:
    """Return the samples of each domain on which losses are measured.

    Raises:
        UserError: a domain has none.
    """
    section = run.recipe.train.mixture
    assert section
    rows = inputs.student_rows(run, "validation")
    numbers = _numbers(run, ["validation"], rows)
    each = []
    for number, name in enumerate(section.tasks):
        chosen = np.flatnonzero(numbers == number)[: section.samples]
        if not len(chosen):
            raise UserError(
                f"train.mixture.tasks.{name}: train.validation ({run.recipe.train.validation:g}) "
                "holds out none of its samples, so the gap to the teacher cannot be measured; "
                "raise it, or leave the task out"
            )
        each.append(rows.where(np.isin(np.arange(len(rows)), chosen)))
    return each


def _numbers(run: Run, parts: Sequence[Part], rows: Sequence[EncodedSample]) -> IntArray:
    """Return the number of each sample's domain, (R,)."""
    section = run.recipe.train.mixture
    assert section
    number = {name: number for number, name in enumerate(section.tasks)}
    domains = {
        sample.id: number[str(sample.group)]
        for part in parts
        for sample in run.samples_of("train" if part == "out-of-fold" else part)
    }
    return np.fromiter((domains[row.id] for row in rows), np.int64, len(rows))


@dataclass(frozen=True, slots=True)
class TrueOutcomes:
    """Which of k + 1 outcomes is true at each position: a stored token, or any other.

    Only these have a stored probability. Both losses count the same outcomes.
    """

    knowledge: KnowledgeSource
    top_k: int | None
    exchanged: tuple[int, int] | None
    """Two token ids of the knowledge that change places for the student."""

    def __call__(self, samples: Sequence[EncodedSample]) -> SoftTargets:
        """Return targets with all probability on the true outcome."""
        positions = positions_of(samples, self.knowledge, self.top_k)
        ids, is_true = self._outcomes(positions)
        is_stored = np.asarray(is_true.any(axis=1))
        return SoftTargets(
            ids,
            is_true.astype(np.float32),
            (~is_stored).astype(np.float32),
            is_stored.astype(np.float32),
        )

    def teacher_loss(self, samples: Sequence[EncodedSample]) -> float:
        """Return the teacher's mean negative log-probability of the true outcomes, in nats."""
        total, count = 0.0, 0
        for first in range(0, len(samples), CHUNK_SAMPLES):
            chunk = samples[first : first + CHUNK_SAMPLES]
            losses = self._losses(positions_of(chunk, self.knowledge, self.top_k))
            total, count = total + float(losses.sum()), count + len(losses)
        return total / count

    def _losses(self, positions: Positions) -> FloatArray:
        _, is_true = self._outcomes(positions)
        stored = np.where(is_true, positions.topk, 0).sum(axis=1)
        with np.errstate(divide="ignore"):
            log_probs = np.where(is_true.any(axis=1), np.log(stored), positions.log_tail)
        return np.asarray(-np.maximum(log_probs, LOG_FLOOR))

    def _outcomes(self, positions: Positions) -> tuple[npt.NDArray[np.int32], BoolArray]:
        """Return the tokens in the student's names, and which of them is true, both (N, k)."""
        ids = positions.token_ids
        if self.exchanged is not None:
            one, other = self.exchanged
            ids = np.where(ids == one, other, np.where(ids == other, one, ids)).astype(np.int32)
        return ids, np.asarray(ids == positions.targets[:, None])
