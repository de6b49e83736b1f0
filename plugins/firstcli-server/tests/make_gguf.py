"""Write a Llama checkpoint as a GGUF file: `python make_gguf.py FOLDER FILE`.

It runs in the environment of the server under test, which has `gguf`, `numpy` and `safetensors`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors import safe_open

TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def main(folder: Path, target: Path) -> None:
    """Write weights in float16, the norms in float32, and the byte-level BPE tokenizer."""
    config = json.loads((folder / "config.json").read_text())
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text()), config)
    permuted = {"attn_q": heads, "attn_k": key_heads}
    for name, values in _weights(folder):
        parts = name.removeprefix("model.").removesuffix(".weight").split(".", 2)
        if parts[0] == "layers":
            short = TENSORS[parts[2]]
            if short in permuted:
                values = _interleaved(values, permuted[short])
            name = f"blk.{parts[1]}.{short}.weight"
        else:
            names = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
            name = f"{names[parts[0]]}.weight"
        writer.add_tensor(name, values.astype(np.float16 if values.ndim > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _weights(folder: Path) -> Any:
    with safe_open(folder / "model.safetensors", "np") as file:
        for name in sorted(file.keys()):
            yield name, file.get_tensor(name)


def _interleaved(weight: Any, heads: int) -> Any:
    """Reorder rows from halves, as transformers rotates them, to pairs, as llama.cpp does."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def _add_tokenizer(writer: Any, content: Any, config: Any) -> None:
    added = {token["id"]: token["content"] for token in content["added_tokens"]}
    names = {index: token for token, index in content["model"]["vocab"].items()} | added
    count = config["vocab_size"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([names.get(index, f"[unused{index}]") for index in range(count)])
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if index in added else normal for index in range(count)])
    merges = content["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
