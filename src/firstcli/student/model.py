"""Load the model in a student's folder, with all that its use needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from firstcli.api import Dtype
from firstcli.data.chat import ChatFormat, has_template
from firstcli.data.encoding import Encoding
from firstcli.errors import UserError
from firstcli.student.usage import Usage, read_usage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from firstcli.models.readout import Reader
    from firstcli.plugins.recalibrators import CheckedRecalibrator


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A student's model on its device, and how it is used."""

    folder: Path
    usage: Usage
    tokenizer: PreTrainedTokenizerBase
    reader: Reader
    context: float
    """The length in tokens of the longest text that the model reads."""
    recalibrator: CheckedRecalibrator | None
    """Changes the candidates' probabilities; None leaves them as they are."""
    chat: ChatFormat | None = None
    """Renders prompts as messages of a chat; None leaves them as they are."""

    def encoding(self, where: str) -> Encoding:
        """Return how rows are encoded; `where` begins messages."""
        return Encoding(self.tokenizer, where, self.usage.drop_doubled_bos, chat=self.chat)


def load_model(
    folder: Path, *, raw: bool, device: str, dtype: Literal["auto"] | Dtype | None
) -> LoadedModel:
    """Load a student's model.

    Args:
        folder: the student's folder.
        raw: leave out the post-hoc recalibrator.
        device: a device's name, or `auto`.
        dtype: type of the weights; None: as in the recipe.

    Raises:
        UserError: the folder is incomplete or damaged, or was written by a newer firstcli.
    """
    usage = read_usage(folder)
    if raw and usage.folded:
        raise UserError(
            f"{folder}: its temperature is folded into the weights and cannot be left out; use the "
            "student's folder in the run instead"
        )
    recalibrator = None if raw else restored(folder, usage)

    import torch
    from transformers import AutoTokenizer

    from firstcli.checkpoints.adapters import check_checkpoint
    from firstcli.checkpoints.loading import load_complete
    from firstcli.models import inference
    from firstcli.models.readout import Reader

    place = inference.device_named(device, "device")
    inference.make_current(place)
    check_checkpoint(folder)
    precision = inference.dtype_named(dtype or usage.dtype, place)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = load_complete(folder, dtype=getattr(torch, precision), local_files_only=True)
    except UserError:
        raise
    except Exception as error:  # transformers raises nearly anything for a damaged folder
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: cannot be loaded ({type(error).__name__}: {reason})") from error
    chat = None
    if usage.chat:
        if not has_template(tokenizer):
            raise UserError(
                f"{folder}: its tokenizer has no chat template, but it was trained with one; "
                "copy the whole folder, with chat_template.jinja"
            )
        chat = ChatFormat(tokenizer, usage.system)
    model.to(place)  # type: ignore[arg-type]  # a decorator hides its signature
    model.eval()
    context = inference.context_length(model) or math.inf
    return LoadedModel(folder, usage, tokenizer, Reader(model), context, recalibrator, chat)


def restored(folder: Path, usage: Usage) -> CheckedRecalibrator | None:
    """Return a student's post-hoc recalibrator with its fitted state, if it has one.

    Args:
        folder: the folder, for messages.
        usage: what its `firstcli.json` says.

    Raises:
        UserError: its plugin is not installed, or does not accept what was stored.
    """
    from pydantic import ValidationError

    from firstcli import plugins
    from firstcli.plugins import calls, recalibrators

    if usage.posthoc is None:
        return None
    name = usage.posthoc.name
    try:
        plugin = plugins.find("recalibrators", name)
        fitted = recalibrators.recalibrator(name, calls.validated(plugin, usage.posthoc.options))
        fitted.restore(usage.posthoc.state)
    except (UserError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{folder}: its post-hoc recalibrator '{name}' cannot be used: {reason}; install the "
            "package of the plugin, or leave the recalibrator out with --raw"
        ) from error
    return fitted
