"""The families: what model and tokenizer depend on, and which checkpoints are rejected."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from conftest import TEXT, MakeLlama
from firstcli.api import Dtype, ModelRef
from firstcli.errors import UserError
from firstcli.families.causal_lm import CausalLM, CausalLMOptions
from firstcli.families.scratch import Scratch, ScratchOptions
from firstcli.testing.families import check_family

NONE = ModelRef(None)
SMALL = {"hidden_size": 16, "layers": 1, "heads": 2, "vocabulary": 300, "context": 64}


def scratch(**options: Any) -> Scratch:
    return Scratch(ScratchOptions(**{**SMALL, **options}))


def causal(**options: Any) -> CausalLM:
    return CausalLM(CausalLMOptions(**options))


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in model.named_parameters()}


def same(left: PreTrainedModel, right: PreTrainedModel) -> bool:
    a, b = weights(left), weights(right)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# scratch


def test_scratch_keeps_the_contract() -> None:
    check_family(Scratch, SMALL)


LEARN = """
import sys
from firstcli.api import ModelRef
from firstcli.families.scratch import Scratch, ScratchOptions
text = [f"word{n * n % 97} and {n % 7} more\\n" for n in range(3000)]
tokenizer = Scratch(ScratchOptions(vocabulary=400)).tokenizer(ModelRef(None), text)
sys.stdout.write(tokenizer.backend_tokenizer.to_str())
"""


def test_the_tokenizer_is_a_function_of_text_and_vocabulary() -> None:
    """Independent of the process, its hash seed and the number of threads."""
    learned = [
        subprocess.run(
            [sys.executable, "-c", LEARN],
            env={"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads, "PATH": ""},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed, threads in (("1", "1"), ("2", "4"))
    ]
    assert len(learned[0]) > 1000 and learned[0] == learned[1]
    # The shape of the model does not change the tokenizer; the size of the vocabulary does.
    plain = scratch().tokenizer(NONE, TEXT)
    assert scratch(hidden_size=32, layers=2).tokenizer(NONE, TEXT).get_vocab() == plain.get_vocab()
    assert scratch(vocabulary=310).tokenizer(NONE, TEXT).get_vocab() != plain.get_vocab()
    assert scratch().tokenizer(NONE, TEXT[:2]).get_vocab() != plain.get_vocab()


def test_any_text_can_be_encoded_and_decoded() -> None:
    tokenizer = scratch().tokenizer(NONE, TEXT)
    for text in ("unseen 日本 😀\n\n\ttext", " leading", "trailing ", "\x07"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) == 300
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)


def test_weights_depend_on_the_seed_alone(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    first = scratch().model(NONE, byte_tokenizer, "float32", seed=1)
    torch.rand(10)
    before = torch.random.get_rng_state()
    again = scratch().model(NONE, byte_tokenizer, "float32", seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)  # the global generator is unchanged
    assert same(first, again)
    assert not same(first, scratch().model(NONE, byte_tokenizer, "float32", seed=2))


def test_scratch_options(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model = scratch(context=77, layers=3).model(NONE, byte_tokenizer, "bfloat16", seed=1)
    assert model.dtype == torch.bfloat16
    assert model.config.max_position_embeddings == 77 and model.config.num_hidden_layers == 3
    assert model.config.vocab_size == len(byte_tokenizer)
    for wrong in ({"hidden_size": 20, "heads": 4}, {"vocabulary": 200}, {"layers": 0}, {"x": 1}):
        with pytest.raises(ValidationError):
            ScratchOptions(**wrong)


# causal-lm


def test_causal_lm_keeps_the_contract(pico_folder: Path) -> None:
    check_family(CausalLM, ref=ModelRef(str(pico_folder)))


def test_a_saved_model_comes_back_bit_for_bit(
    tmp_path: Path, pico_folder: Path, make_llama: MakeLlama
) -> None:
    ref = ModelRef(str(pico_folder))
    tokenizer = causal().tokenizer(ref, ())
    loaded = causal().model(ref, tokenizer, "float32", seed=0)
    assert same(loaded, make_llama(len(tokenizer)))
    loaded.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert same(causal().load_trained(tmp_path, "float32"), loaded)
    assert causal().tokenizer(ModelRef(str(tmp_path)), ())(TEXT[0]) == tokenizer(TEXT[0])


def test_the_dtype_is_the_requested_one(tmp_path: Path, make_llama: MakeLlama) -> None:
    """Even if the checkpoint has a different dtype: training starts from float32 weights."""
    make_llama(50).to(torch.bfloat16).save_pretrained(tmp_path)  # type: ignore[arg-type]
    dtypes: list[Dtype] = ["float32", "bfloat16", "float16"]
    for dtype in dtypes:
        model = causal().model(ModelRef(str(tmp_path)), _unused(), dtype, 0)
        assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


def _unused() -> Any:
    """Stand in for the tokenizer, which loading weights does not use."""
    return None


def test_attention_is_passed_through(pico_folder: Path) -> None:
    for name in ("eager", "sdpa"):
        model = causal(attn_implementation=name).model(
            ModelRef(str(pico_folder)), _unused(), "float32", 0
        )
        assert model.config._attn_implementation == name
    with pytest.raises(UserError, match="its model cannot be loaded"):
        causal(attn_implementation="nonsense").model(
            ModelRef(str(pico_folder)), _unused(), "float32", 0
        )


def test_the_empty_model_has_as_many_weights(pico_folder: Path) -> None:
    ref = ModelRef(str(pico_folder))
    empty = causal().empty_model(ref, _unused())
    whole = causal().model(ref, _unused(), "float32", 0)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert empty.num_parameters() == whole.num_parameters()


# Faulty checkpoints.


def load(ref: ModelRef) -> PreTrainedModel:
    return causal().model(ref, _unused(), "float32", 0)


def test_a_folder_that_is_not_a_checkpoint(tmp_path: Path) -> None:
    for path, problem in ((tmp_path / "absent", "no such"), (tmp_path, "has no config.json")):
        ref = ModelRef(str(path))
        for use in (
            lambda ref=ref: causal().tokenizer(ref, ()),
            lambda ref=ref: causal().empty_model(ref, _unused()),
            lambda ref=ref: load(ref),
        ):
            with pytest.raises(UserError, match=f"{path}: {problem}"):
                use()


def test_a_hub_id_while_offline() -> None:
    ref = ModelRef("nobody/nothing-of-this-name", "v1")
    with pytest.raises(UserError, match=r"nobody/nothing.*its tokenizer cannot be loaded"):
        causal().tokenizer(ref, ())
    with pytest.raises(UserError, match=r"nobody/nothing.*its model cannot be loaded"):
        load(ref)


def test_pickled_weights_are_rejected(tmp_path: Path, pico_folder: Path) -> None:
    """Loading them runs whatever code they contain."""
    shutil.copytree(pico_folder, tmp_path, dirs_exist_ok=True)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model.safetensors, only 'pytorch_model.bin'"):
        load(ModelRef(str(tmp_path)))


def test_code_of_the_checkpoint_is_not_run(tmp_path: Path, pico_folder: Path) -> None:
    assert CausalLMOptions().trust_remote_code is False
    config = (pico_folder / "config.json").read_text()
    config = config.replace('"model_type": "llama"', '"model_type": "unheard-of"').replace(
        "{", '{"auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"},', 1
    )
    shutil.copytree(pico_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError, match="cannot be loaded"):
        load(ModelRef(str(tmp_path)))
    assert not (tmp_path / "ran").exists()


def test_missing_weights_are_not_initialised(tmp_path: Path, pico_folder: Path) -> None:
    shutil.copytree(pico_folder, tmp_path, dirs_exist_ok=True)
    kept = load_file(tmp_path / "model.safetensors")
    del kept["model.layers.1.mlp.up_proj.weight"]
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing, such as 'model.layers.1.mlp"):
        load(ModelRef(str(tmp_path)))


def test_weights_of_a_different_shape_are_rejected(
    tmp_path: Path, pico_folder: Path, make_llama: MakeLlama
) -> None:
    shutil.copytree(pico_folder, tmp_path, dirs_exist_ok=True)
    make_llama(999).config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"different shape, such as .*\(999, 32\) in the model"):
        load(ModelRef(str(tmp_path)))


@pytest.mark.parametrize("broken", ["{", "[]", '{"model_type": "unheard-of"}', '{"a": 1}'])
def test_a_broken_configuration_is_a_user_error(
    tmp_path: Path, pico_folder: Path, broken: str
) -> None:
    shutil.copytree(pico_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(broken)
    with pytest.raises(UserError, match="cannot be loaded"):
        causal().empty_model(ModelRef(str(tmp_path)), _unused())


def test_truncated_weights_are_a_user_error(tmp_path: Path, pico_folder: Path) -> None:
    shutil.copytree(pico_folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"model.safetensors is damaged or incomplete"):
        load(ModelRef(str(tmp_path)))


@pytest.mark.shared
def test_the_real_pair_loads(shared_models: Path) -> None:
    for name, millions in (("wiki-14m", 13.8), ("wiki-5m", 5.1)):
        model = load(ModelRef(str(shared_models / name)))
        assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=0.1)
        assert model.dtype == torch.float32
