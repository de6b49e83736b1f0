"""Let an instruction student write, with the probability of each token (the paper's Table 2).

The text is greedy: always the most likely next token. The probabilities are read as in training and
evaluation, in one forward pass over prompt and text, from the softmax over the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from firstcli.api import Sample
from firstcli.data.encoding import EncodedSample
from firstcli.data.token_texts import token_texts
from firstcli.student.answering import built_prompts, too_long
from firstcli.student.model import LoadedModel
from firstcli.student.rows import windows
from firstcli.tasks.tables import TableRow

BATCH_SIZE = 16
"""Rows that are generated at a time."""


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """A token of a generated text."""

    text: str
    """Its part of the text; empty for a token that only the next one completes to a character."""
    probability: float
    """Its probability in the whole vocabulary, given all tokens before it."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A generated text."""

    text: str | None
    """The texts of all tokens; None where there is an error."""
    tokens: tuple[GeneratedToken, ...] = ()
    """The end-of-sequence token is left out."""
    finished: bool = False
    """Whether the student ended the text, and no limit cut it off."""
    error: str | None = None


def generated(
    loaded: LoadedModel, rows: Sequence[TableRow], max_new_tokens: int, batch_size: int | None
) -> list[Generation]:
    """Write a response to each row of a window; those that cannot be answered have an error each.

    Args:
        loaded: the student.
        rows: the rows.
        max_new_tokens: tokens after which a response is cut off.
        batch_size: rows per batch; None: 16.
    """
    import torch

    from firstcli.models.generation import Sampler, continuations

    errors: list[str | None] = [None] * len(rows)
    model, ends = loaded.reader.model, _ends(loaded)
    prompts = _encoded_prompts(loaded, rows, errors)
    responses: dict[int, Generation] = {}
    with torch.inference_mode():
        for batch, limit in _batches(prompts, loaded.context, max_new_tokens, batch_size):
            chosen = [prompts[number] for number in batch]
            ids = continuations(model, chosen, limit, ends, Sampler().processors(()))
            responses |= _scored(loaded, prompts, dict(zip(batch, ids, strict=True)))
    return [
        responses[number] if number in responses else Generation(None, error=errors[number])
        for number in range(len(rows))
    ]


def _encoded_prompts(
    loaded: LoadedModel, rows: Sequence[TableRow], errors: list[str | None]
) -> dict[int, list[int]]:
    """Return the tokens of each prompt; note in `errors` which have none or leave no room."""
    built = built_prompts(loaded, rows, errors)
    encoder = loaded.encoding("the row").encoder
    samples = [Sample(each.prompt, "", id=str(number)) for number, each in built.items()]
    prompts = {}
    for joint in encoder(samples):
        number, ids = int(joint.sample.id or 0), joint.prompt
        errors[number] = too_long(len(ids), loaded.context - 1)
        if not ids:
            errors[number] = "the prompt has no token"
        if errors[number] is None:
            prompts[number] = ids
    return prompts


def _batches(
    prompts: Mapping[int, Sequence[int]], context: float, most: int, batch_size: int | None
) -> Iterator[tuple[list[int], int]]:
    """Yield batches of rows with the same number of tokens to generate, the longest prompts first.

    A prompt near the end of the context leaves less room; it would cut off the others of its batch.
    """
    rooms = {number: int(min(most, context - len(ids))) for number, ids in prompts.items()}
    for room in sorted({*rooms.values()}):
        numbers = [number for number in prompts if rooms[number] == room]
        numbers.sort(key=lambda number: -len(prompts[number]))
        for batch in windows(numbers, batch_size or BATCH_SIZE):
            yield batch, room


def _ends(loaded: LoadedModel) -> list[int]:
    """Return the tokens at which the student stops: EOS, and what ends an answer in a chat."""
    in_chat = loaded.chat.end_id if loaded.chat else None
    ids = (in_chat, loaded.tokenizer.eos_token_id)
    return list(dict.fromkeys(int(id) for id in ids if id is not None))


def _scored(
    loaded: LoadedModel, prompts: Mapping[int, Sequence[int]], responses: Mapping[int, list[int]]
) -> dict[int, Generation]:
    """Read the probability of each generated token; return the generations by row."""
    from firstcli.models.answers import target_log_probs
    from firstcli.models.batching import HalvingBatches

    encoded = [
        EncodedSample(
            str(number),
            np.array([*prompts[number], *ids], np.int32),
            len(prompts[number]),
            None,
        )
        for number, ids in responses.items()
    ]
    halving = HalvingBatches(lambda _: None, "reading probabilities")
    log_probs = halving.run(encoded, lambda rows: target_log_probs(loaded.reader, rows))
    ends = _ends(loaded)
    generations = {}
    for number, ids in responses.items():
        finished = bool(ids) and ids[-1] in ends
        kept = ids[:-1] if finished else ids
        texts = token_texts(loaded.tokenizer, kept)
        probabilities = np.exp(log_probs[str(number)]).tolist()
        pairs = zip(texts, probabilities, strict=False)  # EOS has no text
        tokens = tuple(GeneratedToken(text, probability) for text, probability in pairs)
        generations[number] = Generation("".join(texts), tokens, finished)
    return generations
