"""A run with the section `active`: its teacher, and what all arms and seeds have in common."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from firstcli.active.data import ActiveData
from firstcli.active.folders import HELD_OUT, ROUNDS, STARTS, as_lines, read_json, write_changed
from firstcli.api import Sample
from firstcli.pipeline.execute import bring_up_to_date
from firstcli.pipeline.plan import Request, status_of
from firstcli.recipe.active import Active
from firstcli.runtime.files import write_json
from firstcli.stages import fingerprints, units_of
from firstcli.stages.finetune import FINETUNE
from firstcli.tasks.annotated import to_row
from firstcli.workspace.artifacts import fingerprint
from firstcli.workspace.run import Run
from firstcli.workspace.units import with_upstream

START = "start.mark"
"""The file that is written last into the folder of the weights that students start with."""


@dataclass(frozen=True)
class ActiveRun:
    """A run with the section `active`, opened once for all arms and seeds."""

    run: Run
    request: Request
    data: ActiveData
    teacher: str
    """What identifies the teacher; empty if there is none."""

    @property
    def active(self) -> Active:
        active = self.run.recipe.active
        assert active
        return active

    @property
    def folder(self) -> Path:
        """The folder of all rounds."""
        return self.run.folder / ROUNDS

    @property
    def held_out(self) -> Path | None:
        """The file of the held-out samples, if there are any."""
        return self.folder / HELD_OUT if self.data.held_out else None

    @cached_property
    def held_out_lines(self) -> bytes:
        """The content of that file."""
        return sample_lines(self.data.held_out)

    def write_held_out(self) -> None:
        """Write that file, unless it has the content already."""
        if self.held_out:
            write_changed(self.held_out, self.held_out_lines)

    def starting_folder(self, seed: int) -> Path:
        """Return the folder of the weights that a family without a checkpoint starts with."""
        return self.folder / STARTS / str(seed)

    def has_start(self, seed: int) -> bool:
        """Return whether there are weights to start with."""
        needs_none = self.run.recipe.student.model.plugin.needs_checkpoint
        return needs_none or (self.starting_folder(seed) / START).is_file()

    def student(self, seed: int) -> str:
        """Return what identifies the model with which students start, which must exist."""
        if self.run.recipe.student.model.plugin.needs_checkpoint:
            inputs = fingerprints.model(self.run, "student", seed=0)  # the arm's seed draws nothing
            return fingerprint(fingerprints.as_text(inputs))
        return self.run.digests.of_checkpoint(self.starting_folder(seed))

    def without_place(self, value: Any) -> Any:
        """Return a JSON value in which paths in the run folder are relative to it."""
        if isinstance(value, dict):
            return {key: self.without_place(child) for key, child in value.items()}
        if isinstance(value, list):
            return [self.without_place(child) for child in value]
        if not isinstance(value, str):
            return value
        folder = self.run.folder
        for place in (folder.absolute(), folder.resolve()):
            if Path(value).is_relative_to(place):
                return f"RUN/{Path(value).relative_to(place)}"
        return value

    @cached_property
    def known_questions(self) -> str:
        """A digest of the questions that a new one must not repeat."""
        return fingerprint({"known": json.dumps(sorted(self.data.known_questions))})

    @cached_property
    def evaluations(self) -> dict[str, str]:
        """A digest of the samples of every evaluation."""
        names = [section.name for section in self.run.recipe.evaluate]
        return {name: self.run.evaluation_content(name) for name in names}


def sample_lines(samples: Sequence[Sample]) -> bytes:
    """Return the content of a file of samples for the task `annotated`."""
    return as_lines([to_row(sample) for sample in samples])


def opened(run: Run, request: Request, data: ActiveData) -> ActiveRun:
    """Bring the teacher up to date, and return the run with it."""
    if run.recipe.teacher and run.recipe.teacher.finetune:
        bring_up_to_date(run, replace(request, arms=()), FINETUNE)
    return _with_teacher(run, request, data)


def as_it_stands(run: Run, request: Request, data: ActiveData) -> ActiveRun | None:
    """Return the run without doing anything; None if its teacher is not up to date."""
    units = units_of(run.recipe, run.folder)
    chain = with_upstream(units, FINETUNE.units(run.recipe, run.folder))
    if not all(status_of(run, unit).current for unit in chain):
        return None
    return _with_teacher(run, request, data)


def _with_teacher(run: Run, request: Request, data: ActiveData) -> ActiveRun:
    if run.recipe.teacher is None:
        return ActiveRun(run, request, data, "")
    trained = run.recipe.teacher.finetune is not None
    content = run.manifests[FINETUNE.key()].content if trained else ""
    predictions = fingerprints.as_text(fingerprints.predictions(run, "teacher"))
    return ActiveRun(run, request, data, fingerprint({**predictions, "teacher": content}))


def save_starting_model(whole: ActiveRun, seed: int) -> None:
    """Save the weights with which every round's student starts, unless they are saved already.

    A family without a checkpoint makes weights and tokenizer from the seed and the text of the
    training task.
    """
    run, folder = whole.run, whole.starting_folder(seed)
    mark = folder / START
    depends_on = fingerprints.loading_content(run, "student") | {"seed": str(seed)}
    if read_json(mark) == {"fingerprint": fingerprint(depends_on)}:
        return
    run.announce_libraries()
    from firstcli.stages import role_models

    folder.mkdir(parents=True, exist_ok=True)
    mark.unlink(missing_ok=True)
    model = role_models.starting_model(run, "student", "float32", seed)
    model.save_pretrained(folder)
    role_models.tokenizer(run, "student").save_pretrained(folder)
    write_json(mark, {"fingerprint": fingerprint(depends_on)})
