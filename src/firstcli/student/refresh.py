"""Write the sidecars of the models that a run has trained: `firstcli.json` in their folders.

They depend on more than the training: on the post-hoc recalibrator, the evaluations and the report.
A sidecar is therefore written again after these, and is no part of the model's artifact. An
up-to-date file is recognised by the digest of its sources, so that nothing is loaded for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from firstcli import __version__
from firstcli.api import Sample, TaskUsage
from firstcli.api.usage import prompt_usage
from firstcli.checkpoints.adapters import is_adapter
from firstcli.errors import UserError
from firstcli.recipe.sections import VALIDATION
from firstcli.runtime.files import atomic_write, suppress_read_only, write_text
from firstcli.runtime.redaction import without_secrets
from firstcli.stages.base import TrainingFacts
from firstcli.stages.distill import DISTILL
from firstcli.stages.evaluate import EVALUATE
from firstcli.stages.finetune import FINETUNE
from firstcli.stages.posthoc import POSTHOC
from firstcli.student.card import CARD, FIGURE, card, run_parts
from firstcli.student.usage import (
    FILE,
    FORMAT,
    WITHOUT_CHAT,
    AnswerThreshold,
    EvaluationNumbers,
    StoredEstimate,
    StoredRecalibrator,
    Usage,
    ValidationAnswers,
    read_usage,
    write_usage,
)
from firstcli.workspace.artifacts import fingerprint
from firstcli.workspace.run import Run
from firstcli.workspace.units import (
    Model,
    calibration_path,
    evaluations_of,
    model_path,
    models_of,
    records_path,
)

if TYPE_CHECKING:
    from firstcli.data.encoding import Encoding


Results = Mapping[str, str]
"""Digests of the results of finished units, by key."""


def refresh(run: Run) -> None:
    """Write the sidecars of every trained model that is up to date, where they are not.

    An unwritable folder is left as it is.
    """
    for model in trained_models(run):
        results = finished_results(run, model)
        folder, source = model_path(run.folder, model), _source(run, results)
        if _known_source(folder) != source:
            run.announce_libraries()
            usage = usage_of(run, model, results).model_copy(update={"source": source})
            with suppress_read_only():
                _write_card(run, model, folder, usage)
                text = write_usage(usage)
                if without_secrets(text) == text:
                    write_text(folder / FILE, text)
                else:  # a redacted prompt would give wrong answers
                    (folder / FILE).unlink(missing_ok=True)
                    run.console.warn(
                        f"{folder / FILE} is not written, and `first predict` needs it: the prompt "
                        "or a label contains what looks like a secret; take it out of the data"
                    )


def _write_card(run: Run, model: Model, folder: Path, usage: Usage) -> None:
    """Write the model card and its figure."""
    facts = TrainingFacts.of(run.manifests[_trained_key(run, model)].facts)
    measured = [name for name, numbers in usage.numbers.items() if numbers.ece]
    if measured:
        from firstcli.metrics.records import EvalRecords
        from firstcli.student.diagram import reliability_diagram

        shown = replace(model, posthoc=usage.posthoc is not None)
        records = EvalRecords.load(records_path(run.folder, measured[0], shown))
        title = f"{usage.title}, {measured[0]}"
        image = reliability_diagram(title, records, usage.confidence, run.recipe.metrics.bins)
        atomic_write(folder / FIGURE, image)
    else:
        (folder / FIGURE).unlink(missing_ok=True)
    parts, adapter = run_parts(run, model, facts), is_adapter(folder)
    text = card(usage, parts, figure=bool(measured), adapter=adapter)
    write_text(folder / CARD, text)


def trained_models(run: Run) -> Iterator[Model]:
    """Yield the teacher and the students that the run has trained and that are up to date."""
    for model in models_of(run.recipe):
        if not model.posthoc and _trained_key(run, model) in run.manifests:
            yield model


def finished_results(run: Run, model: Model) -> Results:
    """Return the results that belong to a trained model: training, `posthoc` and evaluations.

    Units that the current command does not bring up to date count, too, if they were made from this
    very model: `first distill` forgets no evaluation.
    """
    trained = _trained_key(run, model)
    results = {trained: run.manifests[trained].content}
    recipe, folder = run.recipe, run.folder
    models = [each for each in models_of(recipe) if each.trained == model.trained]
    units = [unit for unit in POSTHOC.units(recipe, folder) if unit.model in models]
    # Another command may have asked for the answers to the validation questions.
    names = dict.fromkeys([*evaluations_of(recipe), VALIDATION])
    units += [EVALUATE.unit(recipe, folder, name, each) for name in names for each in models]
    own = {trained, *(unit.key for unit in units)}
    for unit in units:
        manifest = run.manifests.get(unit.key) or unit.artifact.manifest(run.digests)
        # A reference, such as the teacher, counts as unchanged unless the command knows better.
        others = {key: m.content for key, m in run.manifests.items() if key not in own}
        known = others | results
        needed = [key for key in unit.needs if key in own or key in known]
        if manifest and all(
            manifest.inputs.get(f"result of {key}") == known.get(key, "") for key in needed
        ):
            results[unit.key] = manifest.content
    return results


def usage_of(run: Run, model: Model, results: Results) -> Usage:
    """Return what the sidecar of a trained model says.

    Args:
        run: the run.
        model: the teacher or a student, without a post-hoc recalibrator.
        results: what belongs to the model.
    """
    from transformers import AutoTokenizer

    from firstcli.stages import chat

    recipe, section = run.recipe, run.model_section("student" if model.arm else "teacher")
    folder, with_posthoc = model_path(run.folder, model), replace(model, posthoc=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    encoding = chat.encoding_with(run, tokenizer, "train.task")
    form = _with_tokens(run, task_usage(run), encoding)
    posthoc = _posthoc(run, with_posthoc, results)
    plain = dict(_numbers(run, model, results))
    validation = _validation(run, with_posthoc if posthoc else model, results)
    return Usage(
        **form.model_dump(),
        firstcli=__version__,
        run=recipe.name,
        arm=model.arm or "teacher",
        seed=model.seed,
        task=recipe.train.task.name,
        chat=encoding.chat is not None,
        system=None if encoding.chat is None else recipe.train.task.system,
        end=tokenizer.eos_token if encoding.chat is None else encoding.chat.end,
        drop_doubled_bos=encoding.drop_doubled_bos,
        dtype=section.build().inference_dtype,
        confidence=recipe.metrics.confidence,
        posthoc=posthoc,
        validation=validation,
        raw_validation=_validation(run, model, results) if posthoc else None,
        thresholds=tuple(_thresholds(recipe.metrics.target_accuracy, validation)),
        numbers=dict(_numbers(run, with_posthoc, results)) if posthoc else plain,
        raw_numbers=plain if posthoc else {},
    )


def task_usage(run: Run) -> TaskUsage:
    """Return how the training task is used: as it says, or by complete prompts."""
    task = run.training_task.build()
    if (usage := task.usage()) is not None:
        return usage
    if not task.has_candidates or task.explanations() is not None:
        whole = prompt_usage(None)
        return TaskUsage(kind="instruction", prompt=whole.prompt, inputs=whole.inputs)
    samples = iter(run.training.train)
    shared = next(samples).candidates
    return prompt_usage(shared if all(each.candidates == shared for each in samples) else None)


def _with_tokens(run: Run, form: TaskUsage, encoding: Encoding) -> TaskUsage:
    """Add to each label its token at the answer position of the first training question."""
    from firstcli.data.encoding import encode_questions

    if not form.labels:
        return form
    responses = tuple(label.response for label in form.labels)
    first = run.training.train[0]
    sample = Sample.question(first.prompt, responses, None, id=first.id)
    (question,) = encode_questions([sample], encoding)
    pairs = zip(form.labels, question.candidate_ids, strict=True)
    labels = tuple(label.model_copy(update={"token": token}) for label, token in pairs)
    return form.model_copy(update={"labels": labels})


def _posthoc(run: Run, model: Model, results: Results) -> StoredRecalibrator | None:
    from firstcli.recalibration.diagnostics import CalibrationArtifact

    if POSTHOC.key(model) not in results:
        return None
    fitted = CalibrationArtifact.load(calibration_path(run.folder, model.name))
    is_temperature = fitted.recalibrator == "logit-temperature"
    return StoredRecalibrator(
        name=fitted.recalibrator,
        options=dict(fitted.options),
        state=dict(fitted.state),
        temperature=fitted.facts.get("temperature") if is_temperature else None,
    )


def _validation(run: Run, model: Model, results: Results) -> ValidationAnswers | None:
    """Return a model's answers to the validation questions, if it has answered them."""
    from firstcli.metrics.records import EvalRecords

    if not run.recipe.is_validation(VALIDATION) or EVALUATE.key(VALIDATION, model) not in results:
        return None
    records = EvalRecords.load(records_path(run.folder, VALIDATION, model))
    return ValidationAnswers(
        confidence=tuple(records.confidence.tolist()), correct=tuple(records.correct.tolist())
    )


def _thresholds(
    target: float | None, validation: ValidationAnswers | None
) -> Iterator[AnswerThreshold]:
    """Yield the threshold of the recipe's target accuracy, for programs that only read the file."""
    if target is None or validation is None:
        return
    import numpy as np

    from firstcli.metrics.thresholds import threshold_for

    promised = threshold_for(np.array(validation.confidence), np.array(validation.correct), target)
    yield AnswerThreshold(
        target_accuracy=target, threshold=None if promised is None else promised.threshold
    )


def _numbers(run: Run, model: Model, results: Results) -> Iterator[tuple[str, EvaluationNumbers]]:
    """Yield what the finished evaluations measured of a model, by first differing tokens."""
    from firstcli.metrics.records import EvalRecords
    from firstcli.metrics.uncertainty import intervals

    settings = run.recipe.metrics
    for section in run.recipe.evaluate:
        if EVALUATE.key(section.name, model) not in results:
            continue
        records = EvalRecords.load(records_path(run.folder, section.name, model))
        estimates = {}
        if records.answerable and (settings.confidence == "candidates" or not model.posthoc):
            estimates = {
                name: StoredEstimate(value=each.value, low=each.interval[0], high=each.interval[1])
                for name, each in intervals([records], settings.confidence, settings.bins).items()
                if name in EvaluationNumbers.model_fields
            }
        yield section.name, EvaluationNumbers(questions=len(records), **estimates)


def _trained_key(run: Run, model: Model) -> str:
    if model.arm:
        return DISTILL.key(model)
    return next(iter(FINETUNE.teacher_keys(run.recipe)), "")


def _source(run: Run, results: Results) -> str:
    """Return a digest of everything that a model's sidecars are made from."""
    recipe, task = run.recipe, run.training_task
    options = json.dumps(task.effective, sort_keys=True)
    inputs = {f"result of {key}": content for key, content in results.items()} | {
        "format": str(FORMAT if task.chat else WITHOUT_CHAT),
        "run": recipe.name,
        "recipe": run.publishable_text,
        "task": " ".join((task.identity, task.source, options)),
        "metrics": recipe.metrics.model_dump_json(include={"bins", "confidence"}),
        "doubled BOS": recipe.train.doubled_bos,
        "firstcli": __version__,
    }
    return fingerprint(inputs)


def _known_source(folder: Path) -> str | None:
    try:
        return read_usage(folder).source
    except UserError:
        return None
