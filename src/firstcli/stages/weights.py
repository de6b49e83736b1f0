"""Load the weights that are at hand before any work, to see whether they are whole and causal."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import psutil
from huggingface_hub import try_to_load_from_cache

from firstcli.api import ModelRef
from firstcli.checkpoints import adapters
from firstcli.checkpoints.folder import weight_files
from firstcli.errors import UserError
from firstcli.models.batching import free_memory
from firstcli.recipe.sections import training_of
from firstcli.runtime.console import size
from firstcli.stages import fingerprints, role_models
from firstcli.workspace.memory import NOT_REMEMBERED
from firstcli.workspace.run import Run
from firstcli.workspace.units import Role


def check(run: Run, role: Role) -> str | None:
    """Load the weights with which a role starts and try them out, once per content.

    Weights that would have to be downloaded, or that do not fit into memory, are checked when the
    work loads them; the result is `NOT_REMEMBERED` then.

    Raises:
        UserError: weights are missing, unused or misshapen, or the model is not a causal decoder.
    """
    if not are_at_hand(run.reference(role)):
        return NOT_REMEMBERED
    needed, free = 4 * role_models.weights(run, role), psutil.virtual_memory().available
    if needed > free:
        run.console.say(
            f"{role_models.described(run, role)}: its weights are checked when they are loaded, "
            f"because they take {size(needed)} and {size(free)} of memory are free"
        )
        return NOT_REMEMBERED
    content = fingerprints.loading_content(run, role)
    if section := _packed_in(run, role):
        content["batching"] = section
    run.memory.recall(f"weights of the {role}", content, partial(_load, run, role, section))
    return None


def _packed_in(run: Run, role: Role) -> str | None:
    """Return the first section of the recipe that wants packed batches for a role's model."""
    recipe = run.recipe
    for name, arm in recipe.arms.items():
        if role == "student" and training_of(recipe.student, arm).batching == "packed":
            return role_models.batching_section(run, name)
    if role == "teacher" and recipe.teacher:
        finetune = recipe.teacher.finetune
        if finetune and finetune.batching == "packed":
            return role_models.batching_section(run, "")
        if recipe.knowledge.batching == "packed":
            return "knowledge"
    return None


def are_at_hand(ref: ModelRef) -> bool:
    """Return whether weights need no download: made from a seed, in a folder or in the cache."""
    if ref.folder is not None:
        base = adapters.whole_model(ref.folder)
        return base.folder is not None or are_at_hand(ModelRef(base.checkpoint, base.revision))
    if ref.checkpoint is None:
        return True
    config = try_to_load_from_cache(ref.checkpoint, "config.json", revision=ref.revision)
    files = weight_files(Path(config).parent) if isinstance(config, str) else []
    return bool(files) and all(file.is_file() for file in files)


def _load(run: Run, role: Role, packed_in: str | None) -> None:
    role_models.tokenizer(run, role)
    with run.console.status(f"checking the {role}'s weights"):
        model = role_models.starting_model(run, role, "float32", run.recipe.seed)
        try:
            role_models.require_decoder(run, role, model)
            if packed_in:
                role_models.require_packing(run, role, model, packed_in)
        except UserError:
            raise
        except Exception as error:  # such as attention that needs a GPU
            reason = " ".join(str(error).split())[:100]
            run.console.say(
                f"{role_models.described(run, role)}: does not run on the CPU ({reason}); whether "
                "it is causal shows before its first batch"
            )
    del model
    free_memory()
