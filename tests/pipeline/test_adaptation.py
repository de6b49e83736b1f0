"""Tasks whose options depend on the tokenizers: what a run decides, shows and remembers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from firstcli.api import Adaptation, Split, Task, UserError
from firstcli.plugins import find
from firstcli.plugins.calls import CheckedTask
from firstcli.workspace.tokenizers import Tokenizers
from support import command_line
from support.command_line import MODEL, TRAINING, Result, first, pending, write_rows

LABELS = ["card lost", "card stolen", "refund"]
RENAMED = ["card lost", "card stolen", "return"]


def rows(labels: Sequence[str], count: int = 48) -> list[dict[str, Any]]:
    return [{"text": f"text {n}", "label": labels[n % len(labels)]} for n in range(count)]


def task(path: Path, **options: Any) -> dict[str, Any]:
    return {"name": "classification", "options": {"path": str(path), **options}}


def write_recipe(folder: Path, *evaluations: dict[str, Any], **options: Any) -> Path:
    path = folder / "all.csv"
    if not path.exists():
        write_table(path, rows(LABELS))
    training = task(path, **options)
    return command_line.write_recipe(
        folder,
        train={"task": training, "validation": 0.3},
        evaluate=list(evaluations) or [{"task": training}],
        teacher=None,
        student={"model": MODEL, "training": TRAINING},
        arms={"fine-tune": {"learn": "labels"}},
    )


def write_table(path: Path, table: Sequence[dict[str, Any]]) -> None:
    lines = ["text,label", *(f"{row['text']},{row['label']}" for row in table)]
    path.write_text("\n".join([*lines, ""]))


def plan(recipe: Path, *args: object) -> Result:
    result = first("plan", recipe, "--run-dir", recipe.parent / "run", *args)
    assert result.code == 0, result.err
    return result


NOTE = (
    "Answers: 3 labels, answered as the codes A to C, because the labels 'card lost' and 'card "
    "stolen' begin with the same token."
)


def test_the_plan_shows_the_decision_and_one_question(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, test=0.25)
    shown = " ".join(plan(recipe).out.split())
    assert NOTE in shown
    assert "| B. card stolen | C. refund | | Text: text" in shown
    assert "candidates there: ' A' = " in shown
    example = plan(recipe, "--json").json["example"]
    assert example["count"] == len(example["candidates"]) == 3
    assert example["response"] == example["answer"][0]
    assert example["prompt"].startswith("Labels:\nA. card lost\n")


def test_the_decision_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(tmp_path, test=0.25)
    shown = plan(recipe).out

    def load(*_: Any) -> None:
        raise AssertionError("no tokenizer is needed")

    monkeypatch.setattr(Tokenizers, "_load", load)
    again = plan(recipe).out
    assert shown.splitlines()[-5:] == again.splitlines()[-5:]


def test_what_makes_a_model_stale(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, test=0.25)
    run = ("--run-dir", tmp_path / "run")
    assert command_line.report(recipe, *run).code == 0
    assert pending(recipe, *run) == set()
    kept = (tmp_path / "all.csv").read_bytes()
    write_table(tmp_path / "all.csv", rows(RENAMED))
    assert "distill fine-tune" in pending(recipe, *run)
    (tmp_path / "all.csv").write_bytes(kept)
    assert pending(recipe, *run) == set()
    listed = ("--set", 'train.task.options.labels=["card stolen", "card lost", "refund"]')
    assert "distill fine-tune" in pending(recipe, *run, *listed)


def test_codes_hide_no_change_of_the_tokenizer_s_text(tmp_path: Path) -> None:
    """With codes, and a prompt that does not list the labels, no sample contains their names."""
    recipe = write_recipe(tmp_path, test=0.25, prompt="{text}\n\nLabel:")
    run = ("--run-dir", tmp_path / "run")
    assert first("distill", recipe, *run).code == 0
    write_table(tmp_path / "all.csv", rows(RENAMED))
    result = first("distill", recipe, *run, "--dry-run", "--json")
    (unit,) = result.json["units"]
    assert not unit["up_to_date"] and "tokenizer text" in unit["reason"]


def test_an_evaluation_has_the_labels_of_the_training_task(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    write_table(other, [{"text": f"other {n}", "label": LABELS[n % 2]} for n in range(8)])
    recipe = write_recipe(tmp_path, {"name": "other", "task": task(other)})
    run = ("--run-dir", tmp_path / "run")
    assert first("eval", recipe, *run).code == 0
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "run" / "eval" / "other" / "fine-tune.parquet")
    assert {len(values) for values in table["log_probs"].to_pylist()} == {3}
    assert table["answer"].to_pylist()[:2] == [0, 1]
    write_table(other, [{"text": "x", "label": "card lots"}])
    first("plan", recipe, *run).mistake(
        "other.csv:2: column 'label': found \"card lots\" (did you mean 'card lost'?)"
    )


def test_answers_that_cannot_be_told_apart(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, test=0.25, answers="labels")
    first("plan", recipe, "--run-dir", tmp_path / "run").mistake(
        "answers: the labels 'card lost' and 'card stolen' begin with the same token"
    )


class Wrong(Task[Any]):
    splits = ("train",)

    def load(self, split: str) -> Split:
        return Split([])

    def adapted(self, tokens: Any, training: Any) -> Adaptation[Any]:
        return self.options  # type: ignore[no-any-return]


def test_a_plugin_that_returns_something_else_is_named() -> None:
    checked = CheckedTask(find("tasks", "instruction"), Wrong(Task.Options()))
    assert checked.adapts
    with pytest.raises(UserError, match="`adapted` returned a PluginOptions, expected an Adapt"):
        checked.adapted(lambda prompt, responses: [], None)


def test_most_tasks_do_not_adapt(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", command_line.sums(4))
    kind = find("tasks", "multiple-choice")
    from firstcli.tasks.multiple_choice import MultipleChoice, MultipleChoiceOptions

    options = MultipleChoiceOptions(path=tmp_path)
    assert not CheckedTask(kind, MultipleChoice(options)).adapts
