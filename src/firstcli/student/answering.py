"""Let a student choose between candidates: the same encoding, readout and recalibration as `eval`.

A question's probabilities come from one forward pass. Rows of similar length share a batch, so the
order of the work differs from the order of the rows; results are returned in the order of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from firstcli.api import FloatArray, Sample
from firstcli.data.encoding import EncodedQuestion, encode_questions
from firstcli.errors import UserError
from firstcli.plugins.samples import sample_problem
from firstcli.student.model import LoadedModel
from firstcli.student.rows import windows
from firstcli.tasks.tables import TableRow
from firstcli.tasks.usage import BuiltPrompt, built_prompt


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """The answers to N rows with at most C candidates each."""

    labels: list[str | None]  # N: the most likely answer; None where there is an error
    confidences: FloatArray  # (N,) its probability among the candidates; NaN where there is none
    probabilities: FloatArray  # (N, C) of each candidate; NaN beyond a row's own candidates
    candidates: list[tuple[str, ...]]  # N: what the columns of `probabilities` stand for
    errors: list[str | None]  # N: why a row could not be answered

    def __len__(self) -> int:
        return len(self.labels)

    def ranked(self, row: int) -> list[tuple[str, float]]:
        """Return a row's candidates and their probabilities, the most likely first."""
        probabilities = self.probabilities[row, : len(self.candidates[row])]
        order = np.argsort(-probabilities, kind="stable")
        names = self.candidates[row]
        return [(names[i], float(probabilities[i])) for i in order]

    @classmethod
    def joined(cls, parts: Sequence[Predictions]) -> Predictions:
        """Return the answers of several windows as one."""
        width = max((part.probabilities.shape[1] for part in parts), default=0)
        padded = [
            np.pad(
                part.probabilities,
                ((0, 0), (0, width - part.probabilities.shape[1])),
                constant_values=np.nan,
            )
            for part in parts
        ]
        return cls(
            labels=[label for part in parts for label in part.labels],
            confidences=np.concatenate([np.empty(0), *(part.confidences for part in parts)]),
            probabilities=np.concatenate([np.empty((0, width)), *padded]),
            candidates=[names for part in parts for names in part.candidates],
            errors=[error for part in parts for error in part.errors],
        )


def answered(loaded: LoadedModel, rows: Sequence[TableRow], batch_size: int | None) -> Predictions:
    """Answer a window of rows; those that cannot be answered have an error each.

    Args:
        loaded: the student.
        rows: the rows.
        batch_size: rows per batch; None: as many as have 8192 tokens together.
    """
    import torch

    from firstcli.metrics.records import EvalRecords
    from firstcli.recalibration.candidates import recalibrated

    errors: list[str | None] = [None] * len(rows)
    built = built_prompts(loaded, rows, errors)
    questions = _encoded(loaded, built, errors)
    with torch.inference_mode():
        log_probs = _log_probs(loaded, questions, batch_size)
    for id, values in log_probs.items():
        if not np.isfinite(values).all():
            errors[int(id)] = "the student's output is not finite; try dtype float32"
    kept = [i for i in range(len(rows)) if errors[i] is None]
    width = max((len(built[i].candidates) for i in kept), default=0)
    labels: list[str | None] = [None] * len(rows)
    confidences, probabilities = np.full(len(rows), np.nan), np.full((len(rows), width), np.nan)
    if kept:
        records = EvalRecords.from_log_probs(
            [str(i) for i in kept], [-1] * len(kept), [log_probs[str(i)] for i in kept]
        )
        if loaded.recalibrator is not None:
            records = recalibrated(records, loaded.recalibrator, loaded.usage.task)
        confidences[kept] = records.confidence
        chosen = records.probabilities  # (K, W), 0 beyond a row's own candidates
        inside = np.arange(chosen.shape[1]) < records.count[:, None]
        probabilities[kept] = np.where(inside, chosen, np.nan)
        for i, best in zip(kept, records.prediction.tolist(), strict=True):
            labels[i] = built[i].names[best]
    names = [built[i].names if errors[i] is None else () for i in range(len(rows))]
    return Predictions(labels, confidences, probabilities, names, errors)


def built_prompts(
    loaded: LoadedModel, rows: Sequence[TableRow], errors: list[str | None]
) -> dict[int, BuiltPrompt]:
    """Return the prompt of each row by its number; note in `errors` why others have none."""
    built = {}
    for number, row in enumerate(rows):
        try:
            built[number] = built_prompt(loaded.usage, row)
        except UserError as error:
            errors[number] = without_place(str(error), row.where)
    return built


def without_place(message: str, where: str) -> str:
    """Return a message about a row without the row's place, which is known otherwise."""
    return message.removeprefix(f"{where}: ")


def too_long(tokens: int, context: float) -> str | None:
    """Return the error of a text that exceeds a model's context, if it does."""
    if tokens <= context:
        return None
    return f"the text is too long: {tokens} tokens, but the student reads {context:.0f}"


def _encoded(
    loaded: LoadedModel, built: dict[int, BuiltPrompt], errors: list[str | None]
) -> list[EncodedQuestion]:
    """Encode the questions; note in `errors` which cannot be encoded or are too long."""
    samples = []
    for number, each in built.items():
        sample = Sample.question(each.prompt, each.candidates, None, id=str(number))
        if problem := sample_problem(sample):
            errors[number] = problem
        else:
            samples.append(sample)
    questions = []
    for question in _each_encoded(loaded, samples, errors):
        number = int(question.id)
        errors[number] = too_long(len(question.input_ids), loaded.context)
        if errors[number] is None:
            questions.append(question)
    return questions


def _each_encoded(
    loaded: LoadedModel, samples: Sequence[Sample], errors: list[str | None]
) -> Iterator[EncodedQuestion]:
    """Encode all at once, or if one has a mistake, one by one, so that it concerns no other."""
    where = "the row"
    encoding = loaded.encoding(where)
    try:
        yield from encode_questions(samples, encoding)
        return
    except UserError:
        pass
    for sample in samples:
        try:
            yield from encode_questions([sample], encoding)
        except UserError as error:
            text = str(error).splitlines()[0]
            errors[int(sample.id or 0)] = text.removeprefix(f"{where}: sample '{sample.id}': ")


def _log_probs(
    loaded: LoadedModel, questions: Sequence[EncodedQuestion], batch_size: int | None
) -> dict[str, list[float]]:
    """Return the candidates' log-probabilities in the vocabulary, by the row's number."""
    from firstcli.models.answers import EVALUATION_TOKENS, candidate_log_probs
    from firstcli.models.batching import HalvingBatches
    from firstcli.models.inference import batches

    halving = HalvingBatches(lambda _: None, "answering")
    score = partial(candidate_log_probs, loaded.reader)
    lengths = [len(question.input_ids) for question in questions]
    results: dict[str, list[float]] = {}
    for batch in batches(lengths, EVALUATION_TOKENS):
        for part in windows(batch, batch_size or len(batch)):
            results |= halving.run([questions[i] for i in part], score)
    return results
