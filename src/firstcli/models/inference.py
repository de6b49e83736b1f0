"""Device, dtype, padding and batches of a causal language model, halved if memory runs out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from firstcli.api import ModelFamily, PluginOptions
from firstcli.data.encoded import IntArray
from firstcli.data.encoding import EncodedQuestion, EncodedSample
from firstcli.errors import UserError
from firstcli.runtime import distributed
from firstcli.runtime.console import Console

Family = ModelFamily[PluginOptions]
Dtype = Literal["float32", "bfloat16", "float16"]
Item = TypeVar("Item", EncodedQuestion, EncodedSample)
Result = TypeVar("Result")


def device_of(family: Family) -> torch.device:
    """Resolve a family's device: `auto` prefers CUDA, then MPS, then the CPU."""
    if family.device != "auto":
        try:
            return torch.zeros(0, device=family.device).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"model.options.device: '{family.device}' is not usable: {reason}"
            ) from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def inference_dtype(family: Family, device: torch.device) -> Dtype:
    """Resolve a family's dtype outside training: `auto` is bfloat16 on a GPU that supports it."""
    if family.inference_dtype != "auto":
        return family.inference_dtype
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return "bfloat16" if has_bfloat16 else "float32"


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


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that a device ran out of memory."""
    return isinstance(error, MemoryError) or bool(should_reduce_batch_size(error))


def free_memory() -> None:
    """Free memory that only dead objects hold: a trainer, for example, contains many cycles."""
    clear_device_cache(garbage_collection=True)


@dataclass
class HalvingBatches:
    """Run batches; one that does not fit is halved, and so are later ones of the same size."""

    warn: Callable[[str], None]
    title: str
    halved: int = 0
    """How many batches were halved."""
    _max_tokens: float = math.inf  # per batch, padding included

    def run(
        self, items: Sequence[Item], score: Callable[[Sequence[Item]], dict[str, Result]]
    ) -> dict[str, Result]:
        """Return the results of `score` for one batch, by id.

        Raises:
            UserError: a single sample does not fit.
        """
        tokens = len(items) * max(len(item.input_ids) for item in items)
        if len(items) == 1 or tokens <= self._max_tokens:
            try:
                return score(items)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(items) == 1:
                    raise UserError(
                        f"out of memory on sample '{items[0].id}' of {tokens} tokens alone; free "
                        "memory, choose a smaller dtype, or leave out long samples"
                    ) from error
            # Outside the except block, the error no longer keeps the batch's tensors in memory.
            self._max_tokens = tokens // 2
            free_memory()
            self.warn(
                f"{self.title}: out of memory on a batch of {len(items)} samples ({tokens} "
                "tokens); this batch and later ones of its size are halved"
            )
        self.halved += 1
        middle = len(items) // 2
        return self.run(items[:middle], score) | self.run(items[middle:], score)


def run_batched(
    console: Console,
    title: str,
    unit: str,
    items: Sequence[Item],
    lengths: IntArray,
    batch_tokens: int,
    score: Callable[[Sequence[Item]], dict[str, Result]],
) -> dict[str, Result]:
    """Run a model over all samples or questions; every process gets all results, by id.

    Args:
        console: shows progress and warnings.
        title: what is being done, for progress and messages.
        unit: what to call the items, such as "questions".
        items: the samples or questions.
        lengths: tokens per item, (N,).
        batch_tokens: maximum number of tokens per batch, padding included.
        score: runs the model over one batch and returns its results by id.
    """
    halving = HalvingBatches(console.warn, title)
    share = list(batches(lengths.tolist(), batch_tokens))[distributed.rank() :: distributed.count()]
    local: dict[str, Result] = {}
    with console.progress(title, sum(map(len, share)), unit) as advance:
        for batch in share:
            local |= halving.run([items[i] for i in batch], score)
            advance(len(batch))
    return {id: result for part in distributed.gathered(local) for id, result in part.items()}
