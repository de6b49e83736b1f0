"""Parts of a recipe that name what is outside it: plugins with their options, models, folders."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from firstcli import plugins
from firstcli.errors import UserError

_FOLDER = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def mistake(text: str) -> PydanticCustomError:
    """Return what a validator raises to refuse a value with a sentence of ours."""
    return PydanticCustomError("recipe", "{text}", {"text": text})


@contextmanager
def _user_errors_as_mistakes() -> Iterator[None]:
    """Let a plugin's complaint stand beside all others, with its key path."""
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
        raise mistake("'teacher' is reserved for the teacher; choose another name for the arm")
    if name.endswith(".manifest"):
        raise mistake("a name that ends in '.manifest' is reserved for files of firstcli")
    return _folder_name(name)


FolderName = Annotated[str, AfterValidator(_folder_name)]
ArmName = Annotated[str, AfterValidator(_arm_name)]


def _known(kind: plugins.Kind, name: str) -> str:
    with _user_errors_as_mistakes():
        plugins.load(kind, name)
    return name


def _checked_options(
    kind: plugins.Kind, name: str | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Return the options as the plugin reads them, paths absolute, unless its name is at fault."""
    if name is None:
        return options
    with _user_errors_as_mistakes():
        model: BaseModel = plugins.load(kind, name).Options.model_validate(options)
    return model.model_dump(mode="json", exclude_unset=True)


def _located(checkpoint: str) -> str:
    """Return the absolute path of a local folder, or a hub id as it is."""
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


class Section(BaseModel):
    """A part of the recipe: unknown keys are refused, values are not coerced, nothing changes."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class PluginRef(Section):
    """A plugin by its name, with its options."""

    kind: ClassVar[plugins.Kind]

    name: str
    """The plugin's name, as `first plugins` lists it."""
    options: dict[str, Any] = Field(default_factory=dict, validate_default=True)
    """The plugin's own options."""

    @field_validator("name")
    @classmethod
    def _exists(cls, name: str) -> str:
        return _known(cls.kind, name)

    @field_validator("options")
    @classmethod
    def _fit_the_plugin(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        return _checked_options(cls.kind, info.data.get("name"), options)


class TaskRef(PluginRef):
    """A task: where samples come from."""

    kind = "tasks"


class RecalibratorRef(PluginRef):
    """A recalibrator: what makes the teacher's probabilities trustworthy."""

    kind = "recalibrators"


class PosthocRef(RecalibratorRef):
    """What follows a trained model: `logit-temperature`, fitted by NLL unless told otherwise."""

    # It is applied to the candidates, of which only some may be among the top k.
    name: Literal["logit-temperature"]
    """The one recalibrator that can follow a model."""

    @field_validator("options", mode="before")
    @classmethod
    def _by_nll(cls, options: object) -> object:
        if isinstance(options, dict) and options.get("temperature") is not None:
            raise mistake("its temperature is fitted, for each model its own; leave it out")
        return {"criterion": "nll", **options} if isinstance(options, dict) else options


class ModelSection(Section):
    """A model: the family that loads it and where its weights start."""

    family: str
    """The family plugin, for example `causal-lm` or `scratch`."""
    checkpoint: str | None = Field(default=None, validate_default=True)
    """A Hugging Face hub id, or a folder: absolute, or relative to this recipe."""
    revision: str | None = None
    """Branch, tag or commit of the hub id; default: its main branch."""
    options: dict[str, Any] = Field(default_factory=dict, validate_default=True)
    """The family's own options."""

    @field_validator("family")
    @classmethod
    def _exists(cls, family: str) -> str:
        return _known("families", family)

    @field_validator("checkpoint", mode="before")
    @classmethod
    def _wanted_and_located(cls, checkpoint: object, info: ValidationInfo) -> object:
        family = info.data.get("family")
        if family is not None:
            needed = plugins.load("families", family).needs_checkpoint
            if needed and checkpoint is None:
                raise mistake(f"missing; family '{family}' needs a hub id or a folder")
            if not needed and checkpoint is not None:
                raise mistake(f"family '{family}' takes no checkpoint; leave it out")
        return _located(checkpoint) if isinstance(checkpoint, str) else checkpoint

    @field_validator("revision")
    @classmethod
    def _of_a_checkpoint(cls, revision: str | None, info: ValidationInfo) -> str | None:
        if revision is not None and info.data.get("checkpoint", "at fault") is None:
            raise mistake("means nothing without a checkpoint; leave it out")
        return revision

    @field_validator("options")
    @classmethod
    def _fit_the_family(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        return _checked_options("families", info.data.get("family"), options)
