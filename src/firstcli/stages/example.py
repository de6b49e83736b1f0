"""Training samples as models read them, for the plan."""

from __future__ import annotations

from itertools import islice

import numpy as np
from transformers import PreTrainedTokenizerBase

from firstcli.api import JSON, BoolArray
from firstcli.data.encoding import EncodedSample, answer_only, each_encoded, encode_questions
from firstcli.data.token_texts import token_texts
from firstcli.errors import UserError
from firstcli.runtime.redaction import without_secrets
from firstcli.stages import chat, role_models
from firstcli.workspace.run import Run
from firstcli.workspace.units import Role

FIRST_CANDIDATES = 6
"""Candidates that are shown, besides the right one."""


def encoded_example(run: Run) -> dict[str, JSON] | None:
    """Return the first training question with its tokens at the answer position.

    None if the training task has no candidates, or the question cannot be encoded.
    """
    sample = next(iter(run.training.train), None)
    if sample is None or not sample.candidates:
        return None
    role: Role = "teacher" if run.recipe.teacher else "student"
    tokenizer = role_models.tokenizer(run, role)
    encoding = chat.encoding(run, role, f"train.task ({role}'s tokenizer)")
    try:
        (question,) = encode_questions([sample], encoding)
    except UserError:  # the check of the whole training part reports it
        return None
    if encoding.chat is not None:
        sample = encoding.chat.rendered(sample)
    names = tokenizer.convert_ids_to_tokens(list(question.candidate_ids))
    tokens = list(zip(sample.candidates, map(str, names), question.candidate_ids, strict=True))
    return {
        "note": run.adaptation_note,
        "role": role,
        "prompt": without_secrets(sample.prompt),  # kept with the results of checks
        "response": sample.response,
        "position": len(question.input_ids),
        "answer": tokens[sample.answer or 0],
        "candidates": list(islice(tokens, FIRST_CANDIDATES)),
        "count": len(tokens),
    }


def encoded_samples(run: Run, count: int) -> list[dict[str, JSON]]:
    """Return the first training samples with all their tokens, for `first plan --show`.

    A sample whose tokens differ between teacher and student is returned once for each.

    Args:
        run: the run.
        count: number of samples; there may be fewer.

    Raises:
        UserError: a sample cannot be encoded.
    """
    roles: tuple[Role, ...] = ("teacher", "student") if run.recipe.teacher else ("student",)
    samples = list(islice(run.training.train, count))
    rows = {
        role: list(each_encoded(samples, chat.encoding(run, role, f"train.task ({role})")))
        for role in roles
    }
    if run.recipe.answers_only:
        rows = {role: [*map(answer_only, every)] for role, every in rows.items()}
    shown: list[dict[str, JSON]] = []
    for index, sample in enumerate(samples):
        first, last = rows[roles[0]][index], rows[roles[-1]][index]
        alike = np.array_equal(first.input_ids, last.input_ids)
        for role in roles[:1] if alike else roles:
            row = rows[role][index]
            tokens = _tokens(row, role_models.tokenizer(run, role))
            readers = list(roles) if alike else [role]
            shown.append({"id": sample.id, "read_by": readers, "tokens": tokens})
    return shown


def is_supervised(row: EncodedSample) -> BoolArray:
    """Return which tokens of a sample models learn to predict, (L,)."""
    return np.isin(np.arange(len(row.input_ids)), row.positions)


def _tokens(row: EncodedSample, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, JSON]]:
    ids = row.input_ids.tolist()
    pieces = zip(ids, token_texts(tokenizer, ids), is_supervised(row).tolist(), strict=True)
    return [
        {"id": id, "text": text, "supervised": learned, "answer": place == row.answer_position}
        for place, (id, text, learned) in enumerate(pieces)
    ]
