"""`first export`: a plain Hugging Face folder whose probabilities are calibrated."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from firstcli.api import Dtype
from firstcli.errors import UserError, check_choice
from firstcli.export import gguf as conversion
from firstcli.export import hub as uploads
from firstcli.export.source import ExportSource, check_target, find
from firstcli.runtime.console import Console, size

if TYPE_CHECKING:
    from firstcli.export.check import SelfCheck
    from firstcli.export.fold import Fold


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """The options of the command."""

    source: Path
    target: Path
    arm: str | None = None
    dtype: str | None = None
    """Type of the weights; None keeps the student's."""
    change_sampling: bool = False
    """Whether a temperature may change how free text is sampled."""
    hub: str | None = None
    """Repository to upload to."""
    dry_run: bool = False
    """Whether the upload is only listed."""
    gguf: Path | None = None
    gguf_type: str | None = None
    lm_eval: Path | None = None
    json: bool = False
    quiet: bool = False


def show(options: ExportOptions) -> dict[str, Any]:
    """Export a model, check the result, and print what was done; return it as JSON values.

    Raises:
        UserError: the model cannot be exported, or the result is wrong.
    """
    console = Console(json=options.json, quiet=options.quiet)
    _check_options(options)
    source = find(options.source, options.arm, console)
    check_target(options.target, source.folder)
    _check_sampling(source, options)
    kind = options.gguf_type or "f16"
    tools = options.gguf and conversion.find_tools(options.gguf, kind)
    console.say("loading PyTorch and transformers ...")
    result = _export(source, options, console)
    if options.lm_eval:
        result["lm_eval"] = _write_tasks(source, options, console)
    if options.gguf and tools:
        with console.status(f"converting to GGUF ({kind})"):
            try:
                conversion.convert(tools, options.target, options.gguf, kind)
            except UserError as error:
                raise UserError(f"{error}; the folder {options.target} is complete") from error
        result["gguf"] = _measured(source, options.gguf, kind, console)
    if options.hub:
        result["hub"] = _upload(source, options, console)
    return result


def _check_options(options: ExportOptions) -> None:
    check_choice("dtype", options.dtype, get_args(Dtype))
    if options.gguf_type and not options.gguf:
        raise UserError("--gguf-type belongs to --gguf FILE; give both")
    if options.dry_run and not options.hub:
        raise UserError("--dry-run belongs to --hub REPO, whose upload it lists; give both")
    if options.hub and not options.dry_run:
        uploads.require_token()
    if options.lm_eval:
        check_target(options.lm_eval, options.source, "--lm-eval ")


def _check_sampling(source: ExportSource, options: ExportOptions) -> None:
    generates = source.usage.kind == "instruction"
    if generates and source.temperature is not None and not options.change_sampling:
        raise UserError(
            f"'{source.title}' writes free text, and folding T = {source.temperature:.4g} also "
            "changes how that text is sampled; add --change-sampling if that is intended, or "
            "export the model without '+ T'"
        )


def _export(source: ExportSource, options: ExportOptions, console: Console) -> dict[str, Any]:
    from firstcli.export import check, folder

    with folder.new_folder(options.target) as work:
        with console.status(f"writing {source.title}"):
            written = folder.write_model(source, work, cast(Dtype | None, options.dtype))
        with console.status("checking the folder with plain transformers"):
            checked = check.check(work, source, written.dtype)
    weight = sum(file.stat().st_size for file in options.target.iterdir())
    console.say(f"exported {source.title} to {options.target} ({written.dtype}, {size(weight)})")
    for line in (*_place(written.folded), *_findings(checked, written.dtype)):
        console.say(f"  {line}")
    if checked.note:
        console.say(f"  {checked.note}")
    if source.usage.kind == "instruction" and written.folded:
        console.say("  the temperature also changes how text is sampled (--change-sampling)")
    return {
        "folder": str(options.target),
        "model": source.title,
        "dtype": written.dtype,
        "folded": None if written.folded is None else asdict(written.folded),
        "check": asdict(checked),
    }


def _place(folded: Fold | None) -> list[str]:
    """Say where the temperature is."""
    if folded is None:
        return ["no temperature: the weights predict as they did"]
    place = "last normalisation" if folded.is_norm else "output layer"
    lines = [f"T = {folded.temperature:.4g} folded into the {place}, {folded.module}"]
    if folded.untied:
        lines.append(
            "the output layer no longer shares its weight with the embeddings, which the "
            "temperature must not change; the folder holds one more matrix for it"
        )
    return lines


def _findings(checked: SelfCheck, dtype: str) -> list[str]:
    """Describe the result of the check."""
    rounding = "" if dtype == "float32" else f" (the rounding of {dtype})"
    apart = f"by at most {checked.largest:.1g}, by {checked.mean:.1g} on average{rounding}"
    if checked.evaluation is None:
        return [
            f"checked with plain transformers on {checked.count} texts, because no recorded "
            f"questions are at hand: the log-probabilities of all tokens differ {apart}"
        ]
    lines = [
        f"checked with plain transformers on {checked.count} questions of {checked.evaluation}: "
        f"confidences differ from the run's {apart}"
    ]
    if checked.ece is not None and checked.recorded_ece is not None:
        ece, recorded = 100 * checked.ece, 100 * checked.recorded_ece
        lines.append(f"ECE of these questions: {ece:.4f} % here, {recorded:.4f} % in the run")
    return lines


def _write_tasks(
    source: ExportSource, options: ExportOptions, console: Console
) -> list[dict[str, Any]]:
    from transformers import AutoTokenizer

    from firstcli.export.harness import write_tasks

    assert options.lm_eval
    tokenizer = AutoTokenizer.from_pretrained(options.target, local_files_only=True)
    tasks = write_tasks(source, tokenizer, options.lm_eval)
    names = ",".join(task.name for task in tasks)
    command = ["lm_eval", "--model", "hf", "--model_args", f"pretrained={options.target}"]
    command += ["--include_path", str(options.lm_eval), "--tasks", names]
    console.say(f"lm-evaluation-harness: {shlex.join(command)}")
    for task in tasks:
        if task.whole:
            console.warn(
                f"{task.name}: the harness cannot score the candidates' first differing tokens "
                "alone with this tokenizer, so it scores whole candidates, and its numbers differ"
            )
    return [asdict(task) for task in tasks]


def _measured(source: ExportSource, file: Path, kind: str, console: Console) -> dict[str, Any]:
    """Measure a GGUF file on the same questions, where that is possible."""
    from firstcli.export import check

    problem = conversion.unreadable()
    checked = None
    if problem is None:
        try:
            checked = check.check_gguf(file, source)
        except UserError as error:
            problem = str(error)
    console.say(f"GGUF: {file} ({kind}, {size(file.stat().st_size)})")
    if checked is None:
        console.say(f"  its ECE was not measured: {problem}")
        return {"file": str(file), "type": kind, "check": None, "problem": problem}
    for line in _findings(checked, kind):
        console.say(f"  {line.replace('plain transformers', 'transformers, which reads GGUF,')}")
    return {"file": str(file), "type": kind, "check": asdict(checked)}


def _upload(source: ExportSource, options: ExportOptions, console: Console) -> dict[str, Any]:
    assert options.hub
    files = {file.name: file.stat().st_size for file in sorted(options.target.iterdir())}
    if options.dry_run:
        console.say(f"would upload to {options.hub} (nothing was uploaded):")
        for name, weight in files.items():
            console.say(f"  {name}  {size(weight)}")
        return {"repository": options.hub, "uploaded": False, "files": files}
    with console.status(f"uploading to {options.hub}"):
        url = uploads.upload(options.target, options.hub, source.title)
    console.say(f"uploaded to {url} (a new repository is private)")
    return {"repository": options.hub, "uploaded": True, "url": url, "files": files}
