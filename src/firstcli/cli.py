"""The command line: parses, delegates, and turns user errors into sentences.

Help must start fast: only typer and declarations, of stages and parameters, are imported until a
command runs.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from firstcli import DOCUMENTATION, __version__
from firstcli.commands.parameters import (
    COMPARE,
    EXPORT,
    FROM_DATA,
    INIT,
    JUDGE,
    OUTPUT,
    OUTPUTS,
    OUTPUTS_RECIPE,
    PLUGINS,
    PREDICT,
    PROBE,
    RECIPE,
    SELECT,
    VERBOSE,
    WORK,
    Parameters,
    option,
)
from firstcli.errors import UserError
from firstcli.runtime import distributed, interrupts, streams
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

START, STEPS = "Start", "Steps, in the order in which they run"
SECONDS_FOR_THE_FIRST = 5.0  # that the other processes of a launch wait before they exit
USE = "Use, judge and compare models"
PANELS = {
    **{name: START for name in ("init", "plan", "plugins")},
    **{stage.name: STEPS for stage in STAGES},
    "select": STEPS,
    **{name: USE for name in ("predict", "export", "judge", "compare")},
}
"""The panel of `first --help` that shows a command; "Commands" for the others."""
EXAMPLES = {
    "init": "first init --from tickets.csv > recipe.yaml",
    "plan": "first plan recipe.yaml --set student.training.epochs=1",
    "plugins": "first plugins classification",
    "select": "first select recipe.yaml --rounds 1",
    "predict": 'first predict runs/tickets "My card was charged twice"',
    "export": 'first export runs/tickets --arm "distill + T" my-model',
    "judge": "first judge outputs.csv --recalibrate logit-temperature",
    "compare": "first compare runs/llama1-csqa runs/llama2-csqa",
}
"""An example of each command that is no stage; a stage has its own."""


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
    from firstcli.active.planning import plan
    from firstcli.pipeline.plan import Request

    _print(plan(Request(**values)), values["json"])


def _select(values: dict[str, Any]) -> None:
    _announce(values)
    from firstcli.active.select import select
    from firstcli.pipeline.plan import Request

    rounds = values.pop("rounds")
    _print(select(Request(**values), rounds), values["json"])


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


def _predict(values: dict[str, Any]) -> None:
    from firstcli.commands import predict

    predict.predict(**values)


def _export(values: dict[str, Any]) -> None:
    from firstcli.commands import export

    _print(export.show(export.ExportOptions(**values)), values["json"])


def _judge(values: dict[str, Any]) -> None:
    from firstcli.commands import judge

    _print(judge.judge(**values), values["json"])


def add_stage(stage: Stage) -> None:
    """Add the command of a stage."""
    run: Callable[[dict[str, Any]], None] = partial(_run_stage, stage)
    parameters = RECIPE | WORK | VERBOSE | OUTPUT
    if not stage.has_arms:
        del parameters["arms"]
    for own in stage.options:
        parameters[own.name] = option(kind=type(own.default), **asdict(own))
    for each in stage.recipe_options:
        parameters[each.parameter] = option(each.name, str | None, None, each.help, each.metavar)
    if stage is EVALUATE:  # the one command that also works without a recipe
        run, parameters = _evaluate, parameters | {"recipe": OUTPUTS_RECIPE} | OUTPUTS
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
    values = _without(OUTPUTS, values, f"belongs to --from FILE; {reason}")
    if values["recipe"] is None:
        raise UserError(f"first {EVALUATE.name}: needs a RECIPE, or --from FILE to judge outputs")
    _run_stage(EVALUATE, values)


def _without(parameters: Parameters, values: dict[str, Any], reason: str) -> dict[str, Any]:
    """Return the values of all other parameters; raise UserError if one of these is given."""
    for name, (_, declared) in parameters.items():
        if values[name]:
            flag = declared.param_decls[0] if declared.param_decls else declared.metavar
            raise UserError(f"first {EVALUATE.name}: {flag} {reason}")
    return {name: value for name, value in values.items() if name not in parameters}


def _announce(values: dict[str, Any]) -> None:
    """Report progress before imports that take seconds."""
    if distributed.is_first() and not values["quiet"]:
        typer.echo(f"reading {values['recipe']} ...", err=values["json"])


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json and distributed.is_first():
        typer.echo(json.dumps(result, indent=1))


_add_command(
    "init",
    "Print a commented recipe: first init quickstart, or first init --from tickets.csv.",
    _init,
    INIT | FROM_DATA,
)
_add_command(
    "plan",
    "Show what would run, how large it is, and whether it can work.",
    _plan,
    RECIPE | PROBE | OUTPUT,
)
_add_command(
    "plugins",
    "List every family, task and recalibrator; with NAME, show one and its options.",
    _plugins,
    PLUGINS,
)
for _stage in STAGES:
    add_stage(_stage)
_add_command(
    "select",
    "Let a teacher annotate the questions of a pool that teach most, in rounds on a budget.",
    _select,
    RECIPE | SELECT | VERBOSE | OUTPUT,
)
_add_command(
    "predict",
    'Let a student answer: first predict runs/tickets "My card was charged twice".',
    _predict,
    PREDICT,
)
_add_command(
    "export",
    "Write a plain Hugging Face folder with the temperature in its weights, for any program.",
    _export,
    EXPORT | OUTPUT,
)
_add_command(
    "judge",
    "Judge the outputs of any model, without running it: all metrics, differences and the page.",
    _judge,
    JUDGE | OUTPUT,
)
_add_command(
    "compare", "Show the results of several runs in one table.", _compare, COMPARE | OUTPUT
)


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 a bug, 2 a user error, 130 interrupted."""
    streams.make_tolerant()
    interrupts.repeat_dropped()
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
    if not distributed.is_first():
        # A launcher stops all processes as soon as one exits; the first one must print before.
        time.sleep(SECONDS_FOR_THE_FIRST)
        return
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
