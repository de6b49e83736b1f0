"""The paper's four tasks: their prompts to the character, and every way to get at their data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from firstcli.api import Sample
from firstcli.errors import UserError
from firstcli.tasks.paper import Alpaca, BoolQ, CommonsenseQA, OpenBookQA, PaperOptions, PaperTask
from firstcli.testing import check_task
from support.paths import SHARED

DATA = SHARED / "data"
ALL: tuple[type[PaperTask], ...] = (CommonsenseQA, OpenBookQA, BoolQ, Alpaca)


def nested(stem: str, texts: list[str], key: str, id: str) -> dict[str, Any]:
    """Return a row as CommonsenseQA and OpenBookQA publish it."""
    choices = [{"label": "ABCDE"[i], "text": text} for i, text in enumerate(texts)]
    return {"answerKey": key, "id": id, "question": {"choices": choices, "stem": stem}}


def flat(row: dict[str, Any], stem_column: str) -> dict[str, Any]:
    """Return the same row in the hub's format."""
    question = row["question"]
    choices = {key: [choice[key] for choice in question["choices"]] for key in ("text", "label")}
    return {
        "id": row["id"],
        stem_column: question["stem"],
        "choices": choices,
        "answerKey": row["answerKey"],
    }


SCHOOL = nested(
    "The sanctions against the school were a punishing blow, and they seemed to what the efforts "
    "the school had made to change?",
    ["ignore", "enforce", "authoritarian", "yell at", "avoid"],
    "A",
    "075e483d21c29a511267ef62bedc0461",
)
FOOD = nested(
    "food is a source of energy for what?",
    ["waterfalls", "fires", "grass snakes", "mountains"],
    "C",
    "7-1",
)
MOVIES = {
    "question": "is windows movie maker part of windows essentials",
    "passage": "Windows Movie Maker is a part of Windows Essentials.",
    "answer": True,
}
SORT = {
    "instruction": "For the given list of items, classify them into two categories.",
    "input": "Carrot, Apple, Pumpkin, Orange",
    "output": "Fruits: Apple, Orange\nVegetables: Carrot, Pumpkin",
}
HELLO = {"instruction": "Say hello.", "input": "", "output": "Hello!"}

SCHOOL_SAMPLE = Sample(
    prompt=(
        "Q: The sanctions against the school were a punishing blow, and they seemed to what the "
        "efforts the school had made to change?\n"
        "Answer Choices:\n"
        "(a) ignore\n"
        "(b) enforce\n"
        "(c) authoritarian\n"
        "(d) yell at\n"
        "(e) avoid\n"
        "A: The answer is ("
    ),
    response="a).",
    id="075e483d21c29a511267ef62bedc0461",
    candidates=("a).", "b).", "c).", "d).", "e)."),
    answer=0,
)
FOOD_SAMPLE = Sample(
    prompt=(
        "Q: food is a source of energy for what?\n"
        "Answer Choices:\n"
        "(A) waterfalls\n"
        "(B) fires\n"
        "(C) grass snakes\n"
        "(D) mountains\n"
        "A: The answer is ("
    ),
    response="C).",
    id="7-1",
    candidates=("A).", "B).", "C).", "D)."),
    answer=2,
)
MOVIES_SAMPLE = Sample(
    prompt=(
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n"
        "\n"
        "### Instruction:\n"
        "Read the input passage and answer the question: is windows movie maker part of windows "
        "essentials? Your answer should be Yes or No.\n"
        "\n"
        "### Input:\n"
        "Windows Movie Maker is a part of Windows Essentials.\n"
        "\n"
        "### Response:\n"
    ),
    response="Yes",
    candidates=("Yes", "No"),
    answer=0,
)
SORT_SAMPLE = Sample(
    prompt=(
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n"
        "\n"
        "### Instruction:\n"
        "For the given list of items, classify them into two categories.\n"
        "\n"
        "### Input:\n"
        "Carrot, Apple, Pumpkin, Orange\n"
        "\n"
        "### Response:\n"
    ),
    response="Fruits: Apple, Orange\nVegetables: Carrot, Pumpkin",
)
HELLO_SAMPLE = Sample(
    prompt=(
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n"
        "\n"
        "### Instruction:\n"
        "Say hello.\n"
        "\n"
        "### Response:\n"
    ),
    response="Hello!",
)

Case = tuple[type[PaperTask], dict[str, Any], dict[str, Any], Sample]
CASES: list[Case] = [  # task, row as published, row as on the hub, sample
    (CommonsenseQA, SCHOOL, flat(SCHOOL, "question") | {"question_concept": "x"}, SCHOOL_SAMPLE),
    (OpenBookQA, FOOD, flat(FOOD, "question_stem"), FOOD_SAMPLE),
    (BoolQ, MOVIES, MOVIES, MOVIES_SAMPLE),
    (Alpaca, SORT, SORT | {"text": "unused"}, SORT_SAMPLE),
    (Alpaca, HELLO, HELLO | {"text": "unused"}, HELLO_SAMPLE),
]


def at(kind: type[PaperTask], path: Path) -> PaperTask:
    return kind(PaperOptions.model_validate({"path": str(path)}))


def one_row(kind: type[PaperTask], tmp_path: Path, row: object) -> Sample:
    path = tmp_path / "row.jsonl"
    path.write_text(json.dumps(row))
    (sample,) = at(kind, path).load("train").samples
    return sample


@pytest.mark.parametrize("case", CASES)
def test_prompt_and_response_to_the_character(tmp_path: Path, case: Case) -> None:
    kind, published, on_hub, expected = case
    assert one_row(kind, tmp_path, published) == expected
    assert one_row(kind, tmp_path, on_hub) == expected


def test_boolq_answers_no_and_has_one_question_mark(tmp_path: Path) -> None:
    sample = one_row(BoolQ, tmp_path, MOVIES | {"answer": False, "question": "is it so?"})
    assert (sample.response, sample.answer) == ("No", 1)
    assert "question: is it so? Your answer" in sample.prompt


@pytest.mark.parametrize("case", CASES)
def test_loads_from_the_hub_by_name_and_commit(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    import datasets

    kind, _, on_hub, expected = case
    requests: list[tuple[Any, ...]] = []

    def load_dataset(repo: str, config: str | None, *, split: str, revision: str) -> Any:
        requests.append((repo, config, split, revision))
        return datasets.Dataset.from_list([on_hub])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = kind(PaperOptions())
    for split in task.splits:
        assert list(task.load(split).samples) == [expected]
    names = [kind.hub_splits[split] for split in task.splits]
    assert requests == [(kind.repo, kind.config, name, kind.pinned) for name in names]
    assert len(kind.pinned) == 40
    kind(PaperOptions(revision="main")).load("train")
    assert requests[-1][3] == "main"


def hub_folder(folder: Path, kind: type[PaperTask], row: dict[str, Any]) -> Path:
    """Write Parquet files and a card like a data set repository on the hub."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    config = kind.config or "default"
    (folder / config).mkdir(parents=True)
    if kind.config:  # OpenBookQA has a second configuration
        (folder / "additional").mkdir()
        pq.write_table(
            pa.table({"fact": ["x"]}), folder / "additional/train-00000-of-00001.parquet"
        )
    splits = sorted(set(kind.hub_splits.values()))
    for split in splits:
        file = folder / config / f"{split}-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist([row]), file)
    listed = "".join(f"  - split: {s}\n    path: {config}/{s}-*\n" for s in splits)
    card = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{listed}---\n"
    (folder / "README.md").write_text(card)
    return folder


@pytest.mark.parametrize("case", CASES[:4])
def test_the_real_library_reads_the_hubs_layout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: Case
) -> None:
    import datasets

    kind, _, on_hub, expected = case
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = hub_folder(tmp_path / "repo", kind, on_hub)
    monkeypatch.setattr(kind, "repo", str(folder))
    task = kind(PaperOptions())
    check_task(task)
    for split in task.splits:
        assert list(task.load(split).samples) == [expected]


@pytest.mark.parametrize("error", [ConnectionError("no route"), ValueError("no such config")])
def test_without_the_hub_the_message_names_data_set_and_remedy(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    import datasets

    def load_dataset(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"'google/boolq' at revision .* option `path`"):
        list(BoolQ(PaperOptions()).load("train").samples)


FILES = {
    CommonsenseQA: {"train": "train_rand_split.jsonl", "test": "dev_rand_split.jsonl"},
    OpenBookQA: {"train": "train.jsonl", "validation": "dev.jsonl", "test": "test.jsonl"},
    BoolQ: {"train": "train.jsonl", "test": "dev.jsonl"},
    Alpaca: {"train": "alpaca_data.json"},
}


@pytest.mark.parametrize("case", CASES[:4])
def test_a_folder_with_the_official_files(tmp_path: Path, case: Case) -> None:
    kind, published, _, _ = case
    with pytest.raises(UserError, match="none of the data set's files is in this folder: train is"):
        _ = at(kind, tmp_path).splits
    for name in FILES[kind].values():
        (tmp_path / name).write_text(
            json.dumps([published] if name.endswith(".json") else published)
        )
    task = at(kind, tmp_path)
    check_task(task)
    assert task.splits == tuple(FILES[kind])
    assert [task.sources(split) for split in task.splits] == [
        (tmp_path / name,) for name in FILES[kind].values()
    ]
    if len(FILES[kind]) > 1:
        (tmp_path / FILES[kind]["test"]).unlink()
        assert "test" not in at(kind, tmp_path).splits
        with pytest.raises(UserError, match="the split 'test' is missing: test is"):
            list(at(kind, tmp_path).load("test").samples)


@pytest.mark.parametrize("case", CASES[:4])
@pytest.mark.parametrize("saved", [False, True], ids=["cloned", "saved to disk"])
def test_a_local_copy_of_the_hubs_folder(tmp_path: Path, case: Case, saved: bool) -> None:
    import datasets

    kind, _, on_hub, expected = case
    folder = hub_folder(tmp_path / "repo", kind, on_hub)
    if saved:
        datasets.disable_progress_bars()
        names = sorted({*kind.hub_splits.values(), "test"})
        part = datasets.Dataset.from_list([on_hub])
        folder = tmp_path / "saved"
        datasets.DatasetDict(dict.fromkeys(names, part)).save_to_disk(str(folder))
    task = at(kind, folder)
    check_task(task)
    assert task.splits == tuple(kind.hub_splits)
    for split in task.splits:
        assert list(task.load(split).samples) == [expected]


def test_the_hubs_validation_split_is_our_test_split_and_shards_are_joined(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(name: str, row: dict[str, Any]) -> None:
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "data" / name)

    row = flat(SCHOOL, "question")
    write("train-00000-of-00002.parquet", row | {"id": "1"})
    write("train-00001-of-00002.parquet", row | {"id": "2"})
    write("validation-00000-of-00001.parquet", row | {"id": "3"})
    write("test-00000-of-00001.parquet", row | {"id": "4", "answerKey": ""})  # without labels
    task = at(CommonsenseQA, tmp_path)
    found = {split: [sample.id for sample in task.load(split).samples] for split in task.splits}
    assert found == {"train": ["1", "2"], "test": ["3"]}


def test_data_from_the_hub_have_no_local_source() -> None:
    assert BoolQ(PaperOptions()).sources("train") is None


def test_openbook_qa_finds_its_files_in_the_unpacked_archive(tmp_path: Path) -> None:
    (tmp_path / "Data" / "Main").mkdir(parents=True)
    (tmp_path / "Data" / "Main" / "dev.jsonl").write_text(json.dumps(FOOD))
    task = at(OpenBookQA, tmp_path)
    assert task.splits == ("validation",)
    assert list(task.load("validation").samples) == [FOOD_SAMPLE]


@pytest.mark.parametrize("no", [False, "False", "no", 0, 0.0, [False]])
def test_boolq_reads_every_spelling_of_no(tmp_path: Path, no: object) -> None:
    assert one_row(BoolQ, tmp_path, MOVIES | {"answer": no}).response == "No"


def test_an_answer_key_names_one_label(tmp_path: Path) -> None:
    assert one_row(OpenBookQA, tmp_path, FOOD | {"answerKey": ["C"]}) == FOOD_SAMPLE
    digits = {"label": ["1", "2", "3"], "text": ["x", "y", "z"]}
    row = {"question": "q", "choices": digits, "answerKey": 3}
    assert one_row(OpenBookQA, tmp_path, row).answer == 2
    row["choices"] = {"label": ["A", "B", "A"], "text": ["x", "y", "z"]}
    with pytest.raises(UserError, match="found the labels 'A', 'B', 'A', expected different ones"):
        one_row(OpenBookQA, tmp_path, row | {"answerKey": "A"})
    with pytest.raises(UserError, match="is a list of 2, but a question must have exactly one"):
        one_row(OpenBookQA, tmp_path, FOOD | {"answerKey": ["A", "C"]})


def test_white_space_in_choices_is_kept(tmp_path: Path) -> None:
    choices = {"label": ["A", "B"], "text": [" x", "y "]}
    row = {"question": "q", "choices": choices, "answerKey": "A"}
    assert "(a)  x\n(b) y \n" in one_row(CommonsenseQA, tmp_path, row).prompt


def without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        (CommonsenseQA, without(SCHOOL, "answerKey"), "no column 'answerKey'"),
        (CommonsenseQA, SCHOOL | {"answerKey": "F"}, 'found "F", expected one of the labels'),
        (CommonsenseQA, SCHOOL | {"answerKey": ""}, "column 'answerKey' is empty"),
        (CommonsenseQA, SCHOOL | {"question": {"stem": "x"}}, "no column 'choices'"),
        (CommonsenseQA, SCHOOL | {"question": {"stem": "x", "choices": []}}, "found 0 choices"),
        (CommonsenseQA, SCHOOL | {"question": {"stem": "x", "choices": 3}}, "found 3, expected"),
        (CommonsenseQA, SCHOOL | {"question": {"stem": "x", "choices": ["a", "b"]}}, "expected a"),
        (
            CommonsenseQA,
            SCHOOL | {"question": {"stem": "x", "choices": {"label": ["A"], "text": ["x", "y"]}}},
            "found 2 choices, but 1 labels",
        ),
        (
            CommonsenseQA,
            SCHOOL | {"question": SCHOOL["question"] | {"stem": " "}},
            "'stem' is empty",
        ),
        (OpenBookQA, without(FOOD, "question"), "no column 'choices'"),
        (
            BoolQ,
            MOVIES | {"answer": "maybe"},
            "column 'answer': found \"maybe\", expected true or false",
        ),
        (BoolQ, without(MOVIES, "passage"), "no column 'passage'"),
        (Alpaca, without(SORT, "output"), "no column 'output'; the row has 'instruction', 'input'"),
        (Alpaca, SORT | {"instruction": ""}, "column 'instruction' is empty"),
    ],
)
def test_names_the_line_of_a_malformed_row(
    tmp_path: Path, kind: type[PaperTask], row: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        one_row(kind, tmp_path, row)
    assert str(caught.value).startswith(f"{tmp_path / 'row.jsonl'}:1: ")
    assert expected in str(caught.value)


def test_alpaca_keeps_instructions_without_an_output(tmp_path: Path) -> None:
    path = tmp_path / "alpaca_data.json"
    path.write_text(json.dumps([HELLO, HELLO | {"output": ""}, without(HELLO, "input")]))
    loaded = at(Alpaca, path).load("train")
    without_output = replace(HELLO_SAMPLE, response="")
    assert list(loaded.samples) == [HELLO_SAMPLE, without_output, HELLO_SAMPLE]
    assert not Alpaca.has_candidates


def test_a_revision_of_a_local_file_is_refused() -> None:
    with pytest.raises(ValidationError, match="has no effect beside `path`"):
        PaperOptions.model_validate({"path": "x", "revision": "main"})


@pytest.mark.shared
@pytest.mark.skipif(not DATA.is_dir(), reason="real data are not beside this checkout")
@pytest.mark.parametrize(
    ("kind", "folder", "sizes"),
    [
        (CommonsenseQA, "commonsense_qa", {"train": 9741, "test": 1221}),
        (OpenBookQA, "openbook_qa", {"train": 4957, "validation": 500, "test": 500}),
        (BoolQ, "boolq", {"train": 2270, "test": 1000}),
        (Alpaca, "alpaca", {"train": 9229}),
    ],
)
def test_real_data(kind: type[PaperTask], folder: str, sizes: dict[str, int]) -> None:
    task = at(kind, DATA / folder)
    check_task(task)
    assert {split: len(list(task.load(split).samples)) for split in task.splits} == sizes
    if kind is CommonsenseQA:  # the example that the paper prints is the data set's first row
        assert next(iter(task.load("train").samples)) == SCHOOL_SAMPLE
