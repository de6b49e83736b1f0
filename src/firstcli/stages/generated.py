"""Evaluate what models generate: an explanation of their own, and the answer that ends it.

Each question is continued `samples` times, with the most likely tokens or by sampling. Let E_j be
the j-th explanation, and a_j the answer that is read off its text. With candidates, the probability
of candidate c is

    probability:  1/n sum_j p(c | question, E_j), where p is that of c's token after E_j
    agreement:    the share of the a_j that are c (self-consistency, arXiv 2203.11171)

Without candidates, the answer is the most frequent of the a_j, and of equally frequent ones the
first. Its probability is the mean over the explanations of p(a_j | question, E_j), to which only
explanations with that answer contribute, or their share.

An explanation without a readable answer agrees with no free answer, and in equal parts with every
candidate. If no explanation of a question has one, the question counts as answered wrongly. With
candidates, its text still counts for `probability`: the sentence with the answer is put after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from firstcli.api import ExplainedText, ExplanationForm, FloatArray, Sample, same_answer
from firstcli.api.explanations import canonical_answer
from firstcli.data.encoding import EncodedQuestion, EncodedSample, encode_questions
from firstcli.data.reasoning import answer_sentences, final_answer
from firstcli.errors import UserError, shortened
from firstcli.metrics.records import EvalRecords
from firstcli.models import readout
from firstcli.models.answers import EVALUATION_TOKENS, candidate_log_probs
from firstcli.models.batching import run_batched
from firstcli.recipe.evaluations import GenerationSettings
from firstcli.stages import chat, inputs, role_models
from firstcli.stages.generated_texts import GeneratedQuestions, prompts_of, texts_of
from firstcli.stages.whole_candidates import response_log_probs
from firstcli.workspace.run import Run
from firstcli.workspace.units import Role, Unit

LEAST = 1e-6
"""Probability of what no explanation agrees with: a share of 0 says little about a small one."""


def questions_of(run: Run, unit: Unit) -> GeneratedQuestions:
    """Return the questions of an evaluation whose answers are generated."""
    name = unit.evaluation
    settings = run.generation(name)
    is_held_out = run.recipe.is_validation(name)
    task = run.training_task if is_held_out else run.evaluation_task(name)
    form = task.explanations
    assert settings and form
    where = f"evaluate '{name}' ({unit.role}'s tokenizer)"
    return GeneratedQuestions(
        run.evaluation_samples(name), form, settings, "" if is_held_out else name, where
    )


def held_out_questions(run: Run, unit: Unit, settings: GenerationSettings) -> GeneratedQuestions:
    """Return the validation questions that have an answer.

    Args:
        run: the run.
        unit: the unit whose model answers.
        settings: how it generates.

    Raises:
        UserError: there are none.
    """
    form = run.training_task.explanations
    assert form
    samples = [sample for sample in run.training.validation if sample.response]
    if not samples:
        raise UserError(
            f"train.validation: {run.recipe.train.validation} of the training split leaves no "
            "question to fit a post-hoc recalibrator on; raise it"
        )
    where = f"train.task (validation part, {unit.role}'s tokenizer)"
    return GeneratedQuestions(samples, form, settings, "", where)


def check(run: Run, role: Role, questions: GeneratedQuestions) -> str:
    """Check that every prompt leaves room for an explanation; return what is to be done.

    Answers are encoded after an empty explanation, so that their mistakes precede the generation.

    Raises:
        UserError: one does not, a model runs elsewhere, or an answer cannot be encoded.
    """
    settings = questions.settings
    if role_models.remote(run, role) is not None:
        advice = "set `answers: scored`" if questions.has_candidates else "choose another teacher"
        raise UserError(
            f"{questions.where}: a teacher that runs elsewhere generates no explanations; {advice}"
        )
    prompts = prompts_of(run, role, questions)
    if full := [prompt.id for prompt in prompts if prompt.room < 1]:
        raise UserError(
            f"{questions.where}: {len(full)} prompts, such as {shortened(full, 3)}, leave no room "
            f"for an answer in the context of {inputs.context(run, role):g} tokens; shorten them"
        )
    if settings.confidence == "probability":
        form = questions.form
        _encoded(
            *(run, role, questions),
            [
                _after(sample, "", form)
                if questions.has_candidates
                else _with_answer(sample, ExplainedText("", "1"), form)
                for sample in questions.samples
            ],
        )
    return (
        f"{len(prompts)} questions, {settings.samples} generated explanations each, up to "
        f"{settings.max_new_tokens} tokens"
    )


@torch.inference_mode()
def answered(run: Run, unit: Unit, questions: GeneratedQuestions) -> EvalRecords:
    """Let a model answer; every process returns all records."""
    model = role_models.model(run, unit.model)
    texts = texts_of(run, unit, questions, model)
    reader = readout.Reader(model, run.console.say)
    if questions.has_candidates:
        return _of_candidates(run, unit, questions, texts, reader)
    return _of_free_answers(run, unit, questions, texts, reader)


def _of_candidates(
    run: Run,
    unit: Unit,
    questions: GeneratedQuestions,
    texts: dict[str, list[ExplainedText]],
    reader: readout.Reader,
) -> EvalRecords:
    if questions.settings.confidence == "agreement":
        rows = [
            _votes(sample, questions.form, texts[str(sample.id)]) for sample in questions.samples
        ]
    else:
        rows = _probabilities(run, unit, questions, texts, reader)
    return EvalRecords.from_log_probs(
        ids=[str(sample.id) for sample in questions.samples],
        answers=[-1 if s.answer is None else s.answer for s in questions.samples],
        log_probs=rows,
        groups=[sample.group for sample in questions.samples],
    )


def _votes(sample: Sample, form: ExplanationForm, texts: Sequence[ExplainedText]) -> FloatArray:
    """Return the logarithm of the share of explanations that end with each candidate, (C,).

    The shares sum to 1: an explanation that ends with no candidate counts for all of them, in equal
    parts. If all do, no candidate is the model's answer, and the question must count as answered
    wrongly: the right candidate gets a trace less than the others.
    """
    names = [
        canonical_answer(form.read(sentence).answer or "")
        for sentence in answer_sentences(sample, form)
    ]
    read = Counter(canonical_answer(text.answer) for text in texts if text.answer is not None)
    found = np.array([read[name] for name in names])
    shares = (found + max(0, len(texts) - found.sum()) / len(names)) / len(texts)
    if not found.any() and sample.answer is not None:
        shares[sample.answer] *= 1 - LEAST
    shares = np.maximum(shares, LEAST)
    return np.asarray(np.log(shares / shares.sum()))


def _probabilities(
    run: Run,
    unit: Unit,
    questions: GeneratedQuestions,
    texts: dict[str, list[ExplainedText]],
    reader: readout.Reader,
) -> list[FloatArray]:
    """Return the log-probability of each candidate, averaged over the explanations: rows (C,)."""
    form = questions.form

    def after(explanation: str, sample: Sample, number: int) -> Sample:
        return replace(_after(sample, explanation, form), id=f"{sample.id} {number}")

    explained = [
        (text.explanation, partial(after, sample=sample, number=number))
        for sample in questions.samples
        for number, text in enumerate(texts[str(sample.id)])
    ]
    encoded = _fitting(run, unit.role, questions, explained)
    lengths = np.array([len(question.input_ids) for question in encoded], np.int64)
    score = partial(candidate_log_probs, reader)
    scores = run_batched(
        run.console, unit.key, "answers", encoded, lengths, EVALUATION_TOKENS, score
    )
    count = questions.settings.samples
    rows = [
        np.array([scores[f"{sample.id} {number}"] for number in range(count)])  # (n, C)
        for sample in questions.samples
    ]
    return [np.logaddexp.reduce(row, axis=0) - np.log(count) for row in rows]


def _after(sample: Sample, explanation: str, form: ExplanationForm) -> Sample:
    """Return a question whose candidates follow a generated explanation."""
    prefix = form.prefix([explanation] if explanation else [])
    candidates = tuple(prefix + sentence for sentence in answer_sentences(sample, form))
    response = "" if sample.answer is None else candidates[sample.answer]
    return replace(sample, candidates=candidates, response=response, steps=())


def _with_answer(sample: Sample, text: ExplainedText, form: ExplanationForm) -> Sample:
    """Return a question with two candidates: a generated answer after its explanation, and another.

    They differ in the first token of the answer, which is thus found.
    """
    answer = text.answer or ""
    prefix = form.prefix([text.explanation] if text.explanation else [])
    other = "?" if not answer.startswith("?") else "!"
    answers = tuple(prefix + form.sentence(each) for each in (answer, other))
    pair = Sample.question(sample.prompt, answers, 0, id=sample.id)
    return replace(pair, teacher_prompt=sample.teacher_prompt)


def _fitting(
    run: Run,
    role: Role,
    questions: GeneratedQuestions,
    explained: Sequence[tuple[str, Callable[[str], Sample]]],
) -> list[EncodedQuestion]:
    """Encode questions; explanations that exceed the context lose their last words.

    Few do, because generation leaves room: those whose text has more tokens than were generated.

    Args:
        run: the run.
        role: the role of the model.
        questions: how the questions are encoded.
        explained: each explanation, and what makes the question with it or a shorter one.
    """
    encoded = _encoded(run, role, questions, [make(text) for text, make in explained])
    context = inputs.context(run, role)
    for index, (text, make) in enumerate(explained):
        while text and (over := int(max(0, _length(encoded[index]) - context))):
            text = text.rsplit(None, over)[0] if len(text.split()) > over else ""
            (encoded[index],) = _encoded(run, role, questions, [make(text)])
    return encoded


def _length(question: EncodedQuestion) -> int:
    """Return the tokens of a question with its longest candidate."""
    return question.start + max(map(len, question.candidates))


def _encoded(
    run: Run, role: Role, questions: GeneratedQuestions, samples: Sequence[Sample]
) -> list[EncodedQuestion]:
    """Encode questions; those without a right answer are only scored, so they may be mixed."""
    known = [
        sample if sample.answer is not None else replace(sample, answer=0) for sample in samples
    ]
    encoding = chat.encoding(run, role, questions.where, questions.evaluation)
    return encode_questions(known, encoding)


def _of_free_answers(
    run: Run,
    unit: Unit,
    questions: GeneratedQuestions,
    texts: dict[str, list[ExplainedText]],
    reader: readout.Reader,
) -> EvalRecords:
    """Return records whose two candidates are the model's answer and any other."""
    probabilities: dict[str, float] = {}
    if questions.settings.confidence == "probability":
        probabilities = _answer_probabilities(run, unit, questions, texts, reader)
    rows, answers = [], []
    for sample in questions.samples:
        found = texts[str(sample.id)]
        answer, numbers = chosen_answer([text.answer for text in found])
        chance = [probabilities.get(f"{sample.id} {number}", 1.0) for number in numbers]
        share = min(max(sum(chance) / len(found), LEAST), 1 - LEAST)
        rows.append(np.log([share, 1 - share]))
        gold = final_answer(sample, questions.form)
        right = answer is not None and gold is not None and same_answer(answer, gold)
        answers.append(-1 if gold is None else 0 if right else 1)
    return EvalRecords.from_log_probs(
        ids=[str(sample.id) for sample in questions.samples],
        answers=answers,
        log_probs=rows,
        groups=[sample.group for sample in questions.samples],
        prediction=[0] * len(rows),
    )


def chosen_answer(answers: Sequence[str | None]) -> tuple[str | None, list[int]]:
    """Return the most frequent answer, and which of the given ones are the same.

    Of equally frequent answers the first is returned; None if none can be read.
    """
    names = [None if answer is None else canonical_answer(answer) for answer in answers]
    counts = Counter(name for name in names if name is not None)
    if not counts:
        return None, []
    name = max(counts, key=lambda each: counts[each])  # a Counter keeps the order of insertion
    numbers = [number for number, each in enumerate(names) if each == name]
    return answers[numbers[0]], numbers


def _answer_probabilities(
    run: Run,
    unit: Unit,
    questions: GeneratedQuestions,
    texts: dict[str, list[ExplainedText]],
    reader: readout.Reader,
) -> dict[str, float]:
    """Return the probability of each generated answer after its explanation, by its id.

    Of the two candidates that are encoded, the second is never scored.
    """

    def after(explanation: str, sample: Sample, text: ExplainedText, number: int) -> Sample:
        said = replace(text, explanation=explanation)
        return replace(_with_answer(sample, said, questions.form), id=f"{sample.id} {number}")

    explained = [
        (text.explanation, partial(after, sample=sample, text=text, number=number))
        for sample in questions.samples
        for number, text in enumerate(texts[str(sample.id)])
        if text.answer is not None
    ]
    if not explained:
        return {}
    rows = [_answer_tokens(each) for each in _fitting(run, unit.role, questions, explained)]
    lengths = np.array([len(row.input_ids) for row in rows], np.int64)
    score = partial(response_log_probs, reader)
    sums = run_batched(run.console, unit.key, "answers", rows, lengths, EVALUATION_TOKENS, score)
    return {id: float(np.exp(value)) for id, value in sums.items()}


def _answer_tokens(question: EncodedQuestion) -> EncodedSample:
    """Return the first candidate, of which the tokens from the answer on are supervised."""
    tokens = np.array(question.candidates[0], np.int32)
    ids = np.concatenate([question.input_ids[: question.start], tokens])
    return EncodedSample(question.id, ids, len(question.input_ids), None)
