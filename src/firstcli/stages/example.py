"""One training question as a model reads it, for the plan."""

from __future__ import annotations

from itertools import islice

from firstcli.api import JSON
from firstcli.data.encoding import Encoding, encode_questions
from firstcli.errors import UserError
from firstcli.runtime.redaction import without_secrets
from firstcli.stages import inputs
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
    tokenizer = inputs.tokenizer(run, role)
    drop = run.recipe.train.doubled_bos == "drop"
    where = f"train.task ({role}'s tokenizer)"
    try:
        (question,) = encode_questions([sample], Encoding(tokenizer, where, drop))
    except UserError:  # the check of the whole training part reports it
        return None
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
