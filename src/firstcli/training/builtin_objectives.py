"""The built-in objectives as plugins; `objectives` has their formulas and sources.

Trainings with the first three use the fused sums of `fused_objectives`, which give the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from firstcli.api import Objective, PluginOptions, StudentView, TargetView

if TYPE_CHECKING:
    from torch import Tensor


class TopkTail(Objective[PluginOptions]):
    """KL divergence over the k tokens and the rest, with probabilities from the full softmax."""

    def losses(self, student: StudentView, target: TargetView) -> Tensor:
        from firstcli.training import objectives

        return objectives.topk_tail(student, target.probabilities, target.tail)


class TopkRenormalized(Objective[PluginOptions]):
    """KL divergence over the k tokens alone, both sides renormalised; Q is free."""

    def losses(self, student: StudentView, target: TargetView) -> Tensor:
        from firstcli.training import objectives

        share = target.probabilities / target.probabilities.sum(-1, keepdim=True)
        return objectives.topk_renormalized(student.log_q, share)


class HardGate(Objective[PluginOptions]):
    """The label where the student is less sure of it than the teacher, else `topk-tail`.

    Hard Gate Knowledge Distillation, arXiv 2210.12427, by token.
    """

    needs_labels = True
    fixed_point = False  # a student that is less sure by a rounding error learns the label

    def losses(self, student: StudentView, target: TargetView) -> Tensor:
        from firstcli.training import objectives

        assert target.is_label is not None
        gated = objectives.gated(student.log_q, target.probabilities, target.tail, target.is_label)
        return objectives.topk_tail(student, gated[0], gated[1])


class ClippedKlOptions(PluginOptions):
    """Options of `dac-kl`."""

    threshold: float = Field(
        0.95,
        gt=0,
        le=1,
        description="keep the fewest likely tokens whose taught probabilities sum to this; with 1 "
        "it is `topk-tail`",
    )


class ClippedKl(Objective[ClippedKlOptions]):
    """`topk-tail` over the likeliest tokens alone, as many as a position needs.

    A simplification of DAC-KL, arXiv 2407.10068, without its network: see `objectives`.
    """

    Options = ClippedKlOptions

    def losses(self, student: StudentView, target: TargetView) -> Tensor:
        from firstcli.training import objectives

        taught = target.probabilities, target.tail
        return objectives.topk_tail(*objectives.clipped(student, *taught, self.options.threshold))
