"""The fused objectives against the plain ones in float64, whatever is cut, rounded or left out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
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


def of_rows(count: int) -> Any:
    """Let a chunk hold `count` rows of logits."""
    return mock.patch.dict(fused_objectives.ROWS, {"cpu": count})


def layer_of(
    n: int, d: int, v: int, *, bias: bool, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> Layer:
    hidden, weight = torch.randn(n, d, dtype=torch.float64), torch.randn(v, d, dtype=torch.float64)
    parts = [scale * hidden, weight, *([torch.randn(v, dtype=torch.float64)] if bias else [])]
    leaves = [part.to(dtype).requires_grad_() for part in parts]
    return Layer(leaves[0], leaves[1], leaves[2] if bias else None)


def leaves_of(layer: Layer) -> list[Tensor]:
    return [one for one in (layer.hidden, layer.weight, layer.bias) if one is not None]


def copied(layer: Layer, dtype: torch.dtype) -> Layer:
    first, second, *third = (one.detach().to(dtype).requires_grad_() for one in leaves_of(layer))
    return Layer(first, second, third[0] if third else None)


def plain(layer: Layer) -> Logits:
    return Logits(torch.nn.functional.linear(layer.hidden, layer.weight, layer.bias))


def case(name: str, n: int, v: int, k: int, tail: float) -> Call:
    """An objective with something to teach."""
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
def test_loss_and_gradients_are_the_plain_ones(
    name: str,
    sizes: tuple[int, int, int],
    k: int,
    rows: int,
    tail: float,
    bias: bool,
    scale: float,
    seed: int,
) -> None:
    """Whatever the shape and the chunk: no positions at all, k = V, one row at a time."""
    torch.manual_seed(seed)
    n, d, v = sizes
    k = min(k, v)
    layer = layer_of(n, d, v, bias=bias, scale=scale)
    call = case(name, n, v, k, 0.0 if k == v else tail)
    expected = call(plain(layer))
    with of_rows(rows):
        got = call(layer)
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.student_mass, expected.student_mass, rtol=1e-9, atol=1e-9)
    assert not got.student_mass.requires_grad
    for one, other in zip(
        torch.autograd.grad(got.loss, leaves_of(layer)),
        torch.autograd.grad(expected.loss, leaves_of(layer)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tail", [0.0, 1e-6, 0.3])
def test_gradients_are_right(name: str, tail: float) -> None:
    torch.manual_seed(0)
    layer = layer_of(5, 4, 9, bias=True)
    call = case(name, 5, 9, 3, tail)

    def loss(*operands: Tensor) -> Tensor:
        return call(Layer(*operands)).loss

    def again(*operands: Tensor) -> Any:  # gradcheck goes backward twice, recomputing here
        return checkpoint(loss, *operands, use_reentrant=False)

    with of_rows(2):
        check: Callable[..., bool] = torch.autograd.gradcheck
        assert check(again, leaves_of(layer))


def test_a_second_backward_pass_is_refused_instead_of_wrong() -> None:
    layer = layer_of(3, 4, 9, bias=False)
    loss = case("topk-tail", 3, 9, 2, 0.1)(layer).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", NAMES)
def test_only_what_is_trained_gets_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    layer, call = layer_of(4, 3, 9, bias=True), case(name, 4, 9, 2, 0.1)
    whole = torch.autograd.grad(call(layer).loss, leaves_of(layer))
    for index in range(3):
        frozen = [one.detach().requires_grad_(i == index) for i, one in enumerate(leaves_of(layer))]
        [alone] = torch.autograd.grad(call(Layer(*frozen)).loss, [frozen[index]])
        torch.testing.assert_close(alone, whole[index])
    with torch.no_grad():
        assert not call(layer).loss.requires_grad
    torch.testing.assert_close(call(layer).loss * 2, call(layer).loss + call(layer).loss)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gap", [0.0, 10.0, 40.0])
@pytest.mark.parametrize("tail", [0.0, *(10.0**-n for n in range(3, 13))])
def test_float32_is_close_to_float64_where_the_student_is_sure(
    name: str, gap: float, tail: float
) -> None:
    """Q -> 1 with some tail still taught: 1 - Q as a difference would be noise or infinity."""
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
    for one, other in zip(
        torch.autograd.grad(got.loss, leaves_of(narrow)),
        torch.autograd.grad(expected.loss, leaves_of(wide)),
        strict=True,
    ):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


def test_tokens_of_no_probability_break_nothing() -> None:
    """All others at -inf: their mass is 0 and no gradient is NaN."""
    bias = torch.tensor([1.0, 2.0, -torch.inf, -torch.inf], requires_grad=True)
    layer = Layer(torch.zeros(1, 2, requires_grad=True), torch.zeros(4, 2), bias)
    ids, probabilities = torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]])
    sums = fused_objectives.topk_tail(layer, ids, probabilities, torch.zeros(1))
    [gradient] = torch.autograd.grad(sums.loss, [bias])
    expected = torch.tensor([1.0, 2.0]).softmax(-1) - 0.5
    torch.testing.assert_close(gradient, torch.cat([expected, torch.zeros(2)]))
    assert sums.student_mass.item() == pytest.approx(1.0)


def test_numbers_that_are_not_finite_stay_so() -> None:
    for broken in (torch.nan, torch.inf):
        layer = layer_of(3, 4, 9, bias=False)
        layer.weight.data[7, 0] = broken
        for name in NAMES:
            assert not torch.isfinite(case(name, 3, 9, 2, 0.1)(layer).loss)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_as_good_as_the_plain_path(
    name: str, dtype: torch.dtype
) -> None:
    """Both round the same logits; a tiny scale, as of a mean over many, must not underflow."""
    torch.manual_seed(0)
    half = layer_of(6, 16, 40, bias=True, scale=0.3, dtype=dtype)
    exact = copied(half, torch.float64)
    call = case(name, 6, 40, 5, 0.1)
    with of_rows(2):
        got = call(half)
    assert got.loss.dtype == torch.float32
    torch.testing.assert_close(got.loss.double(), call(plain(exact)).loss, rtol=2e-2, atol=1e-3)
    scale = 64.0
    for one, other in zip(
        torch.autograd.grad(got.loss * scale, leaves_of(half)),
        torch.autograd.grad(call(plain(exact)).loss * scale, leaves_of(exact)),
        strict=True,
    ):
        assert one.dtype == dtype
        assert (one.double() - other).norm() < 3e-2 * other.norm()


@pytest.mark.parametrize("name", NAMES)
def test_autocast_multiplies_in_bfloat16_and_keeps_float32_gradients(name: str) -> None:
    torch.manual_seed(0)
    layer = layer_of(6, 16, 40, bias=True, scale=0.3, dtype=torch.float32)
    call = case(name, 6, 40, 5, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        got = call(layer)
        logits = plain(layer).values
        assert logits.dtype == torch.bfloat16
    expected = call(Logits(logits.float()))
    torch.testing.assert_close(got.loss, expected.loss.to(got.loss.dtype), rtol=1e-5, atol=1e-5)
    for one, other in zip(
        torch.autograd.grad(got.loss, leaves_of(layer)),
        torch.autograd.grad(expected.loss, leaves_of(layer)),
        strict=True,
    ):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 1e-2 * other.norm()


@pytest.mark.parametrize("name", NAMES)
def test_float16_autocast_loses_no_small_gradient(name: str) -> None:
    """Before the scaler's factor arrives they are far below what float16 can hold."""
    torch.manual_seed(0)
    layer = layer_of(6, 16, 4000, bias=False, scale=1e-3, dtype=torch.float32)
    call = case(name, 6, 4000, 5, 0.1)
    with torch.autocast("cpu", torch.float16):
        got = call(layer)
    expected = call(plain(layer))
    leaves = leaves_of(layer)
    for one, other in zip(
        torch.autograd.grad(got.loss * 1e-4, leaves),
        torch.autograd.grad(expected.loss * 1e-4, leaves),
        strict=True,
    ):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 1e-2 * other.norm()


SHARDED = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from firstcli.training import trainer

V, K, N = 61, 3, 5

def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, pad_token_id=None, bos_token_id=None, eos_token_id=2,
    )
    made = LlamaForCausalLM(config)
    said = []
    trainer.install_objective(made, objective, said.append)
    assert not said, said  # the fused path
    return made

def batch(seed):
    g = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(0, V, (2, 7), generator=g),
        "attention_mask": torch.ones(2, 7, dtype=torch.long),
        "rows": torch.tensor([0, 0, 1, 1, 1]),
        "columns": torch.tensor([2, 4, 1, 3, 5]),
        "targets": torch.randint(0, V, (N,), generator=g),
        "token_ids": torch.stack([torch.randperm(V, generator=g)[:K] for _ in range(N)]),
        "probabilities": torch.full((N, K), 0.3),
        "tail": torch.full((N,), 0.1),
        "teacher_mass": torch.full((N,), 0.9),
    }

dist.init_process_group("gloo")
rank = dist.get_rank()
for objective in ("topk-tail", "topk-renormalized", "labels"):
    alone = model()
    (sum(alone(**batch(one))["loss"] for one in range(2)) / 2).backward()
    expected = {name: value.grad for name, value in alone.named_parameters()}

    shared = model()
    mesh = init_device_mesh("cpu", (2,))
    for part in (*shared.model.layers, shared.lm_head, shared):  # the head as a group of its own
        fully_shard(part, mesh=mesh)
    shared(**batch(rank))["loss"].backward()
    for name, value in shared.named_parameters():
        torch.testing.assert_close(value.grad.full_tensor(), expected[name], rtol=1e-4, atol=1e-6)

    for parts in ({LlamaDecoderLayer}, {LlamaDecoderLayer, torch.nn.Linear}):
        wrapped = FullyShardedDataParallel(
            model(), auto_wrap_policy=ModuleWrapPolicy(parts), use_orig_params=True,
            device_id=torch.device("cpu"),
        )
        wrapped(**batch(rank))["loss"].backward()
        with FullyShardedDataParallel.summon_full_params(wrapped, with_grads=True):
            for (_, value), gradient in zip(wrapped.named_parameters(), expected.values()):
                torch.testing.assert_close(value.grad, gradient, rtol=1e-4, atol=1e-6)
dist.destroy_process_group()
"""


def test_sharded_weights_get_the_gradients_of_one_process(tmp_path: Path) -> None:
    """FSDP of both kinds, with the output layer's weight sharded over two processes."""
    (tmp_path / "rank.py").write_text(SHARDED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(tmp_path / "rank.py")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
