"""The fingerprint inputs that several stages share: models, data, training settings, plugins.

A plugin counts with its effective options, defaults included, and with its identity: distribution
and version, or a format number for built-in plugins. So an upgraded plugin or a changed default
makes exactly those units stale that depend on it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from firstcli import __version__
from firstcli.runtime.redaction import redacted
from firstcli.training.trainer_fields import HARMLESS
from firstcli.workspace.units import Part, Role, Unit, learns_copies

if TYPE_CHECKING:
    from firstcli.api import Dtype
    from firstcli.recipe.evaluations import GenerationSettings
    from firstcli.recipe.references import ModelSection, ObjectiveRef, PluginRef
    from firstcli.recipe.schema import Recipe
    from firstcli.workspace.run import Run

NOT_FOR_INFERENCE = ("device", "device_map", "max_memory")
"""Model options that say where a model runs, and change no result."""
NOT_FOR_TRAINING = (*NOT_FOR_INFERENCE, "dtype")
"""Model options that change no training: `dtype` is for inference."""
SOURCE_OF = "source of the plugin of"
"""Beginning of the inputs that are digests of third-party plugins' code."""
FIRST_FORMAT = "firstcli, format 1"
"""Identity of a built-in plugin whose results have never changed."""

Inputs = dict[str, object]


def model(run: Run, role: Role, seed: int | None = None) -> Inputs:
    """Return what the model with which training starts depends on."""
    section = run.model_section(role)
    inputs = _options(f"{role}.model", section, NOT_FOR_TRAINING)
    inputs[f"{role}.model.family"] = section.family
    if section.checkpoint is not None:
        inputs[f"{role}.model.checkpoint"] = run.checkpoint_identity(role)
    if section.chat_template is not None:
        inputs[f"{role}.model.chat_template"] = run.digests.of_file(section.chat_template)
    if role == "student" and run.recipe.teacher and section.build().uses_teacher_tokenizer:
        inputs |= model(run, "teacher")
    inputs["seed"] = run.recipe.seed if seed is None else seed
    return inputs


def encoding(run: Run, role: Role) -> Inputs:
    """Return the settings that change a role's tokens, if they are not the defaults."""
    inputs: Inputs = {}
    if run.recipe.train.doubled_bos != "error":
        inputs["train.doubled_bos"] = run.recipe.train.doubled_bos
    if role == "student" and run.recipe.student.eos != "student":
        inputs["student.eos"] = run.recipe.student.eos
        teacher = model(run, "teacher")  # whose token it is
        inputs |= {key: value for key, value in teacher.items() if key != "seed"}
        if run.model_section("teacher").checkpoint is None:
            inputs |= training_data(run)
    return inputs


def chat(run: Run, role: Role, evaluation: str = "") -> Inputs:
    """Return how a role's samples are rendered as a chat, if they are one.

    Args:
        run: the run.
        role: teacher or student.
        evaluation: the evaluation that has the samples; by default those of training.
    """
    task = run.stated_task(evaluation)
    if task.chat is False:
        return {} if evaluation else _template_of_conversations(run, role)

    def make() -> str:
        run.announce_libraries()
        from firstcli.stages.chat import chat_format

        found = chat_format(run, role, evaluation)
        return found.identity if found else ""

    content = tokenizer_content(run) | as_text({"chat": task.chat, "system": repr(task.system)})
    identity = run.memory.recall(f"chat format, {role}", content, make)
    return {"chat template and system message": identity} if identity else {}


def _template_of_conversations(run: Run, role: Role) -> Inputs:
    """Return the template that renders conversations, which a role may have from the other."""
    if run.recipe.train.task.plugin.has_candidates:
        return {}

    def make() -> str:
        run.announce_libraries()
        from firstcli.data.conversations import identity
        from firstcli.stages.chat import learns_conversations

        return identity(run.tokenizers.of(role)) if learns_conversations(run) else ""

    content = tokenizer_content(run) | {"samples": run.part_content("train")}
    found = run.memory.recall(f"template of conversations, {role}", content, make)
    return {"chat template": found} if found else {}


def predictions(run: Run, role: Role, evaluation: str = "") -> Inputs:
    """Return what a role's predictions depend on, besides its training.

    Args:
        run: the run.
        role: teacher or student.
        evaluation: the evaluation that has the samples; by default those of training.
    """
    section, teacher = run.model_section(role), run.recipe.teacher
    inputs = _options(f"{role}.model", section, NOT_FOR_INFERENCE) | encoding(run, role)
    inputs |= chat(run, role, evaluation)
    if role == "teacher" and teacher and not teacher.finetune:
        inputs |= model(run, role)
        if section.checkpoint is None:  # its tokenizer is made from the training text
            inputs |= training_data(run)
    return inputs


def generation(run: Run, settings: GenerationSettings, unit: Unit) -> Inputs:
    """Return what generated answers depend on, besides the model and the questions.

    Args:
        run: the run.
        settings: how they are generated.
        unit: the unit whose model generates.
    """
    form = run.stated_task(unit.evaluation).explanations
    inputs: dict[str, object] = {"generated answers": repr(settings), "form of answers": repr(form)}
    if settings.temperature:
        inputs["seed of generated answers"] = run.seed_of(unit)
    return inputs


def training(run: Run, unit: Unit) -> Inputs:
    """Return what a unit's training depends on, besides the soft targets."""
    settings = run.training_settings(unit)
    unused = {"micro_batch_size", "batching", "save", "save_dtype", "augment"}
    stated = settings.model_dump(exclude=unused)
    if settings.lora:
        stated["save"] = settings.saved
    saved = saved_dtype(run, unit)
    saves_model = settings.saved != "adapter"  # adapters are saved in float32
    if saves_model and saved != "float32" and (settings.lora or saved != settings.dtype):
        stated["save_dtype"] = saved  # saving rounds the weights
    trainer = {key: value for key, value in run.recipe.trainer.items() if key not in HARMLESS}
    return (
        model(run, unit.role, run.seed_of(unit))
        | training_data(run)
        | encoding(run, unit.role)
        | chat(run, unit.role)
        | flat("student.training" if unit.arm else "teacher.finetune", stated)
        | flat("trainer", trainer)
        | {"longest sample": longest_sample(run, unit)}
        | ({"supervised": "answers only"} if run.recipe.answers_only else {})
        | copies(run, unit)
    )


def copies(run: Run, unit: Unit) -> Inputs:
    """Return which copies a training learns, and how often, if it learns some."""
    section = run.recipe.augmentation
    if section is None or not learns_copies(run.recipe, unit):
        return {}
    inputs = {"copies samples": run.part_content("copies"), "train.augment.share": section.share}
    return inputs | longest_copy(run, unit)


def longest_copy(run: Run, unit: Unit) -> Inputs:
    """Return the length up to which a unit uses copies, if it leaves some out."""

    def make() -> str:
        run.announce_libraries()
        from firstcli.stages import inputs

        return inputs.left_out_copies(run, unit)

    section = run.recipe.train
    content = tokenizer_content(run) | {"copies": run.part_content("copies")}
    content |= as_text(chat(run, "teacher") if run.recipe.teacher else {})
    content |= as_text({f"student's {key}": value for key, value in chat(run, "student").items()})
    content |= {"too_long": section.too_long, "over": run.recipe.knowledge.over}
    content["answers only"] = str(run.recipe.answers_only)
    learns = run.recipe.arms[unit.arm].learn if unit.arm else unit.part
    found = run.memory.recall(f"longest copy, {unit.role}, {learns}", content, make)
    return {} if found == "any" else {"longest copy": found}


def rewordings(run: Run) -> Inputs:
    """Return what the texts that the teacher writes for copies depend on, besides the teacher."""
    settings, augment = run.recipe.writing, run.recipe.augmentation
    assert settings and augment
    inputs = training_data(run) | flat("sampling", asdict(settings))
    first = 0  # numbers the copies, whose ids are those of the texts
    for number, ref in enumerate(augment.augmenters):
        augmenter = ref.build()
        if augmenter.writing is not None:
            inputs |= plugin(f"train.augment.augmenters.{number}", ref)
            if first:
                inputs[f"copies before train.augment.augmenters.{number}"] = first
        first += augmenter.copies
    return inputs


def mixture(run: Run) -> Inputs:
    """Return what the shares of a mixture's domains depend on, besides teacher and samples."""
    section = run.recipe.train.mixture
    assert section
    settings = section.model_dump(include={"every", "smoothing", "samples"})
    content = {"validation samples": run.part_content("validation")}
    return flat("train.mixture", settings | {"domains": list(section.tasks)}) | content


def saved_dtype(run: Run, unit: Unit) -> Dtype:
    """Return the dtype in which a unit's trained model is saved."""
    chosen = run.training_settings(unit).save_dtype
    if chosen != "checkpoint":
        return chosen
    if run.model_section(unit.role).checkpoint is None:
        return "float32"

    def make() -> Dtype:
        run.announce_libraries()
        from firstcli.stages import role_models

        return role_models.checkpoint_dtype(run, unit.role)

    content = loading_content(run, unit.role)
    return run.memory.recall(f"dtype of the {unit.role}'s checkpoint", content, make)


def training_data(run: Run) -> Inputs:
    # The validation part is included: the text of `scratch` tokenizers covers it.
    inputs: Inputs = {f"{p} samples": run.part_content(p) for p in ("train", "validation")}
    return inputs if run.text_content is None else inputs | {"tokenizer text": run.text_content}


def arm_fields(recipe: Recipe, name: str, fields: Iterable[str]) -> Inputs:
    """Return some fields of an arm, its plugins with effective options and identity."""
    arm = recipe.arms[name]
    plugins = {"recalibrator", "objective"}
    inputs = flat(f"arms.{name}", arm.model_dump(include=set(fields) - plugins))
    if arm.objective and "objective" in fields:
        inputs |= _objective(f"arms.{name}.objective", arm.objective)
    if arm.averages:  # `first` is the default
        inputs[f"arms.{name}.teachers"] = arm.teachers
    if arm.recalibrator:
        inputs |= plugin(f"arms.{name}.recalibrator", arm.recalibrator)
        if arm.recalibrator.build().uses_rows:
            inputs["train.task.name"] = recipe.train.task.name
    return inputs


def plugin(prefix: str, ref: PluginRef) -> Inputs:
    """Return a plugin's name, effective options and identity."""
    return {f"{prefix}.name": ref.name} | _options(prefix, ref)


def _objective(prefix: str, ref: ObjectiveRef) -> Inputs:
    """Return an objective; a built-in one in its first format as before it was a plugin."""
    inputs = {prefix: ref.name} | _options(prefix, ref)
    if ref.identity == FIRST_FORMAT:
        inputs.pop(f"plugin of {prefix}")
    return inputs


def _options(prefix: str, ref: PluginRef | ModelSection, without: tuple[str, ...] = ()) -> Inputs:
    without += getattr(ref.plugin, "harmless_options", ())
    options = {key: value for key, value in ref.effective.items() if key not in without}
    inputs = flat(f"{prefix}.options", options) | {f"plugin of {prefix}": ref.identity}
    return inputs | ({f"{SOURCE_OF} {prefix}": ref.source} if ref.source else {})


def longest_sample(run: Run, unit: Unit) -> str:
    """Return the length up to which samples are used; it matters only if some are dropped."""
    # The teacher's responses are never too long, and their samples are not known before them.
    # Copies that are too long are always left out.
    if run.recipe.train.too_long == "error" or unit.part in ("written", "copies"):
        return "any"
    if unit.evaluation and run.generation(unit.evaluation) is not None:
        return "any"

    def make() -> str:
        run.announce_libraries()
        from firstcli.stages import inputs

        if unit.evaluation:
            total = len(run.evaluation_samples(unit.evaluation))
            kept = len(inputs.questions(run, unit.role, unit.evaluation))
        else:
            total = len(run.samples_of(unit.part))
            kept = len(inputs.training_rows(run, unit.role, unit.part))
        return "any" if kept == total else f"{inputs.context(run, unit.role)} tokens"

    evaluation = unit.evaluation
    samples = run.evaluation_content(evaluation) if evaluation else run.part_content(unit.part)
    content = tokenizer_content(run) | {"samples": samples}
    content |= as_text(chat(run, unit.role, unit.evaluation))
    what = f"longest sample, {unit.role}, {evaluation or unit.part}"
    return run.memory.recall(what, content, make)


def longest_response(run: Run) -> int | str:
    """Return the length in tokens of the longest sample that teacher and students may see."""

    def make() -> int | str:
        run.announce_libraries()
        from firstcli.stages import inputs

        longest = inputs.shared_context(run)
        return "any" if longest == float("inf") else int(longest)

    return run.memory.recall("longest response", tokenizer_content(run), make)


def shared_vocabulary(run: Run) -> int:
    """Return the number of token ids that teacher and student share."""

    def make() -> int:
        run.announce_libraries()
        from firstcli.stages import shared_tokens

        return shared_tokens.shared_vocabulary(run)

    return run.memory.recall("shared vocabulary", tokenizer_content(run), make)


def knowledge_width(run: Run) -> int:
    """Return the number of probabilities per position, which depends on the data."""

    def make() -> int:
        run.announce_libraries()
        from firstcli.stages import teacher_knowledge

        return teacher_knowledge.knowledge_width(run)

    parts: tuple[Part, ...] = ("train", "validation", "unlabelled")
    content = {f"{part} samples": run.part_content(part) for part in parts}
    content["top_k"] = str(run.recipe.knowledge.top_k)
    return run.memory.recall("width of knowledge over candidates", content, make)


def tokenizer_content(run: Run) -> dict[str, str]:
    """Return what the tokenizers and architectures of both roles depend on."""
    roles: list[Role] = ["teacher", "student"] if run.recipe.teacher else ["student"]
    return loading_content(run, *roles)


def loading_content(run: Run, *roles: Role) -> dict[str, str]:
    """Return what the tokenizers and models with which these roles start depend on."""
    from importlib.metadata import version  # takes a tenth of the time that help takes

    inputs: Inputs = {}
    for role in roles:
        inputs |= model(run, role)
        if run.model_section(role).checkpoint is None:
            inputs |= training_data(run)
        inputs |= encoding(run, role)
    inputs.pop("seed", None)  # it draws weights, which change neither
    inputs |= {name: version(name) for name in ("transformers", "tokenizers", "torch")}
    return as_text(inputs) | {"firstcli": __version__}


def all_content(run: Run) -> dict[str, str]:
    """Return everything that checks depend on: the recipe, its data, models and plugins."""
    inputs = training_data(run) | dict(implied_inputs(run.recipe))
    for section in run.recipe.evaluate:
        inputs[f"samples of {section.name}"] = run.evaluation_content(section.name)
    if run.recipe.knowledge.responses != "data" and run.is_written("written"):
        inputs["written samples"] = run.part_content("written")
    if run.recipe.writing and run.is_written("copies"):
        inputs["copies samples"] = run.part_content("copies")
    recipe = json.dumps(run.resolved, sort_keys=True)
    return tokenizer_content(run) | as_text(inputs) | {"recipe": recipe}


def implied_inputs(recipe: Recipe) -> Iterator[tuple[str, object]]:
    """Yield the inputs that a recipe does not state: default options and plugins' identities.

    Manifests of format 1 do not have them.
    """
    for prefix, ref in _references(recipe):
        yield f"plugin of {prefix}", ref.identity
        if ref.source:
            yield f"{SOURCE_OF} {prefix}", ref.source
        unset = {key: value for key, value in ref.effective.items() if key not in ref.given}
        yield from flat(f"{prefix}.options", unset).items()


def _references(recipe: Recipe) -> Iterator[tuple[str, PluginRef | ModelSection]]:
    from firstcli.recipe.references import POSTHOC_KEY

    section = recipe.augmentation
    for number, augmenter in enumerate(section.augmenters if section else ()):
        yield f"train.augment.augmenters.{number}", augmenter
    yield "student.model", recipe.student.model
    if recipe.teacher:
        yield "teacher.model", recipe.teacher.model
        if recipe.teacher.posthoc:
            yield from _posthoc(f"teacher.{POSTHOC_KEY}", recipe.teacher.posthoc)
    for name, arm in recipe.arms.items():
        if arm.recalibrator:
            yield f"arms.{name}.recalibrator", arm.recalibrator
        if arm.objective:
            yield f"arms.{name}.objective", arm.objective
        if arm.posthoc:
            yield from _posthoc(f"arms.{name}.{POSTHOC_KEY}", arm.posthoc)


def _posthoc(key: str, ref: PluginRef) -> Iterator[tuple[str, PluginRef]]:
    """Yield a post-hoc recalibrator under its key in the recipe, and under that of its stage."""
    from firstcli.recipe.references import POSTHOC_KEY

    yield key, ref
    yield POSTHOC_KEY, ref


def flat(prefix: str, value: object) -> Inputs:
    """Return a nested value as dotted keys; None is left out, and secrets are redacted."""
    if isinstance(value, Mapping):
        children = [flat(f"{prefix}.{key}", child) for key, child in value.items()]
        return {name: leaf for child in children for name, leaf in child.items()}
    return {} if value is None else redacted({prefix: value})


def as_text(inputs: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in inputs.items()}
