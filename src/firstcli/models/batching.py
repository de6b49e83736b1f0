"""Run a model over batches; a batch that does not fit into memory is halved."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from firstcli.data.encoded import IntArray
from firstcli.data.encoding import EncodedQuestion, EncodedSample
from firstcli.errors import UserError
from firstcli.models import inference
from firstcli.runtime import distributed
from firstcli.runtime.console import Console

Item = TypeVar("Item", EncodedQuestion, EncodedSample)
Result = TypeVar("Result")


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
    share = list(inference.batches(lengths.tolist(), batch_tokens))[
        distributed.rank() :: distributed.count()
    ]
    local: dict[str, Result] = {}
    with console.progress(title, sum(map(len, share)), unit) as advance:
        for batch in share:
            local |= halving.run([items[i] for i in batch], score)
            advance(len(batch))
    return {id: result for part in distributed.gathered(local) for id, result in part.items()}
