"""What the latest student says of the questions of a pool."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from firstcli.api import ExplanationForm, FloatArray, Pool, Sample, split_steps
from firstcli.plugins.selectors import CheckedSelector
from firstcli.runtime.files import write_text
from firstcli.workspace.run import Run
from firstcli.workspace.units import Model

if TYPE_CHECKING:
    from firstcli.recalibration.diagnostics import CalibrationArtifact
    from firstcli.stages.pool_view import PoolReader

WHERE = "active.pool (student's tokenizer)"
"""What begins messages about the questions that a student reads."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a student says of a question in words."""

    id: str
    text: str = ""
    """Its explanation and answer."""
    steps: tuple[str, ...] = ()
    answer: str = ""
    surprises: tuple[float, ...] = ()
    """Mean negative log-probability of the tokens of each step under the student."""


@dataclass(frozen=True, slots=True)
class StudentReader:
    """Asks the student of a round."""

    run: Run
    """The round's run, whose student is trained."""
    arm: str
    form: ExplanationForm | None
    """How responses are made of steps and answer; None if they are an answer alone."""
    recalibrated: bool
    """Whether answers have the probabilities of the arm's post-hoc recalibrator."""
    seed: int
    max_new_tokens: int

    def scored(
        self, selector: CheckedSelector, questions: Sequence[Sample], annotated: Sequence[Sample]
    ) -> Iterator[tuple[Pool, FloatArray]]:
        """Yield the parts of a pool with the scores of their questions, (N,).

        Args:
            selector: the selector.
            questions: the pool's questions.
            annotated: the questions that are annotated already.
        """
        from firstcli.stages import pool_view

        reader = self._reader(selector)
        with self.run.console.progress("reading the pool", len(questions), "questions") as advance:
            for pool, scores in pool_view.scored(reader, selector, questions, self.seed, annotated):
                advance(len(pool))
                yield pool, scores

    def said(self, questions: Sequence[Sample]) -> list[Said]:
        """Return what the student says of some questions in words, greedily."""
        pool = self._reader(None).read(questions, {"thoughts"})
        assert pool.thoughts is not None
        found = []
        for question, thought in zip(questions, pool.thoughts, strict=True):
            steps: tuple[str, ...] = ()
            answer = thought.text.strip()
            if self.form is not None:
                read = self.form.read(thought.text)
                steps = split_steps(read.explanation, self.form.step_rule)
                answer = read.answer or ""
            surprises = tuple(
                round(float(-thought.log_probs[first:last].mean()), 6) if last > first else 0.0
                for first, last in thought.steps
            )
            found.append(Said(str(question.id), thought.text, steps, answer, surprises))
        return found

    def _reader(self, selector: CheckedSelector | None) -> PoolReader:
        from firstcli.stages import chat, role_models
        from firstcli.stages.pool_view import PoolReader, ReadingSettings

        run, fitted = self.run, self._fitted()
        temperature = fitted.facts.get("temperature") if fitted else None
        settings = ReadingSettings(
            seed=self.seed,
            max_new_tokens=self.max_new_tokens,
            temperature=float(temperature or 1.0),
        )
        if selector is not None and "samples" in selector.needs:
            settings = replace(settings, sampling=selector.sampling)
        return PoolReader(
            role_models.model(run, Model(self.arm)),
            chat.encoding(run, "student", WHERE),
            self.form,
            settings,
            recalibrate=_recalibration(fitted) if fitted else None,
            notify=run.console.say,
        )

    def _fitted(self) -> CalibrationArtifact | None:
        """Return the arm's post-hoc recalibrator, if probabilities are recalibrated."""
        if not self.recalibrated:
            return None
        from firstcli.stages.posthoc import POSTHOC, artifact_for

        run, model = self.run, Model(self.arm, posthoc=True)
        units = POSTHOC.units(run.recipe, run.folder)
        unit = next(unit for unit in units if unit.model == model)
        stored = run.recipe.validation_answers
        asked = stored and replace(stored, max_new_tokens=self.max_new_tokens)
        return artifact_for(run, unit, asked)


def _recalibration(artifact: CalibrationArtifact) -> Callable[[FloatArray], FloatArray]:
    """Return what corrects distributions over candidates or outcomes, (R, n)."""
    from firstcli.metrics.records import EvalRecords
    from firstcli.recalibration.candidates import recalibrated

    fitted = artifact.restored()

    def corrected(rows: FloatArray) -> FloatArray:
        with np.errstate(divide="ignore"):
            log_probs = np.log(rows)
        records = EvalRecords.from_log_probs(
            ids=[str(number) for number in range(len(rows))],
            answers=[-1] * len(rows),
            log_probs=log_probs.tolist(),
        )
        return recalibrated(records, fitted, WHERE).probabilities

    return corrected


def write_said(path: Path, said: Sequence[Said]) -> None:
    """Write what a student says, one question per line."""
    rows = (
        {
            "id": each.id,
            "text": each.text,
            "steps": each.steps,
            "answer": each.answer,
            "surprises": each.surprises,
        }
        for each in said
    )
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_said(path: Path) -> dict[str, Said]:
    """Return what `write_said` wrote, by question; nothing if there is no such file."""
    if not path.is_file():
        return {}
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return {
        row["id"]: Said(
            *(row["id"], row["text"], tuple(row["steps"]), row["answer"]),
            tuple(row["surprises"]),
        )
        for row in rows
    }
