"""Soft targets for students: stored top-k probabilities after recalibration, scaled to their mass.

"Soft targets" is the term of Hinton et al. (2015, arXiv 1503.02531) for a teacher's probabilities.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from firstcli.api import BoolArray, FloatArray, IntArray, MassMode, TopKRows
from firstcli.data.encoded import counts_of, has_answer_position
from firstcli.data.encoding import EncodedSample
from firstcli.knowledge.candidates import CandidateTokens
from firstcli.knowledge.mean import mean_of
from firstcli.knowledge.store import KnowledgeSource
from firstcli.knowledge.top_k import TopK
from firstcli.plugins.recalibrators import CheckedRecalibrator, Recalibrated
from firstcli.recalibration.builtin import NoRecalibration
from firstcli.recalibration.diagnostics import PositionsMode
from firstcli.recipe.sections import Arm, SpanWeights

CHUNK_SAMPLES = 1024  # samples whose knowledge is in memory at a time during a full pass


@dataclass(frozen=True, slots=True)
class SoftTargets:
    """The probabilities that a student learns at N supervised positions."""

    token_ids: npt.NDArray[np.int32]  # (N, k)
    probabilities: npt.NDArray[np.float32]  # (N, k), p^ = M * recalibrated probabilities
    tail: npt.NDArray[np.float32]  # (N,), 1 - M
    teacher_mass: npt.NDArray[np.float32]  # (N,), P, independent of M
    is_label: BoolArray | None = None
    """Whether each of the k tokens is the true one, (N, k), for objectives that need labels; all
    false where a sample has no label."""
    weights: npt.NDArray[np.float32] | None = None  # (N,) of the positions; None for equal ones


@dataclass(frozen=True, slots=True)
class Positions:
    """The teacher's knowledge at N supervised positions."""

    topk: FloatArray  # (N, k) probabilities
    log_tail: FloatArray  # (N,) log of the probability outside the k tokens
    token_ids: npt.NDArray[np.int32]  # (N, k)
    targets: npt.NDArray[np.int32]  # (N,) the true tokens
    is_answer: BoolArray  # (N,) whether this is a sample's answer position
    sample_ids: npt.NDArray[np.object_]  # (N,)
    number: IntArray  # (N,) number of the sample's supervised positions before this one

    @property
    def mass(self) -> FloatArray:
        """P, the teacher's mass on the k tokens, (N,): 1 - tail, exact for small tails."""
        return np.asarray(-np.expm1(self.log_tail))

    @property
    def is_label(self) -> BoolArray:
        """Whether each of the k tokens is the true one, (N, k)."""
        return np.asarray(self.token_ids == self.targets[:, None])

    @property
    def widths(self) -> IntArray:
        """The number of tokens of each position whose probability is not 0, (N,)."""
        return np.asarray((self.topk > 0).sum(axis=1))

    def where(self, mask: BoolArray) -> Positions:
        """Return the positions that a mask (N,) selects."""
        return Positions(*(getattr(self, field.name)[mask] for field in fields(self)))

    def of_width(self, width: int) -> Positions:
        """Return the positions with so many tokens of a probability above 0, and only those."""
        chosen = self.where(self.widths == width)
        return replace(chosen, topk=chosen.topk[:, :width], token_ids=chosen.token_ids[:, :width])

    @classmethod
    def of(cls, samples: Sequence[EncodedSample], known: Sequence[TopK]) -> Positions:
        """Return all supervised positions of samples, given the knowledge of each sample."""
        is_answer = [sample.positions == (sample.answer_position or -1) for sample in samples]
        whole = TopK.concatenated(known)
        counts = [len(sample.targets) for sample in samples]
        ids = np.array([sample.id for sample in samples], dtype=object)
        return cls(
            np.exp(whole.log_probs.astype(np.float64)),
            whole.log_tail.astype(np.float64),
            whole.token_ids,
            np.concatenate([sample.targets for sample in samples]),
            np.concatenate(is_answer),
            np.repeat(ids, counts),
            np.concatenate([np.arange(count) for count in counts]),
        )

    @classmethod
    def joined(cls, parts: Sequence[Positions]) -> Positions:
        """Concatenate several sets of positions."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def positions_of(
    samples: Sequence[EncodedSample], knowledge: KnowledgeSource, top_k: int | None = None
) -> Positions:
    """Look up the knowledge of every sample, in order; `top_k` limits the tokens per position."""
    known = [topk.first(top_k or knowledge.top_k) for topk in map(knowledge.of, samples)]
    return Positions.of(samples, known)


def recalibrated_chunks(
    arm: Arm, samples: Sequence[EncodedSample], knowledge: KnowledgeSource
) -> Iterator[Positions]:
    """Yield the positions that an arm recalibrates, `CHUNK_SAMPLES` samples at a time."""
    mode = positions_mode(arm, samples)
    for first in range(0, len(samples), CHUNK_SAMPLES):
        positions = positions_of(samples[first : first + CHUNK_SAMPLES], knowledge, arm.top_k)
        yield positions.where(is_recalibrated(mode, positions))


def positions_mode(arm: Arm, samples: Sequence[EncodedSample]) -> PositionsMode:
    """Return which positions an arm recalibrates, by default depending on the samples.

    Pass all samples, not those of one batch: a task may mix questions and instructions.
    """
    return arm.recalibrate or ("decisive" if has_answer_position(samples).any() else "all")


def count_recalibrated(arm: Arm, samples: Sequence[EncodedSample]) -> int:
    """Count the positions of the samples that an arm recalibrates."""
    if positions_mode(arm, samples) == "decisive":
        return int(has_answer_position(samples).sum())
    return int(counts_of(samples).sum())


def is_recalibrated(mode: PositionsMode, positions: Positions) -> BoolArray:
    """Return the mask (N,) of positions that a recalibrator is fitted on and applied to."""
    return positions.is_answer if mode == "decisive" else np.ones_like(positions.is_answer)


def target_mass(arm: Arm, positions: Positions) -> FloatArray:
    """Return M, (N,), the mass that the k tokens are given: the teacher's, or 1."""
    return positions.mass if arm.mass == "teacher" else np.ones(len(positions.topk))


def rows_of(
    arm: Arm,
    positions: Positions,
    task: str,
    candidates: CandidateTokens,
    over_candidates: bool = False,
) -> TopKRows:
    """Return positions as a recalibrator gets them.

    Args:
        arm: the arm, which determines the mass.
        positions: the positions, all of which are recalibrated.
        task: name of the task that the samples come from.
        candidates: needed by recalibrators that use more than the probabilities.
        over_candidates: whether the tokens stand for candidates, as in `knowledge.over`.
    """
    ids = [
        id if is_answer else None
        for id, is_answer in zip(positions.sample_ids, positions.is_answer, strict=True)
    ]
    return TopKRows(
        topk=positions.topk,
        mass=target_mass(arm, positions),
        mass_mode=arm.mass or "teacher",
        candidate=candidate_indices(positions.token_ids, ids, candidates),
        token_ids=None if over_candidates else positions.token_ids.astype(np.int64),
        sample_ids=positions.sample_ids.tolist(),
        position=positions.number,
        is_answer=positions.is_answer,
        task=task,
    )


def candidate_indices(
    token_ids: npt.NDArray[np.integer], samples: Sequence[str | None], candidates: CandidateTokens
) -> IntArray:
    """Return which of a sample's candidates each token stands for, (N, k); -1 for other tokens.

    `samples` holds the id of each row's sample, N; None for a row that is no answer position.
    """
    indices = np.full(token_ids.shape, -1, np.int64)
    places: dict[tuple[int, ...], dict[int, int]] = {}  # samples may share a thousand candidates
    for row, id in enumerate(samples) if candidates else ():
        tokens = candidates.get(id, ()) if id else ()
        if tokens not in places:
            places[tokens] = {token: index for index, token in enumerate(tokens)}
        known = places[tokens]
        indices[row] = [known.get(token, -1) for token in token_ids[row].tolist()]
    return indices


def recalibrated(
    arm: Arm,
    mode: PositionsMode,
    recalibrator: CheckedRecalibrator,
    positions: Positions,
    task: str = "",
    candidates: CandidateTokens | None = None,
    over_candidates: bool = False,
) -> Recalibrated:
    """Recalibrate the positions that an arm recalibrates; all others get `none`.

    Over candidates, the others stay as they are, because their label is certain.

    Args:
        arm: the arm.
        mode: which positions are recalibrated.
        recalibrator: the arm's recalibrator, fitted.
        positions: all positions.
        task: name of the task that the samples come from.
        candidates: needed by recalibrators that use more than the probabilities.
        over_candidates: whether the tokens stand for candidates, as in `knowledge.over`.
    """
    mask = is_recalibrated(mode, positions)
    chosen = positions.where(mask)
    if over_candidates:
        changed = _recalibrated_by_width(arm, recalibrator, chosen, task, candidates or {})
        distribution = positions.topk.copy()
    else:
        changed = recalibrator.transform(rows_of(arm, chosen, task, candidates or {}))
        if mask.all():
            return changed
        distribution = NoRecalibration(NoRecalibration.Options()).transform(positions.topk)
    distribution[mask] = changed.distribution
    if changed.tail is None:
        return Recalibrated(distribution, target_mass(arm, positions), None)
    mass, tail = target_mass(arm, positions), np.exp(positions.log_tail)
    mass[mask], tail[mask] = changed.mass, changed.tail
    return Recalibrated(distribution, mass, tail)


def _recalibrated_by_width(
    arm: Arm,
    recalibrator: CheckedRecalibrator,
    positions: Positions,
    task: str,
    candidates: CandidateTokens,
) -> Recalibrated:
    """Recalibrate answer positions over candidates; what fills up their rows stays at 0.

    Args:
        arm: the arm.
        recalibrator: the arm's recalibrator, fitted.
        positions: answer positions.
        task: name of the task that the samples come from.
        candidates: needed by recalibrators that use more than the probabilities.
    """
    distribution = np.zeros_like(positions.topk)
    mass, tail = target_mass(arm, positions), np.exp(positions.log_tail)
    changes_mass = False
    for width in np.unique(positions.widths).tolist():
        chosen = positions.widths == width
        rows = rows_of(arm, positions.of_width(width), task, candidates, over_candidates=True)
        changed = recalibrator.transform(rows)
        distribution[chosen, :width] = changed.distribution
        if changed.tail is not None:
            mass[chosen], tail[chosen], changes_mass = changed.mass, changed.tail, True
    return Recalibrated(distribution, mass, tail if changes_mass else None)


def soft_targets_of(arm: Arm, positions: Positions, result: Recalibrated) -> SoftTargets:
    """Return the soft targets of recalibrated positions."""
    tail = result.tail
    if tail is None:
        # 1 - M is the stored tail itself: 1 - (1 - tail) would lose small tails.
        no_tail = np.zeros_like(result.mass)
        tail = np.exp(positions.log_tail) if arm.mass == "teacher" else no_tail
    return SoftTargets(
        positions.token_ids,
        result.probabilities.astype(np.float32),
        tail.astype(np.float32),
        positions.mass.astype(np.float32),
    )


def drawn_targets(positions: Positions, draws: int) -> SoftTargets:
    """Return the share of each token among the draws; nothing is left for other tokens.

    The weights are c / N with integers c, whatever rounding their logarithms have gone through.
    """
    weights = np.rint(positions.topk * draws) / draws
    tail = np.zeros(len(weights), np.float32)
    return SoftTargets(positions.token_ids, weights.astype(np.float32), tail, np.ones_like(tail))


def mean_targets(parts: Sequence[SoftTargets], mass: MassMode) -> SoftTargets:
    """Return the mean of several teachers' soft targets at the same N positions.

    Each token's probability is averaged, as 0 where a teacher does not have it, and the k largest
    are kept, as in `knowledge.mean`. The others join the tail, or with mass 1, are divided among
    the k tokens in proportion.

    Args:
        parts: the soft targets of each teacher, at least one, before `is_label`.
        mass: the arm's.
    """
    with np.errstate(divide="ignore"):
        known = [TopK(one.token_ids, np.log(one.probabilities), np.log(one.tail)) for one in parts]
    mean = mean_of(known)
    probabilities, tail = np.exp(mean.log_probs), np.exp(mean.log_tail)
    if mass == "one":
        tail = np.mean([part.tail for part in parts], axis=0)
        total = probabilities.sum(axis=1, dtype=np.float64)
        probabilities = probabilities * ((1 - tail) / total)[:, None]
    teacher_mass = np.mean([part.teacher_mass for part in parts], axis=0)
    return SoftTargets(
        mean.token_ids,
        probabilities.astype(np.float32),
        tail.astype(np.float32),
        teacher_mass.astype(np.float32),
    )


@dataclass(frozen=True, slots=True)
class Recalibration:
    """Knowledge, of one teacher or the mean of several, and the recalibrator fitted to it."""

    recalibrator: CheckedRecalibrator
    knowledge: KnowledgeSource


@dataclass
class SoftTargetBuilder:
    """Build the soft targets of an arm for batches of samples."""

    arm: Arm
    recalibrator: CheckedRecalibrator
    """The arm's recalibrator, fitted."""
    knowledge: KnowledgeSource
    samples: Sequence[EncodedSample]
    """All training samples; batches are drawn from them."""
    task: str = ""
    """Name of the task that they come from."""
    candidates: CandidateTokens = field(default_factory=dict)
    exchanged: tuple[int, int] | None = None
    """Two token ids of the knowledge that change places for the student, after recalibration."""
    over_candidates: bool = False
    """Whether the knowledge is over candidates: only the answer position is the teacher's."""
    without_label: Container[str] = ()
    """Ids of the samples that have no label."""
    draws: int | None = None
    """Draws per position, if the knowledge is of random tokens, which are not recalibrated."""
    further: Sequence[Recalibration] = ()
    """Further teachers, each with its own recalibrator; the mean of all is learned."""

    @cached_property
    def _mode(self) -> PositionsMode:
        return positions_mode(self.arm, self.samples)

    @property
    def _teachers(self) -> list[Recalibration]:
        return [Recalibration(self.recalibrator, self.knowledge), *self.further]

    def __call__(self, samples: Sequence[EncodedSample]) -> SoftTargets:
        """Return the soft targets of all supervised positions of a batch, in order."""
        each = [positions_of(samples, one.knowledge, self.arm.top_k) for one in self._teachers]
        positions = each[0]
        if self.draws is not None:
            targets = drawn_targets(positions, self.draws)
        else:
            parts = [
                soft_targets_of(self.arm, known, self._recalibrated(teacher, known, self._mode))
                for teacher, known in zip(self._teachers, each, strict=True)
            ]
            is_mean = len(parts) > 1
            targets = mean_targets(parts, self.arm.mass or "teacher") if is_mean else parts[0]
        if self.exchanged is not None:
            (one, other), ids = self.exchanged, targets.token_ids
            ids = np.where(ids == one, other, np.where(ids == other, one, ids)).astype(np.int32)
            targets = replace(targets, token_ids=ids)
        if self.arm.span_weights is not None:
            targets = replace(targets, weights=_span_weights(self.arm.span_weights, samples))
        if self.arm.objective is None or not self.arm.objective.plugin.needs_labels:
            return targets
        has_label = np.array([id not in self.without_label for id in positions.sample_ids], bool)
        is_label = has_label[:, None] & (targets.token_ids == positions.targets[:, None])
        return replace(targets, is_label=is_label)

    def _recalibrated(
        self, teacher: Recalibration, positions: Positions, mode: PositionsMode
    ) -> Recalibrated:
        return recalibrated(
            self.arm,
            mode,
            teacher.recalibrator,
            positions,
            self.task,
            self.candidates,
            self.over_candidates,
        )

    def rank_swaps(self) -> float:
        """Return the share of recalibrated positions where the most likely token changes.

        With several recalibrators, it is their average. Reads the knowledge of all samples, unless
        the recalibrator preserves the order of tokens.
        """
        if self.recalibrator.order_preserving:
            return 0.0
        swapped = count = 0
        for teacher in self._teachers:
            for positions in recalibrated_chunks(self.arm, self.samples, teacher.knowledge):
                target = self._recalibrated(teacher, positions, "all").distribution
                swapped += int((target[:, 1:] > target[:, :1]).any(axis=1).sum())
                count += len(target)
        return swapped / max(count, 1)


def _span_weights(
    weights: SpanWeights, samples: Sequence[EncodedSample]
) -> npt.NDArray[np.float32]:
    """Return the weight of each supervised position, (N,): the answer begins where it decides."""

    def of(sample: EncodedSample) -> npt.NDArray[np.bool_]:
        first = len(sample.input_ids) if sample.answer_position is None else sample.answer_position
        return np.asarray(sample.positions >= first)

    is_answer = np.concatenate([of(sample) for sample in samples])
    return np.where(is_answer, weights.answer, weights.explanation).astype(np.float32)


def recalibrator_for(arm: Arm, artifact: Path) -> CheckedRecalibrator:
    """Return an arm's recalibrator, with the state from its calibration artifact if it has one."""
    assert arm.recalibrator  # a knowledge arm has one
    recalibrator = arm.recalibrator.build()
    if recalibrator.needs_fit:
        recalibrator.restore(json.loads(artifact.read_text("utf-8"))["state"])
    return recalibrator
