"""Stage `extract`: the teacher's top-k log-probabilities at every supervised position."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from firstcli.data.encoded import counts_of, has_answer_positions, lengths_of
from firstcli.data.encoding import EncodedSample
from firstcli.data.sequences import Selected
from firstcli.errors import UserError, shortened
from firstcli.knowledge import concentration, store
from firstcli.knowledge.top_k import TopK
from firstcli.models import inference, readout
from firstcli.models.batching import Halving, forget
from firstcli.runtime import distributed
from firstcli.runtime.console import size
from firstcli.stages import inputs
from firstcli.workspace.run import Run
from firstcli.workspace.units import Unit

BATCH_TOKENS = 4096


def check(run: Run, unit: Unit) -> str:
    """Check data and tokenizer; return what the plan says of size."""
    if unit.part == "validation" and not run.training.validation:
        raise UserError(
            f"train.validation: {run.recipe.train.validation} of the training split leaves no row "
            "to fit a recalibrator on; raise it"
        )
    rows = inputs.training_rows(run, "teacher", unit.part)
    shards_of(run, unit)
    count = inputs.positions(rows)
    section = run.recipe.knowledge
    stored = count * store.bytes_per_position(section.top_k, section.precision)
    return f"{len(rows)} samples, {count} positions; {size(stored)} of knowledge"


@torch.inference_mode()
def work(run: Run, unit: Unit, folder: Path) -> dict[str, Any]:
    """Write one shard after another; finished ones of an interrupted run are kept."""
    rows = inputs.training_rows(run, "teacher", unit.part)
    shards = shards_of(run, unit)
    format = store.StoreFormat(
        **run.recipe.knowledge.stored(),
        split=unit.part,
        shards=len(shards),
        teacher=distributed.by_first(lambda: _teacher(run, unit)),
        tokenizer=inputs.vocabulary_digest(run, "teacher"),
    )
    missing = distributed.by_first(lambda: _missing(folder, len(shards)))
    done = len(rows) - sum(len(shards[index].rows) for index in missing)
    if done:
        run.console.say(f"{unit.key}: going on after {done} finished samples")
    ours = missing[
        distributed.rank() :: distributed.count()
    ]  # whole shards, fixed by the data alone
    decisive = has_answer_positions(rows)
    scorer = Scorer(run, unit.key)
    total = sum(len(shards[index].rows) for index in ours)
    if ours:
        with run.console.progress(unit.key, total, "samples") as advance:
            for index in ours:
                found = scorer(shards[index], run.recipe.knowledge.top_k, advance)
                shard = shards[index].rows
                path = store.shard_path(folder, index)
                judged = _judged(shard, found, decisive)
                store.write_shard(path, shard, [found[row.id] for row in shard], format, judged)
    halved = sum(distributed.gathered(scorer.halving.halved))
    if not distributed.is_first():
        return {}
    paths = [store.shard_path(folder, index) for index in range(len(shards))]
    if unseen := sum(not path.exists() for path in paths):
        raise UserError(
            f"{folder}: {unseen} shards that other processes wrote are not to be seen here; "
            "all machines must share the run folder"
        )
    if unit.part != "validation" and not (folder / concentration.FILE_NAME).exists():
        concentration.save(folder / concentration.FILE_NAME, _concentration(run, scorer, shards))
    found = store.summary(folder) | store.teacher_top_1(folder)
    return found | ({"batches_halved": halved} if halved else {})


@dataclass(frozen=True, slots=True)
class ShardRows:
    """The samples of one shard, and which teacher scores them."""

    rows: Sequence[EncodedSample]
    fold: int | None = None
    """The fold whose teacher has not seen them; None: the teacher itself."""


def shards_of(run: Run, unit: Unit) -> list[ShardRows]:
    """Return what is in each shard of a part; the data alone decides."""
    if unit.part != "out-of-fold":
        return [
            ShardRows(some)
            for some in split_into_shards(inputs.training_rows(run, "teacher", unit.part))
        ]
    folds = range(1, (run.recipe.knowledge.folds or 0) + 1)
    return [
        ShardRows(some, fold)
        for fold in folds
        for some in split_into_shards(inputs.rows_of_fold(run, fold, seen=False))
    ]


class Scorer:
    """Asks the teacher, or the fold's teacher; one of them lies in memory at a time."""

    def __init__(self, run: Run, what: str) -> None:
        self._run = run
        self._limit = inputs.shared_vocabulary(run)
        self._fold: int | None = None
        self._reader: readout.Reader | None = None
        self.halving = Halving(run.console.warn, what)

    def __call__(
        self,
        shard: ShardRows,
        top_k: int,
        advance: Callable[[int], None] = lambda _: None,
        wanted: Container[str] | None = None,
    ) -> dict[str, TopK]:
        """Return the knowledge of a shard's samples, by id; of `wanted` ones only, if given.

        Those are scored in the batches in which they always are, for company changes last digits.
        """
        found: dict[str, TopK] = {}
        for batch in inference.batches(lengths_of(shard.rows).tolist(), BATCH_TOKENS):
            chosen = [shard.rows[i] for i in batch]
            if wanted is None or any(row.id in wanted for row in chosen):
                scored = self.halving.run(chosen, lambda some: self._ask(shard.fold, some, top_k))
                found |= {id: one for id, one in scored.items() if wanted is None or id in wanted}
            advance(len(chosen))
        return found

    def _ask(self, fold: int | None, rows: Sequence[EncodedSample], top_k: int) -> dict[str, TopK]:
        if self._reader is None or self._fold != fold:
            self._reader = None
            forget()
            model = inputs.teacher(self._run, fold)
            self._reader, self._fold = readout.Reader(model, self._run.console.say), fold
        return top_k_of(self._reader, rows, top_k, self._limit)


def _concentration(run: Run, scorer: Scorer, shards: Sequence[ShardRows]) -> dict[str, Any]:
    """Score some samples once more, with many more tokens than are kept."""
    width = min(concentration.RANKS, inputs.shared_vocabulary(run))
    total = sum(len(one.rows) for one in shards)
    rows: list[EncodedSample] = []
    found: dict[str, TopK] = {}
    for shard in shards:
        drawn = concentration.subset(shard.rows, total)
        found |= scorer(ShardRows(drawn, shard.fold), width)
        rows += drawn
    section = run.recipe.knowledge
    known = [found[row.id] for row in rows]
    return concentration.measure(rows, known, section.precision, section.top_k)


def _judged(
    rows: Sequence[EncodedSample], found: dict[str, TopK], decisive: bool
) -> dict[str, Any]:
    """Compare the first token's probability with how often it is the true one.

    On rows that the teacher was fine-tuned on it is surer, and more often right, than on others.
    Where rows decide between candidates, only the deciding positions count.
    """
    confidence, correct = [], []
    for row in rows:
        known = found[row.id]
        positions = np.arange(row.start, len(row.input_ids))
        at = positions == row.answer_position if decisive else slice(None)
        confidence.append(np.exp(known.log_probs[at, 0], dtype=np.float64))
        correct.append(known.token_ids[at, 0] == row.targets[at])
    return {
        "judged": sum(map(len, confidence)),
        "confidence": float(np.concatenate(confidence).sum()),
        "correct": int(np.concatenate(correct).sum()),
    }


def _missing(folder: Path, shards: int) -> list[int]:
    """Return the shards that an interrupted run has not finished."""
    return [
        index
        for index in range(shards)
        if store.shard_facts(store.shard_path(folder, index)) is None
    ]


def split_into_shards(rows: Sequence[EncodedSample]) -> list[Sequence[EncodedSample]]:
    """Cut the samples, longest first, into shards; the data alone decides."""
    lengths, counts = lengths_of(rows), counts_of(rows)
    ordered = np.argsort(-lengths, kind="stable")
    starts = np.flatnonzero(np.diff(lengths[ordered], prepend=-1))
    for alike in np.split(ordered, starts[1:]):  # views; among samples of one length ids decide
        alike[:] = sorted(alike.tolist(), key=lambda index: rows[index].id)
    cuts = []
    positions = tokens = 0
    for at, index in enumerate(ordered.tolist()):
        positions += counts[index]
        tokens += lengths[index]
        if positions > store.SHARD_POSITIONS or tokens > store.SHARD_TOKENS:
            cuts.append(at)
            positions, tokens = counts[index], lengths[index]
    return [Selected(rows, part) for part in np.split(ordered, cuts) if len(part)]


def top_k_of(
    reader: readout.Reader, rows: Sequence[EncodedSample], top_k: int, limit: int
) -> dict[str, TopK]:
    """Run the teacher over one batch and keep the top k of each supervised position.

    Raises:
        UserError: the teacher's output is not finite.
    """
    device = next(reader.model.parameters()).device
    padded = inference.pad([row.input_ids for row in rows])
    counts = [len(row.targets) for row in rows]
    at_rows = torch.arange(len(rows)).repeat_interleave(torch.tensor(counts))
    columns = torch.cat([torch.arange(row.start - 1, len(row.input_ids) - 1) for row in rows])
    found = reader(
        padded.input_ids.to(device),
        padded.attention_mask.to(device),
        at_rows.to(device),
        columns.to(device),
        lambda scores: readout.top_k(scores, top_k, limit),
    ).cpu()
    token_ids, log_probs, log_tail = readout.unpack(found)
    if not torch.isfinite(log_probs).all():
        bad = sorted({rows[int(i)].id for i in at_rows[~torch.isfinite(log_probs).all(-1)]})
        raise UserError(
            f"the teacher's output is not finite for {len(bad)} samples, such as "
            f"{shortened(bad, 3)}; check its weights, or try model.options.dtype: float32"
        )
    ends = np.cumsum(counts)
    return {
        row.id: TopK(
            token_ids[end - count : end].numpy().astype(np.int32),
            log_probs[end - count : end].numpy(),
            log_tail[end - count : end].numpy(),
        )
        for row, count, end in zip(rows, counts, ends, strict=True)
    }


def _teacher(run: Run, unit: Unit) -> str:
    tuned = [run.manifests[key].content for key in unit.needs]
    if not tuned:
        return run.checkpoint_identity("teacher")
    return tuned[0] if len(tuned) == 1 else " ".join(tuned)


def summary(run: Run, units: list[Unit]) -> dict[str, Any]:
    """Return the facts of each part."""
    return {unit.key: run.manifests[unit.key].facts for unit in units}
