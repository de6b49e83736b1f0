"""Encode samples as token ids, and find the supervised tokens and the answer position.

Prompt, response and EOS are encoded as one text, because many tokenizers give a separately encoded
response a different first token. The ids of the prompt alone must then be a prefix of the joint
encoding, because only the prompt is encoded when the model is used.

The answer position of a question is the first position at which its candidates' encodings differ.
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
CHUNK = 4096  # samples encoded at a time, because the offsets of a whole data set are large


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """A training sample as tokens; the targets are `input_ids[start:]`."""

    id: str
    input_ids: npt.NDArray[np.int32]  # (L,)
    start: int
    """Index of the first supervised token, at least 1; all later tokens are supervised too."""
    answer_position: int | None
    """Index of the token at which the candidates differ; None for instruction tasks."""

    @property
    def targets(self) -> npt.NDArray[np.int32]:
        return self.input_ids[self.start :]


@dataclass(frozen=True, slots=True)
class EncodedQuestion:
    """An evaluation sample as tokens: the candidates differ in the token after `input_ids`."""

    id: str
    input_ids: npt.NDArray[np.int32]  # (L,)
    candidate_ids: tuple[int, ...]
    answer: int | None
    """Index of the correct candidate; None if no candidate is correct."""
    truth: tuple[float, ...] | None


@dataclass(slots=True)
class _Affected:
    """The samples that a warning is about: their number and the first ids."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, id: str) -> None:
        self.count += 1
        if len(self.first) < 3:
            self.first.append(id)

    def __str__(self) -> str:
        return f"{self.count} samples, such as {shortened(self.first, 3, self.count)}"


def each_encoded(
    samples: Iterable[Sample], tokenizer: PreTrainedTokenizerBase, where: str, warnings: list[str]
) -> Iterator[EncodedSample]:
    """Encode samples for training, one by one.

    Args:
        samples: the samples, with ids.
        tokenizer: a fast tokenizer.
        where: the recipe's key, which begins every message.
        warnings: the list to which warnings are appended after the last sample.

    Raises:
        UserError: after the last sample: in a question, a token crosses the border between prompt
            and response, two candidates have the same token at the answer position, or no
            candidate is correct.
    """
    problems: list[str] = []
    crossing, special = _Affected(), _Affected()
    special_in_responses: dict[str, None] = {}  # an ordered set
    special_tokens = [token for token in tokenizer.all_special_tokens if token]
    for sample, prompt, joints in _encode(samples, tokenizer):
        ids, offsets = joints[sample.answer or 0]
        answer_position = None
        if sample.candidates:
            if sample.answer is None:
                problems.append(f"sample '{sample.id}': {_NOTHING_TO_LEARN}")
                continue
            choice = _choice(sample, prompt, [joint for joint, _ in joints], tokenizer)
            if isinstance(choice, str):
                problems.append(choice)
                continue
            answer_position = choice.position
        elif ids[: len(prompt)] != prompt:
            crossing.add(str(sample.id))
        # In prompts, special tokens are intended: they come from chat templates.
        if contained := [token for token in special_tokens if token in sample.response]:
            special.add(str(sample.id))
            special_in_responses |= dict.fromkeys(contained)
        start = _response_start(offsets, len(sample.prompt))
        yield EncodedSample(str(sample.id), np.asarray(ids, np.int32), start, answer_position)
    _raise(problems, where)
    if crossing.count:
        warnings.append(
            f"{where}: in {crossing}, a token crosses the border between prompt and response; it "
            "is trained as part of the response"
        )
    if special.count:
        warnings.append(
            f"{where}: the responses of {special}, contain "
            f"{shortened(list(special_in_responses))}, which the tokenizer encodes as a special "
            "token"
        )


def encode_questions(
    samples: Iterable[Sample], tokenizer: PreTrainedTokenizerBase, where: str
) -> list[EncodedQuestion]:
    """Encode samples for evaluation.

    Raises:
        UserError: a border or candidates as in `each_encoded`, a sample without candidates, or
            a mixture of questions with and without a correct candidate.
    """
    questions: list[EncodedQuestion] = []
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
        questions.append(
            EncodedQuestion(str(sample.id), shared, choice.tokens, sample.answer, sample.truth)
        )
    _raise(problems, where)
    without = [question.id for question in questions if question.answer is None]
    if 0 < len(without) < len(questions):
        raise UserError(
            f"{where}: {len(without)} of {len(questions)} questions, such as "
            f"{shortened(without, 3, len(without))}, have no correct candidate; evaluate them in a "
            "separate split"
        )
    return questions


_NOTHING_TO_LEARN = (
    "none of its candidates is correct, so there is nothing to learn from it; leave such questions "
    "out of the training split, or evaluate them in a separate split"
)

Joint = tuple[Ids, list[tuple[int, int]]]


def _encode(
    samples: Iterable[Sample], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Sample, Ids, list[Joint]]]:
    """Yield each sample with its prompt's ids and its responses' joint encodings, with EOS."""
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer {type(tokenizer).__name__} provides no character offsets; use a "
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
    # verbose=False: texts longer than the context are reported elsewhere.
    # Special tokens in a text are encoded as such, as a server that receives the prompt does.
    batch = tokenizer(
        texts, return_offsets_mapping=True, return_attention_mask=False, verbose=False
    )
    closing = _closing_tokens(tokenizer)
    return [
        (ids[: len(ids) - closing], offsets[: len(ids) - closing])
        for ids, offsets in zip(batch["input_ids"], batch["offset_mapping"], strict=True)
    ]


def _closing_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Count the tokens that a tokenizer appends to every text; after a prompt they are wrong."""
    offsets = tokenizer("a", return_offsets_mapping=True)["offset_mapping"]
    return next((i for i, (start, end) in enumerate(reversed(offsets)) if end > start), 0)


def _with_eos(joint: Joint, tokenizer: PreTrainedTokenizerBase) -> Joint:
    ids, offsets = joint
    if tokenizer.eos_token_id is None:
        return joint
    # EOS belongs to the response, even if the response is empty and the offsets end before it.
    return [*ids, int(tokenizer.eos_token_id)], [*offsets, (sys.maxsize, sys.maxsize)]


def _response_start(offsets: list[tuple[int, int]], border: int) -> int:
    """Return the first token that reaches beyond `border`; at least 1: token 0 has no context."""
    start = next((i for i, (_, end) in enumerate(offsets) if end > border), len(offsets))
    return max(start, 1)


class _Choice(NamedTuple):
    """The answer position, and each candidate's token there."""

    position: int
    tokens: tuple[int, ...]


def _choice(
    sample: Sample, prompt: Ids, joints: list[Ids], tokenizer: PreTrainedTokenizerBase
) -> _Choice | str:
    """Return the answer position, or a sentence that says why there is none."""
    for candidate, ids in zip(sample.candidates, joints, strict=True):
        if ids[: len(prompt)] != prompt:
            return _border_problem(sample, candidate, prompt, ids, tokenizer)
    position = len(prompt)
    last = min(len(ids) for ids in joints) - 1
    while position < last and len({ids[position] for ids in joints}) == 1:
        position += 1
    if position == 0:
        return f"sample '{sample.id}': no token precedes the candidates; give it a prompt"
    choice = _Choice(position, tuple(ids[position] for ids in joints))
    return _candidate_problem(sample, choice.tokens, tokenizer) or choice


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
        f"({shared}) where they should differ; let them begin with different words, or let the "
        "model answer with letters"
    )


def _border_problem(
    sample: Sample, response: str, prompt: Ids, ids: Ids, tokenizer: PreTrainedTokenizerBase
) -> str:
    pairs = enumerate(zip(prompt, ids, strict=False))
    first = next((i for i, (alone, joint) in pairs if alone != joint), len(ids))
    prompt_tokens = tokenizer.convert_ids_to_tokens(prompt[first : first + 2])
    joint_tokens = tokenizer.convert_ids_to_tokens(ids[first : first + 2])
    return (
        f"sample '{sample.id}': a token crosses the border between prompt and response (the "
        f"prompt alone ends in {prompt_tokens}, with the response it continues with "
        f"{joint_tokens}); move the border, for example from {sample.prompt[-9:]!r} + "
        f"{response[:9]!r} to {sample.prompt[-9:].rstrip()!r} + {' ' + response[:9].lstrip()!r}"
    )


def _raise(problems: list[str], where: str, shown: int = 3) -> None:
    if not problems:
        return
    more = f" ({len(problems)} such samples in all)" if len(problems) > shown else ""
    raise UserError(*(f"{where}: {problem}{more}" for problem in problems[:shown]))
