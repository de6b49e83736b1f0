"""Trackers: what they get, and where they write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from conftest import MakeLlama
from firstcli.errors import UserError
from firstcli.training import tracking, trial
from support.small_training import V, fit, training_arguments

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the scalars of an event file by name: steps and values."""
    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {
        name.removeprefix("train/"): [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_tensorboard_gets_the_log_the_entropy_and_the_speed(
    tmp_path: Path, make_llama: MakeLlama
) -> None:
    with tracking.inside(tmp_path, "run", "distill first"):
        tracked = fit(make_llama(V), tmp_path / "a", report_to="tensorboard")
    plain = fit(make_llama(V), tmp_path / "b")
    assert tracked.log == plain.log  # the file is the same with and without a tracker
    (folder,) = (tmp_path / tracking.FOLDER / "tensorboard").iterdir()
    found = scalars(folder)
    for name in ("loss", "P", "Q", "learning_rate", "grad_norm"):
        logged = [(entry["step"], entry[name]) for entry in tracked.log]
        assert [step for step, _ in found[name]] == [step for step, _ in logged]
        values = [value for _, value in logged]
        assert [value for _, value in found[name]] == pytest.approx(values, rel=1e-6)
    assert [step for step, _ in found["entropy"]] == [entry["step"] for entry in tracked.log]
    assert all(0 < value < 3.7 for _, value in found["entropy"])  # log 40 is 3.69
    assert all(value > 0 for _, value in found["tokens_per_second"])


def test_the_environment_wins_and_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DIR", "mine")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with tracking.inside(tmp_path, "run", "finetune"):
        assert os.environ["WANDB_DIR"] == "mine"
        assert str(tmp_path) in os.environ["MLFLOW_TRACKING_URI"]
    assert os.environ["WANDB_DIR"] == "mine" and "MLFLOW_TRACKING_URI" not in os.environ


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_missing_package_is_named_with_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "transformers.integrations.integration_utils"
    monkeypatch.setattr(f"{module}.is_{name}_available", lambda: False)
    monkeypatch.setattr(trial, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"trainer.report_to: .*firstcli\[{name}\]") as caught:
        trial.check(training_arguments(report_to=name))
    assert str(caught.value).count("pip install") == 1


def test_a_mistyped_tracker_is_answered_with_the_closest_name() -> None:
    with pytest.raises(UserError, match=r"report_to: .*did you mean 'wandb'") as caught:
        trial.check(training_arguments(report_to="wandbb"))
    assert "pip install" not in str(caught.value)
