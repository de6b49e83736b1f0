"""Buying annotations, and what a student learns of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

from firstcli.active.data import ActiveData, QuestionPool
from firstcli.active.reading import Said
from firstcli.active.spending import Spent
from firstcli.api import Annotation, ExplanationForm, Sample, Task, ToAnnotate
from firstcli.data.annotations import choices_of, to_annotate, with_label
from firstcli.data.reasoning import with_answer
from firstcli.errors import UserError
from firstcli.plugins.annotators import CheckedAnnotator
from firstcli.recipe.active import Active
from firstcli.recipe.references import AnnotatorRef
from firstcli.recipe.sections import Arm
from firstcli.stages.annotating import AnnotationOrder, AnnotationOutcome, folded, needs_text
from firstcli.workspace.run import Run

POOL_ID = "pool/"
"""Beginning of the ids of annotated samples: the labelled data has ids of its own."""
EXAMPLES = 32
"""Questions by which the cost of an annotation is estimated before the first one is bought."""


@dataclass(frozen=True)
class Buyer:
    """Buys annotations of the questions of a pool. What the teacher has said once costs nothing."""

    run: Run
    """The run whose teacher is asked."""
    active: Active
    ref: AnnotatorRef
    pool: QuestionPool
    data: ActiveData
    """The data of which the pool is made."""
    seed: int

    @cached_property
    def task(self) -> Task[Any]:
        """The task of the questions."""
        return self.data.task.build()

    @cached_property
    def annotator(self) -> CheckedAnnotator:
        """The annotator, which knows the task.

        Raises:
            UserError: it cannot be used with the task.
        """
        annotator = self.ref.build()
        annotator.prepare(self.task)
        return annotator

    @cached_property
    def form(self) -> ExplanationForm | None:
        """How responses are made of steps and answer; None if samples have no steps."""
        return self.task.explanations()

    @property
    def knows_labels(self) -> bool:
        """Whether labels are bought, so that annotations may be seen to contradict them."""
        return self.annotator.buys_label or self.active.check_labels

    def buy(
        self,
        ids: Sequence[str],
        said: Mapping[str, Said],
        failed_before: int,
        earlier: Iterable[Annotation] = (),
    ) -> AnnotationOutcome:
        """Return the annotations of some questions.

        Args:
            ids: the questions.
            said: what the student says of them, if the annotator reads that.
            failed_before: how many questions of the round have no annotation.
            earlier: what was bought before; no new question repeats one of these.

        Raises:
            UserError: too many fail, the teacher cannot be asked, or a label does not exist.
        """
        from firstcli.stages.annotating_teachers import annotated

        items = [self._item(id, said.get(id, Said(id))) for id in ids]
        prices = self.active.prices
        order = AnnotationOrder(
            *(self.annotator, items, self.seed, self.active.max_failures, failed_before),
            known_questions=self._known_questions(earlier),
            price=prices.cost if prices else None,
        )
        return annotated(self.run, order, f"annotating with '{self.ref.name}'")

    def _known_questions(self, earlier: Iterable[Annotation]) -> frozenset[str]:
        """Return the questions that a teacher must not write as new ones."""
        if not self.annotator.writes_questions:
            return frozenset()
        bought = {folded(each.question) for each in earlier if each.question is not None}
        return self.data.known_questions | bought

    def _item(self, id: str, said: Said) -> ToAnnotate:
        item = to_annotate(self.pool.question(id), self.form, said.steps, said.answer)
        if not self.knows_labels:
            return item
        self.pool.buy([id])
        labelled = with_label(item, self.pool.label(id), self.form)
        if not self.annotator.buys_label:
            return replace(item, right_answer=labelled.right_answer)
        item = labelled
        if item.right_answer is None:
            raise UserError(
                f"active.annotator: '{self.ref.name}' buys labels, but question '{id}' has none; "
                "leave such questions out of the pool, or choose another annotator"
            )
        return item

    @cached_property
    def expected(self) -> Spent:
        """What an annotation is expected to cost before one is bought.

        A text is expected to be as long as it may be. The prompt is counted without what the
        student says and without a chat template.
        """
        asks = self.annotator.generates or self.annotator.scores_candidates
        if not asks or not len(self.pool):
            return Spent(1)
        read = sum(self._prompt_lengths) / len(self._prompt_lengths)
        written = self.annotator.writing.max_new_tokens if self.writes_text else 0
        return Spent(1, round(read), written)

    @property
    def writes_text(self) -> bool:
        """Whether the teacher must write text."""
        return len(self.pool) > 0 and needs_text(self.annotator, self.pool.questions[0])

    @cached_property
    def _prompt_lengths(self) -> list[int]:
        """Lengths in tokens of the prompts of some questions, without what the student says."""
        tokenizer = self.run.tokenizers.of("teacher")
        examples = [
            to_annotate(question, self.form) for question in islice(self.pool.questions, EXAMPLES)
        ]
        prompt = self.annotator.prompt if self.writes_text else _own_prompt
        return [len(tokenizer(prompt(item)).input_ids) for item in examples]

    def require_room(self) -> None:
        """Check that prompts leave room for a text in the teacher's context.

        Raises:
            UserError: not one of some questions does.
        """
        if not self.writes_text:
            return
        from firstcli.stages.inputs import context

        longest, shortest = context(self.run, "teacher"), min(self._prompt_lengths)
        if shortest >= longest:
            raise UserError(
                f"annotator '{self.ref.name}': the shortest of its first {EXAMPLES} prompts has "
                f"{shortest:,} tokens, which leaves no room for a text in the teacher's context of "
                f"{longest:,}; shorten its option `template`, or use a teacher with a longer "
                "context"
            )

    def learned(self, annotations: Iterable[Annotation], arm: Arm) -> list[Sample]:
        """Return what a student learns of annotations, with ids that no other sample has.

        Args:
            annotations: what was bought.
            arm: the student's arm.
        """
        samples = (self._learned(annotation, arm) for annotation in annotations)
        return [replace(sample, id=f"{POOL_ID}{sample.id}") for sample in samples]

    def _learned(self, annotation: Annotation, arm: Arm) -> Sample:
        question = self.pool.question(annotation.id)
        if annotation.question is not None:
            question = replace(question, prompt=annotation.question)
        if annotation.distribution is not None and arm.learn == "knowledge":
            return question  # without a label, so that the teacher's probabilities are learned
        if self.form is not None:
            sample = with_answer(question, annotation.steps, annotation.answer, self.form)
            assert sample is not None, "the answer is one of the choices"
            return sample
        if question.candidates:
            place = choices_of(question, None).index(annotation.answer)
            return replace(question, answer=place, response=question.candidates[place])
        space = "" if question.prompt[-1:].isspace() else " "
        return replace(question, response=space + annotation.answer)


def _own_prompt(item: ToAnnotate) -> str:
    return item.sample.prompt


def spent_on(outcome: AnnotationOutcome) -> Spent:
    """Return what annotations have cost, those that failed included."""
    return Spent(len(outcome.annotations), outcome.tokens_read, outcome.tokens_written)
