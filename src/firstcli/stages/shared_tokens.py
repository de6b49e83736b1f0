"""The tokens that teacher and student have in common, and their ends of text."""

from __future__ import annotations

import hashlib
import json

from firstcli.errors import UserError
from firstcli.models import inference
from firstcli.stages import chat, role_models
from firstcli.workspace.run import Run, once_per_run
from firstcli.workspace.units import Role


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
def shared_vocabulary(run: Run) -> int:
    """Return the number of token ids that teacher and student have in common, counted from 0.

    Vocabularies may be padded to different sizes: ids that the student lacks stay out of the top k
    and count as tail.
    """
    return min(vocabulary(run, "teacher"), vocabulary(run, "student"))


@once_per_run
def vocabulary(run: Run, role: Role) -> int:
    """Return the number of token ids that a role's tokenizer and model both know, from 0."""
    named = max(role_models.tokenizer(run, role).get_vocab().values()) + 1
    if role_models.remote(run, role) is not None:
        return named
    return min(named, inference.vocabulary_size(role_models.empty_model(run, role)))


@once_per_run
def vocabulary_digest(run: Run, role: Role) -> str:
    """Return a digest of a tokenizer's tokens; how it splits text shows in the samples' tokens."""
    tokens = sorted(role_models.tokenizer(run, role).get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
