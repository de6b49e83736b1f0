"""What to do when a batch does not fit into memory: halve it, go on, say so."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from firstcli.data.encoded import IntArray
from firstcli.data.encoding import EncodedQuestion, EncodedSample
from firstcli.errors import UserError
from firstcli.models import inference
from firstcli.runtime import distributed
from firstcli.runtime.console import Console

Item = TypeVar("Item", EncodedSample, EncodedQuestion)
Found = TypeVar("Found")


def is_out_of_memory(error: Exception) -> bool:
    """Tell a lack of memory, on whatever device, from other errors."""
    return isinstance(error, MemoryError) or bool(should_reduce_batch_size(error))


def forget() -> None:
    """Give memory back that only dead objects hold: a trainer refers to itself in many ways."""
    clear_device_cache(garbage_collection=True)


class Halving:
    """Run batches of rows; one that does not fit is halved, and later ones as large are as well."""

    def __init__(self, say: Callable[[str], None], what: str) -> None:
        self._say = say
        self._what = what
        self._most: float = math.inf  # tokens of a batch, padding included
        self.halved = 0
        """How many batches were run in parts."""

    def run(
        self, rows: Sequence[Item], ask: Callable[[Sequence[Item]], dict[str, Found]]
    ) -> dict[str, Found]:
        """Return what `ask` finds, by id.

        Raises:
            UserError: a single row does not fit.
        """
        tokens = len(rows) * max(len(row.input_ids) for row in rows)
        if len(rows) == 1 or tokens <= self._most:
            try:
                return ask(rows)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(rows) == 1:
                    raise UserError(
                        f"out of memory on sample '{rows[0].id}' of {tokens} tokens alone; free "
                        "memory, choose a smaller dtype, or leave out long samples"
                    ) from error
            # Out here the error is gone, and with it its hold on the batch's tensors.
            self._make_room(len(rows), tokens)
        self.halved += 1
        middle = len(rows) // 2
        return self.run(rows[:middle], ask) | self.run(rows[middle:], ask)

    def _make_room(self, rows: int, tokens: int) -> None:
        self._most = min(self._most, tokens // 2)
        forget()
        self._say(
            f"{self._what}: out of memory on a batch of {rows} samples ({tokens} tokens); "
            "it and those as large are halved"
        )


def run_batched(
    console: Console,
    what: str,
    noun: str,
    rows: Sequence[Item],
    lengths: IntArray,
    batch_tokens: int,
    ask: Callable[[Sequence[Item]], dict[str, Found]],
) -> dict[str, Found]:
    """Return what `ask` finds for all rows, by id; every process gets those of all.

    Args:
        console: shows progress and warnings.
        what: is asked, for messages.
        noun: what a row is called.
        rows: what to ask about.
        lengths: tokens of each row, (N,).
        batch_tokens: tokens of a batch at most, padding included.
        ask: runs the model over one batch.
    """
    halving = Halving(console.warn, what)
    batches = list(inference.batches(lengths.tolist(), batch_tokens))
    batches = batches[distributed.rank() :: distributed.count()]
    ours: dict[str, Found] = {}
    with console.progress(what, sum(map(len, batches)), noun) as advance:
        for batch in batches:
            chosen = [rows[i] for i in batch]
            ours |= halving.run(chosen, ask)
            advance(len(chosen))
    return {id: found for part in distributed.gathered(ours) for id, found in part.items()}
