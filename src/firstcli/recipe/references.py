"""Parts of a recipe that refer to something outside it: plugins, models and folders."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    WithJsonSchema,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

from firstcli import plugins
from firstcli.api import DataPath, ExplanationForm, ModelFamily, PluginOptions, Task
from firstcli.errors import UserError
from firstcli.plugins import annotators, calls, objectives, recalibrators, selectors
from firstcli.plugins.annotators import CheckedAnnotator

_FOLDER = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def mistake(text: str, keys: tuple[int | str, ...] | None = None) -> PydanticCustomError:
    """Return the exception with which a validator refuses a value.

    Args:
        text: is shown unchanged.
        keys: the path of the key to name, from the root of the recipe; by default, that of the
            value.
    """
    return PydanticCustomError("recipe", "{text}", {"text": text, "keys": keys})


@contextmanager
def user_errors_as_mistakes() -> Iterator[None]:
    """Report a plugin's error together with all other mistakes, at its key path."""
    try:
        yield
    except UserError as error:
        raise mistake(str(error)) from error


def _folder_name(name: str) -> str:
    if not _FOLDER.fullmatch(name):
        raise mistake(
            f"found '{name}', expected a name that can be a folder: up to 100 letters, digits, "
            "'.', '_' and '-', not starting with '.'"
        )
    return name


def _arm_name(name: str) -> str:
    if name.casefold() == "teacher":
        raise mistake("'teacher' is reserved for the teacher; choose a different name for the arm")
    if name.endswith(".manifest"):
        raise mistake("names ending in '.manifest' are reserved for firstcli's own files")
    return _folder_name(name)


FolderName = Annotated[str, AfterValidator(_folder_name)]
ArmName = Annotated[str, AfterValidator(_arm_name)]


def _resolved_checkpoint(checkpoint: str) -> str:
    """Return the absolute path of a local folder, or a hub id unchanged."""
    base: Path = getattr(checkpoint, "base", Path.cwd())
    text = str(checkpoint)
    try:
        folder = base / Path(text).expanduser()
    except RuntimeError as error:  # ~nobody
        raise mistake(f"found '{text}', but {str(error).lower()}") from error
    if text and folder.is_dir():
        return str(folder.resolve())
    if text.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(text):
        raise mistake(
            f"found '{text}', expected a hub id such as 'owner/name', or a folder; "
            f"there is no folder {folder}"
        )
    return text


class RecipeSection(BaseModel):
    """A section of the recipe: immutable, without unknown keys or coercion of values."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


Options = Annotated[PluginOptions, WithJsonSchema({"type": "object", "additionalProperties": True})]


class PluginSection(RecipeSection):
    """A section that names a plugin and holds its options, validated once by the plugin's model.

    Subclasses declare the field `key`, which names the plugin, and after it the field `options`.
    """

    kind: ClassVar[plugins.Kind]
    key: ClassVar[str] = "name"
    if TYPE_CHECKING:  # pydantic must not see it here, or it would precede the name
        options: Options

    @property
    def plugin(self) -> Any:
        """The plugin's class."""
        return plugins.load(self.kind, getattr(self, self.key))

    @property
    def given(self) -> dict[str, Any]:
        """The options that the recipe states, as JSON values, with absolute paths."""
        return self.options.model_dump(mode="json", exclude_unset=True)

    @property
    def effective(self) -> dict[str, Any]:
        """All options including defaults, as JSON values."""
        return self.options.model_dump(mode="json")

    @property
    def identity(self) -> str:
        """The plugin's distribution and format, as `plugins.identity` returns them."""
        return plugins.identity(self.kind, getattr(self, self.key))

    @property
    def source(self) -> str:
        """A digest of a third-party plugin's code, as `plugins.source` returns it."""
        return plugins.source(self.kind, getattr(self, self.key))

    @field_validator("name", "family", check_fields=False)
    @classmethod
    def _exists(cls, name: str) -> str:
        with user_errors_as_mistakes():
            plugins.load(cls.kind, name)
        return name

    @field_validator("options", mode="plain", check_fields=False)
    @classmethod
    def _fit_the_plugin(cls, options: Any, info: ValidationInfo) -> Any:
        if cls.key in info.data:
            with user_errors_as_mistakes():
                return calls.validated(plugins.find(cls.kind, info.data[cls.key]), options)
        if not isinstance(options, dict):
            raise PydanticKnownError("dict_type")
        return options  # cannot be checked; the error in the name fails the recipe

    @field_serializer("options", check_fields=False)
    def _as_given(self, _: PluginOptions) -> dict[str, Any]:
        return self.given


class PluginRef(PluginSection):
    """A plugin by its name, with its options."""

    name: str
    """The plugin's name, as `first plugins` lists it."""
    options: Options = Field(default_factory=cast(Any, dict), validate_default=True)
    """The plugin's own options."""


class TaskRef(PluginRef):
    """A task: the source of samples."""

    kind = "tasks"

    chat: bool | Literal["auto"] = False
    """Whether prompts become the user's messages of a chat, rendered with the chat template of each
    model's tokenizer; `auto`: where a tokenizer of the run has one."""
    system: str | None = None
    """The text of the chat's system message. Default: what the template itself writes."""

    @field_validator("system")
    @classmethod
    def _needs_a_chat(cls, system: str | None, info: ValidationInfo) -> str | None:
        if system is not None and info.data.get("chat") is False:
            raise mistake("has no effect without a chat; set `chat: true`, or leave it out")
        return system

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the keys of a chat where there is none, as recipes did before they existed."""
        values: dict[str, Any] = handler(self)
        if self.chat is False:
            values.pop("chat", None)
        if self.system is None:
            values.pop("system", None)
        return values

    def build(self) -> calls.CheckedTask:
        """Return the task with its options."""
        return calls.task(self.name, self.options)

    def build_unlabelled(self, path: Path | Sequence[Path]) -> calls.CheckedTask:
        """Return the task over further files, whose labels are ignored.

        Raises:
            UserError: the task reads no such files.
        """
        if (task := self.build().unlabelled(path)) is None:
            raise UserError(
                f"task '{self.name}' reads no files without labels; leave it out, or use a task "
                "such as 'multiple-choice'"
            )
        return task

    @property
    def explanations(self) -> ExplanationForm | None:
        """How responses are made of an explanation's steps and the answer; None without steps."""
        if self.plugin.explanations is Task.explanations:  # nothing to build
            return None
        return self.build().explanations()

    @property
    def can_be_evaluated(self) -> bool:
        """Whether the samples have candidates, or answers that can be read off generated text."""
        return self.plugin.has_candidates or self.explanations is not None

    @property
    def advice_on_test_split(self) -> str:
        """How to cut a test part off the task's file, if it can: the start of a sentence."""
        fields = type(self.options).model_fields
        can = "path" in fields and "test" in fields
        return "cut a test part off the file with the task's option `test: 0.2`, or " if can else ""

    def with_options(self, options: object) -> TaskRef:
        """Return a reference to the same task with other options, given as JSON values."""
        return TaskRef.model_validate(
            {"name": self.name, "chat": self.chat, "system": self.system, "options": options}
        )


class RecalibratorRef(PluginRef):
    """A recalibrator: corrects the teacher's top-k probabilities."""

    kind = "recalibrators"

    def build(self) -> recalibrators.CheckedRecalibrator:
        """Return a new, unfitted recalibrator with its options."""
        return recalibrators.recalibrator(self.name, self.options)


class AugmenterRef(PluginRef):
    """An augmenter: makes copies of the training samples with other prompts."""

    kind = "augmenters"

    def build(self) -> calls.CheckedAugmenter:
        """Return a new augmenter with its options."""
        return calls.augmenter(self.name, self.options)


class AnnotatorRef(PluginRef):
    """An annotator: says what the student learns about a question of the pool."""

    kind = "annotators"

    def build(self) -> CheckedAnnotator:
        """Return a new annotator with its options."""
        return annotators.annotator(self.name, self.options)


class SelectorRef(PluginRef):
    """A selector: says which questions of the pool the teacher annotates."""

    kind = "selectors"

    def build(self) -> selectors.CheckedSelector:
        """Return a new selector with its options."""
        return selectors.selector(self.name, self.options)


class ObjectiveRef(PluginRef):
    """An objective: what students minimise; its name alone stands for it without options."""

    kind = "objectives"

    def build(self) -> objectives.CheckedObjective:
        """Return a new objective with its options."""
        return objectives.objective(self.name, self.options)

    @property
    def title(self) -> str:
        """The name, and the options that the recipe states."""
        return ", ".join([self.name, *(f"{key} {value}" for key, value in self.given.items())])

    @model_validator(mode="before")
    @classmethod
    def _of_a_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _as_a_name(self, handler: SerializerFunctionWrapHandler) -> Any:
        """Return the name alone without options, as recipes have always stated it."""
        return handler(self) if self.given else self.name


POSTHOC_KEY = "posthoc"
"""Recipe key of the post-hoc recalibrator, in an arm or in `teacher`."""


class PosthocRef(RecalibratorRef):
    """A recalibrator of a trained model; a criterion is `nll` by default."""

    fit: Literal["labels", "agreement"] = "labels"
    """What the recalibrator is fitted to: the labels of the validation part (`labels`), or, without
    labels, the probabilities of the teacher at questions on which student and teacher agree
    (`agreement`, DACA, arXiv 2505.16690). The questions are the unlabelled samples of the recipe,
    or without any the validation part. With `logit-temperature` alone."""

    @field_validator("options", mode="before")
    @classmethod
    def _by_nll(cls, options: object, info: ValidationInfo) -> object:
        if not isinstance(options, dict) or cls.key not in info.data:
            return options
        if options.get("temperature") is not None:
            raise mistake("its temperature is fitted for each model; leave it out")
        known = plugins.load(cls.kind, info.data[cls.key]).Options.model_fields
        return {"criterion": "nll", **options} if "criterion" in known else options

    @field_validator("fit")
    @classmethod
    def _is_a_temperature(cls, fit: str, info: ValidationInfo) -> str:
        name, options = info.data.get(cls.key), info.data.get("options")
        if fit == "agreement" and name is not None:
            if name != "logit-temperature":
                raise mistake(
                    f"found 'agreement', which fits a temperature, not '{name}'; leave it out, or "
                    "choose logit-temperature"
                )
            if getattr(options, "criterion", "nll") != "nll":
                raise mistake(
                    "found 'agreement', which has a criterion of its own; leave out the option "
                    "'criterion'"
                )
        return fit

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what it is fitted to by default, as recipes did before there was a choice."""
        values: dict[str, Any] = handler(self)
        if self.fit == "labels":
            values.pop("fit", None)
        return values


class ModelSection(PluginSection):
    """A model: the family that loads it, and its initial weights."""

    kind = "families"
    key = "family"

    family: str
    """The family plugin, for example `causal-lm` or `scratch`."""
    checkpoint: str | None = Field(default=None, validate_default=True)
    """A Hugging Face hub id, or a folder: absolute, or relative to this recipe."""
    revision: str | None = None
    """Branch, tag or commit of the hub id; default: its main branch."""
    chat_template: DataPath | None = None
    """A file with a chat template in Jinja, for tasks with `chat`; the trained model is saved with
    it. Default: the template of the checkpoint's tokenizer, or if it has none, that of the other
    model."""
    options: Options = Field(default_factory=cast(Any, dict), validate_default=True)
    """The family's own options."""

    def build(self) -> ModelFamily[Any]:
        """Return the model's family with its options."""
        return calls.family(self.family, self.options)

    @field_validator("checkpoint", mode="before")
    @classmethod
    def _suits_the_family(cls, checkpoint: object, info: ValidationInfo) -> object:
        family = info.data.get("family")
        if family is not None:
            needed = plugins.load("families", family).needs_checkpoint
            if needed and checkpoint is None:
                raise mistake(f"missing; family '{family}' needs a hub id or a folder")
            if not needed and checkpoint is not None:
                raise mistake(f"family '{family}' takes no checkpoint; leave it out")
        return _resolved_checkpoint(checkpoint) if isinstance(checkpoint, str) else checkpoint

    @field_validator("chat_template")
    @classmethod
    def _can_be_read(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_file():
            raise mistake(f"there is no file {path}")
        return path

    @field_validator("revision")
    @classmethod
    def _needs_a_checkpoint(cls, revision: str | None, info: ValidationInfo) -> str | None:
        if revision is not None and info.data.get("checkpoint", "invalid") is None:
            raise mistake("has no effect without a checkpoint; leave it out")
        return revision


PLUGIN_SECTIONS: dict[str, type[PluginSection]] = {
    section.__name__: section
    for section in (
        *(TaskRef, RecalibratorRef, PosthocRef, ModelSection, AugmenterRef),
        *(SelectorRef, AnnotatorRef, ObjectiveRef),
    )
}
"""Sections that name a plugin, by their title in the JSON schema."""
