"""A task inside another task's options: how it is stated, validated and built."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    Field,
    SerializationInfo,
    ValidationInfo,
    WithJsonSchema,
    field_serializer,
    field_validator,
)

from firstcli import plugins
from firstcli.api import PluginOptions
from firstcli.errors import UserError
from firstcli.plugins import calls


class InnerTask(PluginOptions):
    """A task by its name, with its options."""

    name: str = Field(description="the task's plugin, as `first plugins` lists it")
    options: Annotated[
        PluginOptions, WithJsonSchema({"type": "object", "additionalProperties": True})
    ] = Field(default_factory=PluginOptions, validate_default=True, description="its own options")

    @field_validator("name")
    @classmethod
    def _exists(cls, name: str) -> str:
        try:
            plugins.load("tasks", name)
        except UserError as error:
            raise ValueError(str(error)) from error
        return name

    @field_validator("options", mode="plain")
    @classmethod
    def _fit_the_task(cls, options: Any, info: ValidationInfo) -> Any:
        if "name" not in info.data:
            return options  # cannot be checked; the error in the name fails the options
        plugin = plugins.find("tasks", info.data["name"])
        given = {} if type(options) is PluginOptions else options  # the default
        try:
            return calls.validated(plugin, given)
        except UserError as error:
            raise ValueError(str(error)) from error

    @field_serializer("options")
    def _as_its_own(self, options: PluginOptions, info: SerializationInfo) -> dict[str, Any]:
        return options.model_dump(mode="json", exclude_unset=info.exclude_unset)

    @property
    def has_candidates(self) -> bool:
        return bool(plugins.load("tasks", self.name).has_candidates)

    def build(self) -> calls.CheckedTask:
        """Return the task with its options."""
        return calls.task(self.name, self.options)

    def with_options(self, options: PluginOptions) -> InnerTask:
        """Return the same task with other options, of its own model."""
        return self.model_copy(update={"options": options})


def sources_of(tasks: Iterable[InnerTask], split: str) -> Sequence[Path] | None:
    """Return the files that a split of several tasks is read from; None if that is unknown.

    It is also unknown for a third party's task, whose code may change what it makes of a file.
    """
    found: list[Path] = []
    for task in tasks:
        files = task.build().sources(split)
        if files is None or not plugins.find("tasks", task.name).is_built_in:
            return None
        found += files
    return found
