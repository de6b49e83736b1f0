"""The free text of a prompt is found again in the prompt that a task has built."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from firstcli.api import InputField, Sample, Task, TaskUsage
from firstcli.augmenters.paraphrase import Paraphrase
from firstcli.augmenters.template import Reworded
from firstcli.tasks.classification import Classification
from firstcli.tasks.fields import training_prompt
from firstcli.tasks.instruction import Instruction
from firstcli.tasks.known_world import KnownWorld
from firstcli.tasks.multiple_choice import MultipleChoice
from firstcli.tasks.paper import Alpaca, BoolQ, CommonsenseQA
from firstcli.tasks.tables import TableRow
from firstcli.testing.augmenters import LETTERED_USAGE
from support.command_line import write_rows


def texts(task: Task[Any], sample: Sample) -> list[str]:
    return training_prompt(sample, task.usage()).texts


def test_a_task_without_a_template_has_one_text() -> None:
    task = KnownWorld(KnownWorld.Options(train=1))
    (sample,) = task.load("train").samples
    assert texts(task, sample) == [sample.prompt]
    assert training_prompt(sample, None).texts == [sample.prompt]


def test_the_prompts_of_the_paper() -> None:
    question = {
        "stem": "Where (a) fox?\nWhere?",
        "choices": [{"label": x, "text": x * 2} for x in "ABC"],
    }
    csqa = CommonsenseQA(CommonsenseQA.Options())
    sample = csqa.sample(TableRow("row", {"question": question, "answerKey": "B"}))
    assert texts(csqa, sample) == ["Where (a) fox?\nWhere?"]
    boolq = BoolQ(BoolQ.Options())
    row = TableRow("row", {"question": "is it so", "passage": "It is.\n\nSo.", "answer": True})
    assert texts(boolq, boolq.sample(row)) == ["is it so", "It is.\n\nSo."]
    alpaca = Alpaca(Alpaca.Options())
    for given, expected in (("", ["Do it"]), ("This.", ["Do it", "This."])):
        row = TableRow("row", {"instruction": "Do it", "input": given, "output": "Done"})
        assert texts(alpaca, alpaca.sample(row)) == expected


@pytest.mark.parametrize("shared", [False, True])
def test_choices_are_not_free(tmp_path: Path, shared: bool) -> None:
    row: dict[str, Any] = {"question": "Which?", "answer": "two", "hint": "think", "id": "a"}
    options: dict[str, Any] = {"prompt": "{hint}: {question}\n{choices}\n{hint}!"}
    if shared:
        options["choices"] = ["one", "two"]
    else:
        row["choices"] = ["one", "two"]
    path = write_rows(tmp_path / "train.jsonl", [row, row | {"id": "b"}])
    task = MultipleChoice(MultipleChoice.Options(path=path, **options))
    sample = next(iter(task.load("train").samples))
    assert texts(task, sample) == ["think", "Which?", "think"]


def test_labels_are_not_free(tmp_path: Path) -> None:
    rows = [{"text": f"text {label}", "label": label} for label in ("good", "bad")]
    path = write_rows(tmp_path / "train.jsonl", rows)
    labels = {"good": "is liked", "bad": "is not"}
    task = Classification(Classification.Options(path=path, labels=labels))
    sample = next(iter(task.load("train").samples))
    assert "is liked" in sample.prompt
    assert texts(task, sample) == ["text good"]


def test_an_instruction_has_the_texts_of_its_columns(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl", [{"q": "Ask {this}", "hint": "", "response": "ok"}])
    task = Instruction(Instruction.Options(path=path, prompt="{{Q}} {q}\nHint: {hint}\nA:"))
    sample = next(iter(task.load("train").samples))
    prompt = training_prompt(sample, task.usage())
    assert prompt.texts == ["Ask {this}"]
    assert prompt.fields[0].name == "q"


def test_a_prompt_of_another_template_has_no_free_text(tmp_path: Path) -> None:
    alpaca = Alpaca(Alpaca.Options())
    assert texts(alpaca, Sample("Something else", "response")) == []


TWO = TaskUsage(
    kind="instruction",
    prompt="{context}\n\n{instruction}\n\nAnswer:",
    inputs={"context": InputField(columns=("context",))},
)


@pytest.mark.parametrize(
    ("context", "instruction", "ambiguous"),
    [
        ("One.", "Do it.", False),
        ("One\nline.", "Do\nit. Answer:", False),
        ("Two.\n\nParagraphs.", "Do it.", True),
        ("One.", "Do it.\n\nNow.", True),
    ],
)
def test_a_text_that_contains_the_separator_is_not_rewritten(
    context: str, instruction: str, ambiguous: bool
) -> None:
    text = f"{context}\n\n{instruction}\n\nAnswer:"
    prompt = training_prompt(Sample(text, " yes", "a"), TWO)
    assert prompt.ambiguous == ambiguous
    reworded = Reworded(
        Reworded.Options(templates=["{instruction}\n{context}\nAnswer:"], shuffle=False)
    )
    paraphrase = Paraphrase(Paraphrase.Options())
    copy = reworded.copy(prompt, 0, Random(1))
    if ambiguous:
        assert copy is None and paraphrase.request(prompt, 0) is None
    else:
        assert prompt.texts == [context, instruction]
        assert copy is not None and copy.prompt == f"{instruction}\n{context}\nAnswer:"
        assert paraphrase.request(prompt, 0) is not None


def test_choices_that_contain_the_next_letter_are_ambiguous() -> None:
    usage = LETTERED_USAGE
    for last, ambiguous in (("sea", False), ("sea\n(B) not", True)):
        text = f"Q: Where?\nAnswer Choices:\n(A) {last}\n(B) land\nA: The answer is ("
        sample = Sample.question(text, ("A).", "B)."), 0, id="a")
        prompt = training_prompt(sample, usage)
        assert prompt.ambiguous == ambiguous and len(prompt.choices) == 2
