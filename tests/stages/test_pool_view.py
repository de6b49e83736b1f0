"""What a student says of a pool equals naive float64 readings, in any batches."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from conftest import MakeLlama
from firstcli import plugins
from firstcli.api import AnswerSampling, ExplanationForm, FloatArray, Pool, Sample, UserError
from firstcli.data.encoding import Encoding
from firstcli.data.token_texts import tokens_of
from firstcli.models import branches
from firstcli.plugins import selectors
from firstcli.stages import pool_view
from firstcli.stages.pool_view import (
    PoolReader,
    ReadingSettings,
    joined,
    scored,
    without_label,
)

FORM = ExplanationForm()
DIGITS = ("1", "2", "3")
EXPLAINED = [
    # question, steps, answer; None: the student does not answer
    ("water", ["The water is wet. Wet is no fire."], "1"),  # two sentences, one line
    ("fire", ["The fire is dry."], "2"),
    ("answer", [], "3"),
    ("passage", ["Is the passage true?", "The passage is water.", "The water is green."], "2"),
    ("green", ["The green is a choice."], None),
]


def sample_of(word: str, steps: Sequence[str], answer: str | None, *, free: bool) -> Sample:
    """A sample with its label; the last question's label is not what the student says."""
    prefix, prompt = FORM.prefix(steps), f"Q: What is {word}?\nA:"
    response = prefix + FORM.sentence(answer or "1")
    if free:
        return Sample(prompt, response, word, steps=tuple(steps))
    candidates = tuple(prefix + FORM.sentence(digit) for digit in DIGITS)
    right = DIGITS.index(answer or "1")
    return Sample(prompt, response, word, candidates, right, steps=tuple(steps))


def questions(*, free: bool = False) -> list[Sample]:
    samples = [sample_of(*each, free=free) for each in EXPLAINED]
    return [without_label(sample, FORM) for sample in samples]


@dataclass(frozen=True)
class Student:
    """A student that has memorised the explanations above."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast

    def reader(self, form: ExplanationForm | None = FORM, **settings: Any) -> PoolReader:
        extras = {
            key: settings.pop(key)
            for key in ("recalibrate", "response_of", "notify")
            if key in settings
        }
        given = ReadingSettings(**{"max_new_tokens": 60, **settings})
        return PoolReader(self.model, Encoding(self.tokenizer, "the pool"), form, given, **extras)


@pytest.fixture(scope="module", params=["byte_tokenizer", "piece_tokenizer"])
def student(request: pytest.FixtureRequest, make_llama: MakeLlama) -> Student:
    tokenizer = request.getfixturevalue(request.param)
    model = make_llama(len(tokenizer), hidden_size=48, max_position_embeddings=128)
    rows = []
    for word, steps, answer in EXPLAINED:
        end = FORM.sentence(answer) if answer else "No."
        text = f"Q: What is {word}?\nA:{FORM.prefix(steps)}{end}"
        rows.append(torch.tensor([*tokenizer(text)["input_ids"], tokenizer.eos_token_id]))
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    model.train()
    for _ in range(150):
        loss = model(ids.clamp(min=0), attention_mask=(ids >= 0).long(), labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return Student(model, tokenizer)


# The naive reading: one text at a time, in plain loops.


@torch.no_grad()
def log_probs_after(student: Student, ids: Sequence[int], temperature: float = 1.0) -> FloatArray:
    """Return the log-probabilities of all tokens after each token of a text, (L, V)."""
    logits = student.model(torch.tensor([list(ids)]), use_cache=False).logits[0].double()
    values: FloatArray = (logits / temperature).log_softmax(-1).numpy()
    return values


def written(student: Student, prompt: str) -> tuple[list[int], list[int]]:
    prompt_ids = student.tokenizer(prompt)["input_ids"]
    new: list[int] = []
    while len(new) < 60 and (not new or new[-1] != student.tokenizer.eos_token_id):
        new.append(int(log_probs_after(student, [*prompt_ids, *new])[-1].argmax()))
    return prompt_ids, new


def naive_candidates(student: Student, before: str, texts: Sequence[str]) -> list[float]:
    """Return the distribution over texts at the first token in which they differ."""
    encoded = [student.tokenizer(before + text)["input_ids"] for text in texts]
    place = next(i for i in range(999) if len({ids[i] for ids in encoded}) > 1)
    values = log_probs_after(student, encoded[0][:place])[-1]
    weights = [np.exp(values[ids[place]]) for ids in encoded]
    return [weight / sum(weights) for weight in weights]


def naive_free(student: Student, before: str, answer: str, others: list[list[int]]) -> list[float]:
    """Return the distribution over an answer and the given tokens to leave it at."""
    ids = student.tokenizer(before + FORM.sentence(answer))["input_ids"]
    start = next(
        i
        for i, (a, b) in enumerate(
            zip(ids, student.tokenizer(before + FORM.sentence("#"))["input_ids"], strict=False)
        )
        if a != b
    )
    values, said = [], 1.0
    for i, leaving in zip(range(start, len(ids)), others, strict=True):
        after = np.exp(log_probs_after(student, ids[:i])[-1])
        values += [said * after[token] for token in leaving]
        values.append(said * (1 - after[ids[i]] - sum(after[token] for token in leaving)))
        said *= after[ids[i]]
    return [said, *values]


def naive_others(student: Student, before: str, answer: str) -> list[list[int]]:
    """Return the five likeliest other tokens at each token of an answer."""
    ids = student.tokenizer(before + FORM.sentence(answer))["input_ids"]
    other = student.tokenizer(before + FORM.sentence("#"))["input_ids"]
    start = next(i for i, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b)
    return [
        [int(t) for t in (-log_probs_after(student, ids[:i])[-1]).argsort() if t != ids[i]][:5]
        for i in range(start, len(ids))
    ]


def test_the_student_writes_its_explanations(student: Student) -> None:
    pool = student.reader().read(questions(), {"thoughts"})
    assert pool.answers is None and pool.samples is None
    for (word, steps, answer), thought in zip(EXPLAINED, pool.thoughts or (), strict=True):
        end = FORM.sentence(answer) if answer else "No."
        assert thought.text.strip() == (FORM.prefix(steps) + end).strip(), word
        # An explanation without an answer is read as steps to its end.
        assert len(thought.steps) == len(steps) + (answer is None)


def test_thoughts_equal_the_naive_ones(student: Student) -> None:
    pool = student.reader(batch_size=2).read(questions(), {"thoughts", "answers"})
    assert pool.thoughts and pool.answers
    for question, thought, answers in zip(questions(), pool.thoughts, pool.answers, strict=True):
        prompt, new = written(student, question.prompt)
        values = log_probs_after(student, [*prompt, *new])[len(prompt) - 1 : -1]
        chosen = np.take_along_axis(values, np.array(new)[:, None], 1)[:, 0]
        assert thought.log_probs == pytest.approx(chosen, abs=1e-5)
        steps = [
            line for line in thought.text.strip().splitlines() if not line.startswith("The answer")
        ]
        for (start, end), step in zip(thought.steps, steps, strict=True):
            assert str(student.tokenizer.decode(new[start:end])).strip() == step
        for count, row in enumerate(thought.answers_after):
            before = question.prompt + FORM.prefix(steps[:count])
            sentences = [FORM.sentence(digit) for digit in DIGITS]
            expected = naive_candidates(student, before, sentences)
            assert row == pytest.approx(expected, abs=1e-5)
        assert np.array_equal(answers, thought.answers_after[-1])
        assert len(thought.answers_after) == len(steps) + 1


def test_steps_on_one_line_are_read_as_the_student_wrote_them(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    reused: list[int] = []
    original = branches._run

    def noted(reader: Any, text: Any, some: Any, known: Any, read: Any) -> Any:
        reused.extend(known)
        return original(reader, text, some, known, read)

    reader = student.reader(form=ExplanationForm(step_rule="sentences"))
    monkeypatch.setattr(branches, "_run", noted)
    (question, *_) = questions()
    (thought,) = reader.read([question], {"thoughts"}).thoughts or ()
    own = [" ", " The water is wet.\n", " The water is wet. Wet is no fire.\n"]
    for text, row in zip(own, thought.answers_after, strict=True):
        sentences = [FORM.sentence(digit) for digit in DIGITS]
        expected = naive_candidates(student, question.prompt + text, sentences)
        assert row == pytest.approx(expected, abs=1e-5)
    prompt, new = written(student, question.prompt)
    steps = [str(student.tokenizer.decode(new[start:end])).strip() for start, end in thought.steps]
    assert steps == ["The water is wet.", "Wet is no fire."]
    # Only what follows the student's own text is new, or a token that holds a part of both.
    assert max(reused) >= len(prompt) + thought.steps[-1][1] - 1


def test_special_tokens_are_no_text_but_have_a_place(student: Student) -> None:
    tokenizer, read = student.tokenizer, student.reader()._written
    prompt = tokenizer("Q: What is fire?\nA:")["input_ids"]
    whole = tokenizer("Q: What is fire?\nA: The fire is dry.\nThe answer is 2.")["input_ids"]
    ids = whole[len(prompt) :]
    plain = read(prompt, [*ids, tokenizer.eos_token_id], True)
    mixed = read(prompt, [tokenizer.eos_token_id, *ids], True)
    assert plain.text == mixed.text == " The fire is dry.\nThe answer is 2."
    assert plain.prefixes == mixed.prefixes == (" ", " The fire is dry.\n")
    ((start, end),) = plain.tokens
    assert mixed.tokens == ((start + 1, end + 1),)
    assert read(prompt, ids, False).text == plain.text


def test_free_answers_equal_the_naive_ones(student: Student) -> None:
    many = questions(free=True)
    pool = student.reader().read(many, {"thoughts"})
    for (_, steps, answer), question, thought in zip(
        EXPLAINED, many, pool.thoughts or (), strict=True
    ):
        if answer is None:  # one token, and five others, and all the rest
            assert thought.answers_after.shape == (3, 7)
            assert thought.answers_after.sum(1) == pytest.approx(np.ones(3))
            assert thought.answers_after[-1, 0] >= thought.answers_after[-1, 1:6].max()
            continue
        others = naive_others(student, question.prompt + FORM.prefix(steps), answer)
        for count, row in enumerate(thought.answers_after):
            before = question.prompt + FORM.prefix(steps[:count])
            assert row == pytest.approx(naive_free(student, before, answer, others), abs=1e-5)
        assert thought.answers_after[-1, 0] > 0.8  # what it says is what it believes


ALL = {"thoughts", "answers", "samples", "embeddings", "losses"}


def assert_equal(left: Pool, right: Pool) -> None:
    assert left.ids == right.ids and left.samples == right.samples
    assert left.losses == pytest.approx(right.losses, abs=1e-5)
    assert left.embeddings == pytest.approx(right.embeddings, abs=1e-4)
    for mine, other in zip(left.thoughts or (), right.thoughts or (), strict=True):
        assert (mine.text, mine.steps) == (other.text, other.steps)
        assert mine.log_probs == pytest.approx(other.log_probs, abs=1e-5)
        assert mine.answers_after == pytest.approx(other.answers_after, abs=1e-5)


@pytest.mark.parametrize("free", [False, True])
def test_batches_padding_parts_order_and_the_cache_change_nothing(
    student: Student, monkeypatch: pytest.MonkeyPatch, free: bool
) -> None:
    sampling = AnswerSampling(2, 0.9)
    settings: dict[str, Any] = {
        "sampling": sampling,
        "response_of": lambda question: f" {question.id} is wet.",
    }
    many = questions(free=free)
    alone = [student.reader(batch_size=1, **settings).read([question], ALL) for question in many]
    expected = joined(alone)
    assert_equal(student.reader(batch_size=16, **settings).read(many, ALL), expected)
    backwards = student.reader(batch_size=3, **settings).read(many[::-1], ALL)
    assert_equal(backwards.rows(range(len(many))[::-1]), expected)
    monkeypatch.setattr(pool_view, "PART", 2)
    parts = list(student.reader(batch_size=2, **settings).parts(iter(many), ALL))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert_equal(joined(parts), expected)
    monkeypatch.setattr(branches, "fault", lambda *_: "it is a test")
    said: list[str] = []
    slow = student.reader(batch_size=2, notify=said.append, **settings)
    assert_equal(slow.read(many, ALL), expected)
    assert said == [
        "LlamaForCausalLM: answers after each step are read from whole texts, because it is a test"
    ]


def test_answers_alone_need_one_place_per_question(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = branches.log_probs

    def counted(reader: Any, text: Any, wanted: Any, ids: Any) -> Any:
        read.append(len(wanted))
        return original(reader, text, wanted, ids)

    monkeypatch.setattr(branches, "log_probs", counted)
    answers = student.reader().read(questions(), {"answers"}).answers
    assert read == [len(EXPLAINED)]
    both = student.reader().read(questions(), {"answers", "thoughts"})
    assert read[1] == sum(len(thought.steps) + 1 for thought in both.thoughts or ())
    for alone, together in zip(answers or (), both.answers or (), strict=True):
        assert alone == pytest.approx(together, abs=1e-6)


def test_a_task_without_explanations(student: Student) -> None:
    prompt = "Q: What is fire?\nA:"
    plain = [Sample(prompt, "", "a", (" yes", " no")), Sample("Q: What?", "", "b", (" no", " yes"))]
    pool = student.reader(form=None).read(plain, {"answers"})
    for question, row in zip(plain, pool.answers or (), strict=True):
        expected = naive_candidates(student, question.prompt, question.candidates)
        assert row == pytest.approx(expected, abs=1e-5)
    thoughts = student.reader(form=None).read(plain, {"thoughts"}).thoughts or ()
    assert [thought.steps for thought in thoughts] == [(), ()]
    assert [thought.answers_after.shape for thought in thoughts] == [(1, 2), (1, 2)]
    assert "The fire is dry." in thoughts[0].text


def test_probabilities_can_be_recalibrated(student: Student) -> None:
    def flatter(rows: FloatArray) -> FloatArray:
        roots: FloatArray = np.sqrt(rows)
        flat: FloatArray = roots / roots.sum(1, keepdims=True)
        return flat

    raw = student.reader().read(questions(), {"thoughts"})
    calm = student.reader(recalibrate=flatter, temperature=2.0)
    recalibrated = calm.read(questions(), {"thoughts", "answers"})
    pairs = zip(raw.thoughts or (), recalibrated.thoughts or (), strict=True)
    for index, (before, after) in enumerate(pairs):
        assert after.answers_after == pytest.approx(flatter(before.answers_after), abs=1e-12)
        assert np.array_equal((recalibrated.answers or ())[index], after.answers_after[-1])
        assert after.text == before.text
        prompt, new = written(student, questions()[index].prompt)
        values = log_probs_after(student, [*prompt, *new], 2.0)[len(prompt) - 1 : -1]
        chosen = np.take_along_axis(values, np.array(new)[:, None], 1)[:, 0]
        assert after.log_probs == pytest.approx(chosen, abs=1e-5)


def test_recalibrated_free_answers_have_two_outcomes(student: Student) -> None:
    def flatter(rows: FloatArray) -> FloatArray:
        assert rows.shape[1] == 2 and rows.sum(1) == pytest.approx(np.ones(len(rows)))
        roots: FloatArray = np.sqrt(rows)
        flat: FloatArray = roots / roots.sum(1, keepdims=True)
        return flat

    many = questions(free=True)
    raw = student.reader().read(many, {"thoughts"}).thoughts or ()
    calm = student.reader(recalibrate=flatter).read(many, {"thoughts"}).thoughts or ()
    for before, after in zip(raw, calm, strict=True):
        for mine, theirs in zip(before.answers_after, after.answers_after, strict=True):
            own, rest = mine[0] ** 0.5, (1 - mine[0]) ** 0.5
            assert theirs[0] == pytest.approx(own / (own + rest))
            assert theirs.sum() == pytest.approx(1)
            assert theirs[1:] * mine[1:].sum() == pytest.approx(mine[1:] * theirs[1:].sum())


def test_samples_are_seeded_and_equal_answers_are_equal_texts(student: Student) -> None:
    def samples(**settings: Any) -> Any:
        return student.reader(**settings).read(questions(), {"samples"}).samples

    cool = samples(sampling=AnswerSampling(3, 0.05))
    assert cool == [["1"] * 3, ["2"] * 3, ["3"] * 3, ["2"] * 3, [""] * 3]
    hot: dict[str, Any] = {"form": None, "max_new_tokens": 6, "sampling": AnswerSampling(3, 2.0)}
    whole = samples(seed=0, **hot)  # without a form, the whole text is the answer
    assert whole == samples(seed=0, **hot) != samples(seed=1, **hot)
    assert len({*whole[0]}) > 1


def test_losses_equal_the_naive_ones(student: Student) -> None:
    tokenizer = student.tokenizer
    texts = {"water": " The water is wet.", "fire": " The fire is green."}
    many = [question for question in questions() if question.id in texts]
    reader = student.reader(response_of=lambda question: texts[str(question.id)])
    losses = reader.read(many, {"losses"}).losses
    assert losses is not None
    for question, row in zip(many, losses, strict=True):
        response = texts[str(question.id)]
        start = len(tokenizer(question.prompt)["input_ids"])
        for text, first, found in (
            (question.prompt + response, start, row[0]),
            (response, 1, row[1]),
        ):
            ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
            values = log_probs_after(student, ids[:-1])[first - 1 :]
            expected = -np.mean([value[id] for value, id in zip(values, ids[first:], strict=True)])
            assert found == pytest.approx(expected, abs=1e-5)
    # The student has learned what the first says of water, but nothing without its question.
    assert losses[0, 0] < losses[0, 1]


def test_losses_need_responses(student: Student) -> None:
    with pytest.raises(UserError, match="the selector needs the losses of responses, but the poo"):
        student.reader().read(questions(), {"losses"})


def test_embeddings_are_the_last_hidden_states(student: Student) -> None:
    found = student.reader().read(questions(), {"embeddings"}).embeddings
    assert found is not None
    for question, row in zip(questions(), found, strict=True):
        ids = torch.tensor([student.tokenizer(question.prompt)["input_ids"]])
        with torch.no_grad():
            states = student.model(ids, output_hidden_states=True, use_cache=False).hidden_states
        assert row == pytest.approx(states[-1][0, -1].numpy(), abs=1e-4)
    assert np.array_equal(student.reader().embeddings(questions()), found)


def test_labels_are_refused(student: Student) -> None:
    labelled = sample_of(*EXPLAINED[0], free=False)
    for wrong in (
        labelled,
        replace(labelled, response="", steps=()),
        replace(labelled, answer=None),
    ):
        with pytest.raises(ValueError, match="question 'water' has a label"):
            student.reader().read([wrong], set())
    bare = without_label(labelled, FORM)
    assert (bare.response, bare.answer, bare.steps) == ("", None, ())
    assert bare.candidates == tuple(f" The answer is {digit}." for digit in DIGITS)


def test_bad_questions(student: Student) -> None:
    long = Sample("The water is wet. " * 60, "", "long", (" yes", " no"))
    with pytest.raises(UserError, match=r"the pool: sample 'long' has \d+ tokens, which leave no"):
        student.reader().read([long], {"answers"})
    free = Sample("Q: What is fire?\nA:", "", "free")
    with pytest.raises(UserError, match="sample 'free' has no candidates, and its task does not"):
        student.reader(form=None).read([free], {"answers"})


@pytest.mark.parametrize("needs", ["answers", "thoughts", "losses", "embeddings"])
def test_output_that_is_not_finite(student: Student, needs: str) -> None:
    broken = deepcopy(student.model)
    broken.model.norm.weight.data.fill_(torch.nan)
    reader = replace(student, model=broken).reader(response_of=lambda _: " The water is wet.")
    with pytest.raises(UserError, match="output is not finite for 5 questions, such as 'water'"):
        reader.read(questions(), {needs})


def test_output_that_is_not_finite_is_not_recalibrated(student: Student) -> None:
    def strict(rows: FloatArray) -> FloatArray:
        raise AssertionError

    broken = deepcopy(student.model)
    broken.model.norm.weight.data.fill_(torch.nan)
    reader = replace(student, model=broken).reader(recalibrate=strict)
    with pytest.raises(UserError, match="output is not finite for 5 questions, such as 'water'"):
        reader.read(questions(), {"thoughts"})


def test_an_explanation_that_fills_the_context_is_read_as_far_as_there_is_room(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = questions()[3]  # three steps
    pool = student.reader().read([question], {"thoughts"})
    assert pool.thoughts
    prompt, _ = written(student, question.prompt)
    # The explanation just fits, but not the sentence with the answer after it.
    (_, end) = pool.thoughts[0].steps[-1]
    monkeypatch.setattr(student.model.config, "max_position_embeddings", len(prompt) + end)
    cut = student.reader().read([question], {"thoughts", "answers"})
    assert cut.thoughts and cut.answers
    kept = cut.thoughts[0].answers_after
    assert 1 <= len(kept) < 4 and len(cut.thoughts[0].steps) == len(kept) - 1
    assert kept == pytest.approx(pool.thoughts[0].answers_after[: len(kept)], abs=1e-5)
    alone = student.reader().read([question], {"answers"})
    assert (alone.answers or ())[0] == pytest.approx(kept[-1], abs=1e-6)


def test_a_batch_that_does_not_fit_is_halved(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = student.reader().read(questions(), {"thoughts"})
    original = branches.generated
    sizes: list[int] = []

    def small(model: Any, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(model, prompts, *args, **kwargs)

    reader = student.reader(batch_size=5)
    monkeypatch.setattr(branches, "generated", small)
    found = reader.read(questions(), {"thoughts"})
    assert sizes == [5, 2, 2, 1]
    for mine, other in zip(found.thoughts or (), expected.thoughts or (), strict=True):
        assert mine.answers_after == pytest.approx(other.answers_after, abs=1e-5)

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(branches, "generated", full)
    with pytest.raises(UserError, match=r"out of memory on question '\w+' alone; free memory"):
        reader.read(questions(), {"thoughts"})


@pytest.mark.parametrize("name", [plugin.name for plugin in plugins.registered("selectors")])
def test_every_selector_scores_the_pool(student: Student, name: str) -> None:
    options = {"samples": 2} if "samples" in plugins.load("selectors", name).needs else {}
    selector = selectors.selector(name, plugins.load("selectors", name).Options(**options))
    reader = student.reader(
        sampling=selector.sampling, response_of=lambda question: f" The {question.id} is wet."
    )
    ((pool, scores),) = scored(reader, selector, questions(), 0, annotated=questions()[:1])
    assert len(scores) == len(pool) == len(EXPLAINED)
    chosen = selector.choose(scores, pool, 2, 0)
    assert len({*chosen}) == 2
    if name == "core-set":
        assert 0 not in chosen  # the annotated question is its own centre


def test_a_selector_of_the_whole_pool_gets_it_at_once(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_view, "PART", 2)
    cover = selectors.selector("core-set", plugins.load("selectors", "core-set").Options())
    margin = selectors.selector("margin", plugins.load("selectors", "margin").Options())
    reader = student.reader()
    assert [len(pool) for pool, _ in scored(reader, cover, questions(), 0)] == [5]
    assert [len(pool) for pool, _ in scored(reader, margin, questions(), 0)] == [2, 2, 1]


def test_the_tokens_of_steps() -> None:
    # "One.\nTwo." in tokens: "One", ".\n", "Tw", "", "o.", " end"
    tokens = [(0, 3), (3, 5), (5, 7), (7, 7), (7, 9), (9, 13)]
    assert tokens_of([(0, 4), (5, 9)], tokens) == ((0, 2), (2, 5))
    assert tokens_of([], tokens) == ()
    # A token that two steps share belongs to the first.
    assert tokens_of([(0, 4), (4, 7)], [(0, 2), (2, 6), (6, 7)]) == ((0, 2), (2, 3))
    assert tokens_of([(0, 4)], []) == ((0, 0),)
