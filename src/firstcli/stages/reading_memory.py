"""Whether a device can hold a model that is only read, before it is loaded."""

from __future__ import annotations

from firstcli.checkpoints.quantization import LOADED_BYTES, bytes_per_weight
from firstcli.data.encoded import IntArray
from firstcli.errors import UserError
from firstcli.models import footprint, inference, memory
from firstcli.runtime.console import size
from firstcli.stages import role_models
from firstcli.workspace.run import Run
from firstcli.workspace.units import Role


def check(run: Run, role: Role, lengths: IntArray, batch_tokens: int) -> str:
    """Say what a role's model needs of its device's memory; warn if a batch will not fit.

    Args:
        run: the run.
        role: teacher or student.
        lengths: tokens of each sample or question, (N,).
        batch_tokens: most tokens of a batch, padding included.

    Raises:
        UserError: the device cannot hold the weights.
    """
    family, model = role_models.family(run, role), role_models.empty_model(run, role)
    device = inference.device_of(family)
    dtype = inference.inference_dtype(family, device)
    width, quantized = footprint.width_of(dtype), bytes_per_weight(model.config)
    weights = footprint.weight_bytes(model, width, quantized)
    tokens = max(int(lengths.max()), min(batch_tokens, int(lengths.sum())))
    needed = weights + footprint.batch_bytes(model, tokens, width)
    has = memory.capacity(device)
    if not family.spreads and has is not None and needed > has:
        cures = _cures(run, role, dtype, quantized)
        described = role_models.described(run, role)
        # Of stored quantised weights, the bytes of experts are not known.
        is_sure = quantized is None or run.model_section(role).effective.get("quantization")
        if weights > has and is_sure:
            raise UserError(
                f"{described}: its weights need {size(weights)} of memory, but {device} has "
                f"{size(has)}; {cures or 'use a larger device, or a smaller model'}"
            )
        run.console.warn(
            f"{described}: its weights need {size(weights)} and a batch {size(needed - weights)} "
            f"of memory, but {device} has {size(has)}; batches that do not fit are halved, which "
            "takes longer"
        )
    where = " over all devices" if family.spreads else ""
    return f"about {size(needed)} of memory{where}"


def _cures(run: Run, role: Role, dtype: str, quantized: float | None) -> str:
    """Return the keys that would make a model smaller, or spread it, with what it takes then."""
    options = run.model_section(role).plugin.Options.model_fields
    key, model = f"{role}.model.options", role_models.empty_model(run, role)
    cures = []
    on_gpu = inference.device_of(role_models.family(run, role)).type == "cuda"
    if on_gpu and "quantization" in options and quantized is None:
        small = footprint.weight_bytes(model, 2, LOADED_BYTES["nf4"])
        cures.append(f"{key}.quantization: {{load_in: nf4}} ({size(small)} of weights)")
    if "dtype" in options and dtype == "float32" and quantized is None:
        half = footprint.weight_bytes(model, 2)
        cures.append(f"{key}.dtype: bfloat16 ({size(half)})")
    if "device_map" in options:
        cures.append(f"{key}.device_map: auto, which uses other GPUs, the main memory and the disk")
    return f"set {', or '.join(cures)}" if cures else ""
