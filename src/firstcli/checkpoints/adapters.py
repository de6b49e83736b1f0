"""Adapters as peft saves them: what one changes, and a model with it merged into its weights."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firstcli.checkpoints.folder import (
    ADAPTER,
    check_folder,
    problem_of,
    read_json,
    refuse_pointers,
    weight_files,
    weight_names,
)
from firstcli.errors import UserError, shortened

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_WEIGHTS = "adapter_model.safetensors"
OTHER_WEIGHTS = "adapter_model.bin"
BASE_KEY = "base_model_name_or_path"
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
PREFIX = "base_model.model."
"""Of the names of weights in an adapter's file, before the module's name in the model."""


@dataclass(frozen=True, slots=True)
class Base:
    """The model whose weights an adapter changes."""

    checkpoint: str
    """The absolute path of a folder, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of the hub id."""

    @property
    def folder(self) -> Path | None:
        """The folder, or None for a hub id."""
        path = Path(self.checkpoint)
        return path if path.is_absolute() else None


def require_peft(key: str) -> None:
    """Check that peft is installed; `key` is what needs it, such as `lora`.

    Raises:
        UserError: it is not; names the extra.
    """
    if find_spec("peft") is None:
        raise UserError(f"{key}: needs peft, which is not installed; pip install 'firstcli[peft]'")


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keep back peft's warnings: of transformers' old names, and of what is an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
        yield


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter, and no model's weights beside it."""
    return (folder / ADAPTER).is_file() and not weight_files(folder)


def base_of(folder: Path) -> Base:
    """Return the base model that an adapter's configuration names.

    A relative path is looked for in the adapter's folder and in the current one; what exists in
    neither is a hub id.

    Raises:
        UserError: it names none, or a folder that does not exist.
    """
    config = read_json(folder / ADAPTER)
    stated = config.get(BASE_KEY)
    if not isinstance(stated, str) or not stated:
        raise problem_of(folder, f"{ADAPTER} has no {BASE_KEY}; add the adapter's base model")
    for place in (folder, Path.cwd()):
        if (path := place / Path(stated).expanduser()).is_dir():
            return Base(str(path.resolve()))
    if not HUB_ID.fullmatch(stated):
        raise problem_of(
            folder,
            f"the base model of this adapter, '{stated}', is not there; correct {BASE_KEY} in "
            f"{ADAPTER}, or merge the adapter where its base model is",
        )
    revision = config.get("revision")
    return Base(stated, revision if isinstance(revision, str) else None)


def bases(folder: Path) -> list[Base]:
    """Return an adapter's base model and, as long as that is itself an adapter, its own.

    Raises:
        UserError: one is not there, or an adapter is its own base.
    """
    found: list[Base] = []
    current: Path | None = folder.resolve()
    while current is not None and is_adapter(current):
        base = base_of(current)
        if base in found or base.folder == folder.resolve():
            raise problem_of(folder, f"this adapter is its own base model; correct {BASE_KEY}")
        found.append(base)
        current = base.folder
    return found


def whole_model(folder: Path) -> Base:
    """Return the whole model that a folder's configuration and architecture come from."""
    return (bases(folder) or [Base(str(folder))])[-1]


def check_checkpoint(folder: Path) -> None:
    """Check that a folder holds a whole model, or an adapter whose base model is one.

    Raises:
        UserError: as for `check_folder`, or the adapter cannot be merged; says why.
    """
    if not is_adapter(folder):
        check_folder(folder)
        return
    _check_adapter(folder)
    for base in bases(folder):
        if base.folder is not None and is_adapter(base.folder):
            _check_adapter(base.folder)
        elif base.folder is not None:
            check_folder(base.folder)


def _check_adapter(folder: Path) -> None:
    require_peft(f"checkpoint {folder}")
    kind = read_json(folder / ADAPTER).get("peft_type")
    if kind != "LORA":
        raise problem_of(
            folder,
            f"its adapter is of type {kind}, and firstcli merges only LORA; merge it with peft "
            "and give the merged folder",
        )
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        instead = f", only {OTHER_WEIGHTS}" if (folder / OTHER_WEIGHTS).is_file() else ""
        raise problem_of(
            folder,
            f"has no {ADAPTER_WEIGHTS}{instead}; firstcli loads no other format, so save the "
            "adapter again with `safe_serialization=True`",
        )
    refuse_pointers(folder, [path])
    list(weight_names(folder, path))


def merged(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Add an adapter to the weights of its base model, in place; beside quantised ones it stays.

    Products are summed in float32 and rounded once, to the dtype of the model's weights.

    Args:
        model: the base model, on the CPU.
        folder: an adapter's folder that `check_checkpoint` has accepted.

    Raises:
        UserError: the adapter does not fit the model.
    """
    from peft import PeftModel

    trained = [value for value in model.parameters() if value.requires_grad]
    try:
        load: Any = PeftModel.from_pretrained
        with without_warnings():
            adapted = load(model, folder, torch_device="cpu")
        if problems := list(_unmatched(adapted, folder)):
            raise ValueError("; ".join(problems))
        if getattr(model, "is_quantized", False):  # a sum would be rounded to the quantised grid
            whole: PreTrainedModel = adapted.get_base_model()
        else:
            whole = adapted.merge_and_unload()
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise problem_of(
            folder,
            f"the adapter does not fit its base model {base_of(folder).checkpoint}: {reason}",
        ) from error
    for value in trained:  # peft has frozen them
        value.requires_grad_(True)
    return whole


def _unmatched(adapted: Any, folder: Path) -> Iterable[str]:
    """Yield which weights of the file have no place, and which of the adapter were not in it."""
    from peft import get_peft_model_state_dict

    stored = set(weight_names(folder, folder / ADAPTER_WEIGHTS))
    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if missing := sorted(wanted - stored):
        yield f"{len(missing)} weights are missing, such as {shortened(missing, 1)}"
    if unused := sorted(stored - wanted - set(adapted.state_dict())):
        yield f"{len(unused)} weights have no place in the model, such as {shortened(unused, 1)}"
