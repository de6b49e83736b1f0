"""What several stages load: tokenizers, encoded samples, models and stored knowledge.

Everything is loaded once per run, so a check and the work after it share it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import cast

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from firstcli.api import BoolArray, Dtype, PluginOptions, RemoteFamily
from firstcli.data import splits
from firstcli.data.encoded import EncodedStore, IntArray, counts_of, lengths_of
from firstcli.data.encoding import (
    EncodedQuestion,
    EncodedSample,
    Encoding,
    answer_only,
    encode_questions,
)
from firstcli.data.joint import CHUNK
from firstcli.errors import UserError, shortened
from firstcli.knowledge.shards import StoreFormat
from firstcli.knowledge.store import JoinedKnowledge, Knowledge, KnowledgeSource
from firstcli.models import inference
from firstcli.recipe.schema import Arm
from firstcli.stages import encoded
from firstcli.workspace.run import Run, once_per_run
from firstcli.workspace.units import Model, Part, Role, Unit, learns_unlabelled, model_path, part_of


@once_per_run
def family(run: Run, role: Role) -> inference.Family:
    return run.model_section(role).build()


def remote(run: Run, role: Role) -> RemoteFamily[PluginOptions] | None:
    """Return a role's family if its model runs elsewhere, else None."""
    own = family(run, role)
    return cast(RemoteFamily[PluginOptions], own) if own.is_remote else None


def tokenizer(run: Run, role: Role) -> PreTrainedTokenizerBase:
    """Return the tokenizer with which a role's model starts; training does not change it."""
    return run.tokenizers.of(role)


@once_per_run
def exchanged_eos(run: Run) -> tuple[int, int] | None:
    """Return the end-of-sequence tokens of teacher and student, if they differ.

    The two names are exchanged when the student learns: the teacher's probability of its own end
    becomes the probability of the student's end, and the other way round. A permutation of the
    vocabulary changes no sum, no order and no divergence; to map one id to the other alone would
    leave two probabilities for one token.

    Raises:
        UserError: only one of them has such a token, or one is outside the shared vocabulary.
    """
    teacher, student = tokenizer(run, "teacher"), tokenizer(run, "student")
    ids = (teacher.eos_token_id, student.eos_token_id)
    if ids[0] == ids[1]:
        return None
    named = " and ".join(
        f"'{one.eos_token}' ({one.eos_token_id}) for the {role}"
        for role, one in (("teacher", teacher), ("student", student))
    )
    problem = f"teacher and student have different end-of-sequence tokens, {named}"
    if None in ids:
        raise UserError(f"{problem}; choose models that both have one, or set student.eos: teacher")
    if max(ids) >= shared_vocabulary(run):
        raise UserError(
            f"{problem}, but share only the tokens 0 to {shared_vocabulary(run) - 1}; choose "
            "models that both know these tokens"
        )
    return ids


@once_per_run
def empty_model(run: Run, role: Role) -> PreTrainedModel:
    """Return a role's architecture without weights."""
    return family(run, role).empty_model(run.reference(role), tokenizer(run, role))


def starting_model(run: Run, role: Role, dtype: Dtype, seed: int) -> PreTrainedModel:
    """Load the weights with which training starts, on the CPU.

    Args:
        run: the run.
        role: teacher or student.
        dtype: type of the weights.
        seed: draws new weights, where there are any.
    """
    loaded = family(run, role).model(run.reference(role), tokenizer(run, role), dtype, seed)
    if role == "student" and run.recipe.student.eos == "teacher":
        for config in (loaded.config, loaded.generation_config):
            if config is not None:  # generation must stop at the token that is learned
                config.eos_token_id = tokenizer(run, role).eos_token_id
    return loaded


def model(run: Run, which: Model) -> PreTrainedModel:
    """Load the teacher or a student for inference, on its device."""
    if not which.arm:
        return teacher(run)
    return for_inference(run, "student", model_path(run.folder, which))


def teacher(run: Run, fold: int | None = None) -> PreTrainedModel:
    """Load the teacher, or the teacher that has not seen a fold, for inference, on its device."""
    if fold is not None:
        return for_inference(run, "teacher", run.folder / "folds" / str(fold))
    finetuned = run.recipe.teacher and run.recipe.teacher.finetune
    return for_inference(run, "teacher", run.folder / "teacher" if finetuned else None)


def for_inference(run: Run, role: Role, folder: Path | None) -> PreTrainedModel:
    """Load a model for inference, on its device, from a folder or as it is before training."""
    role_family = family(run, role)
    device = inference.device_of(role_family)
    dtype = inference.inference_dtype(role_family, device)
    if folder:
        model = role_family.load_trained(folder, dtype)
    else:
        model = starting_model(run, role, dtype, run.recipe.seed)
    inference.make_current(device)
    model.to(device)  # type: ignore[arg-type]  # a decorator hides its signature
    model.eval()
    require_decoder(run, role, model, folder)
    return model


def require_decoder(
    run: Run, role: Role, model: PreTrainedModel, folder: Path | None = None
) -> None:
    """Try out whether a loaded model is a causal decoder.

    Args:
        run: the run.
        role: teacher or student.
        model: the role's model.
        folder: where it was loaded from, if not from the recipe's checkpoint.

    Raises:
        UserError: it is not.
        Exception: the model does not run on its device.
    """
    if problem := inference.decoder_fault(model, tokenizer(run, role)):
        raise UserError(f"{described(run, role, folder)}: {problem}")


def described(run: Run, role: Role, folder: Path | None = None) -> str:
    """Name a role's model in messages, with its family and its checkpoint or folder."""
    section = run.model_section(role)
    source = folder or section.checkpoint
    return f"{role} (family {section.family}{f', checkpoint {source}' if source else ''})"


@once_per_run
def training_rows(run: Run, role: Role, part: Part) -> EncodedStore:
    """Encode a part of the training split with a role's tokenizer.

    Raises:
        UserError: a sample cannot be encoded, or is too long and must not be dropped.
    """
    if part == "out-of-fold":
        return training_rows(run, role, "train")
    where = f"train.task ({part} part, {role}'s tokenizer)"
    rows = encoded.training_part(run, tokenizer(run, role), part, where)
    if run.recipe.answers_only:
        rows = EncodedStore(map(answer_only, rows), run.folder)
    kept = _fitting(run, role, lengths_of(rows), lambda index: rows[index].id, where)
    if not kept.any():
        raise UserError(f"{where}: no sample is left to use")
    return rows.where(kept)


@once_per_run
def folds(run: Run) -> IntArray:
    """Return the fold of every sample of the training part, before any is dropped, (N,)."""
    count = run.recipe.knowledge.folds
    assert count
    return np.fromiter((splits.fold_of(sample, count) for sample in run.training.train), np.int64)


def rows_of_fold(run: Run, fold: int, *, seen: bool) -> EncodedStore:
    """Return the training samples that a fold's teacher has seen, or those that it has not.

    Raises:
        UserError: there are none.
    """
    rows = training_rows(run, "teacher", "train")
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
    if unit.arm and learns_unlabelled(run.recipe, run.recipe.arms[unit.arm]):
        return _rows_with_unlabelled(run, unit.role)
    return training_rows(run, unit.role, "train")


@once_per_run
def _rows_with_unlabelled(run: Run, role: Role) -> EncodedStore:
    parts: tuple[Part, ...] = ("train", "unlabelled")
    return EncodedStore(chain(*(training_rows(run, role, part) for part in parts)), run.folder)


@once_per_run
def questions(run: Run, role: Role, evaluation: str) -> list[EncodedQuestion]:
    """Encode an evaluation's samples with a role's tokenizer."""
    where = f"evaluate '{evaluation}' ({role}'s tokenizer)"
    run.evaluation_content(evaluation)  # its mistakes first: some tokenizers read the training data
    rows = encoded.evaluation(run, tokenizer(run, role), evaluation, where)
    lengths = np.array([len(row.input_ids) for row in rows], np.int64)
    kept = _fitting(run, role, lengths, lambda index: rows[index].id, where)
    if not kept.any():
        raise UserError(f"{where}: no question is left")
    return [row for row, fits in zip(rows, kept, strict=True) if fits]


def _encoding(run: Run, role: Role, where: str) -> Encoding:
    drop = run.recipe.train.doubled_bos == "drop"
    return Encoding(tokenizer(run, role), where, drop_doubled_bos=drop)


@once_per_run
def candidate_tokens(run: Run, role: Role, part: Part) -> dict[str, tuple[int, ...]]:
    """Return the token of each candidate at the answer position, by the id of the sample.

    Samples without candidates are left out.
    """
    where = f"train.task ({part} part, {role}'s tokenizer)"
    with_candidates = (sample for sample in run.training.part(part) if sample.candidates)
    tokens: dict[str, tuple[int, ...]] = {}
    while chunk := list(islice(with_candidates, CHUNK)):
        questions = encode_questions(chunk, _encoding(run, role, where))
        tokens |= {question.id: tuple(question.candidate_ids) for question in questions}
    return tokens


@once_per_run
def validation_questions(run: Run, role: Role) -> list[EncodedQuestion]:
    """Encode the validation part as questions; those that training leaves out are left out."""
    where = f"train.task (validation part, {role}'s tokenizer)"
    kept = {row.id for row in training_rows(run, role, "validation")}
    samples = (s for s in run.training.validation if s.candidates and s.id in kept)
    return encode_questions(samples, _encoding(run, role, where))


@once_per_run
def context(run: Run, role: Role) -> float:
    """Return the length in tokens of the longest sample that a role may see.

    If long samples are dropped, the shorter context of both roles counts, so that teacher and
    students see the same samples. Otherwise an arm that learns labels is independent of the
    teacher.
    """
    shared = run.recipe.train.too_long == "drop" and run.recipe.teacher is not None
    roles: list[Role] = ["teacher", "student"] if shared else [role]
    return min(_own_context(run, role) or math.inf for role in roles)


def _own_context(run: Run, role: Role) -> int | None:
    elsewhere = remote(run, role)
    if elsewhere is not None:
        return elsewhere.context(run.reference(role))
    return inference.context_length(empty_model(run, role))


def _fitting(
    run: Run, role: Role, lengths: IntArray, id_of: Callable[[int], str], where: str
) -> BoolArray:
    """Return which samples are not too long, (N,)."""
    longest = context(run, role)
    too_long = np.flatnonzero(lengths > longest)
    if len(too_long):
        names = shortened([id_of(index) for index in too_long[:3].tolist()], 3, len(too_long))
        problem = (
            f"{where}: {len(too_long)} samples, such as {names}, are longer than the context of "
            f"{longest} tokens"
        )
        if run.recipe.train.too_long == "error":
            raise UserError(f"{problem}; shorten them, or set train.too_long: drop")
        run.console.warn(f"{problem}; they are dropped")
    return np.asarray(lengths <= longest)


@once_per_run
def shared_vocabulary(run: Run) -> int:
    """Return the number of token ids that teacher and student have in common, counted from 0.

    Vocabularies may be padded to different sizes: ids that the student lacks stay out of the top k
    and count as tail.
    """
    return min(vocabulary(run, "teacher"), vocabulary(run, "student"))


@once_per_run
def vocabulary(run: Run, role: Role) -> int:
    """Return the number of token ids that a role's tokenizer and model both know, from 0."""
    named = max(tokenizer(run, role).get_vocab().values()) + 1
    if remote(run, role) is not None:
        return named
    return min(named, inference.vocabulary_size(empty_model(run, role)))


@once_per_run
def vocabulary_digest(run: Run, role: Role) -> str:
    """Return a digest of a tokenizer's tokens; how it splits text shows in the samples' tokens."""
    tokens = sorted(tokenizer(run, role).get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


def knowledge_of(run: Run, arm: Arm) -> KnowledgeSource:
    """Return the knowledge that an arm learns: of labelled samples, and of unlabelled ones."""
    knowledge = stored_knowledge(run, part_of(run.recipe, arm))
    if not learns_unlabelled(run.recipe, arm):
        return knowledge
    return JoinedKnowledge([knowledge, stored_knowledge(run, "unlabelled")])


@once_per_run
def stored_knowledge(run: Run, part: Part) -> Knowledge:
    """Open a part's knowledge and check that it belongs to the samples, as the teacher reads them.

    Raises:
        UserError: it is damaged, or belongs to a different tokenizer, text, prompt, k or precision.
    """
    expected = StoreFormat(
        **run.recipe.knowledge.stored(), split=part, tokenizer=vocabulary_digest(run, "teacher")
    )
    knowledge = Knowledge(run.folder / "knowledge" / part, expected)
    knowledge.check(training_rows(run, "teacher", part))
    return knowledge


def weights(run: Run, role: Role) -> int:
    """Count a role's parameters."""
    return sum(parameter.numel() for parameter in empty_model(run, role).parameters())


def positions(rows: Sequence[EncodedSample]) -> int:
    """Count the supervised positions of all samples."""
    return int(counts_of(rows).sum())
