"""The task `multiple-choice`: prompts, choices, answers and every mistake in a user's rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from firstcli.api import Sample
from firstcli.errors import UserError
from firstcli.tasks.multiple_choice import MultipleChoice, MultipleChoiceOptions
from firstcli.testing import check_task
from support.paths import SHARED

DATA = SHARED / "data"
SKY = {"question": "What colour is the sky?", "choices": ["red", "blue"], "answer": "B"}


def task(path: Path, **options: Any) -> MultipleChoice:
    return MultipleChoice(MultipleChoiceOptions.model_validate({"path": str(path), **options}))


def loaded(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> list[Sample]:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(task(path, **options).load("train").samples)


def complaint(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        loaded(tmp_path, *rows, **options)
    return str(caught.value).replace(str(tmp_path / "data.jsonl"), "FILE")


def test_lists_choices_and_answers_with_a_letter(tmp_path: Path) -> None:
    assert loaded(tmp_path, {**SKY, "id": "s1"}) == [
        Sample(
            prompt="What colour is the sky?\nA. red\nB. blue\nAnswer:",
            response=" B",
            id="s1",
            candidates=(" A", " B"),
            answer=1,
        )
    ]


def test_answers_with_the_text_of_a_choice(tmp_path: Path) -> None:
    (sample,) = loaded(tmp_path, SKY, respond_with="text", prompt="{question} It is")
    assert sample.prompt == "What colour is the sky? It is"
    assert (sample.response, sample.candidates) == (" blue", (" red", " blue"))


def test_templates_can_spell_the_papers_format(tmp_path: Path) -> None:
    (sample,) = loaded(
        tmp_path,
        SKY,
        prompt="Q: {question}\nAnswer Choices:\n{choices}\nA: The answer is (",
        choice="({letter}) {text}",
        letters="lower",
        response="{answer}).",
    )
    assert sample.prompt.endswith("?\nAnswer Choices:\n(a) red\n(b) blue\nA: The answer is (")
    assert sample.candidates == ("a).", "b).")


def test_a_prompt_uses_any_column_and_braces_in_data_have_no_meaning(tmp_path: Path) -> None:
    row = {"premise": "It {rains}.", "the claim": "{premise}", "note": None, "gold": "no"}
    (sample,) = loaded(
        tmp_path,
        row,
        choices=["yes", "no"],
        answer_column="gold",
        prompt="{{1}} {premise}/{the claim}/{note}:",
        respond_with="text",
    )
    assert sample.prompt == "{1} It {rains}./{premise}/:"
    assert sample.response == " no"


def test_classifies_with_choices_for_the_whole_task(tmp_path: Path) -> None:
    rows = [{"sentence": "good film", "label": 1}, {"sentence": "bad film", "label": 0}]
    samples = loaded(
        tmp_path,
        *rows,
        question_column="sentence",
        answer_column="label",
        choices=["negative", "positive"],
        respond_with="text",
        prompt="{question}",
    )
    assert [sample.response for sample in samples] == [" positive", " negative"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet"])
def test_conforms_in_every_format(tmp_path: Path, ending: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / f"test.{ending}"
    rows = [
        {"question": "1 + 1?", "choices": ["one", "two"], "answer": "B"},
        {"question": "2 + 1?", "choices": ["one", "two", "three"], "answer": "C"},
    ]
    if ending == "csv":
        path.write_text('question,choices,answer\n1 + 1?,one|two,B\n2 + 1?,"one| two |three",C\n')
    elif ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        lines = "\n".join(map(json.dumps, rows))
        path.write_text(lines if ending == "jsonl" else json.dumps(rows))
    options = {"separator": "|"} if ending == "csv" else {}
    chosen = task(tmp_path, respond_with="text", **options)
    check_task(chosen)
    assert chosen.splits == ("test",)
    assert chosen.sources("test") == (path,)
    found = [(sample.response, sample.candidates) for sample in chosen.load("test").samples]
    assert found == [(" two", (" one", " two")), (" three", (" one", " two", " three"))]


def test_csv_can_have_a_column_for_each_choice(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("question,x,y,z,answer\nq1,one,two,,0\nq2,one,two,three,2\n")
    samples = list(task(path, choices_column=["x", "y", "z"]).load("train").samples)
    assert [(len(sample.candidates), sample.answer) for sample in samples] == [(2, 0), (3, 2)]


def test_26_choices_have_letters(tmp_path: Path) -> None:
    row = {"question": "q", "choices": [f"c{i}" for i in range(26)], "answer": "z"}
    assert loaded(tmp_path, row)[0].response == " Z"
    row["choices"] = [f"c{i}" for i in range(27)]
    assert "found 27 choices, expected 2 to 26" in complaint(tmp_path, row)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"choices": ["one"]}, "FILE:2: column 'choices': found 1 choices, expected 2 to 26"),
        ({"choices": []}, "FILE:2: column 'choices': found 0 choices, expected 2 to 26"),
        ({"choices": ["a", " "]}, "FILE:2: column 'choices': choice 2 of 2 is empty"),
        ({"choices": ["a", None]}, "FILE:2: column 'choices': found null, expected text"),
        ({"choices": ["a", False]}, "FILE:2: column 'choices': found false, expected text"),
        ({"choices": "a|b"}, "FILE:2: column 'choices': found \"a|b\", expected a list of choices"),
        ({"choices": {"a": 1}}, "FILE:2: column 'choices': found 1 choices, expected 2 to 26"),
        ({"question": "  "}, "FILE:2: column 'question' is empty"),
        ({"question": None}, "FILE:2: column 'question' is empty"),
        ({"question": ["x"]}, "FILE:2: column 'question': found the list [\"x\"], expected text"),
        ({"answer": True}, "FILE:2: column 'answer': found true, but the choices 'red', 'blue' "),
        ({"answer": 3}, "FILE:2: column 'answer': found 3, expected an index from 0 to 1 or an "),
        ({"answer": -1}, "FILE:2: column 'answer': found -1, expected an index from 0 to 1"),
        ({"answer": "C"}, "FILE:2: column 'answer': found \"C\", expected an index from 0 to 1"),
        ({"answer": "9" * 5000}, "FILE:2: column 'answer': found "),
        ({"answer": "blau"}, "FILE:2: column 'answer': found \"blau\", expected an index"),
    ],
)
def test_names_line_and_column_of_a_bad_row(
    tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    assert complaint(tmp_path, SKY, {**SKY, **change}).startswith(expected)


def test_a_missing_column_and_a_misspelt_answer_get_a_hint(tmp_path: Path) -> None:
    assert "no column 'answr' (did you mean 'answer'?)" in complaint(
        tmp_path, SKY, answer_column="answr"
    )
    assert complaint(tmp_path, {**SKY, "answer": "bluee"}).endswith(
        "or one of the choices 'red', 'blue' (did you mean 'blue'?)"
    )
    assert "'colour'" in complaint(tmp_path, SKY, prompt="{colour}{choices}:")


def test_a_prompt_without_any_text_is_refused(tmp_path: Path) -> None:
    row = {**SKY, "a": "", "b": None}
    assert "FILE:1: nothing in 'a', 'b'" in complaint(tmp_path, row, prompt="{a} {b} {choices}")


def test_equal_choices_are_refused_where_they_are_ambiguous(tmp_path: Path) -> None:
    row = {"question": "q", "choices": ["x", "x ", "y"], "answer": "A"}
    assert "'x' occurs more than once" in complaint(tmp_path, row, respond_with="text")
    assert loaded(tmp_path, row)[0].answer == 0  # as in 146 questions of CommonsenseQA
    assert "which occurs more than once" in complaint(tmp_path, {**row, "answer": "x"})


# Readings are decided by all splits.


def written(folder: Path, **splits: list[Any]) -> Path:
    """Write a file per split, whose questions have three choices and these answers."""
    for split, answers in splits.items():
        rows = [{"question": "q", "choices": ["x", "y", "z"], "answer": a} for a in answers]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def correct(folder: Path, split: str, **options: Any) -> list[int | None]:
    return [sample.answer for sample in task(folder, **options).load(split).samples]


def test_one_split_decides_for_the_others(tmp_path: Path) -> None:
    folder = written(tmp_path, train=[1, 2, 0], test=[1, 2])
    assert correct(folder, "test") == [1, 2]
    written(tmp_path, train=[1, 2, 3, 1])  # the same file of test questions is read differently
    assert correct(folder, "test") == [0, 1]


def test_splits_that_nothing_decides_are_refused_alike(tmp_path: Path) -> None:
    folder = written(tmp_path, train=[2, 1], test=[1])
    messages = set()
    for split in ("train", "test"):
        with pytest.raises(UserError) as caught:
            correct(folder, split)
        messages.add(str(caught.value))
    assert messages == {
        f"{folder / 'train.jsonl'}:1: column 'answer': found 2, which as index-from-0 means 'z' "
        "but as index-from-1 means 'y'; no other answer in the data decides, so set answer_as to "
        "index-from-0 or index-from-1"
    }
    assert correct(folder, "train", answer_as="index-from-1") == [1, 0]
    assert correct(folder, "train", answer_as="index") == [2, 1]  # the name until version 0.2


def test_splits_with_different_readings_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, train=[0, 1], test=[1, 3])
    for split in ("train", "test"):
        with pytest.raises(UserError) as caught:
            correct(folder, split)
        assert str(caught.value) == (
            f"{folder / 'test.jsonl'}:2: column 'answer': found 3, which can be read as "
            f"index-from-1, but {folder / 'train.jsonl'}:1: column 'answer' has 0, which can be "
            "read as index-from-0; write all answers in the same way, or give each file its own "
            "`path` and `answer_as`"
        )
    assert correct(folder, "train", answer_as="index-from-0") == [0, 1]


def test_a_test_split_without_answers_does_not_matter(tmp_path: Path) -> None:
    folder = written(tmp_path, train=["A", "B"], test=[-1, None, ""])
    (folder / "extra.jsonl").write_text('{"other": 1}\n{broken')
    assert correct(folder, "train") == [0, 1]
    with pytest.raises(UserError, match="found -1, expected an index from 0 to 2 or an index from"):
        correct(folder, "test")
    with pytest.raises(UserError, match=r"extra\.jsonl:1: there are no columns"):
        correct(folder, "extra")


@pytest.mark.parametrize("empty", [None, "", " \t", math.nan])
def test_an_empty_answer_is_no_label(tmp_path: Path, empty: object) -> None:
    """It does not count as evidence of how the answers are written."""
    folder = written(tmp_path, train=[empty, 1, empty, 2, 0], test=["", 1])
    samples = list(task(folder).load("train").samples)
    assert [sample.answer for sample in samples] == [None, 1, None, 2, 0]
    assert (samples[0].response, samples[0].candidates) == ("", samples[1].candidates)
    assert correct(folder, "test") == [None, 1]
    assert correct(folder, "train", answer_as="index-from-0") == [None, 1, None, 2, 0]
    with pytest.raises(UserError, match="no other answer in the data decides"):
        correct(written(tmp_path, train=[empty, 2, 1], test=[""]), "train")


def test_unlabelled_files_need_no_answers(tmp_path: Path) -> None:
    folder = written(tmp_path, train=[0, 1])
    pool = tmp_path / "pool.jsonl"
    rows = [{"question": "p", "choices": ["x", "y"]}, {"question": "q", "choices": ["z", "y"]}]
    rows[1]["answer"] = "not an answer"
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    unlabelled = task(folder, prompt="{question}:", respond_with="text").unlabelled(pool)
    first, second = unlabelled.load("train").samples
    assert (first.prompt, first.candidates) == ("p:", (" x", " y"))
    assert (second.answer, second.response) == (None, "")
    assert unlabelled.sources("train") == (pool,)
    beside = social(tmp_path, 2, "0\n1\n").unlabelled(tmp_path / "train.jsonl")
    assert [sample.answer for sample in beside.load("train").samples] == [None, None]
    assert beside.sources("train") == (tmp_path / "train.jsonl",)


def test_the_files_of_all_splits_are_sources(tmp_path: Path) -> None:
    folder = written(tmp_path, train=[0], test=[1])
    train, test = folder / "train.jsonl", folder / "test.jsonl"
    assert task(folder).sources("test") == (test, train)
    assert task(folder, answer_as="letter").sources("test") == (test,)


# Answers in a file beside the data.


def social(folder: Path, rows: int, lines: str, name: str = "train") -> MultipleChoice:
    """Write questions and their answers as PIQA and Social IQa publish them."""
    row = json.dumps({"goal": "g", "sol1": "x", "sol2": "y"})
    (folder / f"{name}.jsonl").write_text(f"{row}\n" * rows)
    (folder / f"{name}-labels.lst").write_text(lines)
    return task(
        folder,
        question_column="goal",
        choices_column=["sol1", "sol2"],
        answer_file="{name}-labels.lst",
    )


def test_answers_in_a_file_beside_the_data(tmp_path: Path) -> None:
    social(tmp_path, 2, "0\n1\n")
    chosen = social(tmp_path, 3, "1\n1\n0", "valid")
    check_task(social(tmp_path, 2, "0\n1\n\n"))
    (tmp_path / "tests.jsonl").write_text("{}\n")  # published without answers
    assert [sample.answer for sample in chosen.load("validation").samples] == [1, 1, 0]
    names = [path.name for path in chosen.sources("train")]
    assert names == [
        *("train.jsonl", "train-labels.lst", "valid.jsonl", "valid-labels.lst", "tests.jsonl")
    ]
    with pytest.raises(UserError, match=r"tests-labels\.lst: there is no such file; answer_file"):
        list(chosen.load("tests").samples)


@pytest.mark.parametrize(
    ("rows", "lines", "expected"),
    [
        (2, "0\n", "FOLDER/train-labels.lst: expected one line per row of train.jsonl, but train"),
        (1, "0\n1\n", "but train.jsonl ends after 1 and train-labels.lst does not"),
        (3, "0\n\n1\n", "FOLDER/train-labels.lst:2 is empty"),
        (2, "0\n7\n", 'FOLDER/train-labels.lst:2: found "7", expected an index from 0 to 1'),
    ],
)
def test_lines_that_do_not_fit_the_rows(
    tmp_path: Path, rows: int, lines: str, expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        list(social(tmp_path, rows, lines).load("train").samples)
    assert expected in str(caught.value).replace(str(tmp_path), "FOLDER")


def test_fields_within_a_column(tmp_path: Path) -> None:
    row = {
        "question": {"stem": "2 + 2?", "choices": [{"label": "A", "text": "3"}, {"text": "4"}]},
        "gold": {"key": {"letter": "B"}},
        "gold.key": "a column of this name comes first",
    }
    row["question"]["choices"][1]["label"] = "B"  # type: ignore[index]
    options = {"question_column": "question.stem", "choices_column": "question.choices"}
    nested = loaded(tmp_path, row, answer_column="gold.key.letter", **options)
    assert nested[0].prompt.startswith("2 + 2?\nA. 3\nB. 4") and nested[0].answer == 1
    found = complaint(tmp_path, row, answer_column="gold.keys.letter", **options)
    missing = "FILE:1: column 'gold': there is no column 'keys.letter'; the row has 'key'"
    assert found == f"{missing}; set answer_column"
    template = "{question.stem}{choices}"
    assert loaded(tmp_path, row, answer_column="gold.key.letter", prompt=template, **options)


def test_all_missing_columns_are_named_at_once_with_their_options(tmp_path: Path) -> None:
    row = {"text": "What colour?", "label": "red"}
    assert complaint(tmp_path, row) == (
        "FILE:1: there are no columns 'question', 'choices' and 'answer'; the row has 'text', "
        "'label'; set question_column, choices_column (or `choices`, if all questions have the "
        "same) and answer_column"
    )
    named: dict[str, Any] = {"question_column": "text", "choices": ["red", "blue"]}
    assert complaint(tmp_path, row, **named) == (
        "FILE:1: there is no column 'answer'; the row has 'text', 'label'; set answer_column"
    )
    prompt = "{subject}: {question}\n{choices}"
    assert complaint(tmp_path, row, answer_column="label", prompt=prompt, **named) == (
        "FILE:1: there is no column 'subject'; the row has 'text', 'label'; set prompt"
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"prompt": "{question} Answer:"},
            "add {choices} to `prompt`, or set respond_with to text",
        ),
        ({"choice": "- {text}"}, "let `choice` contain {letter} and {text}"),
        ({"choice": "{letter}"}, "let `choice` contain {letter} and {text}"),
        ({"prompt": "{question} {A}", "choices_column": ["A", "B"]}, "add {choices}"),
        ({"prompt": "{question} {A} {B}", "choices_column": ["A", "B"]}, None),
        ({"prompt": "{question}", "respond_with": "text"}, None),
    ],
)
def test_letters_that_the_prompt_does_not_explain_are_refused(
    options: dict[str, Any], expected: str | None
) -> None:
    if expected is None:
        MultipleChoiceOptions.model_validate({"path": "x.csv", **options})
        return
    with pytest.raises(ValidationError) as caught:
        MultipleChoiceOptions.model_validate({"path": "x.csv", **options})
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"choices": ["x"]}, "at least 2 items"),
        ({"choices": [str(i) for i in range(27)]}, "at most 26 items"),
        ({"choices": ["x", " x"]}, "listed twice"),
        ({"choices": ["x", ""]}, "one of the choices is empty"),
        ({"choices": [True, False]}, "valid string"),
        ({"choices": ["x", "y"], "choices_column": "z"}, "`choices` holds for all questions"),
        ({"prompt": "no column"}, "at least one {name}"),
        ({"prompt": "{question"}, "expected '}'"),
        ({"prompt": "{question.upper}{choices}"}, None),
        ({"prompt": "{question!r}"}, "just a name"),
        ({"prompt": "{question:>9}"}, "just a name"),
        ({"prompt": "{}"}, "just a name"),
        ({"response": "{text}"}, "unknown {text}, expected {answer}"),
        ({"choice": "{answer}"}, "unknown {answer}, expected {letter} or {text}"),
        ({"answer_as": "number"}, "'index-from-1', 'letter', 'label', 'text' or 'boolean'"),
        ({"colour": "x"}, "Extra inputs"),
        ({"answer_file": "../labels.lst"}, "expected the name of a file"),
        ({"answer_file": "{split}.lst"}, "only {name} has a meaning"),
        ({"answer_file": "a.lst", "answer_column": "x"}, "`answer_file` contains the answers"),
    ],
)
def test_options_are_checked(options: dict[str, Any], expected: str | None) -> None:
    if expected is None:  # a column may have any name
        MultipleChoiceOptions.model_validate({"path": "x.csv", **options})
        return
    with pytest.raises(ValidationError) as caught:
        MultipleChoiceOptions.model_validate({"path": "x.csv", **options})
    assert expected in str(caught.value)


@pytest.mark.shared
@pytest.mark.skipif(not DATA.is_dir(), reason="real data are not beside this checkout")
@pytest.mark.parametrize(
    ("folder", "options", "sizes", "share_of_first"),
    [
        ("trec", {}, {"train": 5452, "test": 500}, 9 / 500),
        (
            "sst2",
            {
                "question_column": "sentence",
                "answer_column": "label",
                "choices": ["negative", "positive"],
            },
            {"train": 6920, "validation": 872, "test": 1821},
            912 / 1821,
        ),
    ],
)
def test_real_data(
    folder: str, options: dict[str, Any], sizes: dict[str, int], share_of_first: float
) -> None:
    chosen = task(DATA / folder, respond_with="text", prompt="{question}\nAnswer:", **options)
    check_task(chosen)
    splits = {split: list(chosen.load(split).samples) for split in chosen.splits}
    assert {split: len(samples) for split, samples in splits.items()} == sizes
    answers = [sample.answer for sample in splits["test"]]
    assert answers.count(0) / len(answers) == share_of_first
    alone = list(task(DATA / folder / "test.jsonl", **options).load("test").samples)
    assert [sample.answer for sample in alone] == answers


def of_subjects(folder: Path, layout: str) -> None:
    """Write one question of each subject to a file, and its name into a column."""
    for subject in ("anatomy", "law"):
        path = folder / layout.format(subject)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(SKY | {"question": f"{subject}?", "topic": {"area": subject}}))


@pytest.mark.parametrize(
    ("layout", "given", "group"),
    [
        ("{}.jsonl", "*.jsonl", "{name}"),
        ("{}.jsonl", "*.jsonl", "topic.area"),
        ("{}/test-00000-of-00001.jsonl", "*", "{folder}"),  # as MMLU on the hub
    ],
)
def test_groups_are_a_column_or_the_name_of_a_file_or_folder(
    tmp_path: Path, layout: str, given: str, group: str
) -> None:
    of_subjects(tmp_path, layout)
    of_files = task(tmp_path / given, group=group)
    samples = list(of_files.load("test").samples)
    assert [sample.group for sample in samples] == ["anatomy", "law"]
    assert [sample.prompt[:4] for sample in samples] == ["anat", "law?"]
    check_task(of_files)


def test_a_group_that_is_empty_or_misspelt_is_refused(tmp_path: Path) -> None:
    assert complaint(tmp_path, SKY | {"subject": " "}, group="subject") == (
        "FILE:1: column 'subject' is empty"
    )
    assert "there is no column 'subject'" in complaint(tmp_path, SKY, group="subject")
    with pytest.raises(ValidationError, match=r"only \{name\} and \{folder\} have"):
        task(tmp_path, group="{subject}")
