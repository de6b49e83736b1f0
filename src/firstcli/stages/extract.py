# ruff: noqa: TID253
"""Stage `extract`: the teacher's top-k log-probabilities at every supervised position."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from firstcli import knowledge, models
from firstcli.console import size
from firstcli.encoding import Encoded
from firstcli.errors import UserError, shortened
from firstcli.knowledge import TopK
from firstcli.run import Run
from firstcli.stages import inputs
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
        "teacher": _teacher(run),
        "tokenizer": inputs.vocabulary_digest(run, "teacher"),
    }
    missing = [
        index
        for index in range(len(shards))
        if knowledge.shard_facts(knowledge.shard_path(folder, index)) is None
    ]
    done = len(rows) - sum(len(shards[index]) for index in missing)
    if done:
        run.console.say(f"{unit.key}: going on after {done} finished samples")
    if missing:
        model = inputs.inference_model(run, "teacher")
        logits_at = models.LogitsAt(model)
        with run.console.progress(unit.key, len(rows), "samples", done) as advance:
            for index in missing:
                shard = shards[index]
                found: dict[str, TopK] = {}
                for batch in models.batches([len(row.input_ids) for row in shard], BATCH_TOKENS):
                    chosen = [shard[i] for i in batch]
                    found |= top_k_of(logits_at, chosen, top_k, limit)
                    advance(len(chosen))
                path = knowledge.shard_path(folder, index)
                knowledge.write_shard(path, shard, [found[row.id] for row in shard], facts)
    return knowledge.summary(folder)


def split_into_shards(rows: Sequence[Encoded]) -> list[list[Encoded]]:
    """Cut the samples, longest first, into shards; the data alone decides."""
    shards: list[list[Encoded]] = []
    positions = tokens = 0
    for row in sorted(rows, key=lambda row: (-len(row.input_ids), row.id)):
        positions += len(row.targets)
        tokens += len(row.input_ids)
        if not shards or positions > knowledge.SHARD_POSITIONS or tokens > knowledge.SHARD_TOKENS:
            shards.append([])
            positions, tokens = len(row.targets), len(row.input_ids)
        shards[-1].append(row)
    return shards


def top_k_of(
    logits_at: models.LogitsAt, rows: Sequence[Encoded], top_k: int, limit: int
) -> dict[str, TopK]:
    """Run the teacher over one batch and keep the top k of each supervised position.

    Raises:
        UserError: the teacher's output is not finite.
    """
    device = next(logits_at.model.parameters()).device
    padded = models.pad([row.input_ids for row in rows])
    counts = [len(row.targets) for row in rows]
    at_rows = torch.arange(len(rows)).repeat_interleave(torch.tensor(counts))
    columns = torch.cat([torch.arange(row.start - 1, len(row.input_ids) - 1) for row in rows])
    logits = logits_at(
        padded.input_ids.to(device),
        padded.attention_mask.to(device),
        at_rows.to(device),
        columns.to(device),
    )
    token_ids, log_probs, log_tail = (part.cpu() for part in top_k_log_probs(logits, top_k, limit))
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


def top_k_log_probs(logits: Tensor, top_k: int, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids (N, k), log-probabilities (N, k) and the log of the mass outside (N,).

    Probabilities come from the softmax over all V tokens; only ids below `limit` are kept, the
    others count as outside. Overwrites `logits` (N, V).
    """
    log_z = torch.logsumexp(logits, dim=-1)  # (N,)
    scores, token_ids = logits[:, :limit].topk(top_k, dim=-1)
    logits.scatter_(-1, token_ids, -torch.inf)
    log_tail = torch.logsumexp(logits, dim=-1) - log_z  # -inf where nothing is outside
    return token_ids, scores - log_z[:, None], log_tail


def _teacher(run: Run) -> str:
    if "finetune" in run.manifests:
        return run.manifests["finetune"].content
    return run.checkpoint_identity("teacher")


def summary(run: Run, units: list[Unit]) -> dict[str, Any]:
    """Return the facts of each part."""
    return {unit.key: run.manifests[unit.key].facts for unit in units}
