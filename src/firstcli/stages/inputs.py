"""What several stages load: tokenizers, encoded samples, models, and the checks on them.

Everything is kept in the run's cache, so that a check and the work after it load once.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from firstcli.data import splits
from firstcli.data.encoded import EncodedStore, IntArray, counts_of
from firstcli.data.encoding import EncodedQuestion, EncodedSample, each_encoded, encode_questions
from firstcli.data.sequences import Selected
from firstcli.errors import UserError, shortened
from firstcli.knowledge import store
from firstcli.models import inference
from firstcli.recipe.schema import family_of
from firstcli.runtime.console import size
from firstcli.workspace.run import Part, Role, Run
from firstcli.workspace.units import Model

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from firstcli.workspace.units import Unit


def family(run: Run, role: Role) -> inference.Family:
    return run.cached(f"family {role}", lambda: family_of(run.model_section(role)))


def tokenizer(run: Run, role: Role) -> PreTrainedTokenizerBase:
    """Return the tokenizer with which a role's model starts; training does not change it."""

    def make() -> PreTrainedTokenizerBase:
        chosen = family(run, role)
        return chosen.tokenizer(run.reference(role), _text(run) if chosen.needs_text else ())

    return run.cached(f"tokenizer {role}", make)


def _text(run: Run) -> Iterable[str]:
    for sample in chain(run.training.train, run.training.validation):
        for response in sample.candidates or (sample.response,):
            yield sample.prompt + response


def empty_model(run: Run, role: Role) -> PreTrainedModel:
    """Return a role's architecture without weights."""
    return run.cached(
        f"empty {role}",
        lambda: family(run, role).empty_model(run.reference(role), tokenizer(run, role)),
    )


def starting_model(run: Run, role: Role, dtype: inference.Dtype, seed: int) -> PreTrainedModel:
    """Load the weights with which training starts, on the CPU."""
    return family(run, role).model(run.reference(role), tokenizer(run, role), dtype, seed)


def model(run: Run, which: Model) -> PreTrainedModel:
    """Load the teacher or a student for inference, on its device."""
    if not which.arm:
        return teacher(run)
    return _ready(run, "student", run.folder / "students" / which.trained)


def teacher(run: Run, fold: int | None = None) -> PreTrainedModel:
    """Load the teacher, or the one that has not seen a fold, for inference, on its device."""
    if fold is not None:
        return _ready(run, "teacher", run.folder / "folds" / str(fold))
    tuned = run.recipe.teacher and run.recipe.teacher.finetune
    return _ready(run, "teacher", run.folder / "teacher" if tuned else None)


def _ready(run: Run, role: Role, folder: Path | None) -> PreTrainedModel:
    chosen = family(run, role)
    device = inference.device_of(chosen)
    dtype = inference.inference_dtype(chosen, device)
    if folder:
        model = chosen.load_trained(folder, dtype)
    else:
        model = starting_model(run, role, dtype, run.recipe.seed)
    model.to(device)  # type: ignore[arg-type]  # a decorator hides its signature
    model.eval()
    return model


def training_rows(run: Run, role: Role, part: Part) -> EncodedStore:
    """Encode a part of the training split with a role's tokenizer.

    Raises:
        UserError: a sample cannot be encoded as DESIGN asks, or is too long and may not be dropped.
    """
    if part == "out-of-fold":
        part = "train"  # the same rows

    def make() -> EncodedStore:
        where = f"train.task ({part} part, {role}'s tokenizer)"
        warnings: list[str] = []
        samples = run.training.part(part)
        rows = EncodedStore(
            each_encoded(samples, tokenizer(run, role), where, warnings), run.folder
        )
        for warning in warnings:
            run.console.warn(warning)
        kept = _fitting(run, role, rows.lengths, lambda index: rows[index].id, where)
        if not kept.any():
            raise UserError(f"{where}: no sample is left to use")
        return rows.where(kept)

    return run.cached(f"rows {role} {part}", make)


def folds(run: Run) -> npt.NDArray[np.int64]:
    """Return the fold of every sample of the training part, before any is dropped."""
    count = run.recipe.knowledge.folds
    assert count

    def make() -> npt.NDArray[np.int64]:
        found = (splits.fold_of(sample, count) for sample in run.training.train)
        return np.fromiter(found, np.int64)

    return run.cached("folds", make)


def rows_of_fold(run: Run, fold: int, *, seen: bool) -> EncodedStore:
    """Return the training rows that a fold's teacher has seen, or those that it has not.

    Raises:
        UserError: there are none.
    """
    rows = training_rows(run, "teacher", "train")
    chosen = (folds(run)[rows.numbers] != fold) == seen
    if not chosen.any():
        raise UserError(
            f"knowledge.folds: {run.recipe.knowledge.folds} folds of {len(rows)} training samples "
            f"leave fold {fold} without any; lower it"
        )
    return rows.where(chosen)


def questions(run: Run, role: Role, evaluation: str) -> list[EncodedQuestion]:
    """Encode an evaluation's samples with a role's tokenizer."""

    def make() -> list[EncodedQuestion]:
        where = f"evaluate '{evaluation}' ({role}'s tokenizer)"
        rows = encode_questions(run.evaluation_samples(evaluation), tokenizer(run, role), where)
        lengths = np.array([len(row.input_ids) for row in rows], np.int64)
        kept = _fitting(run, role, lengths, lambda index: rows[index].id, where)
        if not kept.any():
            raise UserError(f"{where}: no question is left to ask")
        return [row for row, fits in zip(rows, kept, strict=True) if fits]

    return run.cached(f"questions {role} {evaluation}", make)


def context(run: Run, role: Role) -> float:
    """Return the longest sample in tokens that a role may see.

    Where long samples are dropped it is the shorter context of the two, so that teacher and
    students see the same rows; otherwise a labels arm needs to know nothing of the teacher.
    """
    shared = run.recipe.train.too_long == "drop" and run.recipe.teacher is not None
    roles: list[Role] = ["teacher", "student"] if shared else [role]
    return min(inference.context_length(empty_model(run, role)) or math.inf for role in roles)


def _fitting(
    run: Run, role: Role, lengths: IntArray, id_of: Callable[[int], str], where: str
) -> npt.NDArray[np.bool_]:
    """Return which samples are not too long, (N,)."""
    longest = context(run, role)
    too_long = np.flatnonzero(lengths > longest)
    if len(too_long):
        names = shortened([id_of(index) for index in too_long[:3].tolist()], 3, len(too_long))
        found = (
            f"{where}: {len(too_long)} samples, such as {names}, are longer than the context of "
            f"{longest} tokens"
        )
        if run.recipe.train.too_long == "error":
            raise UserError(f"{found}; shorten them, or set train.too_long: drop")
        run.console.warn(f"{found}; they are dropped")
    return np.asarray(lengths <= longest)


def shared_vocabulary(run: Run) -> int:
    """Return the number of token ids that teacher and student have in common, from 0 on.

    Vocabularies padded to different sizes are fine: ids that the student lacks stay out of the
    top k and count as tail.
    """
    return run.cached(
        "shared vocabulary", lambda: min(vocabulary(run, "teacher"), vocabulary(run, "student"))
    )


def vocabulary(run: Run, role: Role) -> int:
    """Return the number of token ids that a role's tokenizer and model both know, from 0 on."""
    named = max(tokenizer(run, role).get_vocab().values()) + 1
    return min(named, inference.vocabulary_size(empty_model(run, role)))


def vocabulary_digest(run: Run, role: Role) -> str:
    """Tell tokenizers apart by their tokens; how they cut a text shows in the samples' tokens."""

    def make() -> str:
        tokens = sorted(tokenizer(run, role).get_vocab().items(), key=lambda item: item[1])
        return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()

    return run.cached(f"vocabulary digest {role}", make)


def stored_knowledge(run: Run, part: Part, samples: Sequence[EncodedSample]) -> store.Knowledge:
    """Open a part's knowledge and see to it that it is what the samples are to learn from.

    Raises:
        UserError: it is damaged, or of another tokenizer, text, prompt, k or precision.
    """

    def checked() -> store.Knowledge:
        expected = store.StoreFormat(
            **run.recipe.knowledge.stored(),
            split=part,
            tokenizer=vocabulary_digest(run, "teacher"),
        )
        stored = store.Knowledge(run.folder / "knowledge" / part, expected)
        stored.check(samples)
        return stored

    made = run.manifests.get(f"extract {part}")  # every arm learns from the same
    return run.cached(f"knowledge {part} {made.content}", checked) if made else checked()


def weights(run: Run, role: Role) -> int:
    """Count a role's parameters."""
    return sum(parameter.numel() for parameter in empty_model(run, role).parameters())


def positions(rows: Sequence[EncodedSample]) -> int:
    return int(counts_of(rows).sum())


# Checks that need no weights and belong to no single stage.


def general_problems(run: Run, units: Sequence[Unit]) -> list[str]:
    """Check what concerns several units at once; returns sentences, warns where that is enough."""
    problems: list[str] = []
    stages = {unit.stage for unit in units}
    try:
        if "extract" in stages or any(
            unit.stage == "distill" and run.recipe.arms[unit.arm].learn == "knowledge"
            for unit in units
        ):
            _check_tokenizers(run)
            _check_top_k(run)
        if stages & {"finetune", "extract", "distill", "eval"}:
            _warn_overlap(run)
        if "calibrate" in stages or Model(posthoc=True) in [unit.model for unit in units]:
            _warn_seen(run)
        _warn_unpinned(run)
        if stages & {"finetune", "distill"}:
            _check_disk(run, units)
    except UserError as error:
        problems += error.messages
    return problems


def _check_tokenizers(run: Run) -> None:
    teacher, student = tokenizer(run, "teacher"), tokenizer(run, "student")
    shared = shared_vocabulary(run)
    words = {id: token for token, id in teacher.get_vocab().items() if id < shared}
    others = {id: token for token, id in student.get_vocab().items() if id < shared}
    differing = [id for id in words.keys() | others.keys() if words.get(id) != others.get(id)]
    if differing:
        first = min(differing)
        raise UserError(
            f"teacher and student have incompatible tokenizers: {len(differing)} of the {shared} "
            f"shared ids differ, the first is {first}: {words.get(first)!r} for the teacher, "
            f"{others.get(first)!r} for the student; choose models of one tokenizer"
        )
    for part in ("train", "validation"):
        if not run.training.part(part):
            continue
        ours, theirs = training_rows(run, "teacher", part), training_rows(run, "student", part)
        # What only one of them drops as too long shows as another encoding.
        _, at, there = np.intersect1d(
            ours.numbers, theirs.numbers, assume_unique=True, return_indices=True
        )
        for one, other in zip(Selected(ours, at), Selected(theirs, there), strict=True):
            if not np.array_equal(one.input_ids, other.input_ids):
                raise UserError(
                    f"teacher and student encode sample '{one.id}' differently: "
                    f"{teacher.convert_ids_to_tokens(one.input_ids[:12].tolist())} and "
                    f"{student.convert_ids_to_tokens(other.input_ids[:12].tolist())} ...; choose "
                    "models of one tokenizer"
                )


def _check_top_k(run: Run) -> None:
    shared = shared_vocabulary(run)
    if run.recipe.knowledge.top_k > shared:
        raise UserError(
            f"knowledge.top_k: {run.recipe.knowledge.top_k} is more than the {shared} tokens that "
            "teacher and student share"
        )


def _warn_overlap(run: Run) -> None:
    for one in run.recipe.evaluate:
        training = chain(run.training.train, run.training.validation)
        if shared := splits.overlap(training, run.evaluation_samples(one.name)):
            run.console.warn(
                f"evaluate '{one.name}': {shared} prompts also occur in the training split; its "
                "numbers will flatter"
            )


def _warn_seen(run: Run) -> None:
    if run.recipe.teacher and run.recipe.teacher.finetune is None:
        run.console.warn(
            "teacher: it is not fine-tuned here, so it may have seen the validation rows, and a "
            "recalibrator fitted on rows that the teacher has seen trusts it too much"
        )


def _warn_unpinned(run: Run) -> None:
    for section in (run.recipe.teacher, run.recipe.student):
        model = section.model if section else None
        if model is None or model.checkpoint is None or model.revision is not None:
            continue
        if not Path(model.checkpoint).is_absolute():
            run.console.warn(
                f"checkpoint {model.checkpoint}: no revision is given, so a change on the hub "
                "would not be noticed; pin one with `revision:`"
            )


def _check_disk(run: Run, units: Sequence[Unit]) -> None:
    section = run.recipe.knowledge
    needed = sum(
        positions(training_rows(run, "teacher", unit.part))
        * store.bytes_per_position(section.top_k, section.precision)
        for unit in units
        if unit.stage == "extract"
        and unit.key not in run.manifests
        and run.training.part(unit.part)  # an empty part is extraction's own complaint
    )
    for role, stage in (("teacher", "finetune"), ("student", "distill")):
        count = sum(unit.stage == stage and unit.key not in run.manifests for unit in units)
        if count:
            parameters = weights(run, "teacher" if role == "teacher" else "student")
            # Each result takes 4 bytes a weight; while one trains, two checkpoints take 12 each.
            needed += (4 * count + 24) * parameters
    folder = run.folder
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"run directory {run.folder}: {size(needed)} are needed for weights, "
            f"checkpoints and knowledge, {size(free)} are free; choose another with --run-dir"
        )
