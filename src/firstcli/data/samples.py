"""The samples of a split, held in a spool: only an index is kept in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from firstcli.api import Sample
from firstcli.data.sequences import LazySequence
from firstcli.data.spool import Spool


class Samples(LazySequence[Sample]):
    """Samples that are read from their source once and looked up from then on."""

    def __init__(self, samples: Iterable[Sample], folder: Path) -> None:
        """Read all samples; the spool is in `folder` if that exists."""
        self._spool = Spool(folder)
        for sample in samples:
            self._spool.append(to_json(sample))

    def __len__(self) -> int:
        return len(self._spool)

    def _item(self, index: int) -> Sample:
        return _from_json(self._spool[index])


def to_json(sample: Sample) -> bytes:
    """Return all fields of a sample as a JSON list; digests of data sets depend on these bytes."""
    candidates, truth = sample.candidates, sample.truth
    fields = (sample.id, sample.prompt, sample.response, candidates, sample.answer, truth)
    return json.dumps(fields).encode()


def _from_json(row: bytes) -> Sample:
    id, prompt, response, candidates, answer, truth = json.loads(row.decode("ascii"))
    return Sample(
        prompt, response, id, tuple(candidates), answer, None if truth is None else tuple(truth)
    )
