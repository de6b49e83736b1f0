"""Every use of an objective: its results are checked, and its exceptions are explained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from firstcli import plugins
from firstcli.api import Objective, PluginOptions, StudentView, TargetView, UserError
from firstcli.plugins.calls import built, explained
from firstcli.plugins.registry import Plugin

if TYPE_CHECKING:
    from torch import Tensor


class CheckedObjective:
    """An objective whose every result is checked."""

    def __init__(self, plugin: Plugin, objective: Objective[Any]) -> None:
        self._plugin, self._objective = plugin, objective

    @property
    def needs_labels(self) -> bool:
        """Whether it reads which of the tokens is the data's."""
        return bool(self._objective.needs_labels)

    def losses(self, student: StudentView, target: TargetView) -> Tensor:
        """Return the loss of each position, (N,).

        Raises:
            UserError: the objective has a mistake.
        """
        with explained(self._plugin, "`losses`"):
            result = self._objective.losses(student, target)
        if problem := losses_problem(result, student):
            raise UserError(f"{self._plugin.title}: `losses` {problem}; correct the plugin")
        return result


def objective(name: str, options: PluginOptions) -> CheckedObjective:
    """Return an objective with its options.

    Raises:
        UserError: the name is unknown, or the plugin has a mistake.
    """
    plugin = plugins.find("objectives", name)
    return CheckedObjective(plugin, built(plugin, options))


def losses_problem(losses: Any, student: StudentView) -> str | None:
    """Return what is wrong with the losses at N positions.

    A student whose own probabilities are not finite is not the objective's mistake.
    """
    import torch

    count = len(student.log_q)
    if not isinstance(losses, torch.Tensor):
        return f"returns {type(losses).__name__}, expected a tensor of {count} losses"
    if tuple(losses.shape) != (count,):
        return f"returns the shape {tuple(losses.shape)}, expected ({count},), one loss a position"
    if not losses.is_floating_point() or losses.element_size() < 4:
        return f"returns {losses.dtype}, expected that of the student, {student.log_q.dtype}"
    depends = student.log_q.requires_grad or student.log_rest.requires_grad
    if depends and not losses.requires_grad:
        return "returns losses that do not depend on the student, or have lost their gradient"
    if not bool(torch.isfinite(losses).all()) and not bool(torch.isnan(student.log_q).any()):
        return f"returns {losses[~torch.isfinite(losses)][0].item()}, expected finite losses"
    return None
