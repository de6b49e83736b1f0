"""Annotating: nothing is bought twice, a killed command goes on, and counts are right."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from firstcli import plugins
from firstcli.api import Sample, ToAnnotate, UserError
from firstcli.data.annotations import annotation_lines, read_annotations
from firstcli.plugins.annotators import CheckedAnnotator, annotator
from firstcli.stages import annotating
from firstcli.stages.annotating import (
    AnnotationOrder,
    AnnotationOutcome,
    TeacherScores,
    TeacherText,
    TextRequest,
)

BATCH = 4


def good(request: TextRequest) -> str:
    """What a good teacher writes about a question such as `What is 3 + 1?`."""
    number = int(request.prompt.split("What is ")[1].split(" ")[0])
    return f"Step 1: {number} + 1 = {number + 1}.\nAnswer: {number + 1}"


@dataclass
class InventedTeacher:
    """A teacher that writes what a function returns, one token per word."""

    text: Callable[[TextRequest], str] = good
    breaks_after: int | None = None
    """Number of batches after which the server dies."""
    finishes: bool = True
    bought: list[TextRequest] = field(default_factory=list)
    scored: list[str] = field(default_factory=list)

    def write(
        self, requests: Sequence[TextRequest], known: Container[str]
    ) -> Iterator[list[TeacherText]]:
        wanted = {each.digest: each for each in requests if each.digest not in known}
        missing = [each for each in wanted.values() if "too long" not in each.prompt]
        for start in range(0, len(missing), BATCH):
            if self.breaks_after is not None:
                if not self.breaks_after:
                    raise UserError("server: no answer; run the same command again")
                self.breaks_after -= 1
            batch = missing[start : start + BATCH]
            self.bought += batch
            yield [self._written(each) for each in batch]

    def _written(self, request: TextRequest) -> TeacherText:
        text = self.text(request)
        counts = (len(request.prompt.split()), len(text.split()))
        return TeacherText(request.digest, text, self.finishes, *counts)

    def score(
        self, questions: Sequence[tuple[str, Sample]], known: Container[str]
    ) -> Iterator[list[TeacherScores]]:
        for digest, sample in questions:
            if digest not in known:
                self.scored.append(str(sample.id))
                values = [-float(len(candidate)) for candidate in sample.candidates]
                yield [TeacherScores(digest, values, 7, 1)]


def of_name(name: str, **options: object) -> CheckedAnnotator:
    return annotator(name, plugins.load("annotators", name).Options(**options))


def questions(count: int) -> list[ToAnnotate]:
    return [
        ToAnnotate(
            Sample(f"What is {i} + 1?", "", id=f"q{i}"),
            (f"{i} and 1 is {i + 2}.",),
            f"{i + 2}",
        )
        for i in range(count)
    ]


def order(count: int = 20, name: str = "explain", **changes: object) -> AnnotationOrder:
    made = AnnotationOrder(of_name(name), questions(count), seed=3, max_failures=0)
    return replace(made, **changes)  # type: ignore[arg-type]


def as_bytes(outcome: AnnotationOutcome) -> bytes:
    return annotation_lines(outcome.annotations).encode()


def test_the_teacher_explains(tmp_path: Path) -> None:
    teacher = InventedTeacher()
    outcome = annotating.annotate(order(), teacher, tmp_path)
    assert [each.id for each in outcome.annotations] == [f"q{i}" for i in range(20)]
    assert outcome.annotations[2].steps == ("2 + 1 = 3.",)
    assert outcome.annotations[2].answer == "3"
    assert {each.attempts for each in outcome.annotations} == {1}
    assert len(teacher.bought) == 20
    assert (tmp_path / "texts.jsonl").read_text().count("\n") == 20


def test_tokens_and_money_are_counted(tmp_path: Path) -> None:
    teacher = InventedTeacher()
    outcome = annotating.annotate(
        order(price=lambda read, written: read / 2 + written), teacher, tmp_path
    )
    read = sum(len(each.prompt.split()) for each in teacher.bought)
    written = sum(len(good(each).split()) for each in teacher.bought)
    assert (outcome.tokens_read, outcome.tokens_written) == (read, written)
    assert outcome.cost == read / 2 + written
    assert sum(each.tokens_read for each in outcome.annotations) == read
    assert sum(each.tokens_written for each in outcome.annotations) == written
    again = annotating.annotate(order(), InventedTeacher(breaks_after=0), tmp_path)
    assert (again.tokens_read, again.tokens_written, again.cost) == (read, written, None)


@pytest.mark.parametrize("batches", [0, 1, 3, 7])
def test_a_server_that_dies_costs_nothing_twice(batches: int, tmp_path: Path) -> None:
    """Also where the first text of every third question must be written again."""

    def sloppy(request: TextRequest) -> str:
        number = int(request.prompt.split("What is ")[1].split(" ")[0])
        is_first = request.seed == "greedy"
        return "I do not know." if number % 3 == 0 and is_first else good(request)

    whole = InventedTeacher(sloppy)
    expected = annotating.annotate(order(), whole, tmp_path / "whole")
    assert len(whole.bought) == 27
    dying = InventedTeacher(sloppy, breaks_after=batches)
    if batches < 7:
        with pytest.raises(UserError, match="server: no answer"):
            annotating.annotate(order(), dying, tmp_path / "cache")
    else:
        annotating.annotate(order(), dying, tmp_path / "cache")
    with (tmp_path / "cache" / "texts.jsonl").open("a") as file:
        file.write('{"digest": "1234", "te')  # a line that a killed process left incomplete
    rest = InventedTeacher(sloppy)
    outcome = annotating.annotate(order(), rest, tmp_path / "cache")
    digests = [each.digest for each in (*dying.bought, *rest.bought)]
    assert sorted(digests) == sorted(each.digest for each in whole.bought)
    assert as_bytes(outcome) == as_bytes(expected)
    assert outcome == expected
    third = InventedTeacher(breaks_after=0)
    assert annotating.annotate(order(), third, tmp_path / "cache") == expected


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_annotating as here
from firstcli.stages import annotating
fast, calls = annotating.append_lines, []
def counted(path, lines):
    calls.append(lines)
    if len(calls) == 3:  # half of a batch arrives
        path.open("a").write(lines[: len(lines) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    fast(path, lines)
annotating.append_lines = counted
annotating.annotate(here.order(), here.InventedTeacher(), Path(sys.argv[1]))
"""


def test_a_killed_process_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "cache"), str(Path(__file__).parent)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    teacher = InventedTeacher()
    outcome = annotating.annotate(order(), teacher, tmp_path / "cache")
    # Two batches are complete, and of the third the first lines.
    kept = 20 - len(teacher.bought)
    assert 2 * BATCH <= kept < 3 * BATCH
    expected = annotating.annotate(order(), InventedTeacher(), tmp_path / "whole")
    assert as_bytes(outcome) == as_bytes(expected)
    lines = (tmp_path / "cache" / "texts.jsonl").read_text().splitlines()
    complete = [line for line in lines if line.endswith("}")]
    assert len({json.loads(line)["digest"] for line in complete}) == len(complete) == 20


def test_other_questions_cost_only_themselves(tmp_path: Path) -> None:
    annotating.annotate(order(10), InventedTeacher(), tmp_path)
    teacher = InventedTeacher()
    annotating.annotate(order(14), teacher, tmp_path)
    assert [each.id for each in teacher.bought] == ["q10", "q11", "q12", "q13"]
    # The most likely text does not depend on the seed, a sampled one does.
    annotating.annotate(order(10, seed=4), InventedTeacher(breaks_after=0), tmp_path)
    warm = of_name("explain", temperature=0.5)
    for seed in (3, 4):
        teacher = InventedTeacher()
        annotating.annotate(order(10, annotator=warm, seed=seed), teacher, tmp_path)
        assert len(teacher.bought) == 10
        assert {each.settings.temperature for each in teacher.bought} == {0.5}


def test_a_question_that_is_asked_twice_is_bought_once(tmp_path: Path) -> None:
    (one,) = questions(1)
    two = replace(one, sample=replace(one.sample, id="other"))
    teacher = InventedTeacher()
    outcome = annotating.annotate(order(items=[one, two]), teacher, tmp_path)
    assert len(outcome.annotations) == 2
    assert len(teacher.bought) == 1
    assert outcome.tokens_read == outcome.annotations[0].tokens_read
    assert outcome.annotations[1].tokens_read == outcome.tokens_read


def test_one_retry_then_a_counted_failure(tmp_path: Path) -> None:
    def poor(request: TextRequest) -> str:
        number = int(request.prompt.split("What is ")[1].split(" ")[0])
        if number == 5:
            return "Hm."
        return "So: 5" if number == 6 and request.seed == "greedy" else good(request)

    teacher = InventedTeacher(poor)
    outcome = annotating.annotate(order(max_failures=1), teacher, tmp_path)
    assert len(outcome.annotations) == 19
    assert outcome.retried == 1
    (failure,) = outcome.failures
    assert (failure.id, failure.text) == ("q5", "Hm.")
    assert failure.reason == ("it does not end with a line of the form 'Answer: {answer}': 'Hm.'")
    asked = [each for each in teacher.bought if each.id == "q5"]
    assert [each.settings.temperature for each in asked] == [0.0, annotating.RETRY_TEMPERATURE]
    assert [each.seed for each in asked] == ["greedy", "3 2"]
    assert failure.tokens_read == sum(len(each.prompt.split()) for each in asked)
    assert failure.tokens_written == 2
    retried = next(each for each in outcome.annotations if each.id == "q6")
    assert retried.attempts == 2
    assert retried.tokens_written == 2 + len(good(teacher.bought[6]).split())
    assert outcome.tokens_written == 2 + sum(each.tokens_written for each in outcome.annotations)
    assert [each.id for each in outcome.annotations] == [f"q{i}" for i in range(20) if i != 5]


def test_failures_of_earlier_parts_count(tmp_path: Path) -> None:
    teacher = InventedTeacher(lambda request: "I am no student.")
    given = replace(order(9, max_failures=5), failed_before=4)
    with pytest.raises(
        UserError, match=r"2 of the first 2 questions .* after 4 earlier ones; max_"
    ):
        annotating.annotate(given, teacher, tmp_path)


def test_too_many_failures_stop_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotating, "CHUNK", 8)
    teacher = InventedTeacher(lambda request: "I am\nno student.")
    with pytest.raises(UserError) as caught:
        annotating.annotate(order(100, max_failures=2), teacher, tmp_path)
    assert str(caught.value) == (
        "annotator 'explain': 3 of the first 3 questions cannot be annotated; max_failures "
        "allows 2; the last is 'q2': it does not end with a line of the form 'Answer: "
        "{answer}': 'no student.'; the teacher wrote 'I am no student.'; correct the annotator's "
        "options, use a different teacher, or raise max_failures; what was bought is kept"
    )
    assert len(teacher.bought) == 16
    outcome = annotating.annotate(
        order(8, max_failures=8), InventedTeacher(breaks_after=0), tmp_path
    )
    assert len(outcome.failures) == 8
    assert not outcome.annotations


def test_a_text_that_is_cut_off_or_has_no_room_fails(tmp_path: Path) -> None:
    teacher = InventedTeacher(finishes=False)
    items = questions(2)
    items[1] = replace(items[1], sample=Sample("too long", "", id="long"))
    outcome = annotating.annotate(order(items=items, max_failures=2), teacher, tmp_path)
    assert [each.reason for each in outcome.failures] == [
        "the text was cut off after 9 tokens",
        "the prompt leaves no room for a text in the teacher's context",
    ]
    assert len(teacher.bought) == 2
    assert outcome.failures[1].tokens_read == 0


def test_a_teacher_that_contradicts_the_label_is_counted(tmp_path: Path) -> None:
    items = [
        replace(item, right_answer=str(number + (number < 3)) if number != 7 else None)
        for number, item in enumerate(questions(10))
    ]
    outcome = annotating.annotate(order(items=items), InventedTeacher(), tmp_path)
    assert outcome.contradictions == 6
    assert len(outcome.annotations) == 10


def revision(request: TextRequest) -> str:
    number = int(request.prompt.split("What is ")[1].split(" ")[0])
    return (
        f"First wrong step: 1\n{good(request)}" if number else "First wrong step: none\nAnswer: 2"
    )


def test_the_teacher_revises(tmp_path: Path) -> None:
    outcome = annotating.annotate(order(3, "revise"), InventedTeacher(revision), tmp_path)
    assert [each.first_flaw for each in outcome.annotations] == [None, 0, 0]
    assert outcome.annotations[0].steps == ("0 and 1 is 2.",)
    assert outcome.annotations[1].steps == ("1 + 1 = 2.",)


def new_question(request: TextRequest) -> str:
    """Repeat the pool's question, or ask one of two new ones."""
    number = int(request.prompt.split("What is ")[1].split(" ")[0])
    is_first = request.seed == "greedy"
    question = f"What is  {number} + 1?" if number == 4 and is_first else f"Is {number % 2} even?"
    return f"Question: {question}\n{good(request)}"


def test_new_questions_do_not_repeat(tmp_path: Path) -> None:
    known = {annotating.folded(item.sample.prompt) for item in questions(20)}
    made = order(6, "evolve", max_failures=4, known_questions=known)
    outcome = annotating.annotate(made, InventedTeacher(new_question), tmp_path)
    assert [each.question for each in outcome.annotations] == ["Is 0 even?", "Is 1 even?"]
    assert [each.id for each in outcome.annotations] == ["q0", "q1"]
    assert {each.reason for each in outcome.failures} == {"the new question is known already"}
    again = annotating.annotate(made, InventedTeacher(breaks_after=0), tmp_path)
    assert again == outcome


def choices(count: int) -> list[ToAnnotate]:
    words = ("hare", "fox", "crane")
    return [
        ToAnnotate(
            Sample.question(f"Who is {i}?", [f" {word}" for word in words], None, id=f"c{i}"),
            choices=words,
        )
        for i in range(count)
    ]


def test_candidates_are_scored_and_kept(tmp_path: Path) -> None:
    teacher = InventedTeacher()
    made = order(name="answer", items=choices(3))
    outcome = annotating.annotate(made, teacher, tmp_path)
    weights = np.exp(-np.array([5.0, 4.0, 6.0]))
    for each in outcome.annotations:
        assert each.distribution is not None
        np.testing.assert_allclose(each.distribution, weights / weights.sum())
        assert (each.answer, each.steps, each.attempts) == ("fox", (), 0)
        assert (each.tokens_read, each.tokens_written) == (7, 1)
    assert (outcome.tokens_read, outcome.tokens_written) == (21, 3)
    assert teacher.scored == ["c0", "c1", "c2"]
    assert not teacher.bought
    unused = InventedTeacher()
    again = annotating.annotate(made, unused, tmp_path)
    assert as_bytes(again) == as_bytes(outcome)
    assert not unused.scored


def test_questions_without_candidates_are_answered_in_writing(tmp_path: Path) -> None:
    teacher = InventedTeacher(lambda request: "Answer: 4")
    items = [*choices(1), *questions(1)]
    outcome = annotating.annotate(order(name="answer", items=items), teacher, tmp_path)
    assert [each.answer for each in outcome.annotations] == ["fox", "4"]
    assert [each.attempts for each in outcome.annotations] == [0, 1]


def test_what_needs_no_teacher_costs_nothing(tmp_path: Path) -> None:
    teacher = InventedTeacher()
    items = questions(2)
    items[1] = replace(items[1], answer="")
    outcome = annotating.annotate(
        order(name="self", items=items, max_failures=1), teacher, tmp_path
    )
    assert [each.answer for each in outcome.annotations] == ["2"]
    assert [each.reason for each in outcome.failures] == ["the student's text has no answer"]
    assert outcome.tokens_read == outcome.tokens_written == 0
    assert not teacher.bought


def test_annotations_are_written_and_read_as_they_are(tmp_path: Path) -> None:
    made = [
        *annotating.annotate(order(3), InventedTeacher(), tmp_path).annotations,
        *annotating.annotate(
            order(name="answer", items=choices(2)), InventedTeacher(), tmp_path
        ).annotations,
    ]
    path = tmp_path / "annotations.jsonl"
    path.write_text(annotation_lines(made), "utf-8")
    back = list(read_annotations(path))
    assert annotation_lines(back) == annotation_lines(made)
    assert isinstance(back[-1].distribution, np.ndarray)
    path.write_text('{"id": "q"}\n', "utf-8")
    with pytest.raises(UserError, match="line 1: found no annotation"):
        list(read_annotations(path))
