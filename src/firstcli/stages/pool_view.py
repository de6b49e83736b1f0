"""What a student says of the questions of a pool: what selectors read.

Questions are read in parts, so memory does not grow with the pool. Each question's result depends
neither on the part nor on the batch that it is read in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from typing import TypeVar

import numpy as np
import torch
from transformers import LogitsProcessorList, PreTrainedModel

from firstcli.api import (
    AnswerSampling,
    ExplanationForm,
    FloatArray,
    Pool,
    Sample,
    Thought,
    UserError,
)
from firstcli.api.explanations import canonical_answer
from firstcli.checkpoints.placement import input_device
from firstcli.data.encoding import Encoding, each_encoded
from firstcli.data.reasoning import with_steps
from firstcli.models import branches, inference, readout
from firstcli.models.answers import EVALUATION_TOKENS, target_log_probs
from firstcli.models.batching import free_memory, is_out_of_memory
from firstcli.models.branches import Generated
from firstcli.models.generation import GreedyLogProbs, Sampler, continuations
from firstcli.plugins.selectors import CheckedSelector
from firstcli.stages.answer_places import AnswerPlace, AnswerPlaces, distributions
from firstcli.stages.thought_texts import ReadThought, ThoughtReader

PART = 512
"""Questions that are read at a time."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ReadingSettings:
    """How a student is asked."""

    seed: int = 0
    """Seeds the sampled explanations."""
    max_new_tokens: int = 256
    """Tokens after which an explanation is cut off."""
    batch_size: int = 16
    """Questions that are answered at a time."""
    sampling: AnswerSampling = field(default_factory=AnswerSampling)
    """How explanations are sampled."""
    temperature: float = 1.0
    """Divides the logits of the tokens of a `Thought`, for a student with a fitted temperature."""


@dataclass(frozen=True, slots=True)
class _Question:
    """A question as tokens."""

    index: int
    """Its place among those that are read."""
    sample: Sample
    prompt: list[int]
    room: int
    """Tokens that an explanation may have."""


def without_label(sample: Sample, form: ExplanationForm | None) -> Sample:
    """Return a sample's question: without response, explanation, right answer and truth.

    Args:
        sample: the sample.
        form: how the task's responses are made; None if they are an answer alone.
    """
    bare = sample if form is None else with_steps(sample, (), form)
    return replace(bare, response="", answer=None, truth=None)


class PoolReader:
    """Reads what one student says of questions."""

    def __init__(
        self,
        model: PreTrainedModel,
        encoding: Encoding,
        form: ExplanationForm | None,
        settings: ReadingSettings,
        *,
        recalibrate: Callable[[FloatArray], FloatArray] | None = None,
        response_of: Callable[[Sample], str] | None = None,
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Try out whether the model's cache can be reused.

        Args:
            model: the student.
            encoding: how it reads questions.
            form: how responses are made of steps and answer; None if they are an answer alone.
            settings: how it is asked.
            recalibrate: corrects distributions over candidates, or over a free answer and any
                other, (R, n); None leaves them raw.
            response_of: returns the response of a question, for `losses`.
            notify: learns what makes reading slower.
        """
        self._model, self._encoding, self._form = model, encoding, form
        self._settings, self._recalibrate, self._response_of = settings, recalibrate, response_of
        self._reader = readout.Reader(model, notify)
        self._places = AnswerPlaces(encoding, form)
        chat = encoding.chat.end_id if encoding.chat else None
        eos = encoding.tokenizer.eos_token_id
        self._ends = list(dict.fromkeys(int(id) for id in (chat, eos) if id is not None))
        self._written = ThoughtReader(encoding.tokenizer, form, self._ends)
        fault = branches.fault(model, encoding.tokenizer)
        self._reuses = fault is None
        if fault:
            notify(
                f"{type(model).__name__}: answers after each step are read from whole texts, "
                f"because {fault}"
            )

    def parts(self, questions: Iterable[Sample], needs: Collection[str]) -> Iterator[Pool]:
        """Yield the pool part by part, in order.

        Args: as for `read`.
        """
        remaining = iter(questions)
        while part := list(islice(remaining, PART)):
            yield self.read(part, needs)

    @torch.inference_mode()
    def read(self, questions: Sequence[Sample], needs: Collection[str]) -> Pool:
        """Return the pool of some questions.

        Args:
            questions: questions with ids and without labels, see `without_label`.
            needs: the fields of `Pool` that are computed.

        Raises:
            UserError: a question leaves no room in the student's context, has no answer to be
                unsure of, or does not fit into memory; or there are no responses for `losses`.
        """
        for question in questions:
            if question.response or question.steps or question.answer is not None:
                raise ValueError(f"question '{question.id}' has a label")
        pool = Pool([str(question.id) for question in questions])
        encoded = self._encoded(questions)
        if {"answers", "thoughts"} & {*needs}:
            said = self._each(encoded, lambda batch: self._said(batch, "thoughts" in needs))
            self._require_finite(encoded, [thought.answers_after for thought in said])
            said = [
                replace(each, answers_after=self._recalibrated(question, each.answers_after))
                for question, each in zip(questions, said, strict=True)
            ]
            answers = [thought.answers_after[-1] for thought in said]
            pool = replace(
                pool,
                answers=answers if "answers" in needs else None,
                thoughts=said if "thoughts" in needs else None,
            )
        if "samples" in needs:
            pool = replace(pool, samples=self._samples(encoded))
        if "losses" in needs:
            losses = self._losses(questions)
            self._require_finite(encoded, list(losses))
            pool = replace(pool, losses=losses)
        if "embeddings" in needs:
            pool = replace(pool, embeddings=self._embeddings(encoded))
        return pool

    @torch.inference_mode()
    def embeddings(self, questions: Sequence[Sample]) -> FloatArray:
        """Return the last hidden state at the end of each question, (N, d): `Pool.annotated`."""
        return self._embeddings(self._encoded(questions))

    def _encoded(self, questions: Sequence[Sample]) -> list[_Question]:
        plain = [Sample(question.prompt, "", question.id) for question in questions]
        context, most = inference.context_length(self._model), self._settings.max_new_tokens
        encoded = []
        for index, joint in enumerate(self._places.encoder(plain)):
            count = len(joint.prompt)
            room = most if context is None else min(most, context - count)
            if not count or room < 1:
                what = f"has {count} tokens, which leave no room for an answer in the student's "
                raise UserError(
                    f"{self._encoding.where}: sample '{joint.sample.id}' "
                    + (f"{what}context of {context}" if count else "has no token")
                    + "; leave it out"
                )
            encoded.append(_Question(index, questions[index], joint.prompt, room))
        return encoded

    def _each(
        self,
        questions: Sequence[_Question],
        work: Callable[[Sequence[_Question]], Sequence[Result]],
    ) -> list[Result]:
        """Do some work batch by batch; return its results in the order of the questions.

        All questions of a batch have the same room, because a row of a batch cannot be stopped
        alone. A batch that does not fit into memory is halved.
        """
        results: dict[int, Result] = {}
        ordered = sorted(questions, key=lambda each: (-each.room, -len(each.prompt), each.index))
        size = self._settings.batch_size
        for _, group in groupby(ordered, key=lambda each: each.room):
            waiting = list(group)
            while waiting:
                batch = waiting[:size]
                found = _unless_out_of_memory(work, batch)
                if found is None:
                    size = len(batch) // 2
                    free_memory()
                    continue
                results |= {each.index: value for each, value in zip(batch, found, strict=True)}
                waiting = waiting[len(batch) :]
        return [results[index] for index in sorted(results)]

    def _said(self, batch: Sequence[_Question], every_step: bool) -> list[Thought]:
        """Return what the student says; without `every_step`, only its answer after all steps."""
        prompts, noted = [each.prompt for each in batch], GreedyLogProbs(self._settings.temperature)
        if self._form is None and not every_step:  # its answer follows the question
            text = Generated(prompts, [[] for _ in batch], None)
        else:
            text = branches.generated(
                self._model,
                prompts,
                batch[0].room,
                self._ends,
                LogitsProcessorList([noted]),
                keeps=self._reuses,
            )
        explained = [
            self._written(prompt, ids, every_step)
            for prompt, ids in zip(prompts, text.new, strict=True)
        ]
        places = self._places_of(batch, explained, every_step)
        answers = distributions(self._reader, text, places)
        log_probs = noted.rows([len(ids) for ids in text.new])
        return [
            Thought(
                text=each.text,
                log_probs=values,
                steps=each.tokens[: len(rows) - 1],
                answers_after=rows,
            )
            for each, values, rows in zip(explained, log_probs, answers, strict=True)
        ]

    def _recalibrated(self, question: Sample, rows: FloatArray) -> FloatArray:
        """Return corrected distributions of a question's answer, (R, n).

        What corrects free answers was fitted to two outcomes: the student's answer, and any other.
        So it corrects these two, and the ways to leave the answer keep their ratios.
        """
        if self._recalibrate is None:
            return rows
        if question.candidates:
            return self._recalibrate(rows)
        others = rows[:, 1:].sum(axis=1, keepdims=True)  # (R, 1)
        pair = self._recalibrate(np.hstack([1 - others, others]))
        even = np.full_like(rows[:, 1:], 1 / (rows.shape[1] - 1))
        shares = np.divide(rows[:, 1:], others, out=even, where=others > 0)
        return np.hstack([pair[:, :1], shares * pair[:, 1:]])

    def _require_finite(self, questions: Sequence[_Question], values: Sequence[FloatArray]) -> None:
        finite = [bool(np.isfinite(each).all()) for each in values]
        wrong = [each.sample.id for each, good in zip(questions, finite, strict=True) if not good]
        if wrong:
            raise UserError(
                f"the student's output is not finite for {len(wrong)} questions, such as "
                f"'{wrong[0]}'; check its weights, or try model.options.dtype: float32"
            )

    def _places_of(
        self, batch: Sequence[_Question], explained: Sequence[ReadThought], every_step: bool
    ) -> list[list[AnswerPlace]]:
        """Return the places of each question, as many as its context allows.

        Args:
            batch: the questions.
            explained: what the student wrote of each.
            every_step: whether answers after each step are needed, or only after all.
        """
        texts = [
            (each.sample, prefix, said.answer)
            for each, said in zip(batch, explained, strict=True)
            for prefix in _read_after(said, every_step)
        ]
        found = iter(self._places(texts))
        places = []
        for each, said in zip(batch, explained, strict=True):
            fitting = self._fitting(islice(found, len(_read_after(said, every_step))))
            if not fitting:  # not even after fewer steps, if only the last place was looked at
                every = [(each.sample, prefix, said.answer) for prefix in said.prefixes]
                fitting = self._fitting(self._places(every))[-1:]
            if not fitting:
                raise UserError(
                    f"{self._encoding.where}: sample '{each.sample.id}' leaves no room for an "
                    "answer in the student's context; leave it out"
                )
            places.append(fitting)
        return places

    def _fitting(self, places: Iterable[AnswerPlace]) -> list[AnswerPlace]:
        context = inference.context_length(self._model)
        return [place for place in places if context is None or place.length <= context]

    def _samples(self, questions: Sequence[_Question]) -> list[list[str]]:
        """Return the answers of sampled explanations; see `Pool.samples`."""
        how = self._settings.sampling
        sampler = Sampler(how.temperature, how.top_p)
        answers: list[list[str]] = [[] for _ in questions]
        for number in range(how.count):

            def answered(batch: Sequence[_Question], number: int = number) -> list[str]:
                seeds = [f"{self._settings.seed} {each.sample.id} {number}" for each in batch]
                prompts, chain = [each.prompt for each in batch], sampler.processors(seeds)
                new = continuations(self._model, prompts, batch[0].room, self._ends, chain)
                return [self._answer(*each) for each in zip(prompts, new, strict=True)]

            for row, answer in zip(answers, self._each(questions, answered), strict=True):
                row.append(answer)
        return answers

    def _answer(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """Return the answer that a text ends with; empty if there is none."""
        found = self._written(prompt, ids, with_places=False)
        return canonical_answer(found.text if self._form is None else found.answer or "")

    def _losses(self, questions: Sequence[Sample]) -> FloatArray:
        """Return the mean loss of each response given its question, and alone, (N, 2).

        The first token of a text without a token in front of it has no loss, and a text of which
        nothing has a loss has 0.
        """
        if self._response_of is None:
            raise UserError(
                "the selector needs the losses of responses, but the pool's questions have none; "
                "choose a different selector"
            )
        pairs = [(question, self._response_of(question)) for question in questions]
        given = [Sample(question.prompt, text, question.id) for question, text in pairs]
        alone = [Sample("", text, question.id) for question, text in pairs]
        return np.stack([self._mean_losses(given), self._mean_losses(alone)], 1)

    def _mean_losses(self, samples: Sequence[Sample]) -> FloatArray:
        rows = list(each_encoded(samples, replace(self._encoding, warnings=[])))
        losses = np.zeros(len(rows))
        scored = [index for index, row in enumerate(rows) if len(row.targets)]
        for chosen in inference.batches(
            [len(rows[i].input_ids) for i in scored], EVALUATION_TOKENS
        ):
            found = target_log_probs(self._reader, [rows[scored[place]] for place in chosen])
            for place in chosen:
                index = scored[place]
                losses[index] = -found[rows[index].id].mean()
        return losses

    def _embeddings(self, questions: Sequence[_Question]) -> FloatArray:
        states: list[FloatArray | None] = [None] * len(questions)
        lengths = [len(each.prompt) for each in questions]
        for chosen in inference.batches(lengths, EVALUATION_TOKENS):
            part = self._last_states([questions[i].prompt for i in chosen])
            for index, state in zip(chosen, part, strict=True):
                states[index] = state
        found = [state for state in states if state is not None]
        self._require_finite(questions, found)
        return np.stack(found)

    def _last_states(self, prompts: Sequence[Sequence[int]]) -> FloatArray:
        """Return what the output layer gets at the last token of each prompt, (B, d)."""
        device, head = input_device(self._model), self._model.get_output_embeddings()
        padded = inference.pad([np.asarray(prompt, np.int32) for prompt in prompts])
        rows = torch.arange(len(prompts), device=device)
        last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
        seen: list[torch.Tensor] = []

        def keep(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen.append(inputs[0][rows.to(inputs[0].device), last.to(inputs[0].device)])

        with head.register_forward_pre_hook(keep):
            self._reader.logits_at(
                padded.input_ids.to(device), padded.attention_mask.to(device), rows, last
            )
        return seen[0].float().cpu().numpy().astype(np.float64)


def _read_after(said: ReadThought, every_step: bool) -> Sequence[str]:
    """Return the texts after which the answer is read."""
    return said.prefixes if every_step else said.prefixes[-1:]


def _unless_out_of_memory(
    work: Callable[[Sequence[_Question]], Sequence[Result]], batch: Sequence[_Question]
) -> Sequence[Result] | None:
    """Return the results of a batch, or None if it does not fit.

    Raises:
        UserError: it is a single question.
    """
    try:
        return work(batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if len(batch) == 1:
            raise UserError(
                f"out of memory on question '{batch[0].sample.id}' alone; free memory, or choose "
                "a smaller dtype"
            ) from error
        return None


def joined(parts: Iterable[Pool]) -> Pool:
    """Return the pool of which all parts are given; they have the same fields."""
    every = list(parts)

    def items(values: Sequence[Sequence[Item] | None]) -> list[Item] | None:
        known = [value for value in values if value is not None]
        return [item for value in known for item in value] if known else None

    def rows(values: Sequence[FloatArray | None]) -> FloatArray | None:
        known = [value for value in values if value is not None]
        return np.concatenate(known) if known else None

    return Pool(
        ids=[id for part in every for id in part.ids],
        answers=items([part.answers for part in every]),
        thoughts=items([part.thoughts for part in every]),
        samples=items([part.samples for part in every]),
        losses=rows([part.losses for part in every]),
        embeddings=rows([part.embeddings for part in every]),
    )


def scored(
    reader: PoolReader,
    selector: CheckedSelector,
    questions: Iterable[Sample],
    seed: int,
    annotated: Sequence[Sample] = (),
) -> Iterator[tuple[Pool, FloatArray]]:
    """Yield the parts of a pool with the scores of their questions, (N,).

    A selector that compares questions gets the whole pool as one part.

    Args:
        reader: reads what the student says.
        selector: the selector.
        questions: the pool's questions.
        seed: the selector's seed.
        annotated: the questions that are annotated already.
    """
    parts = reader.parts(questions, selector.needs)
    known = reader.embeddings(annotated) if "embeddings" in selector.needs and annotated else None
    for part in [joined(parts)] if selector.whole_pool else parts:
        pool = replace(part, annotated=known)
        yield pool, selector.scores(pool, seed)
