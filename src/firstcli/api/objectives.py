"""The part of the contract that concerns objectives: what a student minimises at each position."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from firstcli.api.contract import OptionsT, PluginBase

if TYPE_CHECKING:
    from torch import Tensor


class StudentView(NamedTuple):
    """What an objective sees of the student at N positions; its softmax is over all tokens."""

    log_q: Tensor  # (N, k) log-probabilities of the teacher's k tokens
    log_rest: Tensor  # (N,) log of the probability of all other tokens; -inf if there are none


class TargetView(NamedTuple):
    """What the student is taught at N positions; the probabilities and the tail sum to 1."""

    probabilities: Tensor  # (N, k) p^, recalibrated, in no particular order; some can be 0
    tail: Tensor  # (N,) 1 - M, the probability of all other tokens; exactly 0 with `mass: one`
    is_label: Tensor | None
    """Whether each of the k tokens is the data's, (N, k); all false where it is none of them or the
    sample has no label. None unless the objective declares `needs_labels`."""


class Objective(PluginBase[OptionsT]):
    """A plugin of the group `firstcli.objectives`: the loss of a student at each position.

    The student minimises the mean over all supervised positions of the global batch. Padding,
    batches, chunks of logits and processes are firstcli's concern, so the loss of a position must
    depend on that position alone.
    """

    needs_labels: ClassVar[bool] = False
    """Whether it reads `TargetView.is_label`."""
    fixed_point: ClassVar[bool] = True
    """Whether a student with exactly the taught probabilities has a loss of 0 and no gradient. An
    objective that also pulls elsewhere, for example towards labels, says False."""

    @abstractmethod
    def losses(self, student: StudentView, target: TargetView) -> Tensor:
        """Return the loss of each position, (N,), differentiable in both parts of `student`.

        N can be 0. The tensors are float32 or float64, on any device, and must not be changed.
        Where the tail is 0, `log_rest` can be -inf; the loss must be finite even then, and so must
        its gradient. firstcli derives the gradient with respect to all logits from these two.
        """
