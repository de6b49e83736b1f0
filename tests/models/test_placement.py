"""Models that a device map spreads over memory and disk predict as they do on one device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from firstcli.checkpoints import causality
from firstcli.checkpoints.loading import load_complete
from firstcli.checkpoints.placement import (
    input_device,
    is_hooked,
    is_placed,
    move,
    parted_ties,
)
from firstcli.models import inference, readout
from models.test_inference import ARCHITECTURES, V, all_positions, build, sequences

MAPS: dict[str, Any] = {
    "all on the disk": {"": "disk"},
    "head on the disk": {"model": "cpu", "lm_head": "disk"},
    "layers on the disk": {
        **{"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"},
        **{"model.layers.0": "disk", "model.layers.1": "cpu", "lm_head": "cpu"},
    },
}


def read(model: PreTrainedModel, *, all_logits: bool = False) -> torch.Tensor:
    """Return the top 5 of each position of a padded batch, by either path of the reader."""
    texts = sequences(9, 3, 6, 1)
    padded = inference.pad(texts)
    rows, columns = all_positions([len(text) for text in texts])
    reader = readout.Reader(model)
    assert not reader.obstacle
    if all_logits:
        return reader.logits_at(padded.input_ids, padded.attention_mask, rows, columns)
    return reader(
        padded.input_ids,
        padded.attention_mask,
        rows,
        columns,
        lambda scores: readout.top_k(scores, 5, V),
    )


def saved(folder: Path, *, tied: bool) -> Path:
    config = ARCHITECTURES["llama"]
    config.tie_word_embeddings = tied
    build(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("where", MAPS)
@torch.no_grad()
def test_offloaded_weights_predict_the_same(tmp_path: Path, where: str, tied: bool) -> None:
    """Bit for bit, because the same kernels run on the same weights."""
    folder = saved(tmp_path / "model", tied=tied)
    plain = load_complete(folder, dtype=torch.float32)
    spread = load_complete(
        folder,
        dtype=torch.float32,
        device_map=MAPS[where],
        offload_folder=str(tmp_path / "offload"),
    )
    assert is_placed(spread) and not is_placed(plain)
    if tied and where == "head on the disk":
        assert parted_ties(spread) == ("lm_head.weight", "model.embed_tokens.weight")
        return  # Accelerate cannot load it, and the family refuses it
    assert parted_ties(spread) is None
    assert any(value.is_meta for value in spread.parameters())
    assert input_device(spread) == input_device(plain) == torch.device("cpu")
    assert causality.fault(spread, list(range(9)), None) is None
    head: Any = spread.get_output_embeddings()
    forwards = dict(vars(head))
    for all_logits in (False, True):
        got, expected = (read(model, all_logits=all_logits) for model in (spread, plain))
        assert torch.equal(got, expected)
    assert is_hooked(head) and vars(head)["_old_forward"] == forwards["_old_forward"]
    assert vars(head)["forward"] is forwards["forward"]
    move(spread, torch.device("cpu"))  # leaves it where it is
    assert any(value.is_meta for value in spread.parameters())
    assert not list((tmp_path / "offload").iterdir())  # read from the checkpoint itself


@torch.no_grad()
def test_a_layer_that_was_replaced_before_it_was_hooked(tmp_path: Path) -> None:
    model = load_complete(
        saved(tmp_path, tied=False),
        dtype=torch.float32,
        device_map=MAPS["head on the disk"],
        offload_folder=str(tmp_path / "offload"),
    )
    head: Any = model.get_output_embeddings()
    head._old_forward = lambda hidden: hidden
    assert "something else has replaced" in str(readout.Reader(model).obstacle)
