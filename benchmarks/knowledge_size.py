"""Size on disk and quantisation error of a teacher's knowledge, in each precision.

    python benchmarks/knowledge_size.py recipe.yaml --samples 3000

The teacher must exist: either a checkpoint that the recipe does not fine-tune, or the result of
`first finetune`. It runs once; its knowledge is then written, measured and opened in each
precision.
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
from firstcli.knowledge import shards, store
from firstcli.knowledge.codec import Precision
from firstcli.knowledge.top_k import TopK
from firstcli.models import inference, readout
from firstcli.pipeline.plan import Request, open_run
from firstcli.stages import inputs, role_models, scoring, shared_tokens
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
    """Return the teacher's knowledge before quantisation."""
    reader = readout.Reader(role_models.teacher(run))
    top_k, limit = run.recipe.knowledge.top_k, shared_tokens.shared_vocabulary(run)
    known: dict[str, TopK] = {}
    for batch in inference.batches([len(row.input_ids) for row in rows], scoring.EXTRACTION_TOKENS):
        known |= scoring.top_k_of(reader, [rows[i] for i in batch], top_k, limit)
    return known


def measure(
    parts: Sequence[Sequence[EncodedSample]],
    exact: dict[str, TopK],
    top_k: int,
    precision: Precision,
) -> str:
    """Return a precision's line of the table."""
    format = shards.StoreFormat(top_k, precision, shards=len(parts))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        for index, shard in enumerate(parts):
            path = shards.shard_path(folder, index)
            shards.write_shard(path, shard, [exact[row.id] for row in shard], format)
        written = time.perf_counter()
        store.Knowledge(folder)
        opened = time.perf_counter()
        summary = store.summary(folder)
    rates = [summary["positions"] / seconds for seconds in (written - began, opened - written)]
    cells = [
        precision,
        f"{summary['bytes_per_position']:.2f}",
        *(f"{summary[name]:.2g}" for name in ERRORS),
        *(f"{rate:,.0f}" for rate in rates),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print a Markdown table with one line per precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--samples", type=int, help="random samples of the training part")
    chosen = parser.parse_args()
    run = open_run(Request(chosen.recipe, tuple(chosen.overrides), quiet=True))
    whole = inputs.training_rows(run, "teacher", "train")
    order = np.random.default_rng(0).permutation(len(whole))[: chosen.samples]
    rows = [whole[int(i)] for i in order]
    exact = exact_knowledge(run, rows)
    mass = np.concatenate([-np.expm1(topk.log_tail.astype(np.float64)) for topk in exact.values()])
    print(
        f"{len(rows)} samples, {len(mass)} positions, mean mass of the top "
        f"{run.recipe.knowledge.top_k}: {mass.mean():.3f}\n"
    )
    print(
        "| precision | bytes per position | probability error: max | mean | mass error: max "
        "| mean | mean KL | positions/s written | opened |"
    )
    print("|---|" + "---:|" * 8)
    parts = scoring.split_into_shards(rows)
    for precision in PRECISIONS:
        print(measure(parts, exact, run.recipe.knowledge.top_k, precision), flush=True)


if __name__ == "__main__":
    main()
