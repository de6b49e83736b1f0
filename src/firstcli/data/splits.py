"""Sample ids, the validation cut and the overlap of splits: all by content, never by position."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from firstcli.api import Sample
from firstcli.data.sequences import Selected
from firstcli.errors import UserError, shortened

Digests = npt.NDArray[np.uint64]


def with_ids(samples: Sequence[Sample], where: str) -> Iterator[Sample]:
    """Give every sample an id: its own, else a hash of prompt and response with a counter.

    The hash has 48 bits, for ids are stored with knowledge; rows that share one are counted.

    Raises:
        UserError: two samples of `where` carry the same given id.
    """
    _refuse_repeated_ids(samples, where)
    # Only what occurs more than once is counted, so that no more than that lies in memory.
    often = _repeated(_digests((_key(one),) for one in samples if one.id is None))
    seen: Counter[str] = Counter()
    for sample in samples:
        if sample.id is None:
            key = _key(sample)
            if _short(key) in often:
                seen[key] += 1
            id = key if seen[key] <= 1 else f"{key}-{seen[key]}"
            sample = replace(sample, id=id)
        yield sample


def _key(sample: Sample) -> str:
    return _digest(sample.prompt, sample.response)[:12]


def _refuse_repeated_ids(samples: Sequence[Sample], where: str) -> None:
    often = _repeated(_digests((str(one.id),) for one in samples if one.id is not None))
    if not often:
        return
    given = Counter(
        one.id for one in samples if one.id is not None and _short(str(one.id)) in often
    )
    if repeated := [id for id, count in given.items() if count > 1]:
        raise UserError(
            f"{where}: {len(repeated)} sample ids occur more than once, such as "
            f"{shortened(repeated, 3)}; give every row an id of its own, or none"
        )


def duplicate_rows(samples: Iterable[Sample]) -> int:
    """Count the samples whose prompt and response already occurred."""
    digests = _digests((sample.prompt, sample.response) for sample in samples)
    return len(digests) - len(np.unique(digests))


def cut_validation(
    samples: Sequence[Sample], share: float
) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """Cut about `share` of the samples off as the validation part: (train, validation).

    The prompt alone decides, so equal questions stay on one side and a row's side never depends
    on the other rows.
    """
    positions = (  # uniform in [0, 1)
        int(_digest("validation", sample.prompt)[:13], 16) / 16**13 for sample in samples
    )
    held_out = np.fromiter((position < share for position in positions), bool)
    train, validation = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    return Selected(samples, train), Selected(samples, validation)


def fold_of(sample: Sample, folds: int) -> int:
    """Return the fold of a training sample, 1 to `folds`; the prompt alone decides."""
    return 1 + int(_digest("fold", sample.prompt)[:13], 16) % folds


def overlap(training: Iterable[Sample], evaluation: Iterable[Sample]) -> int:
    """Count the evaluation samples whose prompt occurs in training."""
    prompts, asked = (_digests((one.prompt,) for one in some) for some in (training, evaluation))
    return int(np.isin(asked, prompts).sum())


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


def _short(*parts: str) -> int:
    """Digest texts to 8 bytes: two of a million texts agree by chance once in 40 million tries."""
    text = "\0".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _digests(texts: Iterable[tuple[str, ...]]) -> Digests:
    return np.frombuffer(array("Q", (_short(*parts) for parts in texts)), np.uint64)


def _repeated(digests: Digests) -> frozenset[int]:
    found, counts = np.unique(digests, return_counts=True)
    return frozenset(found[counts > 1].tolist())
