"""Conflicts of the section `active` with itself and with the rest of the recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from firstcli.recipe.active import STOP_EVALUATION, Active
from firstcli.recipe.sections import Arm, KnowledgeSection, Student, Train
from firstcli.recipe.teacher import Teacher

Conflicts = Iterator[tuple[tuple[int | str, ...], str]]


def active_conflicts(active: Active | None, valid: Mapping[str, Any]) -> Conflicts:
    """Yield the key path in the section and the message of each conflict with other sections.

    Args:
        active: the section; None if the recipe has none.
        valid: the valid sections before it.
    """
    if active is not None:
        yield from _of_data(active, valid)
        yield from _of_training(active, valid)


def arm_conflicts(active: Active | None, valid: Mapping[str, Any]) -> Conflicts:
    """Yield the conflicts that an arm may cause, each with its key path in the whole recipe.

    That is a key of the arm if the arm states it, and otherwise a key of the section.

    Args:
        active: the section; None if the recipe has none.
        valid: the valid sections before it.
    """
    arms: Mapping[str, Arm] = valid.get("arms", {})
    if active is None:
        for name, arm in arms.items():
            for key in ("selector", "annotator", "confidence", "budget"):
                if getattr(arm, key) is not None:
                    text = "is for the section `active`, which is missing; add it, or remove this"
                    yield ("arms", name, key), text
        return
    yield from _of_budget(active, ("active",))
    for name, arm in arms.items():
        if arm.budget:
            yield from _of_budget(active.of_arm(arm), ("arms", name))
        yield from _of_arm(active, name, arm, valid)


def _of_budget(active: Active, owner: tuple[str, ...]) -> Conflicts:
    """Yield the conflicts of a budget, whose owner is the section or an arm."""
    budget, prices = active.budget, active.prices
    only_cost = budget.samples is None and budget.tokens is None
    if budget.cost is not None and prices is None:
        yield (*owner, "budget", "cost"), "needs the prices of tokens; add active.prices"
    elif only_cost and prices is not None and prices.read == prices.written == 0:
        text = "limits nothing, because both active.prices are 0; correct them, or limit samples"
        yield (*owner, "budget", "cost"), f"{text} or tokens"
    if budget.samples is not None and active.rounds > budget.samples:
        yield (
            ("active", "rounds") if owner == ("active",) else (*owner, "budget", "samples"),
            f"{active.rounds} rounds are more than the {budget.samples} annotations of the budget; "
            "lower active.rounds",
        )


def uses_training_split(active: Active, train: Train) -> bool:
    """Return whether the pool is the training split itself."""
    pool = active.pool
    return pool.split == "train" and (pool.task is None or pool.task == train.task)


def _of_data(active: Active, valid: Mapping[str, Any]) -> Conflicts:
    train: Train | None = valid.get("train")
    teacher: Teacher | None = valid.get("teacher")
    if train is None:
        return
    is_own = uses_training_split(active, train)
    if is_own and teacher and teacher.finetune:
        yield (
            ("pool",),
            "the pool is the training split, whose labels teacher.finetune would read before they "
            "are bought; name another split or task, or give a fine-tuned teacher",
        )
    task = train.task
    if is_own and (not task.plugin.has_candidates or task.explanations is not None):
        for role in ("teacher", "student"):
            section: Teacher | Student | None = valid.get(role)
            if section and section.model.plugin.needs_text:
                yield (
                    ("pool",),
                    f"the tokenizer of {role}.model (family '{section.model.family}') is trained "
                    "on the responses of the training split before they are bought; name another "
                    "split or task",
                )
    if train.mixture is not None:
        yield (), "its rounds have one training task; leave train.mixture out"
    if train.task.build().has_teacher_prompts:
        text = f"annotators show the student's prompts, but task '{train.task.name}' has others for"
        yield (), f"{text} the teacher; let both read the same"
    if train.unlabelled is not None:
        yield (), "train.unlabelled has no effect with it; give these questions as active.pool"
    if active.stop and train.validation == 0:
        yield ("stop",), "it is measured on held-out samples, but train.validation is 0; raise it"
    names = [each.name for each in valid.get("evaluate", ())]
    if active.stop and STOP_EVALUATION in names:
        text = f"it evaluates on '{STOP_EVALUATION}', but so is evaluate[{{}}] called; rename that"
        yield ("stop",), text.format(names.index(STOP_EVALUATION))
    pool = active.pool.task
    if pool is not None and pool.plugin.has_candidates != task.plugin.has_candidates:
        has = "has" if pool.plugin.has_candidates else "has no"
        yield ("pool", "task"), f"task '{pool.name}' {has} candidates, unlike '{task.name}'"


def _of_training(active: Active, valid: Mapping[str, Any]) -> Conflicts:
    knowledge: KnowledgeSection | None = valid.get("knowledge")
    teacher: Teacher | None = valid.get("teacher")
    if knowledge and knowledge.folds:
        yield (), "knowledge.folds has no effect with it, as no round trains a teacher; remove that"
    if knowledge and knowledge.responses != "data":
        yield (), "knowledge.responses has no effect with it; an annotator writes the responses"
    if teacher and len(teacher.seeds) > 1:
        yield (), "its rounds have one teacher; leave teacher.seeds out"


def _of_arm(active: Active, name: str, arm: Arm, valid: Mapping[str, Any]) -> Conflicts:
    def path(key: str) -> tuple[str, ...]:
        return ("active", key) if getattr(arm, key) is None else ("arms", name, key)

    train: Train | None = valid.get("train")
    selector, annotator = active.selector_of(arm), active.annotator_of(arm)
    if "losses" in selector.plugin.needs:
        text = f"'{selector.name}' reads responses, which a pool does not have before they are"
        yield path("selector"), f"{text} bought; choose another"
    asks = annotator.plugin.generates or annotator.plugin.scores_candidates
    if asks and valid.get("teacher", "invalid") is None:
        text = f"'{annotator.name}' asks a teacher, but the recipe has none; add one"
        yield path("annotator"), text
    if not asks and active.of_arm(arm).budget.samples is None:
        text = f"'{annotator.name}' asks no teacher, so tokens and cost limit nothing; add samples"
        whose = "" if arm.budget else f"arms.{name}: "
        yield path("budget"), f"{whose}{text}"
    if train is None:
        return
    if train.task.plugin.has_candidates and train.task.explanations is None:
        without = f"explanations, but task '{train.task.name}' has none; choose another"
        if "thoughts" in selector.plugin.needs:
            yield path("selector"), f"'{selector.name}' reads {without} selector"
        if annotator.plugin.reads_explanation:
            yield path("annotator"), f"'{annotator.name}' reads {without} annotator"
    if not active.recalibrates(arm):
        return
    if not train.task.can_be_evaluated:
        text = f"task '{train.task.name}' has no candidates to fit a recalibrator on; choose raw"
        yield path("confidence"), text
    elif train.validation == 0:
        text = "recalibrated probabilities need held-out samples, but train.validation is 0; raise"
        yield path("confidence"), f"{text} it, or choose raw"
