"""The samples of a split, held in a spool: only an index is kept in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from firstcli.api import ChatMessage, Sample
from firstcli.data.sequences import LazySequence, Selected
from firstcli.data.spool import Spool

_DECODER = json.JSONDecoder()

MOST_SHARED = 64
"""Sets of candidates that samples can share; later sets are written with each sample."""

Parts = tuple[str, str, str]


class Samples(LazySequence[Sample]):
    """Samples that are read from their source once and looked up from then on.

    The first sets of candidates are kept in memory, and samples refer to them by number: a task
    with a thousand labels has the same thousand candidates in every sample.
    """

    def __init__(self, samples: Iterable[Sample], folder: Path) -> None:
        """Read all samples; the spool is in `folder` if that exists."""
        self._spool = Spool(folder)
        numbers: dict[tuple[str, ...], int] = {}
        latest: tuple[tuple[str, ...], str] = ((), "")  # hashing a thousand texts takes long
        self._texts: list[str] = []
        """The candidates of each set as JSON."""
        without: list[int] = []
        for number, sample in enumerate(samples):
            if latest[0] is not sample.candidates or not latest[1]:
                latest = (sample.candidates, self._shared(sample.candidates, numbers))
            head, texts, tail = _parts(sample, latest[1])
            self._spool.append(f"{head}\0{texts}\0{tail}".encode())
            if is_unanswered(sample):
                without.append(number)
        self._candidates = list(numbers)
        self.indices = np.arange(len(self._spool), dtype=np.int32)
        self.unanswered = np.isin(self.indices, without)
        """Which samples have no right answer or no response, (N,)."""

    def _shared(self, candidates: tuple[str, ...], numbers: dict[tuple[str, ...], int]) -> str:
        """Return the number of a set of candidates, or if there are too many sets, its JSON."""
        if candidates not in numbers:
            if len(numbers) == MOST_SHARED:
                return json.dumps(candidates)
            numbers[candidates] = len(numbers)
            self._texts.append(json.dumps(candidates))
        return str(numbers[candidates])

    def content(self, number: int) -> bytes:
        """Return a sample as `to_json` does."""
        head, texts, tail = self._spool[number].decode("ascii").split("\0")
        if not texts.startswith("["):
            texts = self._texts[int(texts)]
        return _joined(head, texts, tail)

    def _item(self, number: int) -> Sample:
        # `json.loads` would first guess the encoding, which takes as long as decoding.
        head, texts, tail = self._spool[number].decode("ascii").split("\0")
        id, prompt, response, answer, truth, *others = _DECODER.decode(f"[{head}, {tail}]")
        defaults = [None, (), (), (), None]
        group, messages, supervised, steps, other = others + defaults[len(others) :]
        if texts.startswith("["):
            candidates = tuple(_DECODER.decode(texts))
        else:
            candidates = self._candidates[int(texts)]
        truth = None if truth is None else tuple(truth)
        turns = tuple(ChatMessage(*turn) for turn in messages)
        return Sample(
            *(prompt, response, id, candidates, answer, truth, group, turns),
            supervised=tuple(supervised),
            steps=tuple(steps),
            teacher_prompt=other,
        )


def is_unanswered(sample: Sample) -> bool:
    """Return whether a question has no right answer, or a prompt has no response."""
    return sample.answer is None if sample.candidates else not sample.response.strip()


def as_json(samples: Iterable[Sample]) -> Iterator[bytes]:
    """Yield each sample as `to_json` does, without decoding samples that are held in a spool."""
    if isinstance(samples, Samples):
        yield from map(samples.content, samples.indices.tolist())
    elif isinstance(samples, Selected) and isinstance(samples.items, Samples):
        whole = samples.items
        yield from (whole.content(whole.indices[i]) for i in samples.indices.tolist())
    else:
        yield from map(to_json, samples)


def to_json(sample: Sample) -> bytes:
    """Return all fields of a sample as a JSON list; digests of data sets depend on these bytes.

    Without a group, a conversation, an explanation or a prompt for the teacher there is no field
    for it, so digests of such data are those of earlier versions.
    """
    return _joined(*_parts(sample, json.dumps(sample.candidates)))


def _parts(sample: Sample, candidates: str) -> Parts:
    """Return the fields before the candidates, the candidates, and the fields after them."""
    head = (sample.id, sample.prompt, sample.response)
    tail: tuple[object, ...] = (sample.answer, sample.truth)
    has_other = sample.teacher_prompt is not None
    if sample.group is not None or sample.messages or sample.steps or has_other:
        tail = (*tail, sample.group)
    if sample.messages or sample.steps or has_other:
        turns = [(message.role, message.content) for message in sample.messages]
        tail = (*tail, turns, sample.supervised)
    if sample.steps or has_other:
        tail = (*tail, sample.steps)
    if has_other:
        tail = (*tail, sample.teacher_prompt)
    return json.dumps(head)[1:-1], candidates, json.dumps(tail)[1:-1]


def _joined(head: str, candidates: str, tail: str) -> bytes:
    return f"[{head}, {candidates}, {tail}]".encode()
