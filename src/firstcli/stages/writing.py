"""The work of stage `respond`: generate responses, resumable and independent of the batches.

Every response is kept as soon as it is written. A killed run goes on where it stopped, and rows
that are added later cost only themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from firstcli.errors import UserError
from firstcli.models.batching import free_memory, is_out_of_memory
from firstcli.models.generation import Sampler, continuations, text_after
from firstcli.recipe.sections import Sampling
from firstcli.runtime import distributed
from firstcli.runtime.files import append_lines, write_text
from firstcli.stages import chat, inputs, role_models
from firstcli.stages.response_cache import (
    PromptsToWrite,
    cache_of,
    known_in,
    prompts_to_write,
)
from firstcli.workspace import responses
from firstcli.workspace.responses import Response, prompt_digest
from firstcli.workspace.run import Run
from firstcli.workspace.units import Unit

BATCH_SIZE = 16
"""Prompts that are answered at a time."""


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as tokens."""

    digest: str
    input_ids: list[int]
    room: int
    """Tokens that a response may have."""


@torch.inference_mode()
def write(run: Run, unit: Unit, folder: Path) -> dict[str, Any] | None:
    """Write all responses; return the fields of `RespondFacts`, in the first process only.

    Raises:
        UserError: students can learn none of the responses.
    """
    todo = prompts_to_write(run, unit)
    wanted = _written(run, unit, folder, todo)
    if wanted is None:
        return None
    return _facts(run, wanted) if unit.part == "written" else _facts_of_copies(todo, wanted)


def _written(
    run: Run, unit: Unit, folder: Path, todo: PromptsToWrite
) -> dict[str, Response] | None:
    """Write all texts; return them by digest, in the first process only."""
    prompts = _encoded(run, todo)
    cache = distributed.by_first(lambda: cache_of(run, unit))
    known = distributed.by_first(lambda: known_in(cache))
    missing = [prompt for prompt in prompts if prompt.room > 0 and prompt.digest not in known]
    if done := len(prompts) - len(missing):
        what = "responses" if unit.part != "copies" else "texts"
        run.console.say(f"{unit.key}: {done} of {len(prompts)} {what} need not be written again")
    distributed.by_first(lambda: cache.mkdir(parents=True, exist_ok=True))
    _write_missing(run, unit, missing, cache, todo.sampling)
    distributed.wait()
    if not distributed.is_first():
        return None
    known = known_in(cache)
    wanted = {prompt.digest: known[prompt.digest] for prompt in prompts if prompt.room > 0}
    write_text(folder / responses.FILE_NAME, responses.as_lines(wanted))
    return wanted


def _encoded(run: Run, todo: PromptsToWrite) -> list[EncodedPrompt]:
    """Encode each prompt once, as the teacher reads it; those that leave most room come first."""
    encoder = chat.encoding(run, "teacher", "train.task").encoder
    longest, most = inputs.shared_context(run), todo.sampling.max_new_tokens
    encoded: dict[str, EncodedPrompt] = {}
    for sample, joint in zip(todo.prompts, encoder(todo.prompts), strict=True):
        digest = todo.digest_of(sample)  # the encoder returns rendered samples
        room = int(min(most, longest - len(joint.prompt)))
        encoded[digest] = EncodedPrompt(digest, joint.prompt, room if joint.prompt else 0)
    return sorted(
        encoded.values(), key=lambda each: (-each.room, -len(each.input_ids), each.digest)
    )


def _write_missing(
    run: Run, unit: Unit, missing: Sequence[EncodedPrompt], cache: Path, sampling: Sampling
) -> None:
    """Generate responses and append them to the cache; each process writes some."""
    ours = missing[distributed.rank() :: distributed.count()]
    if not ours:
        return
    model, tokenizer = role_models.teacher(run), role_models.tokenizer(run, "teacher")
    ends = ends_of(run)
    sampler = Sampler(sampling.temperature, sampling.top_p, sampling.top_k)
    path = cache / f"{distributed.rank()}.jsonl"

    def processors(batch: Sequence[EncodedPrompt]) -> LogitsProcessorList:
        return sampler.processors([f"{run.recipe.seed} {prompt.digest}" for prompt in batch])

    with run.console.progress(unit.key, len(ours), "prompts") as advance:
        for batch, ids in each_batch(model, ours, ends, processors):
            written = {
                prompt.digest: _response(tokenizer, prompt, new, ends)
                for prompt, new in zip(batch, ids, strict=True)
            }
            append_lines(path, responses.as_lines(written))
            advance(len(batch))


def each_batch(
    model: PreTrainedModel,
    prompts: Sequence[EncodedPrompt],
    ends: Sequence[int],
    processors: Callable[[Sequence[EncodedPrompt]], LogitsProcessorList],
) -> Iterator[tuple[Sequence[EncodedPrompt], list[list[int]]]]:
    """Continue prompts batch by batch; yield the prompts of a batch and their new tokens.

    Args:
        model: a causal language model.
        prompts: the prompts; those with the same room stand together.
        ends: the tokens that end a text.
        processors: choose the tokens of a batch.

    Raises:
        UserError: a single prompt does not fit into memory.
    """
    size, start = BATCH_SIZE, 0
    while start < len(prompts):
        batch = _same_room(prompts[start : start + size])
        texts = [prompt.input_ids for prompt in batch]
        try:
            ids = continuations(model, texts, batch[0].room, ends, processors(batch))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise UserError(
                    f"out of memory on a prompt of {len(batch[0].input_ids)} tokens alone; free "
                    "memory, choose a smaller dtype, or lower max_new_tokens"
                ) from error
            size //= 2
            free_memory()
            continue
        yield batch, ids
        start += len(batch)


def _same_room(prompts: Sequence[EncodedPrompt]) -> Sequence[EncodedPrompt]:
    """Return the first prompts that leave as much room as the first one.

    A row of a batch cannot be stopped alone, and its model may not know longer texts.
    """
    return list(takewhile(lambda prompt: prompt.room == prompts[0].room, prompts))


def ends_of(run: Run) -> list[int]:
    """Return the tokens at which the teacher stops: what ends an answer in a chat, and EOS."""
    end, eos = chat.end_of(run, "teacher"), role_models.tokenizer(run, "teacher").eos_token_id
    ids = (end and end[1], eos)
    return list(dict.fromkeys(int(id) for id in ids if id is not None))


def _response(
    tokenizer: PreTrainedTokenizerBase, prompt: EncodedPrompt, ids: list[int], ends: Sequence[int]
) -> Response:
    """Return what the teacher wrote.

    Args:
        tokenizer: the teacher's.
        prompt: the prompt.
        ids: the new tokens.
        ends: the tokens that end a response.
    """
    finished = bool(ids) and ids[-1] in ends
    text = text_after(tokenizer, prompt.input_ids, ids[:-1] if finished else ids)
    return Response(prompt.digest, text, len(ids), finished)


def _facts_of_copies(todo: PromptsToWrite, known: dict[str, Response]) -> dict[str, Any]:
    """Count the texts for copies. Whether one can be used is for the augmenter to say."""
    found = [known.get(todo.digest_of(request)) for request in todo.prompts]
    texts = [response for response in found if response is not None]
    counts = {"unfinished": 0, "empty": 0, "written": 0, "too_long": len(found) - len(texts)}
    for response in texts:
        counts[response.failure or "written"] += 1
    mean = sum(response.tokens for response in texts) / max(len(texts), 1)
    return {"prompts": len(found), "mean_tokens": mean, **counts}


def _facts(run: Run, known: dict[str, Response]) -> dict[str, Any]:
    """Count the samples by what became of their responses.

    Raises:
        UserError: students can learn none of them.
    """
    counts = {"written": 0, "unfinished": 0, "empty": 0, "too_long": 0}
    tokens = 0
    for sample in run.prompts:
        response = known.get(prompt_digest(sample.as_teacher.prompt))
        outcome = "too_long" if response is None else response.failure or "written"
        counts[outcome] += 1
        tokens += response.tokens if response and outcome == "written" else 0
    if not counts["written"]:
        raise UserError(
            f"knowledge.responses: students can learn none of the teacher's responses to "
            f"{len(run.prompts)} prompts: {counts['unfinished']} reached the limit of "
            f"{run.recipe.knowledge.sampler.max_new_tokens} tokens, {counts['empty']} are empty, "
            f"{counts['too_long']} prompts leave no room; raise "
            "knowledge.sampling.max_new_tokens, or use a teacher that ends its responses"
        )
    lost = len(run.prompts) - counts["written"]
    if lost > len(run.prompts) / 2:
        run.console.warn(
            f"knowledge.responses: students learn only {counts['written']} of {len(run.prompts)} "
            f"responses; {counts['unfinished']} reached knowledge.sampling.max_new_tokens"
        )
    mean = tokens / counts["written"]
    return {"prompts": len(run.prompts), "mean_tokens": mean, **counts}
