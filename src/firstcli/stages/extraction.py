"""The work of stage `extract`: write the shards, and score samples again to verify them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from firstcli.api import IntArray
from firstcli.data.encoded import has_answer_position
from firstcli.data.encoding import EncodedSample
from firstcli.errors import UserError
from firstcli.knowledge import concentration, draws, shards, store
from firstcli.knowledge.codec import BOUNDS
from firstcli.knowledge.top_k import TopK
from firstcli.runtime import distributed
from firstcli.runtime.files import write_text
from firstcli.stages import inputs, remote, role_models, scoring, shared_tokens, teacher_knowledge
from firstcli.stages.scoring import ShardSamples, TeacherScorer, scorer_of
from firstcli.workspace.run import Run
from firstcli.workspace.units import Unit

DRAWS_BOUND = 0.005
"""The share of repeated draws that may differ from the stored ones."""


@torch.inference_mode()
def extract(run: Run, unit: Unit, folder: Path) -> dict[str, Any] | None:
    """Write the shards; return the fields of `ExtractFacts`, in the first process only."""
    sampled_shards = scoring.shards_of(run, unit)
    scorer = scorer_of(run, unit)
    _write_shards(run, unit, folder, sampled_shards, scorer)
    halved = sum(distributed.gathered(scorer.halving.halved))
    if not distributed.is_first():
        return None
    paths = [shards.shard_path(folder, index) for index in range(len(sampled_shards))]
    if unseen := sum(not path.exists() for path in paths):
        raise UserError(
            f"{folder}: {unseen} shards that other processes wrote are not visible here; all "
            "machines must share the run folder"
        )
    if measures_concentration(run, unit) and not (folder / concentration.FILE_NAME).exists():
        measured = _concentration(run, scorer, folder, sampled_shards)
        write_text(folder / concentration.FILE_NAME, json.dumps(measured) + "\n")
    spent = {} if role_models.remote(run, "teacher") is None else remote.spent(folder)
    return store.summary(folder) | {"batches_halved": halved or None} | spent


def measures_concentration(run: Run, unit: Unit) -> bool:
    """Return whether students learn most of their top tokens from a part."""
    is_largest = unit.part in ("train", "out-of-fold") and unit.teacher_seed is None
    section = run.recipe.knowledge
    return is_largest and not section.over_candidates and section.draws is None


def _write_shards(
    run: Run,
    unit: Unit,
    folder: Path,
    sampled_shards: Sequence[ShardSamples],
    scorer: TeacherScorer,
) -> None:
    """Write the shards that an interrupted run has not finished; each process writes some."""
    # What identifies the teacher: its content, or its checkpoint.
    contents = " ".join(run.manifests[key].content for key in unit.needs)
    format = replace(
        teacher_knowledge.store_format(run, unit.part),
        shards=len(sampled_shards),
        teacher=distributed.by_first(lambda: contents or run.checkpoint_identity("teacher")),
    )
    paths = [shards.shard_path(folder, index) for index in range(len(sampled_shards))]
    missing = distributed.by_first(
        lambda: [i for i, path in enumerate(paths) if shards.shard_facts(path) is None]
    )
    is_remote = role_models.remote(run, "teacher") is not None
    counts = [len(shard.rows) for shard in sampled_shards]
    if done := sum(counts) - sum(counts[index] for index in missing):
        run.console.say(f"{unit.key}: resuming after {done} finished samples")
    answers_only = bool(has_answer_position(inputs.knowledge_rows(run, unit.part)).any())
    answers = _answers(run, unit)
    labelled = unit.part not in ("unlabelled", "written")
    # Each process takes whole shards, whose content depends on the data alone.
    ours = missing[distributed.rank() :: distributed.count()]
    what = "samples"
    if is_remote:
        remote.require_as_begun(run, unit.part, folder, [shard.rows for shard in sampled_shards])
        counts = [inputs.positions(shard.rows) for shard in sampled_shards]
        what = "positions"
    total = sum(counts[index] for index in ours)
    with run.console.progress(unit.key, total, what) as advance:
        for index in ours:
            rows, kept = sampled_shards[index].rows, remote.answers_file(folder, index)
            knowledge = scorer(sampled_shards[index], format.top_k, advance, answers=kept)
            ordered = [knowledge[row.id] for row in rows]
            labels = [answers.get(row.id, row.targets) for row in rows] if labelled else None
            # The most frequent of a few draws may not be the teacher's most likely token.
            is_drawn = format.draws is not None
            top_1 = None if is_drawn else _top_1(rows, ordered, labels, answers_only)
            shards.write_shard(paths[index], rows, ordered, format, top_1)
            kept.unlink(missing_ok=True)


def _answers(run: Run, unit: Unit) -> dict[str, IntArray]:
    """Return the index of each sample's right candidate by id, if knowledge is over candidates."""
    if not run.recipe.knowledge.over_candidates or unit.part == "unlabelled":
        return {}
    questions = inputs.candidate_questions(run, unit.part)
    return {question.id: np.array([question.answer], np.int64) for question in questions}


def _concentration(
    run: Run, scorer: TeacherScorer, folder: Path, sampled_shards: Sequence[ShardSamples]
) -> dict[str, Any]:
    """Score some samples once more, with many more tokens than the store keeps.

    A remote teacher is not asked for more than the top k, which servers limit and may charge for.
    """
    width = min(concentration.RANKS, shared_tokens.shared_vocabulary(run))
    if role_models.remote(run, "teacher") is not None:
        return _stored_concentration(run, folder, sampled_shards)
    total = sum(len(shard.rows) for shard in sampled_shards)
    rows: list[EncodedSample] = []
    knowledge: dict[str, TopK] = {}
    for shard in sampled_shards:
        drawn = concentration.subset(shard.rows, total)
        knowledge |= scorer(ShardSamples(drawn, shard.fold), width)
        rows += drawn
    section = run.recipe.knowledge
    wide = [knowledge[row.id] for row in rows]
    return concentration.measure(rows, wide, section.precision, section.top_k)


def _stored_concentration(
    run: Run, folder: Path, sampled_shards: Sequence[ShardSamples]
) -> dict[str, Any]:
    stored, section = store.Knowledge(folder), run.recipe.knowledge
    total = sum(len(shard.rows) for shard in sampled_shards)
    rows = [row for shard in sampled_shards for row in concentration.subset(shard.rows, total)]
    known = [stored.of(row) for row in rows]
    return concentration.measure(rows, known, section.precision, section.top_k)


def _top_1(
    rows: Sequence[EncodedSample],
    knowledge: Sequence[TopK],
    labels: Sequence[npt.NDArray[np.integer]] | None,
    answers_only: bool,
) -> dict[str, Any]:
    """Compare the top token's probability with how often it is the label.

    A teacher is more confident, and more often right, on samples that it was fine-tuned on.

    Args:
        rows: the samples.
        knowledge: their knowledge.
        labels: the right outcome at each of their positions; None for samples without labels, of
            which nothing is `correct` or wrong.
        answers_only: count only the answer positions, which tell the candidates apart.
    """
    confidence, correct = [], []
    for number, (row, top) in enumerate(zip(rows, knowledge, strict=True)):
        positions: Any = slice(None)
        if answers_only:
            positions = row.positions == row.answer_position
        confidence.append(np.exp(top.log_probs[positions, 0], dtype=np.float64))
        if labels is not None:
            correct.append(top.token_ids[positions, 0] == labels[number][positions])
    sums: dict[str, Any] = {
        "judged": sum(map(len, confidence)),
        "confidence": float(np.concatenate(confidence).sum()),
    }
    return sums if labels is None else sums | {"correct": int(np.concatenate(correct).sum())}


@torch.inference_mode()
def verify(run: Run, unit: Unit, samples: int) -> dict[str, Any]:
    """Score random samples of a part again and return the largest differences.

    Raises:
        UserError: a probability differs by more than the store's precision allows.
    """
    rows = inputs.knowledge_rows(run, unit.part)
    generator = np.random.default_rng(run.recipe.seed)
    drawn = generator.choice(len(rows), min(samples, len(rows)), replace=False)
    chosen = [rows[int(i)] for i in drawn]
    ids, again = {row.id for row in chosen}, dict[str, TopK]()
    scorer, top_k = scorer_of(run, unit), teacher_knowledge.knowledge_width(run)
    for shard in scoring.shards_of(run, unit):
        again |= scorer(shard, top_k, only=ids)
    stored = store.Knowledge(unit.artifact.path)
    if run.recipe.knowledge.draws is not None:
        return _verify_draws(run, unit, chosen, stored, again)
    bound = BOUNDS[run.recipe.knowledge.precision]
    differences = {row.id: difference(stored.of(row), again[row.id]) for row in chosen}
    worst = max(differences, key=lambda id: differences[id][0])
    probability, mass = (float(max(column)) for column in zip(*differences.values(), strict=True))
    run.console.say(
        f"{unit.key}: {len(chosen)} samples, {inputs.positions(chosen)} positions scored again; "
        f"largest difference of a probability {probability:.2g}, of the top-k mass {mass:.2g} "
        f"(bound {bound:g})"
    )
    if probability > bound:
        raise UserError(
            f"{unit.artifact.path}: the teacher now gives sample '{worst}' a probability that "
            f"differs by {probability:.2g} from the stored one, more than the {bound:g} of this "
            "precision; check that the teacher and the device are those of the extraction, or run "
            "`first extract --force`"
        )
    return {"samples": len(chosen), "probability": probability, "mass": mass, "bound": bound}


def _verify_draws(
    run: Run,
    unit: Unit,
    chosen: Sequence[EncodedSample],
    stored: store.Knowledge,
    again: Mapping[str, TopK],
) -> dict[str, Any]:
    """Compare draws that were repeated with the same random numbers.

    A probability that is off in its last digits changes a draw in a million; another teacher
    changes many.

    Args:
        run: the run.
        unit: the extraction.
        chosen: the samples.
        stored: the knowledge on disk.
        again: the repeated draws, by sample id.

    Raises:
        UserError: more draws differ than rounding explains.
    """
    count = scoring.drawing_of(run).draws
    shares = {row.id: draws.changed(stored.of(row), again[row.id], count) for row in chosen}
    worst = max(shares, key=lambda id: shares[id])
    positions = inputs.positions(chosen)
    share = sum(shares[row.id] * len(row.targets) for row in chosen) / positions
    run.console.say(
        f"{unit.key}: {len(chosen)} samples, {positions} positions drawn again; {share:.2g} of the "
        f"draws differ (bound {DRAWS_BOUND:g})"
    )
    if share > DRAWS_BOUND:
        raise UserError(
            f"{unit.artifact.path}: {share:.2g} of the draws now give another token, more than the "
            f"{DRAWS_BOUND:g} that rounding may change, most of them for sample '{worst}'; check "
            "that the teacher and the device are those of the extraction, or run "
            "`first extract --force`"
        )
    return {
        "samples": len(chosen),
        "draws": count * positions,
        "changed": share,
        "bound": DRAWS_BOUND,
    }


def difference(stored: TopK, again: TopK) -> tuple[float, float]:
    """Return the largest differences of a token's probability and of the top-k mass.

    A stored token that is no longer among the k now has at most the k-th token's probability.
    """
    before, now = np.exp(stored.log_probs, dtype=float), np.exp(again.log_probs, dtype=float)
    same = stored.token_ids[:, :, None] == again.token_ids[:, None, :]  # (N, k, k)
    matched = np.where(same, now[:, None, :], 0.0).sum(-1)  # (N, k)
    matched = np.where(same.any(-1), matched, np.minimum(before, now[:, -1:]))
    masses = np.expm1(stored.log_tail, dtype=float) - np.expm1(again.log_tail, dtype=float)
    return float(np.abs(before - matched).max()), float(np.abs(masses).max())
