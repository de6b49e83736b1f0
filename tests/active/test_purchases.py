"""What `first select` buys of a teacher that writes: stopped, resumed, limited, extended."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from firstcli.active import loop
from firstcli.active.data import ActiveData
from firstcli.active.reading import Said, StudentReader
from firstcli.active.stopping import has_stopped
from firstcli.api import Sample
from firstcli.data.annotations import choices_of
from firstcli.pipeline.plan import Request, open_run
from firstcli.recipe.active import Stop
from firstcli.stages import annotating_teachers
from firstcli.stages.annotating import TeacherText, TextRequest, folded
from firstcli.tasks.known_steps import FORM, KnownSteps, KnownStepsOptions
from support import command_line
from support.command_line import TRAINING, contents, first, times

TASK: dict[str, Any] = {
    "name": "known-steps",
    "options": {"train": 80, "test": 8, "shifted": 4, "pool": 60},
}
MODEL = {
    "family": "scratch",
    "options": {"hidden_size": 16, "layers": 1, "heads": 2, "vocabulary": 600, "context": 512},
}
READ, WRITTEN = 90, 30
"""Tokens of every text."""
PART = 4
ACTIVE: dict[str, Any] = {
    "pool": {"split": "pool"},
    "seed_samples": 12,
    "budget": {"tokens": 4000},
    "rounds": 2,
    "annotator": {"name": "evolve", "options": {"max_new_tokens": 40}},
}


@cache
def a_choice() -> dict[str, str]:
    """Return an answer to choose for every question of the pool, by id."""
    samples = KnownSteps(KnownStepsOptions(**TASK["options"])).load("pool").samples
    return {str(sample.id): choices_of(sample, FORM)[0] for sample in samples}


class Stopped(Exception):
    """In place of a kill."""


class Writer:
    """A teacher that writes one of a few questions, so that many are repeated."""

    def __init__(self) -> None:
        self.stop_after: int | None = None
        self.fails = False
        """Whether no text can be read."""
        self.written: list[str] = []
        """Digests of all texts."""
        self.explained: list[str] = []
        """Ids of all questions that the student has explained."""

    def write(
        self, requests: Sequence[TextRequest], known: Container[str]
    ) -> Iterator[list[TeacherText]]:
        for request in requests:
            if request.digest in known:
                continue
            if len(self.written) == self.stop_after:
                raise Stopped
            self.written.append(request.digest)
            number, answer = int(request.digest[:8], 16), a_choice()[request.id]
            text = f"Question: What is {number % 15}?\nStep 1: It is {number}.\nAnswer: {answer}"
            if self.fails or number % 5 == 0:
                text = "Nothing."
            yield [TeacherText(request.digest, text, True, READ, WRITTEN)]


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Writer:
    """A writing teacher and an explaining student in place of the models."""
    teacher = Writer()

    def said(reader: StudentReader, questions: Sequence[Sample]) -> list[Said]:
        ids = [str(question.id) for question in questions]
        teacher.explained.extend(ids)
        return [Said(id, f"{id} is odd.", (f"{id} is odd.",), "1", (0.5,)) for id in ids]

    monkeypatch.setattr(StudentReader, "said", said)
    monkeypatch.setattr(annotating_teachers, "_LazyTeacher", lambda run: teacher)
    monkeypatch.setattr(loop, "CHUNK", PART)
    return teacher


def write_recipe(folder: Path, **sections: Any) -> Path:
    given = {
        "train": {"task": TASK, "validation": 0.2},
        "evaluate": [{"task": TASK, "answers": "scored"}],
        "teacher": {"model": MODEL, "finetune": TRAINING},
        "student": {"model": MODEL, "training": TRAINING},
        "arms": {"first": {"learn": "labels"}},
        **sections,
    }
    folder.mkdir(parents=True, exist_ok=True)
    return command_line.write_recipe(folder, **given)


def select(folder: Path, run: Path, *args: object, **active: Any) -> command_line.Result:
    path = write_recipe(folder, active={**ACTIVE, **active})
    return first("select", path, "--run-dir", run, *args)


def bought(run: Path) -> dict[str, bytes]:
    """Return the files of all rounds that say what was bought, and what the teacher has said."""
    names = ("chosen.json", "annotations.jsonl", "student.jsonl", "train.jsonl", "texts.jsonl")
    found = {}
    for name, content in contents(run).items():
        if Path(name).name in names and "/run/" not in name:
            is_cache = name.endswith("texts.jsonl")  # in the order in which texts came
            found[name] = b"\n".join(sorted(content.splitlines())) if is_cache else content
    return found


def test_a_stopped_purchase_goes_on(tmp_path: Path, writer: Writer) -> None:
    """In the same parts, without a question to the student or the teacher that was asked before."""
    run = tmp_path / "run"
    whole = select(tmp_path, run, "--json")
    assert whole.code == 0, whole.err
    expected, texts = bought(run.rename(tmp_path / "whole")), sorted(writer.written)
    chosen = json.loads(expected["rounds/first/2/chosen.json"])
    assert len(chosen["parts"]) > 1
    assert max(map(len, chosen["parts"])) == PART
    assert sum(each["retried"] for each in whole.json["arms"]["first"][1:])
    writer.written.clear()
    writer.explained.clear()
    for stop_after in (3, len(texts) - 6, len(texts) - 3):
        writer.stop_after = stop_after
        with pytest.raises(Stopped):
            select(tmp_path, run)
    writer.stop_after = None
    resumed = select(tmp_path, run, "--json")
    assert resumed.code == 0, resumed.err
    assert bought(run) == expected
    assert sorted(writer.written) == texts
    assert len(writer.explained) == len({*writer.explained})
    again = select(tmp_path, run, "--json")
    assert again.json["arms"] == resumed.json["arms"]
    assert bought(run) == expected
    assert sorted(writer.written) == texts


@pytest.mark.parametrize("pool", [{"split": "pool"}, {"split": "train"}])
def test_the_questions_that_no_new_one_may_repeat(tmp_path: Path, pool: dict[str, str]) -> None:
    """Those of the pool, of all labelled data, held-out ones included, and of evaluations."""
    student = {"family": "causal-lm", "checkpoint": "none"}
    path = write_recipe(
        tmp_path,
        teacher=None,
        student={"model": student, "training": TRAINING},
        active={**ACTIVE, "pool": pool, "budget": {"samples": 4}, "annotator": {"name": "label"}},
    )
    run = open_run(Request(path, run_dir=tmp_path / "run", quiet=True))
    assert run.recipe.active
    known = ActiveData(run, run.recipe.active).known_questions
    task = KnownSteps(KnownStepsOptions(**TASK["options"]))
    splits = {*pool.values(), "train", "test"}
    samples = [sample for split in splits for sample in task.load(split).samples]
    assert known == {folded(sample.prompt) for sample in samples}


def test_a_larger_budget_with_the_same_share_keeps_finished_rounds(
    tmp_path: Path, writer: Writer
) -> None:
    run = tmp_path / "run"
    assert select(tmp_path, run, rounds=1, budget={"tokens": 1500}).code == 0
    kept, written = times(run / "rounds" / "first" / "1"), len(writer.written)
    result = select(tmp_path, run, "--json", rounds=2, budget={"tokens": 3000})
    assert result.code == 0, result.err
    facts = result.json["arms"]["first"]
    assert [each["round"] for each in facts] == [0, 1, 2]
    assert len(writer.written) > written
    now = times(run / "rounds" / "first" / "1")
    changed = {Path(name).name for name in kept if now.get(name) != kept[name]}
    assert not changed & {"chosen.json", "annotations.jsonl", "round.json", "model.safetensors"}


def test_a_higher_limit_of_failures_goes_on(tmp_path: Path, writer: Writer) -> None:
    """What was bought is kept: no text is written twice."""
    writer.fails = True
    run, budget = tmp_path / "run", {"samples": 6}
    message = select(tmp_path, run, rounds=1, budget=budget, max_failures=2).mistake(
        "annotator 'evolve'", "max_failures allows 2", "'Nothing.'"
    )
    assert "3 of the first 3 questions" in message
    writer.fails = False
    result = select(tmp_path, run, "--json", rounds=1, budget=budget, max_failures=20)
    assert result.code == 0, result.err
    assert len(writer.written) == len({*writer.written})
    (_, facts) = result.json["arms"]["first"]
    assert facts["failures"] > 2
    assert facts["tokens_read"] == READ * len(writer.written)


def test_an_arm_stops(tmp_path: Path) -> None:
    """At the first round after which its rule holds."""
    result = select(
        tmp_path,
        tmp_path / "run",
        "--json",
        rounds=4,
        budget={"samples": 8},
        annotator={"name": "label"},
        stop={"patience": 1},
    )
    assert result.code == 0, result.err
    facts = result.json["arms"]["first"]
    rule = Stop(patience=1)
    assert [has_stopped(rule, facts[:n]) for n in range(1, len(facts))] == [False] * (
        len(facts) - 1
    )
    assert has_stopped(rule, facts) or len(facts) == 5
