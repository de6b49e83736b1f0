"""From stored knowledge to what a student is taught: recalibration and mass (DESIGN section 3)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from firstcli.api import Recalibrator
from firstcli.data.encoded import has_answer_positions
from firstcli.data.encoding import EncodedSample
from firstcli.knowledge.store import Knowledge
from firstcli.recalibration.builtin import NoRecalibration
from firstcli.recipe.schema import Arm, recalibrator_of

if TYPE_CHECKING:
    from firstcli.api import BoolArray, FloatArray, PluginOptions

CHUNK = 1024  # samples whose knowledge lies in memory at a time, where all are gone through


@dataclass(frozen=True, slots=True)
class SoftTargets:
    """What supervised positions are taught from the teacher."""

    token_ids: npt.NDArray[np.int32]  # (N, k)
    probabilities: npt.NDArray[np.float32]  # (N, k), p^ = M * target
    tail: npt.NDArray[np.float32]  # (N,), 1 - M
    teacher_mass: npt.NDArray[np.float32]  # (N,), P, whatever M is


@dataclass(frozen=True, slots=True)
class Positions:
    """The knowledge of some samples, position by position."""

    topk: FloatArray  # (N, k) probabilities
    log_tail: FloatArray  # (N,) log of the probability outside the k
    token_ids: npt.NDArray[np.int32]  # (N, k)
    targets: npt.NDArray[np.int32]  # (N,) the true tokens
    decisive: BoolArray  # (N,) whether this position decides between candidates

    @property
    def mass(self) -> FloatArray:
        """P, the teacher's mass on the k tokens, (N,): 1 - tail, exact for small tails."""
        return np.asarray(-np.expm1(self.log_tail))

    @property
    def is_label(self) -> BoolArray:
        return np.asarray(self.token_ids == self.targets[:, None])

    def where(self, chosen: BoolArray) -> Positions:
        """Keep some positions."""
        return Positions(
            self.topk[chosen],
            self.log_tail[chosen],
            self.token_ids[chosen],
            self.targets[chosen],
            self.decisive[chosen],
        )

    @classmethod
    def joined(cls, parts: Sequence[Positions]) -> Positions:
        """Put several behind one another."""
        return cls(
            np.concatenate([part.topk for part in parts]),
            np.concatenate([part.log_tail for part in parts]),
            np.concatenate([part.token_ids for part in parts]),
            np.concatenate([part.targets for part in parts]),
            np.concatenate([part.decisive for part in parts]),
        )


def positions_of(
    rows: Sequence[EncodedSample], knowledge: Knowledge, top_k: int | None = None
) -> Positions:
    """Look up the knowledge of every sample, in the order of `rows`; some of the k, if asked."""
    found = [one.first(top_k or knowledge.top_k) for one in knowledge.all_of(rows)]
    decisive = [
        np.arange(row.start, len(row.input_ids)) == (row.answer_position or -1) for row in rows
    ]
    return Positions(
        np.exp(np.concatenate([one.log_probs for one in found]).astype(np.float64)),
        np.concatenate([one.log_tail for one in found]).astype(np.float64),
        np.concatenate([one.token_ids for one in found]),
        np.concatenate([row.targets for row in rows]),
        np.concatenate(decisive),
    )


def recalibrated_of(
    arm: Arm, rows: Sequence[EncodedSample], knowledge: Knowledge
) -> Iterator[Positions]:
    """Yield the recalibrated positions of all samples, some samples at a time."""
    arm = settled(arm, rows)
    for first in range(0, len(rows), CHUNK):
        positions = positions_of(rows[first : first + CHUNK], knowledge, arm.top_k)
        yield positions.where(recalibrated_positions(arm, positions))


def settled(arm: Arm, rows: Sequence[EncodedSample]) -> Arm:
    """Say in the arm which positions it recalibrates, where it leaves that to the data.

    All samples decide, not those of a batch: some tasks have questions and instructions.
    """
    mode = arm.recalibrate or ("decisive" if has_answer_positions(rows) else "all")
    return arm.model_copy(update={"recalibrate": mode})


def recalibrated_positions(arm: Arm, positions: Positions) -> BoolArray:
    """Return which positions a recalibrator is fitted on and applied to, (N,).

    These are all positions there are, or else the arm must be `settled`.
    """
    mode = arm.recalibrate or ("decisive" if positions.decisive.any() else "all")
    return positions.decisive if mode == "decisive" else np.ones_like(positions.decisive)


def taught_mass(arm: Arm, positions: Positions) -> FloatArray:
    """Return M, (N,): the teacher's mass, or 1."""
    return positions.mass if arm.mass == "teacher" else np.ones(len(positions.topk))


def targets(
    arm: Arm, recalibrator: Recalibrator[PluginOptions], positions: Positions
) -> FloatArray:
    """Return the distribution over the k tokens at every position, (N, k); rows sum to 1."""
    chosen = recalibrated_positions(arm, positions)
    if chosen.all():
        return recalibrator.transform(positions.topk)
    result = NoRecalibration(NoRecalibration.Options()).transform(positions.topk)
    if chosen.any():
        result[chosen] = recalibrator.transform(positions.topk[chosen])
    return result


def taught_of(arm: Arm, positions: Positions, target: FloatArray) -> SoftTargets:
    """Give each position's target its mass."""
    mass = taught_mass(arm, positions)
    # 1 - M: the stored tail itself, for 1 - (1 - tail) would lose the small ones.
    tail = np.exp(positions.log_tail) if arm.mass == "teacher" else np.zeros_like(mass)
    return SoftTargets(
        positions.token_ids,
        (mass[:, None] * target).astype(np.float32),
        tail.astype(np.float32),
        positions.mass.astype(np.float32),
    )


class SoftTargetBuilder:
    """What an arm teaches: the knowledge of the samples of a batch, recalibrated when asked for."""

    def __init__(
        self,
        arm: Arm,
        recalibrator: Recalibrator[PluginOptions],
        knowledge: Knowledge,
        rows: Sequence[EncodedSample],
    ) -> None:
        """Take a fitted recalibrator, and all samples of which some will be asked for."""
        self._arm = settled(arm, rows)
        self._recalibrator = recalibrator
        self._knowledge = knowledge
        self._rows = rows

    def __call__(self, rows: Sequence[EncodedSample]) -> SoftTargets:
        """Return what all supervised positions of some samples are taught, in order."""
        positions = positions_of(rows, self._knowledge, self._arm.top_k)
        target = targets(self._arm, self._recalibrator, positions)
        return taught_of(self._arm, positions, target)

    def rank_swaps(self) -> float:
        """Return the share of recalibrated positions whose first token is no longer the likeliest.

        Reads all knowledge, unless the recalibrator keeps ranks.
        """
        if self._recalibrator.order_preserving:
            return 0.0
        swapped = positions = 0
        for chosen in recalibrated_of(self._arm, self._rows, self._knowledge):
            target = self._recalibrator.transform(chosen.topk)
            swapped += int((target[:, 1:] > target[:, :1]).any(axis=1).sum())
            positions += len(target)
        return swapped / max(positions, 1)


def recalibrator_for(arm: Arm, artifact: Path) -> Recalibrator[PluginOptions]:
    """Return an arm's recalibrator, with the state that `first calibrate` fitted, if any."""
    recalibrator = recalibrator_of(arm)
    if recalibrator.needs_fit:
        recalibrator.restore(json.loads(artifact.read_text("utf-8"))["state"])
    return recalibrator
