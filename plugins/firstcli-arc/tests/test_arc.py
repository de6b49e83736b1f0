"""The plugin on a few invented questions; no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from firstcli_arc import HUB_REVISION, Arc, ArcOptions

from firstcli.api import Sample, UserError
from firstcli.testing import check_task


def question(id: str, stem: str, choices: dict[str, str], key: str) -> dict[str, Any]:
    listed = [{"text": text, "label": label} for label, text in choices.items()]
    return {"id": id, "question": {"stem": stem, "choices": listed}, "answerKey": key}


def on_hub(row: dict[str, Any]) -> dict[str, Any]:
    choices = row["question"]["choices"]
    return {
        "id": row["id"],
        "question": row["question"]["stem"],
        "choices": {key: [choice[key] for choice in choices] for key in ("text", "label")},
        "answerKey": row["answerKey"],
    }


LETTERED = question("q1", "What is wet?", {"A": "water", "B": "sand", "C": "salt"}, "A")
NUMBERED = question(
    "q2", "Which is hot?", {"1": "ice", "2": "snow", "3": "rain", "4": "fog", "5": "lava"}, "5"
)
SAMPLES = [
    Sample(
        prompt=(
            "Q: What is wet?\nAnswer Choices:\n(A) water\n(B) sand\n(C) salt\nA: The answer is ("
        ),
        response="A).",
        id="q1",
        candidates=("A).", "B).", "C)."),
        answer=0,
    ),
    Sample(
        prompt=(
            "Q: Which is hot?\nAnswer Choices:\n(A) ice\n(B) snow\n(C) rain\n(D) fog\n(E) lava\n"
            "A: The answer is ("
        ),
        response="E).",
        id="q2",
        candidates=("A).", "B).", "C).", "D).", "E)."),
        answer=4,
    ),
]


def at(path: Path, config: str = "ARC-Challenge") -> Arc:
    return Arc(ArcOptions.model_validate({"path": str(path), "config": config}))


def archive(tmp_path: Path) -> Path:
    """Write files in the layout of the official archive; the easy set has one question."""
    for config, rows in (("ARC-Challenge", [LETTERED, NUMBERED]), ("ARC-Easy", [NUMBERED])):
        (tmp_path / config).mkdir()
        for split in ("Train", "Dev", "Test"):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / config / f"{config}-{split}.jsonl").write_text(lines)
    return tmp_path


def test_reads_the_official_archive(tmp_path: Path) -> None:
    folder = archive(tmp_path)
    for task in (at(folder), at(folder / "ARC-Challenge")):
        check_task(task)
        assert [task.load(split).samples for split in task.splits] == [SAMPLES] * 3
    assert at(folder, "ARC-Easy").load("test").samples == SAMPLES[1:]
    file = folder / "ARC-Challenge" / "ARC-Challenge-Dev.jsonl"
    assert at(file).load("test").samples == SAMPLES
    assert at(folder).sources("validation") == at(file).sources("test") == [file]


def test_reads_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(name: str, config: str, *, split: str, revision: str) -> Any:
        assert (name, config, revision) == ("allenai/ai2_arc", "ARC-Easy", HUB_REVISION)
        assert split in ("train", "validation", "test")
        return datasets.Dataset.from_list([on_hub(LETTERED), on_hub(NUMBERED)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = Arc(ArcOptions(config="ARC-Easy"))
    check_task(task)
    assert task.load("test").samples == SAMPLES
    assert task.sources("test") == []  # the pinned revision determines the samples


def test_without_the_hub_it_advises_path(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(*args: object, **options: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"'allenai/ai2_arc' cannot be loaded .* option `path`"):
        Arc(ArcOptions()).load("test")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"{", ":2: not valid JSON"),
        (b"\xff", ":2: not UTF-8"),
        (b"[]", ":2: not a question of ARC"),
        (b'{"id": "x"}', ":2: not a question of ARC: KeyError('question')"),
        (json.dumps(LETTERED | {"answerKey": "D"}).encode(), "found 'D', expected one of A, B, C"),
        (json.dumps(question("x", "?", {"A": "one"}, "A")).encode(), "expected 2 to 26"),
        (
            json.dumps(on_hub(LETTERED) | {"choices": {"label": [], "text": ["a"]}}).encode(),
            "not a",
        ),
    ],
)
def test_an_error_names_the_line(tmp_path: Path, line: bytes, expected: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(json.dumps(LETTERED).encode() + b"\n" + line)
    with pytest.raises(UserError) as caught:
        at(path).load("test")
    assert str(caught.value).startswith(str(path)) and expected in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ARC-Challenge-Test\.jsonl: cannot be read: No such file"):
        at(tmp_path).load("test")
