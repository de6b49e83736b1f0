"""Runs with objectives that are plugins, and with weights of spans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from support import command_line
from support.command_line import Finished, first

if TYPE_CHECKING:
    from support.installed_plugins import Install

pytest_plugins = ["support.installed_plugins"]

NONE = {"name": "none"}
ARMS: dict[str, Any] = {
    "tail": {"recalibrator": NONE},
    "clipped": {
        "recalibrator": NONE,
        "objective": {"name": "dac-kl", "options": {"threshold": 0.01}},
    },
    "weighted": {"recalibrator": NONE, "span_weights": {"answer": 3.0}},
}
STEPS = {
    "name": "known-steps",
    "options": {"train": 40, "pool": 10, "test": 4, "shifted": 4, "creatures": 24},
}
LONGER = {
    "family": "scratch",
    "options": {"hidden_size": 16, "layers": 1, "heads": 2, "vocabulary": 300, "context": 512},
}
MINE = '''
from pydantic import Field

from firstcli.api import Objective, PluginOptions


class Options(PluginOptions):
    power: float = Field(2.0, gt=1, description="power of the differences")


class Mine(Objective[Options]):
    """Powers of differences of probabilities."""

    Options = Options
    needs_labels = True

    def losses(self, student, target):
        assert target.is_label.shape == student.log_q.shape
        rest = (student.log_rest.exp() - target.tail).abs() ** self.options.power
        inside = (student.log_q.exp() - target.probabilities).abs() ** self.options.power
        return inside.sum(-1) + rest
'''


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("objectives")
    recipe = command_line.write_recipe(folder, arms=ARMS)
    result = command_line.report(recipe, "--run-dir", folder / "run")
    assert result.code == 0, result.err
    return Finished(recipe, folder / "run", result)


def reads(run: Path, arm: str) -> dict[str, str]:
    path = run / "students" / arm / "manifest.json"
    found: dict[str, str] = json.loads(path.read_text("utf-8"))["reads"]
    return {key: value for key, value in found.items() if "objective" in key or "span" in key}


def test_fingerprints_of_earlier_runs_are_the_same(job: Finished) -> None:
    """Built-in objectives were names before they were plugins."""
    assert reads(job.run, "tail") == {"arms.tail.objective": "topk-tail"}
    recipe = yaml.safe_load((job.run / "recipe.yaml").read_text("utf-8"))
    assert recipe["arms"]["tail"]["objective"] == "topk-tail"
    assert "span_weights" not in recipe["arms"]["tail"]


def test_options_and_weights_are_part_of_the_fingerprint(job: Finished) -> None:
    assert reads(job.run, "clipped") == {
        "arms.clipped.objective": "dac-kl",
        "arms.clipped.objective.options.threshold": "0.01",
    }
    assert reads(job.run, "weighted") == {
        "arms.weighted.objective": "topk-tail",
        "arms.weighted.span_weights.answer": "3.0",
        "arms.weighted.span_weights.explanation": "1.0",
    }
    other = "arms.clipped.objective.options.threshold=0.6"
    stale = command_line.pending(job.recipe, "--run-dir", job.run, "--set", other)
    assert {unit for unit in stale if unit.startswith("distill")} == {"distill clipped"}
    assert command_line.pending(job.recipe, "--run-dir", job.run) == set()


def test_a_clipped_teacher_trains_another_student(job: Finished) -> None:
    tail, clipped = (
        (job.run / "students" / arm / "model.safetensors").read_bytes()
        for arm in ("tail", "clipped")
    )
    assert tail != clipped


def test_weights_of_spans_change_what_a_student_of_explanations_learns(tmp_path: Path) -> None:
    arms = {"tail": ARMS["tail"], "weighted": ARMS["weighted"]}
    evaluate = [{"task": STEPS, "max_new_tokens": 8}]
    recipe = command_line.write_recipe(
        tmp_path,
        train={"task": STEPS, "validation": 0.3},
        evaluate=evaluate,
        arms=arms,
        teacher={"model": LONGER, "finetune": command_line.TRAINING},
        student={"model": LONGER, "training": command_line.TRAINING},
    )
    result = first("distill", recipe, "--run-dir", tmp_path / "run")
    assert result.code == 0, result.err
    tail, weighted = (
        (tmp_path / "run" / "students" / arm / "model.safetensors").read_bytes() for arm in arms
    )
    assert tail != weighted


def test_card_and_report_name_the_objective(job: Finished) -> None:
    card = (job.run / "students" / "clipped" / "README.md").read_text("utf-8")
    assert "with the objective `dac-kl, threshold 0.01`" in " ".join(card.split())


def test_an_installed_objective_trains_a_student(
    job: Finished, tmp_path: Path, install: Install
) -> None:
    install("first-mine", MINE, kind="objectives")
    arms = ARMS | {"mine": {"recalibrator": NONE, "objective": "mine"}}
    recipe = command_line.write_recipe(tmp_path, arms=arms)
    run = job.copied_to(tmp_path)
    result = first("distill", recipe, "--run-dir", run)
    assert result.code == 0, result.err
    found = reads(run, "mine")
    assert found["arms.mine.objective"] == "mine"
    assert found["arms.mine.objective.options.power"] == "2.0"
    assert found["plugin of arms.mine.objective"] == "first-mine 1.2, format 1"
    assert found["source of the plugin of arms.mine.objective"]
    install("first-mine", MINE, kind="objectives", version="1.3")
    stale = command_line.pending(recipe, "--run-dir", run)
    assert {unit for unit in stale if unit.startswith("distill")} == {"distill mine"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("return inside.sum(-1) + rest", "return inside.sum()", "`losses` returns the shape ()"),
        ("return inside.sum(-1) + rest", "return 1 / 0", "`losses`: ZeroDivisionError"),
        (
            "return inside.sum(-1) + rest",
            "return inside.sum(-1) * float('inf')",
            "expected finite losses; correct the plugin",
        ),
        ("needs_labels = True", "", "`losses`: AttributeError"),
    ],
)
def test_a_mistake_of_an_objective_is_one_sentence(
    job: Finished, tmp_path: Path, install: Install, old: str, new: str, message: str
) -> None:
    install("first-mine", MINE.replace(old, new), kind="objectives")
    arms = {"mine": {"recalibrator": NONE, "objective": "mine"}}
    recipe = command_line.write_recipe(tmp_path, arms=arms)
    result = first("distill", recipe, "--run-dir", job.copied_to(tmp_path))
    result.mistake("objective 'mine' from first-mine 1.2", message)


@pytest.mark.parametrize(
    ("arm", "parts"),
    [
        ({"objective": "dac-k"}, ("arms.a.objective", "did you mean 'dac-kl'?")),
        (
            {"objective": {"name": "dac-kl", "options": {"threshold": 2}}},
            ("arms.a.objective.options.threshold", "found 2"),
        ),
        ({"objective": {"name": "topk-tail", "options": {"x": 1}}}, ("options.x", "unknown key")),
        ({"span_weights": {"answer": 0}}, ("arms.a.span_weights.answer", "greater than 0")),
        ({"learn": "labels", "span_weights": {}}, ("arms.a.span_weights", "no effect")),
        ({"objective": 3}, ("arms.a.objective", "found 3")),
    ],
)
def test_mistakes_in_a_recipe(tmp_path: Path, arm: dict[str, Any], parts: tuple[str, ...]) -> None:
    recipe = command_line.write_recipe(tmp_path, arms={"a": arm})
    first("plan", recipe).mistake(*parts)


def test_without_candidates_nothing_says_where_an_answer_begins(tmp_path: Path) -> None:
    rows = [{"instruction": f"say {i}", "input": "", "output": str(i)} for i in range(20)]
    command_line.write_rows(tmp_path / "rows.jsonl", rows)
    task = {"name": "instruction", "options": {"path": str(tmp_path / "rows.jsonl")}}
    arms = {"a": {"span_weights": {"answer": 2.0}}}
    recipe = command_line.write_recipe(
        tmp_path,
        train={"task": task, "validation": 0.3},
        evaluate=[{"task": command_line.WORLD}],
        arms=arms,
    )
    first("plan", recipe).mistake("arms.a.span_weights", "has no candidates")
