"""Tokenize prompts together with their responses, and each shared prompt once where that is exact.

The responses of a sample share its prompt. If the tokenizer splits text into words before it merges
characters, the tokens up to a space between two words depend on the text before it alone, and the
tokens after it on the text after it alone. The first part is then encoded once, and only the end of
the prompt again with every response. The right response is always encoded whole: if composing it
from both parts gives other tokens, the sample's texts are all encoded whole.

Samples of a classification with a thousand labels share their candidates. Of these, each sample
only has its prompt and its right response encoded whole. The tokens of the other candidates are
those of an earlier sample whose prompt ends in the same characters.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from firstcli.api import Sample
from firstcli.data.chat import ChatFormat
from firstcli.data.sequences import LazySequence
from firstcli.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]
Offsets = Sequence[tuple[int, int]]
CHUNK = 4096  # samples encoded at a time, because the offsets of a whole data set are large

_LEAST_END = 8
"""Characters of a prompt that are encoded again with every response, at least."""
MANY = 26
"""Candidates of a sample beyond which their tokens are shared with other samples."""
_KEPT_ENDS = 256
"""Sets of shared tokens that an encoder keeps."""
_PLACES = 20
"""Spaces and line ends of a prompt that are tried, from its end, as the place of the cut."""

# What depends on its own word only. Other parts may look further, or at a text's length.
_LOCAL_NORMALIZERS = frozenset(
    {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer"}
)
_LOCAL_PRE_TOKENIZERS = frozenset(
    {
        *("ByteLevel", "Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit"),
        *("BertPreTokenizer", "Metaspace"),
    }
)


@dataclass(frozen=True)
class Continuations:
    """The tokens of many candidates after a prompt, which samples share; the prompt's are kept."""

    tokens: Sequence[tuple[int, ...]]
    """The tokens of each candidate, with EOS."""
    eos: int
    """Number of tokens that EOS takes: 1, or 0 if the tokenizer has none."""

    @cached_property
    def decisive(self) -> tuple[int, tuple[int, ...]]:
        """The first place at which the candidates differ, and the token of each there."""
        return decisive(self.tokens, 0)

    @cached_property
    def scored(self) -> tuple[tuple[int, ...], ...]:
        """All tokens of each candidate without EOS, unless that is where it differs."""
        place, _ = self.decisive
        return tuple(ids[: max(len(ids) - self.eos, place + 1)] for ids in self.tokens)


class _Continued(LazySequence[tuple[Ids, int]]):
    """A prompt with each of many candidates, which is put together on access."""

    def __init__(self, prompt: Ids, ends: Continuations) -> None:
        self._prompt, self._ends = prompt, ends
        self.indices = np.arange(len(ends.tokens))

    def _item(self, number: int) -> tuple[Ids, int]:
        joint = [*self._prompt, *self._ends.tokens[number]]
        return joint, len(joint) - self._ends.eos


@dataclass(frozen=True, slots=True)
class JointEncoding:
    """A sample's prompt, alone and together with each of its responses, as token ids."""

    sample: Sample
    """With the texts that were encoded: rendered, if there is a chat format."""
    prompt: Ids
    responses: Sequence[tuple[Ids, int]]
    """For every candidate, or for the only response: prompt, response and EOS, and the number of
    tokens before EOS."""
    start: int
    """Index of the first token that reaches into the right response, at least 1."""
    ends: Continuations | None = None
    """The tokens of the candidates after the prompt, if samples share them."""


def decisive(sequences: Sequence[Sequence[int]], start: int) -> tuple[int, tuple[int, ...]]:
    """Return the first place, from `start` on, at which sequences differ, and their tokens there.

    No place is beyond the last token of the shortest sequence.
    """
    place, last = start, min(map(len, sequences)) - 1
    while place < last and len({ids[place] for ids in sequences}) == 1:
        place += 1
    return place, tuple(ids[place] for ids in sequences)


class JointEncoder:
    """Encodes samples with one fast tokenizer."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        drop_doubled_bos: bool = False,
        chat: ChatFormat | None = None,
        for_teacher: bool = False,
    ) -> None:
        """Look at what the tokenizer does; nothing is encoded yet.

        Args:
            tokenizer: a fast tokenizer.
            drop_doubled_bos: whether what the tokenizer puts in front of every text is left out
                where a prompt begins with it.
            chat: renders samples before they are encoded, if they are messages of a chat.
            for_teacher: whether samples are encoded as the teacher reads them.

        Raises:
            UserError: the tokenizer provides no character offsets.
        """
        self._tokenizer: Any = tokenizer
        framed = _framed(tokenizer)
        covered = [i for i, (start, end) in enumerate(framed["offset_mapping"]) if end > start]
        ids: Ids = framed["input_ids"]
        self.opening: Ids = ids[: covered[0]] if covered else []
        """What the tokenizer puts in front of every text, such as BOS."""
        # A tokenizer may append tokens to every text; after a prompt they are wrong.
        self._closing = len(ids) - 1 - covered[-1] if covered else 0
        self.chat, self._for_teacher = chat, for_teacher
        if chat is not None:  # whose template writes these tokens itself
            self.opening, self._closing = [], 0
        self.end_id: int | None = tokenizer.eos_token_id if chat is None else chat.end_id
        """The token that follows a response."""
        self._eos = [] if self.end_id is None else [int(self.end_id)]
        self._drop = drop_doubled_bos
        state = json.loads(self._tokenizer.backend_tokenizer.to_str())
        special = {token["id"] for token in state["added_tokens"] if token["special"]}
        self.special_ids = frozenset(special | set(tokenizer.all_special_ids)) - {
            tokenizer.unk_token_id
        }
        """Tokens that no ordinary text contains."""
        self._separators = _separators(self._tokenizer.backend_tokenizer, state)
        """Characters at which a prompt may be cut."""
        # A token that is added to the vocabulary may contain spaces; none may reach over a cut.
        added = [token["content"] for token in state["added_tokens"]]
        self._end = max([_LEAST_END, *(len(text) for text in added if len(text.split()) > 1)])
        self._shared: dict[tuple[str, tuple[str, ...]], Continuations | None] = {}

    def __call__(self, samples: Iterable[Sample]) -> Iterator[JointEncoding]:
        """Encode samples in order; with a chat format, they are rendered first."""
        if self._for_teacher:
            samples = (sample.as_teacher for sample in samples)
        remaining = iter(samples if self.chat is None else map(self.chat.rendered, samples))
        while chunk := list(islice(remaining, CHUNK)):
            for many, group in groupby(chunk, lambda sample: len(sample.candidates) > MANY):
                yield from (self._with_shared_ends if many else self._encoded)(list(group))

    def _with_shared_ends(self, samples: Sequence[Sample]) -> Iterator[JointEncoding]:
        """Encode samples with many candidates."""
        texts = [
            sample.prompt + text
            for sample in samples
            for text in ("", sample.candidates[sample.answer or 0])
        ]
        encoded = iter(self._whole(texts))
        for sample, (prompt, _), (right, offsets) in zip(samples, encoded, encoded, strict=False):
            start = _first_supervised(len(sample.prompt), offsets)
            if self._drop and self.is_doubled(prompt):
                cut = len(self.opening)
                prompt, right, start = prompt[cut:], right[cut:], max(start - cut, 1)
            ends = self._ends_after(sample)
            expected = [*right, *self._eos]
            if ends and [*prompt, *ends.tokens[sample.answer or 0]] == expected:
                yield JointEncoding(sample, prompt, _Continued(prompt, ends), start, ends)
            else:
                (encoding,) = self._encoded([sample])
                yield encoding

    def _ends_after(self, sample: Sample) -> Continuations | None:
        """Return the candidates' tokens after a prompt; None if one changes the prompt's."""
        key = sample.prompt[-self._end :], sample.candidates
        if key not in self._shared:
            tokens = self._continuations(sample.prompt, sample.candidates)
            known = [ids for ids in tokens if ids is not None]
            complete = len(known) == len(tokens)
            if len(self._shared) == _KEPT_ENDS:
                del self._shared[next(iter(self._shared))]
            self._shared[key] = Continuations(known, len(self._eos)) if complete else None
        return self._shared[key]

    def _encoded(self, samples: Sequence[Sample]) -> Iterator[JointEncoding]:
        rights = self._whole([s.prompt + _responses(s)[s.answer or 0] for s in samples])
        cuts = [_cut(sample.prompt, self._end, self._separators) for sample in samples]
        ends = self._ends(samples, cuts)
        composed = [
            _composed(sample, cut, ids, offsets, ends) if cut else None
            for sample, cut, (ids, offsets) in zip(samples, cuts, rights, strict=True)
        ]
        if 2 * composed.count(None) > len(composed):
            self._separators = ""  # cutting costs more than it saves
        texts = [
            text
            for sample, parts in zip(samples, composed, strict=True)
            if parts is None
            for text in _other_texts(sample)
        ]
        others = iter(self._whole(texts) if texts else ())
        for sample, parts, (ids, offsets) in zip(samples, composed, rights, strict=True):
            if parts is None:
                parts = [found for found, _ in islice(others, len(_responses(sample)))]
                parts.insert(1 + (sample.answer or 0), ids)
            start = _first_supervised(len(sample.prompt), offsets)
            if self._drop and self.is_doubled(parts[0]):
                parts = [ids[len(self.opening) :] for ids in parts]
                start = max(start - len(self.opening), 1)
            joints = [(joint + self._eos, len(joint)) for joint in parts[1:]]
            yield JointEncoding(sample, parts[0], joints, start)

    def is_doubled(self, prompt: Ids) -> bool:
        """Return whether a prompt begins with what the tokenizer has put in front of it."""
        once = len(self.opening)
        return once > 0 and prompt[once : 2 * once] == self.opening

    def keeps_border(self, prompt: str, response: str) -> bool:
        """Return whether the prompt's tokens stay the same when the response follows."""
        (alone, _), (joint, _) = self._whole([prompt, prompt + response])
        return joint[: len(alone)] == alone

    def continuations(self, prompt: str, responses: Sequence[str]) -> list[tuple[int, ...] | None]:
        """Return each response's tokens after the prompt's, with EOS.

        None stands for a response that changes the prompt's tokens.
        """
        if self.chat is not None:
            prompt, responses = self.chat.prompt(prompt), [*map(self.chat.response, responses)]
        return self._continuations(prompt, responses)

    def _continuations(self, prompt: str, responses: Sequence[str]) -> list[tuple[int, ...] | None]:
        (alone, _), *joints = self._whole([prompt, *(prompt + text for text in responses)])
        return [
            (*ids[len(alone) :], *self._eos) if ids[: len(alone)] == alone else None
            for ids, _ in joints
        ]

    def _whole(self, texts: Sequence[str]) -> list[tuple[Ids, Offsets]]:
        # verbose=False: texts longer than the context are reported elsewhere.
        # Special tokens in a text are encoded as such, as a server that receives the prompt does.
        batch = self._tokenizer(
            texts,
            add_special_tokens=self.chat is None,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        pairs = zip(batch["input_ids"], batch["offset_mapping"], strict=True)
        if not self._closing:
            return list(pairs)
        return [(ids[: -self._closing], offsets[: -self._closing]) for ids, offsets in pairs]

    def _ends(self, samples: Sequence[Sample], cuts: Sequence[int]) -> dict[str, Ids]:
        """Encode what follows each cut, without the tokens that are put around a text."""
        texts: dict[str, Ids] = {}
        for sample, cut in zip(samples, cuts, strict=True):
            if cut > 0:
                end = sample.prompt[cut:]
                texts[end] = []
                texts |= {end + response: [] for response in _responses(sample)}
        backend = self._tokenizer.backend_tokenizer
        encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return {text: one.ids for text, one in zip(texts, encodings, strict=True)}


def _responses(sample: Sample) -> tuple[str, ...]:
    return sample.candidates or (sample.response,)


def _other_texts(sample: Sample) -> list[str]:
    """Return the prompt, and the prompt with every response but the right one."""
    responses = [sample.prompt + text for text in _responses(sample)]
    del responses[sample.answer or 0]
    return [sample.prompt, *responses]


def _composed(
    sample: Sample, cut: int, ids: Ids, offsets: Offsets, ends: dict[str, Ids]
) -> list[Ids] | None:
    """Return the prompt's ids and those with each response; None if they must be encoded whole.

    Args:
        sample: the sample.
        cut: where its prompt is cut.
        ids: prompt and right response, encoded whole.
        offsets: the characters that each of these tokens covers.
        ends: the tokens of what follows the cut.
    """
    head = ids[: bisect_right(offsets, cut, key=lambda covered: covered[1])]
    end, responses = sample.prompt[cut:], _responses(sample)
    parts = [head + ends[end], *(head + ends[end + response] for response in responses)]
    return parts if parts[1 + (sample.answer or 0)] == ids else None


def _cut(prompt: str, end: int, separators: str) -> int:
    """Return the last place between two words, `end` characters before the end or earlier, or 0.

    Args:
        prompt: the prompt.
        end: the least number of characters after the cut.
        separators: which of space and line end may stand between the words.
    """
    place = len(prompt) - end + 1
    for _ in range(_PLACES if separators else 0):
        place = max(prompt.rfind(separator, 1, max(place, 1)) for separator in separators)
        if place < 0:
            return 0
        before, after = prompt[place - 1], prompt[place + 1]
        if after.isalpha() and (before.isalpha() or (prompt[place] == "\n" and before.isalnum())):
            return place
    return 0


def _separators(backend: Any, state: dict[str, Any]) -> str:
    """Return at which characters the tokenizer splits a text, whatever stands on either side."""
    normalizers = _parts(state["normalizer"], "normalizers")
    pre_tokenizers = _parts(state["pre_tokenizer"], "pretokenizers")
    local = (
        all(_is_local_normalizer(part) for part in normalizers)
        and all(part["type"] in _LOCAL_PRE_TOKENIZERS for part in pre_tokenizers)
        and not state["model"].get("dropout")
    )
    if not (local and pre_tokenizers):
        return ""

    def splits(separator: str) -> bool:
        text = f"abc{separator}def"
        if backend.normalizer:
            text = backend.normalizer.normalize_str(text)
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return not any("c" in word and len(word) > 3 for word in words)

    return "".join(filter(splits, " \n"))


def _parts(component: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """Return a component of a tokenizer.json, or the parts of a sequence of them."""
    if component is None:
        return []
    if component["type"] != "Sequence":
        return [component]
    return [part for child in component[name] for part in _parts(child, name)]


def _is_local_normalizer(part: dict[str, Any]) -> bool:
    if part["type"] == "Replace":
        return len(part["pattern"].get("String", "")) == 1
    return part["type"] in _LOCAL_NORMALIZERS


def _first_supervised(border: int, offsets: Offsets) -> int:
    """Return the index of the first token that reaches beyond the prompt's end, at least 1.

    Token 0 has no context. EOS has no offset and belongs to the response, even if that is empty.
    """
    beyond = (i for i, (_, end) in enumerate(offsets) if end > border)
    return max(next(beyond, len(offsets)), 1)


def _framed(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Encode one letter, and thereby switch off truncation and padding of a tokenizer.json.

    Raises:
        UserError: the tokenizer provides no character offsets.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer {type(tokenizer).__name__} provides no character offsets; use a "
            "checkpoint with a tokenizer.json"
        )
    return tokenizer("a", return_offsets_mapping=True)


def identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of what determines a tokenizer's encodings; equal digests, equal encodings.

    Raises:
        UserError: the tokenizer provides no character offsets.
    """
    _framed(tokenizer)  # switches off truncation and padding, which are part of the state
    backend: Any = tokenizer.backend_tokenizer
    kind = type(tokenizer)
    content = [
        f"{kind.__module__}.{kind.__qualname__}",
        backend.to_str(),
        tokenizer.eos_token_id,
        tokenizer.all_special_tokens,
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
