"""The samples that models read, as tokens: those that fit into the context, by part and fold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain, islice

import numpy as np

from firstcli.api import BoolArray
from firstcli.data import splits
from firstcli.data.encoded import EncodedStore, IntArray, counts_of, lengths_of
from firstcli.data.encoding import EncodedQuestion, EncodedSample, answer_only, encode_questions
from firstcli.data.joint import CHUNK
from firstcli.errors import UserError, shortened
from firstcli.models import inference
from firstcli.recipe.shift import unshifted
from firstcli.stages import chat, encoded, role_models
from firstcli.training.copies import CopyChoice
from firstcli.workspace.run import Run, once_per_run
from firstcli.workspace.units import Part, Role, Unit, learned_parts, learns_copies, shift_of


@once_per_run
def training_rows(run: Run, role: Role, part: Part) -> EncodedStore:
    """Encode a part of the training split with a role's tokenizer.

    Raises:
        UserError: a sample cannot be encoded, or is too long and must not be dropped.
    """
    if part == "out-of-fold":
        return training_rows(run, role, "train")
    where = _part(part, role)
    rows = encoded.training_part(run, role, part, where)
    if run.recipe.answers_only:
        rows = EncodedStore(map(answer_only, rows), run.folder)
    if part == "copies":
        return rows.where(_short_copies(run, lengths_of(rows), context(run, role), where))
    kept = _fitting(run, role, lengths_of(rows), lambda index: rows[index].id, where)
    if not kept.any():
        raise UserError(f"{where}: no sample is left to use")
    return rows.where(kept)


def _part(part: Part, role: Role) -> str:
    """Name a part of the training data in messages."""
    return f"train.task ({part} part, {role}'s tokenizer)"


@once_per_run
def folds(run: Run) -> IntArray:
    """Return the fold of every sample of the training part, before any is dropped, (N,)."""
    count = run.recipe.knowledge.folds
    assert count
    return np.fromiter((splits.fold_of(sample, count) for sample in run.training.train), np.int64)


def rows_of_fold(run: Run, fold: int, *, seen: bool) -> EncodedStore:
    """Return the training samples that a fold's teacher has seen, or those that it scores.

    Raises:
        UserError: there are none.
    """
    rows = training_rows(run, "teacher", "train") if seen else knowledge_rows(run, "train")
    chosen = (folds(run)[rows.indices] != fold) == seen
    if not chosen.any():
        raise UserError(
            f"knowledge.folds: {run.recipe.knowledge.folds} folds of {len(rows)} training samples "
            f"leave fold {fold} without any; lower it"
        )
    return rows.where(chosen)


def rows_of(run: Run, unit: Unit) -> EncodedStore:
    """Return the samples that a unit's model is trained on."""
    if unit.fold is not None:
        return rows_of_fold(run, unit.fold, seen=True)
    if not unit.arm or run.recipe.arms[unit.arm].learn == "labels":
        return training_rows(run, unit.role, "train")
    parts = learned_parts(run.recipe, run.recipe.arms[unit.arm])
    chosen = (part for part in parts if part != "copies" and run.is_written(part))
    return _student_rows_of(run, tuple(chosen))


def copies_of(run: Run, unit: Unit) -> EncodedStore | None:
    """Return the copies that a unit's model learns, if any."""
    if not learns_copies(run.recipe, unit) or not run.is_written("copies"):
        return None
    if learns_labels(run, unit):
        return training_rows(run, unit.role, "copies")
    return student_rows(run, "copies")


def learns_labels(run: Run, unit: Unit) -> bool:
    """Return whether a unit's model learns labels, so that the other role's context is no limit."""
    return not unit.arm or run.recipe.arms[unit.arm].learn == "labels"


def left_out_copies(run: Run, unit: Unit) -> str:
    """Return the limit in tokens of the copies of a unit, or `any` if it leaves none out."""
    rows: EncodedStore | None
    if unit.role == "teacher" and unit.part == "copies":
        rows, longest = knowledge_rows(run, "copies"), shared_context(run)
    else:
        rows, longest = copies_of(run, unit), context(run, unit.role)
        longest = longest if learns_labels(run, unit) else shared_context(run)
    return "any" if rows is None or len(rows) == len(run.copies) else f"{longest:g} tokens"


def with_copies(run: Run, unit: Unit) -> tuple[EncodedStore, CopyChoice | None]:
    """Return the samples of a unit's model followed by their copies, and how one is chosen."""
    rows = rows_of(run, unit)
    if not learns_copies(run.recipe, unit) or not run.is_written("copies"):
        return rows, None
    return _joined_with_copies(run, unit, len(rows))


@once_per_run
def _joined_with_copies(run: Run, unit: Unit, count: int) -> tuple[EncodedStore, CopyChoice]:
    """Join a unit's samples, whose count grows when the teacher writes some, and their copies."""
    rows, copies, section = rows_of(run, unit), copies_of(run, unit), run.recipe.augmentation
    assert copies is not None and section
    choice = CopyChoice.of(
        [row.id for row in rows], [copy.id for copy in copies], section.share, run.seed_of(unit)
    )
    return EncodedStore(chain(rows, copies), run.folder), choice


@once_per_run
def _student_rows_of(run: Run, parts: tuple[Part, ...]) -> EncodedStore:
    if len(parts) == 1:
        return student_rows(run, parts[0])
    return EncodedStore(chain(*(student_rows(run, part) for part in parts)), run.folder)


def student_rows(run: Run, part: Part) -> EncodedStore:
    """Return the samples of a part that a student learns from a teacher."""
    rows = training_rows(run, "student", part)
    if part == "copies":
        rows = _shared_copies(run, "student", rows)
    is_whole = run.recipe.train.too_long == "error" and part != "copies"
    if not run.recipe.knowledge.over_candidates or is_whole:
        return rows
    # The tokenizers differ, so teacher and student may find different samples too long.
    return rows.where(np.isin(rows.indices, knowledge_rows(run, part).indices))


@once_per_run
def knowledge_rows(run: Run, part: Part) -> EncodedStore:
    """Return the samples of a part as the teacher scores them, in its own tokens.

    Over candidates, a sample ends with its answer position, and the samples whose candidates do not
    fit into the teacher's context are left out.

    Raises:
        UserError: a sample has no candidates, or is too long and must not be dropped.
    """
    if part == "out-of-fold":
        return knowledge_rows(run, "train")
    rows = training_rows(run, "teacher", part)
    if part == "copies":
        rows = _shared_copies(run, "teacher", rows)
    if not run.recipe.knowledge.over_candidates:
        return rows
    where = f"knowledge.over: candidates, {_part(part, 'teacher')}"
    questions = candidate_questions(run, part)
    lengths = np.array([q.start + max(map(len, q.candidates)) for q in questions], np.int64)
    if part == "copies":
        fits = _short_copies(run, lengths, shared_context(run), where)
    else:
        fits = _fitting(run, "teacher", lengths, lambda index: questions[index].id, where)
    whole = encoded.training_part(run, "teacher", part, _part(part, "teacher"))
    kept = np.isin(whole.indices, rows.indices) & fits
    return EncodedStore(map(answer_only, whole), run.folder).where(kept)


@once_per_run
def candidate_questions(run: Run, part: Part) -> list[EncodedQuestion]:
    """Encode all samples of a part as questions to the teacher.

    Raises:
        UserError: a sample has no candidates.
    """
    if part == "out-of-fold":
        return candidate_questions(run, "train")
    where = f"knowledge.over: candidates, {_part(part, 'teacher')}"
    return encode_questions(run.samples_of(part), chat.encoding(run, "teacher", where))


@once_per_run
def questions(run: Run, role: Role, evaluation: str) -> list[EncodedQuestion]:
    """Encode an evaluation's samples with a role's tokenizer."""
    shift = shift_of(run.recipe, evaluation)
    key = f"evaluate '{unshifted(evaluation)}'{f'.{shift.key}' if shift else ''}"
    where, advice = f"{key} ({role}'s tokenizer)", "leave it out" if shift else "shorten them"
    run.evaluation_content(evaluation)  # its mistakes first: some tokenizers read the training data
    rows = encoded.evaluation(run, role, evaluation, where)
    lengths = np.array([len(row.input_ids) for row in rows], np.int64)
    kept = _fitting(run, role, lengths, lambda index: rows[index].id, where, advice)
    if not kept.any():
        raise UserError(f"{where}: no question is left")
    return [row for row, fits in zip(rows, kept, strict=True) if fits]


@once_per_run
def candidate_tokens(run: Run, role: Role, part: Part) -> dict[str, tuple[int, ...]]:
    """Return the token of each candidate at the answer position, by the id of the sample.

    Samples without candidates are left out.
    """
    where = _part(part, role)
    with_candidates = (sample for sample in run.samples_of(part) if sample.candidates)
    tokens: dict[str, tuple[int, ...]] = {}
    while chunk := list(islice(with_candidates, CHUNK)):
        questions = encode_questions(chunk, chat.encoding(run, role, where))
        tokens |= {question.id: tuple(question.candidate_ids) for question in questions}
    return tokens


@once_per_run
def part_questions(run: Run, role: Role, part: Part) -> list[EncodedQuestion]:
    """Encode a part as questions; those that training leaves out are left out."""
    where = _part(part, role)
    kept = {row.id for row in training_rows(run, role, part)}
    samples = (s for s in run.training.part(part) if s.candidates and s.id in kept)
    return encode_questions(samples, chat.encoding(run, role, where))


@once_per_run
def context(run: Run, role: Role) -> float:
    """Return the length in tokens of the longest sample that a role may see.

    If long samples are dropped, the shorter context of both roles counts, so that teacher and
    students see the same samples. Otherwise an arm that learns labels is independent of the
    teacher.
    """
    if run.recipe.train.too_long == "drop" and run.recipe.teacher is not None:
        return shared_context(run)
    return _own_context(run, role) or math.inf


@once_per_run
def shared_context(run: Run) -> float:
    """Return the length in tokens of the longest sample that teacher and students may see."""
    roles: tuple[Role, ...] = ("teacher", "student")
    return min(_own_context(run, role) or math.inf for role in roles)


def _shared_copies(run: Run, role: Role, rows: EncodedStore) -> EncodedStore:
    """Return the copies that fit into the contexts of teacher and student."""
    where = _part("copies", role)
    return rows.where(_short_copies(run, lengths_of(rows), shared_context(run), where))


def _short_copies(run: Run, lengths: IntArray, longest: float, where: str) -> BoolArray:
    """Return which copies are not too long, (N,); the others are left out."""
    fits = np.asarray(lengths <= longest)
    if len(fits) and not fits.any():
        raise UserError(
            f"train.augment: no copy fits into the context of {longest:g} tokens ({where}); leave "
            "it out, or give augmenters that lengthen prompts less"
        )
    if not fits.all():
        run.console.warn(
            f"{where}: {(~fits).sum()} of {len(fits)} copies are longer than the context of "
            f"{longest:g} tokens and left out"
        )
    return fits


def _own_context(run: Run, role: Role) -> int | None:
    elsewhere = role_models.remote(run, role)
    if elsewhere is not None:
        return elsewhere.context(run.reference(role))
    return inference.context_length(role_models.empty_model(run, role))


def _fitting(
    run: Run,
    role: Role,
    lengths: IntArray,
    id_of: Callable[[int], str],
    where: str,
    advice: str = "shorten them",
) -> BoolArray:
    """Return which samples are not too long, (N,).

    Args:
        run: the run.
        role: whose context limits the lengths.
        lengths: in tokens, (N,).
        id_of: returns the id of a sample, given its index.
        where: begins the message.
        advice: what to do about samples that are too long, unless they are dropped.
    """
    longest = context(run, role)
    too_long = np.flatnonzero(lengths > longest)
    if len(too_long):
        names = shortened([id_of(index) for index in too_long[:3].tolist()], 3, len(too_long))
        problem = (
            f"{where}: {len(too_long)} samples, such as {names}, are longer than the context of "
            f"{longest} tokens"
        )
        if run.recipe.train.too_long == "error":
            raise UserError(f"{problem}; {advice}, or set train.too_long: drop")
        run.console.warn(f"{problem}; they are dropped")
    return np.asarray(lengths <= longest)


def positions(rows: Sequence[EncodedSample]) -> int:
    """Count the supervised positions of all samples."""
    return int(counts_of(rows).sum())
