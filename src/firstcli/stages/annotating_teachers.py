"""The teacher of a run as an annotator's teacher: a model in memory, or one behind a server."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from firstcli.api import CandidateQuery, RemoteText, Sample, TextQuery, UserError
from firstcli.data.encoding import EncodedQuestion, encode_questions
from firstcli.models import inference, readout
from firstcli.models.answers import EVALUATION_TOKENS, candidate_log_probs
from firstcli.models.batching import HalvingBatches
from firstcli.models.generation import Sampler, text_after
from firstcli.plugins.annotators import CheckedAnnotator
from firstcli.runtime import distributed
from firstcli.stages import chat, fingerprints, inputs, remote, role_models
from firstcli.stages.annotating import (
    AnnotatingTeacher,
    AnnotationOrder,
    AnnotationOutcome,
    TeacherScores,
    TeacherText,
    TextRequest,
    annotate,
    needs_text,
)
from firstcli.stages.finetune import FINETUNE
from firstcli.stages.writing import BATCH_SIZE, EncodedPrompt, each_batch, ends_of
from firstcli.workspace.artifacts import fingerprint
from firstcli.workspace.run import Run

CACHE = ".annotations"
"""Folder of the caches, in the run folder."""
WHERE = "the annotator's questions"
"""What begins messages about tokens."""


def annotated(run: Run, order: AnnotationOrder, title: str) -> AnnotationOutcome:
    """Let the teacher of a run annotate questions; every process gets the result of the first.

    Args:
        run: the run; its teacher is up to date.
        order: the questions and the annotator.
        title: what is being done, for progress.

    Raises:
        UserError: too many questions cannot be annotated, or the teacher cannot be asked.
    """
    for item in order.items:
        require_able(run, order.annotator, item.sample)

    def work() -> AnnotationOutcome:
        teacher = _LazyTeacher(run)
        with run.console.progress(title, len(order.items), "questions") as advance:
            return annotate(order, teacher, cache_of(run), advance)

    return distributed.by_first(work)


def require_able(run: Run, annotator: CheckedAnnotator, question: Sample) -> None:
    """Check that the teacher of a run can do what an annotator needs for a question.

    Raises:
        UserError: it cannot.
    """
    if not (annotator.generates or annotator.scores_candidates):
        return
    name = annotator.plugin.name
    if run.recipe.teacher is None:
        raise UserError(f"annotator '{name}': it asks a teacher; add the section `teacher`")
    if not annotator.generates and not question.candidates:
        raise UserError(
            f"annotator '{name}': it needs candidates, and question '{question.id}' has none; use "
            "'explain'"
        )
    family = role_models.remote(run, "teacher")
    if needs_text(annotator, question) and family is not None and not family.writes_text:
        section = run.model_section("teacher")
        raise UserError(
            f"annotator '{name}': the teacher must write text, but a teacher of the family "
            f"'{section.family}' only returns probabilities; use the annotator 'answer' for "
            "questions with candidates, or a different teacher"
        )


def cache_of(run: Run) -> Path:
    """Return the folder of what the teacher of a run has said to annotators."""
    if run.recipe.teacher is None:  # of annotators that ask none, nothing is kept
        return run.folder / CACHE / "no-teacher"
    contents = " ".join(run.manifests[key].content for key in FINETUNE.teacher_keys(run.recipe))
    depends_on = fingerprints.predictions(run, "teacher")
    depends_on["teacher"] = contents or run.checkpoint_identity("teacher")
    return run.folder / CACHE / fingerprint(fingerprints.as_text(depends_on))[:16]


class _LazyTeacher:
    """Loads the teacher, or connects to it, when it is first needed."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._teacher: AnnotatingTeacher | None = None

    @property
    def _own(self) -> AnnotatingTeacher:
        if self._teacher is None:
            is_remote = role_models.remote(self._run, "teacher") is not None
            self._teacher = RemoteTeacher(self._run) if is_remote else LocalTeacher(self._run)
        return self._teacher

    def write(
        self, requests: Sequence[TextRequest], known: Container[str]
    ) -> Iterator[list[TeacherText]]:
        return self._own.write(requests, known)

    def score(
        self, questions: Sequence[tuple[str, Sample]], known: Container[str]
    ) -> Iterator[list[TeacherScores]]:
        return self._own.score(questions, known)


def _encoded_prompts(run: Run, requests: Sequence[TextRequest]) -> list[EncodedPrompt]:
    """Encode each prompt once, as the teacher reads it; those that leave most room come first.

    Prompts that leave no room are left out.
    """
    unique = {each.digest: each for each in requests}
    samples = [Sample(each.prompt, "", id=digest) for digest, each in unique.items()]
    longest, encoded = inputs.context(run, "teacher"), []
    for joint in chat.encoding(run, "teacher", WHERE).encoder(samples):
        digest = str(joint.sample.id)
        room = int(min(unique[digest].settings.max_new_tokens, longest - len(joint.prompt)))
        if joint.prompt and room > 0:
            encoded.append(EncodedPrompt(digest, joint.prompt, room))
    return sorted(encoded, key=lambda each: (-each.room, -len(each.input_ids), each.digest))


def _questions(run: Run, questions: Sequence[tuple[str, Sample]]) -> list[EncodedQuestion]:
    """Encode questions; their ids are their digests.

    Raises:
        UserError: a question does not fit into the teacher's context, or cannot be encoded.
    """
    samples = [replace(sample, id=digest) for digest, sample in questions]
    encoded = encode_questions(samples, chat.encoding(run, "teacher", WHERE))
    longest = inputs.context(run, "teacher")
    names = {digest: sample.id for digest, sample in questions}
    for question in encoded:
        if len(question.input_ids) > longest:
            raise UserError(
                f"the question '{names[question.id]}' has {len(question.input_ids)} tokens, more "
                f"than the teacher's context of {longest:g}; leave it out"
            )
    return encoded


class LocalTeacher:
    """A model in memory. Batches depend on the requests alone, so that a rerun repeats them."""

    def __init__(self, run: Run) -> None:
        """Load the model.

        Raises:
            UserError: it cannot be loaded.
        """
        self._run = run
        self._model: PreTrainedModel = role_models.teacher(run)
        self._tokenizer = role_models.tokenizer(run, "teacher")
        self._reader = readout.Reader(self._model, run.console.say)
        self._halving = HalvingBatches(run.console.warn, WHERE)

    def write(
        self, requests: Sequence[TextRequest], known: Container[str]
    ) -> Iterator[list[TeacherText]]:
        """Yield the texts of each batch that has an unknown one."""
        by_digest, ends = {each.digest: each for each in requests}, ends_of(self._run)
        for batch in _batches(_encoded_prompts(self._run, requests)):
            if all(prompt.digest in known for prompt in batch):
                continue
            settings = by_digest[batch[0].digest].settings
            sampler = Sampler(settings.temperature, settings.top_p)

            def processors(part: Sequence[EncodedPrompt], sampler: Sampler = sampler) -> Any:
                return sampler.processors(
                    [f"{by_digest[prompt.digest].seed} {prompt.digest}" for prompt in part]
                )

            with torch.inference_mode():
                for part, ids in each_batch(self._model, batch, ends, processors):
                    yield [
                        self._text(prompt, new, ends) for prompt, new in zip(part, ids, strict=True)
                    ]

    def _text(self, prompt: EncodedPrompt, ids: list[int], ends: Sequence[int]) -> TeacherText:
        finished = bool(ids) and ids[-1] in ends
        text = text_after(self._tokenizer, prompt.input_ids, ids[:-1] if finished else ids)
        return TeacherText(prompt.digest, text, finished, len(prompt.input_ids), len(ids))

    def score(
        self, questions: Sequence[tuple[str, Sample]], known: Container[str]
    ) -> Iterator[list[TeacherScores]]:
        """Yield the scores of each batch that has unknown ones."""
        encoded = _questions(self._run, questions)
        lengths = [len(question.input_ids) for question in encoded]
        for places in inference.batches(lengths, EVALUATION_TOKENS):
            batch = [encoded[place] for place in places]
            if all(question.id in known for question in batch):
                continue
            with torch.inference_mode():
                found = self._halving.run(
                    batch, lambda part: candidate_log_probs(self._reader, part)
                )
            yield [
                TeacherScores(question.id, found[question.id], len(question.input_ids), 0)
                for question in batch
            ]


def _batches(prompts: Sequence[EncodedPrompt]) -> Iterator[list[EncodedPrompt]]:
    """Yield batches of prompts with the same room."""
    for _, group in groupby(prompts, key=lambda prompt: prompt.room):
        same_room = list(group)
        for start in range(0, len(same_room), BATCH_SIZE):
            yield same_room[start : start + BATCH_SIZE]


class RemoteTeacher:
    """A model behind a server; only what is unknown is asked for."""

    def __init__(self, run: Run) -> None:
        """Connect at the first question."""
        self._run = run
        self._scorer = remote.scorer(run)

    def write(
        self, requests: Sequence[TextRequest], known: Container[str]
    ) -> Iterator[list[TeacherText]]:
        """Yield every text as it comes."""
        by_digest = {each.digest: each for each in requests}
        prompts = [
            prompt for prompt in _encoded_prompts(self._run, requests) if prompt.digest not in known
        ]
        is_chat = chat.chat_format(self._run, "teacher") is not None
        system = self._run.stated_task().system if is_chat else None
        queries = [_text_query(prompt, by_digest[prompt.digest], system) for prompt in prompts]
        for index, answer in self._scorer.texts(queries):
            found = _checked_text(queries[index], answer)
            yield [
                TeacherText(
                    *(prompts[index].digest, found.text, found.finished),
                    *(found.input_tokens, found.output_tokens),
                )
            ]

    def score(
        self, questions: Sequence[tuple[str, Sample]], known: Container[str]
    ) -> Iterator[list[TeacherScores]]:
        """Yield every question's scores as they come.

        A question counts with its own tokens, as if a model in memory read it. A server may need
        several requests for it, but requests run side by side, so that their tokens cannot be
        told apart, and what is kept must not depend on chance.
        """
        encoded = _questions(self._run, [each for each in questions if each[0] not in known])
        queries = [
            CandidateQuery(
                question.id, question.input_ids.astype(np.int64), tuple(question.candidate_ids)
            )
            for question in encoded
        ]
        for index, log_probs in self._scorer.candidates(queries):
            query, values = queries[index], np.asarray(log_probs, np.float64).tolist()
            yield [TeacherScores(query.id, values, len(query.token_ids), 0)]


def _text_query(prompt: EncodedPrompt, request: TextRequest, system: str | None) -> TextQuery:
    seed = int.from_bytes(sha256(f"{request.seed} {prompt.digest}".encode()).digest()[:4], "little")
    settings = request.settings
    return TextQuery(
        request.id,
        request.prompt,
        np.array(prompt.input_ids, np.int64),
        settings.temperature,
        settings.top_p,
        prompt.room,
        seed % 2**31,
        system,
    )


def _checked_text(query: TextQuery, answer: RemoteText) -> RemoteText:
    """Return a server's text.

    Raises:
        UserError: it is malformed.
    """
    counts = (answer.input_tokens, answer.output_tokens)
    if not isinstance(answer.text, str) or not all(
        isinstance(count, int) and count >= 0 for count in counts
    ):
        raise UserError(
            f"sample '{query.id}': the teacher's server returned a text that cannot be read "
            f"({str(answer)[:100]}); correct the plugin of its family"
        )
    return answer
