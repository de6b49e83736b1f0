"""Annotate questions with a teacher: seeded, resumable, and nothing is bought twice.

What a teacher says is kept as soon as it is said, under a digest of everything that it depends on:
the prompt, the settings, the seed and the attempt. A killed command therefore goes on where it
stopped, with the same result, and a question that is annotated again costs nothing. Texts are
parsed each time, so a corrected template of an answer's form buys nothing either.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from firstcli.api import (
    Annotation,
    Explained,
    FloatArray,
    Sample,
    ToAnnotate,
    Unparsable,
    WritingSettings,
    same_answer,
)
from firstcli.errors import UserError
from firstcli.plugins.annotators import CheckedAnnotator
from firstcli.runtime.files import append_lines

RETRY_TEMPERATURE = 0.7
"""The least temperature of a second attempt: the most likely text would be the same again."""
CHUNK = 128
"""Questions whose first attempts are made before the second ones of the same questions."""
_SHOWN = 200  # characters of a text in messages


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A prompt that a teacher continues."""

    id: str
    """The sample, for messages."""
    prompt: str
    settings: WritingSettings
    seed: str
    """Seeds everything that is random in the text."""

    @property
    def digest(self) -> str:
        """What the text is kept under."""
        return _digest(["text", self.prompt, asdict(self.settings), self.seed])


@dataclass(frozen=True, slots=True)
class TeacherText:
    """What a teacher wrote, and what it took."""

    digest: str
    text: str
    finished: bool
    """Whether the teacher ended the text itself."""
    tokens_read: int
    tokens_written: int


@dataclass(frozen=True, slots=True)
class TeacherScores:
    """A teacher's probabilities of the candidates of a question, and what they took."""

    digest: str
    log_probs: list[float]
    """The log-probability of each candidate, (C,)."""
    tokens_read: int
    tokens_written: int

    @property
    def distribution(self) -> FloatArray:
        """The probabilities among the candidates, (C,)."""
        values = np.array(self.log_probs, np.float64)
        weights = np.exp(values - values.max())
        return np.asarray(weights / weights.sum())


class AnnotatingTeacher(Protocol):
    """A teacher that writes texts and scores candidates."""

    def write(
        self, requests: Sequence[TextRequest], known: Container[str]
    ) -> Iterator[list[TeacherText]]:
        """Yield texts as they are written; a request whose prompt is too long has none.

        Args:
            requests: what to write, all with the same settings. They decide which texts are written
                in one batch.
            known: digests of the texts that are not needed; they may be written again.
        """

    def score(
        self, questions: Sequence[tuple[str, Sample]], known: Container[str]
    ) -> Iterator[list[TeacherScores]]:
        """Yield the scores of questions with candidates as they come.

        Args:
            questions: a digest, under which the scores are kept, and the question.
            known: digests of the scores that are not needed; they may be computed again.
        """


@dataclass(frozen=True, slots=True)
class AnnotationOrder:
    """What is to be annotated, and how."""

    annotator: CheckedAnnotator
    items: Sequence[ToAnnotate]
    """The questions; their samples have ids, all different."""
    seed: int
    max_failures: int
    """Number of questions that may remain without an annotation, earlier ones included."""
    failed_before: int = 0
    """Number of earlier questions that have none."""
    known_questions: Container[str] = ()
    """Texts that a new question must not repeat, each `folded`."""
    price: Callable[[int, int], float] | None = None
    """Returns what tokens cost, given how many are read and how many are written."""


@dataclass(frozen=True, slots=True)
class FailedAnnotation:
    """A question without an annotation, and what it took nevertheless."""

    id: str
    reason: str
    text: str
    """What the teacher wrote last; empty if it wrote nothing."""
    tokens_read: int = 0
    tokens_written: int = 0


@dataclass(slots=True)
class AnnotationOutcome:
    """All annotations and what they took, in the order of the questions."""

    annotations: list[Annotation] = field(default_factory=list)
    failures: list[FailedAnnotation] = field(default_factory=list)
    contradictions: int = 0
    """Annotations whose answer is not the right one, where the label is known."""
    tokens_read: int = 0
    """Tokens of all prompts. A text that several questions share counts once."""
    tokens_written: int = 0
    cost: float | None = None
    """None without prices."""

    @property
    def retried(self) -> int:
        """Annotations whose first text could not be parsed."""
        return sum(each.attempts > 1 for each in self.annotations)


def annotate(
    order: AnnotationOrder,
    teacher: AnnotatingTeacher,
    cache: Path,
    advance: Callable[[int], None] = lambda _: None,
) -> AnnotationOutcome:
    """Annotate questions.

    Args:
        order: the questions and the annotator.
        teacher: writes and scores.
        cache: the folder of what the teacher has said so far, which only this process uses.
        advance: is called with the number of questions that are done.

    Raises:
        UserError: too many questions cannot be annotated, or the teacher cannot be asked.
    """
    work = _Annotating(order, teacher, cache)
    for start in range(0, len(order.items), CHUNK):
        chunk = order.items[start : start + CHUNK]
        work.annotate(chunk)
        advance(len(chunk))
    return work.outcome()


def needs_text(annotator: CheckedAnnotator, sample: Sample) -> bool:
    """Return whether a teacher must write text to annotate a question."""
    is_scored = annotator.scores_candidates and bool(sample.candidates)
    return annotator.generates and not is_scored


Said = TypeVar("Said", TeacherText, TeacherScores)


class _Kept(Generic[Said]):
    """What a teacher has said, by digest: in memory and in a file."""

    def __init__(self, path: Path, kind: type[Said]) -> None:
        self._path = path
        self.said: dict[str, Said] = {}
        if path.exists():
            with path.open("rb") as file:
                for line in file:
                    try:
                        one = kind(**json.loads(line))
                    except (ValueError, TypeError):  # a killed process left it incomplete
                        continue
                    self.said[one.digest] = one

    def add(self, some: Sequence[Said]) -> None:
        """Keep what is new; the first text of a digest stays."""
        new = {one.digest: one for one in some if one.digest not in self.said}
        if new:
            append_lines(
                self._path, "".join(json.dumps(asdict(one)) + "\n" for one in new.values())
            )
            self.said |= new


class _Annotating:
    """The annotations made so far."""

    def __init__(self, order: AnnotationOrder, teacher: AnnotatingTeacher, cache: Path) -> None:
        self._order, self._teacher, self._annotator = order, teacher, order.annotator
        cache.mkdir(parents=True, exist_ok=True)
        self._texts = _Kept(cache / "texts.jsonl", TeacherText)
        self._scores = _Kept(cache / "scores.jsonl", TeacherScores)
        self._asked: dict[str, list[TeacherText | TeacherScores]] = {}
        """What was said about each question, by its id, in order."""
        self._done: dict[str, Annotation] = {}
        self._failed: dict[str, FailedAnnotation] = {}
        self._taken: set[str] = set()

    def annotate(self, items: Sequence[ToAnnotate]) -> None:
        """Annotate some questions."""
        writes = [item for item in items if needs_text(self._annotator, item.sample)]
        if self._annotator.scores_candidates:
            self._score([item for item in items if item.sample.candidates])
        elif not self._annotator.generates:
            for item in items:
                self._try(item, self._annotator.annotate)
        again = self._write(writes, 1)
        self._write(again, 2)

    def _score(self, items: Sequence[ToAnnotate]) -> None:
        if not items:
            return
        digests = [
            _digest(["scores", each.sample.prompt, each.sample.candidates]) for each in items
        ]
        questions = {digest: item.sample for digest, item in zip(digests, items, strict=True)}
        if not questions.keys() <= self._scores.said.keys():
            for some in self._teacher.score(list(questions.items()), self._scores.said):
                self._scores.add(some)
        for digest, item in zip(digests, items, strict=True):
            scores = self._scores.said[digest]
            self._asked[_id(item)] = [scores]
            distribution = scores.distribution
            self._keep(item, Explained((), item.choices[int(distribution.argmax())]), distribution)

    def _write(self, items: Sequence[ToAnnotate], attempt: int) -> list[ToAnnotate]:
        """Let the teacher write about some questions; return those to write about again."""
        requests = [self._request(item, attempt) for item in items]
        unknown = [each for each in requests if each.digest not in self._texts.said]
        if unknown:
            for some in self._teacher.write(requests, self._texts.said):
                self._texts.add(some)
        again = []
        for item, request in zip(items, requests, strict=True):
            text = self._texts.said.get(request.digest)
            if text is None:
                self._fail(
                    item, "the prompt leaves no room for a text in the teacher's context", ""
                )
                continue
            self._asked.setdefault(_id(item), []).append(text)
            if reason := self._parse(item, text):
                if attempt == 1:
                    again.append(item)
                else:
                    self._fail(item, reason, text.text)
        return again

    def _request(self, item: ToAnnotate, attempt: int) -> TextRequest:
        settings = self._annotator.writing
        if attempt > 1:
            settings = replace(settings, temperature=max(settings.temperature, RETRY_TEMPERATURE))
        seed = f"{self._order.seed} {attempt}" if settings.temperature else "greedy"
        return TextRequest(_id(item), self._annotator.prompt(item), settings, seed)

    def _parse(self, item: ToAnnotate, text: TeacherText) -> str | None:
        """Keep what a text says; return why it cannot be read."""
        if not text.finished:
            return f"the text was cut off after {text.tokens_written} tokens"
        try:
            found = self._annotator.parse(item, text.text)
        except Unparsable as reason:
            return str(reason)
        if found.question is not None:
            text_of_it = folded(found.question)
            if text_of_it in self._taken or text_of_it in self._order.known_questions:
                return "the new question is known already"
            self._taken.add(text_of_it)
        self._keep(item, found)
        return None

    def _try(self, item: ToAnnotate, method: Callable[[ToAnnotate], Explained]) -> None:
        try:
            self._keep(item, method(item))
        except Unparsable as reason:
            self._fail(item, str(reason), "")

    def _keep(
        self, item: ToAnnotate, found: Explained, distribution: FloatArray | None = None
    ) -> None:
        said = self._asked.get(_id(item), [])
        self._done[_id(item)] = Annotation(
            _id(item),
            found.steps,
            found.answer,
            distribution,
            found.first_flaw,
            *_tokens(said),
            attempts=sum(isinstance(each, TeacherText) for each in said),
            question=found.question,
        )

    def _fail(self, item: ToAnnotate, reason: str, text: str) -> None:
        said = self._asked.get(_id(item), [])
        self._failed[_id(item)] = FailedAnnotation(_id(item), reason, text, *_tokens(said))
        before, most = self._order.failed_before, self._order.max_failures
        if before + len(self._failed) > most:
            earlier = f", after {before} earlier ones" if before else ""
            wrote = f"; the teacher wrote {_beginning(text)}" if text else ""
            raise UserError(
                f"annotator '{self._annotator.plugin.name}': {len(self._failed)} of the first "
                f"{len(self._failed) + len(self._done)} questions cannot be annotated{earlier}; "
                f"max_failures allows {most}; the last is '{_id(item)}': {reason}{wrote}; correct "
                "the annotator's options, use a different teacher, or raise max_failures; what was "
                "bought is kept"
            )

    def outcome(self) -> AnnotationOutcome:
        """Return all annotations, in the order of the questions."""
        ids = [_id(item) for item in self._order.items]
        said = {each.digest: each for some in self._asked.values() for each in some}
        read, written = _tokens(list(said.values()))
        return AnnotationOutcome(
            [self._done[id] for id in ids if id in self._done],
            [self._failed[id] for id in ids if id in self._failed],
            sum(map(self._contradicts, self._order.items)),
            read,
            written,
            None if self._order.price is None else self._order.price(read, written),
        )

    def _contradicts(self, item: ToAnnotate) -> bool:
        """Return whether an annotation has a different answer than the known label."""
        found = self._done.get(_id(item))
        if found is None or found.question is not None or item.right_answer is None:
            return False
        return not same_answer(found.answer, item.right_answer)


def _id(item: ToAnnotate) -> str:
    assert item.sample.id is not None
    return item.sample.id


def _tokens(said: Sequence[TeacherText | TeacherScores]) -> tuple[int, int]:
    """Return the tokens that were read and written."""
    return sum(each.tokens_read for each in said), sum(each.tokens_written for each in said)


def _digest(content: object) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def folded(text: str) -> str:
    """Return text that is equal for questions that differ in case and white space alone."""
    return " ".join(text.split()).casefold()


def _beginning(text: str) -> str:
    line = " ".join(text.split())
    return f"'{line[:_SHOWN]}{'...' if len(line) > _SHOWN else ''}'"
