"""From stored knowledge to what a student is taught: recalibration and mass (DESIGN section 3)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from firstcli.api import Recalibrator
from firstcli.encoding import Encoded
from firstcli.knowledge import Knowledge
from firstcli.recalibrators import NoRecalibration
from firstcli.recipe import Arm, recalibrator_of

if TYPE_CHECKING:
    from firstcli.api import BoolArray, FloatArray, PluginOptions


@dataclass(frozen=True, slots=True)
class Positions:
    """The knowledge of many samples, position by position."""

    topk: FloatArray  # (N, k) probabilities
    log_tail: FloatArray  # (N,) log of the probability outside the k
    token_ids: npt.NDArray[np.int32]  # (N, k)
    targets: npt.NDArray[np.int32]  # (N,) the true tokens
    decisive: BoolArray  # (N,) whether this position decides between candidates
    counts: list[int]  # positions of each sample

    @property
    def mass(self) -> FloatArray:
        """P, the teacher's mass on the k tokens, (N,): 1 - tail, exact for small tails."""
        return np.asarray(-np.expm1(self.log_tail))

    @property
    def is_true(self) -> BoolArray:
        return np.asarray(self.token_ids == self.targets[:, None])

    def where(self, chosen: BoolArray) -> Positions:
        """Keep some positions; `counts` then no longer applies and is empty."""
        return Positions(
            self.topk[chosen],
            self.log_tail[chosen],
            self.token_ids[chosen],
            self.targets[chosen],
            self.decisive[chosen],
            [],
        )


def positions_of(rows: Sequence[Encoded], knowledge: Knowledge) -> Positions:
    """Look up the knowledge of every sample, in the order of `rows`."""
    found = list(knowledge.all_of(rows))
    decisive = [np.arange(row.start, len(row.input_ids)) == (row.decisive or -1) for row in rows]
    return Positions(
        np.exp(np.concatenate([one.log_probs for one in found]).astype(np.float64)),
        np.concatenate([one.log_tail for one in found]).astype(np.float64),
        np.concatenate([one.token_ids for one in found]),
        np.concatenate([row.targets for row in rows]),
        np.concatenate(decisive),
        [len(row.targets) for row in rows],
    )


def recalibrated_positions(arm: Arm, positions: Positions) -> BoolArray:
    """Return which positions a recalibrator is fitted on and applied to, (N,)."""
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
    result = NoRecalibration(NoRecalibration.Options()).transform(positions.topk)
    if chosen.any():
        result[chosen] = recalibrator.transform(positions.topk[chosen])
    return result


def recalibrator_for(arm: Arm, artifact: Path) -> Recalibrator[PluginOptions]:
    """Return an arm's recalibrator, with the state that `first calibrate` fitted, if any."""
    recalibrator = recalibrator_of(arm)
    if recalibrator.needs_fit:
        recalibrator.restore(json.loads(artifact.read_text("utf-8"))["state"])
    return recalibrator
