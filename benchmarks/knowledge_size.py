"""What knowledge costs on disk and what storing loses, in each precision, for a recipe's teacher.

    python benchmarks/knowledge_size.py recipe.yaml --samples 3000

The teacher must be there: a checkpoint that is not fine-tuned first, or one that
`first finetune` has finished. It is asked once; what it says is then written, measured, and
opened in each precision.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from firstcli.data.encoding import EncodedSample
from firstcli.knowledge import store
from firstcli.knowledge.codec import Precision
from firstcli.knowledge.top_k import TopK
from firstcli.models import inference, readout
from firstcli.pipeline.execute import Request, open_run
from firstcli.stages import extract, inputs
from firstcli.workspace.run import Run

PRECISIONS: tuple[Precision, ...] = ("standard", "compact")
ERRORS = (
    "max_probability_error",
    "mean_probability_error",
    "max_mass_error",
    "mean_mass_error",
    "mean_kl",
)


@torch.inference_mode()
def exact_knowledge(run: Run, rows: Sequence[EncodedSample]) -> dict[str, TopK]:
    """Ask the teacher."""
    reader = readout.Reader(inputs.teacher(run))
    top_k, limit = run.recipe.knowledge.top_k, inputs.shared_vocabulary(run)
    found: dict[str, TopK] = {}
    for batch in inference.batches([len(row.input_ids) for row in rows], extract.BATCH_TOKENS):
        found |= extract.top_k_of(reader, [rows[i] for i in batch], top_k, limit)
    return found


def measure(
    shards: Sequence[Sequence[EncodedSample]],
    exact: dict[str, TopK],
    top_k: int,
    precision: Precision,
) -> str:
    """Return a precision's row of the table."""
    format = store.StoreFormat(top_k, precision, shards=len(shards))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begun = time.perf_counter()
        for index, shard in enumerate(shards):
            path = store.shard_path(folder, index)
            store.write_shard(path, shard, [exact[row.id] for row in shard], format)
        written = time.perf_counter()
        store.Knowledge(folder)
        opened = time.perf_counter()
        found = store.summary(folder)
    rates = [found["positions"] / taken for taken in (written - begun, opened - written)]
    cells = [
        precision,
        f"{found['bytes_per_position']:.2f}",
        *(f"{found[name]:.2g}" for name in ERRORS),
        *(f"{rate:,.0f}" for rate in rates),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print a Markdown table, a precision a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--samples", type=int, help="of the training part, drawn at random")
    chosen = parser.parse_args()
    run = open_run(Request(chosen.recipe, tuple(chosen.overrides), quiet=True))
    whole = inputs.training_rows(run, "teacher", "train")
    order = np.random.default_rng(0).permutation(len(whole))[: chosen.samples]
    rows = [whole[int(i)] for i in order]
    exact = exact_knowledge(run, rows)
    mass = np.concatenate([-np.expm1(one.log_tail.astype(np.float64)) for one in exact.values()])
    print(
        f"{len(rows)} samples, {len(mass)} positions, mean mass of the top "
        f"{run.recipe.knowledge.top_k}: {mass.mean():.3f}\n"
    )
    print(
        "| precision | bytes a position | probability off by at most | on average | mass off by at "
        "most | on average | mean KL | positions/s written | opened |"
    )
    print("|---|" + "---:|" * 8)
    shards = extract.split_into_shards(rows)
    for precision in PRECISIONS:
        print(measure(shards, exact, run.recipe.knowledge.top_k, precision), flush=True)


if __name__ == "__main__":
    main()
