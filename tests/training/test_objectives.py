"""The objectives against naive sums in float64, their gradients and their fixed points."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from firstcli.models import readout
from firstcli.training import objectives

Drawn = tuple[Tensor, Tensor, Tensor, Tensor]  # logits (N, V), ids (N, k), p^ (N, k), tail (N,)
TAILS = [10.0**-n for n in range(3, 13)]


@st.composite
def positions(draw: st.DrawFn, no_tail: bool = False, whole: bool = False) -> Drawn:
    """Random students and soft targets in float64; `no_tail` sets M = 1, `whole` sets k = V."""
    vocabulary = draw(st.integers(2, 12))
    k = vocabulary if whole else draw(st.integers(1, vocabulary - 1))
    count = draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    spread = draw(st.sampled_from([0.1, 1.0, 10.0, 40.0]))
    logits = spread * torch.randn(count, vocabulary, dtype=torch.float64, generator=generator)
    token_ids = torch.stack(
        [torch.randperm(vocabulary, generator=generator)[:k] for _ in range(count)]
    )
    tail = torch.zeros(count, dtype=torch.float64)
    if not no_tail and not whole:
        tail += draw(st.sampled_from([0.0, *TAILS, 0.1, 0.9]))
    target = torch.rand(count, k, dtype=torch.float64, generator=generator) + 1e-9
    probabilities = target / target.sum(-1, keepdim=True) * (1 - tail)[:, None]
    return logits, token_ids, probabilities, tail


def topk_tail(logits: Tensor, token_ids: Tensor, probabilities: Tensor, tail: Tensor) -> Tensor:
    return objectives.topk_tail(objectives.student_view(logits, token_ids), probabilities, tail)


def topk_renormalized(logits: Tensor, token_ids: Tensor, target: Tensor) -> Tensor:
    return objectives.topk_renormalized(logits.gather(-1, token_ids), target)


def gradient_of(losses: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(losses.sum(), logits)[0]


def naive_softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    return [weight / math.fsum(weights) for weight in weights]


def naive_kl(p: list[float], q: list[float]) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def naive_topk_tail(
    logits: list[float], ids: list[int], probabilities: list[float], tail: float
) -> float:
    """Eq. 5 with the tail as an additional outcome; 1 - Q is the sum over the other tokens."""
    q = naive_softmax(logits)
    rest = math.fsum(value for i, value in enumerate(q) if i not in ids)
    return naive_kl([*probabilities, tail], [*(q[i] for i in ids), rest])


def naive_topk_renormalized(logits: list[float], ids: list[int], target: list[float]) -> float:
    q = naive_softmax(logits)
    mass = math.fsum(q[i] for i in ids)
    return naive_kl(target, [q[i] / mass for i in ids])


@given(positions())
def test_topk_tail_is_the_naive_sum(drawn: Drawn) -> None:
    got = topk_tail(*drawn)
    naive = [naive_topk_tail(*row) for row in zip(*(part.tolist() for part in drawn), strict=True)]
    torch.testing.assert_close(got, torch.tensor(naive, dtype=torch.float64), rtol=1e-9, atol=1e-10)
    assert (got > -1e-12).all()  # a KL


@given(positions(whole=True))
def test_topk_tail_over_the_whole_vocabulary_is_the_full_kl(drawn: Drawn) -> None:
    logits, token_ids, probabilities, _ = drawn
    got = topk_tail(*drawn)
    p = torch.zeros_like(logits).scatter(-1, token_ids, probabilities)
    full = torch.nn.functional.kl_div(logits.log_softmax(-1), p, reduction="none").sum(-1)
    torch.testing.assert_close(got, full, rtol=1e-9, atol=1e-12)
    assert torch.isneginf(objectives.student_view(logits, token_ids).log_rest).all()


@given(positions(no_tail=True))
def test_topk_renormalized_is_the_naive_sum(drawn: Drawn) -> None:
    logits, token_ids, target, _ = drawn
    got = topk_renormalized(logits, token_ids, target)
    rows = zip(logits.tolist(), token_ids.tolist(), target.tolist(), strict=True)
    naive = torch.tensor([naive_topk_renormalized(*row) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(got, naive, rtol=1e-9, atol=1e-10)
    # Training passes log-probabilities instead of logits; they differ by a constant per position.
    student = objectives.student_view(logits, token_ids)
    again = objectives.topk_renormalized(student.log_q, target)
    torch.testing.assert_close(got, again, rtol=1e-9, atol=1e-10)


@given(positions())
def test_labels_is_the_negative_log_probability(drawn: Drawn) -> None:
    logits, token_ids, _, _ = drawn
    true = token_ids[:, 0]
    naive = [
        -math.log(naive_softmax(row)[i])
        for row, i in zip(logits.tolist(), true.tolist(), strict=True)
    ]
    got = objectives.labels(logits, true)
    torch.testing.assert_close(got, torch.tensor(naive, dtype=torch.float64), rtol=1e-9, atol=1e-10)


@given(positions())
def test_one_certain_token_makes_topk_tail_the_labels_objective(drawn: Drawn) -> None:
    logits, token_ids, probabilities, tail = drawn
    certain = torch.zeros_like(probabilities)
    certain[:, 0] = 1.0
    got = topk_tail(logits, token_ids, certain, torch.zeros_like(tail))
    torch.testing.assert_close(got, objectives.labels(logits, token_ids[:, 0]))


@pytest.mark.parametrize("tail", [0.0, 1e-12, 1e-6, 0.3])
def test_gradients_are_correct(tail: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    token_ids = torch.stack([torch.randperm(7)[:3] for _ in range(3)])
    target = torch.rand(3, 3, dtype=torch.float64).softmax(-1)
    tails = torch.full((3,), tail, dtype=torch.float64)
    check: Callable[..., bool] = torch.autograd.gradcheck
    assert check(lambda x: topk_tail(x, token_ids, target * (1 - tail), tails), logits)
    assert check(lambda x: topk_renormalized(x, token_ids, target), logits)
    assert check(lambda x: objectives.labels(x, token_ids[:, 0]), logits)


def test_the_gradient_of_topk_tail_is_student_minus_soft_targets() -> None:
    """Inside the k: q - p^; outside: q - (1 - M) q / (1 - Q), in proportion to q."""
    torch.manual_seed(0)
    logits = torch.randn(1, 6, dtype=torch.float64, requires_grad=True)
    token_ids, probabilities = (
        torch.tensor([[4, 1]]),
        torch.tensor([[0.6, 0.3]], dtype=torch.float64),
    )
    tail = torch.tensor([0.1], dtype=torch.float64)
    loss = topk_tail(logits, token_ids, probabilities, tail)
    q = logits.detach().softmax(-1)
    rest = 1 - q.gather(-1, token_ids).sum()
    expected = (q - tail / rest * q).scatter(-1, token_ids, q.gather(-1, token_ids) - probabilities)
    torch.testing.assert_close(gradient_of(loss, logits), expected)


# Precision: float32 must not lose the tail.


@pytest.mark.parametrize("tail", TAILS)
def test_the_mass_outside_is_exact_in_float32(tail: float) -> None:
    """log(1 - Q) is a logsumexp: 1 - Q itself would be 0 or negative in float32."""
    vocabulary, k = 1000, 5
    inside = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64)
    q = torch.cat([inside * (1 - tail), torch.full((vocabulary - k,), tail / (vocabulary - k))])
    logits = q.log()[None] + 3.0  # a constant does not change probabilities
    ids = torch.arange(k)[None]
    log_rest = objectives.student_view(logits.float(), ids).log_rest
    assert log_rest.dtype == torch.float32
    assert log_rest.item() == pytest.approx(math.log(tail), abs=1e-5)
    _, _, stored = readout.unpack(readout.top_k(readout.Logits(logits.float()), k, vocabulary))
    assert stored.item() == pytest.approx(math.log(tail), abs=1e-5)


@pytest.mark.parametrize("tail", [0.0, *TAILS])
@pytest.mark.parametrize("student_gap", [0.0, 20.0, 60.0, 100.0])
def test_float32_agrees_with_float64_and_gradients_are_finite(
    tail: float, student_gap: float
) -> None:
    """The student may be certain of the k tokens (Q -> 1) while the targets keep a tail."""
    torch.manual_seed(1)
    logits = torch.randn(4, 50, dtype=torch.float64)
    ids = torch.stack([torch.randperm(50)[:5] for _ in range(4)])
    logits.scatter_add_(-1, ids, torch.full((4, 5), student_gap, dtype=torch.float64))
    target = torch.randn(4, 5, dtype=torch.float64).softmax(-1)
    probabilities, tails = target * (1 - tail), torch.full((4,), tail, dtype=torch.float64)

    def loss_and_gradient(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        given = logits.to(dtype).requires_grad_()
        loss = topk_tail(given, ids, probabilities.to(dtype), tails.to(dtype))
        return loss.detach().double(), gradient_of(loss, given).double()

    loss32, gradient32 = loss_and_gradient(torch.float32)
    loss64, gradient64 = loss_and_gradient(torch.float64)
    assert torch.isfinite(loss32).all() and torch.isfinite(gradient32).all()
    torch.testing.assert_close(loss32, loss64, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(gradient32, gradient64, rtol=1e-4, atol=1e-6)


def test_probabilities_of_zero_do_not_break_the_loss() -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0, 0.0]], requires_grad=True)
    probabilities, tail = torch.tensor([[1.0, 0.0]]), torch.tensor([0.0])
    loss = topk_tail(logits, torch.tensor([[0, 1]]), probabilities, tail)
    assert loss.item() == 0.0
    assert torch.isfinite(gradient_of(loss, logits)).all()


# Fixed points: a free table of logits, trained to convergence.


def train_a_table(objective: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Return the probabilities (V,) that gradient descent converges to."""

    def loss_and_gradient(table: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        logits = torch.tensor(table, requires_grad=True)
        loss = objective(logits[None]).sum()
        return loss.item(), torch.autograd.grad(loss, logits)[0].numpy()

    options = {"maxiter": 500, "ftol": 0, "gtol": 1e-12}
    found = minimize(loss_and_gradient, start.numpy(), jac=True, method="L-BFGS-B", options=options)
    return torch.tensor(found.x).softmax(-1)


IDS = torch.tensor([[7, 2, 11]])


@pytest.mark.parametrize("mass", [0.25, 0.9, 1 - 1e-6])
def test_topk_tail_converges_to_the_soft_targets(mass: float) -> None:
    probabilities = mass * torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)
    tail = torch.tensor([1 - mass], dtype=torch.float64)
    start = torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q = train_a_table(lambda x: topk_tail(x, IDS, probabilities, tail), start)
    torch.testing.assert_close(q[IDS], probabilities, rtol=1e-5, atol=1e-7)
    assert 1 - q[IDS].sum().item() == pytest.approx(1 - mass, rel=1e-3)


def test_topk_tail_with_mass_one_converges_to_all_mass_on_the_tokens() -> None:
    probabilities = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)
    tail = torch.zeros(1, dtype=torch.float64)
    start = torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q = train_a_table(lambda x: topk_tail(x, IDS, probabilities, tail), start)
    torch.testing.assert_close(q[IDS], probabilities, rtol=1e-4, atol=1e-5)
    assert q[IDS].sum() > 1 - 1e-5


def test_topk_renormalized_does_not_move_mass_to_its_tokens() -> None:
    target = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)
    start = torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = start.softmax(-1)
    q = train_a_table(lambda x: topk_renormalized(x, IDS, target), start)
    mass = q[IDS].sum()
    torch.testing.assert_close(q[IDS] / mass, target, rtol=1e-5, atol=1e-7)
    assert mass < 0.5 and abs(mass - before[IDS].sum()) < 0.2
    # No gradient acts on the other tokens: their ratios do not change.
    others = [i for i in range(20) if i not in IDS[0].tolist()]
    torch.testing.assert_close(q[others] / q[others].sum(), before[others] / before[others].sum())


def test_topk_renormalized_has_no_gradient_outside_its_tokens() -> None:
    logits = torch.randn(1, 20, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = topk_renormalized(logits, IDS, torch.tensor([[0.6, 0.3, 0.1]]))
    gradient = gradient_of(loss, logits)[0]
    others = [i for i in range(20) if i not in IDS[0].tolist()]
    assert (gradient[others] == 0).all() and (gradient[IDS[0]] != 0).all()
    assert gradient.sum().abs() < 1e-7  # no force on the k tokens as a whole
