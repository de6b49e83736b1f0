"""Check the contract of an objective on simulated positions, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from firstcli.api import JSON, Objective, PluginOptions, StudentView, TargetView
from firstcli.plugins.objectives import losses_problem
from firstcli.testing.requirements import require

if TYPE_CHECKING:
    from torch import Tensor

STEP = 1e-5
"""Half the distance of the points of a finite difference of logits."""
_TOLERANCE = 1e-6  # of a gradient, relative to the largest, and of what should be 0
_ROUNDING = 1e-9  # of losses that may be computed in a different order


class SimulatedPositions(NamedTuple):
    """Positions of a student and what it is taught, in float64."""

    logits: Tensor  # (N, V) of the student
    token_ids: Tensor  # (N, k) of the teacher
    target: TargetView

    def view(self, logits: Tensor) -> StudentView:
        """Return what an objective sees of a student with other logits, (N, V)."""
        import torch

        log_q = logits.log_softmax(-1)
        rest = log_q.scatter(-1, self.token_ids, -torch.inf)
        if self.token_ids.shape[-1] == logits.shape[-1]:
            return StudentView(log_q.gather(-1, self.token_ids), rest[:, 0])
        return StudentView(log_q.gather(-1, self.token_ids), rest.logsumexp(-1))


def check_objective(
    cls: type[Objective[Any]], options: PluginOptions | Mapping[str, JSON] | None = None
) -> None:
    """Check the contract of an objective.

    The gradient is compared with finite differences of the loss in the student's logits. Where an
    objective has a jump or a kink, such as a gate, no simulated position may be within 1e-5 of it.

    Args:
        cls: the plugin's class.
        options: its options, as in a recipe; default: the plugin's defaults.

    Raises:
        AssertionError: the class breaks the contract.
    """
    name = cls.__name__
    require(issubclass(cls, Objective), f"{name} is not a firstcli.api.Objective")
    for flag in ("needs_labels", "fixed_point"):
        value = getattr(cls, flag)
        require(isinstance(value, bool), f"{name}.{flag} is {value!r}, expected True or False")
    objective = cls(cls.Options.model_validate(dict(options or {})))
    for k, vocabulary, mass in ((5, 9, 0.9), (5, 9, 1.0), (1, 6, 0.7), (4, 4, 1.0)):
        given = simulated_positions(k=k, vocabulary=vocabulary, mass=mass)
        _check_results(objective, given)
        _check_gradient(objective, given)
        _check_independence(objective, given)
        if cls.fixed_point:
            _check_fixed_point(objective, given)


def simulated_positions(
    count: int = 6, k: int = 5, vocabulary: int = 9, mass: float = 0.9
) -> SimulatedPositions:
    """Return positions of a student that differs from its teacher.

    The first token is the label at every second position, and none of the k at the others. One
    position is sure, one has a token of probability 0 if k > 1, and the tokens are in any order.

    Args:
        count: N.
        k: number of the teacher's tokens.
        vocabulary: number of all tokens, at least k; with k, the mass must be 1.
        mass: sum of the probabilities that are taught for the k tokens.
    """
    import torch

    draw = torch.Generator().manual_seed(29)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, dtype=torch.float64, generator=draw)

    share = uniform(count, k) + 0.05
    share[0] = share[0] ** 8
    if k > 1:
        share[-1, -1] = 0.0
    probabilities = mass * share / share.sum(-1, keepdim=True)
    orders = [torch.randperm(vocabulary, generator=draw)[:k] for _ in range(count)]
    is_label = torch.zeros(count, k, dtype=torch.bool)
    is_label[::2, 0] = True
    tail = torch.full((count,), 1 - mass, dtype=torch.float64)
    target = TargetView(probabilities, tail, is_label)
    return SimulatedPositions(4 * uniform(count, vocabulary) - 2, torch.stack(orders), target)


def _losses(objective: Objective[Any], given: SimulatedPositions, logits: Tensor) -> Tensor:
    """Return checked losses, (N,), of tensors that the objective may not change."""
    name, student = type(objective).__name__, given.view(logits)
    target = given.target if objective.needs_labels else given.target._replace(is_label=None)
    kept = [part.clone() for part in (*student, *target) if part is not None]
    try:
        losses = objective.losses(student, target)
    except Exception as error:
        raise AssertionError(f"{name}.losses fails: {type(error).__name__}: {error}") from error
    problem = losses_problem(losses, student)
    require(problem is None, f"{name}.losses {problem}")
    after = [part for part in (*student, *target) if part is not None]
    same = all(bool((a == b).all()) for a, b in zip(kept, after, strict=True))
    require(same, f"{name}.losses changes the tensors that it is given")
    return losses


def _check_results(objective: Objective[Any], given: SimulatedPositions) -> None:
    """Check that losses repeat, for float32, and for no positions."""
    name, logits = type(objective).__name__, given.logits.clone().requires_grad_()
    losses, again = (_losses(objective, given, logits) for _ in range(2))
    require(bool((losses == again).all()), f"{name}.losses gives different losses for the same")
    single = SimulatedPositions(
        given.logits.float(),
        given.token_ids,
        TargetView(
            given.target.probabilities.float(), given.target.tail.float(), given.target.is_label
        ),
    )
    small = _losses(objective, single, single.logits.requires_grad_())
    close = bool(((small - losses).abs() <= 1e-4 * (1 + losses.abs())).all())
    require(close, f"{name}.losses gives other losses in float32")
    _losses(objective, _rows(given, slice(0, 0)), given.logits[:0].clone().requires_grad_())


def _check_gradient(objective: Objective[Any], given: SimulatedPositions) -> None:
    """Compare the gradient in the logits with central differences."""
    import torch

    name, logits = type(objective).__name__, given.logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(_losses(objective, given, logits).sum(), logits)
    require(
        bool(torch.isfinite(gradient).all()), f"{name}.losses has a gradient that is not finite"
    )
    expected = torch.empty_like(gradient)
    for token in range(logits.shape[-1]):
        step = torch.zeros_like(given.logits)
        step[:, token] = STEP
        higher = _losses(objective, given, given.logits + step)
        expected[:, token] = (higher - _losses(objective, given, given.logits - step)) / (2 * STEP)
    error = float((gradient - expected).abs().max())
    limit = _TOLERANCE * max(1.0, float(expected.abs().max()))
    require(
        error <= limit,
        f"{name}.losses has a gradient that differs from finite differences by {error:.2g}",
    )


def _check_independence(objective: Objective[Any], given: SimulatedPositions) -> None:
    """Check that a position alone has the loss that it has among others."""
    name = type(objective).__name__
    whole = _losses(objective, given, given.logits).tolist()
    for number, loss in enumerate(whole):
        part = _rows(given, slice(number, number + 1))
        alone = float(_losses(objective, part, part.logits)[0])
        require(
            abs(alone - loss) <= _ROUNDING * max(1.0, abs(loss)),
            f"{name}.losses: a position's loss depends on other positions, so it would depend on "
            "the batch",
        )


def _check_fixed_point(objective: Objective[Any], given: SimulatedPositions) -> None:
    """Check that a student with the taught probabilities is at rest, with a loss of 0."""
    import torch

    name, (probabilities, tail, _) = type(objective).__name__, given.target
    others = given.logits.shape[-1] - given.token_ids.shape[-1]
    exact = (tail / max(others, 1))[:, None].expand_as(given.logits).clone()
    exact = exact.scatter(-1, given.token_ids, probabilities)
    # A student has no probability of 0; 1e-12 is nearly that.
    logits = exact.clamp_min(1e-12).log().requires_grad_()
    losses = _losses(objective, given, logits)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    largest, pull = float(losses.detach().abs().max()), float(gradient.abs().max())
    require(
        largest <= _TOLERANCE and pull <= _TOLERANCE,
        f"{name}.losses is {largest:.2g} for a student with exactly the taught "
        "probabilities, or pulls it away; correct it, or declare `fixed_point = False`",
    )


def _rows(given: SimulatedPositions, chosen: slice) -> SimulatedPositions:
    probabilities, tail, is_label = given.target
    label = None if is_label is None else is_label[chosen]
    target = TargetView(probabilities[chosen], tail[chosen], label)
    return SimulatedPositions(given.logits[chosen], given.token_ids[chosen], target)
