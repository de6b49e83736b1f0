"""Device, dtype, padding and batches of a causal language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from firstcli.api import Dtype, ModelFamily, PluginOptions
from firstcli.checkpoints import causality, packing
from firstcli.data.encoding import EncodedSample
from firstcli.errors import UserError
from firstcli.runtime import distributed

Family = ModelFamily[PluginOptions]
Batching = Literal["padded", "packed"]
"""Sequences padded to one length each in its row, or one after the other in a single row."""


def device_of(family: Family) -> torch.device:
    """Resolve a family's device.

    Raises:
        UserError: as for `device_named`.
    """
    return device_named(family.device, "model.options.device")


def device_named(stated: str, where: str) -> torch.device:
    """Resolve the name of a device: `auto` prefers CUDA, then MPS, then the CPU.

    Args:
        stated: `auto`, or a name that `torch.device` accepts.
        where: the option that states it, for messages.

    Raises:
        UserError: the device does not exist, or names one GPU for all processes of a launch.
    """
    name = stated
    if name == "auto":
        mps = "mps" if torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else mps
    try:
        device = torch.device(name)
        if stated != "auto":
            torch.zeros(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{where}: '{name}' is not usable: {reason}") from error
    if device.type != "cuda":
        return device
    if distributed.count() == 1:
        return torch.device("cuda", device.index or 0)
    if device.index is not None:
        raise UserError(
            f"{where}: '{name}' names one GPU, but each of the {distributed.count()} "
            "processes uses a different one; set it to cuda or auto"
        )
    return torch.device("cuda", torch.cuda.current_device())


def inference_dtype(family: Family, device: torch.device) -> Dtype:
    """Resolve a family's dtype outside training; see `dtype_named`."""
    return dtype_named(family.inference_dtype, device)


def dtype_named(stated: Literal["auto"] | Dtype, device: torch.device) -> Dtype:
    """Resolve the name of a dtype: `auto` is bfloat16 on a GPU that supports it, else float32."""
    if stated != "auto":
        return stated
    return "bfloat16" if has_bfloat16(device) else "float32"


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device computes in bfloat16; older GPUs only emulate it, slowly."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def make_current(device: torch.device) -> None:
    """Let kernels that do not look at their operands (Triton, flash attention) use a GPU."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def context_length(model: PreTrainedModel) -> int | None:
    """Return the maximum sequence length, or None if the model's configuration states none."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(model.config.get_text_config(), name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def vocabulary_size(model: PreTrainedModel) -> int:
    """Return the number of rows of the output layer, padding included."""
    return int(model.get_output_embeddings().weight.shape[0])


def decoder_fault(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Try out whether a model is a causal decoder; return what is wrong and what to do, or None.

    Special tokens are left out: some stand for images.

    Raises:
        Exception: the model does not run on its device.
    """
    token_ids = ordinary_tokens(model, tokenizer)
    if len(token_ids) < 2:
        return None
    problem = causality.fault(model, token_ids, context_length(model))
    name = type(model).__name__
    return f"{name} cannot be used, because {problem}" if problem else None


def packing_fault(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Try out whether a causal decoder reads packed batches; return what is wrong, or None."""
    token_ids = ordinary_tokens(model, tokenizer)
    if len(token_ids) < 2:
        return None
    problem = packing.fault(model, token_ids, context_length(model))
    return f"{type(model).__name__} cannot read packed batches: {problem}" if problem else None


def ordinary_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return some token ids that are not special, spread over the vocabulary."""
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    limit = min(len(tokenizer), vocabulary_size(model))
    ordinary = [token_id for token_id in range(limit) if token_id not in special]
    return ordinary[:: max(1, len(ordinary) // causality.LENGTH)]


@dataclass(frozen=True, slots=True)
class Padded:
    """A batch of sequences, padded on the right regardless of the tokenizer's preference.

    Under a causal mask no token sees the tokens on its right, so right padding needs no position
    ids and suits every decoder. The padding id does not matter, so a tokenizer needs none.
    """

    input_ids: Tensor  # (B, L) int64
    attention_mask: Tensor  # (B, L) int64


def pad(sequences: Sequence[npt.NDArray[np.int32]]) -> Padded:
    """Stack sequences (L_i,) into one batch."""
    tensors = [torch.from_numpy(sequence.astype(np.int64)) for sequence in sequences]
    mask = [torch.ones_like(tensor) for tensor in tensors]
    return Padded(pad_sequence(tensors, batch_first=True), pad_sequence(mask, batch_first=True))


def pack(sequences: Sequence[npt.NDArray[np.int32]]) -> tuple[Tensor, Tensor]:
    """Concatenate sequences (L_i,) to one row; return its token ids and positions, (1, sum L_i).

    The positions start at 0 with each sequence. From that, and from the absence of a mask, models
    derive where sequences begin.
    """
    positions = torch.cat([torch.arange(len(sequence)) for sequence in sequences])
    return torch.from_numpy(np.concatenate(sequences).astype(np.int64))[None], positions[None]


def collated(rows: Sequence[EncodedSample], batching: Batching = "padded") -> dict[str, Tensor]:
    """Return a batch of B samples with N targets as `readout.Reader` takes it.

    Returns:
        `input_ids` with an `attention_mask`, both (B, L), or packed with `position_ids`, both
        (1, sum L_i); `rows` and `columns` (N,): the token before each target.
    """
    sequences = [row.input_ids for row in rows]
    number, column = before_targets(rows)
    if batching == "padded":
        padded = pad(sequences)
        inputs = {"input_ids": padded.input_ids, "attention_mask": padded.attention_mask}
    else:
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        starts = lengths.cumsum(0) - lengths
        number, column = torch.zeros_like(number), starts[number] + column
        inputs = dict(zip(("input_ids", "position_ids"), pack(sequences), strict=True))
    return inputs | {"rows": number, "columns": column}


def before_targets(rows: Sequence[EncodedSample]) -> tuple[Tensor, Tensor]:
    """Return the row and the column of the token before each target of a batch, both (N,)."""
    counts = torch.tensor([len(row.targets) for row in rows])
    columns = np.concatenate([row.positions for row in rows]) - 1
    return torch.arange(len(rows)).repeat_interleave(counts), torch.from_numpy(columns)


def batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Group indices of sequences of similar length into batches of at most `tokens` tokens.

    The order depends on the lengths alone: longest first, so that memory runs out at once or never.
    """
    batch: list[int] = []
    width = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and width * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        if not batch:
            width = lengths[index]
        batch.append(index)
    if batch:
        yield batch
