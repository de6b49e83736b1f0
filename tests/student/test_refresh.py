"""`firstcli.json` is written, kept up to date, and never part of the artifact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from firstcli.api import Sample, Split, Task
from firstcli.api.usage import prompt_usage
from firstcli.errors import UserError
from firstcli.metrics.records import EvalRecords
from firstcli.metrics.thresholds import threshold_for
from firstcli.metrics.uncertainty import intervals
from firstcli.student.usage import FORMAT, Usage, read_usage, write_usage
from firstcli.workspace.artifacts import SIDECARS
from support import command_line
from support.command_line import Finished, first
from support.tickets import LABELS, TrainedRun, sidecar

pytest_plugins = ["support.students", "support.finished_runs"]


def test_the_file_says_what_the_use_needs(classifier: TrainedRun) -> None:
    usage = read_usage(classifier.folder)
    assert (usage.kind, usage.run, usage.arm, usage.task) == (
        *("classification", "tiny", "plain"),
        "classification",
    )
    assert usage.text_column == "text"
    assert [(label.name, label.response) for label in usage.labels] == [
        (name, f" {name}") for name in LABELS
    ]
    calibration = json.loads((classifier.run / "calibration" / "plain+T.json").read_text())
    assert usage.posthoc and usage.posthoc.temperature == calibration["temperature"]
    assert usage.posthoc.state == calibration["state"]
    for model, numbers in (("plain+T", usage.numbers), ("plain", usage.raw_numbers)):
        path = classifier.run / "eval" / "tickets" / f"{model}.parquet"
        expected = intervals([EvalRecords.load(path)], "candidates")
        stored = numbers["tickets"]
        assert stored.questions == 30 and stored.ece and stored.accuracy and stored.trust
        for name in ("accuracy", "ece", "trust"):
            estimate, value = expected[name], getattr(stored, name)
            assert (value.value, value.low, value.high) == (estimate.value, *estimate.interval)


def test_label_tokens_are_those_of_the_answer_position(classifier: TrainedRun) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(classifier.folder)
    for label in read_usage(classifier.folder).labels:
        assert (
            label.token
            == tokenizer("x\n\nLabel:" + label.response)["input_ids"][
                -len(tokenizer(label.response)["input_ids"])
            ]
        )


def test_teacher_and_every_student_have_one(finished: Finished) -> None:
    for name in ("teacher", "students/fine-tune", "students/distill", "students/first"):
        usage = read_usage(finished.run / name)
        assert usage.arm == Path(name).name
        assert set(usage.numbers) == {"known-world", "shifted"}
        assert usage.posthoc is None and usage.raw_numbers == {}
    assert str(finished.run) not in (finished.run / "teacher" / "firstcli.json").read_text()


def test_sidecars_are_no_part_of_the_artifact(
    finished: Finished, tmp_path: Path, work: list[str]
) -> None:
    run = finished.copied_to(tmp_path)
    folder = run / "students" / "first"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert not {*SIDECARS} & manifest["files"].keys()
    # A manifest of an earlier version covers the card, whatever it contains now.
    manifest["files"]["README.md"] = {"size": 1, "sha256": "of an earlier card"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    known = sidecar(folder)
    for name in SIDECARS:
        (folder / name).unlink(missing_ok=True)
    assert first("report", finished.recipe, "--run-dir", run).code == 0
    assert work == []
    assert sidecar(folder) == known


def test_an_up_to_date_file_is_not_touched(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Usage:
        raise AssertionError("it was made again")

    monkeypatch.setattr("firstcli.student.refresh.usage_of", fail)
    for stage in ("report", "distill"):  # `distill` forgets no evaluation
        result = first(stage, finished.recipe, "--run-dir", finished.run)
        assert result.code == 0, result.err


def test_other_settings_of_the_metrics_change_the_numbers(
    finished: Finished, tmp_path: Path
) -> None:
    run = finished.copied_to(tmp_path)
    args = (finished.recipe, "--run-dir", run, "--set", "metrics.bins=3")
    assert first("eval", *args).code == 0
    before, after = (sidecar(each / "students" / "first") for each in (finished.run, run))
    assert before["numbers"] != after["numbers"]
    assert {**before, "numbers": 0, "source": 0} == {**after, "numbers": 0, "source": 0}


def test_the_file_states_the_threshold_of_the_target_accuracy(
    finished: Finished, tmp_path: Path
) -> None:
    run = finished.copied_to(tmp_path)
    args = (finished.recipe, "--run-dir", run, "--set", "metrics.target_accuracy=0.1")
    assert first("eval", *args).code == 0
    usage = read_usage(run / "students" / "first")
    (stored,) = usage.thresholds
    assert usage.validation is not None and stored.target_accuracy == 0.1
    confidence, correct = np.array(usage.validation.confidence), np.array(usage.validation.correct)
    promised = threshold_for(confidence, correct, 0.1)
    assert stored.threshold == (promised and promised.threshold)


def test_distill_also_fits_the_posthoc_recalibrator(tmp_path: Path, work: list[str]) -> None:
    arms = {
        "plain": {"learn": "labels"},
        "warm": {"learn": "labels", "posthoc": {"name": "logit-temperature"}},
    }
    recipe = command_line.write_recipe(tmp_path, arms=arms, teacher=None)
    args = ("distill", recipe, "--run-dir", tmp_path / "run")
    assert first(*args, "--arm", "plain").code == 0
    assert work == ["distill plain"]
    assert first(*args).code == 0
    assert work == ["distill plain", "distill warm", "posthoc warm+T"]
    usage = read_usage(tmp_path / "run" / "students" / "warm")
    assert usage.posthoc and usage.posthoc.temperature and usage.numbers == {}
    assert read_usage(tmp_path / "run" / "students" / "plain").posthoc is None
    assert first(*args, "--only", "--force").code == 0
    assert work[3:] == ["distill plain", "distill warm"]


# The file.


def _usage() -> Usage:
    form = prompt_usage((" yes", " no"))
    return Usage(**form.model_dump(), firstcli="0", run="r", arm="a", task="t")


def test_the_file_survives_a_round_trip(tmp_path: Path) -> None:
    (tmp_path / "firstcli.json").write_text(write_usage(_usage()), "utf-8")
    assert read_usage(tmp_path) == _usage()


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    content = json.loads(write_usage(_usage())) | {"format": FORMAT + 1, "kind": "telepathy"}
    (tmp_path / "firstcli.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"firstcli.json: written by a newer firstcli.*upgrade"):
        read_usage(tmp_path)


def test_unknown_fields_of_the_same_format_are_ignored(tmp_path: Path) -> None:
    content = json.loads(write_usage(_usage())) | {"colour": "blue"}
    (tmp_path / "firstcli.json").write_text(json.dumps(content))
    assert read_usage(tmp_path) == _usage()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no firstcli.json"),
        ("{", "damaged"),
        ('{"format": "x"}', "damaged"),
        ('{"format": 1, "kind": "classification"}', "prompt: Field required"),
    ],
)
def test_a_damaged_file_is_explained(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "firstcli.json").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_usage(tmp_path)
    assert "first eval RECIPE" in str(caught.value)


# Tasks that do not describe their use.


class Plain(Task):  # type: ignore[type-arg]
    """A third party's task."""

    splits = ("train",)

    def load(self, split: str) -> Split:
        return Split([Sample.question("Is it?", (" yes", " no"), 0)])


def test_without_a_description_the_user_gives_whole_prompts() -> None:
    assert Plain(Plain.Options()).usage() is None
    shared = prompt_usage((" yes", " no"))
    assert [(label.name, label.response) for label in shared.labels] == [
        ("yes", " yes"),
        ("no", " no"),
    ]
    assert prompt_usage(("a", " a")).labels[0].name == "a"
    assert [label.name for label in prompt_usage(("a", " a")).labels] == ["a", " a"]
    own = prompt_usage(None)
    assert own.choices and own.text_column is None and own.columns == ("prompt", "text", "choices")
