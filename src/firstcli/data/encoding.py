"""Encode samples as token ids, and find the supervised tokens and the answer position.

Prompt, response and EOS are encoded as one text, because many tokenizers give a separately encoded
response a different first token. The ids of the prompt alone must then be a prefix of the joint
encoding, because only the prompt is encoded when the model is used.

The answer position of a question is the first position at which its candidates' encodings differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from firstcli.api import Sample
from firstcli.data.chat import ChatFormat
from firstcli.data.conversations import ConversationEncoder
from firstcli.data.findings import Findings, SpecialTokens
from firstcli.data.joint import Continuations, Ids, JointEncoder, JointEncoding, decisive
from firstcli.errors import UserError, shortened

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """A training sample as tokens, of which some are supervised."""

    id: str
    input_ids: npt.NDArray[np.int32]  # (L,), of which the last is supervised
    start: int
    """Index of the first supervised token, at least 1."""
    answer_position: int | None
    """Index of the token at which the candidates differ; None for instruction tasks. In a sample
    without a label it is the only supervised token, a placeholder that no model learns or reads."""
    gaps: tuple[tuple[int, int], ...] = ()
    """Ranges of tokens after `start` that are not supervised: a user's turns between those of the
    assistant. Each is its first token and the one after its last; they are in order, apart, and not
    empty. Samples with an answer position have none."""

    @classmethod
    def supervised_at(
        cls, id: str, input_ids: npt.NDArray[np.int32], positions: npt.NDArray[np.int64]
    ) -> EncodedSample:
        """Build a sample without candidates; tokens after the last supervised one are cut off.

        Args:
            id: the sample's id.
            input_ids: its tokens, (L,).
            positions: indices of the supervised ones, ascending and at least 1, (N,) with N > 0.
        """
        before = np.flatnonzero(np.diff(positions) > 1)
        gaps = zip((positions[before] + 1).tolist(), positions[before + 1].tolist(), strict=True)
        last = int(positions[-1])
        return cls(id, input_ids[: last + 1], int(positions[0]), None, tuple(gaps))

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """Indices of the supervised tokens, ascending, (N,)."""
        borders = [self.start, *chain.from_iterable(self.gaps), len(self.input_ids)]
        spans = zip(borders[::2], borders[1::2], strict=True)
        return np.concatenate([np.arange(first, end) for first, end in spans])

    @property
    def targets(self) -> npt.NDArray[np.int32]:
        """The supervised tokens, (N,)."""
        return self.input_ids[self.positions if self.gaps else slice(self.start, None)]


def answer_only(row: EncodedSample) -> EncodedSample:
    """Return a question of which only the answer position is supervised.

    The tokens before it do not depend on the answer, and those after it are left out.
    """
    position = row.answer_position
    assert position is not None
    return EncodedSample(row.id, row.input_ids[: position + 1], position, position)


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


@dataclass(frozen=True, slots=True)
class Encoding:
    """How samples are encoded."""

    tokenizer: PreTrainedTokenizerBase
    where: str
    """The recipe's key, which begins every error message."""
    drop_doubled_bos: bool = False
    warnings: list[str] = field(default_factory=list)
    """Takes warnings after the last sample, without `where`."""
    chat: ChatFormat | None = None
    """Renders samples as messages of a chat; None encodes them as they are."""
    for_teacher: bool = False
    """Whether samples are encoded as the teacher reads them."""

    @property
    def encoder(self) -> JointEncoder:
        """A new encoder with these settings."""
        return JointEncoder(
            self.tokenizer,
            drop_doubled_bos=self.drop_doubled_bos,
            chat=self.chat,
            for_teacher=self.for_teacher,
        )


def each_encoded(samples: Iterable[Sample], encoding: Encoding) -> Iterator[EncodedSample]:
    """Encode samples, which have ids, for training, one by one.

    A question without a right answer ends with its answer position, the only supervised one: the
    tokens before it do not depend on the answer.

    Raises:
        UserError: after the last sample: a prompt begins with the BOS that the tokenizer adds, or
            in a question, a token crosses the border between prompt and response, or two candidates
            have the same token at the answer position; or the turns of a conversation are
            ambiguous. At once: there are conversations, but no chat template.
    """
    remaining = iter(samples)
    first = next(remaining, None)
    if first is None:
        return
    encode = _each_conversation if first.messages else _each_pair
    yield from encode(chain([first], remaining), encoding)


def _each_conversation(samples: Iterable[Sample], encoding: Encoding) -> Iterator[EncodedSample]:
    if encoding.chat is not None and encoding.chat.system is not None:
        raise UserError(
            f"{encoding.where}: `system` has no effect on conversations, whose system messages are "
            "in the data; leave it out"
        )
    mistakes, notes = Findings(encoding.where), Findings(encoding.where)
    for found in ConversationEncoder(encoding.tokenizer, mistakes, notes)(samples):
        yield EncodedSample.supervised_at(str(found.sample.id), found.input_ids, found.positions)
    mistakes.raise_any()
    encoding.warnings.extend(text for _, text in notes)


def _each_pair(samples: Iterable[Sample], encoding: Encoding) -> Iterator[EncodedSample]:
    """Encode samples with a prompt, and a response or candidates."""
    encoder = encoding.encoder
    mistakes, crossing = Findings(encoding.where), Findings(encoding.where)
    special = SpecialTokens(encoding.tokenizer, encoder, mistakes)
    for joint in encoder(samples):
        sample, right = joint.sample, joint.responses[joint.sample.answer or 0]
        unlabelled = bool(sample.candidates) and sample.answer is None
        special.look(joint, [] if unlabelled else [right])
        answer_position = None
        if sample.candidates:
            choice = _choice(joint, encoder, encoding.tokenizer, mistakes)
            if choice is None:
                continue
            answer_position, _ = choice
        elif right[0][: len(joint.prompt)] != joint.prompt:
            crossing.add("border", sample.id, lambda: _CROSSING)
        ids, start = np.asarray(right[0], np.int32), joint.start
        if unlabelled:
            assert answer_position is not None
            ids, start = ids[: answer_position + 1], answer_position
        yield EncodedSample(str(sample.id), ids, start, answer_position)
    mistakes.raise_any()
    encoding.warnings.extend(text for found in (crossing, special.unexpected) for _, text in found)


_CROSSING = (
    "a token crosses the border between prompt and response; it is trained as part of the response"
)


def encode_questions(samples: Iterable[Sample], encoding: Encoding) -> list[EncodedQuestion]:
    """Encode samples, which have ids, for evaluation.

    Raises:
        UserError: a mistake as in `each_encoded`, a sample without candidates, or a mixture of
            questions with and without a right answer.
    """
    encoder = encoding.encoder
    mistakes = Findings(encoding.where)
    special = SpecialTokens(encoding.tokenizer, encoder, mistakes)
    questions: list[EncodedQuestion] = []
    looked_at: Continuations | None = None
    for joint in encoder(samples):
        sample = joint.sample
        if not sample.candidates:
            raise UserError(
                f"{encoding.where}: sample '{sample.id}' has no candidates to choose from"
            )
        is_known = joint.ends is not None and joint.ends is looked_at
        right = joint.responses[sample.answer or 0]
        special.look(joint, [right] if is_known else joint.responses)
        looked_at = joint.ends
        choice = _choice(joint, encoder, encoding.tokenizer, mistakes)
        if choice is not None:
            questions.append(_question(joint, *choice))
    mistakes.raise_any()
    encoding.warnings.extend(text for _, text in special.unexpected)
    without = [question.id for question in questions if question.answer is None]
    if 0 < len(without) < len(questions):
        raise UserError(
            f"{encoding.where}: {len(without)} of {len(questions)} questions, such as "
            f"{shortened(without, 3)}, have no right answer; evaluate them in a "
            "separate split"
        )
    return questions


def _question(joint: JointEncoding, position: int, tokens: tuple[int, ...]) -> EncodedQuestion:
    start = max(len(joint.prompt), 1)
    if joint.ends is not None and joint.prompt:
        candidates = joint.ends.scored
    else:
        candidates = tuple(
            tuple(ids[start : max(length, position + 1)]) for ids, length in joint.responses
        )
    return EncodedQuestion(
        id=str(joint.sample.id),
        input_ids=np.asarray(joint.responses[0][0][:position], np.int32),
        candidate_ids=tokens,
        start=start,
        candidates=candidates,
        answer=joint.sample.answer,
        truth=joint.sample.truth,
    )


def _choice(
    joint: JointEncoding,
    encoder: JointEncoder,
    tokenizer: PreTrainedTokenizerBase,
    mistakes: Findings,
) -> tuple[int, tuple[int, ...]] | None:
    """Return the answer position and each candidate's token there, or note why there is none.

    Args:
        joint: a question.
        encoder: what encoded it.
        tokenizer: the encoder's tokenizer.
        mistakes: takes the reason.
    """
    sample, prompt, start = joint.sample, joint.prompt, len(joint.prompt)
    if joint.ends is not None:
        place, tokens = joint.ends.decisive
        position = start + place
    else:
        encodings = [ids for ids, _ in joint.responses]
        for candidate, ids in zip(sample.candidates, encodings, strict=True):
            if ids[:start] != prompt:
                text = partial(_border_problem, joint, candidate, ids, encoder, tokenizer)
                mistakes.add("border", sample.id, text)
                return None
        position, tokens = decisive(encodings, start)
    if position == 0:
        mistakes.add("no prompt", sample.id, lambda: _NO_PROMPT)
        return None
    if len(set(tokens)) < len(tokens):
        mistakes.add("token", sample.id, lambda: _shared_token(sample, tokens, tokenizer))
        return None
    return position, tokens


_NO_PROMPT = "no token precedes the candidates; give it a prompt"


def _shared_token(
    sample: Sample, tokens: tuple[int, ...], tokenizer: PreTrainedTokenizerBase
) -> str:
    shared = next(token for token in tokens if tokens.count(token) > 1)
    pairs = zip(sample.candidates, tokens, strict=True)
    texts = [text for text, token in pairs if token == shared]
    name = tokenizer.convert_ids_to_tokens(shared)
    problem = f"the candidates {shortened(texts)} share the token {name!r} ({shared})"
    if shared == tokenizer.unk_token_id:
        return f"{problem}: the tokenizer does not know them; choose a different tokenizer"
    if all(len(text.strip()) < 2 for text in texts):
        return f"{problem} although they are single letters; choose a different tokenizer"
    return (
        f"{problem} where they should differ; let them begin with different words, or let the "
        "model answer with letters"
    )


def _border_problem(
    joint: JointEncoding,
    candidate: str,
    ids: Ids,
    encoder: JointEncoder,
    tokenizer: PreTrainedTokenizerBase,
) -> str:
    """Describe the tokens at the border, and what to do.

    Args:
        joint: a question.
        candidate: one of its candidates.
        ids: the prompt with this candidate.
        encoder: what encoded it.
        tokenizer: the encoder's tokenizer.
    """
    pairs = enumerate(zip(joint.prompt, ids, strict=False))
    first = next((i for i, (alone, together) in pairs if alone != together), len(ids))
    prompt_tokens = tokenizer.convert_ids_to_tokens(joint.prompt[first : first + 2])
    joint_tokens = tokenizer.convert_ids_to_tokens(ids[first : first + 2])
    return (
        "a token crosses the border between prompt and response (the prompt alone ends in "
        f"{prompt_tokens}, with the response it continues with {joint_tokens}); "
        f"{_move(joint.sample, candidate, encoder)}"
    )


def _move(sample: Sample, candidate: str, encoder: JointEncoder) -> str:
    """Return advice that has been tried: where the border is kept for all candidates."""
    if encoder.chat is not None:
        return (
            "the chat template ends the prompt in the middle of a token; give a different one with "
            "`chat_template`, or set `chat: false`"
        )
    end = sample.prompt.rstrip()
    for prompt, space in ((end, " "), (f"{end}\n", "")):
        texts = [space + text.lstrip() for text in sample.candidates]
        if all(encoder.keeps_border(prompt, text) for text in texts):
            moved = space + candidate.lstrip()
            return (
                f"move the border, for example from {sample.prompt[-9:]!r} + {candidate[:9]!r} to "
                f"{prompt[max(len(sample.prompt) - 9, 0) :]!r} + {moved[:10]!r}"
            )
    return "this tokenizer changes a prompt when a response follows; choose a different one"
