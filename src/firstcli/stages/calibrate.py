"""Stage `calibrate`: fit an arm's recalibrator on the validation part of the knowledge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rich.table import Column, Table

from firstcli.errors import UserError
from firstcli.stages import checks, fingerprints
from firstcli.stages.base import Facts, Stage
from firstcli.stages.extract import EXTRACT
from firstcli.workspace.artifacts import Artifact
from firstcli.workspace.units import (
    Model,
    Unit,
    calibration_path,
    fitted_name,
    needs_fit,
    recalibrated_together,
)

if TYPE_CHECKING:
    from firstcli.api import JSON
    from firstcli.plugins.recalibrators import CheckedRecalibrator
    from firstcli.recipe.schema import Recipe
    from firstcli.recipe.sections import Arm
    from firstcli.training.soft_targets import Positions
    from firstcli.workspace.run import Run
    from firstcli.workspace.units import Part, Role


@dataclass(frozen=True, slots=True)
class CalibrationFacts(Facts):
    """The results of a fitted recalibrator on the rows that it was fitted on."""

    recalibrator: str
    rows: int
    accuracy: float
    confidence_before: float
    confidence_after: float
    ece_before: float
    ece_after: float
    learned: str = ""
    """What the fit learned, in a few words."""
    plugin: Mapping[str, JSON] = field(default_factory=dict)
    """The recalibrator's own facts, such as `temperature`."""

    @classmethod
    def of(cls, facts: Mapping[str, JSON]) -> Self:
        own = {name: facts[name] for field in fields(cls) if (name := field.name) in facts}
        return cls(**own, plugin={k: v for k, v in facts.items() if k not in own})

    @property
    def is_by_agreement(self) -> bool:
        """Whether it was fitted without labels, to the teacher's probabilities."""
        return self.plugin.get("criterion") == "agreement"

    def in_words(self) -> list[str]:
        """Describe the fit in phrases."""
        from firstcli.runtime.console import percent

        before, after = percent(self.ece_before), percent(self.ece_after)
        temperature = [f"T = {_temperature(self.plugin)}"] if "temperature" in self.plugin else []
        learned = [self.learned] if self.learned else []
        measured = [f"ECE {before} → {after}", f"{self.rows:,} validation rows"]
        return [self.recalibrator, *temperature, *learned, *measured]

    def as_json(self) -> dict[str, JSON]:
        own = asdict(self)
        plugin: dict[str, JSON] = own.pop("plugin")
        if not own["learned"]:
            del own["learned"]
        return own | plugin


class Calibrate(Stage):
    """Fits one recalibrator per arm, or one per teacher of an arm."""

    name = "calibrate"
    help = "Fit each recalibrator on the held-out validation part."
    format = 2  # intervals, criteria, ranks
    checks = (checks.SEEN_ROWS, checks.UNPINNED)
    why_nothing = "no arm has a recalibrator that is fitted"

    def key(self, arm: str, seed: int | None = None) -> str:
        return f"{self.name} {arm}" + ("" if seed is None else f" seed {seed}")

    def keys(self, recipe: Recipe, arm: str) -> list[str]:
        """Return the keys of the units that fit the recalibrators of an arm."""
        groups = recalibrated_together(recipe, recipe.arms[arm])
        return [self.key(arm, first) for first, *_ in groups]

    def units(self, recipe: Recipe, folder: Path) -> Iterator[Unit]:
        for name, arm in recipe.arms.items():
            for teachers in recalibrated_together(recipe, arm) if needs_fit(arm) else ():
                seed = teachers[0]
                yield Unit(
                    self.key(name, seed),
                    self.name,
                    Artifact(calibration_path(folder, fitted_name(name, seed)), False),
                    tuple(EXTRACT.key("validation", each) for each in teachers),
                    teacher_seed=seed,
                    model=Model(name),
                )

    def fingerprint_inputs(self, run: Run, unit: Unit) -> Mapping[str, object]:
        names = ("recalibrator", "mass", "recalibrate", "top_k")
        inputs = fingerprints.arm_fields(run.recipe, unit.arm, names)
        # The answer positions follow from the candidates, which the knowledge does not contain.
        return inputs | {"validation samples": run.part_content("validation")}

    def check(self, run: Run, unit: Unit) -> str:
        arm = run.recipe.arms[unit.arm]
        assert arm.recalibrator
        if run.training.validation:  # otherwise, the extraction says what to do
            width, rows = _fitted(run, arm)
            arm.recalibrator.build().check(width, rows)
        return f"{arm.recalibrator.name} on {len(run.training.validation)} validation samples"

    def work(self, run: Run, unit: Unit, folder: Path) -> CalibrationFacts:
        from firstcli.recalibration.diagnostics import CalibrationArtifact
        from firstcli.stages import teacher_knowledge
        from firstcli.training import soft_targets

        arm = run.recipe.arms[unit.arm]
        assert arm.recalibrator and arm.mass
        over_candidates = run.recipe.knowledge.over_candidates
        groups = recalibrated_together(run.recipe, arm)
        teachers = next(group for group in groups if group[0] == unit.teacher_seed)
        rows, knowledge = teacher_knowledge.validation_knowledge(run, arm, teachers)
        positions = soft_targets.Positions.joined(
            list(soft_targets.recalibrated_chunks(arm, rows, knowledge))
        )
        if not len(positions.topk):
            raise UserError(f"arms.{unit.arm}: no validation position to fit the recalibrator on")
        if over_candidates:
            positions = _of_commonest_width(run, unit, positions)
        recalibrator = arm.recalibrator.build()
        tokens = candidate_tokens(run, recalibrator, "validation", "teacher")
        fit_rows = soft_targets.rows_of(
            arm, positions, run.recipe.train.task.name, tokens, over_candidates
        )
        recalibrator.fit(fit_rows, positions.is_label)
        for warning in recalibrator.diagnostics().warnings:
            run.console.warn(f"arms.{unit.arm}: {warning}")
        artifact = CalibrationArtifact.measure(
            recalibrator,
            fit_rows,
            positions.is_label,
            name=arm.recalibrator.name,
            options=arm.recalibrator.given,
            positions="decisive" if positions.is_answer.all() else "all",
            mass_mode=arm.mass,
        )
        artifact.save(folder / unit.artifact.path.name)
        return CalibrationFacts.of(artifact.short_facts())

    def is_brief(self, unit: Unit) -> bool:
        return True

    def in_words(self, run: Run, unit: Unit) -> list[str]:
        return CalibrationFacts.of(run.manifests[unit.key].facts).in_words()

    def summary(self, run: Run, units: Sequence[Unit]) -> dict[str, JSON]:
        title = "recalibrators, on the validation rows that they were fitted on"
        return show_fitted(run, title, units)


def _fitted(run: Run, arm: Arm) -> tuple[int, int]:
    """Return the number of probabilities and of rows that an arm's recalibrator is fitted on."""
    from firstcli.stages import inputs, teacher_knowledge
    from firstcli.training import soft_targets

    width = teacher_knowledge.knowledge_width(run)
    width = min(arm.top_k or width, width)
    if not run.recipe.knowledge.over_candidates:
        samples = inputs.training_rows(run, "teacher", "validation")
        return width, soft_targets.count_recalibrated(arm, samples)
    kept = {row.id for row in inputs.knowledge_rows(run, "validation")}
    samples_kept = (sample for sample in run.training.validation if sample.id in kept)
    return _commonest(min(len(sample.candidates), width) for sample in samples_kept)


def _commonest(widths: Iterable[int]) -> tuple[int, int]:
    """Return the commonest width, the largest of several, and how often it occurs."""
    return max(Counter(widths).items(), key=lambda item: (item[1], item[0]))


def _of_commonest_width(run: Run, unit: Unit, positions: Positions) -> Positions:
    """Return the validation rows over candidates that have the commonest number of candidates.

    A recalibrator takes rows of one width, and candidates that do not exist must not get
    probability, as Eq. 4 would give them.
    """
    width, count = _commonest(positions.widths.tolist())
    if count < len(positions.topk):
        run.console.warn(
            f"arms.{unit.arm}: the recalibrator is fitted on {count} of {len(positions.topk)} "
            f"validation rows, those with the commonest number of candidates, {width}"
        )
    return positions.of_width(width)


def candidate_tokens(
    run: Run, recalibrator: CheckedRecalibrator, part: Part, role: Role
) -> Mapping[str, tuple[int, ...]]:
    """Return the candidates' tokens by sample, if the recalibrator needs them.

    Args:
        run: the run.
        recalibrator: the recalibrator.
        part: the samples.
        role: whose tokens these are.
    """
    from firstcli.stages import inputs

    return inputs.candidate_tokens(run, role, part) if recalibrator.uses_rows else {}


def show_fitted(run: Run, title: str, units: Sequence[Unit]) -> dict[str, JSON]:
    """Print the facts of fitted recalibrators, one row per arm or model, and return them."""
    from firstcli.recalibration.criteria import CRITERIA

    headings: tuple[str, ...] = (
        *("fitted for", "recalibrator", "T", "by ECE", "by NLL", "by Brier"),
        *("rows", "accuracy", "confidence", "ECE"),
    )
    every = {unit: CalibrationFacts.of(run.manifests[unit.key].facts) for unit in units}
    learned = any(facts.learned for facts in every.values())
    columns = ("learned",) if learned else ()
    table = Table(*(Column(name, no_wrap=True) for name in headings), *columns, title=title)
    for unit, facts in every.items():
        temperatures = facts.plugin.get("temperatures", {})
        table.add_row(
            unit.subject,
            f"{facts.recalibrator}{' by agreement' * facts.is_by_agreement}",
            _temperature(facts.plugin),
            *(_number(temperatures.get(criterion)) for criterion in CRITERIA),
            str(facts.rows),
            f"{100 * facts.accuracy:.1f}",
            f"{100 * facts.confidence_before:.1f} -> {100 * facts.confidence_after:.1f}",
            f"{100 * facts.ece_before:.1f} -> {100 * facts.ece_after:.1f}",
            *((str(facts.learned or "–"),) if learned else ()),
        )
    run.console.show(table)
    return {unit.subject: run.manifests[unit.key].facts for unit in units}


def _temperature(facts: Mapping[str, JSON]) -> str:
    """Format a temperature with its interval, if there is one."""
    text = _number(facts.get("temperature"))
    if "interval" not in facts:
        return text
    low, high = facts["interval"]
    return f"{text} ({low:.3g} to {high:.3g})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


CALIBRATE = Calibrate()
