"""What a stage is: everything that the pipeline and the command line need to know about one step.

The command line builds its commands from the stages, so their modules import nothing heavy. What
needs PyTorch, numpy or pydantic is imported inside the methods, when work starts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from firstcli.stages.checks import SharedCheck
from firstcli.workspace.units import Unit

if TYPE_CHECKING:
    from firstcli.api import JSON
    from firstcli.recipe.schema import Recipe
    from firstcli.stages.probe import CostEstimate, Probe
    from firstcli.workspace.run import Run


@dataclass(frozen=True, slots=True)
class Facts:
    """Numbers that a unit's manifest keeps for tables, reports and model cards.

    A field of None is left out of the manifest.
    """

    def as_json(self) -> dict[str, JSON]:
        """Return the fields that have a value."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def of(cls, facts: Mapping[str, JSON]) -> Self:
        """Read the facts of a manifest."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in facts.items() if name in known})


def facts_in_words(facts: Mapping[str, JSON]) -> list[str]:
    """Return the name and value of every fact; False and nested facts are left out."""
    texts = {name.replace("_", " "): _text(value) for name, value in facts.items()}
    return [f"{name} {text}" for name, text in texts.items() if text]


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " to ".join(map(_text, value))
    return "" if isinstance(value, dict) else str(value)


@dataclass(frozen=True, slots=True)
class Option:
    """A command-line option that only one stage has."""

    name: str
    help: str
    default: bool | int
    metavar: str | None = None
    minimum: int | None = None


@dataclass(frozen=True, slots=True)
class RecipeOption:
    """A command-line option that overrides a recipe key, as `--set KEY=VALUE` would."""

    name: str
    key: str
    help: str
    metavar: str

    @property
    def parameter(self) -> str:
        """The name of the option in Python."""
        return self.name.replace("-", "_")


class Stage(ABC):
    """One step of the pipeline: its units, what they depend on, and the work.

    A new stage is one subclass in a module of this package, and one line in `STAGES`.
    """

    name: ClassVar[str]
    """Name of the command and first word of the units' keys."""
    help: ClassVar[str]
    """One sentence for `first --help`."""
    example: ClassVar[str] = "recipe.yaml"
    """Arguments of the command, for an example in its help."""
    format: ClassVar[int] = 1
    """Raise it when the same inputs give a different result than before."""
    shared: ClassVar[bool] = False
    """Whether all processes of a launch work on a unit; otherwise only the first one does."""
    has_arms: ClassVar[bool] = False
    """Whether `--arm` limits the units."""
    precious: ClassVar[bool] = False
    """Whether a damaged artifact is rebuilt only on request, because it took long to make."""
    uses_models: ClassVar[bool] = True
    """Whether checks and work need PyTorch and transformers, whose import takes seconds."""
    checks: ClassVar[tuple[SharedCheck, ...]] = ()
    """Checks that units have in common with units of other stages."""
    options: ClassVar[tuple[Option, ...]] = ()
    """Further options of the command."""
    completes: ClassVar[Stage | None] = None
    """The stage whose command also does this one's units of the same models."""
    recipe_options: ClassVar[tuple[RecipeOption, ...]] = ()
    """Further options of the command that override recipe keys."""
    why_nothing: ClassVar[str] = "the recipe does not need it"
    """Why a recipe has no unit of this stage."""

    @abstractmethod
    def units(self, recipe: Recipe, folder: Path) -> Iterator[Unit]:
        """Yield the units that a recipe needs, in an order in which they can run."""

    @abstractmethod
    def fingerprint_inputs(self, run: Run, unit: Unit) -> Mapping[str, object]:
        """Return everything that a unit's result depends on, besides the units that it needs.

        These are the recipe keys that matter, the content of data and checkpoints, plugins with
        their effective options, and the seed. Versions of packages, paths, the number of
        processes, the micro-batch and the device are left out, because they change no result.
        """

    def checks_of(self, run: Run, unit: Unit) -> Iterable[SharedCheck]:
        """Return the shared checks that a unit needs."""
        return self.checks

    def check(self, run: Run, unit: Unit) -> str:
        """Check everything that can be checked without weights; describe the unit's size.

        Raises:
            UserError: the unit cannot work.
        """
        return ""

    def disk(self, run: Run, unit: Unit) -> int:
        """Estimate the bytes that the unit's result takes on disk."""
        return 0

    def disk_at_work(self, run: Run, unit: Unit) -> int:
        """Estimate the bytes that the unit's work takes on disk besides its result."""
        return 0

    def probe(self, probe: Probe, unit: Unit) -> CostEstimate | None:
        """Measure a few batches; None for stages that take seconds."""
        return None

    @abstractmethod
    def work(self, run: Run, unit: Unit, folder: Path) -> Facts | None:
        """Write the unit's result into a work folder, which may hold the start of it.

        Returns:
            The facts for the manifest; only those of the first process are kept.
        """

    def is_brief(self, unit: Unit) -> bool:
        """Return whether the work takes seconds, so that estimates of time can leave it out."""
        return False

    def resumption(self, run: Run, unit: Unit) -> str:
        """Describe where the work in a unit's work folder goes on: `step 140 of 840`.

        Returns:
            The place; empty if the work starts anew.
        """
        return ""

    def forget(self, run: Run, unit: Unit) -> None:
        """Delete what earlier work has left outside its folder, because `--force` redoes it."""
        return

    def in_words(self, run: Run, unit: Unit) -> list[str]:
        """Describe the result of finished work in a few phrases, for one line in the terminal."""
        return facts_in_words(run.manifests[unit.key].facts)

    def unsound_files(self, folder: Path) -> list[str]:
        """Return the names of files that are damaged although their checksums match."""
        return []

    def summary(self, run: Run, units: Sequence[Unit]) -> dict[str, JSON]:
        """Print the result of finished units and return it as JSON values."""
        return {unit.key: run.manifests[unit.key].facts for unit in units}

    def finish(
        self, run: Run, units: Sequence[Unit], options: Mapping[str, Any]
    ) -> dict[str, JSON]:
        """Do what the command's own options ask for, after all units are up to date."""
        return {}


@dataclass(frozen=True, slots=True)
class TrainingFacts(Facts):
    """The size and the outcome of one model's training."""

    samples: int
    """Labelled and unlabelled samples."""
    steps: int
    positions: int
    loss: float
    padding: float
    P: float | None = None
    """The teacher's mean mass on its top k."""
    Q: float | None = None
    """The student's mean mass on the same tokens."""
    from_label: float | None = None
    """Share of positions that learned from their label in the end, with `hard-gate`."""
    rank_swaps: float | None = None
    """Share of recalibrated positions whose top token changed, if any did."""
    unlabelled: int | None = None
    """Number of the samples that have no label, if there are any."""
    written: int | None = None
    """Number of the samples whose response the teacher has written, if there are any."""
    copies: int | None = None
    """Number of copies that can stand for samples in an epoch, if there are any."""
    mixture: dict[str, float] | None = None
    """The last share of each domain in the samples drawn, with `train.mixture`."""

    @property
    def in_the_data(self) -> int:
        """Number of the samples whose label or response is in the data."""
        return self.samples - (self.unlabelled or 0) - (self.written or 0)

    def in_words(self, top_k: int) -> list[str]:
        """Describe the training in phrases.

        Args:
            top_k: tokens per position that a student learns from.
        """
        from firstcli.runtime.console import percent

        steps = f"{self.steps:,} step{'s' * (self.steps != 1)}"
        kinds = (("unlabelled", self.unlabelled), ("written by the teacher", self.written))
        named = ", ".join(f"{count:,} {kind}" for kind, count in kinds if count)
        named += f"{', ' if named else ''}and {self.copies:,} copies" if self.copies else ""
        of_these = f" ({named})" if named else ""
        phrases = [f"{self.samples:,} samples{of_these}", steps, f"loss {self.loss:.3g}"]
        if self.P is not None and self.Q is not None:
            held = f"{percent(self.P)}, in the student {percent(self.Q)}"
            phrases.append(f"top {top_k} hold {held}")
        if self.mixture:
            shares = ", ".join(f"{percent(each)} {name}" for name, each in self.mixture.items())
            phrases.append(f"drew {shares} in the end")
        if self.from_label is not None:
            phrases.append(f"{percent(self.from_label)} of positions learned the label in the end")
        if self.rank_swaps:
            phrases.append(f"{percent(self.rank_swaps)} of top tokens swapped")
        return phrases
