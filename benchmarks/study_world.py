"""One world of the study of `worlds.py`: its data, and what models know and answer in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from firstcli import metrics
from firstcli.augmenters.perturb import Perturb
from firstcli.data import splits
from firstcli.data.copies import copies_of
from firstcli.data.encoded import lengths_of
from firstcli.data.encoding import EncodedSample, each_encoded
from firstcli.knowledge import codec
from firstcli.knowledge.mean import mean_of
from firstcli.knowledge.top_k import TopK
from firstcli.metrics.records import EvalRecords
from firstcli.models import inference, readout
from firstcli.models.answers import EVALUATION_TOKENS, candidate_log_probs
from firstcli.pipeline.plan import Request, open_run
from firstcli.plugins import calls
from firstcli.plugins.recalibrators import CheckedRecalibrator
from firstcli.recipe.sections import Arm
from firstcli.stages import chat, inputs, role_models, scoring, shared_tokens
from firstcli.training import soft_targets
from firstcli.training.copies import CopyChoice
from firstcli.workspace.run import Run

RECIPE = Path(__file__).with_name("worlds.yaml")
SHARE = 0.5  # probability that a row is one of its copies in an epoch
EVERY = ("copy1", "copy2", "copy3", "copy4")
"""The copies of each prompt, of levels 0.15, 0.15, 0.3 and 0.3."""


@dataclass(frozen=True)
class Known:
    """Knowledge in memory, after the rounding of its store."""

    top_k: int
    known: Mapping[str, TopK]

    def of(self, sample: EncodedSample) -> TopK:
        """Return the knowledge of a sample."""
        return self.known[sample.id]

    @classmethod
    def extracted(cls, run: Run, model: LlamaForCausalLM, rows: Sequence[EncodedSample]) -> Known:
        """Ask a model, as `first extract` does."""
        top_k, reader = run.recipe.knowledge.top_k, readout.Reader(model)
        known: dict[str, TopK] = {}
        limit = shared_tokens.vocabulary(run, "student")
        with torch.inference_mode():
            for part in inference.batches(lengths_of(rows).tolist(), scoring.EXTRACTION_TOKENS):
                known |= scoring.top_k_of(reader, [rows[i] for i in part], top_k, limit)
        return cls(top_k, known)

    @classmethod
    def drawn(
        cls, run: Run, model: LlamaForCausalLM, rows: Sequence[EncodedSample], draws: int
    ) -> Known:
        """Draw tokens from what a model says, as `first extract` does with `knowledge.draws`."""
        reader, limit = readout.Reader(model), shared_tokens.shared_vocabulary(run)
        settings = scoring.DrawSettings(draws, run.recipe.seed)
        known: dict[str, TopK] = {}
        with torch.inference_mode():
            for part in inference.batches(lengths_of(rows).tolist(), scoring.EXTRACTION_TOKENS):
                known |= scoring.drawn_of(reader, [rows[i] for i in part], settings, limit)
        return cls(min(draws, limit), known)

    def at_prompts(self, rows: Sequence[EncodedSample]) -> Known:
        """Give each copy among the rows the knowledge of its original prompt."""
        return Known(self.top_k, {row.id: self.known[row.id.rpartition("/")[2]] for row in rows})

    @classmethod
    def mean(cls, each: Sequence[Known]) -> Known:
        """Return the mean of several teachers' knowledge of the same rows."""
        if len(each) == 1:
            return each[0]
        ids = each[0].known
        return cls(each[0].top_k, {id: mean_of([one.known[id] for one in each]) for id in ids})

    def stored(self, precision: codec.Precision) -> Known:
        """Round like the store."""
        ids, whole = list(self.known), TopK.concatenated(list(self.known.values()))
        grid = codec.grid_of(precision, self.top_k)
        log_probs, log_tail = codec.decode(
            codec.encode(whole.log_probs, whole.log_tail, grid), grid
        )
        rounded, first = {}, 0
        for id in ids:
            at = slice(first, first + len(self.known[id].log_tail))
            rounded[id] = TopK(whole.token_ids[at], log_probs[at], log_tail[at])
            first = at.stop
        return Known(self.top_k, rounded)


@dataclass
class World:
    """The data of one world, as firstcli prepares it."""

    run: Run

    @classmethod
    def of(cls, seed: int, overrides: Sequence[str] = ()) -> World:
        """Open the recipe with a seed of weights, order, laws, questions, answers and copies."""
        chosen = [f"seed={seed}", f"train.task.options.seed={seed}"]
        chosen += [f"evaluate.{i}.task.options.seed={seed}" for i in range(3)]
        return cls(open_run(Request(RECIPE, (*chosen, *overrides), quiet=True)))

    @cached_property
    def rows(self) -> list[EncodedSample]:
        """The N training samples, then their copies; copies of held-out prompts are left out."""
        training, task = self.run.training, self.run.recipe.train.task.build()
        perturb = calls.augmenter("perturb", Perturb.Options())
        made = list(copies_of(training.train, task.usage(), [perturb], self.run.recipe.seed))
        held_out = splits.among(made, splits.prompt_digests(training.validation))
        kept = [copy for copy, is_seen in zip(made, held_out, strict=True) if not is_seen]
        encoding = chat.encoding(self.run, "student", "copies")
        return [*inputs.training_rows(self.run, "student", "train"), *each_encoded(kept, encoding)]

    @property
    def samples(self) -> int:
        """The number of training samples."""
        return len(self.run.training.train)

    @cached_property
    def validation(self) -> Sequence[EncodedSample]:
        """The validation part, of which nothing has copies."""
        return inputs.training_rows(self.run, "student", "validation")

    def choice(self, copies: Sequence[str]) -> CopyChoice | None:
        """Return which rows an epoch consists of, for a model that learns from these copies."""
        if not copies:
            return None
        ids = [row.id for row in self.rows]
        others = [id if id.partition("/")[0] in copies else "" for id in ids[self.samples :]]
        return CopyChoice.of(ids[: self.samples], others, SHARE, self.run.recipe.seed)

    def taught(
        self, teachers: Sequence[soft_targets.Recalibration], arm: Arm, draws: int | None = None
    ) -> soft_targets.SoftTargetBuilder:
        """Return the soft targets of all rows.

        Args:
            teachers: their knowledge, each with its recalibrator; the mean of all is learned.
            arm: an arm of the recipe.
            draws: how many draws per position the knowledge consists of; None: it is the top k.
        """
        first, *further = teachers
        task = self.run.recipe.train.task.name
        return soft_targets.SoftTargetBuilder(
            arm, first.recalibrator, first.knowledge, self.rows, task, draws=draws, further=further
        )


def fitted(ref: Any, arm: Arm, world: World, known: Known) -> CheckedRecalibrator:
    """Fit a recalibrator at the answer positions of the validation part."""
    recalibrator: CheckedRecalibrator = ref.build()
    if recalibrator.needs_fit:
        parts = list(soft_targets.recalibrated_chunks(arm, world.validation, known))
        positions = soft_targets.Positions.joined(parts)
        rows = soft_targets.rows_of(arm, positions, world.run.recipe.train.task.name, {})
        recalibrator.fit(rows, positions.is_label)
    return recalibrator


def answered(run: Run, model: LlamaForCausalLM, evaluation: str) -> EvalRecords:
    """Let a model answer the questions of an evaluation, as `first eval` does."""
    questions = inputs.questions(run, "student", evaluation)
    reader = readout.Reader(model)
    log_probs: dict[str, list[float]] = {}
    with torch.inference_mode():
        lengths = [len(question.input_ids) for question in questions]
        for part in inference.batches(lengths, EVALUATION_TOKENS):
            log_probs |= candidate_log_probs(reader, [questions[i] for i in part])
    truth = [question.truth for question in questions if question.truth is not None]
    return EvalRecords.from_log_probs(
        ids=[question.id for question in questions],
        answers=[-1 if question.answer is None else question.answer for question in questions],
        log_probs=[log_probs[question.id] for question in questions],
        truth=truth if len(truth) == len(questions) else None,
    )


def measured(records: EvalRecords, bins: int) -> dict[str, float]:
    """Return the measures of the protocol; without a right answer, only the confidence."""
    confidence = records.confidence
    values = {"confidence": metrics.mean_confidence(confidence)}
    if records.answerable:
        p_right = records.p_right
        assert p_right is not None
        values |= {
            "accuracy": metrics.accuracy(records.correct),
            "ece": metrics.ece(confidence, records.correct, bins),
            "trust": metrics.trust(confidence, records.correct, bins),
            "ece_true": metrics.ece(confidence, p_right, bins),
            "accuracy_true": float(p_right.mean()),
            "nll": metrics.nll(records.probabilities, records.answer).value,
        }
    return values


def start(run: Run, role: Any, seed: int) -> LlamaForCausalLM:
    """Return new weights."""
    model = role_models.starting_model(run, role, "float32", seed)
    assert isinstance(model, LlamaForCausalLM)
    return model
