"""Ask a teacher whose model runs elsewhere, and keep every answer until its result is stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, Any

import numpy as np

from firstcli.api import (
    CandidateQuery,
    RemoteScorer,
    RemoteUsage,
    TokenQuery,
    TopTokens,
)
from firstcli.data.encoding import EncodedQuestion, EncodedSample
from firstcli.errors import UserError
from firstcli.knowledge import shards
from firstcli.knowledge.candidates import top_candidates
from firstcli.knowledge.codec import BOUNDS
from firstcli.knowledge.top_k import TopK
from firstcli.models import inference
from firstcli.runtime import distributed
from firstcli.stages import chat, inputs, role_models, shared_tokens, teacher_knowledge
from firstcli.stages.remote_answers import shared_answers
from firstcli.workspace.run import Run, once_per_run
from firstcli.workspace.units import Part

ASKED_AGAIN = 3
"""Stored samples that are asked for again when work goes on."""
CHANGED = 0.02
"""Mean difference of stored and new distributions, beyond rounding, from which a model counts as
changed. Servers that compute in bfloat16 differ by a few thousandths from one batch to another."""
MOST_MASS = 1.001
"""Largest sum of the top k's probabilities that rounding explains."""
COMPARED_PARTS: tuple[Part, ...] = ("train", "validation", "unlabelled")


@once_per_run
def scorer(run: Run) -> RemoteScorer:
    """Return what asks the teacher; one for the whole run."""
    family = role_models.remote(run, "teacher")
    assert family is not None
    return family.scorer(run.reference("teacher"), role_models.tokenizer(run, "teacher"))


def check(run: Run) -> None:
    """Ask one short question.

    Raises:
        UserError: the teacher does not answer as it must, or not as the candidates begin.
    """
    _check_candidates(run)
    with run.console.status("asking the teacher's server"):
        section = run.recipe.knowledge
        # Over candidates, `top_k` is a number of candidates, which are asked for by themselves.
        scorer(run).check(min(section.top_k, 5) if section.over_candidates else section.top_k)


def _check_candidates(run: Run) -> None:
    """Check how candidates begin, for a teacher that answers without a space in front.

    One question of each task is enough: its candidates are all written in the same way.

    Raises:
        UserError: a candidate begins with a space.
    """
    family = role_models.remote(run, "teacher")
    if family is None or not family.answers_without_space:
        return
    first = {"": run.samples_of("train")[0]}
    for evaluation in run.recipe.evaluate:
        first[evaluation.name] = run.evaluation_samples(evaluation.name)[0]
    problems = [
        f"{run.task_key(name)}: candidates such as {candidate!r} begin with a space, but in a "
        "chat the teacher answers without one; let responses begin without a space, or "
        "choose another protocol"
        for name, sample in first.items()
        if chat.chat_format(run, "teacher", name) is None  # which removes spaces
        for candidate in sample.candidates[:1]
        if candidate[:1].isspace()
    ]
    if problems:
        raise UserError(*dict.fromkeys(problems))  # evaluations may share the training task


def query_of(row: EncodedSample) -> TokenQuery:
    """Return the question for the supervised positions of a sample."""
    _, before = inference.before_targets([row])
    return TokenQuery(row.id, row.input_ids.astype(np.int64), before.numpy() + 1)


def estimate(run: Run, rows: Sequence[EncodedSample]) -> str:
    """Describe in words what asking for all samples takes."""
    return described(scorer(run).estimate([query_of(row) for row in rows]))


def described(usage: RemoteUsage) -> str:
    """Describe in words what questions take."""
    cost = "" if usage.cost is None else f", cost {usage.cost:.4g}"
    return (
        f"{usage.requests:,} requests, {usage.input_tokens:,} input and "
        f"{usage.output_tokens:,} output tokens{cost}"
    )


def knowledge(
    run: Run,
    rows: Sequence[EncodedSample],
    top_k: int,
    advance: Callable[[int], None] = lambda _: None,
    file: Path | None = None,
) -> dict[str, TopK]:
    """Ask for the top k at the supervised positions of samples, by id.

    Args:
        run: the run.
        rows: the samples.
        top_k: tokens to keep at each position.
        advance: is called with the number of positions of each answer.
        file: keeps the answers if the work is interrupted; those that it has are not asked for,
            nor those that the run shares with others. Without it, everything is asked for.
    """
    found = {id: _as_top_k(answer) for id, answer in kept_answers(file).items()}
    shared = shared_answers(run) if file is not None else None
    missing = []
    for row in rows:
        if shared and row.id not in found and (known := shared.get(query_of(row), top_k)):
            found[row.id] = _as_top_k(known)
        if row.id in found:
            advance(len(found[row.id].log_tail))
        else:
            missing.append(query_of(row))
    limit = shared_tokens.shared_vocabulary(run)
    with _recording(run, file) as record:
        for index, answer in scorer(run).top_k(missing, top_k):
            query = missing[index]
            kept = _as_json(checked(query, answer, top_k, limit))
            record(query.id, kept)
            if shared:
                shared.add(query, top_k, kept)
            found[query.id] = _as_top_k(kept)  # as it is read again, to the last bit
            advance(len(query.positions))
    return {row.id: found[row.id] for row in rows}


def candidate_log_probs(
    run: Run, questions: Sequence[EncodedQuestion], title: str, file: Path | None = None
) -> dict[str, list[float]]:
    """Ask for each candidate's log-probability at the answer position, by question id.

    Args:
        run: the run.
        questions: the questions.
        title: what is being done, for progress.
        file: as for `knowledge`.
    """
    return distributed.by_first(lambda: _candidates(run, questions, title, file))


def whole_candidates(
    run: Run, questions: Sequence[EncodedQuestion], title: str, file: Path | None = None
) -> dict[str, list[float]]:
    """Ask for each candidate's log-probability, by question id.

    A server returns the probability of a candidate's first token, which is that of the candidate
    unless other texts begin with the same token.

    Args: as for `candidate_log_probs`.

    Raises:
        UserError: the candidates of a question begin with the same token.
    """
    shared = [each.id for each in questions if len(each.input_ids) != each.start]
    if shared:
        raise UserError(
            f"knowledge.over: a remote teacher is asked for the first token of each candidate, but "
            f"those of {len(shared)} questions, such as '{shared[0]}', begin alike; let the model "
            "answer with letters"
        )
    return _candidates(run, questions, title, file)  # each process has shards of its own


def _candidate_query(question: EncodedQuestion) -> CandidateQuery:
    ids = question.input_ids.astype(np.int64)
    return CandidateQuery(question.id, ids, tuple(question.candidate_ids))


def _candidates(
    run: Run, questions: Sequence[EncodedQuestion], title: str, file: Path | None
) -> dict[str, list[float]]:
    require_as_stored(run)
    found: dict[str, list[float]] = dict(kept_answers(file))
    shared = shared_answers(run) if file is not None else None
    missing = [_candidate_query(each) for each in questions if each.id not in found]
    if shared:
        found |= {each.id: known for each in missing if (known := shared.get(each, 0))}
        missing = [each for each in missing if each.id not in found]
    with (
        run.console.progress(title, len(questions), "questions", len(found)) as advance,
        _recording(run, file) as record,
    ):
        for index, answer in scorer(run).candidates(missing):
            query = missing[index]
            if answer.shape != (len(query.candidates),) or not (answer <= 1e-3).all():
                raise _unfit(query.id, "its log-probabilities of the candidates are none")
            record(query.id, answer.tolist())
            if shared:
                shared.add(query, 0, answer.tolist())
            found[query.id] = answer.tolist()
            advance(1)
    return {question.id: found[question.id] for question in questions}


def checked(query: TokenQuery, answer: TopTokens, top_k: int, limit: int) -> TopK:
    """Return an answer as knowledge: the most likely token first, the rest as tail.

    Args:
        query: the question.
        answer: what came back.
        top_k: tokens to keep at each position.
        limit: number of token ids that may be kept, counted from 0.

    Raises:
        UserError: the answer does not have `top_k` tokens at each position, or no probabilities.
    """
    ids, log_probs = np.asarray(answer.token_ids), np.asarray(answer.log_probs, np.float64)
    if ids.shape != (len(query.positions), top_k) or log_probs.shape != ids.shape:
        wanted = (len(query.positions), top_k)
        raise _unfit(query.id, f"it has the shape {log_probs.shape} instead of {wanted}")
    if ids.size and not (ids.min() >= 0 and ids.max() < limit):
        outside = int(ids[(ids < 0) | (ids >= limit)][0])
        raise _unfit(query.id, f"token {outside} is none of the {limit} that both models share")
    if any(len(set(row)) < top_k for row in ids.tolist()):
        raise _unfit(query.id, "a position has a token twice")
    masses = np.exp(log_probs).sum(axis=1)
    if not np.isfinite(log_probs).all() or (masses > MOST_MASS).any():
        raise _unfit(query.id, "its numbers are no log-probabilities")
    order = np.lexsort((ids, -log_probs), axis=1)  # of equally likely tokens, the lower id first
    with np.errstate(divide="ignore"):
        log_tail = np.log1p(-np.minimum(masses, 1.0))
    return TopK(
        np.take_along_axis(ids, order, axis=1).astype(np.int32),
        np.minimum(np.take_along_axis(log_probs, order, axis=1), 0.0).astype(np.float32),
        log_tail.astype(np.float32),
    )


def _unfit(id: str, problem: str) -> UserError:
    return UserError(f"the teacher's answer to '{id}' does not fit: {problem}")


# Answers are kept as JSON lines. A killed process leaves at most its last line incomplete.


def answers_file(folder: Path, index: int | None = None) -> Path:
    """Return the file in a work folder that keeps the answers of a shard, or of everything."""
    return folder / (".answers.jsonl" if index is None else f".answers-{index:05d}.jsonl")


def kept_answers(file: Path | None) -> dict[str, Any]:
    """Return the answers that a file keeps, by id."""
    if file is None or not file.exists():
        return {}
    answers: dict[str, Any] = {}
    for line in file.read_text("utf-8").split("\n")[:-1]:
        try:
            answers.update([json.loads(line)])
        except ValueError:  # a line that a killed process began, and a later one went on with
            continue
    return answers


@contextmanager
def _recording(run: Run, file: Path | None) -> Iterator[Callable[[str, Any], None]]:
    """Yield what appends an answer to a file, and what it took to another file beside it."""
    if file is None:
        yield lambda id, answer: None
        return
    spent = file.with_name(f".spent-{distributed.rank()}.jsonl")
    with file.open("a", encoding="utf-8") as answers, spent.open("a", encoding="utf-8") as costs:
        if file.stat().st_size:
            answers.write("\n")  # ends a line that a killed process may have left
        before = scorer(run).used

        def record(id: str, answer: Any) -> None:
            nonlocal before
            now = scorer(run).used
            _append(answers, [id, answer])
            _append(costs, _difference(now, before))
            before = now

        yield record


def _append(file: IO[str], value: object) -> None:
    file.write(json.dumps(value) + "\n")
    file.flush()


def _difference(now: RemoteUsage, before: RemoteUsage) -> list[float | None]:
    return [
        None if (value := getattr(now, field.name)) is None else value - getattr(before, field.name)
        for field in fields(RemoteUsage)
    ]


def spent(folder: Path) -> dict[str, Any]:
    """Return what the answers took that ended in a work folder, also those of interrupted runs."""
    totals = dict.fromkeys(asdict(RemoteUsage()), 0.0)
    priced = True
    for path in sorted(folder.glob(".spent-*.jsonl")):
        for line in path.read_text("utf-8").split("\n")[:-1]:
            try:
                values = json.loads(line)
            except ValueError:
                continue
            priced = priced and values[-1] is not None
            for name, value in zip(totals, values, strict=True):
                totals[name] += value or 0
        path.unlink()
    counts = {name: int(value) for name, value in totals.items() if name != "cost"}
    return counts | ({"cost": totals["cost"]} if priced else {})


def _as_json(top: TopK) -> list[Any]:
    return [top.token_ids.tolist(), top.log_probs.tolist(), np.exp(top.log_tail).tolist()]


def _as_top_k(answer: Any) -> TopK:
    ids, log_probs, tail = answer
    with np.errstate(divide="ignore"):
        log_tail = np.log(np.array(tail, np.float32))
    return TopK(np.array(ids, np.int32), np.array(log_probs, np.float32), log_tail)


# A server's model has no digest, so stored samples are asked for again.


def _asked_again(
    run: Run, part: Part, rows: Sequence[EncodedSample], ids: Container[str]
) -> dict[str, TopK]:
    if not run.recipe.knowledge.over_candidates:
        return knowledge(run, _with_ids(rows, ids), run.recipe.knowledge.top_k)
    chosen = [each for each in inputs.candidate_questions(run, part) if each.id in ids]
    queries = [_candidate_query(each) for each in chosen]
    width = teacher_knowledge.knowledge_width(run)
    answers = scorer(run).candidates(queries)
    return {queries[i].id: top_candidates(values.tolist(), width) for i, values in answers}


@once_per_run
def require_as_stored(run: Run) -> None:
    """Ask again for a few samples whose knowledge is up to date.

    Raises:
        UserError: the answers differ.
    """
    for part in COMPARED_PARTS:
        folder = run.folder / "knowledge" / part
        manifests = run.manifests.values()
        path = shards.shard_path(folder, 0)
        if path.exists() and any(path.name in m.files and part in m.unit for m in manifests):
            rows = inputs.training_rows(run, "teacher", part)
            require_unchanged(run, part, rows, _some_of(path))
            return


def require_as_begun(
    run: Run, part: Part, folder: Path, sampled: Sequence[Sequence[EncodedSample]]
) -> None:
    """Ask again for a few samples that an interrupted run has stored in a work folder.

    Args:
        run: the run.
        part: the part of the samples.
        folder: the work folder.
        sampled: the samples of each shard.

    Raises:
        UserError: the answers differ.
    """
    for index, rows in enumerate(sampled):
        path = shards.shard_path(folder, index)
        if shards.shard_facts(path) is not None:
            return require_unchanged(run, part, rows, _some_of(path))
    for index, rows in enumerate(sampled):
        kept = kept_answers(answers_file(folder, index))
        if kept:
            some = list(kept)[:: max(1, len(kept) // ASKED_AGAIN)][:ASKED_AGAIN]
            return require_unchanged(run, part, rows, {id: _kept(run, kept[id]) for id in some})
    return None


def _kept(run: Run, answer: Any) -> TopK:
    """Return the knowledge in a kept answer."""
    if run.recipe.knowledge.over_candidates:
        return top_candidates(answer, teacher_knowledge.knowledge_width(run))
    return _as_top_k(answer)


def _some_of(path: Path) -> dict[str, TopK]:
    """Return the knowledge of a few samples of a shard, by id."""
    shard = shards.read_shard(path)
    ends = np.cumsum(shard.counts)
    chosen = np.unique(np.linspace(0, len(shard.ids) - 1, ASKED_AGAIN).round().astype(int))
    some = {}
    for index in chosen.tolist():
        part = slice(ends[index] - shard.counts[index], ends[index])
        known = shard.known
        some[shard.ids[index]] = TopK(
            known.token_ids[part], known.log_probs[part], known.log_tail[part]
        )
    return some


def require_unchanged(
    run: Run, part: Part, rows: Sequence[EncodedSample], stored: Mapping[str, TopK]
) -> None:
    """Ask again for some samples and compare.

    Args:
        run: the run.
        part: the part of the samples.
        rows: the samples, and others.
        stored: their knowledge, by id.

    Raises:
        UserError: the answers differ by more than rounding.
    """
    again = _asked_again(run, part, rows, stored)
    bound = CHANGED + BOUNDS[run.recipe.knowledge.precision]
    distances = {id: stored[id].distance(again[id]) for id in again}
    worst = max(distances, key=distances.__getitem__, default=None)
    if worst is not None and distances[worst] > bound:
        raise UserError(
            f"the teacher's server now answers differently: its probabilities of sample '{worst}' "
            f"differ by {distances[worst]:.2g} on average from the stored ones, more than "
            f"{bound:g}; what is stored is kept: serve the same model again, or start anew with "
            "`first extract --force`"
        )


def _with_ids(rows: Sequence[EncodedSample], ids: Container[str]) -> list[EncodedSample]:
    return [row for row in rows if row.id in ids]
