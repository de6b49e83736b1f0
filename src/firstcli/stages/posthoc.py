"""Stage `posthoc`: fit a recalibrator of a trained model, such as a temperature (Guo et al. 2017).

This is the baseline that needs no training. The recalibrator is fitted on the validation part,
which no model is trained on: to the probabilities of the candidates, or to the model's top k at the
answer position if it declares `fits_subsets`. At evaluation it changes the probabilities of the
candidates; the probability outside the candidates is unknown from then on. In whole candidates, all
tokens but the one at the answer position keep their probabilities.

With `fit: agreement`, a student's temperature is fitted to the teacher's probabilities of the
candidates instead of labels, see `recalibration.agreement`.
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
from firstcli.workspace.units import (
    Model,
    Part,
    Unit,
    calibration_path,
    models_of,
    records_path,
)

if TYPE_CHECKING:
    from firstcli.api import JSON
    from firstcli.data.encoded import EncodedStore
    from firstcli.metrics.records import EvalRecords
    from firstcli.recalibration.diagnostics import CalibrationArtifact
    from firstcli.recipe.evaluations import GenerationSettings
    from firstcli.recipe.references import PosthocRef
    from firstcli.recipe.schema import Recipe
    from firstcli.workspace.run import Run

LEAST_CANDIDATE_MASS = 0.9
"""Mean probability of the candidates below which what is fitted to all tokens may not suit them."""


class Posthoc(Stage):
    """Fits one recalibrator per model that is also evaluated with one."""

    name = "posthoc"
    help = "Fit the post-hoc recalibrator of each model that has one."
    format = 3  # float32 logits of half-precision products
    shared = True
    has_arms = True
    checks = (checks.OVERLAP, checks.UNPINNED)
    completes = DISTILL  # a student's folder contains its post-hoc recalibrator
    why_nothing = "neither the teacher nor an arm has a posthoc"

    def key(self, model: Model) -> str:
        return f"{self.name} {model.name}"

    def units(self, recipe: Recipe, folder: Path) -> Iterator[Unit]:
        for model in models_of(recipe):
            if model.posthoc:
                key, needs = self.key(model), trained_by(recipe, model)
                if _section_of(recipe, model).fit == "agreement":
                    needs += trained_by(recipe, Model())
                    teacher = Model(posthoc=True)
                    is_calibrated = recipe.teacher is not None and recipe.teacher.posthoc
                    needs += (self.key(teacher),) if is_calibrated else ()
                artifact = Artifact(calibration_path(folder, model.name), False)
                yield Unit(key, self.name, artifact, needs, part="validation", model=model)

    def fingerprint_inputs(self, run: Run, unit: Unit) -> Mapping[str, object]:
        from firstcli.recipe.references import POSTHOC_KEY

        inputs = fingerprints.plugin(POSTHOC_KEY, _section(run, unit))
        if _section(run, unit).build().uses_rows:
            inputs["train.task.name"] = run.recipe.train.task.name
        inputs["top_k"] = run.recipe.knowledge.top_k
        inputs["longest sample"] = fingerprints.longest_sample(run, unit)
        inputs["validation samples"] = run.part_content("validation")
        if (settings := run.recipe.validation_answers) is not None:
            inputs |= fingerprints.generation(run, settings, unit)
        if _section(run, unit).fit == "agreement":
            inputs[f"{POSTHOC_KEY}.fit"] = "agreement"
            inputs["unlabelled samples"] = run.part_content("unlabelled")
            reference = fingerprints.predictions(run, "teacher")
            inputs |= {f"reference: {key}": value for key, value in reference.items()}
        return inputs | fingerprints.predictions(run, unit.role)

    def checks_of(self, run: Run, unit: Unit) -> Iterable[SharedCheck]:
        seen = (checks.SEEN_ROWS,) if unit.role == "teacher" else ()
        return (*self.checks, *seen, *checks.untrained_teacher(run, unit.role))

    def check(self, run: Run, unit: Unit) -> str:
        from firstcli.stages import inputs

        if (settings := run.recipe.validation_answers) is not None:
            return _check_generated(run, unit, settings)
        samples, recalibrator = len(_rows(run, unit)), _section(run, unit).build()
        width = run.recipe.knowledge.top_k
        if not recalibrator.fits_subsets:
            questions = inputs.part_questions(run, unit.role, "validation")
            width = max(len(question.candidate_ids) for question in questions)
        recalibrator.check(width, samples if recalibrator.needs_fit else 0)
        if _section(run, unit).fit == "agreement":
            part = agreement_part(run)
            asked = len(inputs.part_questions(run, unit.role, part))
            return (
                f"{_section(run, unit).name} by agreement with the teacher on {asked} {part} rows"
            )
        return f"{_section(run, unit).name} on {samples} validation samples"

    def work(self, run: Run, unit: Unit, folder: Path) -> CalibrationFacts | None:
        from firstcli.recalibration.candidates import candidate_rows
        from firstcli.recalibration.diagnostics import CalibrationArtifact
        from firstcli.stages import inputs, remote, scoring

        ref = _section(run, unit)
        fitted = ref.build()
        if ref.fit == "agreement":
            return _fit_by_agreement(run, unit, folder)
        if (settings := run.recipe.validation_answers) is not None:
            records = _generated(run, unit, settings)
            rows = candidate_rows(records, run.recipe.train.task.name)
            is_label = rows.candidate == records.answer[:, None]
        elif fitted.fits_subsets:
            uses_candidates = fitted.uses_rows
            tokens = (
                inputs.candidate_tokens(run, unit.role, "validation") if uses_candidates else {}
            )
            kept = remote.answers_file(folder)
            rows, is_label = scoring.answer_rows(run, unit, _rows(run, unit), tokens, kept)
        else:
            records = scoring.answered_part(run, unit, "validation", remote.answers_file(folder))
            rows = candidate_rows(records, run.recipe.train.task.name)
            is_label = rows.candidate == records.answer[:, None]
        if not distributed.is_first():
            return None
        fitted.fit(rows, is_label)
        for warning in fitted.diagnostics().warnings:
            run.console.warn(f"{unit.subject}: {warning}")
        artifact = CalibrationArtifact.measure(
            fitted, rows, is_label, name=ref.name, options=ref.given, positions="decisive"
        )
        artifact.save(folder / f"{unit.subject}.json")
        return CalibrationFacts.of(artifact.short_facts())

    def in_words(self, run: Run, unit: Unit) -> list[str]:
        return CalibrationFacts.of(run.manifests[unit.key].facts).in_words()

    def summary(self, run: Run, units: Sequence[Unit]) -> dict[str, JSON]:
        title = "post-hoc recalibrators, on the validation rows that they were fitted on"
        if any(_section(run, unit).fit == "agreement" for unit in units):
            title = "post-hoc recalibrators, measured on the validation rows"
        return show_fitted(run, title, units)


def _check_generated(run: Run, unit: Unit, settings: GenerationSettings) -> str:
    """Check what is fitted to the model's generated answers to the validation questions."""
    from firstcli.stages import generated

    ref = _section(run, unit)
    questions = generated.held_out_questions(run, unit, settings)
    recalibrator, samples = ref.build(), questions.samples
    width = max(len(sample.candidates) for sample in samples) or 2
    recalibrator.check(width, len(samples) if recalibrator.needs_fit else 0)
    return f"{ref.name} on {generated.check(run, unit.role, questions)}"


def _generated(run: Run, unit: Unit, settings: GenerationSettings) -> EvalRecords:
    """Return a model's generated answers to the validation questions."""
    from firstcli.stages import generated

    questions = generated.held_out_questions(run, unit, settings)
    return generated.answered(run, unit, questions)


def _fitted_to_generated(run: Run, unit: Unit, settings: GenerationSettings) -> CalibrationArtifact:
    """Return the recalibrator for answers that are generated otherwise than the stored one's.

    Shares of explanations, probabilities of tokens, and texts that are cut off sooner need
    temperatures of their own, so it is fitted to the validation questions, answered in the same
    way.

    Args:
        run: the run.
        unit: a unit whose model has a post-hoc recalibrator.
        settings: how the answers are generated.
    """
    from firstcli.recalibration.candidates import candidate_rows
    from firstcli.recalibration.diagnostics import CalibrationArtifact

    plain = replace(unit, model=replace(unit.model, posthoc=False))
    records = _generated(run, plain, settings)
    rows = candidate_rows(records, run.recipe.train.task.name)
    is_label = rows.candidate == records.answer[:, None]
    ref = _section(run, unit)
    fitted = ref.build()
    fitted.fit(rows, is_label)
    return CalibrationArtifact.measure(
        fitted, rows, is_label, name=ref.name, options=ref.given, positions="decisive"
    )


def artifact_for(run: Run, unit: Unit, settings: GenerationSettings | None) -> CalibrationArtifact:
    """Return the stored recalibrator of a unit's model, or another one if its answers need one.

    Args:
        run: the run.
        unit: a unit whose model has a post-hoc recalibrator.
        settings: how its answers are generated; None if candidates are scored.
    """
    from firstcli.recalibration.diagnostics import CalibrationArtifact

    stored = run.recipe.validation_answers
    if settings is not None and stored is not None and settings != stored:
        return _fitted_to_generated(run, unit, settings)
    return CalibrationArtifact.load(calibration_path(run.folder, unit.model.name))


def trained_by(recipe: Recipe, model: Model) -> tuple[str, ...]:
    """Return the keys of the units that make a model."""
    return (DISTILL.key(model),) if model.arm else FINETUNE.teacher_keys(recipe)


def agreement_part(run: Run) -> Part:
    """Return the part on which a temperature is fitted without labels."""
    return "unlabelled" if run.training.unlabelled else "validation"


def _fit_by_agreement(run: Run, unit: Unit, folder: Path) -> CalibrationFacts | None:
    """Fit a student's temperature where it agrees with the teacher, + T if that has one.

    Its facts are measured on the validation rows. Their labels do not take part in this fit, but if
    the teacher has a T, that was fitted to them.
    """
    from firstcli.recalibration.agreement import fit_temperature
    from firstcli.recalibration.candidates import candidate_rows, recalibrated
    from firstcli.recalibration.diagnostics import CalibrationArtifact
    from firstcli.stages import remote, scoring

    ref, part, task = _section(run, unit), agreement_part(run), run.recipe.train.task.name
    measured = scoring.answered_part(run, unit, "validation")
    records = measured if part == "validation" else scoring.answered_part(run, unit, part)
    teacher = replace(unit, model=Model())
    reference = scoring.answered_part(run, teacher, part, remote.answers_file(folder))
    if not distributed.is_first():
        return None
    title = "the teacher"
    if run.recipe.teacher and run.recipe.teacher.posthoc:
        path = calibration_path(run.folder, Model(posthoc=True).name)
        reference = recalibrated(reference, CalibrationArtifact.load(path).restored(), task)
        title = "teacher + T"
    elif run.recipe.teacher and run.recipe.teacher.finetune:
        run.console.warn(
            f"{unit.subject}: it is fitted to the probabilities of a fine-tuned teacher, which is "
            "usually over-confident; add `posthoc: {name: logit-temperature}` to the teacher, so "
            "that teacher + T is the reference"
        )
    place = {id: number for number, id in enumerate(reference.ids)}
    shared = [number for number, id in enumerate(records.ids) if id in place]
    if not shared:
        raise UserError(f"{unit.key}: teacher and student have no {part} question in common")
    others = [place[records.ids[number]] for number in shared]
    # Questions that only one of them has may have more candidates than all that are shared.
    width = min(records.probabilities.shape[1], reference.probabilities.shape[1])
    fitted = ref.build()
    try:
        state = fit_temperature(
            records.probabilities[shared, :width], reference.probabilities[others, :width]
        )
    except UserError as error:
        raise UserError(f"{_key_of(unit)}.fit: {error}") from error
    fitted.restore(state)
    for warning in fitted.diagnostics().warnings:
        run.console.warn(f"{unit.subject}: {warning}")
    rows = candidate_rows(measured, task)
    is_label = rows.candidate == measured.answer[:, None]
    artifact = CalibrationArtifact.measure(
        fitted, rows, is_label, name=ref.name, options=ref.given, positions="decisive"
    )
    learned = f"agrees with {title} on {state['rows']} of {len(shared)} {part} questions"
    artifact = replace(artifact, rows=len(rows), learned=learned)
    artifact.save(folder / f"{unit.subject}.json")
    return CalibrationFacts.of(artifact.short_facts())


def _section(run: Run, unit: Unit) -> PosthocRef:
    return _section_of(run.recipe, unit.model)


def _section_of(recipe: Recipe, model: Model) -> PosthocRef:
    section = recipe.arms[model.arm] if model.arm else recipe.teacher
    assert section and section.posthoc
    return section.posthoc


def _key_of(unit: Unit) -> str:
    """Return the recipe's key of a unit's post-hoc recalibrator."""
    from firstcli.recipe.references import POSTHOC_KEY

    return f"arms.{unit.arm}.{POSTHOC_KEY}" if unit.arm else f"teacher.{POSTHOC_KEY}"


def _rows(run: Run, unit: Unit) -> EncodedStore:
    from firstcli.data.encoded import has_answer_position
    from firstcli.stages import inputs

    if not run.training.validation:
        raise UserError(
            f"train.validation: {run.recipe.train.validation} of the training split leaves no "
            "sample to fit a post-hoc recalibrator on; raise it"
        )
    rows = inputs.training_rows(run, unit.role, "validation")
    rows = rows.where(has_answer_position(rows))
    if not len(rows):
        raise UserError(f"{unit.key}: no validation row has an answer position")
    return rows


def recalibrated_records(run: Run, unit: Unit) -> EvalRecords:
    """Return the records of the plain model with the post-hoc recalibrator applied."""
    from firstcli.metrics.records import EvalRecords
    from firstcli.recalibration.candidates import recalibrated
    from firstcli.recipe.shift import unshifted

    plain = replace(unit.model, posthoc=False)
    records = EvalRecords.load(records_path(run.folder, unit.evaluation, plain))
    fitted = artifact_for(run, unit, run.generation(unit.evaluation)).restored()
    mass = None if records.candidate_mass is None else float(records.candidate_mass.mean())
    is_shifted = unit.evaluation != unshifted(unit.evaluation)  # it is warned of once
    if fitted.fits_subsets and mass is not None and mass < LEAST_CANDIDATE_MASS and not is_shifted:
        run.console.warn(
            f"{unit.key}: the candidates hold {100 * mass:.0f} % of the model's probability; a "
            "recalibrator that is fitted to all tokens may not suit them"
        )
    return recalibrated(records, fitted, run.stated_task(unit.evaluation).name)


POSTHOC = Posthoc()
