"""Training: the loss is the mean over the global batch, however it is split or interrupted."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast, TrainingArguments

from conftest import MakeLlama
from firstcli.api import Sample
from firstcli.data.encoding import EncodedSample
from firstcli.errors import UserError
from firstcli.knowledge import shards
from firstcli.knowledge.store import Knowledge
from firstcli.knowledge.top_k import TopK
from firstcli.models import inference, readout
from firstcli.plugins.objectives import CheckedObjective
from firstcli.recalibration.builtin import NoRecalibration
from firstcli.recipe.sections import Arm, Training
from firstcli.runtime.console import Console
from firstcli.stages.scoring import top_k_of
from firstcli.training import (
    arguments,
    batches,
    checkpoints,
    objective_forward,
    objectives,
    trainer,
    trainer_fields,
    trial,
)
from firstcli.training.copies import CopyChoice
from firstcli.training.objective_forward import Objective
from firstcli.training.soft_targets import SoftTargetBuilder, SoftTargets
from support.encoding import encode_training
from support.recalibration import checked

V, K = 40, 5
NONE = checked(NoRecalibration(NoRecalibration.Options()))
CPU = torch.device("cpu")


def drawn_samples(count: int, seed: int = 0) -> list[EncodedSample]:
    """Samples with 1 to 9 supervised positions: a mean of means would differ from the mean."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        supervised = int(generator.integers(1, 10))
        start = int(generator.integers(1, 6))
        ids = generator.integers(0, V, start + supervised, dtype=np.int32)
        rows.append(EncodedSample(f"s{number}", ids, start, None))
    return rows


class DrawnSoftTargets(list[SoftTargets]):
    """Random soft targets per sample; called with a batch, they are a `SoftTargetSource`."""

    def __init__(self, rows: Sequence[EncodedSample], probabilities: Sequence[SoftTargets]) -> None:
        super().__init__(probabilities)
        self._by_id = {row.id: soft for row, soft in zip(rows, probabilities, strict=True)}

    def __call__(self, rows: Sequence[EncodedSample]) -> SoftTargets:
        parts = [self._by_id[row.id] for row in rows]
        names = ("token_ids", "probabilities", "tail", "teacher_mass")
        return SoftTargets(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in names)
        )


def drawn_soft_targets(
    rows: Sequence[EncodedSample], tail: float = 0.1, seed: int = 1
) -> DrawnSoftTargets:
    generator = np.random.default_rng(seed)
    targets = []
    for row in rows:
        count = len(row.targets)
        ids = np.stack([generator.permutation(V)[:K] for _ in range(count)]).astype(np.int32)
        p = (generator.dirichlet(np.ones(K), count) * (1 - tail)).astype(np.float32)
        tails = np.full(count, tail, np.float32)
        targets.append(SoftTargets(ids, p, tails, np.full(count, 0.875, np.float32)))
    return DrawnSoftTargets(rows, targets)


def settings(**changes: Any) -> Training:
    return Training(**{"batch_size": 8, "epochs": 1, "learning_rate": 1e-2, **changes})


def fit(
    model: LlamaForCausalLM,
    rows: Sequence[EncodedSample],
    folder: Path,
    *,
    soft_targets: batches.SoftTargetSource | None = None,
    objective: Objective | CheckedObjective = "labels",
    fields: dict[str, Any] | None = None,
    console: Console | None = None,
    batching: inference.Batching = "padded",
    choice: CopyChoice | None = None,
    **changes: Any,
) -> trainer.Outcome:
    quick = {"logging_steps": 1, "save_strategy": "no"}
    args = arguments.arguments(folder, settings(**changes), quick | (fields or {}), 0, CPU)
    console = console or Console(quiet=True)
    common = (objective, args, console, "training", batching, choice)
    return trainer.train(model, rows, soft_targets, *common)


def weights(model: LlamaForCausalLM) -> Tensor:
    return torch.cat([value.detach().ravel() for value in model.parameters()])


def distance(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


# The batch.


def test_collate_flattens_over_row_and_column() -> None:
    rows = [
        EncodedSample("a", np.array([1, 2, 3, 4], np.int32), start=2, answer_position=2),
        EncodedSample("b", np.array([5, 6, 7], np.int32), start=1, answer_position=1),
        EncodedSample("c", np.array([8, 9], np.int32), start=1, answer_position=1),
    ]
    soft_targets = drawn_soft_targets(rows)
    batch = batches.TrainingBatches(rows, soft_targets)[[2, 0]]
    assert batch["input_ids"].tolist() == [[8, 9, 0, 0], [1, 2, 3, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["rows"].tolist() == [0, 1, 1]
    assert batch["columns"].tolist() == [0, 1, 2]  # a token is predicted from the one before it
    assert batch["targets"].tolist() == [9, 3, 4]
    assert batch["samples"].tolist() == [2, 0]
    expected = np.concatenate([soft_targets[2].token_ids, soft_targets[0].token_ids])
    np.testing.assert_array_equal(batch["token_ids"].numpy(), expected)
    assert batch["probabilities"].shape == (3, K) and batch["tail"].shape == (3,)
    assert "probabilities" not in batches.TrainingBatches(rows, None)[[0]]


# Planted tokens: from the text to the loss.


@pytest.mark.parametrize("shift", [0, 1, -1])
def test_planted_tokens_reach_the_student_at_their_positions(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, make_llama: MakeLlama, shift: int
) -> None:
    """A student equal to its teacher has no loss; knowledge one position off causes a large one.

    Samples are written to shards in one order and read in a different one.
    """
    samples = [
        Sample("Answer:", " yes, the water is wet.", id="long"),
        Sample.question("Is the passage true?\nAnswer:", [" yes", " no"], 1, id="question"),
        Sample("Q: What is water?\n", "wet", id="short"),
    ]
    rows, _ = encode_training(samples, tokenizer, "train")
    teacher = make_llama(len(tokenizer))
    with torch.no_grad():
        known = top_k_of(readout.Reader(teacher), rows, K, len(tokenizer))
    format = shards.StoreFormat(K, "standard", shards=3)
    for index, row in enumerate([rows[1], rows[2], rows[0]]):
        path = shards.shard_path(tmp_path, index)
        topk = known[row.id]
        shifted = TopK(
            np.roll(topk.token_ids, shift, axis=0),
            np.roll(topk.log_probs, shift, axis=0),
            np.roll(topk.log_tail, shift),
        )
        shards.write_shard(path, [row], [shifted], format)
    builder = SoftTargetBuilder(Arm(), NONE, Knowledge(tmp_path), rows)
    batch = batches.TrainingBatches(rows, builder)[[1, 0, 2]]
    del batch["samples"]
    student = make_llama(len(tokenizer))
    objective_forward.install_objective(student, "topk-tail")
    with torch.no_grad():
        output = student(**batch)
    loss = float(output["loss"] / output["positions"])
    if shift == 0:
        # Only the epsilon 1e-6 of `none` and the precision of the store differ.
        assert float(output["Q"]) == pytest.approx(float(output["P"]), rel=1e-3)
        assert abs(loss) < 1e-5
    else:
        assert loss > 0.1


# The loss against a naive one: an ordinary forward pass over a batch that is padded on the LEFT,
# and explicit sums over positions.


def naive_loss(
    model: LlamaForCausalLM,
    rows: Sequence[EncodedSample],
    soft_targets: Sequence[SoftTargets] | None,
    objective: Objective,
) -> Tensor:
    length = max(len(row.input_ids) for row in rows)
    total, count = torch.zeros((), dtype=torch.float64), 0
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, length - len(row.input_ids) :] = torch.from_numpy(row.input_ids)
        mask[i, length - len(row.input_ids) :] = 1
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=places).logits.double()
    for i, row in enumerate(rows):
        for n, target in enumerate(range(row.start, len(row.input_ids))):
            at = logits[i, length - len(row.input_ids) + target - 1]
            count += 1
            if objective == "labels" or soft_targets is None:
                total = total - at.log_softmax(-1)[int(row.input_ids[target])]
                continue
            token_ids = torch.from_numpy(soft_targets[i].token_ids[n]).long()
            p = torch.from_numpy(soft_targets[i].probabilities[n]).double()
            q = at.softmax(-1)
            if objective == "topk-tail":
                tail = float(soft_targets[i].tail[n])
                total = total + (p * (p / q[token_ids]).log()).sum()
                total = total + tail * (math.log(tail) - (1 - q[token_ids].sum()).log())
            else:
                ratio = q[token_ids] / q[token_ids].sum()
                total = total + (p * (p / ratio).log()).sum()
    return total / count


def soft_targets_for(
    objective: Objective, rows: Sequence[EncodedSample]
) -> DrawnSoftTargets | None:
    if objective == "labels":
        return None
    return drawn_soft_targets(rows, tail=0.1 if objective == "topk-tail" else 0.0)


OBJECTIVES: list[Objective] = ["labels", "topk-tail", "topk-renormalized"]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("micro", [8, 4, 2, 1])
def test_loss_and_gradient_of_a_step_equal_those_of_the_whole_batch(
    tmp_path: Path, make_llama: MakeLlama, objective: Objective, micro: int
) -> None:
    rows = drawn_samples(8)
    soft_targets = soft_targets_for(objective, rows)
    reference = make_llama(V)
    loss = naive_loss(reference, rows, soft_targets, objective)
    gradients = torch.autograd.grad(loss, list(reference.parameters()))
    expected = loss.item()
    norm = torch.cat([gradient.ravel() for gradient in gradients]).norm()
    outcome = fit(
        make_llama(V),
        rows,
        tmp_path,
        soft_targets=soft_targets,
        objective=objective,
        micro_batch_size=micro,
    )
    [log] = outcome.log
    assert log["loss"] == pytest.approx(expected, rel=1e-5)
    assert log["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert outcome.steps == 1
    assert outcome.positions == sum(len(row.targets) for row in rows)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_dense_logits_give_the_same_losses_and_gradients(
    make_llama: MakeLlama, monkeypatch: pytest.MonkeyPatch, objective: Objective
) -> None:
    """The path for models whose output layer is not a plain Linear."""
    rows = drawn_samples(8)
    batch = batches.TrainingBatches(rows, soft_targets_for(objective, rows))[range(8)]
    del batch["samples"]
    results = []
    for obstacle in (None, "the test requires it"):
        if obstacle:
            monkeypatch.setattr(readout, "_obstacle", lambda _, reason=obstacle: reason)
        model, messages = make_llama(V), list[str]()
        objective_forward.install_objective(model, objective, messages.append)
        assert len(messages) == bool(obstacle)
        output = model(**batch)
        gradients = torch.autograd.grad(output.pop("loss"), list(model.parameters()))
        results.append((output, torch.cat([gradient.ravel() for gradient in gradients])))
    (fused, got), (dense, expected) = results
    assert distance(got, expected) < 1e-5
    assert fused.keys() == dense.keys()
    for name, value in dense.items():
        torch.testing.assert_close(fused[name], value)


def test_labels_equals_torch_cross_entropy_over_all_positions(
    tmp_path: Path, make_llama: MakeLlama
) -> None:
    rows, model = drawn_samples(8), make_llama(V)
    padded = inference.pad([row.input_ids for row in rows])
    masked = torch.full_like(padded.input_ids, -100)
    for i, row in enumerate(rows):
        masked[i, row.start : len(row.input_ids)] = torch.from_numpy(row.targets)
    logits = model(input_ids=padded.input_ids, attention_mask=padded.attention_mask).logits
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, V), masked[:, 1:].reshape(-1), ignore_index=-100
    )
    outcome = fit(model, rows, tmp_path, micro_batch_size=2)
    assert outcome.log[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_micro_batches_change_nothing(
    tmp_path: Path, make_llama: MakeLlama, objective: Objective
) -> None:
    """Over several steps, with an incomplete last batch: 21 samples in batches of 8."""
    rows = drawn_samples(21)
    soft_targets = soft_targets_for(objective, rows)
    results = []
    for micro in (8, 2, 1):
        model = make_llama(V)
        outcome = fit(
            model,
            rows,
            tmp_path / str(micro),
            soft_targets=soft_targets,
            objective=objective,
            micro_batch_size=micro,
            learning_rate=1e-3,
        )
        assert outcome.steps == 3
        results.append((outcome, weights(model)))
    outcome, whole = results[0]
    assert distance(weights(make_llama(V)), whole) > 1e-3  # it did learn
    for micro_outcome, split in results[1:]:
        assert distance(split, whole) < 1e-6
        for entry, expected in zip(micro_outcome.log, outcome.log, strict=True):
            assert entry["loss"] == pytest.approx(expected["loss"], rel=2e-5)
            assert entry["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("micro", [8, 4])
def test_an_incomplete_last_batch_averages_over_its_own_positions(
    tmp_path: Path, make_llama: MakeLlama, monkeypatch: pytest.MonkeyPatch, micro: int
) -> None:
    def in_order(*_: object) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
        return [np.arange(8), np.arange(8, 11)]

    monkeypatch.setattr(batches, "batches_of_epoch", in_order)
    rows, model = drawn_samples(11), make_llama(V)
    with torch.no_grad():
        expected = [float(naive_loss(model, part, None, "labels")) for part in (rows[:8], rows[8:])]
    # With a tiny learning rate, both losses are those of the initial weights.
    outcome = fit(model, rows, tmp_path, micro_batch_size=micro, learning_rate=1e-12)
    assert [entry["loss"] for entry in outcome.log] == pytest.approx(expected, rel=1e-5)


def test_the_order_within_a_batch_changes_nothing(tmp_path: Path, make_llama: MakeLlama) -> None:
    rows = drawn_samples(8)
    soft_targets = drawn_soft_targets(rows)
    results = []
    for order in (list(range(8)), [5, 2, 7, 0, 1, 6, 4, 3]):
        model = make_llama(V)
        fit(
            model,
            [rows[i] for i in order],
            tmp_path / str(order[0]),
            soft_targets=soft_targets,
            objective="topk-tail",
            learning_rate=1e-3,
            epochs=3,
        )
        results.append(weights(model))
    assert distance(results[1], results[0]) < 1e-6


@torch.no_grad()
def logits_of(model: LlamaForCausalLM, batch: Mapping[str, Tensor]) -> Tensor:
    return readout.Reader(model).logits_at(
        batch["input_ids"], batch["attention_mask"], batch["rows"], batch["columns"]
    )


def test_a_trained_student_reaches_its_soft_targets(tmp_path: Path, make_llama: MakeLlama) -> None:
    """Training converges to the fixed point of the objective: q = p^, Q = M."""
    rows = drawn_samples(4)
    soft_targets = drawn_soft_targets(rows, tail=0.2)
    model = make_llama(V)
    outcome = fit(
        model,
        rows,
        tmp_path,
        soft_targets=soft_targets,
        objective="topk-tail",
        epochs=100,
        learning_rate=2e-2,
        fields={"logging_steps": 50},
    )
    batch = batches.TrainingBatches(rows, soft_targets)[range(4)]
    logits = logits_of(model, batch)
    q = objectives.student_view(logits, batch["token_ids"]).log_q.exp()
    torch.testing.assert_close(q, batch["probabilities"], rtol=0, atol=0.03)
    assert outcome.log[-1]["Q"] == pytest.approx(0.8, abs=0.01)


def test_training_restores_the_forward_of_the_model(tmp_path: Path, make_llama: MakeLlama) -> None:
    model = make_llama(V)
    fit(model, drawn_samples(8), tmp_path)
    assert "forward" not in vars(model)  # a reference cycle would keep it in memory
    output = model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]]))
    assert output.logits.shape == (1, 3, V) and output.loss.ndim == 0


def test_masses_are_logged(tmp_path: Path, make_llama: MakeLlama) -> None:
    rows = drawn_samples(8)
    soft_targets = drawn_soft_targets(rows)
    batch = batches.TrainingBatches(rows, soft_targets)[range(8)]
    model = make_llama(V)
    logits = logits_of(model, batch)
    mass = logits.softmax(-1).gather(-1, batch["token_ids"]).sum(-1).mean()
    outcome = fit(
        model,
        rows,
        tmp_path,
        soft_targets=soft_targets,
        objective="topk-tail",
        micro_batch_size=2,
    )
    assert outcome.log[0]["P"] == pytest.approx(0.875)
    assert outcome.log[0]["Q"] == pytest.approx(float(mass), rel=1e-5)
    trainer.write_log(tmp_path / "log.jsonl", outcome.log)
    assert json.loads((tmp_path / "log.jsonl").read_text())["Q"] == outcome.log[0]["Q"]


def test_labels_arms_log_no_masses(tmp_path: Path, make_llama: MakeLlama) -> None:
    outcome = fit(make_llama(V), drawn_samples(8), tmp_path)
    assert "P" not in outcome.log[0] and outcome.loss == outcome.log[0]["loss"]


def test_training_without_logs_reports_a_loss(tmp_path: Path, make_llama: MakeLlama) -> None:
    outcome = fit(make_llama(V), drawn_samples(8), tmp_path, fields={"logging_strategy": "no"})
    assert outcome.log == [] and math.isfinite(outcome.loss)


# Interruption.

SAVING = {"save_strategy": "epoch"}


class Interrupted(Exception):
    pass


class Interrupting(Console):
    """A console that kills the run at the end of a step."""

    def __init__(self, at: int) -> None:
        super().__init__(quiet=True)
        self._left = at

    @contextmanager
    def progress(self, what: str, total: int, unit: str, done: int = 0) -> Any:
        def advance(count: int) -> None:
            self._left -= count
            if self._left <= 0:
                raise Interrupted

        yield advance


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, make_llama: MakeLlama) -> None:
    """Bit for bit: killed in the third epoch, resumed from the end of the second."""
    rows = drawn_samples(21)
    soft_targets = drawn_soft_targets(rows)
    common: dict[str, Any] = {"soft_targets": soft_targets, "objective": "topk-tail", "epochs": 3}
    common["fields"] = SAVING
    uninterrupted = make_llama(V)
    whole = fit(uninterrupted, rows, tmp_path / "whole", **common)
    with pytest.raises(Interrupted):
        fit(make_llama(V), rows, tmp_path / "killed", console=Interrupting(8), **common)
    checkpoint = trainer.last_checkpoint(tmp_path / "killed")
    assert checkpoint is not None and checkpoint.name == "checkpoint-6"
    resumed = make_llama(V, seed=99)  # its weights come from the checkpoint
    rest = fit(resumed, rows, tmp_path / "killed", **common)
    assert torch.equal(weights(resumed), weights(uninterrupted))
    assert rest.steps == whole.steps == 9
    assert [entry["loss"] for entry in rest.log] == [entry["loss"] for entry in whole.log]


def test_a_checkpoint_between_two_logs_changes_no_log(
    tmp_path: Path, make_llama: MakeLlama
) -> None:
    """Saved after steps 3 and 6, logged after 4 and 8: the second log covers steps 5 to 8."""
    rows = drawn_samples(21)
    soft_targets = drawn_soft_targets(rows)
    common: dict[str, Any] = {"soft_targets": soft_targets, "objective": "topk-tail", "epochs": 3}
    common["fields"] = {"logging_steps": 4, "save_strategy": "epoch"}
    whole = fit(make_llama(V), rows, tmp_path / "whole", **common)
    with pytest.raises(Interrupted):
        fit(make_llama(V), rows, tmp_path / "killed", console=Interrupting(7), **common)
    rest = fit(make_llama(V), rows, tmp_path / "killed", **common)
    assert len(whole.log) == 2
    paths = [tmp_path / name for name in ("whole.jsonl", "rest.jsonl")]
    for path, outcome in zip(paths, (whole, rest), strict=True):
        trainer.write_log(path, outcome.log)
    assert paths[1].read_bytes() == paths[0].read_bytes()


def test_a_run_killed_after_its_last_step_has_nothing_left_to_do(
    tmp_path: Path, make_llama: MakeLlama
) -> None:
    rows, model = drawn_samples(16), make_llama(V)
    first = fit(model, rows, tmp_path, fields=SAVING)
    again = make_llama(V, seed=99)
    second = fit(again, rows, tmp_path, fields=SAVING)
    assert torch.equal(weights(again), weights(model))
    assert (second.steps, second.loss) == (first.steps, first.loss)


def test_only_the_last_checkpoint_is_kept(tmp_path: Path, make_llama: MakeLlama) -> None:
    fit(make_llama(V), drawn_samples(16), tmp_path, epochs=3, fields=SAVING)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]


def test_incomplete_checkpoints_are_deleted(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / checkpoints.COMPLETE_MARK).touch()
    (tmp_path / "checkpoint-10" / checkpoints.COMPLETE_MARK).unlink()
    last = trainer.last_checkpoint(tmp_path)
    assert last is not None and last.name == "checkpoint-9"
    assert not (tmp_path / "checkpoint-10").exists()
    assert trainer.last_checkpoint(tmp_path / "absent") is None


# Failures.


def test_a_nan_loss_stops_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, make_llama: MakeLlama
) -> None:
    rows = drawn_samples(16)
    soft_targets = drawn_soft_targets(rows)
    common: dict[str, Any] = {"soft_targets": soft_targets, "objective": "topk-tail", "epochs": 2}
    common["fields"] = SAVING
    with pytest.raises(Interrupted):
        fit(make_llama(V), rows, tmp_path, console=Interrupting(3), **common)
    soft_targets[5].probabilities[0, 0] = np.nan
    with pytest.raises(UserError) as caught:
        fit(make_llama(V), rows, tmp_path, micro_batch_size=1, **common)
    message = str(caught.value)
    assert "the loss became nan at step" in message and "of 4" in message
    assert "batch of samples 's5';" in message
    checkpoint = trainer.last_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.name == "checkpoint-2"


@pytest.mark.parametrize("fields", [SAVING, {}])
def test_non_finite_weights_are_never_saved(
    tmp_path: Path, make_llama: MakeLlama, fields: dict[str, Any]
) -> None:
    """The loss is finite but its gradient is not: only the weights show it."""
    model = make_llama(V)

    def corrupt(gradient: Tensor) -> Tensor:
        return gradient * torch.inf

    model.get_output_embeddings().get_parameter("weight").register_hook(corrupt)
    with pytest.raises(UserError, match=r"'lm_head.weight'.*no longer finite after step 1 of 1"):
        fit(model, drawn_samples(8), tmp_path, fields=fields)
    assert trainer.last_checkpoint(tmp_path) is None


# Real tokenizers.


@pytest.mark.shared
@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_a_student_with_a_real_tokenizer_learns_from_its_teacher(
    tmp_path: Path, shared_models: Path, make_llama: MakeLlama, name: str
) -> None:
    """From text to a trained student, over a whole real vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(shared_models / "tokenizers" / name)
    samples = [
        Sample.question(f"Q: {text}?\nA: The answer is (", ["a).", "b)."], n % 2, id=text)
        for n, text in enumerate(["Where", "Who is it", "What does one do there", "Why"])
    ]
    rows, _ = encode_training(samples, tokenizer, "train")
    teacher = make_llama(len(tokenizer), initializer_range=0.2)
    with torch.no_grad():
        known = top_k_of(readout.Reader(teacher), rows, K, len(tokenizer))
    path = shards.shard_path(tmp_path, 0)
    format = shards.StoreFormat(K, "standard", shards=1)
    shards.write_shard(path, rows, [known[row.id] for row in rows], format)
    soft_targets = SoftTargetBuilder(Arm(), NONE, Knowledge(tmp_path), rows)
    student = make_llama(len(tokenizer), seed=1, initializer_range=0.2)
    outcome = fit(
        student,
        rows,
        tmp_path / "run",
        soft_targets=soft_targets,
        objective="topk-tail",
        epochs=40,
    )
    assert outcome.loss < 0.1 * outcome.log[0]["loss"]
    assert outcome.log[-1]["Q"] == pytest.approx(outcome.log[-1]["P"], abs=0.02)


# Devices: there is no GPU, so PyTorch's answers about them are invented.


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Two GPUs that emulate bfloat16; returns the devices that were made current."""
    made_current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", made_current.append)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    return made_current


def test_a_single_process_trains_on_the_gpu_that_the_recipe_names(
    two_gpus: list[torch.device],
) -> None:
    second = torch.device("cuda:1")
    try:
        args = arguments.arguments(Path("unused"), settings(), {}, 7, second)
        assert args.device == PartialState().device == second
        assert two_gpus[-1] == second
        assert args.n_gpu == 1
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("two_gpus")
def test_bfloat16_is_not_chosen_where_it_is_emulated() -> None:
    gpu = torch.device("cuda:0")
    try:
        assert not arguments.arguments(Path("unused"), settings(), {}, 7, gpu).bf16
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert not inference.has_bfloat16(gpu)


def test_the_output_layer_is_tried_out_after_the_model_has_moved(
    tmp_path: Path, make_llama: MakeLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels such as flash attention fail on the CPU, and the fused objective would be lost."""
    model, events = make_llama(V), list[str]()
    move, try_out = model.to, readout._obstacle

    def moved(*args: Any, **kwargs: Any) -> Any:
        events.append("moved")
        return move(*args, **kwargs)

    def tried_out(model: Any) -> str | None:
        events.append("tried out")
        return try_out(model)

    monkeypatch.setattr(model, "to", moved)
    monkeypatch.setattr(readout, "_obstacle", tried_out)
    fit(model, drawn_samples(8), tmp_path)
    assert events[:2] == ["moved", "tried out"]


# Arguments.


def training_arguments(trainer: dict[str, Any], **changes: Any) -> Any:
    return arguments.arguments(Path("unused"), settings(**changes), trainer, 7, CPU)


def test_the_defaults_are_those_of_the_paper() -> None:
    """Appendix A.1."""
    args = arguments.arguments(Path("unused"), Training(), {}, 7, CPU)
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (0.9, 0.999, 1e-6)
    assert args.weight_decay == 0.0
    assert args.lr_scheduler_type == "cosine"
    assert args.get_warmup_steps(1000) == 30
    assert (args.num_train_epochs, args.learning_rate) == (3, 2e-5)
    assert args.seed == 7 and args.optim.startswith("adamw")
    assert not args.bf16 and not args.fp16  # on a CPU


def test_the_schedule_is_a_cosine_with_warm_up(tmp_path: Path, make_llama: MakeLlama) -> None:
    outcome = fit(
        make_llama(V), drawn_samples(8), tmp_path, batch_size=1, epochs=5, learning_rate=1.0
    )
    rates = [entry["learning_rate"] for entry in outcome.log]
    warm, steps = 2, 40  # 3 % of 40 steps, rounded up
    expected = [
        step / warm
        if step < warm
        else 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
        for step in range(steps)
    ]
    assert rates == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("batch", "micro", "expected"),
    [(8, None, (8, 1)), (8, 2, (2, 4)), (256, None, (32, 8)), (96, None, (32, 3))],
)
def test_batches_are_cut_into_micro_batches(
    batch: int, micro: int | None, expected: tuple[int, int]
) -> None:
    args = training_arguments({}, batch_size=batch, micro_batch_size=micro)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == expected


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"training.batch_size: 8 is not a multiple .* 3 processes"):
        training_arguments({})


def test_trainer_fields_are_passed_on() -> None:
    args = training_arguments(
        {"max_grad_norm": 0.5, "lr_scheduler_type": "linear", "weight_decay": 0.1}
    )
    assert (args.max_grad_norm, args.lr_scheduler_type, args.weight_decay) == (0.5, "linear", 0.1)


def test_unknown_and_owned_trainer_fields_are_all_named() -> None:
    with pytest.raises(UserError) as caught:
        training_arguments({"weight_decya": 0.1, "learning_rate": 1e-3, "push_to_hub": True})
    misspelt, rate, hub = caught.value.messages
    assert "trainer.weight_decya" in misspelt and "did you mean 'weight_decay'?" in misspelt
    assert rate == "trainer.learning_rate: firstcli sets it itself; use training.learning_rate"
    assert "trainer.push_to_hub" in hub


@pytest.mark.parametrize(
    "trainer",
    [
        {"lr_scheduler_type": "cosin"},
        {"optim": "adamv"},
        {"warmup_steps": -1},
        {"logging_strategy": "sometimes"},
    ],
)
def test_values_that_training_arguments_rejects_are_user_errors(
    trainer: dict[str, Any],
) -> None:
    with pytest.raises(UserError, match=r"^trainer: "):
        training_arguments(trainer)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"report_to": "nowhere"}, r"trainer.report_to: \['nowhere'\] cannot be used: "),
        ({"save_strategy": "best"}, "trainer.save_strategy: 'best' needs an evaluation"),
        (
            {"lr_scheduler_type": "warmup_stable_decay"},
            "trainer.lr_scheduler_type: 'warmup_stable_decay' cannot be used: .*num_decay_steps",
        ),
        ({"adam_beta1": 1.5}, "trainer.optim: 'adamw_torch.*' cannot be used: Invalid beta"),
    ],
)
def test_settings_with_which_training_would_fail_are_found_on_two_parameters(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        trial.check(training_arguments(fields))


def test_an_optimizer_whose_package_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.trainer_optimizer.is_bitsandbytes_available", lambda: False)
    with pytest.raises(UserError, match=r"trainer.optim: 'adamw_bnb_8bit' .*bitsandbytes"):
        trial.check(training_arguments({"optim": "adamw_bnb_8bit"}))


def test_all_failing_settings_are_named_and_good_ones_pass() -> None:
    fields = {"lr_scheduler_type": "cosine_with_min_lr", "save_strategy": "best"}
    with pytest.raises(UserError) as caught:
        trial.check(training_arguments(fields))
    assert len(caught.value.messages) == 2
    given = {"lr_scheduler_kwargs": {"min_lr": 1e-6}, "optim": "adafactor"}
    trial.check(training_arguments({**fields, **given, "save_strategy": "epoch"}))


@pytest.mark.parametrize("names", [trainer_fields.OWNED.keys(), trainer_fields.HARMLESS])
def test_listed_trainer_fields_exist(names: Collection[str]) -> None:
    assert set(names) <= {field.name for field in dataclasses.fields(TrainingArguments)}


def test_owned_trainer_fields_are_not_listed_as_harmless() -> None:
    assert not trainer_fields.OWNED.keys() & trainer_fields.HARMLESS


def test_a_process_without_samples_gets_a_batch_without_positions() -> None:
    rows = drawn_samples(5)
    dataset = batches.TrainingBatches(rows, drawn_soft_targets(rows))
    idle, batch = dataset[[~4]], dataset[[4]]
    for name in ("input_ids", "attention_mask", "samples"):
        assert torch.equal(idle[name], batch[name])
    for name in batch.keys() - {"input_ids", "attention_mask", "samples"}:
        assert idle[name].shape == (0, *batch[name].shape[1:])
