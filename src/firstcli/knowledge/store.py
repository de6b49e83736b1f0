"""The knowledge store: a teacher's top-k log-probabilities, looked up by sample id.

`shards` reads and writes the files; `codec` converts probabilities to the integers in them. Here
the shards of a folder are decoded once into a temporary file, so that training in random order
keeps only an index of the samples in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from firstcli.data.encoding import EncodedSample
from firstcli.data.splits import short_digest
from firstcli.data.spool import Spool
from firstcli.errors import UserError, shortened
from firstcli.knowledge.codec import Precision
from firstcli.knowledge.shards import (
    REPAIR,
    StoreFormat,
    digest,
    read_shard,
    sample_digest,
    shard_facts,
    shard_path,
)
from firstcli.knowledge.top_k import TopK

SHARD_POSITIONS = 65_536  # so many that the size of a shard's metadata is negligible
SHARD_TOKENS = 262_144  # an interrupted extraction repeats at most one shard


SHARD_BYTES = 1_950  # Parquet's structure and the metadata of a shard
COLUMN_BYTES = 85  # of each column besides those of 5 tokens
FORESEEN = 1.0
"""Bytes of a position of an answer besides the one that decides, such as that of EOS."""


def distinct_tokens(draws: int) -> float:
    """Estimate how many different tokens N draws give per position of text.

    The paper of random-sampling knowledge counts about 12 of 50; a flatter teacher gives more.
    """
    return float(draws**0.65)


def bytes_per_position(top_k: float, precision: Precision) -> float:
    """Estimate the bytes on disk per supervised position of text.

    Measured for top_k = 5: see docs/knowledge.md. A drawn token takes as many as a token of the
    top k.
    """
    return 0.5 + top_k * {"standard": 2.1, "compact": 1.7}[precision]


def bytes_per_answer(
    positions: float, candidates: int, top_k: float, precision: Precision
) -> float:
    """Estimate the bytes on disk per answer to a question.

    Where the answer is decided, as many tokens vary as there are candidates. A fine-tuned teacher
    foresees the tokens at the other positions.

    Args:
        positions: the supervised positions per answer.
        candidates: the candidates per question.
        top_k: number of tokens per position.
        precision: of the stored probabilities.
    """
    return bytes_per_position(min(candidates, top_k), precision) + FORESEEN * (positions - 1)


def bytes_of_shards(positions: int, tokens: int, width: int = 5) -> int:
    """Estimate the bytes that shards need besides their positions.

    Args:
        positions: the supervised positions.
        tokens: the tokens of their samples.
        width: the slots for tokens at each position.
    """
    shards = max(-(-positions // SHARD_POSITIONS), -(-tokens // SHARD_TOKENS), 1)
    return (SHARD_BYTES + COLUMN_BYTES * max(width - 5, 0)) * shards


def summary(folder: Path) -> dict[str, Any]:
    """Aggregate the metadata of all shards of a finished extraction.

    Confidence and accuracy are those of the teacher's most likely token, which draws do not tell.
    """
    paths = sorted(folder.glob("shard-*.parquet"))
    shards = [facts for path in paths if (facts := shard_facts(path))]
    positions = sum(facts["positions"] for facts in shards)
    top_1 = [facts["teacher_top_1"] for facts in shards if "teacher_top_1" in facts]
    judged = sum(part["judged"] for part in top_1)
    without_labels = any("correct" not in part for part in top_1)
    correct = sum(part.get("correct", 0) for part in top_1)
    means = ["mean_top_k_mass", "mean_probability_error", "mean_mass_error", "mean_kl"]
    means += ["mean_distinct"] if all("mean_distinct" in facts for facts in shards) else []
    maxima = ("max_probability_error", "max_mass_error")
    return {
        "samples": sum(facts["samples"] for facts in shards),
        "positions": positions,
        "bytes_per_position": sum(path.stat().st_size for path in paths) / positions,
        **{
            name: sum(facts[name] * facts["positions"] for facts in shards) / positions
            for name in means
        },
        **{name: max(facts[name] for facts in shards) for name in maxima},
        "judged": judged,
        "confidence": sum(part["confidence"] for part in top_1) / max(judged, 1),
        **({} if without_labels or not judged else {"accuracy": correct / max(judged, 1)}),
    }


class KnowledgeSource(Protocol):
    """Where the knowledge of samples is looked up."""

    @property
    def top_k(self) -> int:
        """Number of tokens per position."""

    def of(self, sample: EncodedSample) -> TopK:
        """Return the knowledge of a sample."""


class KnowledgePart(KnowledgeSource, Protocol):
    """The knowledge of one part of the training data."""

    def __contains__(self, sample: EncodedSample) -> bool:
        """Return whether the part has a sample."""


class Knowledge:
    """All knowledge of one split; only an index of the samples is kept in memory."""

    def __init__(self, folder: Path, expected: StoreFormat | None = None) -> None:
        """Read, verify and decode all shards of a finished folder.

        Args:
            folder: where the shards are.
            expected: what every shard must state.

        Raises:
            UserError: a shard is missing, damaged, of a different format or not as expected.
        """
        self.folder = folder
        self.facts: list[dict[str, Any]] = []  # the metadata of each shard
        self._spool = Spool(folder)
        self.top_k = 0
        keys = []
        for path in _shard_paths(folder):
            shard = read_shard(path)
            self.facts.append(shard.facts)
            for other in (expected, StoreFormat.of(self.facts[0])):
                if other and (mismatch := StoreFormat.of(shard.facts).mismatch(other)):
                    raise UserError(f"{path}: it was {mismatch}; run `first extract --force`")
            known = shard.known
            self.top_k = k = known.token_ids.shape[1]
            self._record = np.dtype(  # one position in the spool
                [("ids", "<i4", (k,)), ("log_probs", "<f4", (k,)), ("log_tail", "<f4")]
            )
            columns = [known.token_ids, known.log_probs, known.log_tail]
            records = np.rec.fromarrays(columns, self._record)
            for sample in np.split(records, shard.counts.cumsum()[:-1]):
                self._spool.append(sample.tobytes())
            keys.append(np.fromiter(map(short_digest, shard.ids), np.uint64))
        key_of_row = np.concatenate(keys)
        self._rows = np.argsort(key_of_row).astype(np.int32)  # rows of the spool, sorted by key
        self._keys = key_of_row[self._rows]
        if (self._keys[1:] == self._keys[:-1]).any():
            raise UserError(f"{folder}: it contains a sample twice; run `first extract --force`")

    def __len__(self) -> int:
        return len(self._keys)

    def _row(self, id: str) -> int | None:
        key = np.uint64(short_digest(id))
        index = int(np.searchsorted(self._keys, key))
        exists = index < len(self._keys) and self._keys[index] == key
        return int(self._rows[index]) if exists else None

    def __contains__(self, sample: EncodedSample) -> bool:
        return self._row(sample.id) is not None

    def of(self, sample: EncodedSample) -> TopK:
        """Return the knowledge of a sample; call `check` first to compare the samples' tokens.

        Raises:
            UserError: the sample is missing, or has a different number of positions.
        """
        row = self._row(sample.id)
        if row is None:
            raise UserError(
                f"{self.folder}: no knowledge of sample '{sample.id}'; run `first extract --force`"
            )
        records = np.frombuffer(self._spool[row], self._record)
        if len(records) != len(sample.targets):
            raise UserError(_other_tokens(f"{self.folder}: sample '{sample.id}'"))
        ids = records["ids"].astype(np.int32, copy=False)
        return TopK(ids, records["log_probs"], records["log_tail"])

    def check(self, samples: Sequence[EncodedSample]) -> None:
        """Check that the knowledge belongs to the samples that will be trained on.

        Raises:
            UserError: the samples differ, or their tokens.
        """
        tokens = np.zeros((len(self), 16), np.uint8)  # one digest per sample
        known = np.zeros(len(self), bool)
        unknown: list[str] = []
        for sample in samples:
            row = self._row(sample.id)
            if row is None:
                unknown.append(sample.id)
                continue
            known[row] = True
            tokens[row] = np.frombuffer(sample_digest(sample), np.uint8)
        if unknown or not known.all():
            problem = (
                f"{len(unknown)} of {len(samples)}, such as {shortened(unknown, 3)}, are not in it"
                if unknown
                else f"{(~known).sum()} of its {len(self)} are no longer in the data"
            )
            raise UserError(
                f"{self.folder}: it contains knowledge of other samples: {problem}; run "
                "`first extract --force`"
            )
        start = 0
        for index, facts in enumerate(self.facts):
            end = start + facts["samples"]
            if digest(tokens[start:end].tobytes()) != facts["sample_tokens"]:
                path = shard_path(self.folder, index)
                raise UserError(_other_tokens(f"{path}: samples"))
            start = end


class JoinedKnowledge:
    """The knowledge of several parts, such as labelled and unlabelled samples.

    The parts have the same k, and no sample is in two of them.
    """

    def __init__(self, parts: Sequence[KnowledgePart]) -> None:
        """Join parts, at least one."""
        self._parts = parts
        self.top_k = parts[0].top_k

    def of(self, sample: EncodedSample) -> TopK:
        """Return the knowledge of a sample from the part that has it.

        Raises:
            UserError: no part has it, or it has a different number of positions.
        """
        holder = next((part for part in self._parts if sample in part), self._parts[0])
        return holder.of(sample)


def _other_tokens(subject: str) -> str:
    return (
        f"{subject} had different tokens when the teacher scored them: the prompt, the text or its "
        "tokenization has changed since; run `first extract --force`"
    )


def _shard_paths(folder: Path) -> list[Path]:
    """Return the paths of all shards, after checking that there are neither fewer nor more."""
    present = sorted(folder.glob("shard-*.parquet"))
    if not present:
        raise UserError(f"{folder}: there is no knowledge; run `first extract`")
    facts = shard_facts(present[0]) or read_shard(present[0]).facts  # raises an error
    expected = [shard_path(folder, i) for i in range(facts["shards"])]
    missing = [path.name for path in expected if path not in present]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of {len(expected)} shards of knowledge are missing: "
            f"{shortened(missing, 3)}; {REPAIR}"
        )
    if len(present) > len(expected):
        raise UserError(
            f"{present[-1]}: shard {len(expected)} and later ones belong to a different "
            "extraction; run `first extract --force`"
        )
    return expected
