"""`first export`: a plain Hugging Face folder whose probabilities are calibrated."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, get_args

from firstcli.api import Dtype
from firstcli.errors import UserError
from firstcli.export.source import check_target, find
from firstcli.runtime.console import Console, size


def show(
    source: Path,
    target: Path,
    arm: str | None,
    *,
    dtype: str | None,
    change_sampling: bool,
    json: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Export a model, check the result, and print what was done.

    Args:
        source: a run folder, or a student's folder.
        target: the folder to create.
        arm: the model's name, such as `distill + T`.
        dtype: type of the weights; None keeps the student's.
        change_sampling: whether a temperature may change how free text is sampled.
        json: whether stdout is reserved for the result as JSON.
        quiet: whether to print nothing.

    Raises:
        UserError: the model cannot be exported, or the result is wrong.
    """
    if dtype is not None and dtype not in get_args(Dtype):
        raise UserError(f"--dtype must be {' or '.join(get_args(Dtype))}, not '{dtype}'")
    console = Console(json=json, quiet=quiet)
    chosen = find(source, arm, console)
    check_target(target, chosen.folder)
    if chosen.generates and chosen.temperature and not change_sampling:
        raise UserError(
            f"'{chosen.title}' writes free text, and folding T = {chosen.temperature:.4g} also "
            "changes how that is sampled; add --change-sampling to export it all the same, or "
            "export it without '+ T'"
        )
    console.say("loading PyTorch and transformers ...")
    from firstcli.export import check, folder

    with folder.new_folder(target) as work:
        with console.status(f"writing {chosen.title}"):
            written = folder.write_model(chosen, work, cast(Dtype | None, dtype))
        with console.status("checking the folder with plain transformers"):
            checked = check.check(work, chosen, written.dtype)
    weight = sum(file.stat().st_size for file in target.iterdir())
    console.say(f"exported {chosen.title} to {target} ({written.dtype}, {size(weight)})")
    for line in lines(written.folded, checked, written.dtype):
        console.say(f"  {line}")
    return {
        "folder": str(target),
        "model": chosen.title,
        "dtype": written.dtype,
        "temperature": chosen.temperature,
        "folded": None if written.folded is None else asdict(written.folded),
        "check": asdict(checked),
    }


def lines(folded: Any, checked: Any, dtype: Dtype) -> list[str]:
    """Describe an export in a few lines.

    Args:
        folded: where the temperature is; None without one.
        checked: the result of the check.
        dtype: type of the weights.
    """
    text = []
    if folded is None:
        text.append("no temperature: the weights predict as in the run")
    else:
        place = "last normalisation" if folded.is_norm else "output layer"
        text.append(f"T = {folded.temperature:.4g} folded into the {place}, {folded.module}")
        if folded.untied:
            text.append(
                "the output layer no longer shares its weight with the embeddings, which the "
                "temperature must not change; this adds one such matrix to the weights"
            )
    rounding = "" if dtype == "float32" else f" (the rounding of {dtype})"
    apart = f"by at most {checked.largest:.1g}, by {checked.mean:.1g} on average{rounding}"
    if checked.evaluation is None:
        text.append(
            f"checked with plain transformers on {checked.count} texts, because there are no "
            f"recorded questions: probabilities of all tokens differ {apart}"
        )
    else:
        text.append(
            f"checked with plain transformers on {checked.count} questions of "
            f"{checked.evaluation}: confidences differ {apart}"
        )
    if checked.ece is not None:
        ece, recorded = 100 * checked.ece, 100 * checked.recorded_ece
        text.append(f"ECE on these questions: {ece:.4f} here, {recorded:.4f} in the run (percent)")
    return [*text, *([checked.note] if checked.note else [])]
