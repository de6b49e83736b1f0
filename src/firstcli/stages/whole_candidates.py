"""Score whole candidates: the log-probability of all their tokens, not of the first that differs.

Evaluation reads every question once, at its answer position. A candidate with more tokens also gets
a sequence, the prompt and the candidate, which is read once; a candidate of one token right after
the prompt needs none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from firstcli.data.encoded import IntArray
from firstcli.data.encoding import EncodedQuestion, EncodedSample
from firstcli.data.joint import MANY
from firstcli.data.sequences import LazySequence
from firstcli.errors import UserError
from firstcli.models import inference, readout
from firstcli.models.answers import EVALUATION_TOKENS, candidate_log_probs, target_log_probs
from firstcli.models.batching import HalvingBatches, run_batched
from firstcli.stages import inputs, role_models
from firstcli.workspace.run import Run, once_per_run
from firstcli.workspace.units import Role, Unit


class CandidateSequences(LazySequence[EncodedSample]):
    """A sequence for each candidate that needs one; its targets are the candidate's tokens."""

    def __init__(self, questions: Sequence[EncodedQuestion]) -> None:
        """Refer to the questions; a sequence is built on access."""
        self._questions = questions
        self._places = [
            (number, candidate)
            for number, question in enumerate(questions)
            for candidate, tokens in enumerate(question.candidates)
            if len(tokens) > 1
        ]
        self.indices = np.arange(len(self._places))

    def _item(self, number: int) -> EncodedSample:
        index, candidate = self._places[number]
        question = self._questions[index]
        tokens = np.array(question.candidates[candidate], np.int32)
        ids = np.concatenate([question.input_ids[: question.start], tokens])
        return EncodedSample(_id(question.id, candidate), ids, question.start, None)

    @property
    def lengths(self) -> IntArray:
        """The number of tokens that a model reads of each sequence: all but the last, (N,)."""
        questions = self._questions
        lengths = (
            questions[index].start + len(questions[index].candidates[candidate]) - 1
            for index, candidate in self._places
        )
        return np.fromiter(lengths, np.int64)


def _id(question: str, candidate: int) -> str:
    return f"{question}, candidate {candidate + 1}"


@once_per_run
def sequences(run: Run, role: Role, evaluation: str) -> CandidateSequences | None:
    """Return the sequences of an evaluation; None if one exceeds the model's context.

    A remote teacher has none either: it is asked for the first tokens only.

    Questions with many candidates would need a hundred times the work of their first tokens, so
    they have sequences only if `metrics.candidates` is `whole`.

    Raises:
        UserError: one does, and `metrics.candidates` is `whole`.
    """
    questions = inputs.questions(run, role, evaluation)
    if role_models.remote(run, role) is not None:
        if run.recipe.metrics.candidates == "whole":
            raise UserError(
                "metrics.candidates: a teacher that runs elsewhere is asked for the candidates' "
                "first tokens only; set it to first-token"
            )
        return None
    many = max(len(question.candidates) for question in questions) > MANY
    if many and run.recipe.metrics.candidates != "whole":
        return None
    found = CandidateSequences(questions)
    longest = inputs.context(run, role)
    too_long = np.flatnonzero(found.lengths > longest)
    if not len(too_long):
        return found
    problem = (
        f"evaluate '{evaluation}': {len(too_long)} candidates, such as '{found[too_long[0]].id}', "
        f"reach beyond the {role}'s context of {longest} tokens, so whole candidates cannot be "
        "scored"
    )
    if run.recipe.metrics.candidates == "whole":
        raise UserError(f"{problem}; shorten them, or set metrics.candidates: first-token")
    run.console.warn(f"{problem}; this evaluation only has metrics.candidates: first-token")
    return None


def response_log_probs(reader: readout.Reader, rows: Sequence[EncodedSample]) -> dict[str, float]:
    """Return the log-probability of each sample's targets, summed over its tokens, by id."""
    return {id: sum(tokens.tolist()) for id, tokens in target_log_probs(reader, rows).items()}


def log_probs_of(
    reader: readout.Reader, questions: Sequence[EncodedQuestion], halving: HalvingBatches
) -> dict[str, list[float]]:
    """Return the log-probability of each whole candidate of a batch of questions, by question id.

    Args:
        reader: the model.
        questions: the batch.
        halving: runs the batches of whole candidates, and halves those that do not fit.
    """
    first_tokens = halving.run(questions, partial(candidate_log_probs, reader))
    rows = CandidateSequences(questions)
    sums: dict[str, float] = {}
    for batch in inference.batches(rows.lengths.tolist(), EVALUATION_TOKENS):
        parts = [rows[i] for i in batch]
        sums |= halving.run(parts, partial(response_log_probs, reader))
    return {id: _whole(id, values, sums) for id, values in first_tokens.items()}


def _whole(id: str, first_tokens: Sequence[float], sums: Mapping[str, float]) -> list[float]:
    """Return the log-probabilities of a question's candidates; some have no sequence.

    Args:
        id: the question.
        first_tokens: the candidates' log-probabilities at the answer position.
        sums: the log-probabilities of sequences, by their ids.
    """
    return [sums.get(_id(id, index), value) for index, value in enumerate(first_tokens)]


def scored(
    run: Run,
    unit: Unit,
    reader: readout.Reader,
    first_tokens: Mapping[str, Sequence[float]],
    batch_tokens: int,
) -> list[list[float]] | None:
    """Return the log-probability of each whole candidate, one row per question of an evaluation.

    Args:
        run: the run.
        unit: the evaluation of one model.
        reader: the model.
        first_tokens: the candidates' log-probabilities at the answer position, by question; those
            of whole candidates without a sequence.
        batch_tokens: maximum number of tokens per batch, padding included.

    Returns:
        The rows; None if a candidate is too long for the model.
    """
    rows = sequences(run, unit.role, unit.evaluation)
    if rows is None:
        return None
    sums: dict[str, float] = {}
    if len(rows):
        title, score = f"{unit.key}, whole candidates", partial(response_log_probs, reader)
        sums = run_batched(
            run.console, title, "candidates", rows, rows.lengths, batch_tokens, score
        )
    questions = inputs.questions(run, unit.role, unit.evaluation)
    return [_whole(question.id, first_tokens[question.id], sums) for question in questions]
