"""Let a model explain questions in its own words: what it generates after each prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice

from transformers import PreTrainedModel

from firstcli.api import ExplainedText, ExplanationForm, Sample
from firstcli.data.reasoning import answer_sentences
from firstcli.data.splits import content_digest
from firstcli.errors import UserError
from firstcli.models.batching import free_memory, is_out_of_memory
from firstcli.models.generation import Sampler, continuations, written_text
from firstcli.recipe.evaluations import GenerationSettings
from firstcli.runtime import distributed
from firstcli.stages import chat, inputs
from firstcli.workspace.run import Run
from firstcli.workspace.units import Role, Unit

BATCH_SIZE = 64
"""Explanations that are generated at a time."""
SLACK = 8
"""Tokens that are left free because text may be encoded in more tokens than it was generated in."""


@dataclass(frozen=True, slots=True)
class GeneratedQuestions:
    """Questions to answer, and how."""

    samples: Sequence[Sample]
    form: ExplanationForm
    settings: GenerationSettings
    evaluation: str
    """The evaluation, whose chat template renders them; empty for training data."""
    where: str
    """The recipe's key, which begins messages."""

    @property
    def has_candidates(self) -> bool:
        """Whether there are candidates: all questions of a task have some, or none has."""
        return bool(self.samples[0].candidates)


@dataclass(frozen=True, slots=True)
class PromptToContinue:
    """A question's prompt in tokens, and how much may follow it."""

    id: str
    text: str
    input_ids: list[int]
    room: int
    """Tokens that a response may have, besides the sentence with a candidate."""


def prompts_of(run: Run, role: Role, questions: GeneratedQuestions) -> list[PromptToContinue]:
    """Return the prompt of each question; one with a room below 1 cannot be continued."""
    encoder = chat.encoding(run, role, questions.where, questions.evaluation).encoder
    bare = (
        Sample(sample.prompt, "", sample.id, teacher_prompt=sample.teacher_prompt)
        for sample in questions.samples
    )
    tokenizer = run.tokenizers.of(role)
    sentences = {
        sentence
        for sample in questions.samples
        if sample.candidates  # a free answer is a part of what is generated
        for sentence in answer_sentences(sample, questions.form)
    }
    longest = max((len(tokenizer(text).input_ids) for text in sentences), default=0)
    context = inputs.context(run, role) - longest - SLACK
    most = questions.settings.max_new_tokens
    return [
        PromptToContinue(str(joint.sample.id), sample.prompt, joint.prompt, room)
        for sample, joint in zip(questions.samples, encoder(bare), strict=True)
        for room in [int(min(most, context - len(joint.prompt)))]
    ]


def texts_of(
    run: Run, unit: Unit, questions: GeneratedQuestions, model: PreTrainedModel
) -> dict[str, list[ExplainedText]]:
    """Generate the explanations of each question, by its id; the same ones are generated once.

    Args:
        run: the run.
        unit: the unit whose model explains.
        questions: what is explained, and how it is generated.
        model: the model.
    """
    settings = replace(questions.settings, confidence="probability")
    rendered = chat.chat_format(run, unit.role, questions.evaluation)
    template = rendered.identity if rendered else ""
    key = ("explanations", unit.model, template, content_digest(questions.samples), settings)
    if key not in run.loaded:
        run.loaded[key] = _generated(run, unit, questions, model)
    texts: dict[str, list[str]] = run.loaded[key]  # type: ignore[assignment]
    read = questions.form.read
    return {id: [read(text) for text in generated] for id, generated in texts.items()}


def _generated(
    run: Run, unit: Unit, questions: GeneratedQuestions, model: PreTrainedModel
) -> dict[str, list[str]]:
    settings, tokenizer = questions.settings, run.tokenizers.of(unit.role)
    prompts = sorted(
        prompts_of(run, unit.role, questions), key=lambda each: (-each.room, -len(each.input_ids))
    )
    rows = [(prompt, number) for prompt in prompts for number in range(settings.samples)]
    ours, ends = rows[distributed.rank() :: distributed.count()], _ends(run, unit.role)
    sampler, seed = Sampler(settings.temperature), run.seed_of(unit)
    local: list[tuple[str, int, str]] = []
    title = f"{unit.key}, explanations"
    with run.console.progress(title, len(ours), "explanations") as advance:
        for batch in _batches(ours):
            seeds = [f"{seed} {prompt.text} {number}" for prompt, number in batch]
            ids = [prompt.input_ids for prompt, _ in batch]
            room = batch[0][0].room
            new = _continued(model, ids, room, ends, sampler, seeds)
            for (prompt, number), tokens in zip(batch, new, strict=True):
                text = written_text(tokenizer, prompt.input_ids, tokens, ends)
                local.append((prompt.id, number, text))
            advance(len(batch))
    found: dict[str, list[str]] = {prompt.id: [""] * settings.samples for prompt in prompts}
    for part in distributed.gathered(local):
        for id, number, text in part:
            found[id][number] = text
    return found


def _batches(
    rows: Sequence[tuple[PromptToContinue, int]],
) -> Iterator[Sequence[tuple[PromptToContinue, int]]]:
    """Yield rows with the same room, because a row of a batch cannot be stopped alone."""
    for _, alike in groupby(rows, key=lambda row: row[0].room):
        remaining = iter(alike)
        while batch := list(islice(remaining, BATCH_SIZE)):
            yield batch


def _continued(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    room: int,
    ends: Sequence[int],
    sampler: Sampler,
    seeds: Sequence[str],
) -> list[list[int]]:
    """Return the new tokens of each prompt; a batch that does not fit into memory is halved."""
    try:
        return continuations(model, prompts, room, ends, sampler.processors(seeds))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if len(prompts) == 1:
            raise UserError(
                f"out of memory on a prompt of {len(prompts[0])} tokens alone; free memory, choose "
                "a smaller dtype, or lower max_new_tokens"
            ) from error
    free_memory()
    half = len(prompts) // 2
    return [
        tokens
        for part in (slice(None, half), slice(half, None))
        for tokens in _continued(model, prompts[part], room, ends, sampler, seeds[part])
    ]


def _ends(run: Run, role: Role) -> list[int]:
    """Return the tokens at which a model stops: what ends its answers in a chat, and EOS."""
    end, eos = chat.end_of(run, role), run.tokenizers.of(role).eos_token_id
    ids = (end and end[1], eos)
    return list(dict.fromkeys(int(id) for id in ids if id is not None))
