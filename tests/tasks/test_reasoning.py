"""Explained questions from files: the formats of five public data sets, and mistakes in them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from firstcli.api import Sample, UserError
from firstcli.data.reasoning import final_answer
from firstcli.plugins.samples import sample_problem
from firstcli.tasks.reasoning import (
    Reasoning,
    ReasoningChoice,
    ReasoningChoiceOptions,
    ReasoningOptions,
)
from firstcli.testing import check_task

RECIPES = Path(__file__).parents[2] / "recipes" / "reasoning"


def starter(name: str) -> dict[str, Any]:
    """Return the options of a starter, without those that say which rows there are."""
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text("utf-8"))
    options: dict[str, Any] = recipe["train"]["task"]["options"]
    return {key: value for key, value in options.items() if key not in ("path", "test")}


GSM8K = starter("gsm8k")


def lines(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def free(path: Path, **options: Any) -> list[Sample]:
    task = Reasoning(ReasoningOptions(path=path, **options))
    return list(task.load("train").samples)


def chosen(path: Path, **options: Any) -> list[Sample]:
    task = ReasoningChoice(ReasoningChoiceOptions(path=path, **options))
    check_task(task)
    samples = list(task.load("train").samples)
    for sample in samples:
        assert sample_problem(sample) is None
        assert final_answer(sample, task.explanations())
    return samples


def test_gsm8k(tmp_path: Path) -> None:
    answer = (
        "He has 16 - 3 = <<16-3=13>>13 eggs.\nThat is 13 * 100 = $<<13*100=1300>>1300.\n#### 1,300"
    )
    path = lines(tmp_path, {"question": "How much?", "answer": answer})
    (sample,) = free(path, **GSM8K)
    assert sample.prompt == "Question: How much?\nAnswer:"
    assert sample.steps == ("He has 16 - 3 = 13 eggs.", "That is 13 * 100 = $1300.")
    assert sample.response == f" {sample.steps[0]}\n{sample.steps[1]}\nThe answer is 1,300."
    task = Reasoning(ReasoningOptions(path=path, **GSM8K))
    check_task(task)
    assert final_answer(sample, task.explanations()) == "1,300"


def test_aqua(tmp_path: Path) -> None:
    row = {
        "question": "How old?",
        "options": ["A)21", "B)21.5", "C)22", "D)22.5", "E)23"],
        "rationale": "Let x be the age.\nThen x = 23.\nAnswer is E.",
        "correct": "E",
    }
    (sample,) = chosen(lines(tmp_path, row), **starter("aqua"))
    assert "\nA. 21\nB. 21.5\n" in sample.prompt
    assert sample.steps == ("Let x be the age.", "Then x = 23.")
    assert sample.response == " Let x be the age.\nThen x = 23.\nThe answer is (E)."
    assert sample.candidates[0] == " Let x be the age.\nThen x = 23.\nThe answer is (A)."


def test_strategy_qa(tmp_path: Path) -> None:
    rows = [
        {"qid": "a", "question": "Do hamsters feed animals?", "answer": True, "facts": ["Yes."]},
        {"qid": "b", "question": "Can a dog fly?", "answer": False, "facts": ["No\nwings.", "So."]},
    ]
    path = tmp_path / "train.json"
    path.write_text(json.dumps(rows), "utf-8")
    first, second = chosen(path, **starter("strategy-qa"))
    assert (first.id, first.response) == ("a", " Yes.\nThe answer is yes.")
    assert (second.steps, second.answer) == (("No wings.", "So."), 0)


def test_commonsense_qa_with_explanations(tmp_path: Path) -> None:
    row = {
        "question": "Where is a frame?",
        "choices": ["house", "shop"],
        "answer": "shop",
        "abstractive_explanation": "Shops sell frames. Houses do not.",
    }
    (sample,) = chosen(lines(tmp_path, row), **starter("cos-e"))
    assert sample.prompt.startswith("Q: Where is a frame?\nAnswer Choices:\n(a) house\n(b) shop")
    assert sample.response == " Shops sell frames.\nHouses do not.\nThe answer is (b)."


def test_e_snli(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["pairID", "gold_label", "Sentence1", "Sentence2", "Explanation_1"])
        writer.writerow(["1", "neutral", "A person, on a horse.", "He trains.", "It may not be."])
        writer.writerow(["2", "entailment", "A man sleeps.", "A person sleeps.", ""])
    first, second = chosen(path, **starter("e-snli"))
    assert first.prompt == "Premise: A person, on a horse.\nHypothesis: He trains.\nAnswer:"
    assert first.response == " It may not be.\nThe answer is neutral."
    assert (second.response, second.steps) == (" The answer is entailment.", ())


def test_rows_without_an_answer_have_no_response(tmp_path: Path) -> None:
    path = lines(tmp_path, {"question": "?", "answer": "", "steps": ["a"]})
    assert free(path)[0] == Sample("Question: ?\nAnswer:", "")
    row = {"question": "?", "choices": ["x", "y"], "answer": None, "steps": ["a"]}
    task = ReasoningChoice(ReasoningChoiceOptions(path=lines(tmp_path, row)))
    (sample,) = task.load("train").samples
    assert (sample.response, sample.steps) == ("", ())
    assert sample.candidates == (" The answer is A.", " The answer is B.")


def test_the_pattern_of_the_answer_removes_nothing_from_other_columns(tmp_path: Path) -> None:
    row = {"question": "?", "steps": "4 = 2 + 2\nSo it is = 4", "answer": "The sum = 4"}
    options = {"steps_column": ["steps", "answer"], "answer_in": "= (.+)"}
    (sample,) = free(lines(tmp_path, row), **options)
    assert sample.steps == ("4 = 2 + 2", "So it is = 4", "The sum")
    assert sample.response.endswith("\nThe answer is 4.")


def test_sentences_may_be_joined_on_one_line(tmp_path: Path) -> None:
    row = {"question": "?", "steps": "It is so. We know.", "answer": "4"}
    (sample,) = free(lines(tmp_path, row), join=" ", step_rule="sentences")
    assert sample.response == " It is so. We know. The answer is 4."


def test_explanations_that_state_an_answer_are_dropped(tmp_path: Path) -> None:
    """The first answer in a generated text counts, so such a model would be read wrongly."""
    texts = ["The answer is 3.\nNo, it is 4.", "We add.", "The answer is 4.0."]
    rows = [{"question": f"{i}?", "steps": text, "answer": "4"} for i, text in enumerate(texts)]
    task = Reasoning(ReasoningOptions(path=lines(tmp_path, *rows)))
    split = task.load("train")
    assert [sample.prompt[10] for sample in split.samples] == ["1", "2"]
    assert split.dropped == {"explanation that already states an answer": 1}
    check_task(task)
    choices = [{**row, "choices": ["4", "5"], "answer": "A"} for row in rows[:2]]
    chooser = ReasoningChoice(ReasoningChoiceOptions(path=lines(tmp_path, *choices)))
    split = chooser.load("train")
    assert len(list(split.samples)) == 1
    assert split.dropped == {"explanation that already states an answer": 1}


def test_an_answer_may_be_any_number(tmp_path: Path) -> None:
    path = lines(tmp_path, *({"question": f"{n}?", "answer": n} for n in (7, 2.5)))
    assert [s.response for s in free(path, steps_column=None)] == [
        " The answer is 7.",
        " The answer is 2.5.",
    ]


@pytest.mark.parametrize(
    "row, options, problem",
    [
        ({"question": "?", "answer": "1"}, {}, "train.jsonl:1: there is no column 'steps'"),
        ({"question": "?", "answer": "1"}, {}, "set steps_column"),
        (
            {"question": "?", "answer": "1", "steps": 3},
            {},
            "column 'steps': found 3, expected text",
        ),
        ({"question": "?", "answer": "1", "steps": [3]}, {}, "expected text or a list of steps"),
        ({"question": "?", "answer": "12"}, GSM8K, 'finds no answer in "12"'),
        ({"question": "?", "answer": "1", "steps": ""}, {"pattern": "is: (.)"}, "cannot be read"),
        ({"question": "?", "answer": ["1"], "steps": ""}, {}, "expected text or a whole number"),
    ],
)
def test_malformed_rows_are_named(
    tmp_path: Path, row: dict[str, Any], options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UserError) as error:
        free(lines(tmp_path, row), **options)
    assert problem in str(error.value)


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"steps_column": "answer"}, "`answer_in` must say where the answer is"),
        ({"answer_in": "####"}, "found 0 groups"),
        ({"answer_in": "("}, "not a regular expression"),
        ({"remove": "["}, "not a regular expression"),
        ({"answer_format": "So it is."}, "contains {answer} once"),
        ({"pattern": "is (.) or (.)"}, "found 2 groups"),
        ({"join": " and "}, "expected white space"),
        ({"join": " "}, "`join` has no line end, at which `step_rule: lines` divides"),
    ],
)
def test_impossible_options_are_refused(
    tmp_path: Path, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValidationError) as error:
        ReasoningOptions(path=tmp_path, **options)
    assert problem in str(error.value)
