"""The samples of a split, held in a spool: only an index is kept in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from firstcli.api import Sample
from firstcli.data.sequences import LazySequence, Selected
from firstcli.data.spool import Spool

_DECODER = json.JSONDecoder()


class Samples(LazySequence[Sample]):
    """Samples that are read from their source once and looked up from then on."""

    def __init__(self, samples: Iterable[Sample], folder: Path) -> None:
        """Read all samples; the spool is in `folder` if that exists."""
        self._spool = Spool(folder)
        without: list[int] = []
        for number, sample in enumerate(samples):
            self._spool.append(to_json(sample))
            if sample.candidates and sample.answer is None:
                without.append(number)
        self.indices = np.arange(len(self._spool), dtype=np.int32)
        self.unanswered = np.isin(self.indices, without)
        """Which questions have no right answer, (N,)."""

    def content(self, number: int) -> bytes:
        """Return a sample as `to_json` has written it."""
        return self._spool[number]

    def _item(self, number: int) -> Sample:
        # `json.loads` would first guess the encoding, which takes as long as decoding.
        fields = _DECODER.decode(self._spool[number].decode("ascii"))
        id, prompt, response, candidates, answer, truth, *group = fields
        truth = None if truth is None else tuple(truth)
        return Sample(prompt, response, id, tuple(candidates), answer, truth, *group)


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

    Without a group there is no field for it, so digests of such data are those of earlier versions.
    """
    candidates, truth = sample.candidates, sample.truth
    fields = (sample.id, sample.prompt, sample.response, candidates, sample.answer, truth)
    return json.dumps(fields if sample.group is None else (*fields, sample.group)).encode()
