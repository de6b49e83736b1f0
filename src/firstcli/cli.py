"""The command line: parses, delegates, and turns user errors into sentences.

Help must start fast: only typer and the stages' declarations are imported until a command runs.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from firstcli import DOCUMENTATION, __version__
from firstcli.commands import completion
from firstcli.errors import UserError
from firstcli.runtime import distributed, streams
from firstcli.runtime.redaction import without_secrets
from firstcli.stages import STAGES
from firstcli.stages.base import Stage
from firstcli.stages.evaluate import EVALUATE

UsageMistake: type[Exception] = typer.BadParameter.__mro__[1]
"""What typer raises for wrong arguments; it exports only this one kind of it."""


def _flags_without_type(params: list[Any]) -> list[Any]:
    """Let the help show no type after flags, typer's own ones included."""
    for param in params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""
    return params


class _Command(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return _flags_without_type(super().get_params(ctx))


class _Group(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return _flags_without_type(super().get_params(ctx))


app = typer.Typer(
    name="first",
    cls=_Group,
    epilog=f"Example: first init quickstart > recipe.yaml && first report recipe.yaml\n\n"
    f"Documentation: {DOCUMENTATION}",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Parameters = dict[str, tuple[Any, Any]]
"""Type and typer's description of each parameter of a command; most are fields of `Request`."""


START, STEPS = "Start", "Steps, in the order in which they run"
USE = "Use, judge and compare models"
PANELS = {
    **{name: START for name in ("init", "plan", "plugins")},
    **{stage.name: STEPS for stage in STAGES},
    **{name: USE for name in ("predict", "export", "judge", "compare")},
}
"""The panel of `first --help` that shows a command; "Commands" for the others."""
EXAMPLES = {
    "init": "first init --from tickets.csv > recipe.yaml",
    "plan": "first plan recipe.yaml --set student.training.epochs=1",
    "plugins": "first plugins classification",
    "predict": 'first predict runs/tickets "My card was charged twice"',
    "export": 'first export runs/tickets --arm "distill + T" my-model',
    "judge": "first judge outputs.csv --recalibrate logit-temperature",
    "compare": "first compare runs/llama1-csqa runs/llama2-csqa",
}
"""An example of each command that is no stage; a stage has its own."""


def _option(
    name: str,
    kind: Any,
    default: Any,
    help: str,
    metavar: str | None = None,
    minimum: Any = None,
    **further: Any,
) -> tuple[Any, Any]:
    option = typer.Option(
        *(default, f"--{name}"), help=help, metavar=metavar, min=minimum, **further
    )
    return kind, option


RECIPE: Parameters = {
    "recipe": (Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipe.yaml.")),
    "overrides": _option(
        "set", list[str], [], "Override a recipe key; can be repeated.", "KEY.PATH=VALUE"
    ),
    "arms": _option(
        *("arm", list[str], [], "Only this arm; can be repeated.", "NAME"),
        autocompletion=completion.arms,
    ),
    "run_dir": _option("run-dir", Path | None, None, "Run folder; default runs/NAME.", "DIR"),
}
WORK: Parameters = {
    "only": _option("only", bool, False, "Run this stage alone; fail if its inputs are stale."),
    "force": _option("force", bool, False, "Rerun this stage even if it is up to date."),
    "dry_run": _option("dry-run", bool, False, "Stop after the plan."),
}
PROBE: Parameters = {
    "probe": _option("probe", bool, False, "Run a few batches and estimate time and memory."),
    "processes": _option("processes", int, 1, "Estimate for N processes, as on N GPUs.", "N", 1),
}
_VERBOSE_HELP = "Show the whole plan, and all facts of each unit."
VERBOSE: Parameters = {
    "verbose": (bool, typer.Option(False, "--verbose", "-v", help=_VERBOSE_HELP)),
}
_JSON_HELP = "Result as JSON on stdout, everything else on stderr."
OUTPUT: Parameters = {
    "json": _option("json", bool, False, _JSON_HELP),
    "quiet": _option("quiet", bool, False, "Print errors only."),
}
_FROM_HELP = "Evaluate the outputs in this file: records (.parquet) or an lm-eval log (.jsonl)."
_KIND_HELP = "With --from: candidates (default) or full."
_SCORED_HELP = "With --from: score each candidate's first-token (default), or the whole (logs)."
_GOLD_HELP = "With --from LOG: target is index-from-0, index-from-1, letter or text."
JUDGE: Parameters = {
    "outputs": _option("from", Path | None, None, _FROM_HELP, "FILE"),
    "versus": _option("versus", Path | None, None, "With --from: compare with this file.", "FILE"),
    "confidence": _option("confidence", str | None, None, _KIND_HELP, "KIND"),
    "candidates": _option("candidates", str | None, None, _SCORED_HELP, "KIND"),
    "gold": _option("gold", str | None, None, _GOLD_HELP, "KIND"),
    "bins": _option("bins", int | None, None, "With --from: bins of the ECE; default 10.", "N", 1),
}
for _panel, _parameters in (
    ("What runs", WORK),
    ("Output", VERBOSE | OUTPUT),
    ("With --from FILE", JUDGE),
):
    for _, _declared in _parameters.values():
        _declared.rich_help_panel = _panel


_RECALIBRATE_HELP = (
    "Fit a recalibrator on a part, such as logit-temperature or a plugin; judge it on the rest."
)
_FIT_ON_HELP = "With --recalibrate: a share of each FILE, or another file; default 0.5."
_JUDGED_HELP = "Folder of the page; default judge/NAME, with the name of the first FILE."
_FILES_HELP = "Outputs: .csv, .tsv, .npz, records (.parquet) or an lm-eval log (.jsonl)."
JUDGED: Parameters = {
    "files": (list[Path], typer.Argument(metavar="FILE", help=_FILES_HELP)),
    "confidence": _option("confidence", str | None, None, "candidates (default) or full.", "KIND"),
    "candidates": _option("candidates", str | None, None, "first-token or whole (logs).", "KIND"),
    "gold": _option(
        *("gold", str | None, None, "A log's target: index-from-0, index-from-1, letter or text."),
        "KIND",
    ),
    "bins": _option("bins", int | None, None, "Bins of the ECE; default 10.", "N", 1),
    "recalibrate": _option("recalibrate", str | None, None, _RECALIBRATE_HELP, "NAME"),
    "fit_on": _option("fit-on", str | None, None, _FIT_ON_HELP, "SHARE|FILE"),
    "out": _option("out", Path | None, None, _JUDGED_HELP, "DIR"),
}


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"firstcli {__version__}")
        raise typer.Exit


_EXPORT_HELP = (
    "Write a plain Hugging Face folder: transformers, vLLM or llama.cpp then show calibrated "
    "probabilities by themselves."
)
_SOURCE_HELP = "A run folder, such as runs/quickstart, or a student's folder."
_SAMPLING_HELP = "Fold a temperature although it changes how free text is sampled."
_HUB_HELP = "Also upload to this repository of the Hugging Face hub; needs HF_TOKEN."
_GGUF_HELP = "Also convert to GGUF, with llama.cpp's converter ($LLAMA_CPP or PATH)."
_GGUF_TYPE_HELP = "f32, f16 (default), bf16, q8_0, or a type of llama-quantize, such as Q4_K_M."
_LM_EVAL_HELP = "Also write tasks for lm-evaluation-harness, with the ECE as a metric."
EXPORT: Parameters = {
    "source": (Path, typer.Argument(metavar="RUN_OR_FOLDER", help=_SOURCE_HELP)),
    "target": (Path, typer.Argument(metavar="DIR", help="The folder to create.")),
    "arm": _option("arm", str | None, None, "The model: 'distill', or 'distill + T'.", "NAME"),
    "dtype": _option("dtype", str | None, None, "float32, bfloat16 or float16.", "TYPE"),
    "change_sampling": _option("change-sampling", bool, False, _SAMPLING_HELP),
    "hub": _option("hub", str | None, None, _HUB_HELP, "REPO"),
    "dry_run": _option("dry-run", bool, False, "With --hub: list the files, upload nothing."),
    "gguf": _option("gguf", Path | None, None, _GGUF_HELP, "FILE"),
    "gguf_type": _option("gguf-type", str | None, None, _GGUF_TYPE_HELP, "TYPE"),
    "lm_eval": _option("lm-eval", Path | None, None, _LM_EVAL_HELP, "DIR"),
}


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Make a small language model that is accurate and knows when it may be wrong."""


def _about(name: str, example: str = "") -> dict[str, Any]:
    """Return the panel of a command in `first --help`, and what its own help ends with."""
    example = example or EXAMPLES.get(name, "")
    epilog = f"Example: {example}\n\nDocumentation: {DOCUMENTATION}" if example else None
    return {"cls": _Command, "rich_help_panel": PANELS.get(name), "epilog": epilog}


def _add_command(
    name: str,
    help: str,
    run: Callable[[dict[str, Any]], None],
    parameters: Parameters,
    example: str = "",
) -> None:
    """Add a command whose parameters are given as data: typer reads them from the signature.

    Args:
        name: of the command.
        help: one sentence.
        run: does the work, with the values of the parameters.
        parameters: the types and descriptions of the parameters.
        example: a command line for the help; by default that of `EXAMPLES`.
    """

    def command(**values: Any) -> None:
        run(values)

    keyword = inspect.Parameter.KEYWORD_ONLY
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, keyword, default=default, annotation=kind)
            for name, (kind, default) in parameters.items()
        ]
    )
    command.__annotations__ = {name: kind for name, (kind, _) in parameters.items()}
    app.command(name, help=help, **_about(name, example))(command)


_STARTER = typer.Argument(
    None,
    metavar="STARTER",
    help="Name of a starter; omit it to list all.",
    autocompletion=completion.starters,
)
_FROM_DATA = "Write a recipe for this data: a CSV, TSV, JSONL, JSON or Parquet file, or a folder."
INIT: Parameters = {
    "starter": (str | None, _STARTER),
    "file": _option("from", Path | None, None, _FROM_DATA, "FILE"),
    "schema": _option("schema", bool, False, "Print the JSON Schema of recipes, for editors."),
}
_TEXT_HELP = "Column of the text, question or instruction; can be repeated."
_LABEL_HELP = "Column of the label, answer or response."
_TASK_HELP = "classification, multiple-choice or instruction."
_ANSWER_AS_HELP = "How answers name choices, such as index-from-0 or letter."
FROM_DATA: Parameters = {
    "text": _option("text", list[str], [], _TEXT_HELP, "COLUMN"),
    "label": _option("label", str | None, None, _LABEL_HELP, "COLUMN"),
    "task": _option("task", str | None, None, _TASK_HELP, "TASK"),
    "answer_as": _option("answer-as", str | None, None, _ANSWER_AS_HELP, "READING"),
    "teacher": _option("teacher", str | None, None, "Hub id or folder of the teacher.", "MODEL"),
    "student": _option("student", str | None, None, "Hub id or folder of the student.", "MODEL"),
    "out": _option("out", Path | None, None, "Save the recipe here.", "RECIPE"),
}
for _, _declared in FROM_DATA.values():
    _declared.rich_help_panel = "With --from FILE; what is not stated is guessed"
_INIT_HELP = "Print a commented recipe: first init quickstart, or first init --from tickets.csv."


def _init(values: dict[str, Any]) -> None:
    from firstcli.commands import init

    starter, schema = values.pop("starter"), values.pop("schema")
    if values["file"] is None:
        if given := [name.replace("_", "-") for name, value in values.items() if value]:
            raise UserError(f"first init: --{given[0]} needs --from FILE")
        typer.echo(init.text(starter, schema=schema), nl=False)
        return
    if starter or schema:
        other = "--schema" if schema else f"the starter '{starter}'"
        raise UserError(f"first init: --from writes its own recipe; leave out {other}")
    init.from_data(**values)


def _plan(values: dict[str, Any]) -> None:
    _announce(values)
    from firstcli.pipeline.plan import Request, plan

    _print(plan(Request(**values)), values["json"])


def _plugins(values: dict[str, Any]) -> None:
    from firstcli.commands import plugins

    name = values.pop("name")
    if name is not None:
        if values["check"]:
            raise UserError("first plugins: --check checks all plugins; leave out the name")
        _print(plugins.describe(name, json=values["json"]), values["json"])
        return
    result = plugins.show(**values)
    _print(result, values["json"])
    if values["check"] and (broken := plugins.broken(result)):
        raise UserError(*broken)


def _compare(values: dict[str, Any]) -> None:
    from firstcli.commands import compare

    _print(compare.show(**values), values["json"])


_COMPARE_HELP = "Show the results of several runs in one table."
_PAGE_HELP = "Also write index.html, table.md and table.csv into this folder."
_RUNS = typer.Argument(metavar="RUN RUN ...", help="Run folders, such as runs/quickstart.")
COMPARE: Parameters = {
    "runs": (list[Path], _RUNS),
    "out": _option("out", Path | None, None, _PAGE_HELP, "DIR"),
}


def _predict(values: dict[str, Any]) -> None:
    from firstcli.commands import predict

    predict.predict(**values)


STUDENT: Parameters = {
    "source": (
        Path,
        typer.Argument(metavar="FOLDER_OR_RUN", help="A student's folder, a run or a recipe."),
    ),
    "texts": (
        list[str] | None,
        typer.Argument(None, metavar="[TEXT]...", help="Texts; default: standard input."),
    ),
    "arm": _option("arm", str | None, None, "The arm, if a run has several.", "NAME"),
    "run_dir": RECIPE["run_dir"],
    "raw": _option("raw", bool, False, "Leave out the post-hoc recalibrator."),
    "device": _option("device", str, "auto", "Where the model runs: auto, cpu, cuda, ...", "NAME"),
}
_FILE_HELP = "Answer each row of a table: .csv, .jsonl, .parquet, ..."
_OUT_HELP = "With --file: write .csv, .jsonl or .parquet; resumes after a stop."
_FORMAT_HELP = "Standard input is text (one per line), jsonl or csv; default: by its first line."
_ABSTAIN_HELP = "Give no answer below this confidence."
_TARGET_HELP = "Answer only where this accuracy is promised."
_TOP_HELP = "Number of runners-up."
_NEW_HELP = "Cut generated text off after N tokens; default 256."
_BATCH_HELP = "Rows per batch; default: as many as have 8192 tokens together."
ANSWERS: Parameters = {
    "file": _option("file", Path | None, None, _FILE_HELP, "FILE"),
    "out": _option("out", Path | None, None, _OUT_HELP, "FILE"),
    "format": _option("format", str | None, None, _FORMAT_HELP, "KIND"),
    "abstain_below": _option("abstain-below", float | None, None, _ABSTAIN_HELP, "CONFIDENCE"),
    "target_accuracy": _option("target-accuracy", float | None, None, _TARGET_HELP, "SHARE"),
    "top": _option("top", int, 2, _TOP_HELP, "N", 0),
    "max_new_tokens": _option("max-new-tokens", int | None, None, _NEW_HELP, "N", 1),
    "batch_size": _option("batch-size", int | None, None, _BATCH_HELP, "N", 1),
    "json": _option("json", bool, False, "JSON lines also in a terminal."),
    "quiet": _option("quiet", bool, False, "Print answers and errors only."),
}
_PREDICT_HELP = 'Let a student answer: first predict runs/tickets "My card was charged twice".'


def _export(values: dict[str, Any]) -> None:
    from firstcli.commands import export

    _print(export.show(export.ExportOptions(**values)), values["json"])


def _judge(values: dict[str, Any]) -> None:
    from firstcli.commands import judge

    _print(judge.judge(**values), values["json"])


_JUDGE_HELP = (
    "Judge the outputs of any model, without running it: all metrics, differences and the page."
)
_PLAN_HELP = "Show what would run, how large it is, and whether it can work."
_PLUGINS_HELP = "List every family, task and recalibrator; with NAME, show one and its options."
_PLUGIN = typer.Argument(
    None,
    metavar="NAME",
    help="A plugin to describe; omit it to list all.",
    autocompletion=completion.plugins,
)
_CHECK_HELP = "Import each plugin, check the contract of other packages' plugins, report errors."
_CHECK = _option("check", bool, False, _CHECK_HELP)
_add_command("init", _INIT_HELP, _init, INIT | FROM_DATA)
_add_command("plan", _PLAN_HELP, _plan, RECIPE | PROBE | OUTPUT)
_PLUGINS: Parameters = {"name": (str | None, _PLUGIN), "check": _CHECK, "json": OUTPUT["json"]}
_add_command("plugins", _PLUGINS_HELP, _plugins, _PLUGINS)


# The commands of the stages, made from the table.


def add_stage(stage: Stage) -> None:
    run: Callable[[dict[str, Any]], None] = partial(_run_stage, stage)
    parameters = RECIPE | WORK | VERBOSE | OUTPUT
    if not stage.has_arms:
        del parameters["arms"]
    for option in stage.options:
        parameters[option.name] = _option(kind=type(option.default), **asdict(option))
    for each in stage.recipe_options:
        parameters[each.parameter] = _option(each.name, str | None, None, each.help, each.metavar)
    if stage is EVALUATE:  # the one command that also works without a recipe
        recipe = typer.Argument(None, metavar="RECIPE", help="A recipe; omit it with --from.")
        run, parameters = _evaluate, parameters | {"recipe": (Path | None, recipe)} | JUDGE
    _add_command(stage.name, stage.help, run, parameters, f"first {stage.name} {stage.example}")


def _run_stage(stage: Stage, values: dict[str, Any]) -> None:
    _announce(values)
    from firstcli.pipeline.execute import execute
    from firstcli.pipeline.plan import Request

    further = {option.name: values.pop(option.name) for option in stage.options}
    overrides = {each.key: values.pop(each.parameter) for each in stage.recipe_options}
    given = [f"{key}={value}" for key, value in overrides.items() if value is not None]
    values["overrides"] = [*values["overrides"], *given]
    _print(execute(Request(**values, stage_options=further), stage), values["json"])


def _evaluate(values: dict[str, Any]) -> None:
    """Evaluate a recipe's models, or judge the outputs in a file."""
    if values["outputs"] is not None:
        reason = "evaluating a recipe, and --from judges the outputs in a file; use one of the two"
        values = _without(RECIPE | WORK | VERBOSE, values, f"is for {reason}")
        from firstcli.commands import judge

        _print(judge.show(**values), values["json"])
        return
    if values["gold"]:
        raise UserError(f"first {EVALUATE.name}: --gold is for logs; give one with --from FILE")
    reason = "a recipe has these settings under `metrics`, and `first report` compares its arms"
    values = _without(JUDGE, values, f"belongs to --from FILE; {reason}")
    if values["recipe"] is None:
        raise UserError(f"first {EVALUATE.name}: needs a RECIPE, or --from FILE to judge outputs")
    _run_stage(EVALUATE, values)


def _without(parameters: Parameters, values: dict[str, Any], reason: str) -> dict[str, Any]:
    """Return the values of all other parameters; raise UserError if one of these is given."""
    for name, (_, option) in parameters.items():
        if values[name]:
            flag = option.param_decls[0] if option.param_decls else option.metavar
            raise UserError(f"first {EVALUATE.name}: {flag} {reason}")
    return {name: value for name, value in values.items() if name not in parameters}


for _stage in STAGES:
    add_stage(_stage)
_add_command("predict", _PREDICT_HELP, _predict, STUDENT | ANSWERS)
_add_command("export", _EXPORT_HELP, _export, EXPORT | OUTPUT)
_add_command("judge", _JUDGE_HELP, _judge, JUDGED | OUTPUT)
_add_command("compare", _COMPARE_HELP, _compare, COMPARE | OUTPUT)


def _announce(values: dict[str, Any]) -> None:
    """Report progress before imports that take seconds."""
    if distributed.is_first() and not values["quiet"]:
        typer.echo(f"reading {values['recipe']} ...", err=values["json"])


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json and distributed.is_first():
        typer.echo(json.dumps(result, indent=1))


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 a bug, 2 a user error, 130 interrupted."""
    streams.make_tolerant()
    try:
        code = app(prog_name="first", standalone_mode=False) or 0  # what a command exits with
    except typer.Abort:  # Ctrl-C at a question
        code = 130
    except UserError as error:
        _print_errors(error.messages)
        code = 2
    except UsageMistake as error:
        _print_errors(_usage_messages(error))
        code = 2
    if code == 130 and distributed.is_first():
        print("interrupted; finished work is kept, run the same command again", file=sys.stderr)
    sys.exit(code)


def _print_errors(messages: Iterable[str]) -> None:
    if distributed.is_first():
        for message in messages:
            print(f"error: {without_secrets(message)}", file=sys.stderr)


def _usage_messages(error: Any) -> list[str]:
    """Return a mistake in the arguments as a sentence in our style."""
    if type(error).__name__ == "NoArgsIsHelpError":  # the help has been printed
        return []
    command = error.ctx.command_path if error.ctx else app.info.name
    text = " ".join(error.format_message().split()).rstrip(".")
    text = re.sub(r"\. Did you mean (.*)\?$", r" (did you mean \1?)", text)
    text = re.sub(r"\(Possible options: (.*)\)$", r"(did you mean \1?)", text)
    text = text.replace("': Input should ", "': it should ")
    return [f"{command}: {text[:1].lower()}{text[1:]}; see `{command} --help`"]
