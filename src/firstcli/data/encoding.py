"""Encode samples as token ids, and find the supervised tokens and the answer position.

Prompt, response and EOS are encoded as one text, because many tokenizers give a separately encoded
response a different first token. The ids of the prompt alone must then be a prefix of the joint
encoding, because only the prompt is encoded when the model is used.

The answer position of a question is the first position at which its candidates' encodings differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from firstcli.api import Sample
from firstcli.data.joint import Ids, JointEncoder, JointEncoding
from firstcli.errors import UserError, shortened

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerBase


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
    start: int
    """Index of the candidates' first token, at least 1: the length of the prompt."""
    candidates: tuple[tuple[int, ...], ...]
    """All tokens of each candidate, from `start` on. EOS is left out, except where it is the token
    in which a candidate differs from a longer one: whole candidates exclude one another."""
    answer: int | None
    """Index of the right candidate; None if no candidate is right."""
    truth: tuple[float, ...] | None


def each_encoded(
    samples: Iterable[Sample], tokenizer: PreTrainedTokenizerBase, where: str, warnings: list[str]
) -> Iterator[EncodedSample]:
    """Encode samples for training, one by one.

    Args:
        samples: the samples, with ids.
        tokenizer: a fast tokenizer.
        where: the recipe's key, which begins every message.
        warnings: the list to which warnings are appended after the last sample, without `where`.

    Raises:
        UserError: after the last sample: in a question, a token crosses the border between prompt
            and response, two candidates have the same token at the answer position, or no
            candidate is correct.
    """
    problems: list[str] = []
    crossing: list[str] = []
    special: list[str] = []
    special_in_responses: dict[str, None] = {}  # an ordered set
    special_tokens = [token for token in tokenizer.all_special_tokens if token]
    for joint in JointEncoder(tokenizer)(samples):
        sample, prompt = joint.sample, joint.prompt
        ids, _ = joint.responses[sample.answer or 0]
        answer_position = None
        if sample.candidates:
            try:
                _check_learnable(sample)
                answer_position, _ = _choice(joint, tokenizer)
            except UserError as error:
                problems += error.messages
                continue
        elif ids[: len(prompt)] != prompt:
            crossing.append(str(sample.id))
        # In prompts, special tokens are intended: they come from chat templates.
        if contained := [token for token in special_tokens if token in sample.response]:
            special.append(str(sample.id))
            special_in_responses |= dict.fromkeys(contained)
        yield EncodedSample(str(sample.id), np.asarray(ids, np.int32), joint.start, answer_position)
    _raise(problems, where)
    if crossing:
        warnings.append(
            f"in {len(crossing)} samples, such as {shortened(crossing, 3)}, a token "
            "crosses the border between prompt and response; it is trained as part of the response"
        )
    if special:
        warnings.append(
            f"the responses of {len(special)} samples, such as {shortened(special, 3)}, "
            f"contain {shortened(list(special_in_responses))}, which the tokenizer encodes as a "
            "special token"
        )


def encode_questions(
    samples: Iterable[Sample],
    tokenizer: PreTrainedTokenizerBase,
    where: str,
    warnings: list[str] | None = None,
) -> list[EncodedQuestion]:
    """Encode samples for evaluation.

    Args:
        samples: the samples, with ids.
        tokenizer: a fast tokenizer.
        where: the recipe's key, which begins every message.
        warnings: the list to which warnings are appended, without `where`.

    Raises:
        UserError: a border or candidates as in `each_encoded`, a sample without candidates, or
            a mixture of questions with and without a right answer.
    """
    questions: list[EncodedQuestion] = []
    problems: list[str] = []
    for joint in JointEncoder(tokenizer)(samples):
        sample = joint.sample
        if not sample.candidates:
            raise UserError(f"{where}: sample '{sample.id}' has no candidates to choose from")
        try:
            position, tokens = _choice(joint, tokenizer)
        except UserError as error:
            problems += error.messages
            continue
        start = max(len(joint.prompt), 1)
        candidates = tuple(
            tuple(ids[start : max(length, position + 1)]) for ids, length in joint.responses
        )
        questions.append(
            EncodedQuestion(
                id=str(sample.id),
                input_ids=np.asarray(joint.responses[0][0][:position], np.int32),
                candidate_ids=tokens,
                start=start,
                candidates=candidates,
                answer=sample.answer,
                truth=sample.truth,
            )
        )
    _raise(problems, where)
    without = [question.id for question in questions if question.answer is None]
    if 0 < len(without) < len(questions):
        raise UserError(
            f"{where}: {len(without)} of {len(questions)} questions, such as "
            f"{shortened(without, 3)}, have no right answer; evaluate them in a "
            "separate split"
        )
    return questions


def _check_learnable(sample: Sample) -> None:
    if sample.answer is None:
        raise UserError(
            f"sample '{sample.id}': none of its candidates is right, so there is nothing to learn "
            "from it; leave such questions out of the training split, or evaluate them in a "
            "separate split"
        )


def _choice(
    joint: JointEncoding, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, tuple[int, ...]]:
    """Return the answer position, and each candidate's token there.

    Raises:
        UserError: there is none; without the recipe's key.
    """
    sample, prompt = joint.sample, joint.prompt
    encodings = [ids for ids, _ in joint.responses]
    for candidate, ids in zip(sample.candidates, encodings, strict=True):
        if ids[: len(prompt)] != prompt:
            raise UserError(_border_problem(sample, candidate, prompt, ids, tokenizer))
    position = len(prompt)
    last = min(map(len, encodings)) - 1
    while position < last and len({ids[position] for ids in encodings}) == 1:
        position += 1
    if position == 0:
        raise UserError(f"sample '{sample.id}': no token precedes the candidates; give it a prompt")
    tokens = tuple(ids[position] for ids in encodings)
    if len(set(tokens)) < len(tokens):
        shared = next(token for token in tokens if tokens.count(token) > 1)
        pairs = zip(sample.candidates, tokens, strict=True)
        texts = [text for text, token in pairs if token == shared]
        raise UserError(
            f"sample '{sample.id}': the candidates {shortened(texts)} share the token "
            f"{tokenizer.convert_ids_to_tokens(shared)!r} ({shared}) where they should differ; let "
            "them begin with different words, or let the model answer with letters"
        )
    return position, tokens


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


def _raise(problems: list[str], where: str) -> None:
    more = f" ({len(problems)} such samples in all)" if len(problems) > 3 else ""
    if problems:
        raise UserError(*(f"{where}: {problem}{more}" for problem in problems[:3]))
