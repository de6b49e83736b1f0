"""`check_objective` accepts the built-in objectives and finds each breach of the contract."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from firstcli import plugins
from firstcli.api import Objective, PluginOptions, StudentView, TargetView
from firstcli.testing import check_objective
from firstcli.training import objectives


@pytest.mark.parametrize("plugin", plugins.registered("objectives"), ids=lambda each: each.name)
def test_the_built_in_objectives_conform(plugin: plugins.Plugin) -> None:
    check_objective(plugins.load("objectives", plugin.name))


@pytest.mark.parametrize("threshold", [0.01, 0.5, 1.0])
def test_any_threshold_conforms(threshold: float) -> None:
    check_objective(plugins.load("objectives", "dac-kl"), {"threshold": threshold})


class Squared(Objective[PluginOptions]):
    """A correct objective: squared differences of probabilities, the rest included."""

    def losses(self, student: StudentView, target: TargetView) -> Tensor:
        rest = (student.log_rest.exp() - target.tail) ** 2
        return ((student.log_q.exp() - target.probabilities) ** 2).sum(-1) + rest


def test_another_correct_objective_conforms() -> None:
    check_objective(Squared)


class WholeBatch(Squared):
    def losses(self, student: StudentView, target: TargetView) -> Tensor:
        found = super().losses(student, target)
        return found / max(len(found), 1)


class OneNumber(Squared):
    def losses(self, student: StudentView, target: TargetView) -> Tensor:
        return super().losses(student, target).sum()


class NoGradient(Squared):
    def losses(self, student: StudentView, target: TargetView) -> Tensor:
        return super().losses(student, target).detach()


class WrongGradient(Squared):
    """The student's mass counts, but gets no gradient."""

    def losses(self, student: StudentView, target: TargetView) -> Tensor:
        mass = student.log_q.exp().sum(-1).detach()
        return super().losses(student, target) * (1 + mass)


class NotFinite(Squared):
    def losses(self, student: StudentView, target: TargetView) -> Tensor:
        return super().losses(student, target) + 0 * student.log_rest


class Elsewhere(Squared):
    def losses(self, student: StudentView, target: TargetView) -> Tensor:
        return student.log_q.exp().sum(-1)


class Labels(Elsewhere):
    """Correct, as it says that its minimum is elsewhere."""

    fixed_point = False


class InPlace(Squared):
    def losses(self, student: StudentView, target: TargetView) -> Tensor:
        target.probabilities.mul_(2)
        return super().losses(student, target)


class Random(Squared):
    def losses(self, student: StudentView, target: TargetView) -> Tensor:
        return super().losses(student, target) * (1 + torch.rand(()))


class Undeclared(Squared):
    def losses(self, student: StudentView, target: TargetView) -> Tensor:
        return torch.where(target.is_label, student.log_q, 0.0).sum(-1)  # type: ignore[arg-type]


class Declared(Squared):
    needs_labels: ClassVar[Any] = 1


def test_an_objective_that_declares_another_minimum_conforms() -> None:
    check_objective(Labels)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (WholeBatch, "a position's loss depends on other positions"),
        (OneNumber, r"returns the shape \(\), expected \(6,\), one loss a position"),
        (NoGradient, "do not depend on the student, or have lost their gradient"),
        (WrongGradient, "differs from finite differences by"),
        (NotFinite, "expected finite losses"),
        (Elsewhere, "declare `fixed_point = False`"),
        (InPlace, "changes the tensors that it is given"),
        (Random, "different losses for the same"),
        (Undeclared, "fails: TypeError"),
        (Declared, "needs_labels is 1, expected True or False"),
    ],
)
def test_a_breach_is_one_sentence(cls: type[Objective[Any]], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_objective(cls)


def test_something_else_is_no_objective() -> None:
    with pytest.raises(AssertionError, match=r"is not a firstcli\.api\.Objective"):
        check_objective(objectives.StudentView)  # type: ignore[arg-type, attr-defined]
