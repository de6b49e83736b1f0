"""The weights that are saved in place of those of the last step.

With the decay d and the weights w_i after step i, the exponential moving average after t steps is

    a_t = (sum_i d^(t - i) w_i) / (sum_i d^(t - i)),    i = 1 ... t

so the weights with which training starts do not count, and the first steps get no more than their
share (the bias correction of Adam, arXiv 1412.6980). Averages of weights over steps go back to
Polyak and Juditsky (1992); see also arXiv 1803.05407.

Interpolation saves w_0 + s (w - w_0), a share s of the way from the weights w_0 with which training
starts to the trained ones (arXiv 2109.01903; for calibration arXiv 2510.17426).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from firstcli.errors import UserError

FILE = "average.safetensors"
"""In a checkpoint: the average so far."""
_STEPS = "steps"
_FROZEN_HALF = "lora_A."
"""In the name of the matrix A of an adapter BA, which starts at random, whereas B starts at 0."""


@dataclass(frozen=True, slots=True)
class Averaging:
    """How the saved weights differ from those of the last step."""

    ema: float | None = None
    """Decay d of the moving average, in (0, 1); None: no average."""
    interpolate: float | None = None
    """Share s of the way from the starting weights, in (0, 1); None: the whole way."""


LAST_STEP = Averaging()
"""The weights of the last step, as they are."""


class WeightAverage:
    """The moving average of a model's trainable weights, in float32 on their device."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Allocate the average of the weights after no step."""
        self._model, self._decay = model, decay
        self.steps = 0
        self._average = {
            name: torch.zeros_like(value, dtype=torch.float32) for name, value in _trainable(model)
        }

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after one more step."""
        self.steps += 1
        share = (1 - self._decay) / (1 - self._decay**self.steps)  # 1 at the first step
        for name, value in _trainable(self._model):
            self._average[name].lerp_(value.float(), share)

    @torch.no_grad()
    def apply(self) -> None:
        """Replace the model's weights by their average; without a step, they stay."""
        if self.steps:
            for name, value in _trainable(self._model):
                value.copy_(self._average[name])

    def save(self, checkpoint: Path) -> None:
        """Write the average into the folder of a checkpoint."""
        save_file(self._average, checkpoint / FILE, {_STEPS: str(self.steps)})

    def load(self, checkpoint: Path) -> None:
        """Continue the average of an interrupted training.

        Raises:
            UserError: the checkpoint has none, or that of other weights.
        """
        path = checkpoint / FILE
        try:
            with safe_open(path, framework="pt") as file:
                steps = int(file.metadata()[_STEPS])
                if set(file.keys()) != set(self._average):
                    raise ValueError("its weights have other names")
                for name, average in self._average.items():
                    average.copy_(file.get_tensor(name))
        except (
            OSError,
            SafetensorError,
            LookupError,
            TypeError,
            ValueError,
            RuntimeError,
        ) as error:
            raise UserError(
                f"{path}: the average of the weights cannot be continued; delete the folder "
                f"{checkpoint.parent} to train anew"
            ) from error
        self.steps = steps


class StartingWeights:
    """The trainable weights with which training starts, on the CPU."""

    def __init__(self, model: nn.Module) -> None:
        """Copy them; call this before a checkpoint is loaded."""
        self._model = model
        self._start = {
            name: value.detach().to("cpu", copy=True)
            for name, value in _trainable(model)
            if _FROZEN_HALF not in name  # otherwise BA would be interpolated twice
        }

    @torch.no_grad()
    def interpolate(self, share: float) -> None:
        """Move the model's weights back, to a share of the way from the start."""
        for name, value in _trainable(self._model):
            if name in self._start:
                start = self._start[name].to(value.device).float()
                value.copy_(start.lerp_(value.float(), share))


class AveragingCallback(TrainerCallback):
    """Updates an average after every step; when training resumes, from that of a checkpoint."""

    def __init__(self, average: WeightAverage, checkpoint: Path | None) -> None:
        self._average, self._checkpoint = average, checkpoint

    def on_train_begin(self, *_: object, **__: object) -> None:
        if self._checkpoint is not None:
            self._average.load(self._checkpoint)

    def on_step_end(self, *_: object, **__: object) -> None:
        self._average.update()


def _trainable(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield each trainable weight once; tied weights are one."""
    return ((name, value) for name, value in model.named_parameters() if value.requires_grad)
