"""Stage `posthoc`: fit a model's post-hoc temperature (Guo et al. 2017).

This is the baseline that needs no training. T is fitted to the model's top k at the answer
position, on the validation part, which no model is trained on. At evaluation it divides the
candidates' log-probabilities at the answer position before they are renormalised; the probability
outside the candidates is unknown from then on. In whole candidates, all other tokens keep their
probabilities: T is fitted to the answer position, so it applies there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from firstcli.errors import UserError
from firstcli.runtime import distributed
from firstcli.stages import checks, fingerprints
from firstcli.stages.base import Stage
from firstcli.stages.calibrate import CalibrationFacts, show_fitted
from firstcli.stages.checks import SharedCheck
from firstcli.stages.distill import DISTILL
from firstcli.stages.finetune import FINETUNE
from firstcli.workspace.artifacts import Artifact
from firstcli.workspace.units import Model, Unit, calibration_path, models_of, records_path

if TYPE_CHECKING:
    from firstcli.api import JSON
    from firstcli.data.encoded import EncodedStore
    from firstcli.metrics.records import EvalRecords
    from firstcli.recipe.references import PosthocRef
    from firstcli.recipe.schema import Recipe
    from firstcli.workspace.run import Run

LEAST_CANDIDATE_MASS = 0.9
"""Mean probability of the candidates below which the temperature may not suit them: it is fitted to
all tokens."""


class Posthoc(Stage):
    """Fits one temperature per model that is also evaluated with one."""

    name = "posthoc"
    help = "Fit the post-hoc temperature of each model that has one."
    format = 3  # float32 logits of half-precision products
    shared = True
    has_arms = True
    checks = (checks.OVERLAP, checks.UNPINNED)
    why_nothing = "neither the teacher nor an arm has a posthoc"

    def key(self, model: Model) -> str:
        return f"{self.name} {model.name}"

    def units(self, recipe: Recipe, folder: Path) -> Iterator[Unit]:
        for model in models_of(recipe):
            if model.posthoc:
                key, needs = self.key(model), trained_by(recipe, model)
                artifact = Artifact(calibration_path(folder, model.name), False)
                yield Unit(key, self.name, artifact, needs, part="validation", model=model)

    def fingerprint_inputs(self, run: Run, unit: Unit) -> Mapping[str, object]:
        from firstcli.recipe.references import POSTHOC_KEY

        inputs = fingerprints.plugin(POSTHOC_KEY, _section(run, unit))
        inputs["top_k"] = run.recipe.knowledge.top_k
        inputs["longest sample"] = fingerprints.longest_sample(run, unit)
        inputs["validation samples"] = run.part_content("validation")
        return inputs | fingerprints.predictions(run, unit.role)

    def checks_of(self, run: Run, unit: Unit) -> Iterable[SharedCheck]:
        return (*self.checks, *((checks.SEEN_ROWS,) if unit.role == "teacher" else ()))

    def check(self, run: Run, unit: Unit) -> str:
        return f"a temperature on {len(_rows(run, unit))} validation samples"

    def work(self, run: Run, unit: Unit, folder: Path) -> CalibrationFacts | None:
        from firstcli.recalibration.diagnostics import CalibrationArtifact
        from firstcli.stages import scoring

        topk, is_label = scoring.answer_top_k(run, unit, _rows(run, unit))
        if not distributed.is_first():
            return None
        ref = _section(run, unit)
        fitted, mass = ref.build(), topk.sum(axis=1)
        fitted.fit(topk, is_label, mass, "teacher")
        for warning in fitted.diagnostics().warnings:
            run.console.warn(f"{unit.subject}: {warning}")
        artifact = CalibrationArtifact.measure(
            fitted, topk, is_label, mass, name=ref.name, options=ref.given, positions="decisive"
        )
        artifact.save(folder / f"{unit.subject}.json")
        return CalibrationFacts.of(artifact.short_facts())

    def summary(self, run: Run, units: Sequence[Unit]) -> dict[str, JSON]:
        title = "post-hoc temperatures, on the validation rows that they were fitted on"
        return show_fitted(run, title, units)


def trained_by(recipe: Recipe, model: Model) -> tuple[str, ...]:
    """Return the keys of the units that make a model."""
    return (DISTILL.key(model),) if model.arm else FINETUNE.teacher_keys(recipe)


def _section(run: Run, unit: Unit) -> PosthocRef:
    section = run.recipe.arms[unit.arm] if unit.arm else run.recipe.teacher
    assert section and section.posthoc
    return section.posthoc


def _rows(run: Run, unit: Unit) -> EncodedStore:
    from firstcli.data.encoded import has_answer_position
    from firstcli.stages import inputs

    if not run.training.validation:
        raise UserError(
            f"train.validation: {run.recipe.train.validation} of the training split leaves no "
            "sample to fit a temperature on; raise it"
        )
    rows = inputs.training_rows(run, unit.role, "validation")
    rows = rows.where(has_answer_position(rows))
    if not len(rows):
        raise UserError(f"{unit.key}: no validation row has an answer position")
    return rows


def tempered_records(run: Run, unit: Unit) -> EvalRecords:
    """Return the records of the model without a temperature, with the temperature applied."""
    from firstcli.metrics.records import EvalRecords
    from firstcli.recalibration.diagnostics import CalibrationArtifact

    plain = replace(unit.model, posthoc=False)
    records = EvalRecords.load(records_path(run.folder, unit.evaluation, plain))
    artifact = CalibrationArtifact.load(calibration_path(run.folder, unit.model.name))
    mass = None if records.candidate_mass is None else float(records.candidate_mass.mean())
    if mass is not None and mass < LEAST_CANDIDATE_MASS:
        run.console.warn(
            f"{unit.key}: the candidates hold {100 * mass:.0f} % of the model's probability; a "
            "temperature that is fitted to all tokens may not suit them"
        )
    return tempered(records, float(artifact.state["temperature"]))


def tempered(records: EvalRecords, temperature: float) -> EvalRecords:
    """Divide the candidates' log-probabilities by T and renormalise them over the candidates.

    In whole candidates, this concerns only the token at the answer position.
    """
    import numpy as np

    from firstcli.metrics.records import EvalRecords
    from firstcli.recalibration.builtin import softmax

    with np.errstate(divide="ignore"):
        log_probs = np.log(softmax(records.log_probs, temperature))

    whole = None
    if records.whole is not None:
        with np.errstate(invalid="ignore"):  # of padding, replaced by what the token has: -inf
            changed = records.whole + (log_probs - records.log_probs)
        whole = records.ragged(np.where(np.isneginf(log_probs), log_probs, changed))
    return EvalRecords.from_log_probs(
        ids=records.ids,
        answers=records.answer.tolist(),
        log_probs=records.ragged(log_probs),
        truth=None if records.truth is None else records.ragged(records.truth),
        whole=whole,
        groups=records.groups,
        scope="candidates",
    )


POSTHOC = Posthoc()
