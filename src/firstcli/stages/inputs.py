"""What several stages load: tokenizers, encoded samples, models and stored knowledge.

Everything is loaded once per run, so a check and the work after it share it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import weakref
from collections.abc import Callable, Sequence
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast, get_args

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from firstcli.api import BoolArray, Dtype, ModelRef, PluginOptions, RemoteFamily
from firstcli.checkpoints import placement
from firstcli.checkpoints.folder import stored_dtype
from firstcli.checkpoints.loading import whole_weights
from firstcli.data import splits
from firstcli.data.encoded import EncodedStore, IntArray, counts_of, lengths_of
from firstcli.data.encoding import (
    EncodedQuestion,
    EncodedSample,
    answer_only,
    encode_questions,
)
from firstcli.data.joint import CHUNK
from firstcli.errors import UserError, shortened
from firstcli.knowledge.candidates import CandidateKnowledge
from firstcli.knowledge.mean import MeanKnowledge
from firstcli.knowledge.shards import StoreFormat
from firstcli.knowledge.store import JoinedKnowledge, Knowledge, KnowledgePart, KnowledgeSource
from firstcli.models import inference
from firstcli.plugins import calls
from firstcli.recipe.sections import Arm
from firstcli.runtime import distributed
from firstcli.stages import chat, encoded
from firstcli.workspace.run import Run, once_per_run
from firstcli.workspace.units import (
    Model,
    Part,
    Role,
    Unit,
    knowledge_path,
    learned_parts,
    model_path,
    teacher_path,
    teachers_of,
)

OFFLOAD_PREFIX = ".offload-"
"""Beginning of the name of a folder, in the run folder, for weights that fit into no memory."""


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
    teacher, student = chat.end_of(run, "teacher"), chat.end_of(run, "student")
    if teacher == student:
        return None
    named = " and ".join(
        f"'{end[0]}' ({end[1]}) for the {role}" if end else f"none for the {role}"
        for role, end in (("teacher", teacher), ("student", student))
    )
    problem = f"teacher and student have different end-of-sequence tokens, {named}"
    if teacher is None or student is None:
        raise UserError(f"{problem}; choose models that both have one, or set student.eos: teacher")
    ids = teacher[1], student[1]
    if ids[0] == ids[1]:
        return None
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


def checkpoint_dtype(run: Run, role: Role) -> Dtype:
    """Return the dtype of the weights of a role's checkpoint.

    The configuration says it, or otherwise the file of the weights; float32 if neither does.
    """
    config = empty_model(run, role).config
    folder = run.reference(role).folder
    stated = [part.dtype for part in (config, config.get_text_config())]
    stated.append(stored_dtype(folder) if folder else None)
    names = (str(dtype).removeprefix("torch.") for dtype in stated)
    known: tuple[Dtype, ...] = get_args(Dtype)
    return next((one for name in names for one in known if one == name), "float32")


def starting_model(
    run: Run, role: Role, dtype: Dtype, seed: int, *, quantized: bool = True
) -> PreTrainedModel:
    """Load the weights with which training starts, on the CPU.

    Args:
        run: the run.
        role: teacher or student.
        dtype: type of the weights.
        seed: draws new weights, where there are any.
        quantized: quantise the weights, if the recipe says so.
    """
    chosen, section = family(run, role), run.model_section(role)
    if not quantized and section.effective.get("quantization"):
        chosen = calls.family(
            section.family, section.options.model_copy(update={"quantization": None})
        )
    loaded = chosen.model(run.reference(role), tokenizer(run, role), dtype, seed)
    if role == "student" and run.recipe.student.eos == "teacher":
        for config in (loaded.config, loaded.generation_config):
            if config is not None:  # generation must stop at the token that is learned
                config.eos_token_id = tokenizer(run, role).eos_token_id
    is_chat = chat.chat_format(run, role) is not None or chat.learns_conversations(run)
    if is_chat and (end := chat.end_of(run, role)):
        _stop_at(loaded, end[1])
    return loaded


def _stop_at(model: PreTrainedModel, end: int) -> None:
    """Let generation also stop at a token: that which ends an answer in a chat."""
    config = model.generation_config
    if config is not None:
        stated = config.eos_token_id
        known = stated if isinstance(stated, list) else [] if stated is None else [stated]
        if end not in known:
            config.eos_token_id = [end, *known] if known else end


def model(run: Run, which: Model) -> PreTrainedModel:
    """Load the teacher or a student for inference, on its device."""
    if not which.arm:
        return teacher(run)
    return for_inference(run, "student", model_path(run.folder, which))


def teacher(run: Run, fold: int | None = None, seed: int | None = None) -> PreTrainedModel:
    """Load a teacher for inference, on its device.

    Args:
        run: the run.
        fold: the fold that it has not seen.
        seed: the seed of a further teacher.
    """
    if fold is not None:
        return for_inference(run, "teacher", run.folder / "folds" / str(fold))
    finetuned = run.recipe.teacher and run.recipe.teacher.finetune
    return for_inference(run, "teacher", teacher_path(run.folder, seed) if finetuned else None)


def for_inference(run: Run, role: Role, folder: Path | None) -> PreTrainedModel:
    """Load a model for inference, on its device, from a folder or as it is before training."""
    role_family = family(run, role)
    device = inference.device_of(role_family)
    dtype = inference.inference_dtype(role_family, device)
    if role_family.spreads and distributed.count() > 1:
        raise UserError(
            f"{role}.model.options.device_map: it spreads one model over all devices, which "
            f"{distributed.count()} processes cannot share; run this step in one process"
        )
    inference.make_current(device)
    ref = ModelRef(str(folder.absolute())) if folder else run.reference(role)
    offload = None
    if role_family.spreads:  # otherwise nothing is offloaded, and a killed process leaves nothing
        offload = TemporaryDirectory(
            dir=run.folder if os.access(run.folder, os.W_OK) else None,
            prefix=OFFLOAD_PREFIX,
            ignore_cleanup_errors=True,
        )
    with whole_weights():
        place = Path(offload.name) if offload else run.folder
        model = role_family.placed(ref, dtype, device, place)
        if model is not None and offload is not None:
            weakref.finalize(model, offload.cleanup)
        if model is None:
            if offload is not None:
                offload.cleanup()
            if folder:
                model = role_family.load_trained(folder, dtype)
            else:
                model = starting_model(run, role, dtype, run.recipe.seed)
    placement.move(model, device)
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


def batching_section(run: Run, arm: str) -> str:
    """Return the section of the recipe that states the batching of a training.

    Args:
        run: the run.
        arm: the student's arm; empty for the teacher.
    """
    if not arm:
        return "teacher.finetune"
    override = run.recipe.arms[arm].training
    return f"arms.{arm}.training" if override and override.batching else "student.training"


def require_packing(run: Run, role: Role, model: PreTrainedModel, section: str) -> None:
    """Try out whether a loaded model can read packed batches.

    Args:
        run: the run.
        role: teacher or student.
        model: the role's model, a causal decoder.
        section: the section of the recipe that asks for it, such as `knowledge`.

    Raises:
        UserError: it cannot.
        Exception: the model does not run on its device.
    """
    if problem := inference.packing_fault(model, tokenizer(run, role)):
        raise UserError(f"{section}.batching: {described(run, role)}: {problem}; set it to padded")


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
    where = _part(part, role)
    rows = encoded.training_part(run, role, part, where)
    if run.recipe.answers_only:
        rows = EncodedStore(map(answer_only, rows), run.folder)
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
    return _student_rows_of(run, tuple(part for part in parts if run.is_written(part)))


@once_per_run
def _student_rows_of(run: Run, parts: tuple[Part, ...]) -> EncodedStore:
    if len(parts) == 1:
        return student_rows(run, parts[0])
    return EncodedStore(chain(*(student_rows(run, part) for part in parts)), run.folder)


def student_rows(run: Run, part: Part) -> EncodedStore:
    """Return the samples of a part that a student learns from a teacher."""
    rows = training_rows(run, "student", part)
    if not run.recipe.knowledge.over_candidates or run.recipe.train.too_long == "error":
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
    if not run.recipe.knowledge.over_candidates:
        return rows
    where = f"knowledge.over: candidates, {_part(part, 'teacher')}"
    questions = candidate_questions(run, part)
    lengths = np.array([q.start + max(map(len, q.candidates)) for q in questions], np.int64)
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
    return encode_questions(run.training.part(part), chat.encoding(run, "teacher", where))


@once_per_run
def knowledge_width(run: Run) -> int:
    """Return the number of probabilities that are stored per position.

    Over candidates, it is at most the largest number of candidates of a training sample.
    """
    section, training = run.recipe.knowledge, run.training
    if not section.over_candidates:
        return section.top_k
    samples = chain(training.train, training.validation, training.unlabelled)
    return min(section.top_k, max(len(sample.candidates) for sample in samples))


@once_per_run
def questions(run: Run, role: Role, evaluation: str) -> list[EncodedQuestion]:
    """Encode an evaluation's samples with a role's tokenizer."""
    where = f"evaluate '{evaluation}' ({role}'s tokenizer)"
    run.evaluation_content(evaluation)  # its mistakes first: some tokenizers read the training data
    rows = encoded.evaluation(run, role, evaluation, where)
    lengths = np.array([len(row.input_ids) for row in rows], np.int64)
    kept = _fitting(run, role, lengths, lambda index: rows[index].id, where)
    if not kept.any():
        raise UserError(f"{where}: no question is left")
    return [row for row, fits in zip(rows, kept, strict=True) if fits]


@once_per_run
def candidate_tokens(run: Run, role: Role, part: Part) -> dict[str, tuple[int, ...]]:
    """Return the token of each candidate at the answer position, by the id of the sample.

    Samples without candidates are left out.
    """
    where = _part(part, role)
    with_candidates = (sample for sample in run.training.part(part) if sample.candidates)
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
    """Return the knowledge that an arm learns, of all parts of its samples.

    Over candidates, it is in the student's tokens.
    """
    parts = learned_parts(run.recipe, arm)
    each = [_part_knowledge(run, arm, part) for part in parts]
    knowledge: KnowledgeSource = each[0] if len(each) == 1 else JoinedKnowledge(each)
    if not run.recipe.knowledge.over_candidates:
        return knowledge
    tokens: dict[str, tuple[int, ...]] = {}
    for part in parts:
        tokens |= candidate_tokens(run, "student", part)
    return CandidateKnowledge(knowledge, tokens)


def _part_knowledge(run: Run, arm: Arm, part: Part) -> KnowledgePart:
    """Return a part's knowledge from the teachers that an arm learns from."""
    each = [stored_knowledge(run, part, seed) for seed in teachers_of(run.recipe, arm)]
    return each[0] if len(each) == 1 else MeanKnowledge(each)


def validation_knowledge(run: Run, arm: Arm) -> tuple[EncodedStore, KnowledgeSource]:
    """Return the validation samples and an arm's knowledge of them, in the teacher's tokens."""
    rows = knowledge_rows(run, "validation")
    knowledge = _part_knowledge(run, arm, "validation")
    if not run.recipe.knowledge.over_candidates:
        return rows, knowledge
    return rows, CandidateKnowledge(knowledge, candidate_tokens(run, "teacher", "validation"))


@once_per_run
def stored_knowledge(run: Run, part: Part, seed: int | None = None) -> Knowledge:
    """Open a part's knowledge and check that it belongs to the samples, as the teacher reads them.

    Args:
        run: the run.
        part: the part.
        seed: the seed of a further teacher; None for the first one.

    Raises:
        UserError: it is damaged, or belongs to a different tokenizer, text, prompt, k or precision.
    """
    knowledge = Knowledge(knowledge_path(run.folder, part, seed), store_format(run, part))
    knowledge.check(knowledge_rows(run, part))
    return knowledge


def store_format(run: Run, part: Part) -> StoreFormat:
    """Return what every shard of a part's knowledge states."""
    settings = run.recipe.knowledge.stored() | {"top_k": knowledge_width(run)}
    return StoreFormat(**settings, split=part, tokenizer=vocabulary_digest(run, "teacher"))


def weights(run: Run, role: Role) -> int:
    """Count a role's parameters."""
    return sum(parameter.numel() for parameter in empty_model(run, role).parameters())


def trainable_weights(run: Run, unit: Unit) -> int:
    """Count the parameters that a unit's training changes."""
    settings = run.training_settings(unit).lora
    if settings is None:
        return weights(run, unit.role)
    from firstcli.training import lora

    return lora.trainable(empty_model(run, unit.role), settings)


def positions(rows: Sequence[EncodedSample]) -> int:
    """Count the supervised positions of all samples."""
    return int(counts_of(rows).sum())
