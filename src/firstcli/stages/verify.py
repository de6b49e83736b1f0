"""`first extract --verify N`: score some samples again and compare with the store."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from firstcli.errors import UserError
from firstcli.knowledge.codec import BOUNDS
from firstcli.knowledge.store import Knowledge
from firstcli.knowledge.top_k import TopK
from firstcli.stages import inputs, scoring
from firstcli.workspace.run import Run
from firstcli.workspace.units import Unit


@torch.inference_mode()
def verify(run: Run, unit: Unit, samples: int) -> dict[str, Any]:
    """Score random samples of a part again and return the largest differences.

    Raises:
        UserError: a probability differs by more than the store's precision allows.
    """
    rows = inputs.training_rows(run, "teacher", unit.part)
    generator = np.random.default_rng(run.recipe.seed)
    drawn = generator.choice(len(rows), min(samples, len(rows)), replace=False)
    chosen = [rows[int(i)] for i in drawn]
    again = _scored_again(run, unit, {row.id for row in chosen})
    stored = Knowledge(unit.artifact.path)
    bound = BOUNDS[run.recipe.knowledge.precision]
    differences = {row.id: difference(stored.of(row), again[row.id]) for row in chosen}
    worst = max(differences, key=lambda id: differences[id][0])
    probability, mass = (float(max(column)) for column in zip(*differences.values(), strict=True))
    run.console.say(
        f"{unit.key}: {len(chosen)} samples, {inputs.positions(chosen)} positions scored again; "
        f"largest difference of a probability {probability:.2g}, of the top-k mass {mass:.2g} "
        f"(bound {bound:g})"
    )
    if probability > bound:
        raise UserError(
            f"{unit.artifact.path}: the teacher now gives sample '{worst}' a probability that "
            f"differs by {probability:.2g} from the stored one, more than the {bound:g} of this "
            "precision; check that the teacher and the device are those of the extraction, or run "
            "`first extract --force`"
        )
    return {"samples": len(chosen), "probability": probability, "mass": mass, "bound": bound}


def _scored_again(run: Run, unit: Unit, ids: set[str]) -> dict[str, TopK]:
    scorer, top_k = scoring.TeacherScorer(run, unit.key), run.recipe.knowledge.top_k
    knowledge: dict[str, TopK] = {}
    for shard in scoring.shards_of(run, unit):
        knowledge |= scorer(shard, top_k, only=ids)
    return knowledge


def difference(stored: TopK, again: TopK) -> tuple[float, float]:
    """Return the largest differences of a token's probability and of the top-k mass.

    A stored token that is no longer among the k now has at most the k-th token's probability.
    """
    before, now = np.exp(stored.log_probs, dtype=float), np.exp(again.log_probs, dtype=float)
    same = stored.token_ids[:, :, None] == again.token_ids[:, None, :]  # (N, k, k)
    matched = np.where(same, now[:, None, :], 0.0).sum(-1)  # (N, k)
    matched = np.where(same.any(-1), matched, np.minimum(before, now[:, -1:]))
    masses = np.expm1(stored.log_tail, dtype=float) - np.expm1(again.log_tail, dtype=float)
    return float(np.abs(before - matched).max()), float(np.abs(masses).max())
