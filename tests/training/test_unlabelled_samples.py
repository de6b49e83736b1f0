"""What a student learns of a sample without a label: the answer position, as of a labelled one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from conftest import MakeLlama
from firstcli.api import Sample
from firstcli.data.encoding import EncodedSample
from firstcli.knowledge import shards
from firstcli.knowledge.store import JoinedKnowledge, Knowledge
from firstcli.models import readout
from firstcli.recipe.sections import Arm
from firstcli.stages import train_model
from firstcli.stages.scoring import top_k_of
from firstcli.training import batches, objective_forward
from firstcli.training.soft_targets import SoftTargetBuilder, SoftTargets
from support.encoding import encode_training

K = 5
PROMPTS = ("Is the passage true?\nAnswer:", "What is water?\nAnswer:", "Is fire dry? The answer is")
CANDIDATES = ((" yes", " no"), (" (a) wet", " (b) dry"), (" yes.", " no."))
OPTIONS = {"temperature": 0.4}
ARMS = [
    Arm(),
    Arm.model_validate({"recalibrator": {"name": "temperature-scaling", "options": OPTIONS}}),
    Arm.model_validate({"recalibrator": {"name": "label-smoothing"}, "mass": "one"}),
    Arm.model_validate({"objective": "topk-renormalized", "recalibrate": "all"}),
]


class Copies:
    """Questions with a label, and copies of them without; a teacher's knowledge of both."""

    def __init__(
        self, folder: Path, tokenizer: PreTrainedTokenizerFast, make_llama: MakeLlama
    ) -> None:
        pairs = list(zip(PROMPTS, CANDIDATES, strict=True))
        labelled = [Sample.question(p, c, 1, id=f"q{n}") for n, (p, c) in enumerate(pairs)]
        without = [Sample.question(p, c, None, id=f"u{n}") for n, (p, c) in enumerate(pairs)]
        self.labelled, _ = encode_training(labelled, tokenizer, "train")
        self.unlabelled, _ = encode_training(without, tokenizer, "train")
        teacher = readout.Reader(make_llama(len(tokenizer)))
        parts = []
        for name, rows in (("train", self.labelled), ("unlabelled", self.unlabelled)):
            (folder / name).mkdir()
            with torch.no_grad():
                known = top_k_of(teacher, rows, K, len(tokenizer))
            path = shards.shard_path(folder / name, 0)
            format = shards.StoreFormat(K, "standard", name, shards=1)
            shards.write_shard(path, rows, [known[row.id] for row in rows], format)
            parts.append(Knowledge(folder / name))
        self.knowledge = JoinedKnowledge(parts)

    def targets(self, arm: Arm) -> SoftTargetBuilder:
        assert arm.recalibrator
        rows = [*self.labelled, *self.unlabelled]
        return SoftTargetBuilder(arm, arm.recalibrator.build(), self.knowledge, rows)


@pytest.fixture
def copies(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, make_llama: MakeLlama) -> Copies:
    return Copies(tmp_path, tokenizer, make_llama)


def answer_positions(rows: Sequence[EncodedSample]) -> list[int]:
    """Return where the answer positions are among all supervised positions of a batch."""
    starts = np.cumsum([0, *(len(row.targets) for row in rows)])
    places = []
    for row, start in zip(rows, starts, strict=False):
        assert row.answer_position is not None
        places.append(int(start) + row.answer_position - row.start)
    return places


@pytest.mark.parametrize("arm", ARMS)
def test_the_targets_are_those_of_the_same_question_with_a_label(copies: Copies, arm: Arm) -> None:
    builder = copies.targets(arm)
    with_label, without = builder(copies.labelled), builder(copies.unlabelled)
    places = answer_positions(copies.labelled)
    assert len(without.tail) == len(copies.unlabelled) < len(with_label.tail)
    np.testing.assert_array_equal(without.token_ids, with_label.token_ids[places])
    for name in ("probabilities", "tail", "teacher_mass"):
        expected = getattr(with_label, name)[places]
        np.testing.assert_allclose(getattr(without, name), expected, rtol=1e-3, atol=1e-6)


def gradient(student: LlamaForCausalLM, arm: Arm, batch: dict[str, Tensor]) -> tuple[float, Tensor]:
    """Return the summed loss over a batch and its gradient."""
    batch = {name: value for name, value in batch.items() if name != "samples"}
    objective_forward.install_objective(student, train_model.objective_of(arm))
    student.zero_grad()
    loss = student(**batch)["loss"]
    loss.backward()
    gradients = [p.grad.ravel() for p in student.parameters() if p.grad is not None]
    return loss.item(), torch.cat(gradients)


@pytest.mark.parametrize("arm", ARMS)
def test_the_gradient_is_that_of_the_answer_position_alone(
    copies: Copies, tokenizer: PreTrainedTokenizerFast, make_llama: MakeLlama, arm: Arm
) -> None:
    """Labelled copies give it too, if their other positions are taken out of the batch by hand."""
    builder, rows = copies.targets(arm), copies.unlabelled
    batch = batches.TrainingBatches(rows, builder)[[0, 1, 2]]
    loss, found = gradient(make_llama(len(tokenizer), seed=3), arm, batch)

    whole = batches.TrainingBatches(copies.labelled, builder)[[0, 1, 2]]
    places = answer_positions(copies.labelled)
    by_sample = ("input_ids", "attention_mask", "samples")
    kept = {name: part if name in by_sample else part[places] for name, part in whole.items()}
    expected_loss, expected = gradient(make_llama(len(tokenizer), seed=3), arm, kept)
    assert loss == pytest.approx(expected_loss, rel=2e-3)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-3 * float(expected.abs().max()))


def test_the_placeholder_of_the_label_is_neither_learned_nor_read(
    copies: Copies, tokenizer: PreTrainedTokenizerFast, make_llama: MakeLlama
) -> None:
    builder = copies.targets(ARMS[0])
    soft: dict[str, SoftTargets] = {row.id: builder([row]) for row in copies.unlabelled}
    results = []
    for placeholder in (7, 8):
        rows = [
            replace(row, input_ids=np.append(row.input_ids[:-1], np.int32(placeholder)))
            for row in copies.unlabelled
        ]
        batch = batches.TrainingBatches(rows, lambda part: soft[part[0].id])[[1]]
        results.append(gradient(make_llama(len(tokenizer), seed=3), ARMS[0], batch))
    (loss, found), (other_loss, other) = results
    assert loss == other_loss
    torch.testing.assert_close(found, other, rtol=0, atol=0)
