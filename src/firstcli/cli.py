"""The command line: parses, delegates, and turns user errors into sentences.

Help must start fast: only typer and the stages' declarations are imported until a command runs.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from firstcli import __version__
from firstcli.errors import UserError
from firstcli.runtime import distributed
from firstcli.stages import EVALUATE, STAGES
from firstcli.stages.base import Stage

app = typer.Typer(
    name="first",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Make a small language model that is accurate and knows when it may be wrong.",
)

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipe.yaml.")
]
OptionalRecipePath = Annotated[
    Path | None, typer.Argument(metavar="RECIPE", help="A recipe; none with --from.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a recipe key; repeatable."),
]
Arms = Annotated[
    list[str] | None, typer.Option("--arm", metavar="NAME", help="Only this arm; repeatable.")
]
RunDir = Annotated[
    Path | None, typer.Option("--run-dir", metavar="DIR", help="Run folder; default runs/NAME.")
]
Only = Annotated[
    bool, typer.Option("--only", help="Run this stage alone; fail if its inputs are stale.")
]
Force = Annotated[bool, typer.Option("--force", help="Run this stage again.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Stop after the plan.")]
Json = Annotated[
    bool, typer.Option("--json", help="Result as JSON on stdout, everything else on stderr.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]

STAGE_OPTIONS: dict[str, tuple[Any, Any]] = {  # parameter -> type, default
    "recipe": (RecipePath, inspect.Parameter.empty),
    "overrides": (Overrides, None),
    "arms": (Arms, None),
    "run_dir": (RunDir, None),
    "only": (Only, False),
    "force": (Force, False),
    "dry_run": (DryRun, False),
    "as_json": (Json, False),
    "quiet": (Quiet, False),
}
JUDGE_OPTIONS: dict[str, tuple[Any, Any]] = {
    "outputs": (
        Annotated[
            Path | None,
            typer.Option(
                "--from",
                metavar="FILE",
                help="Judge these outputs: records (.parquet) or lm-eval's samples (.jsonl).",
            ),
        ],
        None,
    ),
    "versus": (
        Annotated[
            Path | None,
            typer.Option("--versus", metavar="FILE", help="With --from: compare with this file."),
        ],
        None,
    ),
    "confidence": (
        Annotated[
            str | None,
            typer.Option(metavar="KIND", help="With --from: candidates (default) or full."),
        ],
        None,
    ),
    "bins": (
        Annotated[
            int | None,
            typer.Option(min=1, metavar="N", help="With --from: bins of the ECE; default 10."),
        ],
        None,
    ),
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
        str | None, typer.Argument(metavar="STARTER", help="Name of a starter; none lists all.")
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of recipes, for editors.")
    ] = False,
) -> None:
    """Print a commented starter recipe: first init quickstart > recipe.yaml."""
    from firstcli.commands.init import text

    typer.echo(text(starter, schema=schema), nl=False)


@app.command()
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    arms: Arms = None,
    run_dir: RunDir = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Run a few batches and estimate time and memory.")
    ] = False,
    processes: Annotated[
        int, typer.Option(min=1, metavar="N", help="Estimate for N processes, as on N GPUs.")
    ] = 1,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what would run, how large it is, and whether it can work at all."""
    _announce(recipe, as_json=as_json, quiet=quiet)
    from firstcli.pipeline.plan import Request
    from firstcli.pipeline.plan import plan as make_plan

    request = Request(
        recipe,
        tuple(overrides or ()),
        tuple(arms or ()),
        run_dir,
        probe=probe,
        processes=processes,
        json=as_json,
        quiet=quiet,
    )
    _print(make_plan(request), as_json)


@app.command()
def plugins(
    check: Annotated[
        bool, typer.Option("--check", help="Import each plugin and say why a broken one is broken.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List every family, task and recalibrator with its package and version."""
    from firstcli.commands import plugins as listing

    result = listing.show(check=check, json=as_json)
    _print(result, as_json)
    if check and (broken := listing.broken(result)):
        raise UserError(*broken)


# The commands of the stages, made from the table.


def add_stage(stage: Stage) -> None:
    def command(**values: Any) -> None:
        _run_stage(stage, values)

    parameters = {
        name: option for name, option in STAGE_OPTIONS.items() if name != "arms" or stage.has_arms
    }
    for option in stage.options:
        flag = typer.Option(
            f"--{option.name}", help=option.help, metavar=option.metavar, min=option.minimum
        )
        parameters[option.name] = (Annotated[type(option.default), flag], option.default)
    _add_command(stage, command, parameters)


def add_evaluation(stage: Stage) -> None:
    """Add the command that evaluates a recipe's models, or judges a file of any outputs."""

    def command(outputs: Path | None, **values: Any) -> None:
        judge_only = {"--versus": "versus", "--confidence": "confidence", "--bins": "bins"}
        if outputs is not None:
            _judge(outputs, values)
            return
        remedy = "a recipe has these settings under `metrics`, and `first report` compares its arms"
        for flag, name in judge_only.items():
            if values.pop(name):
                raise UserError(f"first {stage.name}: {flag} belongs to --from FILE; {remedy}")
        if values["recipe"] is None:
            raise UserError(f"first {stage.name}: needs a RECIPE, or --from FILE to judge outputs")
        _run_stage(stage, values)

    recipe = {"recipe": (OptionalRecipePath, None)}
    _add_command(stage, command, STAGE_OPTIONS | recipe | JUDGE_OPTIONS)


def _add_command(
    stage: Stage, command: Callable[..., None], parameters: dict[str, tuple[Any, Any]]
) -> None:
    """Add a command whose parameters are given as data: typer reads them from the signature."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    signature = [
        inspect.Parameter(name, keyword, default=default, annotation=annotation)
        for name, (annotation, default) in parameters.items()
    ]
    command.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    command.__annotations__ = {name: annotation for name, (annotation, _) in parameters.items()}
    app.command(stage.name, help=stage.help)(command)


for _stage in STAGES:
    (add_evaluation if _stage is EVALUATE else add_stage)(_stage)


def _run_stage(stage: Stage, values: dict[str, Any]) -> None:
    _announce(values["recipe"], as_json=values["as_json"], quiet=values["quiet"])
    from firstcli.pipeline.execute import execute
    from firstcli.pipeline.plan import Request

    request = Request(
        recipe=values["recipe"],
        overrides=tuple(values["overrides"] or ()),
        arms=tuple(values.get("arms") or ()),
        run_dir=values["run_dir"],
        only=values["only"],
        force=values["force"],
        dry_run=values["dry_run"],
        json=values["as_json"],
        quiet=values["quiet"],
        stage_options={option.name: values[option.name] for option in stage.options},
    )
    _print(execute(request, stage), values["as_json"])


def _judge(outputs: Path, values: dict[str, Any]) -> None:
    from firstcli.commands import judge

    recipe_only = {"RECIPE": "recipe", "--set": "overrides", "--arm": "arms"}
    recipe_only |= {"--run-dir": "run_dir", "--only": "only", "--force": "force"}
    for flag, name in (recipe_only | {"--dry-run": "dry_run"}).items():
        if values[name]:
            raise UserError(
                f"first {EVALUATE.name}: {flag} is for evaluating a recipe, and --from judges the "
                "outputs in a file; use one of the two"
            )
    result = judge.show(
        outputs,
        values["versus"],
        values["confidence"] or "candidates",
        values["bins"] or 10,
        json=values["as_json"],
        quiet=values["quiet"],
    )
    _print(result, values["as_json"])


def _announce(recipe: Path, *, as_json: bool, quiet: bool) -> None:
    """Say at once what is being done, before imports that take seconds."""
    if distributed.is_first() and not quiet:
        typer.echo(f"reading {recipe} ...", err=as_json)


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json and distributed.is_first():
        typer.echo(json.dumps(result, indent=1))


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 a bug, 2 a user error, 130 interrupted."""
    sys.exit(_guarded(lambda: app(standalone_mode=True)))


def _guarded(run: Callable[[], None]) -> int:
    try:
        run()
    except SystemExit as stop:  # how typer ends; after Ctrl-C it prints nothing
        if stop.code == 130 and distributed.is_first():
            print("interrupted; finished work is kept, run the same command again", file=sys.stderr)
        raise
    except UserError as error:
        if distributed.is_first():
            for message in error.messages:
                print(f"error: {message}", file=sys.stderr)
        return 2
    return 0
