"""The knowledge store: a teacher's top-k log-probabilities, looked up by sample id.

`shards` writes and reads its files, `codec` turns probabilities into what they hold. Here they are
opened: decoded once into a temporary file, so that training in random order takes no more memory
than an index of the samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firstcli.data.encoding import EncodedSample
from firstcli.data.spool import Spool
from firstcli.errors import UserError, shortened
from firstcli.knowledge.codec import Precision
from firstcli.knowledge.shards import (
    REPAIR,
    VERSION,
    Shard,
    digests,
    read_shard,
    sample_digest,
    shard_facts,
    shard_path,
    tokens_digest,
    write_shard,
)
from firstcli.knowledge.top_k import TopK

__all__ = [
    "SHARD_POSITIONS",
    "SHARD_TOKENS",
    "VERSION",
    "Knowledge",
    "Precision",
    "bytes_per_position",
    "digests",
    "sample_digest",
    "shard_facts",
    "shard_path",
    "summary",
    "write_shard",
]

SHARD_POSITIONS = 65_536  # enough that a shard's own facts weigh nothing
SHARD_TOKENS = 262_144  # a killed extraction repeats at most one shard


def bytes_per_position(top_k: int, precision: Precision) -> float:
    """Estimate the bytes that one supervised position takes on disk, rather too many than too few.

    Measured for top_k = 5 on text, where they are most: see docs/knowledge.md.
    """
    return 0.5 + top_k * {"standard": 2.1, "compact": 1.7}[precision]


def summary(folder: Path) -> dict[str, Any]:
    """Sum up what the shards of a finished extraction say of themselves."""
    paths = sorted(folder.glob("shard-*.parquet"))
    facts = [one for path in paths if (one := shard_facts(path))]
    positions = sum(one["positions"] for one in facts)
    means = ("mean_top_k_mass", "mean_probability_error", "mean_mass_error", "mean_kl")
    return {
        "samples": sum(one["samples"] for one in facts),
        "positions": positions,
        "bytes_per_position": sum(path.stat().st_size for path in paths) / positions,
        **{name: sum(one[name] * one["positions"] for one in facts) / positions for name in means},
        **{
            name: max(one[name] for one in facts)
            for name in ("max_probability_error", "max_mass_error")
        },
    }


def teacher_top_1(folder: Path) -> dict[str, Any]:
    """Return what the teacher says of its first token, and how often that is the true one."""
    paths = sorted(folder.glob("shard-*.parquet"))
    facts = [one["teacher_top_1"] for path in paths if (one := shard_facts(path))]
    count = sum(one["judged"] for one in facts)
    return {
        "judged": count,
        "confidence": sum(one["confidence"] for one in facts) / max(count, 1),
        "accuracy": sum(one["correct"] for one in facts) / max(count, 1),
    }


class Knowledge:
    """All knowledge of one split: only an index of the samples lies in memory."""

    def __init__(self, folder: Path, expected: Mapping[str, object] | None = None) -> None:
        """Read, verify and decode every shard of a finished folder.

        Args:
            folder: Where the shards are.
            expected: Facts that every shard must state, such as its `top_k` or `tokenizer`.

        Raises:
            UserError: a shard is missing, damaged, of another format or not as expected.
        """
        self.folder = folder
        self.facts: list[dict[str, Any]] = []
        """What each shard says of itself."""
        self._spool = Spool(folder)
        keys, counts = [], []
        for path in _shard_paths(folder):
            shard = read_shard(path)
            self.facts.append(shard.facts)
            _check_facts(path, shard.facts, {**self._shared(), **(expected or {})})
            self._keep(shard)
            keys.append(np.array([_key(id) for id in shard.ids], np.uint64))
            counts.append(shard.counts)
        key_of_row = np.concatenate(keys)
        self._rows = np.argsort(key_of_row).astype(np.int32)  # by key
        self._keys = key_of_row[self._rows]
        self._offsets = np.concatenate([[0], *counts]).cumsum()
        if (self._keys[1:] == self._keys[:-1]).any():
            raise UserError(f"{folder}: a sample lies in it twice; run `first extract --force`")

    @property
    def top_k(self) -> int:
        return int(self.facts[0]["top_k"])

    @property
    def positions(self) -> int:
        return int(self._offsets[-1])

    def __len__(self) -> int:
        return len(self._keys)

    def _shared(self) -> dict[str, object]:
        """Return what all shards of one extraction have in common."""
        names = ("shards", "top_k", "precision", "teacher", "tokenizer")
        return {name: self.facts[0][name] for name in names if name in self.facts[0]}

    @property
    def _record(self) -> np.dtype[Any]:
        """One position in the spool."""
        k = self.top_k
        return np.dtype([("ids", "<i4", (k,)), ("log_probs", "<f4", (k,)), ("log_tail", "<f4")])

    def _keep(self, shard: Shard) -> None:
        records = np.empty(len(shard.known.log_tail), self._record)
        records["ids"] = shard.known.token_ids
        records["log_probs"] = shard.known.log_probs
        records["log_tail"] = shard.known.log_tail
        self._spool.write(records)

    def _row(self, id: str) -> int | None:
        key = np.uint64(_key(id))
        at = int(np.searchsorted(self._keys, key))
        found = at < len(self._keys) and self._keys[at] == key
        return int(self._rows[at]) if found else None

    def of(self, sample: EncodedSample) -> TopK:
        """Return a sample's knowledge; `check` says first whether it belongs to its tokens.

        Raises:
            UserError: there is none, or it has another number of positions.
        """
        row = self._row(sample.id)
        if row is None:
            raise UserError(
                f"{self.folder}: no knowledge of sample '{sample.id}'; run `first extract --force`"
            )
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        if end - start != len(sample.targets):
            raise UserError(_other_tokens(f"{self.folder}: sample '{sample.id}'"))
        records = self._spool.array(self._record, start, end)
        return TopK(records["ids"], records["log_probs"], records["log_tail"])

    def all_of(self, samples: Sequence[EncodedSample]) -> Iterator[TopK]:
        return map(self.of, samples)

    def check(self, samples: Sequence[EncodedSample]) -> None:
        """Compare what the knowledge belongs to with the samples that are to learn from it.

        Raises:
            UserError: other samples, or the same ones with other tokens.
        """
        tokens = np.zeros((len(self), 16), np.uint8)  # a digest each
        known = np.zeros(len(self), bool)
        unknown: list[str] = []
        for sample in samples:
            row = self._row(sample.id)
            if row is None:
                unknown.append(sample.id)
                continue
            known[row] = True
            tokens[row] = np.frombuffer(sample_digest(sample), np.uint8)
        if unknown:
            raise UserError(
                f"{self.folder}: it holds knowledge of other samples: {len(unknown)} of "
                f"{len(samples)}, such as {shortened(unknown, 3)}, are not in it; run "
                "`first extract --force`"
            )
        if not known.all():
            raise UserError(
                f"{self.folder}: it holds knowledge of other samples: {int((~known).sum())} of its "
                f"{len(self)} are no longer in the data; run `first extract --force`"
            )
        self._check_tokens(tokens)

    def _check_tokens(self, tokens: npt.NDArray[np.uint8]) -> None:
        first = 0
        for index, facts in enumerate(self.facts):
            last = first + facts["samples"]
            if tokens_digest(tokens[first:last].tobytes()) != facts["sample_tokens"]:
                path = shard_path(self.folder, index)
                raise UserError(_other_tokens(f"{path}: samples"))
            first = last


def _other_tokens(what: str) -> str:
    return (
        f"{what} had other tokens when the teacher saw them: the prompt, the text or how it is cut "
        "into tokens has changed since; run `first extract --force`"
    )


def _key(id: str) -> int:
    """Shorten an id to 64 bits, of which an index of millions stays small."""
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "little")


def _shard_paths(folder: Path) -> list[Path]:
    """Return the paths of all shards that there should be.

    Raises:
        UserError: one is missing, or there are none.
    """
    found = sorted(folder.glob("shard-*.parquet"))
    if not found:
        raise UserError(f"{folder}: there is no knowledge; run `first extract`")
    facts = shard_facts(found[0]) or read_shard(found[0]).facts  # which says what is wrong with it
    wanted = [shard_path(folder, i) for i in range(facts["shards"])]
    missing = [path.name for path in wanted if path not in found]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of {len(wanted)} shards of knowledge are missing: "
            f"{shortened(missing, 3)}; {REPAIR}"
        )
    if len(found) > len(wanted):
        raise UserError(
            f"{found[-1]}: shard {len(wanted)} and later belong to another extraction; run "
            "`first extract --force`"
        )
    return wanted


def _check_facts(path: Path, facts: Mapping[str, Any], expected: Mapping[str, object]) -> None:
    for name, value in expected.items():
        found = facts.get(name)
        if found == value:
            continue
        if name in ("teacher", "tokenizer"):
            said = f"it was made with another {name}"
        else:
            said = f"it was made with {name} = {found}, not {value}"
        raise UserError(f"{path}: {said}; run `first extract --force`")
