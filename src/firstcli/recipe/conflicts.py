"""Conflicts of a recipe's sections with themselves and with each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from firstcli.errors import UserError, did_you_mean
from firstcli.recipe.active_conflicts import active_conflicts, arm_conflicts
from firstcli.recipe.evaluations import Evaluation
from firstcli.recipe.references import (
    POSTHOC_KEY,
    AugmenterRef,
    RecalibratorRef,
)
from firstcli.recipe.sections import (
    PRESETS,
    RENORMALIZED,
    SAVE_WITHOUT_LORA,
    VALIDATION,
    Arm,
    KnowledgeSection,
    MetricsSettings,
    PublishedValues,
    Student,
    Train,
    training_of,
)
from firstcli.recipe.shift import misfits
from firstcli.recipe.teacher import Teacher
from firstcli.runtime.redaction import redacted

_NO_CREDENTIALS = (
    "firstcli takes no credentials and no settings of the hub from a recipe, because a recipe is "
    "copied into reports; set an environment variable such as HF_TOKEN or WANDB_API_KEY"
)
Conflicts = Iterator[tuple[tuple[int | str, ...], str]]
"""Key path and message of each conflict."""


def conflicts_elsewhere(name: str, section: Any, valid: Mapping[str, Any]) -> Conflicts:
    """Yield the conflicts of a section that other sections cause, with paths in the recipe."""
    if name == "active":
        yield from arm_conflicts(section, valid)


def conflicts(name: str, section: Any, valid: Mapping[str, Any]) -> Conflicts:
    """Yield the conflicts of a section with itself and with the valid sections before it."""
    if name == "evaluate":
        names = [evaluation.name.casefold() for evaluation in section]
        for i, evaluation in enumerate(section):
            if names[i] in names[:i]:
                yield (i, "name"), f"two evaluations are named '{evaluation.name}'; rename one"
            yield from _wording_conflicts(i, evaluation)
    if name == "train" and section.augment:
        yield from _template_conflicts(section)
    if name == "metrics" and section.candidates == "whole":
        for evaluation in valid.get("evaluate", ()):
            if evaluation.generation is not None:
                text = f"the answers to '{evaluation.name}' are generated, so whole candidates are"
                yield ("candidates",), f"{text} not scored; leave it out"
    if name == "metrics" and section.use_validation:
        yield from _validation_conflicts(section, valid)
    if name == "trainer":
        for key, value in section.items():
            if key.startswith("hub_") or redacted({key: value}) != {key: value}:
                yield (key,), _NO_CREDENTIALS
    if name == "active":
        yield from active_conflicts(section, valid)
    if name == "paper":
        yield from _unknown_rows(section, valid)
    if name == "seeds" and len(set(section)) < len(section):
        yield (), f"found {list(section)}, expected seeds without repetition"
    if name == "teacher" and section and section.seeds:
        if section.finetune is None:
            text = "the teachers differ in their fine-tuning, but there is no teacher.finetune"
            yield ("seeds",), f"{text}; add it"
        if len(set(section.seeds)) < len(section.seeds):
            text = f"found {list(section.seeds)}, expected seeds without repetition"
            yield ("seeds",), text
    if name == "teacher" and section and section.model.plugin.is_remote:
        yield from _remote_conflicts(section, valid.get("train"))
    if name == "student" and section.model.plugin.is_remote:
        text = f"the model of family '{section.model.family}' runs elsewhere and cannot be trained"
        yield ("model", "family"), f"{text}; choose a different family"
    if name == "teacher" and section and section.posthoc:
        yield from _posthoc_conflicts(valid.get("train"))
        if section.posthoc.fit == "agreement":
            text = "the teacher is the reference that students agree with; leave it out here"
            yield (POSTHOC_KEY, "fit"), text
    teacher: Teacher | None = valid.get("teacher")
    if name == "student" and section.eos == "teacher" and valid.get("teacher", "invalid") is None:
        yield ("eos",), "the recipe has no teacher; add one, or leave this out"
    if name == "knowledge":
        yield from _knowledge_conflicts(section, teacher, valid)
    if name == "arms":
        names = [arm.casefold() for arm in section]
        for i, (arm_name, arm) in enumerate(section.items()):
            if names[i] in names[:i]:
                yield (arm_name,), "differs from another arm's name only in case; rename one"
            for keys, text in _arm_conflicts(arm, valid):
                yield _as_written(arm_name, arm, keys, text)
        yield from _augment_conflicts(section, valid)


def _knowledge_conflicts(
    section: KnowledgeSection, teacher: Teacher | None, valid: Mapping[str, Any]
) -> Conflicts:
    if section.folds and teacher and teacher.finetune and teacher.finetune.augment:
        text = "the teachers of folds are not fine-tuned on copies; leave it out, or"
        yield ("folds",), f"{text} teacher.finetune.augment"
    if section.folds and teacher and teacher.finetune is None:
        text = "each fold's teacher is fine-tuned, but there is no teacher.finetune; add it"
        yield ("folds",), text
    train: Train | None = valid.get("train")
    if section.over_candidates and train and not train.task.plugin.has_candidates:
        text = f"task '{train.task.name}' has no candidates; leave it out"
        yield ("over",), f"{text}, and choose models with the same tokenizer"
    is_remote = teacher is not None and teacher.model.plugin.is_remote
    if section.draws is not None and section.precision == "compact":
        text = "has no effect with knowledge.draws, which are stored exactly; leave it out"
        yield ("precision",), text
    if section.draws is not None and section.over_candidates:
        text = "draws are of tokens, but knowledge.over is 'candidates'; leave one of them out"
        yield ("draws",), text
    if section.draws is not None and is_remote and teacher:
        text = f"teacher.model.family '{teacher.model.family}' runs elsewhere and returns only its"
        yield ("draws",), f"{text} most likely tokens; leave it out, and set knowledge.top_k"
    if section.batching == "packed" and (section.over_candidates or is_remote):
        yield ("batching",), "has no effect over candidates or with a remote teacher; leave it out"
    if section.responses == "data":
        if section.sampling is not None:
            yield ("sampling",), "has no effect without 'responses: teacher'; add it"
    elif is_remote:
        yield ("responses",), "a teacher that runs elsewhere writes no responses; leave it out"
    elif train and train.task.plugin.has_candidates:
        text = (
            f"task '{train.task.name}' has candidates, so there is no response to write; leave it "
            "out: students learn the teacher's probabilities of questions without a label as well"
        )
        yield ("responses",), text
    elif section.responses == "teacher-always" and section.folds:
        yield ("folds",), "has no effect with 'responses: teacher-always'; leave it out"


def _remote_conflicts(teacher: Teacher, train: Train | None) -> Conflicts:
    """Yield what a teacher whose model runs elsewhere cannot do."""
    if teacher.finetune:
        text = f"the model of family '{teacher.model.family}' runs elsewhere; leave this out"
        yield ("finetune",), text
    if train is None or not teacher.model.build().answers_only:  # type: ignore[attr-defined]
        return
    if train.task.explanations is not None:
        yield (
            ("model", "options"),
            "with these options, only the first generated token has probabilities, but the "
            f"responses of '{train.task.name}' are explanations; use a server that also returns "
            "the probabilities of the prompt's tokens",
        )
    elif not train.task.plugin.has_candidates:
        yield (
            ("model", "options"),
            "with these options, only the first generated token has probabilities, which suits "
            f"tasks with candidates, and '{train.task.name}' has none; use a server that also "
            "returns the probabilities of the prompt's tokens",
        )


def _as_written(
    name: str, arm: Arm, keys: tuple[int | str, ...], text: str
) -> tuple[tuple[int | str, ...], str]:
    """Return a conflict of an arm under the key that its writer knows: `preset` if that set it.

    Args:
        name: the arm's name.
        arm: the arm.
        keys: the path of the key within the arm.
        text: the message.
    """
    key = str(keys[0]) if keys else ""
    if arm.preset is None or key not in PRESETS[arm.preset]:
        return (name, *keys), text
    if getattr(arm, key) != getattr(Arm(preset=arm.preset), key):
        return (name, *keys), text
    return (name, "preset"), f"'{arm.preset}' sets `{key}`, which the arm may override: {text}"


def _arm_conflicts(arm: Arm, valid: Mapping[str, Any]) -> Conflicts:
    train: Train | None = valid.get("train")
    student: Student | None = valid.get("student")
    knowledge: KnowledgeSection | None = valid.get("knowledge")
    if arm.learn == "knowledge" and valid.get("teacher", "invalid") is None:
        yield (), "learns from a teacher, but the recipe has none; add 'teacher' or 'learn: labels'"
    if arm.recalibrator:
        top_k = (arm.top_k or knowledge.width) if knowledge else None
        yield from _recalibrator_conflicts(arm.recalibrator, train, top_k)
    if knowledge and knowledge.draws is not None and arm.learn == "knowledge":
        yield from _conflicts_with_draws(arm)
    elif knowledge and arm.top_k and arm.top_k > knowledge.top_k:
        text = f"{arm.top_k} exceeds knowledge.top_k ({knowledge.top_k}); raise knowledge.top_k"
        yield ("top_k",), text
    if knowledge and arm.out_of_fold and not knowledge.folds:
        yield ("out_of_fold",), "there are no folds; set knowledge.folds, for example to 5"
    if knowledge and arm.augment and arm.learn == "knowledge":
        yield from _conflicts_with_copies(arm, knowledge)
    if train and knowledge:
        yield from _conflicts_with_mixture(arm, train, knowledge)
    if arm.averages:
        yield from _conflicts_of_mean(arm, valid)
    if knowledge and knowledge.over_candidates:
        yield from _conflicts_over_candidates(arm)
    if arm.posthoc:
        yield from _posthoc_conflicts(train)
        if arm.posthoc.fit == "agreement" and valid.get("teacher", "invalid") is None:
            text = "found 'agreement', but the recipe has no teacher to agree with; leave it out"
            yield (POSTHOC_KEY, "fit"), text
        elif arm.posthoc.fit == "agreement" and train and train.task.explanations is not None:
            text = "found 'agreement', but the models explain their answers differently, so their "
            text += "probabilities of answers cannot be compared; leave it out"
            yield (POSTHOC_KEY, "fit"), text
    if train and arm.span_weights and not train.task.build().has_candidates:
        text = f"task '{train.task.name}' has no candidates, so nothing says where answers begin"
        yield ("span_weights",), f"{text}; leave it out"
    if train and arm.recalibrate == "decisive" and not train.task.build().has_candidates:
        yield ("recalibrate",), f"task '{train.task.name}' has no candidates; expected 'all'"
    if student:
        training = training_of(student, arm)
        micro, batch = training.micro_batch_size, training.batch_size
        if micro and batch % micro:
            yield ("training",), f"micro_batch_size {micro} does not divide batch_size {batch}"
        if training.save and not training.lora:
            yield ("training", "save"), SAVE_WITHOUT_LORA


def _augment_conflicts(arms: Mapping[str, Arm], valid: Mapping[str, Any]) -> Conflicts:
    """Yield that nothing learns the copies that the recipe describes."""
    train: Train | None = valid.get("train")
    teacher: Teacher | None = valid.get("teacher")
    tuned = teacher and teacher.finetune and teacher.finetune.augment
    if train and train.augment and not tuned and not any(arm.augment for arm in arms.values()):
        text = "no arm learns the copies of train.augment; give one `augment: true`, or"
        yield (), f"{text} leave train.augment out"
    writing = [ref.name for ref in _augmenters(train) if ref.build().writing is not None]
    if not writing:
        return
    if len(writing) > 1:
        text = f"the teacher writes for {' and '.join(writing)} of train.augment; keep one of them"
        yield (), text
    if tuned:
        text = f"the teacher writes the copies of {writing[0]}, so it cannot be fine-tuned on them;"
        yield (), f"{text} leave out teacher.finetune.augment"
    if not teacher or teacher.model.plugin.is_remote:
        text = f"the copies of {writing[0]} are written by the teacher, so it must be a model"
        yield (), f"{text} that runs here"


def _augmenters(train: Train | None) -> Sequence[AugmenterRef]:
    return train.augment.augmenters if train and train.augment else ()


def _conflicts_with_copies(arm: Arm, knowledge: KnowledgeSection) -> Conflicts:
    """Yield what an arm cannot learn together with copies of its samples."""
    if knowledge.folds and arm.out_of_fold is not False:
        text = "the teachers of folds are not asked about copies; set this arm's out_of_fold: false"
        yield ("augment",), text
    if knowledge.responses == "teacher-always":
        text = (
            "copies have the responses of the data, which are not learned with "
            "'responses: teacher-always'; leave it out"
        )
        yield ("augment",), text


def _conflicts_with_mixture(arm: Arm, train: Train, knowledge: KnowledgeSection) -> Conflicts:
    """Yield what an arm cannot do while the gap to the teacher decides what it learns."""
    if arm.mixture and train.mixture is None:
        yield ("mixture",), "there is no train.mixture; add it, or leave this out"
    if arm.mixture and arm.learn == "labels":
        text = "found true, but with 'learn: labels' there is no gap to a teacher; leave it out"
        yield ("mixture",), text
    if train.mixture is None or arm.mixture is False or arm.learn == "labels":
        return
    instead = "set this arm's mixture: false"
    if arm.augment:
        text = "copies stand for samples once in an epoch, but samples of a mixture are drawn"
        yield ("augment",), f"{text} at random; leave it out, or {instead}"
    if train.validation == 0:
        text = "the gap to the teacher is measured on held-out samples of train.mixture, but"
        yield (), f"{text} train.validation is 0; raise it, or {instead}"
    if knowledge.over_candidates or knowledge.draws is not None:
        key = "over: candidates" if knowledge.over_candidates else "draws"
        text = (
            f"for train.mixture, the teacher's most likely tokens are needed, but knowledge.{key}"
        )
        yield (), f"{text} does not store them; leave that out, or {instead}"


def _conflicts_of_mean(arm: Arm, valid: Mapping[str, Any]) -> Conflicts:
    teacher: Teacher | None = valid.get("teacher")
    knowledge: KnowledgeSection | None = valid.get("knowledge")
    if teacher and len(teacher.seeds) < 2:
        text = "there is only one teacher; give several in teacher.seeds, for example [1, 2, 3]"
        yield ("teachers",), text
    if arm.teachers == "recalibrated-mean" and arm.recalibrator and arm.recalibrator.name == "none":
        text = "found 'recalibrated-mean', but this arm's recalibrator is 'none'"
        yield ("teachers",), f"{text}; use 'mean', or choose a recalibrator"
    if knowledge and knowledge.folds and arm.out_of_fold is not False:
        text = "the teachers of folds have no further seeds; set this arm's out_of_fold: false"
        yield ("teachers",), text


def _conflicts_with_draws(arm: Arm) -> Conflicts:
    """Yield what an arm cannot do with the tokens of `knowledge.draws`."""
    drawn = "knowledge.draws stores random tokens of the teacher's whole distribution"
    if arm.recalibrator and arm.recalibrator.name != "none":
        text = f"'{arm.recalibrator.name}' changes the probabilities of the most likely tokens, but"
        yield ("recalibrator",), f"{text} {drawn}; use 'none'"
    if arm.objective and arm.objective.name != "topk-tail":
        text = f"'{arm.objective.name}' compares the most likely tokens, but {drawn}"
        yield ("objective",), f"{text}; use 'topk-tail'"
    if arm.top_k is not None:
        yield ("top_k",), f"{drawn}, all of which are learned; leave it out"
    if arm.recalibrate is not None:
        yield ("recalibrate",), f"{drawn}, which are not recalibrated; leave it out"
    if arm.averages:
        text = f"'{arm.teachers}' averages the most likely tokens of several teachers, but {drawn}"
        yield ("teachers",), f"{text}; leave it out"


def _conflicts_over_candidates(arm: Arm) -> Conflicts:
    """Yield what an arm needs at positions of which `knowledge.over: candidates` knows nothing."""
    only = "knowledge.over: candidates has probabilities of the answer position alone"
    if arm.recalibrate == "all":
        yield ("recalibrate",), f"{only}; leave it out"
    if arm.objective and arm.objective.name == RENORMALIZED:
        text = f"{only}, but this objective compares several tokens at every position"
        yield ("objective",), f"{text}; leave it out"


def _template_conflicts(train: Train) -> Conflicts:
    """Yield the templates of copies that the training task cannot fill in."""
    try:
        usage = train.task.build().usage()
    except UserError:
        return  # the data cannot be read, which other checks report
    for place, ref in enumerate(_augmenters(train)):
        if ref.name == "template":
            templates: list[str] = ref.options.templates  # type: ignore[attr-defined]
            for number, text in misfits(templates, usage):
                yield ("augment", "augmenters", place, "options", "templates", number), text


def _wording_conflicts(place: int, evaluation: Evaluation) -> Conflicts:
    """Yield the other wordings of an evaluation that its task cannot fill in."""
    if evaluation.shift is None or not evaluation.shift.wording:
        return
    try:
        usage = evaluation.task.build().usage()
    except UserError:
        return  # the data cannot be read, which other checks report
    for number, text in evaluation.shift.misfits(usage):
        yield (place, "shift", "wording", number), text


def _unknown_rows(
    paper: Mapping[str, Mapping[str, PublishedValues]], valid: Mapping[str, Any]
) -> Conflicts:
    evaluations = [section.name for section in valid.get("evaluate", ())]
    models = ["teacher", *valid.get("arms", {})]
    rows = [*models, *(f"{model} + T" for model in models)]
    for evaluation, values in paper.items():
        if "evaluate" in valid and evaluation not in evaluations:
            hint = did_you_mean(evaluation, evaluations)
            yield (evaluation,), f"the recipe has no such evaluation{hint}"
        for row in values:
            if "arms" in valid and row not in rows:
                yield (evaluation, row), f"the recipe has no such model{did_you_mean(row, rows)}"


def _posthoc_conflicts(train: Train | None) -> Conflicts:
    if train and train.validation == 0:
        text = "it is fitted on held-out samples, but train.validation is 0; raise it"
        yield (POSTHOC_KEY,), text
    elif train and not train.task.can_be_evaluated:
        text = f"task '{train.task.name}' has no candidates to choose from; leave it out"
        yield (POSTHOC_KEY,), text


def _validation_conflicts(metrics: MetricsSettings, valid: Mapping[str, Any]) -> Conflicts:
    """Yield what prevents the models from answering the validation questions."""
    train: Train | None = valid.get("train")
    given = (key for key in ("target_accuracy", "coverage") if getattr(metrics, key) is not None)
    key = next(given)
    if train and train.validation == 0:
        yield (key,), "it needs held-out questions, but train.validation is 0; raise it"
    elif train and not (train.task.plugin.has_candidates or _only_target(metrics, train)):
        yield (key,), f"task '{train.task.name}' has no candidates to choose from; leave it out"
    for evaluation in valid.get("evaluate", ()):
        if evaluation.name.casefold() == VALIDATION:
            text = f"it makes records named '{VALIDATION}', as an evaluation is; rename that one"
            yield (key,), text


def _only_target(metrics: MetricsSettings, train: Train) -> bool:
    """Whether free answers suffice: sets of candidates need candidates, a threshold does not."""
    return metrics.coverage is None and train.task.can_be_evaluated


def _recalibrator_conflicts(
    ref: RecalibratorRef, train: Train | None, top_k: int | None
) -> Conflicts:
    try:
        recalibrator = ref.build()
        if recalibrator.needs_fit and train and train.validation == 0:
            raise UserError(
                f"'{ref.name}' is fitted on held-out samples, but train.validation is 0"
            )
        if top_k and not recalibrator.needs_fit:
            recalibrator.try_out(top_k)  # some need more than one token
    except UserError as error:
        yield ("recalibrator",), str(error)
