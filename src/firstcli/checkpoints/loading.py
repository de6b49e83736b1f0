"""Load all weights of a checkpoint, or none."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firstcli.checkpoints import adapters
from firstcli.errors import UserError, shortened

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPUTED = re.compile(
    r"(^|\.)(rotary_emb|rotary|rotary_embedding)\.(inv_freq|cos_cached|sin_cached)$"
    r"|\.(attn|attention|self_attention|self_attn)\.masked_bias$"
)
"""Buffers that earlier versions of transformers stored and that models compute themselves."""

EMPTY_WEIGHTS = "FSDP_CPU_RAM_EFFICIENT_LOADING"
"""Variable with which Accelerate tells transformers to load weights in the first process only."""


def load_complete(source: str | Path, **arguments: Any) -> PreTrainedModel:
    """Load a causal language model from safetensors with `AutoModelForCausalLM`.

    An adapter is merged into the weights of its base model. A base model on the hub may be
    downloaded, even if the adapter's folder is all that is to be read locally.

    A weight that the model's own class declares optional, such as those of multi-token prediction,
    may be absent or unused.

    Args:
        source: a folder or a hub id.
        arguments: further arguments of `from_pretrained`.

    Raises:
        UserError: the weights do not match the model's configuration; names them.
    """
    from transformers import AutoModelForCausalLM

    if adapters.is_adapter(Path(source)):
        base = adapters.base_of(Path(source))
        local = {"local_files_only": False} if base.folder is None else {}
        arguments = {**arguments, "revision": base.revision, **local}
        with _offloading_unremarked():
            return adapters.merged(load_complete(base.checkpoint, **arguments), Path(source))
    load: Any = AutoModelForCausalLM.from_pretrained  # returns a pair with output_loading_info
    with _offloading_unremarked():
        model, loading = load(
            source,
            use_safetensors=True,  # never unpickle weights
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with names
            **arguments,
        )
    if problems := list(_problems(model, loading)):
        raise UserError(
            f"checkpoint {source}: weights and config.json do not match: {'; '.join(problems)}; "
            "mend config.json, or give a complete checkpoint of a causal language model"
        )
    return model  # type: ignore[no-any-return]


@contextmanager
def whole_weights() -> Iterator[None]:
    """Let every process load whole weights, also in a launch that shards those of training.

    In such a launch, transformers leaves weights empty in all processes but the first, because
    training broadcasts them. Nothing broadcasts them to models that are only read.
    """
    before = os.environ.get(EMPTY_WEIGHTS)
    os.environ[EMPTY_WEIGHTS] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[EMPTY_WEIGHTS]
        else:
            os.environ[EMPTY_WEIGHTS] = before


@contextmanager
def _offloading_unremarked() -> Iterator[None]:
    """Drop Accelerate's warning of offloaded weights: a recipe's `device_map` asked for them."""
    logger = logging.getLogger("accelerate.big_modeling")

    def is_other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Some parameters are on the meta device")

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def _problems(model: PreTrainedModel, loading: dict[str, Any]) -> Iterable[str]:
    """Yield what was not loaded as it is stored."""
    if missing := sorted(loading["missing_keys"]):  # transformers has initialised them
        yield f"{len(missing)} weights are missing, such as {shortened(missing, 2)}"
    # Every model computes its buffers itself, even if an earlier version stored them.
    computed = {name for name, _ in model.named_buffers()}
    names = sorted(loading["unexpected_keys"])
    if unused := [n for n in names if n not in computed and not COMPUTED.search(n)]:
        yield f"{len(unused)} weights have no place in the model, such as {shortened(unused, 2)}"
    if mismatched := sorted(loading["mismatched_keys"]):
        name, stored, expected = mismatched[0]
        yield (
            f"{len(mismatched)} weights have a different shape, such as '{name}' ({tuple(stored)} "
            f"in the file, {tuple(expected)} in the model)"
        )
    declared: dict[str, str] = model.get_expanded_tied_weights_keys(all_submodels=True)
    # transformers unties weights that are stored twice with different values.
    for name in sorted(declared.keys() - model.all_tied_weights_keys.keys()):
        yield (
            f"'{name}' and '{declared[name]}' are stored with different values, although "
            "tie_word_embeddings says that they are the same"
        )
