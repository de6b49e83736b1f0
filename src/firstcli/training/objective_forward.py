"""A model's forward that returns the summed loss of an objective instead of logits.

The objective runs inside the model's own forward, so that wrappers (DDP, FSDP, autocast) see an
ordinary call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from firstcli.api import TargetView
from firstcli.models import readout
from firstcli.plugins.objectives import CheckedObjective
from firstcli.training import fused_objectives

Objective = Literal["labels", "topk-tail", "topk-renormalized", "hard-gate"]
FUSED: tuple[Objective, ...] = get_args(Objective)
"""The objectives with sums of their own in `fused_objectives`."""


def install_objective(
    model: PreTrainedModel,
    objective: Objective | CheckedObjective,
    notify: Callable[[str], None] | None = None,
    *,
    together: bool = False,
    with_entropy: bool = False,
) -> None:
    """Make the model's forward return the summed loss over a batch of `TrainingBatches`.

    It returns `loss` (summed over the N supervised positions), `positions` (N), with soft targets
    the sums of `P` and `Q`, and with `hard-gate` the number of positions that learn `from_label`.

    Args:
        model: the model, in place.
        objective: the loss.
        notify: receives the reason if all logits are needed at once.
        together: whether all processes do this at the same time, and the first one's model counts.
        with_entropy: whether the forward also returns the summed `entropy` of the student.
    """
    reader = readout.Reader(model, notify, together=together)

    def forward(
        input_ids: Tensor,
        rows: Tensor,
        columns: Tensor,
        targets: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **soft: Tensor,
    ) -> dict[str, Tensor]:
        def sums(scores: readout.Scores) -> Tensor:
            if objective == "labels":
                return torch.stack(
                    fused_objectives.labels(scores, targets, with_entropy=with_entropy)
                )
            known = (scores, soft["token_ids"], soft["probabilities"])
            if objective == "topk-renormalized":
                return torch.stack(
                    fused_objectives.topk_renormalized(*known, with_entropy=with_entropy)
                )
            whole = (*known, soft["tail"])
            if isinstance(objective, CheckedObjective):
                target = TargetView(*whole[2:], soft.get("is_label"))
                return torch.stack(
                    fused_objectives.of_plugin(
                        *whole[:2],
                        target,
                        objective.losses,
                        weights=soft.get("weights"),
                        with_entropy=with_entropy,
                    )
                )
            if objective == "topk-tail":
                return torch.stack(fused_objectives.topk_tail(*whole, with_entropy=with_entropy))
            gated = fused_objectives.hard_gate(*whole, soft["is_label"], with_entropy=with_entropy)
            return torch.stack(gated)

        loss, student_mass, entropy, from_label = reader(
            input_ids, attention_mask, rows, columns, sums, position_ids
        )
        output = {"loss": loss, "positions": torch.tensor(len(targets), device=loss.device)}
        if with_entropy:
            output["entropy"] = entropy.detach()
        if soft:
            output |= {"P": soft["teacher_mass"].sum(), "Q": student_mass.detach()}
        if objective == "hard-gate":
            output["from_label"] = from_label.detach()
        return output

    model.forward = forward
