"""Sample ids, the validation split and overlaps: decided by content, never by position."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from firstcli.api import Sample
from firstcli.data.samples import as_json
from firstcli.data.sequences import Selected
from firstcli.errors import UserError, shortened


def with_ids(samples: Sequence[Sample], where: str) -> Iterator[Sample]:
    """Give every sample an id: the given one, or else a hash of prompt and response.

    The hash has only 48 bits because ids are stored with the knowledge. The second and later
    samples with the same hash get a counter.

    Raises:
        UserError: two samples of `where` have the same given id.
    """
    # One pass gives the digests of given ids and of the other samples' keys. Only those that occur
    # more than once are counted, to keep the counters small.
    is_given = np.zeros(len(samples), bool)
    digests = np.zeros(len(samples), np.uint64)
    for i, sample in enumerate(samples):
        is_given[i] = sample.id is not None
        digests[i] = short_digest(_key(sample) if sample.id is None else sample.id)
    _refuse_repeated_ids(samples, _repeated(digests[is_given]), where)
    often = _repeated(digests[~is_given])
    seen: Counter[str] = Counter()
    for sample in samples:
        if sample.id is None:
            key = _key(sample)
            if short_digest(key) in often:
                seen[key] += 1
            id = key if seen[key] <= 1 else f"{key}-{seen[key]}"
            sample = replace(sample, id=id)
        yield sample


def has_own_id(sample: Sample) -> bool:
    """Return whether `with_ids` made a sample's id of its content."""
    return sample.id is not None and sample.id.partition("-")[0] == _key(sample)


def _key(sample: Sample) -> str:
    return _digest(sample.prompt, sample.response)[:12]


def _refuse_repeated_ids(samples: Sequence[Sample], often: frozenset[int], where: str) -> None:
    if not often:
        return
    ids = (sample.id for sample in samples if sample.id is not None)
    counts = Counter(id for id in ids if short_digest(id) in often)
    if repeated := [id for id, count in counts.items() if count > 1]:
        raise UserError(
            f"{where}: {len(repeated)} sample ids occur more than once, such as "
            f"{shortened(repeated, 3)}; give every row a unique id, or give no ids"
        )


def duplicate_rows(samples: Iterable[Sample]) -> int:
    """Count the samples that repeat the prompt and response of an earlier one."""
    digests = _digests(f"{sample.prompt}\0{sample.response}" for sample in samples)
    return len(digests) - len(np.unique(digests))


def cut_validation(
    samples: Sequence[Sample], share: float
) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """Split off about `share` of the samples for validation: (train, validation).

    Only the prompt decides, so equal questions stay on the same side and a sample's side does not
    depend on the rest of the data.
    """
    positions = (  # uniform in [0, 1)
        int(_digest("validation", sample.prompt)[:13], 16) / 16**13 for sample in samples
    )
    held_out = np.fromiter((position < share for position in positions), bool)
    train, validation = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    return Selected(samples, train), Selected(samples, validation)


def fold_of(sample: Sample, folds: int) -> int:
    """Return the fold of a training sample, from 1 to `folds`; only the prompt decides."""
    return 1 + int(_digest("fold", sample.prompt)[:13], 16) % folds


def prompt_digests(samples: Iterable[Sample]) -> npt.NDArray[np.uint64]:
    """Return a digest of each sample's prompt, (N,)."""
    return _digests(sample.prompt for sample in samples)


def among(samples: Iterable[Sample], digests: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return which samples have a prompt with one of the digests, (N,)."""
    return np.isin(prompt_digests(samples), digests)


def overlap(trained: npt.NDArray[np.uint64], evaluation: Iterable[Sample]) -> int:
    """Count the evaluation samples whose prompt is among those with the digests `trained`."""
    return int(among(evaluation, trained).sum())


def content_digest(samples: Iterable[Sample]) -> str:
    """Return the SHA-256 of all fields of all samples, in order."""
    digest = hashlib.sha256()
    for content in as_json(samples):
        digest.update(content)
    return digest.hexdigest()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def short_digest(text: str) -> int:
    """Return an 8-byte digest: a million texts contain a collision once in 40 million tries."""
    content = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _digests(texts: Iterable[str]) -> npt.NDArray[np.uint64]:
    return np.fromiter(map(short_digest, texts), np.uint64)


def _repeated(digests: npt.NDArray[np.uint64]) -> frozenset[int]:
    """Return the digests that occur more than once."""
    values, counts = np.unique(digests, return_counts=True)
    return frozenset(values[counts > 1].tolist())
