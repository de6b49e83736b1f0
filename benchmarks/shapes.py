"""Models with random weights and samples of random tokens for the benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from firstcli.data.encoding import EncodedSample
from firstcli.knowledge import shards
from firstcli.knowledge.store import Knowledge
from firstcli.knowledge.top_k import TopK
from firstcli.recipe.sections import Arm
from firstcli.training.soft_targets import SoftTargetBuilder

TOP_K = 5


@dataclass(frozen=True, slots=True)
class Place:
    """A device, and the dtype of a model's weights on it."""

    device: torch.device
    dtype: Literal["float32", "bfloat16"] = "float32"

    @contextmanager
    def default(self) -> Iterator[None]:
        """Create new tensors here, without a copy in the memory of the host."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, self.dtype))
        try:
            with self.device:
                yield
        finally:
            torch.set_default_dtype(before)


CPU = Place(torch.device("cpu"))


@dataclass(frozen=True, slots=True)
class Model:
    """The shape of a Llama."""

    name: str
    vocabulary: int
    hidden: int
    layers: int = 4
    context: int = 512

    def make(self, place: Place | None = None) -> PreTrainedModel:
        """Create the model with random weights, where it runs."""
        place = place or CPU
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=11 * self.hidden // 4,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 64,
            max_position_embeddings=self.context,
        )
        with place.default():
            model: PreTrainedModel = LlamaForCausalLM(config)
        model.eval()
        return model


SMALL = Model("V = 32k, d = 256", 32_000, 256)
LARGE = Model("V = 128k, d = 512", 128_000, 512)
MODELS = (SMALL, LARGE)


@dataclass(frozen=True, slots=True)
class Text:
    """The ranges of prompt and response lengths of a kind of sample."""

    name: str
    prompt: tuple[int, int]
    response: tuple[int, int]

    def rows(self, count: int, vocabulary: int) -> list[EncodedSample]:
        """Draw samples; their lengths do not depend on the vocabulary."""
        lengths, draw = np.random.default_rng(0), np.random.default_rng(1)
        rows = []
        for number in range(count):
            start = int(lengths.integers(self.prompt[0], self.prompt[1] + 1))
            supervised = int(lengths.integers(self.response[0], self.response[1] + 1))
            ids = draw.integers(0, vocabulary, start + supervised, dtype=np.int32)
            rows.append(EncodedSample(f"s{number}", ids, start, None))
        return rows


QUESTION = Text("questions", (50, 70), (3, 3))
INSTRUCTION = Text("instructions", (60, 140), (90, 210))
TEXTS = (QUESTION, INSTRUCTION)


def positions(rows: Sequence[EncodedSample]) -> int:
    return sum(len(row.targets) for row in rows)


def random_knowledge(rows: Sequence[EncodedSample], vocabulary: int) -> list[TopK]:
    """Draw the top k of a random teacher."""
    draw = np.random.default_rng(2)
    known = []
    for row in rows:
        count = len(row.targets)
        p = -np.sort(-draw.dirichlet(np.ones(TOP_K + 1), count)[:, :TOP_K], axis=1)
        ids = np.argsort(draw.random((count, 64)), axis=1)[:, :TOP_K] * (vocabulary // 64)
        log_tail = np.log1p(-p.sum(axis=1))
        known.append(
            TopK(ids.astype(np.int32), np.log(p).astype(np.float32), log_tail.astype(np.float32))
        )
    return known


def write_store(
    folder: Path, rows: Sequence[EncodedSample], known: Sequence[TopK], size: int
) -> None:
    """Write knowledge in shards of `size` samples."""
    starts = range(0, len(rows), size)
    for index, first in enumerate(starts):
        shards.write_shard(
            shards.shard_path(folder, index),
            rows[first : first + size],
            known[first : first + size],
            shards.StoreFormat(TOP_K, "standard", shards=len(starts)),
        )


def soft_targets(folder: Path, rows: Sequence[EncodedSample]) -> SoftTargetBuilder:
    """Build soft targets from a store, as for a student with a recalibrator."""
    arm = Arm.model_validate(
        {"recalibrator": {"name": "temperature-scaling", "options": {"temperature": 0.5}}}
    )
    assert arm.recalibrator
    return SoftTargetBuilder(arm, arm.recalibrator.build(), Knowledge(folder), rows)
