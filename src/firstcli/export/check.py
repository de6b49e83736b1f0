"""Check an exported folder: reload it with plain transformers and compare it with the run.

Nothing here uses the readout, the batches or the post-hoc recalibrators of firstcli: one question
after another goes through `AutoTokenizer` and `AutoModelForCausalLM`, as in a user's own program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from firstcli import metrics
from firstcli.api import Dtype, FloatArray
from firstcli.data.encoding import EncodedQuestion, encode_questions
from firstcli.errors import UserError
from firstcli.export.source import ExportSource
from firstcli.metrics.records import EvalRecords
from firstcli.stages.chat import encoding_with
from firstcli.workspace.run import Run
from firstcli.workspace.units import Model, records_path

MOST_QUESTIONS = 200
EXACT = 1e-5
"""Largest difference between two float32 confidences that only rounding explains."""
ROUNDED = 0.02
"""Largest mean difference of confidences that the rounding of half-precision weights explains."""
LOG_EXACT, LOG_ROUNDED = 1e-4, 0.2
"""Largest difference of a token's log-probability, relative to their spread over the vocabulary, in
float32 and in half precision. Unlike probabilities, it does not become small if T is large."""
PROBE_TEXTS = (
    "The answer is",
    "Question: Which of these is a fruit?\nAnswer:",
    "Once upon a time there was a small model that knew when it may be wrong.",
)
"""Texts that are scored where there are no questions."""


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """How an exported folder compares with the model that it was made from."""

    evaluation: str | None
    """The evaluation whose questions were scored; None if only probe texts were."""
    count: int
    """Number of questions or texts."""
    largest: float
    """Largest difference of a confidence, or of a next token's log-probability in probe texts."""
    mean: float
    ece: float | None = None
    """ECE of the exported folder on these questions."""
    recorded_ece: float | None = None
    """ECE of the run's records of the same questions."""
    note: str | None = None


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out questions of a run, and the run's answers to them."""

    evaluation: str
    questions: list[EncodedQuestion]
    recorded: EvalRecords
    bins: int


def load_plain(folder: Path, **options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a folder as its users do, on a GPU if there is one."""
    options = {"local_files_only": True, **options}
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    if torch.cuda.is_available():
        model.to("cuda")  # type: ignore[arg-type]  # a decorator hides its signature
    return model.eval(), tokenizer


@torch.inference_mode()
def next_log_probs(model: PreTrainedModel, input_ids: Sequence[int]) -> Tensor:
    """Return the log-probability of every next token, (V,), from float32 logits."""
    ids = torch.tensor([list(input_ids)], device=model.device)
    logits: Tensor = model(input_ids=ids).logits
    return logits[0, -1].float().log_softmax(-1).cpu()


def held_out(run: Run, model: Model, tokenizer: PreTrainedTokenizerBase) -> HeldOut | None:
    """Return questions that the run has recorded answers to; None if it has none.

    Args:
        run: the run.
        model: the model whose answers count.
        tokenizer: the exported tokenizer.
    """
    for section in run.recipe.evaluate:
        path = records_path(run.folder, section.name, model)
        if not path.is_file():
            continue
        stored = EvalRecords.load(path)
        samples = {sample.id: sample for sample in run.evaluation_samples(section.name)}
        known = [id for id in stored.ids if id in samples]
        chosen = known[:: -(-len(known) // MOST_QUESTIONS) or 1]
        if chosen:
            where = f"evaluate '{section.name}' (exported tokenizer)"
            encoding = encoding_with(run, tokenizer, where, section.name)
            questions = encode_questions([samples[id] for id in chosen], encoding)
            recorded = stored.only(set(chosen))
            return HeldOut(section.name, questions, recorded, run.recipe.metrics.bins)
    return None


def answers(model: PreTrainedModel, questions: Sequence[EncodedQuestion]) -> EvalRecords:
    """Return a model's answers, by the candidates' tokens at the answer position."""
    log_probs = [
        next_log_probs(model, question.input_ids.tolist())[list(question.candidate_ids)].double()
        for question in questions
    ]
    return EvalRecords.from_log_probs(
        ids=[question.id for question in questions],
        answers=[-1 if question.answer is None else question.answer for question in questions],
        log_probs=[row.numpy() for row in log_probs],
    )


def check(folder: Path, source: ExportSource, dtype: Dtype) -> SelfCheck:
    """Compare an exported folder with the run's records, or with the original weights.

    Args:
        folder: the exported folder.
        source: what it was made from.
        dtype: type of the exported weights.

    Raises:
        UserError: the folder does not predict what it should.
    """
    model, tokenizer = load_plain(folder)
    known, note = None, None
    if source.run and source.model:
        try:
            known = held_out(source.run, source.model, tokenizer)
        except UserError as error:  # data that has moved, for example
            note = f"the run's questions cannot be used: {error}"
    if known is None:
        return replace(_check_texts(model, tokenizer, source, dtype), note=note)
    found = answers(model, known.questions)
    recorded = known.recorded
    differences = np.abs(found.confidence - recorded.confidence)
    problem = _problem(differences, dtype)
    if problem and dtype == "float32":  # whether the records were made in half precision
        original = _originals(source, known)
        if problem := _problem(np.abs(found.confidence - original), dtype):
            raise _wrong(f"on questions of {known.evaluation}, {problem}")
        if problem := _problem(differences, "bfloat16"):
            raise UserError(
                f"{_records_of(source, known)}: {problem}; these records are not of this model's "
                "weights; run `first eval` with the recipe again"
            )
        note = (
            "the folder agrees with the student's weights to "
            f"{np.abs(found.confidence - original).max():.1g}; the run's records were made in a "
            "different precision or on a different device"
        )
    elif problem:
        raise _wrong(f"on questions of {known.evaluation}, {problem}")
    return replace(_compared(found, known), note=note)


def _compared(found: EvalRecords, known: HeldOut) -> SelfCheck:
    differences = np.abs(found.confidence - known.recorded.confidence)
    return SelfCheck(
        known.evaluation,
        len(found),
        float(differences.max()),
        float(differences.mean()),
        _ece(found, known.bins),
        _ece(known.recorded, known.bins),
    )


def check_gguf(file: Path, source: ExportSource) -> SelfCheck:
    """Measure a GGUF file with transformers, which turns its weights back into float32.

    Args:
        file: the file.
        source: what it was made from.

    Raises:
        UserError: transformers cannot read the file, or there are no questions.
    """
    try:
        model, tokenizer = load_plain(file.parent, gguf_file=file.name)
    except Exception as error:  # of an architecture or a type that transformers does not know
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"transformers cannot read {file} ({reason})") from error
    known = source.run and source.model and held_out(source.run, source.model, tokenizer)
    if not known:
        raise UserError("there are no recorded questions")
    return _compared(answers(model, known.questions), known)


def _records_of(source: ExportSource, known: HeldOut) -> Path:
    """Return the file of the answers that an export is compared with."""
    assert source.run and source.model
    return records_path(source.run.folder, known.evaluation, source.model)


def _originals(source: ExportSource, known: HeldOut) -> FloatArray:
    """Return the confidences of the original weights, divided by T outside the model."""
    original, _ = load_plain(source.folder, dtype=torch.float32)
    plain = answers(original, known.questions).log_probs / (source.temperature or 1.0)
    odds = np.exp(plain - plain.max(axis=1, keepdims=True))
    return np.asarray(1.0 / odds.sum(axis=1))


def _check_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: ExportSource, dtype: Dtype
) -> SelfCheck:
    """Compare the probabilities of all next tokens in some texts with the original weights."""
    original, own = load_plain(source.folder, dtype=torch.float32)
    temperature, bound = source.temperature or 1.0, LOG_EXACT if dtype == "float32" else LOG_ROUNDED
    differences = []
    for text in PROBE_TEXTS:
        ids = tokenizer(text)["input_ids"]
        if ids != own(text)["input_ids"]:
            raise _wrong("its tokenizer encodes texts differently")
        expected = (next_log_probs(original, ids) / temperature).log_softmax(-1)
        apart = (next_log_probs(model, ids) - expected).abs()
        if not apart.max() <= bound * expected.std():
            raise _wrong(f"in probe texts, log-probabilities differ by up to {apart.max():.1g}")
        differences.append(apart.double().numpy())
    every = np.concatenate(differences)
    return SelfCheck(None, len(PROBE_TEXTS), float(every.max()), float(every.mean()))


def _problem(differences: FloatArray, dtype: Dtype) -> str | None:
    """Return what is wrong with the differences of probabilities; NaN always is."""
    largest, mean = float(differences.max()), float(differences.mean())
    if dtype == "float32" and not largest <= EXACT:
        return f"probabilities differ by up to {largest:.1g}, more than {EXACT:g}"
    if dtype != "float32" and not mean <= ROUNDED:
        return f"probabilities differ by {mean:.2g} on average, more than {ROUNDED:g}"
    return None


def _wrong(problem: str) -> UserError:
    return UserError(
        f"the exported folder failed its check and was deleted: {problem}; report this with the "
        "model's architecture"
    )


def _ece(records: EvalRecords, bins: int) -> float | None:
    if not records.answerable:
        return None
    return metrics.ece(records.confidence, records.correct, bins)
