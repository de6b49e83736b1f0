"""Samples as token ids: which tokens are supervised and which one decides between candidates.

Prompt, response and EOS are encoded as one text, because encoding the response apart changes its
first token in many tokenizers; the prompt's own ids must then be a prefix of the joint encoding,
for in use only the prompt is encoded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from firstcli.api import Sample
from firstcli.errors import UserError, shortened

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerBase

Ids = list[int]
CHUNK = 4096  # texts encoded at a time, so that offsets of a whole data set never lie in memory


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """One training sample as tokens; the targets are `input_ids[start:]`."""

    id: str
    input_ids: npt.NDArray[np.int32]  # (L,)
    start: int
    """Index of the first supervised token, at least 1; all later ones are supervised, too."""
    decisive: int | None
    """Index of the token that decides between the candidates; None for instruction tasks."""

    @property
    def targets(self) -> npt.NDArray[np.int32]:
        return self.input_ids[self.start :]


@dataclass(frozen=True, slots=True)
class Question:
    """One evaluation sample as tokens: the candidates differ in the token after `input_ids`."""

    id: str
    input_ids: npt.NDArray[np.int32]  # (L,)
    candidate_ids: tuple[int, ...]
    answer: int | None
    """Index of the right candidate; None where none is right."""
    truth: tuple[float, ...] | None


@dataclass(slots=True)
class _Found:
    """Ids of samples that have something in common: how many, and the first few."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, id: str) -> None:
        self.count += 1
        if len(self.first) < 3:
            self.first.append(id)

    def __str__(self) -> str:
        return f"{self.count} samples, such as {shortened(self.first, 3, self.count)}"


def encode_training(
    samples: Iterable[Sample], tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[list[EncodedSample], list[str]]:
    """Encode samples for training; returns them with warnings.

    Raises:
        UserError: a merge crosses a question's border, two candidates share their token, or no
            candidate is right.
    """
    warnings: list[str] = []
    return list(each_encoded(samples, tokenizer, where, warnings)), warnings


def each_encoded(
    samples: Iterable[Sample],
    tokenizer: PreTrainedTokenizerBase,
    where: str,
    warnings: list[str],
) -> Iterator[EncodedSample]:
    """Encode samples for training, one after another; warnings are added after the last one.

    Raises:
        UserError: as `encode_training`, after the last one.
    """
    problems: list[str] = []
    crossing, special = _Found(), _Found()
    written: dict[str, None] = {}
    names = [token for token in tokenizer.all_special_tokens if token]
    for sample, prompt, joints in _encode(samples, tokenizer):
        ids, offsets = joints[sample.answer or 0]
        decisive = None
        if sample.candidates:
            if sample.answer is None:
                problems.append(f"sample '{sample.id}': {_NOTHING_TO_LEARN}")
                continue
            choice = _choice(sample, prompt, [joint for joint, _ in joints], tokenizer)
            if isinstance(choice, str):
                problems.append(choice)
                continue
            decisive = choice.position
        elif not _is_prefix(prompt, ids):
            crossing.add(str(sample.id))
        # In prompts they are the chat templates' own.
        if responded := [name for name in names if name in sample.response]:
            special.add(str(sample.id))
            written |= dict.fromkeys(responded)
        start = _response_start(offsets, len(sample.prompt))
        yield EncodedSample(str(sample.id), np.asarray(ids, np.int32), start, decisive)
    _raise(problems, where)
    if crossing.count:
        warnings.append(
            f"{where}: in {crossing}, a token crosses the border between prompt and response; it "
            "is trained as part of the response"
        )
    if special.count:
        warnings.append(
            f"{where}: the responses of {special}, contain {shortened(list(written))}, which is "
            "read as the tokenizer's special token"
        )


def encode_questions(
    samples: Iterable[Sample], tokenizer: PreTrainedTokenizerBase, where: str
) -> list[Question]:
    """Encode samples for evaluation.

    Raises:
        UserError: as `encode_training`, a sample has no candidates, or only some of them have a
            right one.
    """
    rows: list[Question] = []
    problems: list[str] = []
    for sample, prompt, joints in _encode(samples, tokenizer):
        if not sample.candidates:
            raise UserError(f"{where}: sample '{sample.id}' has no candidates to choose among")
        ids = [joint for joint, _ in joints]
        choice = _choice(sample, prompt, ids, tokenizer)
        if isinstance(choice, str):
            problems.append(choice)
            continue
        shared = np.asarray(ids[0][: choice.position], np.int32)
        rows.append(Question(str(sample.id), shared, choice.tokens, sample.answer, sample.truth))
    _raise(problems, where)
    without = [row.id for row in rows if row.answer is None]
    if 0 < len(without) < len(rows):
        raise UserError(
            f"{where}: {len(without)} of {len(rows)} questions, such as "
            f"{shortened(without, 3, len(without))}, have no right candidate; evaluate them apart"
        )
    return rows


_NOTHING_TO_LEARN = (
    "none of its candidates is right, so there is nothing to learn from it; leave such questions "
    "out of the training split, or evaluate them in a split of their own"
)

Joint = tuple[Ids, list[tuple[int, int]]]


def _encode(
    samples: Iterable[Sample], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Sample, Ids, list[Joint]]]:
    """Yield each sample with its prompt's ids and its responses' joint encodings, EOS included."""
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer {type(tokenizer).__name__} gives no character offsets; use a "
            "checkpoint with a tokenizer.json"
        )
    remaining = iter(samples)
    while chunk := list(islice(remaining, CHUNK)):
        texts: list[str] = []
        for sample in chunk:
            texts.append(sample.prompt)
            texts += [sample.prompt + text for text in sample.candidates or (sample.response,)]
        encoded = iter(_encode_texts(texts, tokenizer))
        for sample in chunk:
            prompt, _ = next(encoded)
            joints = [next(encoded) for _ in sample.candidates or (sample.response,)]
            yield sample, prompt, [_with_eos(joint, tokenizer) for joint in joints]


def _encode_texts(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[Joint]:
    # verbose=False: a text longer than the context is our own error, named and counted elsewhere.
    # Special tokens in the text count as such, for a server that gets the prompt reads them so.
    batch = tokenizer(
        texts,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    closing = _closing_tokens(tokenizer)
    return [
        (ids[: len(ids) - closing], offsets[: len(ids) - closing])
        for ids, offsets in zip(batch["input_ids"], batch["offset_mapping"], strict=True)
    ]


def _closing_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Count the tokens that a tokenizer puts behind every text; a prompt has no end yet."""
    offsets = tokenizer("a", return_offsets_mapping=True)["offset_mapping"]
    return next((i for i, (start, end) in enumerate(reversed(offsets)) if end > start), 0)


def _with_eos(joint: Joint, tokenizer: PreTrainedTokenizerBase) -> Joint:
    ids, offsets = joint
    if tokenizer.eos_token_id is None:
        return joint
    # It belongs to the response, even where the offsets of an empty response end before it.
    return [*ids, int(tokenizer.eos_token_id)], [*offsets, (sys.maxsize, sys.maxsize)]


def _is_prefix(prompt: Ids, ids: Ids) -> bool:
    return ids[: len(prompt)] == prompt


def _response_start(offsets: list[tuple[int, int]], border: int) -> int:
    """Index of the first token with a character at or after `border`; the first has no past."""
    start = next((i for i, (_, end) in enumerate(offsets) if end > border), len(offsets))
    return max(start, 1)


class Choice(NamedTuple):
    """Where the candidates' encodings part, and each one's token there."""

    position: int
    tokens: tuple[int, ...]


def _choice(
    sample: Sample, prompt: Ids, joints: list[Ids], tokenizer: PreTrainedTokenizerBase
) -> Choice | str:
    """Return how a model chooses between the candidates, or what is wrong with them."""
    for candidate, ids in zip(sample.candidates, joints, strict=True):
        if not _is_prefix(prompt, ids):
            return _border_problem(sample, candidate, prompt, ids, tokenizer)
    choice = _decisive(prompt, joints)
    if choice.position == 0:
        return f"sample '{sample.id}': no token precedes the candidates; give it a prompt"
    return _candidate_problem(sample, choice.tokens, tokenizer) or choice


def _decisive(prompt: Ids, joints: list[Ids]) -> Choice:
    position = len(prompt)
    shortest = min(len(ids) for ids in joints)
    while position < shortest - 1 and len({ids[position] for ids in joints}) == 1:
        position += 1
    return Choice(position, tuple(ids[position] for ids in joints))


def _candidate_problem(
    sample: Sample, tokens: tuple[int, ...], tokenizer: PreTrainedTokenizerBase
) -> str | None:
    if len(set(tokens)) == len(tokens):
        return None
    shared = next(token for token in tokens if tokens.count(token) > 1)
    texts = [text for text, token in zip(sample.candidates, tokens, strict=True) if token == shared]
    piece = tokenizer.convert_ids_to_tokens(shared)
    return (
        f"sample '{sample.id}': the candidates {shortened(texts)} share the token {piece!r} "
        f"({shared}) where they should differ; word them with different beginnings, or let the "
        "model answer with letters"
    )


def _border_problem(
    sample: Sample,
    response: str,
    prompt: Ids,
    ids: Ids,
    tokenizer: PreTrainedTokenizerBase,
) -> str:
    at = next((i for i, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), len(ids))
    alone = tokenizer.convert_ids_to_tokens(prompt[at : at + 2])
    joint = tokenizer.convert_ids_to_tokens(ids[at : at + 2])
    return (
        f"sample '{sample.id}': a token crosses the border between prompt and response (the "
        f"prompt alone ends in {alone}, with the response it goes on with {joint}); move the "
        f"border, for example from {sample.prompt[-9:]!r} + {response[:9]!r} to "
        f"{sample.prompt[-9:].rstrip()!r} + {' ' + response[:9].lstrip()!r}"
    )


def _raise(problems: list[str], where: str, shown: int = 3) -> None:
    if not problems:
        return
    more = f" ({len(problems)} such samples in all)" if len(problems) > shown else ""
    raise UserError(*(f"{where}: {problem}{more}" for problem in problems[:shown]))
