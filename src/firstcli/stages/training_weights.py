"""The weights with which training starts, and those that are saved when it ends."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments

from firstcli.api import Dtype
from firstcli.checkpoints import adapters
from firstcli.checkpoints.adapters import Base
from firstcli.checkpoints.loading import whole_weights
from firstcli.runtime import distributed
from firstcli.stages import fingerprints, role_models
from firstcli.training import lora, saving, sharding
from firstcli.workspace.run import Run
from firstcli.workspace.units import Unit

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_FOLDER = "adapter"
"""In the folder of a merged model: where its adapter is."""


def starting(run: Run, unit: Unit, dtype: Dtype, args: TrainingArguments) -> PreTrainedModel:
    """Load the model to train; where the first process's weights are shared, only there.

    Args:
        run: the run.
        unit: a unit of a training stage.
        dtype: type of the weights.
        args: settings of the training.
    """

    def load() -> PreTrainedModel:
        with whole_weights():
            return role_models.starting_model(run, unit.role, dtype, run.seed_of(unit))

    if not sharding.first_loads(args):
        return load()
    loaded: list[PreTrainedModel] = []

    def load_first() -> sharding.WholeModel:
        loaded.append(load())
        return sharding.WholeModel.of(loaded[0])

    whole = distributed.by_first(load_first)
    if whole.saved_buffers:
        sharding.load_in_all(args)
        return loaded[0] if loaded else load()
    if loaded:
        return loaded[0]
    family = role_models.family(run, unit.role)
    empty = family.empty_model(run.reference(unit.role), role_models.tokenizer(run, unit.role))
    whole.complete(empty)
    return empty


def save(
    run: Run,
    unit: Unit,
    model: PreTrainedModel | PeftModel,
    weights: dict[str, Tensor] | None,
    folder: Path,
) -> None:
    """Save a trained model in its dtype; with adapters, what `save` asks for.

    Args:
        run: the run.
        unit: the unit that trained it.
        model: the model.
        weights: its whole weights, if the model holds only shards of them.
        folder: where to write; it exists.
    """
    if isinstance(model, PreTrainedModel):
        saving.save(model, weights, fingerprints.saved_dtype(run, unit), folder)
    else:
        _save_adapted(run, unit, model, folder, weights)


def _save_adapted(
    run: Run, unit: Unit, model: PeftModel, folder: Path, weights: dict[str, Tensor] | None
) -> None:
    """Save the adapter, the model with the adapter merged into its weights, or both.

    Weights that are quantised, sharded or more coarse than those to save are not merged: the
    weights with which training began, on which nothing has changed, are loaded again for that.
    """
    role, settings = unit.role, run.training_settings(unit)
    section, seed = run.model_section(role), run.seed_of(unit)
    alone = folder if settings.saved == "adapter" else folder / ADAPTER_FOLDER
    base = Base(section.checkpoint or "", section.revision)
    lora.save_adapter(model, alone, base, weights)
    if settings.saved == "adapter":
        return
    saved = fingerprints.saved_dtype(run, unit)
    in_memory = weights is None and not lora.is_quantized(lora.base_model(model))
    if in_memory and settings.dtype in ("float32", saved):
        whole = model.merge_and_unload()
    else:
        # Sums are rounded once, to the dtype in which they are saved.
        stored = role_models.checkpoint_dtype(run, role) if section.checkpoint else "float32"
        dtype: Dtype = saved if saved == stored else "float32"
        start = role_models.starting_model(run, role, dtype, seed, quantized=False)
        whole = adapters.merged(start, alone)
    saving.save(whole, None, saved, folder)
    if settings.saved == "merged":
        shutil.rmtree(alone)
    else:
        role_models.tokenizer(run, role).save_pretrained(alone)
