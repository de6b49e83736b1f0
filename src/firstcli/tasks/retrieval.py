"""Another task's samples with the best passages of a local corpus before each prompt.

After KARD (arXiv 2305.18395) and RetriKT (arXiv 2310.15594), in which a student reads what it is
too small to remember. Here BM25 alone chooses the passages; docs/retrieval.md says what is
simplified. `retrieval` is for tasks with candidates and `retrieval-texts` for those without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from firstcli.api import (
    Adaptation,
    DataPath,
    ExplanationForm,
    PluginOptions,
    ResponseTokens,
    Sample,
    Split,
    Task,
    TaskUsage,
)
from firstcli.errors import UserError
from firstcli.tasks.passages import Passage, PassageIndex, read_passages, require_bm25s
from firstcli.tasks.templates import columns_of, fill, of_names
from firstcli.tasks.wrapped import InnerTask, sources_of


class RetrievalOptions(PluginOptions):
    """The task, the corpus, and who reads its passages."""

    task: InnerTask = Field(description="the task whose prompts the passages precede")
    corpus: DataPath = Field(
        description="a text file (.txt), whose passages are separated by empty lines, or a table "
        "such as JSON Lines or CSV with one passage per row"
    )
    column: str = Field(
        "text", min_length=1, description="column of the passages, if the corpus is a table"
    )
    k: int = Field(3, ge=1, description="number of passages per prompt, at most")
    reader: Literal["both", "teacher", "student"] = Field(
        "both", alias="for", description="whose prompts have passages"
    )
    template: Annotated[str, of_names("passages", "prompt")] = Field(
        "{passages}\n\n{prompt}",
        description="template of a prompt with passages, in which {passages} stands for these, one "
        "per line, and {prompt} for the task's prompt",
    )

    @field_validator("template")
    @classmethod
    def _ends_with_the_prompt(cls, template: str) -> str:
        names = columns_of(template)
        if sorted(names) != ["passages", "prompt"] or not template.endswith("{prompt}"):
            raise ValueError(
                "expected {passages} and, at the end, {prompt}, because the response follows it"
            )
        return template

    @model_serializer(mode="wrap")
    def _with_the_key_of_recipes(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write `for`, which no attribute can be named."""
        values: dict[str, Any] = handler(self)
        return {("for" if key == "reader" else key): value for key, value in values.items()}


class Retrieval(Task[RetrievalOptions]):
    """The questions of a task with candidates, with passages before their prompts."""

    Options = RetrievalOptions

    def __init__(self, options: RetrievalOptions) -> None:
        super().__init__(options)
        own, other = "retrieval", "retrieval-texts"
        if not self.has_candidates:
            own, other = other, own
        require_bm25s(f"task '{own}'")
        if options.task.has_candidates != self.has_candidates:
            has = "has" if options.task.has_candidates else "has no"
            raise UserError(
                f"task '{own}': '{options.task.name}' {has} candidates; use '{other}' instead"
            )

    @property
    def splits(self) -> tuple[str, ...]:
        return self.options.task.build().splits

    @property
    def has_teacher_prompts(self) -> bool:
        return self.options.reader != "both"

    def sources(self, split: str) -> Sequence[Path] | None:
        files = sources_of([self.options.task], split)
        return None if files is None else [*files, self.options.corpus]

    def explanations(self) -> ExplanationForm | None:
        return self.options.task.build().explanations()

    def usage(self) -> TaskUsage | None:
        """Return the task's own, unless the student reads passages, which a row does not have."""
        return self.options.task.build().usage() if self.options.reader == "teacher" else None

    def adapted(
        self, tokens: ResponseTokens, training: RetrievalOptions | None
    ) -> Adaptation[RetrievalOptions]:
        """Adapt the task."""
        inner = self.options.task
        built = inner.build()
        if not built.adapts:
            return Adaptation(self.options)
        known = training.task if training and training.task.name == inner.name else None
        found = built.adapted(tokens, known.options if known else None)
        update = {"task": inner.with_options(found.options)}
        return Adaptation(self.options.model_copy(update=update), found.note)

    def load(self, split: str) -> Split:
        """Return the samples of the task, each with the passages that suit its own prompt."""
        loaded = self.options.task.build().load(split)
        return replace(loaded, samples=self._samples(loaded, split))

    def _samples(self, loaded: Split, split: str) -> Iterator[Sample]:
        options = self.options
        passages = read_passages(options.corpus, options.column)
        index, without = PassageIndex(passages), 0
        has_own_rows = self._is_own_file(split)
        ids = {passage.id for passage in passages} - {None}
        for sample in loaded.samples:
            if sample.messages:
                raise UserError(
                    "options.task: its samples are conversations, before which no passages are "
                    "put; give prompts and responses"
                )
            if has_own_rows and sample.id not in ids:
                raise UserError(
                    f"{options.corpus}: it is also the data of split '{split}', but its row of "
                    f"sample {sample.id!r} has no such `id`, so that a question could read its own "
                    "answer; give all rows an `id`, or a different corpus"
                )
            own = "\n".join((sample.prompt, sample.response, *sample.steps))
            own_id = sample.id if has_own_rows else None
            best = index.best(sample.prompt, options.k, own=own, own_id=own_id)
            without += not best
            yield self._with(best, sample) if best else sample
        if without:
            loaded.notes.append(
                f"{without} prompts of split '{split}' share no word with a passage"
            )

    def _is_own_file(self, split: str) -> bool:
        files = self.options.task.build().sources(split) or ()
        return self.options.corpus.resolve() in [file.resolve() for file in files]

    def _with(self, passages: Sequence[Passage], sample: Sample) -> Sample:
        lines = "\n".join(passage.text for passage in passages)
        texts = {"passages": lines, "prompt": sample.prompt}
        longer = fill(self.options.template, texts.__getitem__)
        if self.options.reader == "both":
            return replace(sample, prompt=longer)
        if self.options.reader == "student":
            return replace(sample, prompt=longer, teacher_prompt=sample.prompt)
        return replace(sample, teacher_prompt=longer)


class RetrievalOfTexts(Retrieval):
    """The samples of a task without candidates, with passages before their prompts."""

    has_candidates: ClassVar[bool] = False
