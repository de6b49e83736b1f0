# ruff: noqa: TID253
"""Stage `extract`: the teacher's top-k log-probabilities at every supervised position."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from firstcli import heads, knowledge, models, processes
from firstcli.console import size
from firstcli.encoding import Encoded
from firstcli.errors import UserError, shortened
from firstcli.knowledge import TopK
from firstcli.lazy import Selected
from firstcli.out_of_memory import Halving
from firstcli.run import Run
from firstcli.stages import inputs
from firstcli.token_rows import counts_of, lengths_of
from firstcli.units import Unit

BATCH_TOKENS = 4096


def check(run: Run, unit: Unit) -> str:
    """Check data and tokenizer; return what the plan says of size."""
    if unit.part == "validation" and not run.training.validation:
        raise UserError(
            f"train.validation: {run.recipe.train.validation} of the training split leaves no row "
            "to fit a recalibrator on; raise it"
        )
    rows = inputs.training_rows(run, "teacher", unit.part)
    count = inputs.positions(rows)
    section = run.recipe.knowledge
    stored = count * knowledge.bytes_per_position(section.top_k, section.precision)
    return f"{len(rows)} samples, {count} positions; {size(stored)} of knowledge"


@torch.inference_mode()
def work(run: Run, unit: Unit, folder: Path) -> dict[str, Any]:
    """Write one shard after another; finished ones of an interrupted run are kept."""
    rows = inputs.training_rows(run, "teacher", unit.part)
    top_k, limit = run.recipe.knowledge.top_k, inputs.shared_vocabulary(run)
    shards = split_into_shards(rows)
    facts = {
        **run.recipe.knowledge.model_dump(),
        "split": unit.part,
        "shards": len(shards),
        "teacher": processes.by_first(lambda: _teacher(run)),
        "tokenizer": inputs.vocabulary_digest(run, "teacher"),
    }
    missing = processes.by_first(lambda: _missing(folder, len(shards)))
    done = len(rows) - sum(len(shards[index]) for index in missing)
    if done:
        run.console.say(f"{unit.key}: going on after {done} finished samples")
    ours = missing[processes.rank() :: processes.count()]  # whole shards, fixed by the data alone
    halving = Halving(run.console.warn, unit.key)
    if ours:
        reader = heads.Reader(inputs.inference_model(run, "teacher"), run.console.say)
        total = sum(len(shards[index]) for index in ours)
        with run.console.progress(unit.key, total, "samples") as advance:
            for index in ours:
                shard = shards[index]
                found: dict[str, TopK] = {}
                for batch in models.batches([len(row.input_ids) for row in shard], BATCH_TOKENS):
                    chosen = [shard[i] for i in batch]
                    found |= halving.run(chosen, lambda rows: top_k_of(reader, rows, top_k, limit))
                    advance(len(chosen))
                path = knowledge.shard_path(folder, index)
                knowledge.write_shard(path, shard, [found[row.id] for row in shard], facts)
    halved = sum(processes.gathered(halving.halved))
    if not processes.is_first():
        return {}
    paths = [knowledge.shard_path(folder, index) for index in range(len(shards))]
    if unseen := sum(not path.exists() for path in paths):
        raise UserError(
            f"{folder}: {unseen} shards that other processes wrote are not to be seen here; "
            "all machines must share the run folder"
        )
    return knowledge.summary(folder) | ({"batches_halved": halved} if halved else {})


def _missing(folder: Path, shards: int) -> list[int]:
    """Return the shards that an interrupted run has not finished."""
    return [
        index
        for index in range(shards)
        if knowledge.shard_facts(knowledge.shard_path(folder, index)) is None
    ]


def split_into_shards(rows: Sequence[Encoded]) -> list[Sequence[Encoded]]:
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
        if positions > knowledge.SHARD_POSITIONS or tokens > knowledge.SHARD_TOKENS:
            cuts.append(at)
            positions, tokens = counts[index], lengths[index]
    return [Selected(rows, part) for part in np.split(ordered, cuts) if len(part)]


def top_k_of(
    reader: heads.Reader, rows: Sequence[Encoded], top_k: int, limit: int
) -> dict[str, TopK]:
    """Run the teacher over one batch and keep the top k of each supervised position.

    Raises:
        UserError: the teacher's output is not finite.
    """
    device = next(reader.model.parameters()).device
    padded = models.pad([row.input_ids for row in rows])
    counts = [len(row.targets) for row in rows]
    at_rows = torch.arange(len(rows)).repeat_interleave(torch.tensor(counts))
    columns = torch.cat([torch.arange(row.start - 1, len(row.input_ids) - 1) for row in rows])
    found = reader(
        padded.input_ids.to(device),
        padded.attention_mask.to(device),
        at_rows.to(device),
        columns.to(device),
        lambda scores: heads.top_k(scores, top_k, limit),
    ).cpu()
    token_ids, log_probs, log_tail = heads.unpack(found)
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


def _teacher(run: Run) -> str:
    if "finetune" in run.manifests:
        return run.manifests["finetune"].content
    return run.checkpoint_identity("teacher")


def summary(run: Run, units: list[Unit]) -> dict[str, Any]:
    """Return the facts of each part."""
    return {unit.key: run.manifests[unit.key].facts for unit in units}
