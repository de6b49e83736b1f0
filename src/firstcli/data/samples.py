"""The samples of a split, in a spool: in memory lies only where each of them begins."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from firstcli.api import Sample
from firstcli.data.sequences import LazySequence
from firstcli.data.spool import Spool


class Samples(LazySequence[Sample]):
    """Samples that were read once, from wherever they come, and are looked up from then on."""

    def __init__(self, samples: Iterable[Sample], folder: Path) -> None:
        """Take all samples; `folder` holds the spool where it exists."""
        self._spool = Spool(folder)
        borders = array("q", [0])
        for sample in samples:
            self._spool.write(_written(sample))
            borders.append(self._spool.size)
        self._borders = np.frombuffer(borders, np.int64)  # (N + 1,)

    def __len__(self) -> int:
        return len(self._borders) - 1

    def _make(self, index: int) -> Sample:
        start, end = self._borders[index : index + 2].tolist()
        return _read(self._spool.read(start, end))


def _written(sample: Sample) -> bytes:
    candidates, truth = sample.candidates, sample.truth
    row = (sample.id, sample.prompt, sample.response, candidates, sample.answer, truth)
    return json.dumps(row).encode()


def _read(row: bytes) -> Sample:
    id, prompt, response, candidates, answer, truth = json.loads(row.decode("ascii"))
    return Sample(
        prompt, response, id, tuple(candidates), answer, None if truth is None else tuple(truth)
    )
