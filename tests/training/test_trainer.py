"""Training: the mean over the positions of a global batch, however it is cut or interrupted."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from conftest import MakeLlama
from firstcli.api import Sample
from firstcli.data.encoding import EncodedSample
from firstcli.errors import UserError
from firstcli.knowledge import store
from firstcli.knowledge.store import Knowledge
from firstcli.knowledge.top_k import TopK
from firstcli.models import inference, readout
from firstcli.recipe.schema import Arm, Training, recalibrator_of
from firstcli.runtime.console import Console
from firstcli.stages.extract import top_k_of
from firstcli.training import arguments, collate, objectives, sampling, trainer
from firstcli.training.soft_targets import SoftTargetBuilder, SoftTargets
from firstcli.training.trainer import Objective
from support.encoding import encode_training

V, K = 40, 5
CPU = torch.device("cpu")


def some_rows(count: int, seed: int = 0) -> list[EncodedSample]:
    """Samples with 1 to 9 supervised positions: a mean of means would differ from the mean."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        supervised = int(generator.integers(1, 10))
        start = int(generator.integers(1, 6))
        ids = generator.integers(0, V, start + supervised, dtype=np.int32)
        rows.append(EncodedSample(f"s{number}", ids, start, None))
    return rows


class Given(list[SoftTargets]):
    """What each sample is taught, drawn beforehand; a batch of them is what `Collate` asks for."""

    def __init__(self, rows: Sequence[EncodedSample], probabilities: Sequence[SoftTargets]) -> None:
        super().__init__(probabilities)
        self._of = {row.id: one for row, one in zip(rows, probabilities, strict=True)}

    def __call__(self, rows: Sequence[EncodedSample]) -> SoftTargets:
        found = [self._of[row.id] for row in rows]
        names = ("token_ids", "probabilities", "tail", "teacher_mass")
        return SoftTargets(
            *(np.concatenate([getattr(one, name) for one in found]) for name in names)
        )


def some_taught(rows: Sequence[EncodedSample], tail: float = 0.1, seed: int = 1) -> Given:
    generator = np.random.default_rng(seed)
    found = []
    for row in rows:
        count = len(row.targets)
        ids = np.stack([generator.permutation(V)[:K] for _ in range(count)]).astype(np.int32)
        p = (generator.dirichlet(np.ones(K), count) * (1 - tail)).astype(np.float32)
        tails = np.full(count, tail, np.float32)
        found.append(SoftTargets(ids, p, tails, np.full(count, 0.875, np.float32)))
    return Given(rows, found)


def settings(**changes: Any) -> Training:
    return Training(**{"batch_size": 8, "epochs": 1, "learning_rate": 1e-2, **changes})


def fit(
    model: LlamaForCausalLM,
    rows: Sequence[EncodedSample],
    folder: Path,
    *,
    probabilities: collate.Teacher | None = None,
    objective: Objective = "labels",
    fields: dict[str, Any] | None = None,
    console: Console | None = None,
    **changes: Any,
) -> trainer.Outcome:
    quick = {"logging_steps": 1, "save_strategy": "no"}
    args = arguments.arguments(folder, settings(**changes), quick | (fields or {}), 0, CPU)
    console = console or Console(quiet=True)
    return trainer.train(model, rows, probabilities, objective, args, console, "training")


def weights(model: LlamaForCausalLM) -> Tensor:
    return torch.cat([value.detach().ravel() for value in model.parameters()])


def distance(some: Tensor, other: Tensor) -> float:
    return float((some - other).norm() / other.norm())


# The batch.


def test_collate_flattens_over_row_and_column() -> None:
    rows = [
        EncodedSample("a", np.array([1, 2, 3, 4], np.int32), start=2, answer_position=2),
        EncodedSample("b", np.array([5, 6, 7], np.int32), start=1, answer_position=1),
        EncodedSample("c", np.array([8, 9], np.int32), start=1, answer_position=1),
    ]
    probabilities = some_taught(rows)
    batch = collate.Collate(rows, probabilities)([2, 0])
    assert batch["input_ids"].tolist() == [[8, 9, 0, 0], [1, 2, 3, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["rows"].tolist() == [0, 1, 1]
    assert batch["columns"].tolist() == [0, 1, 2]  # a token is predicted from the one before it
    assert batch["targets"].tolist() == [9, 3, 4]
    assert batch["samples"].tolist() == [2, 0]
    expected = np.concatenate([probabilities[2].token_ids, probabilities[0].token_ids])
    np.testing.assert_array_equal(batch["token_ids"].numpy(), expected)
    assert batch["probabilities"].shape == (3, K) and batch["tail"].shape == (3,)
    assert "probabilities" not in collate.Collate(rows, None)([0])


# Planted tokens: from the text to the loss.


@pytest.mark.parametrize("shift", [0, 1, -1])
def test_planted_tokens_reach_the_student_at_their_positions(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, make_llama: MakeLlama, shift: int
) -> None:
    """A student that equals its teacher learns nothing; knowledge one position off costs it much.

    The store is written in one order, in shards, and read in another.
    """
    samples = [
        Sample("Answer:", " yes, the water is wet.", id="long"),
        Sample.question("Is the passage true?\nAnswer:", [" yes", " no"], 1, id="question"),
        Sample("Q: What is water?\n", "wet", id="short"),
    ]
    rows, _ = encode_training(samples, tokenizer, "train")
    teacher = make_llama(len(tokenizer))
    with torch.no_grad():
        found = top_k_of(readout.Reader(teacher), rows, K, len(tokenizer))
    format = store.StoreFormat(K, "standard", shards=3)
    for index, row in enumerate([rows[1], rows[2], rows[0]]):
        path = store.shard_path(tmp_path, index)
        one = found[row.id]
        moved = TopK(
            np.roll(one.token_ids, shift, axis=0),
            np.roll(one.log_probs, shift, axis=0),
            np.roll(one.log_tail, shift),
        )
        store.write_shard(path, [row], [moved], format)
    arm = Arm.model_validate({"recalibrator": {"name": "none"}})
    lessons = SoftTargetBuilder(arm, recalibrator_of(arm), Knowledge(tmp_path), rows)
    batch = collate.Collate(rows, lessons)([1, 0, 2])
    del batch["samples"]
    student = make_llama(len(tokenizer))
    trainer.install_objective(student, "topk-tail")
    with torch.no_grad():
        output = student(**batch)
    loss = float(output["loss"] / output["positions"])
    if shift == 0:
        # Epsilon 1e-6 of `none` is all that differs, and the precision of the store.
        assert float(output["Q"]) == pytest.approx(float(output["P"]), rel=1e-3)
        assert abs(loss) < 1e-5
    else:
        assert loss > 0.1


# The loss against a naive one: an ordinary forward pass of a batch that is padded on the LEFT,
# explicit sums over positions.


def naive_loss(
    model: LlamaForCausalLM,
    rows: Sequence[EncodedSample],
    probabilities: Sequence[SoftTargets] | None,
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
            if objective == "labels" or probabilities is None:
                total = total - at.log_softmax(-1)[int(row.input_ids[target])]
                continue
            token_ids = torch.from_numpy(probabilities[i].token_ids[n]).long()
            p = torch.from_numpy(probabilities[i].probabilities[n]).double()
            q = at.softmax(-1)
            if objective == "topk-tail":
                tail = float(probabilities[i].tail[n])
                total = total + (p * (p / q[token_ids]).log()).sum()
                total = total + tail * (math.log(tail) - (1 - q[token_ids].sum()).log())
            else:
                ratio = q[token_ids] / q[token_ids].sum()
                total = total + (p * (p / ratio).log()).sum()
    return total / count


def case(objective: Objective, rows: Sequence[EncodedSample]) -> Given | None:
    if objective == "labels":
        return None
    return some_taught(rows, tail=0.1 if objective == "topk-tail" else 0.0)


OBJECTIVES: list[Objective] = ["labels", "topk-tail", "topk-renormalized"]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("micro", [8, 4, 2, 1])
def test_loss_and_gradient_of_a_step_are_those_of_the_whole_batch(
    tmp_path: Path, make_llama: MakeLlama, objective: Objective, micro: int
) -> None:
    rows = some_rows(8)
    probabilities = case(objective, rows)
    reference = make_llama(V)
    loss = naive_loss(reference, rows, probabilities, objective)
    gradients = torch.autograd.grad(loss, list(reference.parameters()))
    expected = loss.item()
    norm = torch.cat([gradient.ravel() for gradient in gradients]).norm()
    outcome = fit(
        make_llama(V),
        rows,
        tmp_path,
        probabilities=probabilities,
        objective=objective,
        micro_batch_size=micro,
    )
    [log] = outcome.log
    assert log["loss"] == pytest.approx(expected, rel=1e-5)
    assert log["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert outcome.steps == 1
    assert outcome.positions == sum(len(row.targets) for row in rows)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_whole_logits_give_the_same_losses_and_gradients(
    make_llama: MakeLlama, monkeypatch: pytest.MonkeyPatch, objective: Objective
) -> None:
    """The path for models whose output layer does more than multiply."""
    rows = some_rows(8)
    batch = collate.Collate(rows, case(objective, rows))(range(8))
    del batch["samples"]
    found = []
    for obstacle in (None, "a test wants it so"):
        if obstacle:
            monkeypatch.setattr(readout, "_obstacle", lambda _, reason=obstacle: reason)
        model, said = make_llama(V), list[str]()
        trainer.install_objective(model, objective, said.append)
        assert len(said) == bool(obstacle)
        output = model(**batch)
        gradients = torch.autograd.grad(output.pop("loss"), list(model.parameters()))
        found.append((output, torch.cat([one.ravel() for one in gradients])))
    (fused, got), (plain, expected) = found
    assert distance(got, expected) < 1e-5
    assert fused.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(fused[name], value)


def test_labels_is_torch_s_cross_entropy_over_all_positions(
    tmp_path: Path, make_llama: MakeLlama
) -> None:
    rows, model = some_rows(8), make_llama(V)
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
    """Over several steps, the last of which is incomplete: 21 rows in batches of 8."""
    rows = some_rows(21)
    probabilities = case(objective, rows)
    found = []
    for micro in (8, 2, 1):
        model = make_llama(V)
        outcome = fit(
            model,
            rows,
            tmp_path / str(micro),
            probabilities=probabilities,
            objective=objective,
            micro_batch_size=micro,
            learning_rate=1e-3,
        )
        assert outcome.steps == 3
        found.append((outcome, weights(model)))
    outcome, whole = found[0]
    assert distance(weights(make_llama(V)), whole) > 1e-3  # it did learn
    for other, split in found[1:]:
        assert distance(split, whole) < 1e-6
        for one, two in zip(outcome.log, other.log, strict=True):
            assert one["loss"] == pytest.approx(two["loss"], rel=2e-5)
            assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("micro", [8, 4])
def test_the_last_incomplete_batch_is_a_mean_over_its_own_positions(
    tmp_path: Path, make_llama: MakeLlama, monkeypatch: pytest.MonkeyPatch, micro: int
) -> None:
    def in_order(*_: object) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
        return [np.arange(8), np.arange(8, 11)]

    monkeypatch.setattr(sampling, "batches_of_epoch", in_order)
    rows, model = some_rows(11), make_llama(V)
    with torch.no_grad():
        expected = [float(naive_loss(model, part, None, "labels")) for part in (rows[:8], rows[8:])]
    # A step size of next to nothing: both losses are those of the starting weights.
    outcome = fit(model, rows, tmp_path, micro_batch_size=micro, learning_rate=1e-12)
    assert [entry["loss"] for entry in outcome.log] == pytest.approx(expected, rel=1e-5)


RANK = """
import os, sys
from pathlib import Path
import torch
from transformers import LlamaForCausalLM
from training import test_trainer as t
from firstcli.runtime import distributed

folder = Path(sys.argv[1])
model, rows = LlamaForCausalLM.from_pretrained(folder / "start"), t.some_rows(21)
known = {"probabilities": t.some_taught(rows), "objective": "topk-tail"}
outcome = t.fit(model, rows, folder / "run", micro_batch_size=2, **known)
if os.environ["RANK"] == "0":
    torch.save((t.weights(model), outcome.log), folder / "result.pt")
distributed.leave()
"""


def test_two_processes_change_nothing(tmp_path: Path, make_llama: MakeLlama) -> None:
    """They share each batch, sum their positions, and log the masses of both.

    The last batch has 5 samples, so that one process is left without any for its micro-batch of 2.
    """
    model, rows = make_llama(V), some_rows(21)
    model.save_pretrained(tmp_path / "start")
    outcome = fit(model, rows, tmp_path, probabilities=some_taught(rows), objective="topk-tail")
    (tmp_path / "rank.py").write_text(RANK)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [*launch, str(tmp_path / "rank.py"), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shared, log = torch.load(tmp_path / "result.pt")
    assert distance(shared, weights(model)) < 1e-6
    assert len(log) == len(outcome.log) == 3
    for one, two in zip(log, outcome.log, strict=True):
        for name in ("loss", "grad_norm", "P", "Q"):
            assert one[name] == pytest.approx(two[name], rel=1e-4)


def test_the_order_within_a_batch_changes_nothing(tmp_path: Path, make_llama: MakeLlama) -> None:
    rows = some_rows(8)
    probabilities = some_taught(rows)
    found = []
    for order in (list(range(8)), [5, 2, 7, 0, 1, 6, 4, 3]):
        model = make_llama(V)
        fit(
            model,
            [rows[i] for i in order],
            tmp_path / str(order[0]),
            probabilities=probabilities,
            objective="topk-tail",
            learning_rate=1e-3,
            epochs=3,
        )
        found.append(weights(model))
    assert distance(found[1], found[0]) < 1e-6


def test_a_trained_student_reaches_what_it_is_taught(tmp_path: Path, make_llama: MakeLlama) -> None:
    """The whole path ends where the objective should: q = p^, Q = M."""
    rows = some_rows(4)
    probabilities = some_taught(rows, tail=0.2)
    model = make_llama(V)
    outcome = fit(
        model,
        rows,
        tmp_path,
        probabilities=probabilities,
        objective="topk-tail",
        epochs=150,
        learning_rate=1e-2,
    )
    batch = collate.Collate(rows, probabilities)(range(4))
    with torch.no_grad():
        logits = readout.LogitsAt(model)(
            batch["input_ids"], batch["attention_mask"], batch["rows"], batch["columns"]
        )
    q = objectives.student_view(logits, batch["token_ids"]).log_q.exp()
    torch.testing.assert_close(q, batch["probabilities"], rtol=0, atol=0.03)
    assert outcome.log[-1]["Q"] == pytest.approx(0.8, abs=0.01)


def test_the_model_is_an_ordinary_one_afterwards(tmp_path: Path, make_llama: MakeLlama) -> None:
    model = make_llama(V)
    fit(model, some_rows(8), tmp_path)
    assert "forward" not in vars(model)  # else it would refer to itself, and stay in memory
    output = model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]]))
    assert output.logits.shape == (1, 3, V) and output.loss.ndim == 0


def test_masses_are_logged(tmp_path: Path, make_llama: MakeLlama) -> None:
    rows = some_rows(8)
    probabilities = some_taught(rows)
    batch = collate.Collate(rows, probabilities)(range(8))
    model = make_llama(V)
    with torch.no_grad():
        logits = readout.LogitsAt(model)(
            batch["input_ids"], batch["attention_mask"], batch["rows"], batch["columns"]
        )
    mass = logits.softmax(-1).gather(-1, batch["token_ids"]).sum(-1).mean()
    outcome = fit(
        model,
        rows,
        tmp_path,
        probabilities=probabilities,
        objective="topk-tail",
        micro_batch_size=2,
    )
    assert outcome.log[0]["P"] == pytest.approx(0.875)
    assert outcome.log[0]["Q"] == pytest.approx(float(mass), rel=1e-5)
    trainer.write_log(tmp_path / "log.jsonl", outcome.log)
    assert json.loads((tmp_path / "log.jsonl").read_text())["Q"] == outcome.log[0]["Q"]


def test_labels_arms_log_no_masses(tmp_path: Path, make_llama: MakeLlama) -> None:
    outcome = fit(make_llama(V), some_rows(8), tmp_path)
    assert "P" not in outcome.log[0] and outcome.loss == outcome.log[0]["loss"]


def test_training_without_logs_still_says_its_loss(tmp_path: Path, make_llama: MakeLlama) -> None:
    outcome = fit(make_llama(V), some_rows(8), tmp_path, fields={"logging_strategy": "no"})
    assert outcome.log == [] and math.isfinite(outcome.loss)


# Interruption.

SAVING = {"save_strategy": "epoch"}


class Interrupted(Exception):
    pass


class Interrupting(Console):
    """A console through which a step's end kills the run."""

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


def test_a_resumed_run_equals_an_undisturbed_one(tmp_path: Path, make_llama: MakeLlama) -> None:
    """Bit for bit: killed in the third epoch, taken up from the end of the second."""
    rows = some_rows(21)
    probabilities = some_taught(rows)
    common: dict[str, Any] = {"probabilities": probabilities, "objective": "topk-tail", "epochs": 3}
    common["fields"] = SAVING
    undisturbed = make_llama(V)
    whole = fit(undisturbed, rows, tmp_path / "whole", **common)
    with pytest.raises(Interrupted):
        fit(make_llama(V), rows, tmp_path / "killed", console=Interrupting(8), **common)
    checkpoint = trainer.last_checkpoint(tmp_path / "killed")
    assert checkpoint is not None and checkpoint.name == "checkpoint-6"
    resumed = make_llama(V, seed=99)  # its weights come from the checkpoint
    rest = fit(resumed, rows, tmp_path / "killed", **common)
    assert torch.equal(weights(resumed), weights(undisturbed))
    assert rest.steps == whole.steps == 9
    assert [entry["loss"] for entry in rest.log] == [entry["loss"] for entry in whole.log]


def test_a_run_killed_after_its_last_step_has_nothing_left_to_do(
    tmp_path: Path, make_llama: MakeLlama
) -> None:
    rows, model = some_rows(16), make_llama(V)
    first = fit(model, rows, tmp_path, fields=SAVING)
    again = make_llama(V, seed=99)
    second = fit(again, rows, tmp_path, fields=SAVING)
    assert torch.equal(weights(again), weights(model))
    assert (second.steps, second.loss) == (first.steps, first.loss)


def test_only_the_last_checkpoint_is_kept(tmp_path: Path, make_llama: MakeLlama) -> None:
    fit(make_llama(V), some_rows(16), tmp_path, epochs=3, fields=SAVING)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]


def test_a_checkpoint_without_its_mark_is_never_used(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / trainer.MARK).touch()
    (tmp_path / "checkpoint-10" / trainer.MARK).unlink()
    found = trainer.last_checkpoint(tmp_path)
    assert found is not None and found.name == "checkpoint-9"
    assert not (tmp_path / "checkpoint-10").exists()
    assert trainer.last_checkpoint(tmp_path / "absent") is None


# What goes wrong.


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, make_llama: MakeLlama
) -> None:
    rows = some_rows(16)
    probabilities = some_taught(rows)
    common: dict[str, Any] = {"probabilities": probabilities, "objective": "topk-tail", "epochs": 2}
    common["fields"] = SAVING
    with pytest.raises(Interrupted):
        fit(make_llama(V), rows, tmp_path, console=Interrupting(3), **common)
    probabilities[5].probabilities[0, 0] = np.nan
    with pytest.raises(UserError) as caught:
        fit(make_llama(V), rows, tmp_path, micro_batch_size=1, **common)
    message = str(caught.value)
    assert "the loss became nan at step" in message and "of 4" in message
    assert "batch of samples 's5';" in message
    checkpoint = trainer.last_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.name == "checkpoint-2"


@pytest.mark.parametrize("fields", [SAVING, {}])
def test_spoilt_weights_are_never_kept(
    tmp_path: Path, make_llama: MakeLlama, fields: dict[str, Any]
) -> None:
    """The loss is finite, its gradient is not: nothing but the weights shows it."""
    model = make_llama(V)

    def spoil(gradient: Tensor) -> Tensor:
        return gradient * torch.inf

    model.get_output_embeddings().get_parameter("weight").register_hook(spoil)
    with pytest.raises(UserError, match=r"'lm_head.weight'.*no longer finite after step 1 of 1"):
        fit(model, some_rows(8), tmp_path, fields=fields)
    assert trainer.last_checkpoint(tmp_path) is None


# Real tokenizers.


@pytest.mark.shared
@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_a_student_with_a_real_tokenizer_comes_to_agree_with_its_teacher(
    tmp_path: Path, shared_models: Path, make_llama: MakeLlama, name: str
) -> None:
    """From text to a trained student's answer, over a whole real vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(shared_models / "tokenizers" / name)
    samples = [
        Sample.question(f"Q: {text}?\nA: The answer is (", ["a).", "b)."], n % 2, id=text)
        for n, text in enumerate(["Where", "Who is it", "What does one do there", "Why"])
    ]
    rows, _ = encode_training(samples, tokenizer, "train")
    teacher = make_llama(len(tokenizer), initializer_range=0.2)
    with torch.no_grad():
        found = top_k_of(readout.Reader(teacher), rows, K, len(tokenizer))
    path = store.shard_path(tmp_path, 0)
    format = store.StoreFormat(K, "standard", shards=1)
    store.write_shard(path, rows, [found[row.id] for row in rows], format)
    arm = Arm.model_validate({"recalibrator": {"name": "none"}})
    probabilities = SoftTargetBuilder(arm, recalibrator_of(arm), Knowledge(tmp_path), rows)
    student = make_llama(len(tokenizer), seed=1, initializer_range=0.2)
    outcome = fit(
        student,
        rows,
        tmp_path / "run",
        probabilities=probabilities,
        objective="topk-tail",
        epochs=40,
    )
    assert outcome.loss < 0.1 * outcome.log[0]["loss"]
    assert outcome.log[-1]["Q"] == pytest.approx(outcome.log[-1]["P"], abs=0.02)


# Arguments.


def made_arguments(trainer: dict[str, Any], **changes: Any) -> Any:
    return arguments.arguments(Path("unused"), settings(**changes), trainer, 7, CPU)


def test_the_defaults_are_the_paper_s() -> None:
    """Appendix A.1."""
    args = arguments.arguments(Path("unused"), Training(), {}, 7, CPU)
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (0.9, 0.999, 1e-6)
    assert args.weight_decay == 0.0
    assert args.lr_scheduler_type == "cosine"
    assert args.get_warmup_steps(1000) == 30
    assert (args.num_train_epochs, args.learning_rate) == (3, 2e-5)
    assert args.seed == 7 and args.optim.startswith("adamw")
    assert not args.bf16 and not args.fp16  # on a CPU


def test_the_schedule_warms_up_and_falls_as_a_cosine(tmp_path: Path, make_llama: MakeLlama) -> None:
    outcome = fit(make_llama(V), some_rows(8), tmp_path, batch_size=1, epochs=5, learning_rate=1.0)
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
    args = made_arguments({}, batch_size=batch, micro_batch_size=micro)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == expected


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"training.batch_size: 8 is no multiple .* 3 processes"):
        made_arguments({})


def test_trainer_fields_are_taken_over() -> None:
    args = made_arguments(
        {"max_grad_norm": 0.5, "lr_scheduler_type": "linear", "weight_decay": 0.1}
    )
    assert (args.max_grad_norm, args.lr_scheduler_type, args.weight_decay) == (0.5, "linear", 0.1)


def test_unknown_and_owned_trainer_fields_are_all_named() -> None:
    with pytest.raises(UserError) as caught:
        made_arguments({"weight_decya": 0.1, "learning_rate": 1e-3, "push_to_hub": True})
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
def test_values_that_training_arguments_refuses_are_the_user_s_mistake(
    trainer: dict[str, Any],
) -> None:
    with pytest.raises(UserError, match=r"^trainer: "):
        made_arguments(trainer)
