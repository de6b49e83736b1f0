"""The estimate of training memory beside the measured peak of a process on the CPU.

    python benchmarks/training_memory.py            # all cases, as a table
    python benchmarks/training_memory.py llama sgd  # some of them

Each case trains a random model for two steps in a process of its own, with `trainer.train`. Its
measured memory is the highest resident memory less that before the model was made. Nothing is
loaded for the estimate, which `first plan` makes in the same way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

STEPS = 2
TOP_K = 5


@dataclass(frozen=True)
class Case:
    """A model's configuration and the settings of its training."""

    model_type: str
    config: dict[str, Any]
    micro: int = 8
    batch: int = 8
    tokens: int = 128
    supervised: int = 32
    """Supervised positions of each sample."""
    trainer: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    packed: bool = False

    def length(self, number: int) -> int:
        """Return the tokens of a sample: every other one is shorter, as in real batches."""
        return self.tokens - number % 2


LLAMA = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "vocab_size": 16000,
    "tie_word_embeddings": False,
}
GPT2 = {"n_embd": 256, "n_layer": 6, "n_head": 4, "vocab_size": 16000}
GEMMA = {**LLAMA, "head_dim": 64, "num_key_value_heads": 2, "tie_word_embeddings": True}
CHECKPOINTING = {"activation_checkpointing": True}
CASES = {
    "llama": Case("llama", LLAMA),
    "llama-accumulating": Case("llama", LLAMA, micro=2),
    "llama-long": Case("llama", LLAMA, tokens=384),
    "llama-checkpointing": Case("llama", LLAMA, tokens=384, trainer=CHECKPOINTING),
    "llama-sgd": Case("llama", LLAMA, trainer={"optim": "sgd"}),
    "llama-adafactor": Case("llama", LLAMA, trainer={"optim": "adafactor"}),
    "llama-adamw": Case("llama", LLAMA, trainer={"optim": "adamw_torch"}),
    "llama-bfloat16": Case("llama", LLAMA, dtype="bfloat16"),
    "llama-packed": Case("llama", LLAMA, packed=True),
    "llama-packed-long": Case("llama", LLAMA, tokens=384, packed=True),
    "gpt2": Case("gpt2", GPT2),
    "gpt2-checkpointing": Case("gpt2", GPT2, tokens=384, trainer=CHECKPOINTING),
    "gemma2": Case("gemma2", GEMMA, micro=4, batch=8),
    "qwen3": Case("qwen3", {**LLAMA, "head_dim": 64, "num_key_value_heads": 2}, tokens=256),
}


def estimated(case: Case) -> dict[str, int]:
    """Return the estimate of a case in bytes, in parts and in total."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from firstcli.training import memory_estimate
    from firstcli.training.memory_settings import BatchShape, MemorySettings

    with torch.device("meta"):
        config = AutoConfig.for_model(case.model_type, **case.config)
        empty = AutoModelForCausalLM.from_config(config)
    tokens = sum(case.length(n) for n in range(case.micro)) if case.packed else case.tokens
    positions = case.micro * case.supervised
    shape = BatchShape(case.micro, tokens, positions, TOP_K, packed=case.packed)
    settings = MemorySettings(
        torch.device("cpu"),
        getattr(torch, case.dtype),
        optim=case.trainer.get("optim", "adamw_torch_fused"),
        accumulates=case.micro < case.batch,
        checkpointing=() if case.trainer.get("activation_checkpointing") else None,
    )
    found = memory_estimate.estimate(empty, shape, settings)
    assert found.complete
    parts = ("weights", "gradients", "optimizer", "activations", "total")
    return {name: getattr(found, name) for name in parts}


def measured(case: Case) -> int:
    """Train a case in this process and return the bytes of its peak."""
    import torch
    from transformers import AutoConfig

    torch.set_num_threads(1)
    tiny = {
        name: {"vocab_size": 100, "num_hidden_layers": 1, "n_layer": 1}.get(name, value)
        for name, value in case.config.items()
    }
    _train(AutoConfig.for_model(case.model_type, **tiny), case)  # loads libraries and kernels
    before = _status("VmRSS")
    _train(AutoConfig.for_model(case.model_type, **case.config), case)
    return _status("VmHWM") - before


def _train(config: Any, case: Case) -> None:
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    from firstcli.data.encoding import EncodedSample
    from firstcli.recipe.sections import Training
    from firstcli.runtime.console import Console
    from firstcli.training import arguments, trainer
    from firstcli.training.soft_targets import SoftTargets

    draw = np.random.default_rng(0)
    rows = []
    for number in range(case.batch * STEPS):
        length = case.length(number)
        ids = draw.integers(0, 100, length, dtype=np.int32)
        rows.append(EncodedSample(f"s{number}", ids, length - case.supervised, None))

    def soft_targets(samples: Any) -> SoftTargets:
        count = sum(len(sample.targets) for sample in samples)
        ids = np.tile(np.arange(TOP_K, dtype=np.int32), (count, 1))
        shares = np.full((count, TOP_K), 0.9 / TOP_K, np.float32)
        mass = np.full(count, 0.9, np.float32)
        return SoftTargets(ids, shares, 1 - mass, mass)

    settings = Training(
        epochs=1, batch_size=case.batch, micro_batch_size=case.micro, learning_rate=1e-4
    )
    with tempfile.TemporaryDirectory() as folder:
        fields = {"save_strategy": "no", "logging_steps": 1, **case.trainer}
        args = arguments.arguments(Path(folder), settings, fields, 0, torch.device("cpu"))
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, case.dtype))
        console = Console(quiet=True)
        batching: Literal["padded", "packed"] = "packed" if case.packed else "padded"
        trainer.train(model, rows, soft_targets, "topk-tail", args, console, "training", batching)


def _status(name: str) -> int:
    """Return a size of this process that Linux states."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure_in_a_process(name: str) -> int:
    """Return the measured bytes of a case, from a process of its own."""
    # Memory that is freed goes back to the system at once, so that the peak is that of the tensors.
    quiet = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--measure", name],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **quiet},
    )
    return int(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Print a row for each case."""
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measured(CASES[sys.argv[2]])))
        return
    heading = f"{'case':21}{'weights':>9}{'gradients':>11}{'optimizer':>11}{'activations':>13}"
    print(f"{heading}{'estimate':>10}{'measured':>10}{'error':>8}   (MB)")
    for name in sys.argv[1:] or CASES:
        parts = estimated(CASES[name])
        peak = measure_in_a_process(name)
        widths = (9, 11, 11, 13, 10)
        sizes = (
            f"{size / 1e6:{width}.1f}" for size, width in zip(parts.values(), widths, strict=True)
        )
        error = parts["total"] / peak - 1
        print(f"{name:21}{''.join(sizes)}{peak / 1e6:10.1f}{error:+8.1%}", flush=True)


if __name__ == "__main__":
    main()
