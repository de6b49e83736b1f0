"""Sample ids, the validation cut and the overlap of splits: all by content, never by position."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from firstcli.api import Sample
from firstcli.errors import UserError, shortened


def with_ids(samples: Sequence[Sample], where: str) -> list[Sample]:
    """Give every sample an id: its own, else a hash of prompt and response with a counter.

    The hash has 48 bits, for ids are stored with knowledge; rows that share one are counted.

    Raises:
        UserError: two samples of `where` carry the same given id.
    """
    given = Counter(sample.id for sample in samples if sample.id is not None)
    repeated = [id for id, count in given.items() if count > 1]
    if repeated:
        raise UserError(
            f"{where}: {len(repeated)} sample ids occur more than once, such as "
            f"{shortened(repeated, 3)}; give every row an id of its own, or none"
        )
    seen: Counter[str] = Counter()
    named = []
    for sample in samples:
        if sample.id is None:
            key = _digest(sample.prompt, sample.response)[:12]
            seen[key] += 1
            id = key if seen[key] == 1 else f"{key}-{seen[key]}"
            sample = replace(sample, id=id)
        named.append(sample)
    return named


def duplicate_rows(samples: Iterable[Sample]) -> int:
    """Count the samples whose prompt and response already occurred."""
    rows = [(sample.prompt, sample.response) for sample in samples]
    return len(rows) - len(set(rows))


def cut_validation(samples: Sequence[Sample], share: float) -> tuple[list[Sample], list[Sample]]:
    """Cut about `share` of the samples off as the validation part: (train, validation).

    The prompt alone decides, so equal questions stay on one side and a row's side never depends
    on the other rows.
    """
    train: list[Sample] = []
    validation: list[Sample] = []
    for sample in samples:
        position = int(_digest("validation", sample.prompt)[:13], 16) / 16**13  # uniform in [0, 1)
        (validation if position < share else train).append(sample)
    return train, validation


def overlap(training: Iterable[Sample], evaluation: Iterable[Sample]) -> int:
    """Count the evaluation samples whose prompt occurs in training."""
    prompts = {sample.prompt for sample in training}
    return sum(sample.prompt in prompts for sample in evaluation)


def content_digest(samples: Iterable[Sample]) -> str:
    """Return the SHA-256 of everything in the samples, in order."""
    digest = hashlib.sha256()
    for sample in samples:
        row = (
            sample.id,
            sample.prompt,
            sample.response,
            sample.candidates,
            sample.answer,
            sample.truth,
        )
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
