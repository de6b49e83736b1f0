"""Tasks with the options that they choose when they see the tokenizers; remembered."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from firstcli.recipe.references import TaskRef
from firstcli.recipe.schema import Recipe
from firstcli.workspace.content import ContentDigests, as_json
from firstcli.workspace.tokenizers import Tokenizers
from firstcli.workspace.units import Role


class TaskAdapter:
    """Lets tasks adapt their options to the tokenizers of teacher and student."""

    def __init__(
        self,
        recipe: Recipe,
        tokenizers: Tokenizers,
        contents: ContentDigests,
        announce_libraries: Callable[[], None],
    ) -> None:
        """Adapt nothing yet.

        Args:
            recipe: the recipe.
            tokenizers: the tokenizers of teacher and student.
            contents: identifies what an adaptation depends on, and remembers it.
            announce_libraries: called before tokenizers are loaded.
        """
        self._recipe, self._tokenizers, self._contents = recipe, tokenizers, contents
        self._announce_libraries = announce_libraries

    def adapted(self, ref: TaskRef, where: str, training: TaskRef | None) -> tuple[TaskRef, str]:
        """Return a task with the options that `Task.adapted` returns, and its note; remembered.

        Args:
            ref: the task, as the recipe states it.
            where: its key in the recipe, for messages.
            training: the adapted training task, if it uses the same plugin.
        """
        task = ref.build()
        if not task.adapts:
            return ref, ""
        tokens = partial(self._tokenizers.continuations, ref, where)

        def make() -> dict[str, Any]:
            self._announce_libraries()
            options = None if training is None else training.options
            adaptation = task.adapted(tokens, options)
            given = adaptation.options.model_dump(mode="json", exclude_unset=True)
            return {"options": given, "note": adaptation.note}

        source = self._contents.source(ref, "train")
        if source is None:
            result = make()
        else:
            source["models"] = self._tokenizers_source()
            source["training"] = "" if training is None else as_json(training.effective)
            if ref.chat:
                source["chat"] = as_json([ref.chat, ref.system])
            result = self._contents.memory.recall("adapted options", source, make)
        return ref.with_options(result["options"]), result["note"]

    def _tokenizers_source(self) -> str:
        """Return everything that the tokenizers depend on."""
        from importlib.metadata import version  # takes a tenth of the time that help takes

        roles: list[Role] = ["teacher", "student"] if self._recipe.teacher else ["student"]
        parts: list[object] = [self._recipe.student.eos]
        for role in roles:
            section = self._tokenizers.section(role)
            parts += [section.family, section.effective, section.identity, section.source]
            if section.chat_template is not None:
                parts.append(self._contents.digests.of_file(section.chat_template))
            if section.checkpoint is not None:
                parts.append(self._contents.of_checkpoint(role, section))
            elif section.plugin.needs_text:
                train = self._recipe.train
                parts += [train.limit, self._contents.source(train.task, "train")]
        parts += [version(name) for name in ("transformers", "tokenizers")]
        return as_json(parts)
