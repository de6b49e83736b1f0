"""Ask a model about many rows: in batches, shared out over the processes, halved where need be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from firstcli import models, processes
from firstcli.encoding import Encoded, Question
from firstcli.out_of_memory import Halving
from firstcli.run import Run
from firstcli.token_rows import IntArray

Row = TypeVar("Row", Encoded, Question)
Found = TypeVar("Found")


def answers(
    run: Run,
    what: str,
    noun: str,
    rows: Sequence[Row],
    lengths: IntArray,
    batch_tokens: int,
    ask: Callable[[Sequence[Row]], dict[str, Found]],
) -> dict[str, Found]:
    """Return what `ask` finds for all rows, by id; every process gets those of all.

    Args:
        run: whose console shows progress.
        what: is asked, for messages.
        noun: what a row is called.
        rows: what to ask about.
        lengths: tokens of each row, (N,).
        batch_tokens: tokens of a batch at most, padding included.
        ask: runs the model over one batch.
    """
    halving = Halving(run.console.warn, what)
    batches = list(models.batches(lengths.tolist(), batch_tokens))
    batches = batches[processes.rank() :: processes.count()]
    ours: dict[str, Found] = {}
    with run.console.progress(what, sum(map(len, batches)), noun) as advance:
        for batch in batches:
            chosen = [rows[i] for i in batch]
            ours |= halving.run(chosen, ask)
            advance(len(chosen))
    return {id: found for part in processes.gathered(ours) for id, found in part.items()}
