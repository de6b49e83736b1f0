"""The fused objectives against the dense ones in float64, for all shapes, dtypes and chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from firstcli.models import readout
from firstcli.models.readout import Layer, Logits
from firstcli.training import fused_objectives
from firstcli.training.fused_objectives import Sums

Call = Callable[[readout.Scores], Sums]


def chunks_of(count: int) -> Any:
    """Set the rows of logits per chunk."""
    return mock.patch.dict(fused_objectives.CHUNK_ROWS, {"cpu": count})


def layer_of(
    n: int, d: int, v: int, *, bias: bool, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> Layer:
    hidden, weight = torch.randn(n, d, dtype=torch.float64), torch.randn(v, d, dtype=torch.float64)
    parts = [scale * hidden, weight, *([torch.randn(v, dtype=torch.float64)] if bias else [])]
    leaves = [part.to(dtype).requires_grad_() for part in parts]
    return Layer(leaves[0], leaves[1], leaves[2] if bias else None)


def leaves_of(layer: Layer) -> list[Tensor]:
    operands = (layer.hidden, layer.weight, layer.bias)
    return [operand for operand in operands if operand is not None]


def copied(layer: Layer, dtype: torch.dtype) -> Layer:
    first, second, *third = (leaf.detach().to(dtype).requires_grad_() for leaf in leaves_of(layer))
    return Layer(first, second, third[0] if third else None)


def dense(layer: Layer) -> Logits:
    return Logits(torch.nn.functional.linear(layer.hidden, layer.weight, layer.bias))


def case(name: str, n: int, v: int, k: int, tail: float) -> Call:
    """An objective with random targets."""
    token_ids = torch.stack([torch.randperm(v)[:k] for _ in range(n)] or [torch.zeros(k)]).long()[
        :n
    ]
    target = torch.rand(n, k, dtype=torch.float64) + 1e-3
    target /= target.sum(-1, keepdim=True)
    tails = torch.full((n,), tail, dtype=torch.float64)
    if name == "labels":
        return lambda scores: fused_objectives.labels(scores, token_ids[:, 0])
    if name == "topk-tail":
        return lambda scores: fused_objectives.topk_tail(
            scores, token_ids, target * (1 - tail), tails
        )
    return lambda scores: fused_objectives.topk_renormalized(scores, token_ids, target)


NAMES = ("labels", "topk-tail", "topk-renormalized")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("k", [1, 3, 9])
def test_the_entropy_is_that_of_the_whole_softmax(name: str, scale: float, k: int) -> None:
    """Against the definition in float64; k = V leaves no other tokens."""
    torch.manual_seed(0)
    n, v = 7, 9
    layer = layer_of(n, 4, v, bias=True, scale=scale)
    ids = torch.stack([torch.randperm(v)[:k] for _ in range(n)])
    p = torch.full((n, k), 1 / k, dtype=torch.float64)

    def call(scores: readout.Scores, **wanted: bool) -> Sums:
        if name == "labels":
            return fused_objectives.labels(scores, ids[:, 0], **wanted)
        if name == "topk-tail":
            return fused_objectives.topk_tail(scores, ids, p, torch.zeros(n), **wanted)
        return fused_objectives.topk_renormalized(scores, ids, p, **wanted)

    q = torch.softmax(dense(layer).values.detach(), -1)
    expected = -torch.special.xlogy(q, q).sum()
    with chunks_of(3):
        fused, without = call(layer, with_entropy=True), call(layer)
    torch.testing.assert_close(fused.entropy, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        call(dense(layer), with_entropy=True).entropy, expected, rtol=1e-9, atol=1e-9
    )
    assert not fused.entropy.requires_grad and without.entropy == 0
    assert torch.equal(fused.loss, without.loss)


@given(
    name=st.sampled_from(NAMES),
    sizes=st.tuples(st.integers(0, 6), st.integers(1, 4), st.integers(2, 12)),
    k=st.integers(1, 12),
    rows=st.integers(1, 7),
    tail=st.sampled_from([0.0, 1e-12, 1e-6, 1e-3, 0.1, 0.9]),
    bias=st.booleans(),
    scale=st.sampled_from([0.1, 1.0, 20.0]),
    seed=st.integers(0, 2**31),
)
def test_loss_and_gradients_equal_the_dense_ones(
    name: str,
    sizes: tuple[int, int, int],
    k: int,
    rows: int,
    tail: float,
    bias: bool,
    scale: float,
    seed: int,
) -> None:
    """For all shapes and chunks, including no positions, k = V and one row per chunk."""
    torch.manual_seed(seed)
    n, d, v = sizes
    k = min(k, v)
    layer = layer_of(n, d, v, bias=bias, scale=scale)
    call = case(name, n, v, k, 0.0 if k == v else tail)
    expected = call(dense(layer))
    with chunks_of(rows):
        got = call(layer)
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.student_mass, expected.student_mass, rtol=1e-9, atol=1e-9)
    assert not got.student_mass.requires_grad
    for gradient, expected_gradient in zip(
        torch.autograd.grad(got.loss, leaves_of(layer)),
        torch.autograd.grad(expected.loss, leaves_of(layer)),
        strict=True,
    ):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tail", [0.0, 1e-6, 0.3])
def test_gradients_are_correct(name: str, tail: float) -> None:
    torch.manual_seed(0)
    layer = layer_of(5, 4, 9, bias=True)
    call = case(name, 5, 9, 3, tail)

    def loss(*operands: Tensor) -> Tensor:
        return call(Layer(*operands)).loss

    def again(*operands: Tensor) -> Any:  # gradcheck runs backward twice; this recomputes
        return checkpoint(loss, *operands, use_reentrant=False)

    with chunks_of(2):
        check: Callable[..., bool] = torch.autograd.gradcheck
        assert check(again, leaves_of(layer))


def test_a_second_backward_pass_is_refused() -> None:
    layer = layer_of(3, 4, 9, bias=False)
    loss = case("topk-tail", 3, 9, 2, 0.1)(layer).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", NAMES)
def test_frozen_operands_get_no_gradient(name: str) -> None:
    torch.manual_seed(0)
    layer, call = layer_of(4, 3, 9, bias=True), case(name, 4, 9, 2, 0.1)
    whole = torch.autograd.grad(call(layer).loss, leaves_of(layer))
    for index in range(3):
        frozen = [
            leaf.detach().requires_grad_(i == index) for i, leaf in enumerate(leaves_of(layer))
        ]
        [alone] = torch.autograd.grad(call(Layer(*frozen)).loss, [frozen[index]])
        torch.testing.assert_close(alone, whole[index])
    with torch.no_grad():
        assert not call(layer).loss.requires_grad
    torch.testing.assert_close(call(layer).loss * 2, call(layer).loss + call(layer).loss)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gap", [0.0, 10.0, 40.0])
@pytest.mark.parametrize("tail", [0.0, *(10.0**-n for n in range(3, 13))])
def test_float32_is_close_to_float64_for_confident_students(
    name: str, gap: float, tail: float
) -> None:
    """With Q -> 1 and a tail in the targets, 1 - Q as a difference would be noise or infinite."""
    torch.manual_seed(1)
    wide = layer_of(4, 8, 50, bias=True)
    wide.hidden.data *= 0.3
    call = case(name, 4, 50, 5, tail)
    assert wide.bias is not None
    wide.bias.data[:25] += gap
    narrow = copied(wide, torch.float32)
    expected, got = call(wide), call(narrow)
    assert torch.isfinite(got.loss)
    torch.testing.assert_close(got.loss.double(), expected.loss, rtol=1e-5, atol=1e-5)
    for gradient, expected_gradient in zip(
        torch.autograd.grad(got.loss, leaves_of(narrow)),
        torch.autograd.grad(expected.loss, leaves_of(wide)),
        strict=True,
    ):
        torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=1e-5)


def test_tokens_of_zero_probability_do_not_break_gradients() -> None:
    """All other tokens are at -inf: their mass is 0 and no gradient is NaN."""
    bias = torch.tensor([1.0, 2.0, -torch.inf, -torch.inf], requires_grad=True)
    layer = Layer(torch.zeros(1, 2, requires_grad=True), torch.zeros(4, 2), bias)
    ids, probabilities = torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]])
    sums = fused_objectives.topk_tail(layer, ids, probabilities, torch.zeros(1))
    [gradient] = torch.autograd.grad(sums.loss, [bias])
    expected = torch.tensor([1.0, 2.0]).softmax(-1) - 0.5
    torch.testing.assert_close(gradient, torch.cat([expected, torch.zeros(2)]))
    assert sums.student_mass.item() == pytest.approx(1.0)


def test_non_finite_weights_make_the_loss_non_finite() -> None:
    for broken in (torch.nan, torch.inf):
        layer = layer_of(3, 4, 9, bias=False)
        layer.weight.data[7, 0] = broken
        for name in NAMES:
            assert not torch.isfinite(case(name, 3, 9, 2, 0.1)(layer).loss)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_as_accurate_as_the_dense_path(
    name: str, dtype: torch.dtype
) -> None:
    """Both round the same logits; gradients must not underflow."""
    torch.manual_seed(0)
    half = layer_of(6, 16, 40, bias=True, scale=0.3, dtype=dtype)
    exact = copied(half, torch.float64)
    call = case(name, 6, 40, 5, 0.1)
    with chunks_of(2):
        got = call(half)
    assert got.loss.dtype == torch.float32
    torch.testing.assert_close(got.loss.double(), call(dense(exact)).loss, rtol=2e-2, atol=1e-3)
    scale = 64.0
    for gradient, expected_gradient in zip(
        torch.autograd.grad(got.loss * scale, leaves_of(half)),
        torch.autograd.grad(call(dense(exact)).loss * scale, leaves_of(exact)),
        strict=True,
    ):
        assert gradient.dtype == dtype
        assert (gradient.double() - expected_gradient).norm() < 3e-2 * expected_gradient.norm()


@pytest.mark.parametrize("name", NAMES)
def test_autocast_multiplies_in_bfloat16_and_keeps_float32_gradients(name: str) -> None:
    torch.manual_seed(0)
    layer = layer_of(6, 16, 40, bias=True, scale=0.3, dtype=torch.float32)
    call = case(name, 6, 40, 5, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        got = call(layer)
        assert dense(layer).values.dtype == torch.bfloat16  # where the objective's are float32
    # The operands are rounded to bfloat16, their product is not.
    hidden, weight = (
        leaf + (leaf.bfloat16() - leaf).detach() for leaf in (layer.hidden, layer.weight)
    )
    expected = call(dense(Layer(hidden, weight, layer.bias)))
    torch.testing.assert_close(got.loss, expected.loss.to(got.loss.dtype), rtol=1e-5, atol=1e-5)
    for gradient, expected_gradient in zip(
        torch.autograd.grad(got.loss, leaves_of(layer)),
        torch.autograd.grad(expected.loss, leaves_of(layer)),
        strict=True,
    ):
        assert gradient.dtype == torch.float32
        assert (gradient - expected_gradient).norm() < 1e-2 * expected_gradient.norm()


@pytest.mark.parametrize("name", NAMES)
def test_float16_autocast_keeps_small_gradients(name: str) -> None:
    """Without the scaler's factor they are far below the range of float16."""
    torch.manual_seed(0)
    layer = layer_of(6, 16, 4000, bias=False, scale=1e-3, dtype=torch.float32)
    call = case(name, 6, 4000, 5, 0.1)
    with torch.autocast("cpu", torch.float16):
        got = call(layer)
    expected = call(dense(layer))
    leaves = leaves_of(layer)
    for gradient, expected_gradient in zip(
        torch.autograd.grad(got.loss * 1e-4, leaves),
        torch.autograd.grad(expected.loss * 1e-4, leaves),
        strict=True,
    ):
        assert gradient.dtype == torch.float32
        assert (gradient - expected_gradient).norm() < 1e-2 * expected_gradient.norm()
