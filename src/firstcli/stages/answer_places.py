"""Where a student's answer is read after the first steps of its explanation.

The text is the question, what the student wrote up to the end of these steps, and the beginning of
the sentence with the answer, in the form of the task's responses. With candidates, it ends where
they differ. Otherwise the student's own answer follows, whose every token it could have left for
another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from firstcli.api import ExplanationForm, FloatArray, IntArray, Sample, UserError
from firstcli.data.encoding import Encoding
from firstcli.data.joint import decisive
from firstcli.data.reasoning import answer_sentences
from firstcli.models import branches, readout
from firstcli.models.branches import Branch, Generated

OTHERS = 5
"""The likeliest other tokens that are told apart at each token of a free answer."""
_STAND_INS = ("#", "@")
"""Answers that differ from each other and from all others in their first token."""


@dataclass(frozen=True, slots=True)
class AnswerPlace:
    """A text after which the answer is read."""

    input_ids: list[int]
    """The tokens before the answer."""
    candidates: tuple[int, ...]
    """The token of each candidate that follows; empty for free answers."""
    path: tuple[int, ...]
    """The tokens of a free answer and of what closes its sentence; empty if there is no answer."""

    @property
    def length(self) -> int:
        """Tokens with the answer."""
        return len(self.input_ids) + max(len(self.path), 1)


class AnswerPlaces:
    """Finds the places of questions."""

    def __init__(self, encoding: Encoding, form: ExplanationForm | None) -> None:
        """Prepare for questions without labels.

        Args:
            encoding: how the student reads them.
            form: how responses are made; None if they are an answer alone.
        """
        self.encoder = encoding.encoder
        self._where, self._form = encoding.where, form

    def __call__(self, texts: Sequence[tuple[Sample, str, str | None]]) -> list[AnswerPlace]:
        """Return the place of each question, given a text, and the student's answer, if free.

        Args:
            texts: questions, what stands between each and the sentence with the answer, and the
                student's answer; None if it has none.

        Raises:
            UserError: candidates have the same token.
        """
        samples = [self._sample(*text) for text in texts]
        places = []
        for joint, (question, _, answer) in zip(self.encoder(samples), texts, strict=True):
            responses = [ids for ids, _ in joint.responses]
            position, tokens = decisive(responses, 1)
            before = list(responses[0][:position])
            if not question.candidates:
                ids, length = joint.responses[0]
                path = () if answer is None else tuple(ids[position:length])
                places.append(AnswerPlace(before, (), path))
                continue
            if len({*tokens}) < len(tokens):
                raise UserError(
                    f"{self._where}: sample '{question.id}': two candidates have the same token "
                    "after the student's explanation; let them begin with different words"
                )
            places.append(AnswerPlace(before, tokens, ()))
        return places

    def _sample(self, question: Sample, prefix: str, answer: str | None) -> Sample:
        """Return a sample whose candidates first differ where the answer is read."""
        form = self._form
        if question.candidates:
            sentences = question.candidates if form is None else answer_sentences(question, form)
        elif form is not None:
            own = _STAND_INS[0] if answer is None else answer
            other = next(text for text in _STAND_INS if text != own[:1])
            sentences = (form.sentence(own), form.sentence(other))
        else:
            raise UserError(
                f"{self._where}: sample '{question.id}' has no candidates, and its task does not "
                "say how responses state an answer, so there is no answer to be unsure of; choose "
                "a selector that does not need one"
            )
        if self.encoder.chat is None:  # the same text, of which less is encoded again and again
            return Sample(question.prompt + prefix, "", question.id, sentences)
        candidates = tuple(prefix + sentence for sentence in sentences)
        return Sample(question.prompt, "", question.id, candidates)


def distributions(
    reader: readout.Reader, text: Generated, places: Sequence[Sequence[AnswerPlace]]
) -> list[FloatArray]:
    """Return the distributions of the answers at all places of each question, (J, n).

    With candidates, they are over these. Without, column 0 is the student's answer at the last
    place. Then each of its tokens has `OTHERS` columns for the likeliest other tokens, at the last
    place, and one for all others: the student says the tokens before it and then leaves the answer.

    Args:
        reader: the student.
        text: what it wrote of each question.
        places: the places of each question, at least one.
    """
    paths = _paths(reader, text, places)
    wanted: list[Branch] = []
    token_ids: list[IntArray] = []
    for row, many in enumerate(places):
        for place in many:
            ids = paths.get(row, np.array([place.candidates]))
            wanted.append(Branch(row, [*place.input_ids, *ids[:-1, 0].tolist()], len(ids)))
            token_ids.append(ids)
    found = iter(branches.log_probs(reader, text, wanted, token_ids))
    return [
        np.stack([_free(next(found)) if row in paths else _chosen(next(found)) for _ in many])
        for row, many in enumerate(places)
    ]


def _paths(
    reader: readout.Reader, text: Generated, places: Sequence[Sequence[AnswerPlace]]
) -> dict[int, IntArray]:
    """Return the tokens of each free answer and the likeliest others, (m, 1 + OTHERS), by row."""
    last = {row: many[-1] for row, many in enumerate(places) if not many[-1].candidates}
    wanted = [
        Branch(row, [*place.input_ids, *place.path[:-1]], max(len(place.path), 1))
        for row, place in last.items()
    ]
    if not wanted:
        return {}
    paths = {}
    tops = branches.likeliest(reader, text, wanted, OTHERS + 1)
    for (row, place), top in zip(last.items(), tops, strict=True):
        path = place.path or (int(top[0, 0]),)
        paths[row] = np.array(
            [
                [own, *[token for token in ids if token != own][:OTHERS]]
                for own, ids in zip(path, top.tolist(), strict=True)
            ]
        )
    return paths


def _chosen(log_probs: FloatArray) -> FloatArray:
    """Return the distribution over candidates, given their log-probabilities (1, C)."""
    weights = np.exp(log_probs[0] - log_probs[0].max())
    return np.asarray(weights / weights.sum())


def _free(log_probs: FloatArray) -> FloatArray:
    """Return the distribution over a free answer and the ways to leave it.

    Args:
        log_probs: of the answer's tokens and others, (m, 1 + OTHERS).
    """
    probabilities = np.exp(log_probs)
    columns: list[float] = []
    said = 1.0  # probability of the answer's tokens so far
    for own, *others in probabilities.tolist():
        rest = max(0.0, 1 - own - sum(others))  # rounding may make it negative
        columns += [said * other for other in (*others, rest)]
        said *= own
    values = np.array([said, *columns])
    return np.asarray(values / values.sum())
