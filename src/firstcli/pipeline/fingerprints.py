"""What each unit's result depends on: the content of its fingerprint.

Recipe keys that matter, the content of inputs, the seed, and a format number that we raise when a
stage's results change. Versions, paths, process count, micro-batch and device are not in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from firstcli.recipe.schema import Recipe, Training, training_of
from firstcli.workspace.run import Role, Run
from firstcli.workspace.units import STAGES, Stage, Unit

FORMATS: dict[Stage, int] = dict.fromkeys(STAGES, 1) | {
    "finetune": 2,  # batches of like length
    "extract": 3,  # what the teacher says of its first token, and concentration.json
    "calibrate": 2,  # intervals, criteria, ranks
    "distill": 2,
    "eval": 2,  # read off in the output layer's place: other last digits
    "report": 2,  # intervals, differences, figures
}
"""Raise a stage's number when the same inputs give another result than before."""

HARMLESS_TRAINER_FIELDS = frozenset(
    (
        "dataloader_num_workers",
        "dataloader_persistent_workers",
        "dataloader_pin_memory",
        "dataloader_prefetch_factor",
        "ddp_backend",
        "ddp_broadcast_buffers",
        "ddp_bucket_cap_mb",
        "ddp_find_unused_parameters",
        "ddp_timeout",
        "deepspeed",
        "disable_tqdm",
        "fsdp",
        "fsdp_config",
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "log_level",
        "log_level_replica",
        "logging_dir",
        "logging_first_step",
        "logging_steps",
        "logging_strategy",
        "report_to",
        "run_name",
        "save_on_each_node",
        "save_steps",
        "save_strategy",
        "torch_empty_cache_steps",
    )
)
"""Fields of `trainer:` that change no result."""


def reads_of(run: Run, unit: Unit) -> dict[str, str]:
    """Return what a unit reads; every unit that it needs must be up to date."""
    recipe = run.recipe
    reads: dict[str, Any] = {"format": FORMATS[unit.stage]}
    for key in unit.needs:
        reads[f"result of {key}"] = run.manifests[key].content
    match unit.stage:
        case "finetune":
            assert recipe.teacher and recipe.teacher.finetune
            reads |= _model_reads(run, "teacher") | _training_data(run)
            reads["longest sample"] = _longest(run, unit)
            reads |= _training_reads("teacher.finetune", recipe.teacher.finetune)
            reads |= _trainer_reads(recipe)
            reads |= {"fold": f"{unit.fold} of {recipe.knowledge.folds}"} if unit.fold else {}
        case "extract":
            reads |= _teacher_reads(run) | _flat("knowledge", recipe.knowledge.stored())
            reads["longest sample"] = _longest(run, unit)
            samples = run.training.part(unit.part)
            reads[f"{unit.part} samples"] = run.content_of_samples(unit.part, samples)
            reads["shared vocabulary"] = _shared_vocabulary(run)
        case "calibrate":
            reads |= _arm_reads(recipe, unit.arm, ("recalibrator", "mass", "recalibrate", "top_k"))
            # Which positions decide follows from the candidates, of which knowledge knows nothing.
            samples = run.training.validation
            reads["validation samples"] = run.content_of_samples("validation", samples)
        case "distill":
            arm = recipe.arms[unit.arm]
            reads |= _model_reads(run, "student", unit.seed) | _training_data(run)
            reads["longest sample"] = _longest(run, unit)
            reads |= _training_reads("student.training", training_of(recipe.student, arm))
            reads |= _trainer_reads(recipe)
            if arm.learn == "knowledge":
                names = ("recalibrator", "mass", "objective", "recalibrate", "top_k")
                reads |= _arm_reads(recipe, unit.arm, names)
        case "eval" if unit.model and unit.model.posthoc:
            if not unit.evaluation:
                reads |= _posthoc_reads(run, unit)
        case "eval":
            samples = run.evaluation_samples(unit.evaluation)
            reads["evaluation samples"] = run.content_of_samples(f"eval {unit.evaluation}", samples)
            reads["longest sample"] = _longest(run, unit)
            is_teacher = unit.role == "teacher"
            reads |= _teacher_reads(run) if is_teacher else _inference_reads(run, "student")
        case "report":
            reads |= _flat("metrics", recipe.metrics.model_dump()) | {"name": recipe.name}
            reads["arms"] = ", ".join(recipe.arms)  # their order is the table's
            reads |= {"seeds": list(recipe.seeds)} if recipe.seeds else {}
            reads["evaluate"] = ", ".join(one.name for one in recipe.evaluate)
    return {key: str(value) for key, value in reads.items()}


def _model_reads(run: Run, role: Role, seed: int | None = None) -> dict[str, Any]:
    section = run.model_section(role)
    # `dtype` is for inference; a family that is asked to train is told another.
    options = {k: v for k, v in section.given.items() if k not in ("device", "dtype")}
    reads = _flat(f"{role}.model.options", options) | {f"{role}.model.family": section.family}
    if section.checkpoint is not None:
        reads[f"{role}.model.checkpoint"] = run.checkpoint_identity(role)
    reads["seed"] = run.recipe.seed if seed is None else seed
    return reads


def _inference_reads(run: Run, role: Role) -> dict[str, Any]:
    options = {k: v for k, v in run.model_section(role).given.items() if k != "device"}
    return _flat(f"{role}.model.options", options)


def _teacher_reads(run: Run) -> dict[str, Any]:
    assert run.recipe.teacher
    reads = _inference_reads(run, "teacher")
    if run.recipe.teacher.finetune:
        return reads
    if run.recipe.teacher.model.checkpoint is None:  # its tokenizer is made of the training text
        reads |= _training_data(run)
    return reads | _model_reads(run, "teacher")


def _posthoc_reads(run: Run, unit: Unit) -> dict[str, Any]:
    """Return what a temperature behind a model depends on, besides the model."""
    recipe = run.recipe
    assert recipe.teacher or unit.arm
    section = recipe.arms[unit.arm] if unit.arm else recipe.teacher
    assert section and section.posthoc
    reads = _flat("posthoc", section.posthoc.model_dump()) | {"top_k": recipe.knowledge.top_k}
    samples = run.training.validation
    reads["validation samples"] = run.content_of_samples("validation", samples)
    reads["longest sample"] = _longest(run, unit)
    is_teacher = unit.role == "teacher"
    return reads | (_teacher_reads(run) if is_teacher else _inference_reads(run, "student"))


def _training_data(run: Run) -> dict[str, Any]:
    # The validation part belongs in it: the text of `scratch` tokenizers includes it.
    training = run.training
    return {
        "train samples": run.content_of_samples("train", training.train),
        "validation samples": run.content_of_samples("validation", training.validation),
    }


def _training_reads(prefix: str, training: Training) -> dict[str, Any]:
    return _flat(prefix, training.model_dump(exclude={"micro_batch_size"}))


def _trainer_reads(recipe: Recipe) -> dict[str, Any]:
    fields = {k: v for k, v in recipe.trainer.items() if k not in HARMLESS_TRAINER_FIELDS}
    return _flat("trainer", fields)


def _arm_reads(recipe: Recipe, name: str, fields: Iterable[str]) -> dict[str, Any]:
    return _flat(f"arms.{name}", recipe.arms[name].model_dump(include=set(fields)))


def _longest(run: Run, unit: Unit) -> str:
    """Say up to which length samples are used; it matters only if some are left out."""
    if run.recipe.train.too_long == "error":
        return "any"
    from firstcli.stages import inputs

    if unit.evaluation:
        given = len(run.evaluation_samples(unit.evaluation))
        used = len(inputs.questions(run, unit.role, unit.evaluation))
    else:
        part = "validation" if unit.stage == "eval" else unit.part
        given = len(run.training.part(part))
        used = len(inputs.training_rows(run, unit.role, part))
    return "any" if used == given else f"{inputs.context(run, unit.role)} tokens"


def _shared_vocabulary(run: Run) -> int:
    from firstcli.stages import inputs

    return inputs.shared_vocabulary(run)


def _flat(prefix: str, value: object) -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            k: v for key, one in value.items() for k, v in _flat(f"{prefix}.{key}", one).items()
        }
    return {} if value is None else {prefix: value}
