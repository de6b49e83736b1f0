"""Where experiment trackers write: into the run folder, unless the environment says otherwise."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = "tracking"
"""Folder of the trackers' files in a run folder."""


@contextmanager
def inside(folder: Path, run: str, title: str) -> Iterator[None]:
    """Let trackers write below a folder while a model trains.

    Variables of the environment that are already set are kept.

    Args:
        folder: the run folder.
        run: the run's name, which becomes the name of the project.
        title: which model trains; a folder of TensorBoard's files has its name.
    """
    place = folder.absolute() / FOLDER
    defaults = {
        "TENSORBOARD_LOGGING_DIR": str(place / "tensorboard" / title.replace(" ", "-")),
        "WANDB_DIR": str(place),
        "WANDB_PROJECT": run,
        "MLFLOW_TRACKING_URI": f"sqlite:///{place / 'mlflow.db'}",
        "MLFLOW_EXPERIMENT_NAME": run,
        "TRACKIO_DIR": str(place / "trackio"),
    }
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    place.mkdir(parents=True, exist_ok=True)
    os.environ.update(added)
    wandb = sys.modules.get("wandb")
    had_run = wandb is not None and wandb.run is not None
    try:
        yield
    finally:
        wandb = sys.modules.get("wandb")
        # transformers starts a run of W&B if there is none, and does not end it.
        if wandb is not None and wandb.run is not None and not had_run:
            wandb.finish()
        for name in added:
            os.environ.pop(name, None)
