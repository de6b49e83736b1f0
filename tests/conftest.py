"""Tiny tokenizers and models that all tests share, made on the spot: no test needs the network."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is first imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, but tables must not depend on it

import pytest
import torch
from hypothesis import settings
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from firstcli.api import ModelRef
from firstcli.families.scratch import Scratch, ScratchOptions
from firstcli.runtime.console import Console
from support.paths import SHARED

torch.set_num_threads(1)  # deterministic, and kind to the other tests of a parallel run
settings.register_profile("firstcli", deadline=None, derandomize=True, database=None)
settings.load_profile("firstcli")

TEXT = (
    "Q: What is water?\nAnswer Choices:\n(a) wet\n(b) dry\n(c) green\nA: The answer is (a).",
    "Is the passage true? Your answer should be Yes or No.\n\n### Response:\nYes",
    "Is the passage true? Your answer should be Yes or No.\n\n### Response:\nNo",
    "Answer: yes, the water is wet. Answer: no, the fire is dry.",
)

MakeLlama = Callable[..., LlamaForCausalLM]


@pytest.fixture(scope="module", autouse=True)
def frozen_imports() -> None:
    """Take all imported modules out of garbage collection.

    Training collects garbage several times, and each full collection visited every module: in
    tiny trainings that took nine tenths of the time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in GPT-2's style: no BOS, EOS `</s>`."""
    tokenizer = Scratch(ScratchOptions(vocabulary=330)).tokenizer(ModelRef(None), TEXT)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


@pytest.fixture(scope="session")
def piece_tokenizer() -> PreTrainedTokenizerFast:
    """Llama's style: BOS in front, spaces as `▁`, a `▁` before the text, unknown text as bytes."""
    marks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    learned = Tokenizer(models.BPE())
    learned.normalizer = normalizers.Sequence(marks)
    words = [pre_tokenizers.Split("▁", "merged_with_next"), pre_tokenizers.Split("\n", "isolated")]
    learned.pre_tokenizer = pre_tokenizers.Sequence(words)
    learned.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    bpe = json.loads(learned.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *bpe["vocab"]]
    vocab = {name: i for i, name in enumerate(names)}
    merges = [(left, right) for left, right in bpe["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Sequence(marks)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(params=["byte", "piece"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """Each of the two styles in turn."""
    found: PreTrainedTokenizerFast = request.getfixturevalue(f"{request.param}_tokenizer")
    return found


@pytest.fixture(scope="session")
def make_llama() -> MakeLlama:
    """Build a Llama of 2 layers, 32 wide, with random weights: `make_llama(vocabulary, seed=0)`.

    Its weights are larger than usual, so that its predictions are far from uniform.
    """

    def make(vocabulary: int, seed: int = 0, **config: Any) -> LlamaForCausalLM:
        shape = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 128,
            "initializer_range": 0.3,
            **config,
        }
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **shape))
        model.eval()
        return model

    return make


@pytest.fixture(scope="session")
def pico_folder(
    tmp_path_factory: pytest.TempPathFactory,
    byte_tokenizer: PreTrainedTokenizerFast,
    make_llama: MakeLlama,
) -> Path:
    """A Hugging Face folder with a pico Llama and the byte-level tokenizer; do not write to it."""
    folder = tmp_path_factory.mktemp("pico")
    make_llama(len(byte_tokenizer)).save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def quiet() -> Console:
    """A console that prints nothing but warnings and errors."""
    return Console(quiet=True)


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """The folder of real models and tokenizers beside the checkout, for tests marked `shared`."""
    folder = SHARED / "models"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder


@pytest.fixture(scope="session")
def invented_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report's folder with something in every section."""
    from firstcli.reporting.page import write_report
    from support.invented_report import everything

    folder = tmp_path_factory.mktemp("invented-report")
    write_report(folder, everything())
    return folder
