"""The command line: parses, delegates, and turns mistakes into sentences.

Imports typer and the standard library only, so that help starts fast.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstcli import __version__
from firstcli.errors import UserError
from firstcli.runtime import distributed

if TYPE_CHECKING:
    from firstcli.workspace.units import Stage

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
    bool, typer.Option("--only", help="Run this stage alone; fail if inputs are stale.")
]
Force = Annotated[bool, typer.Option("--force", help="Redo this stage.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Stop after the plan.")]
Json = Annotated[bool, typer.Option("--json", help="Result as JSON on stdout, all else on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"firstcli {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Make a small language model that is accurate and knows when it may be wrong."""


@app.command()
def init(
    starter: Annotated[
        str | None, typer.Argument(metavar="STARTER", help="Which recipe; none lists them all.")
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of recipes, for editors.")
    ] = False,
) -> None:
    """Print a commented starter recipe: first init quickstart > recipe.yaml."""
    from firstcli.commands import init

    typer.echo(init.text(starter, schema=schema), nl=False)


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
    from firstcli.pipeline import execute

    request = execute.Request(
        recipe,
        tuple(overrides or ()),
        tuple(arms or ()),
        run_dir,
        probe=probe,
        processes=processes,
        json=as_json,
        quiet=quiet,
    )
    _print(execute.plan(request), as_json)


def _run_stage(
    stage: Stage,
    recipe: Path,
    overrides: list[str] | None,
    arms: list[str] | None,
    run_dir: Path | None,
    *flags: bool,
    **of_the_stage: Any,
) -> None:
    from firstcli.pipeline import execute

    only, force, dry_run, as_json, quiet = flags
    request = execute.Request(
        recipe=recipe,
        overrides=tuple(overrides or ()),
        arms=tuple(arms or ()),
        run_dir=run_dir,
        only=only,
        force=force,
        dry_run=dry_run,
        json=as_json,
        quiet=quiet,
        **of_the_stage,
    )
    _print(execute.execute(request, stage), as_json)


def _add_stage(stage: Stage, help: str) -> None:
    """Add the command of a stage without arms."""

    @app.command(stage, help=help)
    def command(
        recipe: RecipePath,
        overrides: Overrides = None,
        run_dir: RunDir = None,
        only: Only = False,
        force: Force = False,
        dry_run: DryRun = False,
        as_json: Json = False,
        quiet: Quiet = False,
    ) -> None:
        _run_stage(stage, recipe, overrides, None, run_dir, only, force, dry_run, as_json, quiet)


def _add_stage_of_arms(stage: Stage, help: str) -> None:
    """Add the command of a stage that `--arm` can limit."""

    @app.command(stage, help=help)
    def command(
        recipe: RecipePath,
        overrides: Overrides = None,
        arms: Arms = None,
        run_dir: RunDir = None,
        only: Only = False,
        force: Force = False,
        dry_run: DryRun = False,
        as_json: Json = False,
        quiet: Quiet = False,
    ) -> None:
        _run_stage(stage, recipe, overrides, arms, run_dir, only, force, dry_run, as_json, quiet)


_add_stage("finetune", "Fine-tune the teacher.")


@app.command()
def extract(
    recipe: RecipePath,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    only: Only = False,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Redo just the shards that are damaged or missing.")
    ] = False,
    verify: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Let the teacher score N random samples again and compare."
        ),
    ] = 0,
) -> None:
    """Store the teacher's top-k probabilities over the training data."""
    flags = (only, force, dry_run, as_json, quiet)
    _run_stage("extract", recipe, overrides, None, run_dir, *flags, repair=repair, verify=verify)


_add_stage("calibrate", "Fit each recalibrator on the held-out validation part.")
_add_stage_of_arms("distill", "Train the students, one an arm, and whatever they need first.")


@app.command("eval")
def evaluate(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="A recipe; none with --from.")
    ] = None,
    overrides: Overrides = None,
    arms: Arms = None,
    run_dir: RunDir = None,
    only: Only = False,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    outputs: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Judge these outputs: records (.parquet) or lm-eval's samples (.jsonl).",
        ),
    ] = None,
    versus: Annotated[
        Path | None,
        typer.Option("--versus", metavar="FILE", help="With --from: compare it with this one."),
    ] = None,
    confidence: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="With --from: candidates (default) or full."),
    ] = None,
    bins: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="With --from: bins of the ECE, or 10.")
    ] = None,
) -> None:
    """Measure accuracy, ECE and Trust of teacher and students, or of anybody's outputs."""
    of_outputs = {"--versus": versus, "--confidence": confidence, "--bins": bins}
    of_recipe: dict[str, Any] = {
        "RECIPE": recipe,
        "--set": overrides,
        "--arm": arms,
        "--run-dir": run_dir,
    }
    of_recipe |= {"--only": only, "--force": force, "--dry-run": dry_run}
    if outputs is None:
        remedy = "a recipe says it under `metrics`, and `first report` compares its arms"
        _refuse(of_outputs, f"belongs to --from FILE; {remedy}")
        if recipe is None:
            raise UserError("first eval: needs a RECIPE, or --from FILE to judge outputs")
        _run_stage("eval", recipe, overrides, arms, run_dir, only, force, dry_run, as_json, quiet)
        return
    from firstcli.commands import judge as judge

    _refuse(of_recipe, "makes outputs, --from judges those of a file; give one of the two")
    kind = confidence or "candidates"
    _print(judge.show(outputs, versus, kind, bins or 10, json=as_json, quiet=quiet), as_json)


def _refuse(options: dict[str, Any], why: str) -> None:
    if given := [name for name, value in options.items() if value]:
        raise UserError(f"first eval: {given[0]} {why}")


_add_stage("report", "Do the whole job: the table, the figures and one HTML page.")


@app.command()
def plugins(
    check: Annotated[
        bool, typer.Option("--check", help="Import each and say why a broken one is broken.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List every family, task and recalibrator with its package and version."""
    from firstcli.commands import plugins

    result = plugins.show(check=check, json=as_json)
    _print(result, as_json)
    if check and (broken := plugins.broken(result)):
        raise UserError(*broken)


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json and distributed.is_first():
        typer.echo(json.dumps(result, indent=1))


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 a bug, 2 a mistake, 130 interrupted."""
    sys.exit(_guarded(lambda: app(standalone_mode=True)))


def _guarded(run: Callable[[], None]) -> int:
    try:
        run()
    except SystemExit as stop:  # how typer ends, after Ctrl-C without a word
        if stop.code == 130 and distributed.is_first():
            print("interrupted; finished work is kept, run the same command again", file=sys.stderr)
        raise
    except UserError as error:
        if distributed.is_first():
            for message in error.messages:
                print(f"error: {message}", file=sys.stderr)
        return 2
    return 0
