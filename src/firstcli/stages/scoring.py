"""Run models over samples: a teacher's top-k probabilities, and the candidates of questions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from firstcli.api import BoolArray, TopKRows
from firstcli.checkpoints.placement import input_device
from firstcli.data.encoded import EncodedStore, counts_of, lengths_of
from firstcli.data.encoding import EncodedQuestion, EncodedSample, answer_only
from firstcli.data.sequences import Selected
from firstcli.errors import UserError, shortened
from firstcli.knowledge import draws, store
from firstcli.knowledge.candidates import CandidateTokens, top_candidates
from firstcli.knowledge.top_k import TopK
from firstcli.metrics.records import EvalRecords
from firstcli.models import inference, readout
from firstcli.models.answers import EVALUATION_TOKENS, candidate_log_probs
from firstcli.models.batching import HalvingBatches, free_memory, run_batched
from firstcli.runtime import distributed
from firstcli.stages import inputs, remote, role_models, shared_tokens, whole_candidates
from firstcli.training.soft_targets import candidate_indices
from firstcli.workspace.run import Run, once_per_run
from firstcli.workspace.units import Part, Unit

EXTRACTION_TOKENS = 4096
"""Tokens per batch of extraction, padding included."""


@dataclass(frozen=True, slots=True)
class ShardSamples:
    """The samples of one shard, and the teacher that scores them."""

    rows: Sequence[EncodedSample]
    fold: int | None = None
    """The fold whose teacher has not seen the samples; None for the teacher itself."""


@once_per_run
def shards_of(run: Run, unit: Unit) -> list[ShardSamples]:
    """Return the content of every shard of a part; it depends on the data alone."""
    if unit.part != "out-of-fold":
        rows = inputs.knowledge_rows(run, unit.part)
        return [ShardSamples(samples) for samples in split_into_shards(rows)]
    folds = range(1, (run.recipe.knowledge.folds or 0) + 1)
    return [
        ShardSamples(samples, fold)
        for fold in folds
        for samples in split_into_shards(inputs.rows_of_fold(run, fold, seen=False))
    ]


def split_into_shards(rows: Sequence[EncodedSample]) -> list[Sequence[EncodedSample]]:
    """Cut the samples, longest first, into shards; the result depends on the data alone."""
    lengths, counts = lengths_of(rows), counts_of(rows)
    ordered = np.argsort(-lengths, kind="stable")
    starts = np.flatnonzero(np.diff(lengths[ordered], prepend=-1))
    for same_length in np.split(ordered, starts[1:]):  # views; ids order samples of one length
        same_length[:] = sorted(same_length.tolist(), key=lambda index: rows[index].id)
    cuts = []
    positions = tokens = 0
    for place, index in enumerate(ordered.tolist()):
        positions += counts[index]
        tokens += lengths[index]
        if positions > store.SHARD_POSITIONS or tokens > store.SHARD_TOKENS:
            cuts.append(place)
            positions, tokens = counts[index], lengths[index]
    return [Selected(rows, part) for part in np.split(ordered, cuts) if len(part)]


@dataclass(frozen=True, slots=True)
class Asking:
    """How a remote teacher is asked; see `TeacherScorer.__call__`."""

    top_k: int
    advance: Callable[[int], None]
    answers: Path | None


@dataclass(frozen=True, slots=True)
class DrawSettings:
    """How tokens are drawn from the teacher's distribution."""

    draws: int
    seed: int


class TeacherScorer(ABC):
    """Scores samples with the teacher or a fold's teacher; one of them is in memory at a time."""

    def __init__(self, run: Run, unit: Unit) -> None:
        """Load nothing yet; `unit` is an extraction."""
        self._run, self._unit = run, unit
        self._batching = run.recipe.knowledge.batching
        self._fold: int | None = None
        self._reader: readout.Reader | None = None
        self.halving = HalvingBatches(run.console.warn, unit.key)

    def __call__(
        self,
        shard: ShardSamples,
        top_k: int,
        advance: Callable[[int], None] = lambda _: None,
        only: Container[str] | None = None,
        answers: Path | None = None,
    ) -> dict[str, TopK]:
        """Return the knowledge of a shard's samples, by id.

        Samples are scored in their usual batches, because batch composition affects the last bits.

        Args:
            shard: the samples and their teacher.
            top_k: tokens to keep at each position.
            advance: is called with the number of samples of each batch, or of a remote teacher,
                with the number of positions of each sample.
            only: ids of the samples to return; None for all.
            answers: the file that keeps the answers of a remote teacher.
        """
        if role_models.remote(self._run, "teacher") is not None:
            rows = [row for row in shard.rows if only is None or row.id in only]
            return self._asked(rows, Asking(top_k, advance, answers))
        knowledge: dict[str, TopK] = {}
        for batch in inference.batches(lengths_of(shard.rows).tolist(), EXTRACTION_TOKENS):
            rows = [shard.rows[i] for i in batch]
            if only is None or any(row.id in only for row in rows):
                scored = self._score(self._reader_of(shard.fold), rows, top_k)
                knowledge |= {id: top for id, top in scored.items() if only is None or id in only}
            advance(len(rows))
        return knowledge

    @abstractmethod
    def _asked(self, rows: Sequence[EncodedSample], asking: Asking) -> dict[str, TopK]:
        """Return the knowledge of samples from a remote teacher, by id."""

    @abstractmethod
    def _score(
        self, reader: readout.Reader, rows: Sequence[EncodedSample], top_k: int
    ) -> dict[str, TopK]:
        """Return the knowledge of one batch, by id."""

    def _reader_of(self, fold: int | None) -> readout.Reader:
        if self._reader is None or self._fold != fold:
            self._reader = None
            free_memory()
            model = role_models.teacher(self._run, fold, self._unit.teacher_seed)
            if self._batching == "packed":
                role_models.require_packing(self._run, "teacher", model, "knowledge")
            self._reader, self._fold = readout.Reader(model, self._run.console.say), fold
        return self._reader


class TokenScorer(TeacherScorer):
    """Scores the tokens at every supervised position."""

    def _asked(self, rows: Sequence[EncodedSample], asking: Asking) -> dict[str, TopK]:
        return remote.knowledge(self._run, rows, asking.top_k, asking.advance, asking.answers)

    def _score(
        self, reader: readout.Reader, rows: Sequence[EncodedSample], top_k: int
    ) -> dict[str, TopK]:
        limit = shared_tokens.shared_vocabulary(self._run)
        return self.halving.run(
            rows, lambda part: top_k_of(reader, part, top_k, limit, self._batching)
        )


class DrawScorer(TokenScorer):
    """Draws tokens at every supervised position; `top_k` is their number of slots."""

    def _score(
        self, reader: readout.Reader, rows: Sequence[EncodedSample], top_k: int
    ) -> dict[str, TopK]:
        settings, limit = drawing_of(self._run), shared_tokens.shared_vocabulary(self._run)
        return self.halving.run(
            rows, lambda part: drawn_of(reader, part, settings, limit, self._batching)
        )


class CandidateScorer(TeacherScorer):
    """Scores whole candidates under the teacher's tokenizer, one position per question."""

    def _asked(self, rows: Sequence[EncodedSample], asking: Asking) -> dict[str, TopK]:
        questions = [self._questions[row.id] for row in rows]
        log_probs = remote.whole_candidates(self._run, questions, self._unit.key, asking.answers)
        asking.advance(len(rows))
        return {id: top_candidates(values, asking.top_k) for id, values in log_probs.items()}

    @cached_property
    def _questions(self) -> dict[str, EncodedQuestion]:
        every = inputs.candidate_questions(self._run, self._unit.part)
        return {question.id: question for question in every}

    def _score(
        self, reader: readout.Reader, rows: Sequence[EncodedSample], top_k: int
    ) -> dict[str, TopK]:
        questions = [self._questions[row.id] for row in rows]
        log_probs = whole_candidates.log_probs_of(reader, questions, self.halving)
        every = np.array([np.isfinite(values).all() for values in log_probs.values()])
        if not every.all():
            raise _not_finite([id for id, good in zip(log_probs, every, strict=True) if not good])
        return {id: top_candidates(values, top_k) for id, values in log_probs.items()}


def scorer_of(run: Run, unit: Unit) -> TeacherScorer:
    """Return what scores an extraction's samples."""
    if run.recipe.knowledge.over_candidates:
        return CandidateScorer(run, unit)
    return TokenScorer(run, unit) if run.recipe.knowledge.draws is None else DrawScorer(run, unit)


def drawing_of(run: Run) -> DrawSettings:
    """Return how tokens are drawn in a run with `knowledge.draws`."""
    assert run.recipe.knowledge.draws is not None
    return DrawSettings(run.recipe.knowledge.draws, run.recipe.seed)


def _not_finite(ids: Sequence[str]) -> UserError:
    return UserError(
        f"the teacher's output is not finite for {len(ids)} samples, such as "
        f"{shortened(ids, 3)}; check its weights, or try model.options.dtype: float32"
    )


def top_k_of(
    reader: readout.Reader,
    rows: Sequence[EncodedSample],
    top_k: int,
    limit: int,
    batching: inference.Batching = "padded",
) -> dict[str, TopK]:
    """Run a model over one batch and keep the top k of each supervised position.

    Args:
        reader: the model.
        rows: samples, of any length.
        top_k: tokens to keep at each position.
        limit: number of token ids that may be kept, counted from 0.
        batching: how the batch holds its samples.

    Returns:
        The knowledge of every sample, by id.

    Raises:
        UserError: the model's output is not finite.
    """
    top = _read(reader, rows, batching, lambda scores: readout.top_k(scores, top_k, limit))
    token_ids, log_probs, log_tail = readout.unpack(top)
    _require_finite(rows, log_probs)
    ends = np.cumsum([len(row.targets) for row in rows])
    return {
        row.id: TopK(
            token_ids[end - len(row.targets) : end].numpy().astype(np.int32),
            log_probs[end - len(row.targets) : end].numpy(),
            log_tail[end - len(row.targets) : end].numpy(),
        )
        for row, end in zip(rows, ends, strict=True)
    }


def drawn_of(
    reader: readout.Reader,
    rows: Sequence[EncodedSample],
    settings: DrawSettings,
    limit: int,
    batching: inference.Batching = "padded",
) -> dict[str, TopK]:
    """Run a model over one batch and draw tokens at each supervised position.

    Args:
        reader: the model.
        rows: samples, of any length.
        settings: how tokens are drawn.
        limit: number of token ids that may be drawn, counted from 0.
        batching: how the batch holds its samples.

    Returns:
        The drawn tokens of every sample with their weights, by id.

    Raises:
        UserError: the model's output is not finite.
    """
    counts = [len(row.targets) for row in rows]
    numbers = [
        draws.uniforms(row.id, count, settings.draws, settings.seed)
        for row, count in zip(rows, counts, strict=True)
    ]
    points = torch.from_numpy(np.concatenate(numbers))  # (N, draws)
    found = _read(reader, rows, batching, lambda scores: readout.drawn(scores, points, limit))
    _require_finite(rows, found)
    width = min(settings.draws, limit)
    parts = np.split(found.numpy().astype(np.int64), np.cumsum(counts)[:-1])
    return {row.id: draws.counted(part, width) for row, part in zip(rows, parts, strict=True)}


def _read(
    reader: readout.Reader,
    rows: Sequence[EncodedSample],
    batching: inference.Batching,
    read: readout.Readout,
) -> torch.Tensor:
    """Return a readout at the supervised positions of a batch, (N, ...), sample after sample.

    Args:
        reader: the model.
        rows: the samples.
        batching: how the batch holds its samples.
        read: the readout.
    """
    device = input_device(reader.model)
    collated = inference.collated(rows, batching)
    batch = {name: value.to(device) for name, value in collated.items()}
    return reader(
        batch["input_ids"],
        batch.get("attention_mask"),
        batch["rows"],
        batch["columns"],
        read,
        batch.get("position_ids"),
    ).cpu()


def _require_finite(rows: Sequence[EncodedSample], values: torch.Tensor) -> None:
    """Check the values (N, ...) at the supervised positions of a batch."""
    if torch.isfinite(values).all():
        return
    counts = torch.tensor([len(row.targets) for row in rows])
    sample = torch.arange(len(rows)).repeat_interleave(counts)
    bad = {rows[int(i)].id for i in sample[~torch.isfinite(values).all(-1)]}
    raise _not_finite(sorted(bad))


@torch.inference_mode()
def answer_rows(
    run: Run,
    unit: Unit,
    rows: EncodedStore,
    candidates: CandidateTokens,
    answers: Path | None = None,
) -> tuple[TopKRows, BoolArray]:
    """Return a model's top k at the answer positions, and which token is the label, (N, k).

    Args:
        run: the run.
        unit: the unit whose model answers.
        rows: samples with an answer position.
        candidates: the tokens of each sample's candidates, if the recalibrator needs them.
        answers: the file that keeps the answers of a remote teacher.
    """
    limit = shared_tokens.vocabulary(run, unit.role)
    top_k = min(run.recipe.knowledge.top_k, limit)
    is_remote = role_models.remote(run, unit.role) is not None
    if is_remote:
        asked = [answer_only(row) for row in rows]
        with run.console.progress(unit.key, len(asked), "positions") as advance:
            knowledge = distributed.by_first(
                lambda: remote.knowledge(run, asked, top_k, advance, answers)
            )
    else:
        reader = readout.Reader(role_models.model(run, unit.model), run.console.say)
        score = partial(top_k_of, reader, top_k=top_k, limit=limit)
        knowledge = run_batched(
            run.console, unit.key, "samples", rows, lengths_of(rows), EXTRACTION_TOKENS, score
        )
    topk, token_ids, targets, numbers = [], [], [], []
    for row in rows:
        assert row.answer_position is not None
        top, position = knowledge[row.id], row.answer_position - row.start
        place = 0 if is_remote else position
        topk.append(np.exp(top.log_probs[place], dtype=np.float64))
        token_ids.append(top.token_ids[place])
        targets.append(row.input_ids[row.answer_position])
        numbers.append(position)
    samples, ids, probabilities = [row.id for row in rows], np.array(token_ids), np.array(topk)
    top_k_rows = TopKRows(
        topk=probabilities,
        mass=probabilities.sum(axis=1),
        mass_mode="teacher",
        candidate=candidate_indices(ids, samples, candidates),
        token_ids=ids.astype(np.int64),
        sample_ids=samples,
        position=np.array(numbers, np.int64),
        is_answer=np.ones(len(rows), np.bool_),
        task=run.recipe.train.task.name,
    )
    return top_k_rows, ids == np.array(targets)[:, None]


@torch.inference_mode()
def answered(run: Run, unit: Unit, answers: Path | None = None) -> EvalRecords:
    """Run a model over all questions of an evaluation.

    `answers` is the file that keeps the answers of a remote teacher.
    """
    questions = inputs.questions(run, unit.role, unit.evaluation)
    whole = None
    if role_models.remote(run, unit.role) is not None:
        log_probs = remote.candidate_log_probs(run, questions, unit.key, answers)
    else:
        reader = readout.Reader(role_models.model(run, unit.model), run.console.say)
        log_probs = _first_tokens(run, unit, reader, questions)
        whole = whole_candidates.scored(run, unit, reader, log_probs, EVALUATION_TOKENS)
    groups = {sample.id: sample.group for sample in run.evaluation_samples(unit.evaluation)}
    return _records(questions, log_probs, whole, [groups[question.id] for question in questions])


@torch.inference_mode()
def answered_part(run: Run, unit: Unit, part: Part, answers: Path | None = None) -> EvalRecords:
    """Run a model over the questions of a part of the training data, without whole candidates.

    Args:
        run: the run.
        unit: the unit whose model answers.
        part: the questions.
        answers: the file that keeps the answers of a remote teacher.
    """
    questions = inputs.part_questions(run, unit.role, part)
    if role_models.remote(run, unit.role) is not None:
        return _records(questions, remote.candidate_log_probs(run, questions, unit.key, answers))
    reader = readout.Reader(role_models.model(run, unit.model), run.console.say)
    return _records(questions, _first_tokens(run, unit, reader, questions))


def _first_tokens(
    run: Run, unit: Unit, reader: readout.Reader, questions: Sequence[EncodedQuestion]
) -> dict[str, list[float]]:
    """Return the candidates' log-probabilities at the answer position, by sample id."""
    lengths = np.array([len(question.input_ids) for question in questions])
    score = partial(candidate_log_probs, reader)
    return run_batched(
        run.console, unit.key, "questions", questions, lengths, EVALUATION_TOKENS, score
    )


def _records(
    questions: Sequence[EncodedQuestion],
    log_probs: Mapping[str, list[float]],
    whole: list[list[float]] | None = None,
    groups: Sequence[str | None] | None = None,
) -> EvalRecords:
    truths = [question.truth for question in questions]
    known = [truth for truth in truths if truth is not None]
    return EvalRecords.from_log_probs(
        ids=[question.id for question in questions],
        answers=[-1 if question.answer is None else question.answer for question in questions],
        log_probs=[log_probs[question.id] for question in questions],
        whole=whole,
        truth=known if len(known) == len(truths) else None,
        groups=groups,
    )
