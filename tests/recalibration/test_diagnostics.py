"""Diagnostics of recalibrators and the artifact `calibration/<name>.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from firstcli.api import RESERVED_FACTS, Curve, Diagnostics, PluginOptions, Recalibrator
from firstcli.recalibration.builtin import (
    LabelSmoothing,
    LogitTemperature,
    NoRecalibration,
    SingleTemperature,
    TemperatureScaling,
    scale_logits,
)
from firstcli.recalibration.criteria import CRITERIA
from firstcli.recalibration.diagnostics import CalibrationArtifact
from firstcli.testing import FitInputs, overconfident_teacher
from support.recalibration import checked, fitted, rows_of

if TYPE_CHECKING:
    from firstcli.api import JSON, MassMode

ARTIFACTS = Path(__file__).parent / "artifacts"
TEMPERATURES = [TemperatureScaling, LogitTemperature]


def measured(recalibrator: Recalibrator[Any], inputs: FitInputs) -> CalibrationArtifact:
    return CalibrationArtifact.measure(
        checked(recalibrator),
        rows_of(inputs),
        inputs.is_label,
        name="mine",
        options={},
        positions="all",
    )


# --- diagnostics of the built-ins ---------------------------------------------------------------


@pytest.mark.parametrize("cls", TEMPERATURES)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_fitted_temperature_has_facts_and_curves(
    cls: type[SingleTemperature], criterion: str
) -> None:
    recalibrator = fitted(cls, overconfident_teacher(5, "one"), criterion=criterion)
    state, diagnostics = recalibrator.state(), recalibrator.diagnostics()
    names = ("temperature", "interval", "criterion", "at_grid_end", "flat", "rows")
    assert diagnostics.facts == {name: state[name] for name in names} | {
        "temperatures": {name: state["criteria"][name]["temperature"] for name in CRITERIA}
    }
    assert diagnostics.facts["criterion"] == criterion
    assert diagnostics.curves.keys() == set(CRITERIA)
    for name, curve in diagnostics.curves.items():
        assert [list(point) for point in curve.points] == state["criteria"][name]["curve"]
        assert list(curve.interval or ()) == state["criteria"][name]["interval"]
    assert diagnostics.curves[criterion].best == diagnostics.facts["temperature"]


def test_a_fixed_temperature_is_the_only_fact() -> None:
    fixed = TemperatureScaling(TemperatureScaling.Options(temperature=0.5))
    assert fixed.diagnostics() == Diagnostics({"temperature": 0.5})


@pytest.mark.parametrize("cls", [NoRecalibration, LabelSmoothing])
def test_without_a_fit_there_is_nothing_to_report(cls: type[Recalibrator[Any]]) -> None:
    assert cls(cls.Options()).diagnostics() == Diagnostics()


@pytest.mark.parametrize("cls", TEMPERATURES)
def test_a_restored_state_has_the_same_diagnostics(cls: type[SingleTemperature]) -> None:
    original = fitted(cls, overconfident_teacher(5, "teacher").rows(slice(60)))
    restored = cls(cls.Options())
    restored.restore(json.loads(json.dumps(original.state())))
    assert restored.diagnostics() == original.diagnostics()


def test_a_state_of_the_first_format_is_restored() -> None:
    """It has neither interval nor criteria."""
    artifact = CalibrationArtifact.load(ARTIFACTS / "without-interval.json")
    recalibrator = TemperatureScaling(TemperatureScaling.Options(bins=5))
    recalibrator.restore(artifact.state)
    diagnostics = recalibrator.diagnostics()
    assert diagnostics.facts["temperature"] == artifact.facts["temperature"]
    assert (diagnostics.warnings, diagnostics.curves) == ((), {})


def test_a_well_determined_temperature_has_no_warning() -> None:
    whole = overconfident_teacher(5, "teacher")
    assert fitted(LogitTemperature, whole, criterion="nll").diagnostics().warnings == ()


def test_warnings_name_temperature_rows_interval_and_remedy() -> None:
    few = fitted(LogitTemperature, overconfident_teacher(5, "teacher").rows(slice(12)))
    state = few.state()
    low, high = state["interval"]
    begin = (
        f"T = {state['temperature']:.3g}, fitted by ece on 12 rows "
        f"(95 % interval {low:.3g} to {high:.3g}), "
    )
    [warning] = few.diagnostics().warnings
    assert warning == (
        f"{begin}would vary by about {state['spread']:.2g} between validation parts of this size; "
        "raise train.validation to get at least 200 rows"
    )

    flat = LogitTemperature(LogitTemperature.Options())
    flat.restore({**state, "few_rows": False, "flat": True})
    [warning] = flat.diagnostics().warnings
    assert warning.startswith(f"{begin}is hardly determined by these rows; raise train.validation")

    always = np.zeros((400, 3), dtype=bool)
    always[:, 0] = True
    right = FitInputs(np.tile([0.5, 0.3, 0.2], (400, 1)), always, np.ones(400), "one")
    [warning] = fitted(TemperatureScaling, right).diagnostics().warnings
    assert "fitted by ece on 400 rows, is at the end of the searched range" in warning


# --- the contract -------------------------------------------------------------------------------


def test_facts_cannot_take_the_names_of_the_artifact() -> None:
    names = {known.name for known in fields(CalibrationArtifact)}
    free = {"facts", "rows", "learned"}  # which plugins of earlier versions may use
    assert names - free == RESERVED_FACTS
    with pytest.raises(ValueError, match="cannot be called accuracy, state"):
        Diagnostics({"state": 1, "accuracy": 0.5, "strength": 2})


class Strange(NoRecalibration):
    """A plugin with its own facts and a state that resembles that of a temperature."""

    def state(self) -> dict[str, JSON]:
        return {"interval": "none", "criteria": [1], "temperature": {}, "rows": "many"}

    def restore(self, state: Mapping[str, JSON]) -> None:
        pass

    def diagnostics(self) -> Diagnostics:
        return Diagnostics({"strength": 2}, ("mind the gap",), {"x": Curve(((1.0, 2.0),), 1.0)})


def test_facts_come_from_diagnostics_and_never_from_the_state() -> None:
    artifact = measured(Strange(PluginOptions()), overconfident_teacher(5, "teacher"))
    assert (artifact.facts, artifact.rows) == ({"strength": 2}, 240)
    facts = artifact.short_facts()
    assert facts["strength"] == 2
    assert facts.keys().isdisjoint({"interval", "criteria", "temperature", "temperatures"})


# --- the artifact -------------------------------------------------------------------------------


@pytest.mark.parametrize("mass_mode", ["teacher", "one"])
def test_ranks_compare_confidence_with_frequency(mass_mode: MassMode) -> None:
    inputs = overconfident_teacher(5, mass_mode)
    artifact = measured(LogitTemperature(LogitTemperature.Options(temperature=2.0)), inputs)
    after = inputs.mass[:, None] * scale_logits(inputs.topk, 2.0)
    assert [rank.rank for rank in artifact.ranks] == [1, 2, 3, 4, 5]
    for column, rank in enumerate(artifact.ranks):
        assert rank.confidence_before == pytest.approx(inputs.topk[:, column].mean(), rel=1e-12)
        assert rank.confidence_after == pytest.approx(after[:, column].mean(), rel=1e-12)
        assert rank.frequency == inputs.is_label[:, column].mean()
        assert rank.n == 240
    assert artifact.accuracy == inputs.is_label[:, 0].mean()
    assert artifact.confidence_after == artifact.ranks[0].confidence_after
    assert (artifact.state, artifact.facts) == ({"temperature": 2.0}, {"temperature": 2.0})


@pytest.mark.parametrize("name", ["arm", "without-interval"])
def test_files_survive_a_round_trip_byte_for_byte(name: str, tmp_path: Path) -> None:
    """`arm` has today's format, `without-interval` that before intervals, criteria and ranks."""
    path = ARTIFACTS / f"{name}.json"
    artifact = CalibrationArtifact.load(path)
    artifact.save(tmp_path / "saved.json")
    assert (tmp_path / "saved.json").read_bytes() == path.read_bytes()
    assert (artifact.recalibrator, artifact.mass, artifact.rows) == (
        *("temperature-scaling", "teacher"),
        40,
    )


def test_an_absent_mass_stays_absent() -> None:
    """As for a post-hoc temperature."""
    artifact = measured(NoRecalibration(PluginOptions()), overconfident_teacher(2, "teacher"))
    assert "mass" not in artifact.to_json()


def test_a_measured_artifact_has_the_format_of_the_stored_one() -> None:
    stored = CalibrationArtifact.load(ARTIFACTS / "arm.json")
    inputs = overconfident_teacher(3, "teacher").rows(slice(40))
    artifact = CalibrationArtifact.measure(
        checked(fitted(TemperatureScaling, inputs, bins=5)),
        rows_of(inputs),
        inputs.is_label,
        name="temperature-scaling",
        options={"bins": 5},
        positions="decisive",
        mass_mode="teacher",
    )
    assert artifact.to_json().keys() == stored.to_json().keys()
    assert artifact.state.keys() == stored.state.keys()
    assert artifact.facts == stored.facts  # temperatures of a grid
    assert artifact.ece_after == pytest.approx(stored.ece_after, rel=1e-9)


def test_the_recalibrator_of_a_file_is_restored() -> None:
    artifact = CalibrationArtifact.load(ARTIFACTS / "arm.json")
    restored = artifact.restored()
    assert restored.plugin.target.endswith(":TemperatureScaling")
    assert restored.state() == artifact.state
    assert restored.diagnostics().curves["ece"].best == artifact.facts["temperature"]


def test_short_facts_are_what_a_manifest_keeps() -> None:
    facts = CalibrationArtifact.load(ARTIFACTS / "arm.json").short_facts()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts.keys() == {
        *("recalibrator", "temperature", "interval", "criterion", "at_grid_end", "flat"),
        *("temperatures", "rows", "accuracy", "confidence_before", "confidence_after"),
        *("ece_before", "ece_after"),
    }
    assert len(json.dumps(facts)) < 600
