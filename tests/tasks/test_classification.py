"""The task `classification`: labels, prompts, and answers that tokenizers tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from firstcli.api import Sample
from firstcli.errors import UserError
from firstcli.tasks.classification import Classification, ClassificationOptions
from firstcli.testing import check_task
from support.command_line import write_rows

Row = dict[str, Any]
ROWS: list[Row] = [
    {"text": "pay me", "label": "billing"},
    {"text": "it broke", "label": "technical"},
    {"text": "pay you", "label": "billing"},
]


def options(path: Path, **given: Any) -> ClassificationOptions:
    return ClassificationOptions.model_validate({"path": str(path), **given})


def samples(path: Path, split: str = "train", **given: Any) -> list[Sample]:
    return list(Classification(options(path, **given)).load(split).samples)


def complaint(path: Path, split: str = "train", **given: Any) -> str:
    with pytest.raises(UserError) as error:
        samples(path, split, **given)
    return str(error.value)


def by_letter(_: str, responses: Sequence[str]) -> list[list[tuple[int, ...] | None]]:
    """A tokenizer with one token per character, and EOS; spaces in front are dropped."""
    return [[(*map(ord, text.strip()), 0) for text in responses]]


def by_word(_: str, responses: Sequence[str]) -> list[list[tuple[int, ...] | None]]:
    """A tokenizer with one token per word."""
    return [[tuple(hash(word) for word in [*text.split(), ""]) for text in responses]]


def adapted(path: Path, tokens: Any = by_letter, training: Any = None, **given: Any) -> Any:
    return Classification(options(path, **given)).adapted(tokens, training)


def test_columns_text_and_label_need_no_options(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "all.jsonl", ROWS)
    first, second, _ = samples(path)
    candidates = (" billing", " technical")
    assert first == Sample.question("pay me\n\nLabel:", candidates, 0)
    assert second == Sample.question("it broke\n\nLabel:", candidates, 1)
    check_task(Classification(options(path)))


def test_samples_share_their_candidates(tmp_path: Path) -> None:
    found = samples(write_rows(tmp_path / "all.jsonl", ROWS))
    assert len({id(sample.candidates) for sample in found}) == 1


def test_several_text_columns_and_other_columns(tmp_path: Path) -> None:
    rows = [
        {"subject": "Hi", "body": f" broken {n} ", "topic": n, "lang": "en", "key": f"k{n}"}
        for n in range(2)
    ]
    path = write_rows(tmp_path / "all.jsonl", [*rows, {**rows[0], "subject": "", "key": "k2"}])
    given: Row = {"text": ["subject", "body"], "label": "topic", "prompt": "[{lang}] {text}\n>"}
    first, second, third = samples(path, **given, id_column="key", group="lang")
    assert first.prompt == "[en] subject: Hi\nbody: broken 0\n>"
    assert third.prompt == "[en] body: broken 0\n>"
    assert (second.id, second.group, second.response) == ("k1", "en", " 1")


def test_labels_with_descriptions_are_listed_in_the_prompt(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "all.jsonl", ROWS)
    labels: Any = {"technical": "faults", "billing": ""}
    sample = samples(path, labels=labels)[0]
    listed = "- technical: faults\n- billing"
    assert sample.prompt == f"Labels:\n{listed}\n\nText: pay me\n\nLabel:"
    assert sample.candidates == (" technical", " billing")
    assert samples(path, labels=labels, prompt="{labels}|{text}")[0].prompt == f"{listed}|pay me"
    many = {"billing": "x", "technical": "y"} | {f"label {n}": "z" for n in range(60)}
    assert samples(path, labels=many)[0].prompt == "pay me\n\nLabel:"


def test_numbers_booleans_and_missing_labels(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = [10.0, 2.0, None, float("nan"), 2.0]
    pq.write_table(pa.table({"text": [*"abcde"], "label": values}), tmp_path / "all.parquet")
    split = Classification(options(tmp_path / "all.parquet")).load("train")
    found = list(split.samples)
    assert found[0].candidates == (" 2", " 10")  # sorted as numbers
    assert [sample.answer for sample in found] == [1, 0, None, None, 0]  # None is unlabelled
    assert split.dropped == {}
    rows = [{"text": "a", "label": True}, {"text": "b", "label": False}]
    path = write_rows(tmp_path / "all.jsonl", rows)
    assert [sample.response for sample in samples(path)] == [" true", " false"]


def test_rows_without_text_are_counted(tmp_path: Path) -> None:
    rows = [*ROWS, {"text": " ", "label": "billing"}, {"text": "c", "label": ""}]
    task = Classification(options(write_rows(tmp_path / "all.jsonl", rows)))
    split = task.load("train")
    assert len(list(split.samples)) == 4
    assert split.dropped == {"empty text": 1}
    check_task(task)


def test_labels_come_from_the_training_split(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", ROWS)
    test = write_rows(tmp_path / "test.jsonl", [{"text": "x", "label": "biling"}])
    task = Classification(options(tmp_path))
    assert [file.name for file in task.sources("test")] == ["test.jsonl", "train.jsonl"]
    found = complaint(tmp_path, "test")
    assert f"{test}:1: column 'label': found \"biling\" (did you mean 'billing'?)" in found
    assert "none of the 2 labels 'billing', 'technical'" in found and "`labels`" in found


def test_with_a_share_for_testing_rare_labels_count_wherever_they_are(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "label": f"l{n}"} for n in range(30)]
    path = write_rows(tmp_path / "all.jsonl", rows)
    train, test = samples(path, test=0.5), samples(path, "test", test=0.5)
    assert len(train) + len(test) == 30 and train and test
    assert {len(sample.candidates) for sample in (*train, *test)} == {30}


@pytest.mark.parametrize(
    ("rows", "given", "expected"),
    [
        ([ROWS[0]], {}, "column 'label': found 1 different labels, expected 2 to 1,000"),
        (
            [{"text": "x", "label": n} for n in range(1001)],
            {},
            "found more than 1,000 different labels, expected 2 to 1,000; check that `label`",
        ),
        (
            [{"body": "x", "labels": "y"}],
            {"prompt": "{text} {lang}"},
            "all.jsonl:1: there are no columns 'text', 'label' (did you mean 'labels'?) and "
            "'lang'; the row has 'body', 'labels'; set text, label and prompt",
        ),
        ([{"text": "x", "label": ["a"]}], {"labels": ["a", "b"]}, 'found the list ["a"]'),
        ([{"text": "x", "label": 1.5}], {"labels": ["a", "b"]}, "found 1.5, expected text"),
    ],
)
def test_mistakes_in_the_data(
    tmp_path: Path, rows: list[Row], given: dict[str, Any], expected: str
) -> None:
    assert expected in complaint(write_rows(tmp_path / "all.jsonl", rows), **given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"labels": ["a"]}, "found 1 labels, expected 2 to 1,000"),
        ({"labels": [str(n) for n in range(1001)]}, "found 1001 labels"),
        ({"labels": ["a", " a"]}, "'a' is listed twice"),
        ({"labels": ["a", " "]}, "one of the labels is empty"),
        ({"labels": {"a": "x"}}, "found 1 labels"),
        ({"prompt": "{labels}"}, "expected {text} or another column"),
        ({"codes": {"a": "A", "b": "B"}}, "have no effect unless `answers` is codes"),
        ({"answers": "codes", "codes": {"a": "A"}}, "expected one code for each of `labels`"),
        (
            {"answers": "codes", "labels": ["a", "b"], "codes": {"a": "A", "b": "A"}},
            "expected different codes",
        ),
    ],
)
def test_mistakes_in_the_options(tmp_path: Path, given: Row, expected: str) -> None:
    with pytest.raises(ValidationError, match=expected.replace("{", r"\{").replace("}", r"\}")):
        options(tmp_path, **given)


def test_numbers_are_labels_too(tmp_path: Path) -> None:
    assert options(tmp_path, labels={0: "bad", 1: "good"}).descriptions == {"0": "bad", "1": "good"}
    assert options(tmp_path, labels=[1, 2]).descriptions == {"1": "", "2": ""}


def test_labels_are_the_answers_if_their_first_tokens_differ(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "all.jsonl", ROWS)
    adaptation = adapted(path)
    assert adaptation.note == "2 labels, answered as words"
    assert adaptation.options.labels == ["billing", "technical"]
    assert (adaptation.options.answers, adaptation.options.codes) == ("labels", None)
    assert list(Classification(adaptation.options).load("train").samples) == samples(path)


ALIKE = ["card lost", "card stolen", "other"]


def test_codes_are_the_answers_otherwise(tmp_path: Path) -> None:
    rows = [{"text": f"about {label}", "label": label} for label in ALIKE]
    path = write_rows(tmp_path / "all.jsonl", rows)
    adaptation = adapted(path, by_word)
    assert adaptation.note == (
        "3 labels, answered as the codes A to C, because the labels 'card lost' and 'card stolen' "
        "begin with the same token"
    )
    assert adaptation.options.codes == dict(zip(ALIKE, "ABC", strict=True))
    sample = next(iter(Classification(adaptation.options).load("train").samples))
    assert sample.candidates == (" A", " B", " C")
    listed = "Labels:\nA. card lost\nB. card stolen\nC. other"
    assert sample.prompt == f"{listed}\n\nText: about card lost\n\nLabel:"
    again = Classification(adaptation.options).adapted(by_word, None)
    assert again.options == adaptation.options


def test_answers_as_the_user_states_them(tmp_path: Path) -> None:
    rows = [{"text": f"about {label}", "label": label} for label in ALIKE]
    path = write_rows(tmp_path / "all.jsonl", rows)
    with pytest.raises(UserError, match="'card lost' and 'card stolen' begin with the same token"):
        adapted(path, by_word, answers="labels")
    codes = adapted(path, by_letter, answers="codes").options.codes
    assert codes == dict(zip(ALIKE, "ABC", strict=True))
    given = {"answers": "codes", "labels": ALIKE}
    own = dict(zip(ALIKE, ("lost", "stolen", "x"), strict=True))
    assert adapted(path, by_word, **given, codes=own).options.codes == own
    with pytest.raises(UserError, match="codes: 'x y' and 'x z' begin with the same token"):
        adapted(path, by_word, **given, codes=dict(zip(ALIKE, ("x y", "x z", "w"), strict=True)))


def test_too_few_codes(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "all.jsonl", ROWS)
    with pytest.raises(UserError, match="tell only 53 codes apart, but there are 60 labels"):
        adapted(path, by_letter, labels=[f"x{n}" for n in range(60)])


def test_a_label_that_changes_the_prompt_s_tokens_is_reported_when_samples_are_encoded(
    tmp_path: Path,
) -> None:
    def crossing(_: str, responses: Sequence[str]) -> list[list[tuple[int, ...] | None]]:
        return [[None for _ in responses]]

    path = write_rows(tmp_path / "all.jsonl", ROWS)
    assert adapted(path, crossing).options.answers == "labels"


def test_evaluations_answer_as_in_training(tmp_path: Path) -> None:
    rows = [{"text": f"about {label}", "label": label} for label in ALIKE]
    path = write_rows(tmp_path / "all.jsonl", rows)
    training = adapted(path, by_word).options
    other = write_rows(tmp_path / "other.jsonl", [rows[2], rows[1]])
    evaluated = adapted(other, by_letter, training).options
    assert (evaluated.labels, evaluated.codes) == (ALIKE, training.codes)
    part = adapted(other, by_letter, training, labels=["other", "card lost"]).options
    assert part.codes == {"other": "C", "card lost": "A"}
    foreign = adapted(other, by_letter, training, labels=["x", "y"]).options
    assert (foreign.answers, foreign.codes) == ("labels", None)
    words = adapted(other, by_letter, training, answers="labels", labels=["other", "card"]).options
    assert words.codes is None
