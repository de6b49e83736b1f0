"""Read a model's answers: candidates at the answer position, and the tokens of whole responses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils.rnn import pad_sequence

from firstcli.checkpoints.placement import input_device
from firstcli.data.encoding import EncodedQuestion, EncodedSample
from firstcli.models import inference, readout

EVALUATION_TOKENS = 8192
"""Tokens per batch of questions, padding included."""


def candidate_log_probs(
    reader: readout.Reader, questions: Sequence[EncodedQuestion]
) -> dict[str, list[float]]:
    """Return each candidate's log-probability in the whole vocabulary, by question id."""
    device = input_device(reader.model)
    padded = inference.pad([question.input_ids for question in questions])
    rows = torch.arange(len(questions), device=device)
    last = torch.tensor([len(question.input_ids) - 1 for question in questions], device=device)
    candidates = [torch.tensor(question.candidate_ids) for question in questions]
    token_ids = pad_sequence(candidates, batch_first=True).to(device)  # (B, C)
    log_probs = reader(
        padded.input_ids.to(device),
        padded.attention_mask.to(device),
        rows,
        last,
        lambda scores: readout.log_probs(scores, token_ids),
    ).tolist()
    return {
        question.id: values[: len(question.candidate_ids)]
        for question, values in zip(questions, log_probs, strict=True)
    }


def target_log_probs(
    reader: readout.Reader, rows: Sequence[EncodedSample]
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the log-probability of each of a sample's targets, (T_i,), by the sample's id."""
    device = input_device(reader.model)
    padded = inference.pad([row.input_ids[:-1] for row in rows])  # no target follows the last token
    batch_rows, columns = inference.before_targets(rows)
    targets = np.concatenate([row.targets for row in rows]).astype(np.int64)
    token_ids = torch.from_numpy(targets)[:, None].to(device)  # (N, 1)
    log_probs = reader(
        padded.input_ids.to(device),
        padded.attention_mask.to(device),
        batch_rows.to(device),
        columns.to(device),
        lambda scores: readout.log_probs(scores, token_ids),
    )
    tokens = log_probs[:, 0].cpu().numpy().astype(np.float64)
    ends = np.cumsum([len(row.targets) for row in rows])
    parts = np.split(tokens, ends[:-1])
    return {row.id: part for row, part in zip(rows, parts, strict=True)}
