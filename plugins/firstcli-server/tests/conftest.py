"""A tiny tokenizer, a recipe around the stub server, and the command line."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from stub_server import Stub, serving

Run = Callable[..., "subprocess.CompletedProcess[str]"]
RECIPE = """
name: r
train:
  task: {{name: classification, options: {{path: train.jsonl}}}}
  validation: 0.2
evaluate:
  - {{name: test, split: train, task: {{name: classification, options: {{path: test.jsonl}}}}}}
teacher:
  model:
    family: server
    checkpoint: model
    options: {{url: "{url}", model: stub, retries: 3, max_concurrency: 2{more}}}
student:
  model: {{family: causal-lm, checkpoint: model}}
arms:
  first: {{}}
"""


@pytest.fixture(autouse=True)
def frozen_imports() -> None:
    """Take all imported modules out of garbage collection, which training does several times."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a random Llama with a byte-level tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "model"
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(["The sun is a star. yes no"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer(model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


@pytest.fixture
def stub(tokenizer: Any) -> Stub:
    return Stub(tokenizer)


@pytest.fixture
def url(stub: Stub) -> Iterator[str]:
    with serving(stub) as address:
        yield address


@pytest.fixture
def folder(tmp_path: Path, model: Path) -> Path:
    """A folder with the data of a recipe and the model."""
    (tmp_path / "model").symlink_to(model)
    for name, count in (("train", 30), ("test", 6)):
        rows = [{"text": f"{name} {i} water", "label": ("no", "yes")[i % 2]} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@pytest.fixture
def first(folder: Path, url: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Run:
    """Run a command of `first` in this process; `more` adds options of the family."""
    from firstcli import cli

    monkeypatch.chdir(folder)

    def run(command: str, *arguments: str, more: str = "") -> Any:
        (folder / "r.yaml").write_text(RECIPE.format(url=url, more=more and f", {more}"))
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["first", command, "r.yaml", *arguments])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        shown = capsys.readouterr()
        return subprocess.CompletedProcess(command, int(exit.value.code or 0), *shown)

    return run
