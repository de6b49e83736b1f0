"""Knowledge, loss, gradient and answers of many architectures equal plain transformers to 1e-5.

The reference reads one sequence at a time, without padding, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from firstcli.checkpoints import causality, packing
from firstcli.data.encoding import EncodedQuestion, EncodedSample
from firstcli.errors import UserError
from firstcli.export.fold import fold
from firstcli.models import inference, readout
from firstcli.models.answers import candidate_log_probs
from firstcli.models.generation import Sampler, continuations
from firstcli.recipe.lora import Lora
from firstcli.stages.scoring import top_k_of
from firstcli.training import arguments, lora, objective_forward, trainer
from firstcli.training.batches import TrainingBatches
from firstcli.training.objective_forward import Objective
from support.architectures import ARCHITECTURES, Architecture
from support.paths import DOCS
from training.test_trainer import (
    CPU,
    OBJECTIVES,
    SAVING,
    DrawnSoftTargets,
    Interrupted,
    Interrupting,
    K,
    V,
    distance,
    drawn_samples,
    fit,
    naive_loss,
    settings,
    soft_targets_for,
    weights,
)

TOKENS = range(5, V)
every_architecture = pytest.mark.parametrize(
    "architecture", ARCHITECTURES, ids=[each.name for each in ARCHITECTURES]
)
ADAPTERS = Lora(rank=2, alpha=4)


def log_probs(model: PreTrainedModel, ids: Sequence[int] | Any) -> Tensor:
    """Return what plain transformers predicts after each token of one sequence, (L, V)."""
    with torch.no_grad():
        row = torch.tensor(np.asarray(ids, np.int64))[None]
        logits: Tensor = model(input_ids=row, use_cache=False).logits[0]
    return logits.double().log_softmax(-1)


def loss_of(
    model: PreTrainedModel,
    rows: Sequence[EncodedSample],
    soft_targets: DrawnSoftTargets | None,
    objective: Objective,
) -> Tensor:
    """Return the mean over all positions of the objective in float64, sequence by sequence."""
    counts = [len(row.targets) for row in rows]
    parts = [
        naive_loss(model, [row], soft_targets and [soft_targets[i]], objective)  # type: ignore[arg-type]
        for i, row in enumerate(rows)
    ]
    terms = [part * count for part, count in zip(parts, counts, strict=True)]
    return torch.stack(terms).sum() / sum(counts)


def gradient_of(model: Any) -> dict[str, Tensor]:
    found = {name: value.grad for name, value in model.named_parameters()}
    return {name: grad.double() for name, grad in found.items() if grad is not None}


def adapted(model: Any) -> Any:
    """Add adapters that have an effect."""
    args = arguments.arguments(Path("unused"), settings(), {}, 0, CPU)
    wrapped = lora.with_adapters(model, ADAPTERS, 0, args)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "lora_B" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return wrapped


def packs(architecture: Architecture) -> bool:
    return packing.fault(architecture.build(V), TOKENS, None) is None


def batchings(architecture: Architecture) -> list[inference.Batching]:
    return ["padded", "packed"] if packs(architecture) else ["padded"]


# Reading.


@every_architecture
def test_it_is_a_causal_decoder(architecture: Architecture) -> None:
    assert causality.fault(architecture.build(V), TOKENS, None) is None


@every_architecture
@torch.no_grad()
def test_knowledge(architecture: Architecture) -> None:
    rows, reference = drawn_samples(12), architecture.reference(V)
    reader = readout.Reader(architecture.build(V))
    for batching in batchings(architecture):
        found = top_k_of(reader, rows, K, V, batching)
        for row in rows:
            expected = log_probs(reference, row.input_ids)[row.start - 1 : -1]
            top, ids = found[row.id], torch.from_numpy(found[row.id].token_ids).long()
            kept = expected.gather(-1, ids)
            np.testing.assert_allclose(top.log_probs, kept.numpy(), rtol=0, atol=1e-5)
            np.testing.assert_allclose(kept, expected.topk(K).values, rtol=0, atol=1e-5)
            tail = expected.scatter(-1, ids, -torch.inf).logsumexp(-1)
            np.testing.assert_allclose(top.log_tail, tail.numpy(), rtol=0, atol=1e-5)


@every_architecture
@torch.no_grad()
def test_answers(architecture: Architecture) -> None:
    draw, reference = np.random.default_rng(1), architecture.reference(V)
    questions = []
    for number, length in enumerate((7, 2, 12, 1)):
        ids = draw.integers(0, V, length, dtype=np.int32)
        answers = tuple(int(each) for each in draw.permutation(V)[: 2 + number])
        whole = tuple((answer,) for answer in answers)
        questions.append(EncodedQuestion(f"q{number}", ids, answers, length, whole, 0, None))
    found = candidate_log_probs(readout.Reader(architecture.build(V)), questions)
    for question in questions:
        expected = log_probs(reference, question.input_ids)[-1, list(question.candidate_ids)]
        np.testing.assert_allclose(found[question.id], expected.numpy(), rtol=0, atol=1e-5)


@every_architecture
@torch.inference_mode()
def test_texts_do_not_depend_on_the_padding_on_the_left(architecture: Architecture) -> None:
    """Those of a batch are the most likely continuations of each prompt alone, without a cache."""
    model, prompts = architecture.build(V), [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    together = continuations(model, prompts, 10, [], Sampler().processors(()))
    for prompt, text in zip(prompts, together, strict=True):
        whole = [*prompt, *text]
        likely = log_probs(model, whole).argmax(-1)
        assert text == likely[len(prompt) - 1 : -1].tolist()


# Training.


@every_architecture
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_and_gradient(architecture: Architecture, objective: Objective) -> None:
    rows = drawn_samples(8)
    soft_targets = soft_targets_for(objective, rows)
    reference = architecture.reference(V)
    expected = loss_of(reference, rows, soft_targets, objective)
    expected.backward()
    gradient = gradient_of(reference)
    for batching in batchings(architecture):
        model = architecture.build(V)
        objective_forward.install_objective(model, objective)
        loss = step(model, rows, soft_targets, batching)
        assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
        require_equal(gradient_of(model), gradient)


def step(
    model: Any,
    rows: Sequence[EncodedSample],
    soft_targets: DrawnSoftTargets | None,
    batching: inference.Batching = "padded",
) -> float:
    """Compute the gradient of all samples in one batch, and return the loss."""
    batch = TrainingBatches(rows, soft_targets, batching)[range(len(rows))]
    del batch["samples"]
    output = model(**batch)
    loss = output["loss"] / output["positions"]
    loss.backward()
    return float(loss.detach())


def require_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Compare gradients: all of them together, because single ones may be 0 but for rounding."""
    assert found.keys() == expected.keys()
    flat = [torch.cat([part[name].ravel() for name in expected]) for part in (found, expected)]
    assert distance(*flat) < 1e-5


@every_architecture
def test_adapters(architecture: Architecture) -> None:
    """Every one of them is trained, by the right gradient, and merging changes no prediction."""
    rows = drawn_samples(8)
    soft_targets = soft_targets_for("topk-tail", rows)
    reference = adapted(architecture.reference(V)).double()
    loss_of(reference.get_base_model(), rows, soft_targets, "topk-tail").backward()
    expected = gradient_of(reference)
    model = adapted(architecture.build(V))
    plain = log_probs(model, range(12))
    assert (plain - log_probs(architecture.build(V), range(12))).abs().max() > 1e-2
    objective_forward.install_objective(model.get_base_model(), "topk-tail")
    step(model, rows, soft_targets)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    found = gradient_of(model)
    assert found.keys() == trained
    assert all(value.any() for value in found.values())
    require_equal(found, expected)
    merged = adapted(architecture.build(V)).merge_and_unload()
    np.testing.assert_allclose(log_probs(merged, range(12)), plain, rtol=0, atol=1e-4)


@every_architecture
@pytest.mark.parametrize("with_adapters", [False, True])
def test_a_resumed_training_equals_an_uninterrupted_one(
    tmp_path: Path, architecture: Architecture, with_adapters: bool
) -> None:
    """Bit for bit: killed in the second epoch, resumed from the end of the first."""
    rows = drawn_samples(16)

    def start() -> Any:
        model = architecture.build(V)
        return adapted(model) if with_adapters else model

    common: dict[str, Any] = {
        "soft_targets": soft_targets_for("topk-tail", rows),
        "objective": "topk-tail",
        "epochs": 2,
        "fields": SAVING,
    }
    uninterrupted = start()
    whole = fit(uninterrupted, rows, tmp_path / "whole", **common)
    assert whole.steps == 4
    with pytest.raises(Interrupted):
        fit(start(), rows, tmp_path / "killed", console=Interrupting(3), **common)
    resumed = start()
    with torch.no_grad():  # what is trained comes from the checkpoint
        for value in resumed.parameters():
            if value.requires_grad:
                value.add_(1)
    rest = fit(resumed, rows, tmp_path / "killed", **common)
    assert torch.equal(weights(resumed), weights(uninterrupted))
    assert [entry["loss"] for entry in rest.log] == [entry["loss"] for entry in whole.log]


@every_architecture
def test_the_first_logged_loss(tmp_path: Path, architecture: Architecture) -> None:
    """Of a whole step of the Trainer, in two micro-batches."""
    rows = drawn_samples(8)
    soft_targets = soft_targets_for("topk-tail", rows)
    expected = float(loss_of(architecture.reference(V), rows, soft_targets, "topk-tail").detach())
    model: Any = architecture.build(V)
    outcome = fit(
        model,
        rows,
        tmp_path,
        soft_targets=soft_targets,
        objective="topk-tail",
        micro_batch_size=4,
    )
    assert outcome.steps == 1
    assert outcome.log[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    """As those of GPT-NeoX did, whose output layer has another name in published checkpoints."""
    [neox] = [each for each in ARCHITECTURES if each.name == "GPT-NeoX"]
    rows, common = drawn_samples(16), {"epochs": 2, "fields": SAVING}
    with pytest.raises(Interrupted):
        fit(neox.build(V), rows, tmp_path, console=Interrupting(3), **common)  # type: ignore[arg-type]
    checkpoint = trainer.last_checkpoint(tmp_path)
    assert checkpoint is not None
    names = set(load_file(checkpoint / "model.safetensors"))
    assert "lm_head.weight" in names
    neox.build(V).save_pretrained(checkpoint)  # as transformers names them
    assert "lm_head.weight" not in load_file(checkpoint / "model.safetensors")
    with pytest.raises(UserError, match=r"does not match .* such as 'lm_head\.weight'"):
        fit(neox.build(V), rows, tmp_path, **common)  # type: ignore[arg-type]


# Mixtures of experts.


@pytest.mark.parametrize(
    "architecture",
    [each for each in ARCHITECTURES if each.has_experts],
    ids=lambda each: each.name,
)
def test_the_loss_of_the_router_is_not_part_of_the_objective(architecture: Architecture) -> None:
    """Whatever the configuration says; in transformers' own loss it would count."""
    rows, asks = drawn_samples(8), {"output_router_logits": True, "router_aux_loss_coef": 9.0}
    found = []
    for values in ({}, asks):
        model = architecture.build(V, **values)
        ids = torch.tensor(rows[0].input_ids.astype(np.int64))[None]
        auxiliary = model(input_ids=ids, labels=ids).aux_loss
        assert (auxiliary is not None) == bool(values)
        model.zero_grad()
        objective_forward.install_objective(model, "labels")
        found.append((step(model, rows, None), gradient_of(model)))
    (loss, gradient), (same, same_gradient) = found
    assert loss == same
    assert all(torch.equal(gradient[name], same_gradient[name]) for name in gradient)


@pytest.mark.parametrize("targets", [("out_proj",), ("dt_proj",), ("mixer.x_proj",)])
def test_layers_that_a_state_space_block_does_not_call_take_no_adapter(
    targets: tuple[str, ...],
) -> None:
    [mamba] = [each for each in ARCHITECTURES if each.name == "Mamba"]
    with pytest.raises(UserError, match=r"lora\.targets: the state-space blocks of Mamba.*in_proj"):
        lora.trainable(mamba.build(V), Lora(targets=targets))


# The documentation.


def row_of(architecture: Architecture) -> str:
    """Return what docs/architectures.md must say, found out by trying."""
    model = architecture.build(V)
    targets = {name.rpartition(".")[2] for name in lora.target_layers(model, ADAPTERS)}
    try:
        place = f"`{fold(architecture.build(V), 2.0, range(1, V)).module}`"
    except UserError as refusal:
        assert "soft-capped" in str(refusal)
        place = "refused: soft-capped"
    cells = (
        architecture.name,
        f"`{type(model).__name__}`",
        "all at once" if readout.Reader(model).obstacle else "in chunks",
        "padded, packed" if packs(architecture) else "padded",
        ", ".join(f"`{name}`" for name in sorted(targets)),
        place,
    )
    return f"| {' | '.join(cells)} |"


def test_the_table_of_the_documentation() -> None:
    text = (DOCS / "architectures.md").read_text("utf-8")
    rows = [row_of(each) for each in ARCHITECTURES]
    assert "\n".join(rows) in text
