"""Readouts equal those from all logits and leave the model unchanged."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import CohereConfig, GraniteConfig

from conftest import MakeLlama
from firstcli.models import inference, readout
from firstcli.models.readout import Layer, Logits
from models.test_inference import (
    ARCHITECTURES,
    SHAPE,
    BypassedHead,
    V,
    all_positions,
    build,
    sequences,
)

WITH_SCALING = ARCHITECTURES | {
    "granite": GraniteConfig(**SHAPE, num_key_value_heads=1, logits_scaling=3.0),
    "cohere": CohereConfig(**SHAPE, num_key_value_heads=1, logit_scale=0.25),
}
NEEDS_ALL_LOGITS = {"gemma2", "granite", "cohere"}


def read(reader: readout.Reader, readout: readout.Readout) -> Tensor:
    texts = sequences(9, 3, 6, 1)
    padded = inference.pad(texts)
    rows, columns = all_positions([len(text) for text in texts])
    return reader(padded.input_ids, padded.attention_mask, rows, columns, readout)


def whole(scores: readout.Scores) -> Tensor:
    return torch.cat([logits.clone() for _, logits in scores.chunks(5)])


@pytest.mark.parametrize("name", WITH_SCALING)
@torch.no_grad()
def test_readouts_of_every_architecture_equal_those_from_all_logits(name: str) -> None:
    """On either path: only heads that do more than multiply need all logits."""
    model = build(WITH_SCALING[name])
    expected = torch.cat(
        [
            model(input_ids=torch.tensor(text[None], dtype=torch.long)).logits[0].float()
            for text in sequences(9, 3, 6, 1)
        ]
    )
    messages: list[str] = []
    reader = readout.Reader(model, messages.append)
    assert (reader.obstacle is not None) == (name in NEEDS_ALL_LOGITS), messages
    assert (len(messages) == 1) == (name in NEEDS_ALL_LOGITS)
    torch.testing.assert_close(read(reader, whole), expected, rtol=1e-4, atol=1e-5)
    ids, log_probs, log_tail = readout.unpack(
        read(reader, lambda scores: readout.top_k(scores, 5, V))
    )
    p = expected.double().log_softmax(-1)
    torch.testing.assert_close(p.gather(-1, ids), p.topk(5).values, rtol=0, atol=1e-5)
    torch.testing.assert_close(log_probs.double(), p.topk(5).values, rtol=0, atol=1e-4)
    tail = p.scatter(-1, ids, -torch.inf).logsumexp(-1)
    torch.testing.assert_close(log_tail.double(), tail, rtol=0, atol=1e-4)
    tokens = torch.tensor([[3, 7, 3]]).expand(len(p), -1)
    got = read(reader, lambda scores: readout.log_probs(scores, tokens)).double()
    torch.testing.assert_close(got, p.gather(-1, tokens), rtol=0, atol=1e-4)


def test_the_obstacle_states_the_reason() -> None:
    changes = "changes the result of its output layer"
    assert changes in str(readout.Reader(build(ARCHITECTURES["gemma2"])).obstacle)
    model: Any = BypassedHead()
    assert "does not apply its output layer" in str(readout.Reader(model).obstacle)
    replaced = build(ARCHITECTURES["llama"])
    head: Any = replaced.get_output_embeddings()
    head.forward = head.forward
    assert "something else has replaced" in str(readout.Reader(replaced).obstacle)


def test_trial_and_readout_leave_the_model_unchanged(make_llama: MakeLlama) -> None:
    model = make_llama(V, attention_dropout=0.5)
    model.train()
    model.model.norm.eval()  # modes may differ
    modes = [module.training for module in model.modules()]
    random = torch.random.get_rng_state()
    reader = readout.Reader(model)
    assert torch.equal(torch.random.get_rng_state(), random)

    def fails(_: readout.Scores) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read(reader, fails)
    assert [module.training for module in model.modules()] == modes
    assert all(value.grad is None and value.requires_grad for value in model.parameters())
    assert "forward" not in vars(model.lm_head)


# The arithmetic.


@given(
    sizes=st.tuples(st.integers(1, 5), st.integers(2, 60)),
    data=st.data(),
    block=st.integers(1, 9),
    rows=st.integers(1, 6),
    levels=st.sampled_from([1, 3, 1000]),
    seed=st.integers(0, 2**31),
)
def test_top_k_for_all_block_sizes_with_ties_by_id(
    sizes: tuple[int, int], data: st.DataObject, block: int, rows: int, levels: int, seed: int
) -> None:
    """Few levels make many ties: values match torch.topk, ids match a stable sort."""
    n, vocabulary = sizes
    limit = data.draw(st.integers(1, vocabulary))
    k = data.draw(st.integers(1, limit))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-levels, levels + 1, (n, vocabulary), generator=generator) / 8
    logits = torch.where(logits == 0, -logits, logits)  # 0.0 and -0.0 are equal
    with (
        mock.patch.object(readout, "BLOCK", block),
        mock.patch.object(readout, "CHUNK_ROWS", rows),
    ):
        ids, log_probs, log_tail = readout.unpack(readout.top_k(Logits(logits.clone()), k, limit))
    stable = logits[:, :limit].sort(dim=-1, descending=True, stable=True).indices[:, :k]
    assert ids.tolist() == stable.tolist()
    p = logits.double().log_softmax(-1)
    torch.testing.assert_close(log_probs.double(), p.gather(-1, ids), rtol=1e-5, atol=1e-5)
    tail = p.scatter(-1, ids, -torch.inf).logsumexp(-1)
    torch.testing.assert_close(log_tail.double(), tail, rtol=1e-5, atol=1e-5)


def test_a_tail_too_small_for_one_minus_the_mass_is_exact() -> None:
    logits = torch.full((1, 300), -100.0)
    logits[0, 5], logits[0, 250] = 100.0, 99.0
    _, _, log_tail = readout.unpack(readout.top_k(Logits(logits.clone()), 2, 300))
    expected = logits.double().log_softmax(-1)[0, 0] + torch.tensor(298.0).log()
    assert log_tail.item() == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("broken", [torch.nan, -torch.nan, torch.inf])
def test_non_finite_logits_are_not_hidden(broken: float) -> None:
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(0))
    logits[1, 299] = broken
    _, log_probs, _ = readout.unpack(readout.top_k(Logits(logits), 5, 100))
    assert torch.isfinite(log_probs).all(-1).tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_and_its_logits_give_the_same_top_k(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 300, bias=bias).to(dtype)
    hidden = torch.randn(7, 8, dtype=dtype)
    expected = Logits(exact(Layer(hidden, head.weight, head.bias)).float())
    with mock.patch.object(readout, "CHUNK_ROWS", 2):
        got = readout.top_k(Layer(hidden, head.weight, head.bias), 5, 290)
    torch.testing.assert_close(got, readout.top_k(expected, 5, 290))


# Half-precision operands: their products are summed in float32.


def exact(layer: Layer) -> Tensor:
    """Return a layer's output (N, V) in float64."""
    bias = None if layer.bias is None else layer.bias.detach().double()
    return torch.nn.functional.linear(
        layer.hidden.detach().double(), layer.weight.detach().double(), bias
    )


def close_tokens(dtype: torch.dtype, *, bias: bool) -> Layer:
    """Logits of about 20 that differ by about 1: in bfloat16 they are multiples of 1/8."""
    torch.manual_seed(0)
    common = torch.randn(64)
    hidden = common * 0.3 + 0.1 * torch.randn(50, 64)
    weight = common + torch.randn(40, 64) / 3
    return Layer(hidden.to(dtype), weight.to(dtype), torch.randn(40).to(dtype) if bias else None)


def share_of_ties(values: Tensor) -> float:
    """Return the share of equal pairs among the values of each row of (N, C)."""
    first, second = torch.triu_indices(values.shape[-1], values.shape[-1], 1)
    return float((values[:, first] == values[:, second]).double().mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_logits_are_not_rounded_to_the_dtype_of_their_operands(
    dtype: torch.dtype, bias: bool
) -> None:
    layer = close_tokens(dtype, bias=bias)
    expected = exact(layer)
    rounded = torch.nn.functional.linear(layer.hidden, layer.weight, layer.bias)
    with mock.patch.object(readout, "WEIGHT_ROWS", 7):
        got = whole(layer)
        log_probs = readout.log_probs(layer, torch.arange(40).expand(50, 40))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_probs.double(), expected.log_softmax(-1), rtol=0, atol=1e-4)
    # Rounding would make distinct tokens tie.
    assert share_of_ties(got) < 1e-4 < 1e-3 < share_of_ties(rounded)


@pytest.mark.parametrize("name", ["llama", "phi", "gpt2", "gemma2", "granite", "cohere"])
@torch.no_grad()
def test_a_bfloat16_model_has_float32_logits_on_either_path(name: str) -> None:
    """The exact head over the bfloat16 trunk; what follows the head (capping, scaling) stays."""
    model = build(WITH_SCALING[name]).to(torch.bfloat16)  # type: ignore[arg-type]  # a decorator
    head: Any = model.get_output_embeddings()
    captured: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    reader = readout.Reader(model)
    captured.clear()
    got = read(reader, whole)
    hook.remove()
    rows, columns = all_positions([9, 3, 6, 1])
    hidden = captured[0][rows, columns] if captured[0].shape[0] > 1 else captured[0][0]
    expected = exact(Layer(hidden, head.weight, head.bias))
    if name == "gemma2":
        expected = 0.5 * torch.tanh(expected / 0.5)
    expected = expected / 3.0 if name == "granite" else expected
    expected = expected * 0.25 if name == "cohere" else expected
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_a_device_that_sums_in_float32_multiplies_by_itself(
    monkeypatch: pytest.MonkeyPatch, bias: bool
) -> None:
    """CUDA's `out_dtype` needs no converted copy of the weight."""
    multiply, used = torch.mm, list[torch.dtype]()

    def cuda_mm(
        left: Tensor, right: Tensor, out_dtype: Any = None, *, out: Tensor | None = None
    ) -> Tensor:
        if out_dtype is None:
            return multiply(left, right, out=out)
        used.append(left.dtype)
        product = multiply(left.to(out_dtype), right.to(out_dtype))
        return product if out is None else out.copy_(product)

    layer = close_tokens(torch.bfloat16, bias=bias)
    readout.has_float32_sums.cache_clear()
    monkeypatch.setattr(torch, "mm", cuda_mm)
    got = whole(layer)
    readout.has_float32_sums.cache_clear()
    assert used == [torch.bfloat16] * (1 + 10)  # one trial, 10 chunks of 5 rows
    torch.testing.assert_close(got.double(), exact(layer), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_gradients_of_whole_logits_are_right_in_half_precision(dtype: torch.dtype | None) -> None:
    """With bfloat16 weights, and with float32 weights under autocast."""
    model = build(ARCHITECTURES["phi"])  # its head has a bias
    if dtype:
        model.to(dtype)  # type: ignore[arg-type]  # a decorator hides its signature
    reader = readout.Reader(model)
    padded = inference.pad(sequences(9, 3))
    rows, columns = all_positions([9, 3])
    head: Any = model.get_output_embeddings()
    captured: list[Tensor] = []
    head.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is None):
        logits = reader.logits_at(padded.input_ids, padded.attention_mask, rows, columns)
    slope = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    leaves = [captured[-1], head.weight, head.bias]
    got = list(torch.autograd.grad((logits * slope).sum(), leaves))
    assert [part.dtype for part in got] == [leaf.dtype for leaf in leaves]
    got[0] = got[0][rows, columns]
    wide, hidden = slope.double(), captured[-1][rows, columns].detach().double()
    expected = (wide @ head.weight.detach().double(), wide.T @ hidden, wide.sum(0))
    for part, exact_part in zip(got, expected, strict=True):
        assert (part.double() - exact_part).norm() < 1e-2 * exact_part.norm()
