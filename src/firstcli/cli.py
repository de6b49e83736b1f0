"""The command line: parses, delegates, and turns user errors into sentences.

Help must start fast: only typer and the stages' declarations are imported until a command runs.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from firstcli import __version__
from firstcli.errors import UserError
from firstcli.runtime import distributed, streams
from firstcli.runtime.redaction import without_secrets
from firstcli.stages import STAGES
from firstcli.stages.base import Stage
from firstcli.stages.evaluate import EVALUATE

app = typer.Typer(
    name="first",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Parameters = dict[str, tuple[Any, Any]]
"""Type and typer's description of each parameter of a command; most are fields of `Request`."""


def _option(
    name: str, kind: Any, default: Any, help: str, metavar: str | None = None, minimum: Any = None
) -> tuple[Any, Any]:
    return kind, typer.Option(default, f"--{name}", help=help, metavar=metavar, min=minimum)


RECIPE: Parameters = {
    "recipe": (Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipe.yaml.")),
    "overrides": _option(
        "set", list[str], [], "Override a recipe key; can be repeated.", "KEY.PATH=VALUE"
    ),
    "arms": _option("arm", list[str], [], "Only this arm; can be repeated.", "NAME"),
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


_RECALIBRATE_HELP = (
    "Fit a recalibrator on a part, such as logit-temperature or a plugin; judge it on the rest."
)
_FIT_ON_HELP = "With --recalibrate: a share of each FILE, or another file; default 0.5."
_OUT_HELP = "Folder of the page; default judge/NAME, with the name of the first FILE."
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
    "out": _option("out", Path | None, None, _OUT_HELP, "DIR"),
}


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"firstcli {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Make a small language model that is accurate and knows when it may be wrong."""


@app.command()
def init(
    starter: Annotated[
        str | None,
        typer.Argument(metavar="STARTER", help="Name of a starter; omit it to list all."),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of recipes, for editors.")
    ] = False,
) -> None:
    """Print a commented starter recipe: first init quickstart > recipe.yaml."""
    from firstcli.commands.init import text

    typer.echo(text(starter, schema=schema), nl=False)


def _add_command(
    name: str, help: str, run: Callable[[dict[str, Any]], None], parameters: Parameters
) -> None:
    """Add a command whose parameters are given as data: typer reads them from the signature."""

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
    app.command(name, help=help)(command)


def _plan(values: dict[str, Any]) -> None:
    _announce(values)
    from firstcli.pipeline.plan import Request, plan

    _print(plan(Request(**values)), values["json"])


def _plugins(values: dict[str, Any]) -> None:
    from firstcli.commands import plugins

    result = plugins.show(**values)
    _print(result, values["json"])
    if values["check"] and (broken := plugins.broken(result)):
        raise UserError(*broken)


def _judge(values: dict[str, Any]) -> None:
    from firstcli.commands import judge

    _print(judge.judge(**values), values["json"])


_JUDGE_HELP = (
    "Judge the outputs of any model, without running it: all metrics, differences and the page."
)
_PLAN_HELP = "Show what would run, how large it is, and whether it can work."
_PLUGINS_HELP = "List every family, task and recalibrator with its package and version."
_CHECK_HELP = "Import each plugin, check the contract of other packages' plugins, report errors."
_CHECK = _option("check", bool, False, _CHECK_HELP)
_add_command("plan", _PLAN_HELP, _plan, RECIPE | PROBE | OUTPUT)
_add_command("plugins", _PLUGINS_HELP, _plugins, {"check": _CHECK, "json": OUTPUT["json"]})
_add_command("judge", _JUDGE_HELP, _judge, JUDGED | OUTPUT)


# The commands of the stages, made from the table.


def add_stage(stage: Stage) -> None:
    run: Callable[[dict[str, Any]], None] = partial(_run_stage, stage)
    parameters = RECIPE | WORK | OUTPUT
    if not stage.has_arms:
        del parameters["arms"]
    for option in stage.options:
        parameters[option.name] = _option(kind=type(option.default), **asdict(option))
    for each in stage.recipe_options:
        parameters[each.parameter] = _option(each.name, str | None, None, each.help, each.metavar)
    if stage is EVALUATE:  # the one command that also works without a recipe
        recipe = typer.Argument(None, metavar="RECIPE", help="A recipe; omit it with --from.")
        run, parameters = _evaluate, parameters | {"recipe": (Path | None, recipe)} | JUDGE
    _add_command(stage.name, stage.help, run, parameters)


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
        values = _without(RECIPE | WORK, values, f"is for {reason}")
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
        app(standalone_mode=True)
    except SystemExit as stop:  # how typer ends; after Ctrl-C it prints nothing
        if stop.code == 130 and distributed.is_first():
            print("interrupted; finished work is kept, run the same command again", file=sys.stderr)
        raise
    except UserError as error:
        if distributed.is_first():
            for message in error.messages:
                print(f"error: {without_secrets(message)}", file=sys.stderr)
        sys.exit(2)
