"""Stage `report`: the paper's Table 1 for this run, its figures, and one page that holds it all."""

from __future__ import annotations

import json
import shutil
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firstcli import __version__
from firstcli.runtime import distributed
from firstcli.runtime.redaction import redacted, without_folders
from firstcli.stages import checks, fingerprints
from firstcli.stages.base import Facts, Option, RecipeOption, Stage, TrainingFacts
from firstcli.stages.calibrate import CALIBRATE, CalibrationFacts
from firstcli.stages.distill import DISTILL
from firstcli.stages.evaluate import EVALUATE, changed_shares, load_records
from firstcli.stages.extract import EXTRACT, ExtractFacts, outcomes
from firstcli.stages.posthoc import POSTHOC
from firstcli.workspace.artifacts import Artifact
from firstcli.workspace.units import (
    Model,
    Part,
    Role,
    Unit,
    calibration_path,
    model_path,
    models_of,
    needs_fit,
    recalibrated_together,
    shifts_of,
    teachers_of,
)

if TYPE_CHECKING:
    from firstcli.api import JSON
    from firstcli.recalibration.diagnostics import CalibrationArtifact
    from firstcli.recipe.evaluations import GenerationSettings
    from firstcli.recipe.schema import Recipe
    from firstcli.recipe.sections import Arm
    from firstcli.reporting.data import ArmFacts, ReportData
    from firstcli.workspace.run import Run

PAGE = "index.html"
DECISION = "decision.json"

_PARTS: dict[Part, str] = {
    "train": "training",
    "out-of-fold": "training (out of fold)",
    "validation": "validation",
    "unlabelled": "unlabelled",
    "written": "written by the teacher",
    "copies": "copied",
}
_REMARKS = {
    "at_grid_end": ", at the end of the searched range",
    "flat": ", hardly better than other temperatures",
    "few_rows": "; few rows",
}


@dataclass(frozen=True, slots=True)
class ReportFacts(Facts):
    """What an up-to-date report prints without computing anything."""

    page: str
    """The path of the page when it was written."""
    table: JSON
    """The cells of the table that `--full` prints."""
    overview: JSON
    """The cells of the narrow table."""
    promises: JSON = None
    """The cells of the tables of thresholds and prediction sets, if the recipe asks for them."""
    shifts: JSON = None
    """The cells of the tables of shifted questions and of those without a right answer."""


class Report(Stage):
    """Writes the report of all evaluations."""

    name = "report"
    help = "Run everything and write the table, the figures and one HTML page."
    example = "recipe.yaml --open"
    format = 7  # the share of prompts that each shift changes is shown
    uses_models = False
    checks = (checks.UNPINNED,)
    options = (
        Option("full", "Also print all intervals, null values and notes.", default=False),
        Option("open", "Open the page in a browser.", default=False),
    )
    recipe_options = (
        RecipeOption(
            "target-accuracy",
            "metrics.target_accuracy",
            "Find the confidence from which each model has this accuracy, with 95 % certainty.",
            "SHARE",
        ),
        RecipeOption(
            "coverage",
            "metrics.coverage",
            "Report sets of candidates that contain the right one with this probability.",
            "SHARE",
        ),
    )

    def units(self, recipe: Recipe, folder: Path) -> Iterator[Unit]:
        stages = (CALIBRATE, POSTHOC, EVALUATE)
        needs = tuple(unit.key for stage in stages for unit in stage.units(recipe, folder))
        yield Unit(self.name, self.name, Artifact(folder / "report", True), needs)

    def fingerprint_inputs(self, run: Run, unit: Unit) -> Mapping[str, object]:
        recipe = run.recipe
        inputs = fingerprints.flat("metrics", recipe.metrics.model_dump()) | {"name": recipe.name}
        inputs["arms"] = ", ".join(recipe.arms)  # in the order of the table
        inputs["evaluate"] = ", ".join(section.name for section in recipe.evaluate)
        shifts = {section.name: section.shift for section in recipe.evaluate if section.shift}
        for name, section in shifts.items():
            inputs[f"evaluate.{name}.shift"] = section.model_dump_json()
        return inputs | ({"seeds": list(recipe.seeds)} if recipe.seeds else {})

    def work(self, run: Run, unit: Unit, folder: Path) -> ReportFacts:
        from firstcli.reporting.decision import shipped_rows
        from firstcli.reporting.page import write_report
        from firstcli.reporting.shift_tables import terminal_tables
        from firstcli.reporting.table import overview_table, paper_table
        from firstcli.reporting.thresholds import promise_tables

        shutil.rmtree(folder / "figures", ignore_errors=True)  # of an interrupted run
        data = report_data(run)
        decision = write_report(folder, data)
        promises = [table.to_json() for table in promise_tables(data)]
        shifts = [table.to_json() for table in terminal_tables(data)]
        return ReportFacts(
            str(unit.artifact.path / PAGE),
            paper_table(data).to_json(),
            overview_table(data, shipped_rows(decision)).to_json(),
            {"tables": promises} if promises else None,
            {"tables": shifts} if shifts else None,
        )

    def is_brief(self, unit: Unit) -> bool:
        return True

    def in_words(self, run: Run, unit: Unit) -> list[str]:
        return ["table, figures and page"]

    def summary(self, run: Run, units: Sequence[Unit]) -> dict[str, JSON]:
        from firstcli.reporting.commands import commands
        from firstcli.reporting.decision import Shipped
        from firstcli.reporting.terminal import Table, TerminalTable, VerdictText

        (unit,) = units
        decision, table = (_read(unit, name) for name in (DECISION, "table.json"))
        facts = ReportFacts.of(run.manifests[unit.key].facts)
        overview = Table.from_json(facts.overview)
        page, ship = str(unit.artifact.path / PAGE), decision["ship"]
        # the run folder may have moved since the report was written
        lines = (
            commands(str(run.folder), Shipped(**ship).model, decision["exportable"]) if ship else []
        )
        for tables in (facts.promises, facts.shifts):
            for stored in (tables or {"tables": ()})["tables"]:
                run.console.show(TerminalTable(Table.from_json(stored)))
        run.console.show(VerdictText(decision, overview, lines, page))
        return {"page": page, "decision": decision, **table}

    def finish(
        self, run: Run, units: Sequence[Unit], options: Mapping[str, Any]
    ) -> dict[str, JSON]:
        (unit,) = units
        if distributed.is_first() and options.get("full"):
            _show_everything(run, unit)
        if distributed.is_first() and options.get("open"):
            page = (unit.artifact.path / PAGE).resolve()
            if not webbrowser.open(page.as_uri()):
                run.console.warn(f"--open: no browser could be started; the page is {page}")
        return {}


def _show_everything(run: Run, unit: Unit) -> None:
    """Print the table with all intervals, and the notes."""
    from firstcli.reporting.terminal import Table, TerminalTable

    facts = ReportFacts.of(run.manifests[unit.key].facts)
    run.console.show(TerminalTable(Table.from_json(facts.table)))
    for note in _read(unit, "table.json")["notes"]:
        run.console.say(f"{note['label']}: {note['value']}")


def _read(unit: Unit, name: str) -> JSON:
    return json.loads((unit.artifact.path / name).read_text("utf-8"))


def report_data(run: Run) -> ReportData:
    """Collect what a report shows."""
    from firstcli.reporting.data import FittedRecalibrator, ReportData, TeacherPart
    from firstcli.reporting.questions import disputed
    from firstcli.workspace.run import as_yaml

    recipe = run.recipe
    records = load_records(EVALUATE.units(recipe, run.folder), recipe.metrics.candidates)
    finished = {key: manifest for key, manifest in run.manifests.items() if key != REPORT.name}
    data = ReportData(
        run=recipe.name,
        recipe=as_yaml(run.publishable),
        members={row: [model.name for model in models] for row, models in _rows(run).items()},
        evaluations=[section.name for section in recipe.evaluate],
        records={key: value for key, value in records.items() if not recipe.is_validation(key[0])},
        validation={
            model: value for (name, model), value in records.items() if recipe.is_validation(name)
        },
        other_answers=frozenset(_other_answers(recipe)),
        settings=recipe.metrics,
        shifts=shifts_of(recipe),
        changed=changed_shares(run),
        notes=[*_notes_on_data(run), *_notes_on_knowledge(run), *_notes_on_calibration(run)],
        versions=next(iter(finished.values())).versions,
        seconds={key: manifest.seconds for key, manifest in finished.items()},
        seeds=recipe.seeds,
        calibrations={
            model.row: FittedRecalibrator(
                fitted.ranks, fitted.restored().diagnostics().curves, fitted.facts.get("criterion")
            )
            for model, fitted in _calibrations(run)
        },
        concentration=_concentration(run),
        arms={
            name: _arm_facts(run, name, arm)
            for name, arm in recipe.arms.items()
            if arm.learn == "knowledge"
        },
        top_k=recipe.knowledge.width,
        labels_only=frozenset(name for name, arm in recipe.arms.items() if arm.learn == "labels"),
        location=_location(run.folder),
        setup=list(_setup(run)),
        teacher_parts=[
            TeacherPart(title, facts.confidence, facts.accuracy, facts.judged)
            for title, _, facts in _knowledge(run)
            if facts.accuracy is not None
        ],
    )
    questions = {}
    for name in data.illustrated:  # the questions on which the rows differ most
        samples = {sample.id: sample for sample in run.evaluation_samples(name)}
        questions[name] = [samples[id] for id in disputed(data.first_of(name))]
    return replace(data, questions=questions)


def _other_answers(recipe: Recipe) -> Iterator[str]:
    """Yield the evaluations with other answers than those to the validation questions.

    The number of tokens after which a text is cut off makes no other kind of answer.
    """

    def kind(settings: GenerationSettings | None) -> GenerationSettings | None:
        return settings and replace(settings, max_new_tokens=1)

    for section in recipe.evaluate:
        if kind(section.generation) != kind(recipe.validation_answers):
            yield section.name


def _location(folder: Path) -> str:
    """Return what commands call the run folder: no absolute path is published."""
    folder, here = folder.resolve(), Path.cwd().resolve()
    return folder.relative_to(here).as_posix() if folder.is_relative_to(here) else folder.name


def _setup(run: Run) -> Iterator[str]:
    """Yield what was run: models, rows, evaluations, seeds, date and version."""
    recipe, training = run.recipe, run.training
    students = [model for model in models_of(recipe) if model.arm and not model.posthoc]
    arms = len(recipe.arms)
    trained = model_path(run.folder, students[0])
    yield f"{arms} student{'s' * (arms != 1)} ({_size(run, 'student', trained)})"
    if recipe.teacher:
        yield f"teacher ({_size(run, 'teacher', model_path(run.folder, Model()))})"
    held_out = f", {len(training.validation):,} held out" if training.validation else ""
    yield f"{len(training.train):,} training rows{held_out}"
    count = len(recipe.evaluate)
    yield f"{count} evaluation{'s' * (count != 1)}"
    seeds = recipe.seeds or [recipe.seed]
    yield f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    if newest := max(map(_finished, EVALUATE.units(recipe, run.folder)), default=0.0):
        yield f"{datetime.fromtimestamp(newest, UTC):%d %B %Y}"
    yield f"firstcli {__version__}"


def _size(run: Run, role: Role, folder: Path) -> str:
    """Return a model's checkpoint and number of weights, as far as they are known."""
    from firstcli.checkpoints import adapters
    from firstcli.checkpoints.folder import count_weights

    section, local = run.model_section(role), run.reference(role).folder
    counted = next((each for each in (folder, local) if each and each.is_dir()), None)
    whole = adapters.whole_model(counted).folder if counted else None
    count = count_weights(whole) if whole else 0
    name = Path(without_folders(section.checkpoint)).name if section.checkpoint else ""
    weights = f"{_amount(count)} weights" if count else ""
    return ", ".join(filter(None, [name, weights])) or section.family


def _amount(count: int) -> str:
    """Format a number of weights: 36.1 k, 0.4 M, 6.7 B."""
    for limit, unit in ((1e5, "k"), (1e9, "M")):
        if count < limit:
            return f"{count / (1e3 if unit == 'k' else 1e6):.1f} {unit}"
    return f"{count / 1e9:.1f} B"


def _finished(unit: Unit) -> float:
    """Return when a unit was finished, in seconds since 1970; 0 if it was not."""
    path = unit.artifact.manifest_path
    return path.stat().st_mtime if path.exists() else 0.0


def _rows(run: Run) -> dict[str, list[Model]]:
    """Return the rows of the tables, each with one model per seed."""
    rows: dict[str, list[Model]] = {}
    for model in models_of(run.recipe):
        rows.setdefault(model.row, []).append(model)
    return rows


def _calibrations(run: Run) -> Iterator[tuple[Model, CalibrationArtifact]]:
    """Yield what was fitted, with each row's first model, whose post-hoc temperature it is."""
    from firstcli.recalibration.diagnostics import CalibrationArtifact

    for first, *_ in _rows(run).values():
        key = POSTHOC.key(first) if first.posthoc else CALIBRATE.key(first.arm)
        if key in run.manifests:
            name = first.name if first.posthoc else first.arm
            yield first, CalibrationArtifact.load(calibration_path(run.folder, name))


def _concentration(run: Run) -> JSON:
    from firstcli.knowledge import concentration

    parts: tuple[Part, ...] = ("train", "out-of-fold")
    for part in parts:
        path = run.folder / "knowledge" / part / concentration.FILE_NAME
        if EXTRACT.key(part) in run.manifests and path.exists():
            return json.loads(path.read_text("utf-8"))
    return None


def _arm_facts(run: Run, name: str, arm: Arm) -> ArmFacts:
    from firstcli.reporting.data import ArmFacts

    assert arm.recalibrator
    options = dict(redacted(arm.recalibrator.given))
    fixed = options.pop("temperature", None)
    kind = [arm.recalibrator.name, *(f"{key} {value}" for key, value in options.items())]
    defaults = type(arm)()
    if arm.objective != defaults.objective and arm.objective:
        kind.append(f"objective {arm.objective.title}")
    if spans := arm.span_weights:
        kind.append(f"answer weighs {spans.answer / spans.explanation:g} times its explanation")
    for key in ("mass", "recalibrate", "out_of_fold", "teachers"):
        if (value := getattr(arm, key)) != getattr(defaults, key):
            kind.append(f"{key.replace('_', ' ')} {value}")
    kind += ["with copies"] if arm.augment else []
    kind += ["T by agreement"] if arm.posthoc and arm.posthoc.fit == "agreement" else []
    changed = arm.training.model_dump(exclude_none=True) if arm.training else {}
    kind += [f"{key.replace('_', ' ')} {value}" for key, value in changed.items()]
    return ArmFacts(
        kind=", ".join(kind),
        temperature=None if fixed is None else float(fixed),
        top_k=arm.top_k or run.recipe.knowledge.width,
        mass=_training_facts(run, _rows(run)[name][0]).P,
    )


def _training_facts(run: Run, model: Model) -> TrainingFacts:
    return TrainingFacts.of(run.manifests[DISTILL.key(model)].facts)


def _knowledge(run: Run) -> Iterator[tuple[str, int, ExtractFacts]]:
    """Yield the title, bytes and facts of every part that was extracted."""
    for part, title in _PARTS.items():
        if manifest := run.manifests.get(EXTRACT.key(part)):
            weight = sum(file["size"] for file in manifest.files.values())
            yield title, weight, ExtractFacts.of(manifest.facts)


def _notes_on_data(run: Run) -> Iterator[tuple[str, str]]:
    from firstcli.workspace import overlap

    training = run.training
    students = [model for model in models_of(run.recipe) if model.arm and not model.posthoc]
    facts = [_training_facts(run, model) for model in students]
    used = max(each.in_the_data for each in facts)
    rewritten = run.recipe.knowledge.responses == "teacher-always"
    left_out = 0 if rewritten else len(training.train) - used
    yield (
        "data",
        f"{used} training samples{f' ({left_out} more left out)' if left_out else ''}; "
        f"{len(training.validation)} held out, on which no model was trained",
    )
    if unlabelled := max(each.unlabelled or 0 for each in facts):
        yield (
            "unlabelled data",
            f"{unlabelled} samples without a label, from which students learned the teacher's "
            "probabilities at the answer position",
        )
    if written := max(each.written or 0 for each in facts):
        yield "written data", f"{written} samples whose responses the teacher wrote"
    if copies := max(each.copies or 0 for each in facts):
        augment = run.recipe.augmentation
        assert augment
        names = ", ".join(augmenter.name for augmenter in augment.augmenters)
        yield (
            "copies",
            f"{copies} copies of training samples, made by {names}; in an epoch, one of its copies "
            f"stands for a sample with probability {augment.share:g}",
        )
    for section in run.recipe.evaluate:
        if shared := overlap.with_training(run, section.name):
            yield section.name, f"{shared} of its prompts also occur in the training split"
        if shared := overlap.with_unlabelled(run, section.name):
            yield section.name, f"{shared} of its prompts also occur in the unlabelled data"
        if shared := overlap.with_copies(run, section.name):
            yield section.name, f"{shared} of its prompts also occur among the copies"


def _notes_on_knowledge(run: Run) -> Iterator[tuple[str, str]]:
    from firstcli.runtime.console import size

    for name, arm in run.recipe.arms.items():
        if len(teachers := teachers_of(run.recipe, arm)) > 1:
            seeds = ", ".join(str(seed) for seed in (run.teacher_seed, *teachers[1:]))
            by_itself = ", each re-calibrated by itself" * (arm.teachers == "recalibrated-mean")
            yield name, f"learned the mean of {len(teachers)} teachers{by_itself}, of seeds {seeds}"

    for title, weight, facts in _knowledge(run):
        if facts.mean_distinct is not None:
            yield (
                f"knowledge of {title} samples",
                f"{facts.positions} positions in {size(weight)}, {outcomes(run.recipe)} of the "
                f"teacher's whole distribution, {facts.mean_distinct:.2f} different tokens on "
                f"average, {facts.bytes_per_position:.1f} bytes per position",
            )
            continue
        yield (
            f"knowledge of {title} samples",
            f"{facts.positions} positions in {size(weight)}, mean mass of the "
            f"{outcomes(run.recipe)}: {facts.mean_top_k_mass:.4f}, "
            f"{facts.bytes_per_position:.1f} bytes per position, probabilities off by "
            f"{facts.mean_probability_error:.1g} on average",
        )


def _notes_on_calibration(run: Run) -> Iterator[tuple[str, str]]:
    for model, artifact in _calibrations(run):
        is_agreement = artifact.facts.get("criterion") == "agreement"
        seen = "measured on" if is_agreement else "on"
        note = f"{artifact.recalibrator} {seen} {artifact.rows} rows"
        if "temperature" in artifact.facts and "criterion" in artifact.facts:
            note += f": T = {artifact.facts['temperature']:.4g} by {artifact.facts['criterion']}"
        note += f": {artifact.learned}" if artifact.learned else ""
        if interval := artifact.facts.get("interval"):
            note += " (95 % interval {:.3g} to {:.3g})".format(*interval)
        note += "".join(text for key, text in _REMARKS.items() if artifact.state.get(key))
        if model.posthoc and model.seed is not None:
            note += f"; this is seed {model.seed}; every seed has its own T"
        yield model.row, note
    for name, arm in run.recipe.arms.items():
        yield from _notes_on_further_teachers(run, name, arm)
    for row, (first, *_) in _rows(run).items():
        if first.arm and not first.posthoc and (swaps := _training_facts(run, first).rank_swaps):
            yield row, f"{100 * swaps:.1f} % of recalibrated positions changed their top token"


def _notes_on_further_teachers(run: Run, name: str, arm: Arm) -> Iterator[tuple[str, str]]:
    """Yield what the recalibrators of an arm's further teachers have learned."""
    for seed, *_ in recalibrated_together(run.recipe, arm)[1:] if needs_fit(arm) else ():
        fitted = CalibrationFacts.of(run.manifests[CALIBRATE.key(name, seed)].facts)
        yield name, f"the teacher of seed {seed}: {', '.join(fitted.in_words())}"


REPORT = Report()
