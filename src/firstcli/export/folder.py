"""Write the exported folder: complete and checked, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from firstcli.api import Dtype
from firstcli.checkpoints.adapters import is_adapter
from firstcli.checkpoints.folder import ADAPTER, INDEX, READ_SUFFIXES, WEIGHTS, read_json
from firstcli.checkpoints.loading import load_complete
from firstcli.export.fold import Fold, fold
from firstcli.export.source import ExportSource
from firstcli.models import inference
from firstcli.models.dtypes import base_dtype
from firstcli.runtime.files import sync, write_text
from firstcli.student.card import CARD, FIGURE, card, read_parts
from firstcli.student.usage import FILE, write_usage

NOT_COPIED = (
    *(WEIGHTS, INDEX, ADAPTER),
    *("config.json", "generation_config.json", "manifest.json", FILE),
)
"""Files that are written anew, and the run's own."""


@dataclass(frozen=True, slots=True)
class Written:
    """What an export wrote."""

    dtype: Dtype
    folded: Fold | None


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a hidden folder next to `target`, which takes that name only if no error occurs.

    A killed process leaves the hidden folder behind; the next export deletes it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f".{target.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
        for path in work.iterdir():
            sync(path)
        sync(work)
        os.rename(work, target)  # replaces an empty folder
        sync(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_model(source: ExportSource, folder: Path, dtype: Dtype | None) -> Written:
    """Write weights, configuration and tokenizer; the temperature is folded in float32.

    Args:
        source: what is exported.
        folder: an empty folder.
        dtype: type of the weights; None keeps the student's, see `_own_dtype`.

    Raises:
        UserError: the temperature cannot be folded.
    """
    chosen = dtype or _own_dtype(source)
    model = load_complete(source.folder, dtype=torch.float32, local_files_only=True).eval()
    folded = None
    if source.temperature is not None:
        folded = fold(model, source.temperature, _ordinary_ids(model))
    model.to(dtype=getattr(torch, chosen))
    model.save_pretrained(folder)
    for path in source.folder.iterdir():
        if path.suffix in READ_SUFFIXES and path.name not in NOT_COPIED:
            shutil.copyfile(path, folder / path.name)
    _describe(source, folder)
    return Written(chosen, folded)


def _own_dtype(source: ExportSource) -> Dtype:
    """Return the dtype of a student's weights.

    Of an adapter, that is what the recipe's `save_dtype` would give to the merged model: by default
    the dtype of the checkpoint that the adapter belongs to.
    """
    if not is_adapter(source.folder):
        stated: Dtype = read_json(source.folder / "config.json").get("dtype", "float32")
        return stated
    chosen = source.save_dtype
    return base_dtype(source.folder) if chosen == "checkpoint" else chosen


def _describe(source: ExportSource, folder: Path) -> None:
    """Write `firstcli.json` and the model card, with the figure if it shows this model."""
    usage = source.exported_usage
    shows_this_model = (source.temperature is not None) == (source.usage.posthoc is not None)
    figure = source.folder / FIGURE
    if shows_this_model and figure.is_file():
        shutil.copyfile(figure, folder / FIGURE)
    has_figure = (folder / FIGURE).is_file()
    write_text(folder / FILE, write_usage(usage))
    write_text(folder / CARD, card(usage, read_parts(source.folder), figure=has_figure))


def _ordinary_ids(model: PreTrainedModel) -> list[int]:
    """Return 16 token ids spread over the vocabulary, without padding, which models may mask."""
    size = inference.vocabulary_size(model)
    padding = model.config.get_text_config().pad_token_id
    ids = range(0, size, max(1, size // 17))
    return [token for token in ids if token != padding][:16]
