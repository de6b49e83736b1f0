"""The parameters of all commands, as data from which typer makes their options.

Help must start fast: nothing but typer and the standard library is imported here.
"""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import typer

from firstcli.commands import completion

Parameters = dict[str, tuple[Any, Any]]
"""Type and typer's description of each parameter of a command, by the parameter's name."""


def option(
    name: str,
    kind: Any,
    default: Any,
    help: str,
    metavar: str | None = None,
    minimum: Any = None,
    **further: Any,
) -> tuple[Any, Any]:
    """Return the type and the description of an option.

    Args:
        name: of the option, without dashes.
        kind: type of its value.
        default: value without the option.
        help: one sentence.
        metavar: name of the value in the help.
        minimum: smallest value.
        further: other arguments of `typer.Option`.
    """
    declared = typer.Option(
        *(default, f"--{name}"), help=help, metavar=metavar, min=minimum, **further
    )
    return kind, declared


def _in_panel(title: str, parameters: Parameters) -> None:
    for _, declared in parameters.values():
        declared.rich_help_panel = title


_RECIPE = typer.Argument(metavar="RECIPE", help="A recipe, such as recipe.yaml.")
RECIPE: Parameters = {
    "recipe": (Path, _RECIPE),
    "overrides": option(
        "set", list[str], [], "Override a recipe key; can be repeated.", "KEY.PATH=VALUE"
    ),
    "arms": option(
        *("arm", list[str], [], "Only this arm; can be repeated.", "NAME"),
        autocompletion=completion.arms,
    ),
    "run_dir": option("run-dir", Path | None, None, "Run folder; default runs/NAME.", "DIR"),
}
WORK: Parameters = {
    "only": option("only", bool, False, "Run this stage alone; fail if its inputs are stale."),
    "force": option(
        "force",
        bool,
        False,
        "Rerun this stage even if it is up to date; what an interrupted run has begun goes on.",
    ),
    "dry_run": option("dry-run", bool, False, "Stop after the plan."),
}
_ROUNDS_HELP = "Run this many more rounds of each arm, and stop; default: all."
SELECT: Parameters = {
    "rounds": option("rounds", int | None, None, _ROUNDS_HELP, "N", 1),
    "dry_run": option("dry-run", bool, False, "Stop after the plan."),
}
PROBE: Parameters = {
    "probe": option("probe", bool, False, "Run a few batches and estimate time and memory."),
    "show": option("show", int, 0, "Show N training samples with all their tokens.", "N", 0),
    "processes": option("processes", int, 1, "Estimate for N processes, as on N GPUs.", "N", 1),
}
_VERBOSE_HELP = "Show the whole plan, and all facts of each unit."
VERBOSE: Parameters = {
    "verbose": (bool, typer.Option(False, "--verbose", "-v", help=_VERBOSE_HELP)),
}
_JSON_HELP = "Result as JSON on stdout, everything else on stderr."
OUTPUT: Parameters = {
    "json": option("json", bool, False, _JSON_HELP),
    "quiet": option("quiet", bool, False, "Print errors only."),
}

# first eval --from FILE.

_FROM_HELP = "Judge the outputs in this file, as `first judge FILE` does, without a page."
_SCORED_HELP = "What is scored: first-token (default), or whole (default for logs)."
_GOLD_HELP = "A log's target: index-from-0, index-from-1, letter or text."
_BINS_HELP = "Bins of the ECE; default 10."
SCORES: Parameters = {
    "confidence": option("confidence", str | None, None, "candidates (default) or full.", "KIND"),
    "candidates": option("candidates", str | None, None, _SCORED_HELP, "KIND"),
    "gold": option("gold", str | None, None, _GOLD_HELP, "KIND"),
    "bins": option("bins", int | None, None, _BINS_HELP, "N", 1),
}
_NO_RECIPE = typer.Argument(None, metavar="RECIPE", help="A recipe; omit it with --from.")
OUTPUTS_RECIPE = (Path | None, _NO_RECIPE)
OUTPUTS: Parameters = {
    "outputs": option("from", Path | None, None, _FROM_HELP, "FILE"),
    "versus": option("versus", Path | None, None, "Compare with this file.", "FILE"),
    **{name: (kind, copy(declared)) for name, (kind, declared) in SCORES.items()},
}

# The other commands.

_FILES_HELP = "Outputs: .csv, .tsv, .npz, records (.parquet) or an lm-eval log (.jsonl)."
_RECALIBRATE_HELP = (
    "Fit a recalibrator on a part, such as logit-temperature or a plugin; judge it on the rest."
)
_FIT_ON_HELP = "With --recalibrate: a share of each FILE, or another file; default 0.5."
_JUDGED_HELP = "Folder of the page; default judge/NAME, with the name of the first FILE."
JUDGE: Parameters = {
    "files": (list[Path], typer.Argument(metavar="FILE", help=_FILES_HELP)),
    **SCORES,
    "recalibrate": option("recalibrate", str | None, None, _RECALIBRATE_HELP, "NAME"),
    "fit_on": option("fit-on", str | None, None, _FIT_ON_HELP, "SHARE|FILE"),
    "out": option("out", Path | None, None, _JUDGED_HELP, "DIR"),
}

_SOURCE_HELP = "A run folder, such as runs/quickstart, or a student's folder."
_MODEL_HELP = "The model: 'distill', or 'distill + T'."
_SAMPLING_HELP = "Fold a temperature although it changes how free text is sampled."
_HUB_HELP = "Also upload to this repository of the Hugging Face hub; needs HF_TOKEN."
_GGUF_HELP = "Also convert to GGUF, with llama.cpp's converter ($LLAMA_CPP or PATH)."
_GGUF_TYPE_HELP = "f32, f16 (default), bf16, q8_0, or a type of llama-quantize, such as Q4_K_M."
_LM_EVAL_HELP = "Also write tasks for lm-evaluation-harness, with the ECE as a metric."
EXPORT: Parameters = {
    "source": (Path, typer.Argument(metavar="RUN_OR_FOLDER", help=_SOURCE_HELP)),
    "target": (Path, typer.Argument(metavar="DIR", help="The folder to create.")),
    "arm": option("arm", str | None, None, _MODEL_HELP, "NAME"),
    "dtype": option("dtype", str | None, None, "float32, bfloat16 or float16.", "TYPE"),
    "change_sampling": option("change-sampling", bool, False, _SAMPLING_HELP),
    "hub": option("hub", str | None, None, _HUB_HELP, "REPO"),
    "dry_run": option("dry-run", bool, False, "With --hub: list the files, upload nothing."),
    "gguf": option("gguf", Path | None, None, _GGUF_HELP, "FILE"),
    "gguf_type": option("gguf-type", str | None, None, _GGUF_TYPE_HELP, "TYPE"),
    "lm_eval": option("lm-eval", Path | None, None, _LM_EVAL_HELP, "DIR"),
}

_STARTER = typer.Argument(
    None,
    metavar="STARTER",
    help="Name of a starter; omit it to list all.",
    autocompletion=completion.starters,
)
_DATA_HELP = "Write a recipe for this data: a CSV, TSV, JSONL, JSON or Parquet file, or a folder."
INIT: Parameters = {
    "starter": (str | None, _STARTER),
    "file": option("from", Path | None, None, _DATA_HELP, "FILE"),
    "schema": option("schema", bool, False, "Print the JSON Schema of recipes, for editors."),
}
_TEXT_HELP = "Column of the text, question or instruction; can be repeated."
_LABEL_HELP = "Column of the label, answer or response."
_TASK_HELP = "classification, multiple-choice or instruction."
_ANSWER_AS_HELP = "How answers name choices, such as index-from-0 or letter."
FROM_DATA: Parameters = {
    "text": option("text", list[str], [], _TEXT_HELP, "COLUMN"),
    "label": option("label", str | None, None, _LABEL_HELP, "COLUMN"),
    "task": option("task", str | None, None, _TASK_HELP, "TASK"),
    "answer_as": option("answer-as", str | None, None, _ANSWER_AS_HELP, "READING"),
    "teacher": option("teacher", str | None, None, "Hub id or folder of the teacher.", "MODEL"),
    "student": option("student", str | None, None, "Hub id or folder of the student.", "MODEL"),
    "out": option("out", Path | None, None, "Save the recipe here.", "RECIPE"),
}

_PAGE_HELP = "Also write index.html, table.md and table.csv into this folder."
_RUNS = typer.Argument(metavar="RUN", help="Run folders, at least two, such as runs/quickstart.")
COMPARE: Parameters = {
    "runs": (list[Path], _RUNS),
    "out": option("out", Path | None, None, _PAGE_HELP, "DIR"),
}

_STUDENT_HELP = "A student's folder, a run folder, or a recipe."
_ARM_HELP = "The student: 'distill', or 'distill + T'; default: what the report recommends."
_FILE_HELP = "Answer each row of a table: .csv, .jsonl, .parquet, ..."
_OUT_HELP = "With --file: write .csv, .jsonl or .parquet; resumes after a stop."
_FORMAT_HELP = "Standard input is text (one per line), jsonl or csv; default: by its first line."
_ABSTAIN_HELP = "Give no answer below this confidence."
_TARGET_HELP = "Give no answer below the confidence that promises this accuracy."
_NEW_HELP = "Cut generated text off after N tokens; default 256."
_BATCH_HELP = "Rows per batch; default: as many as have 8192 tokens together."
PREDICT: Parameters = {
    "source": (Path, typer.Argument(metavar="FOLDER_OR_RUN", help=_STUDENT_HELP)),
    "texts": (
        list[str] | None,
        typer.Argument(None, metavar="TEXT", help="Texts; default: standard input."),
    ),
    "arm": option("arm", str | None, None, _ARM_HELP, "NAME"),
    "run_dir": RECIPE["run_dir"],
    "raw": option("raw", bool, False, "Leave out the post-hoc recalibrator."),
    "device": option("device", str, "auto", "Where the model runs: auto, cpu, cuda, ...", "NAME"),
    "file": option("file", Path | None, None, _FILE_HELP, "FILE"),
    "out": option("out", Path | None, None, _OUT_HELP, "FILE"),
    "format": option("format", str | None, None, _FORMAT_HELP, "KIND"),
    "abstain_below": option("abstain-below", float | None, None, _ABSTAIN_HELP, "CONFIDENCE"),
    "target_accuracy": option("target-accuracy", float | None, None, _TARGET_HELP, "SHARE"),
    "top": option("top", int, 2, "Number of runners-up.", "N", 0),
    "max_new_tokens": option("max-new-tokens", int | None, None, _NEW_HELP, "N", 1),
    "batch_size": option("batch-size", int | None, None, _BATCH_HELP, "N", 1),
    "json": option("json", bool, False, "JSON lines also in a terminal."),
    "quiet": option("quiet", bool, False, "Print answers and errors only."),
}

_PLUGIN = typer.Argument(
    None,
    metavar="NAME",
    help="A plugin to describe; omit it to list all.",
    autocompletion=completion.plugins,
)
_CHECK_HELP = "Import each plugin, check the contract of other packages' plugins, report errors."
PLUGINS: Parameters = {
    "name": (str | None, _PLUGIN),
    "check": option("check", bool, False, _CHECK_HELP),
    "json": OUTPUT["json"],
}

for _title, _parameters in (
    ("What runs", WORK),
    ("Output", VERBOSE | OUTPUT),
    ("With --from FILE", OUTPUTS),
    ("With --from FILE", FROM_DATA),
):
    _in_panel(_title, _parameters)
