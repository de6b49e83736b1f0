"""Extraction through a local server against extraction in the process.

    python benchmarks/server.py [--repeats 5]

The plugin firstcli-server asks the stub server of its tests, which runs the same model in the same
process, one sample per request, and answers as vLLM does. The difference is what requests, JSON and
single samples cost. Without the plugin the row is left out.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import measure
import shapes
from firstcli.api import ModelRef, TokenQuery
from firstcli.data.encoded import lengths_of
from firstcli.families.scratch import Scratch, ScratchOptions
from firstcli.models import inference, readout
from firstcli.stages import scoring
from measure import Comparison, Report
from shapes import INSTRUCTION, SMALL, Model

PLUGIN = Path(__file__).parents[1] / "plugins" / "firstcli-server"
SAMPLES = 16


def compare(shape: Model, samples: int, repeats: int) -> Comparison:
    """Compare positions per second."""
    sys.path.insert(0, str(PLUGIN / "tests"))
    plugin = import_module("firstcli_server")
    scorer_class, stub = (
        import_module("firstcli_server.scorer").Scorer,
        import_module("stub_server"),
    )
    model: Any = shape.make()
    rows = INSTRUCTION.rows(samples, shape.vocabulary)
    tokenizer = Scratch(ScratchOptions(vocabulary=300)).tokenizer(ModelRef(None), ["text"])

    class Served(stub.Stub):  # type: ignore[misc, name-defined]  # found at run time
        """Answers from the model."""

        @torch.inference_mode()
        def answer(self, body: dict[str, Any]) -> tuple[int, Any]:
            ids, k = torch.tensor(body["prompt"]), body["prompt_logprobs"]
            log_probs = torch.log_softmax(model(ids[None]).logits[0, :-1], -1)
            # vLLM adds the prompt's own token to the top k.
            chosen = torch.cat([ids[1:, None], log_probs.topk(k).indices], -1)
            values = log_probs.gather(-1, chosen).tolist()
            entries = [
                {str(token): {"logprob": value} for token, value in zip(*pair, strict=True)}
                for pair in zip(chosen.tolist(), values, strict=True)
            ]
            usage = {"prompt_tokens": len(ids), "completion_tokens": 0}
            return 200, {"choices": [{"prompt_logprobs": [None, *entries]}], "usage": usage}

    reader, lengths = readout.Reader(model), lengths_of(rows).tolist()
    queries = [
        TokenQuery(row.id, row.input_ids.astype(np.int64), before.numpy() + 1)
        for row in rows
        for before in [inference.before_targets([row])[1]]
    ]

    @torch.inference_mode()
    def in_process() -> None:
        for batch in inference.batches(lengths, scoring.EXTRACTION_TOKENS):
            scoring.top_k_of(reader, [rows[i] for i in batch], shapes.TOP_K, shape.vocabulary)

    with stub.serving(Served(tokenizer)) as url:
        options = plugin.ServerOptions(url=url, model="stub", protocol="vllm")
        scorer = scorer_class(options, tokenizer)
        seconds = measure.in_turns(
            {
                "served": measure.clocked(lambda: list(scorer.top_k(queries, shapes.TOP_K))),
                "in process": measure.clocked(in_process),
            },
            repeats,
        )
        scorer.close()
    rates = {key: [shapes.positions(rows) / each for each in seconds[key]] for key in seconds}
    figures = " and ".join(f"{median(rate):.0f}" for rate in rates.values())
    return Comparison(
        f"extraction through a local server, {shape.name}, instructions",
        "in the process",
        measure.ratios(rates["served"], rates["in process"]),
        0.5,
        at_least=True,
        figures=f"{figures} positions/s",
    )


def report(repeats: int) -> Report:
    """Measure the small model."""
    if find_spec("firstcli_server") is None:
        missing = "`pip install ./plugins/firstcli-server`"
        return Report([], [f"Left out: extraction through a local server, which needs {missing}."])
    return Report([compare(SMALL, SAMPLES, repeats)])


if __name__ == "__main__":
    measure.main(report, __doc__)
