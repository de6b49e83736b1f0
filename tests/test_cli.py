"""The command line: exit codes, streams, and what `--json` and `--quiet` promise."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import firstcli
from firstcli import cli
from support import command_line
from support.command_line import Finished, first

pytest_plugins = ["support.finished_runs"]

STAGES = ("finetune", "extract", "calibrate", "distill", "eval", "report")
COMMANDS = ("init", "plan", *STAGES, "plugins")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\x9b]")


def test_version_and_help() -> None:
    assert first("--version").out == f"firstcli {firstcli.__version__}\n"
    shown = first("--help").out
    assert all(command in shown for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    shown = first(command, "--help")
    assert shown.code == 0
    assert f"first {command}" in shown.out
    options = set(re.findall(r"--[a-z-]+", shown.out))
    if command in STAGES:
        assert {"--set", "--run-dir", "--only", "--force", "--dry-run", "--json"} <= options
        assert "--quiet" in options
        assert ("--arm" in options) == (command in ("distill", "eval"))


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("nonsense",), "first: no such command 'nonsense'; see `first --help`"),
        (("distil",), "first: no such command 'distil' (did you mean 'distill'?); see"),
        (("plan",), "first plan: missing argument 'RECIPE'; see `first plan --help`"),
        (("plan", "a.yaml", "--nonsense"), "first plan: no such option: --nonsense; see"),
        (("plan", "a.yaml", "--probes"), "no such option: --probes (did you mean --probe"),
        (("plan", "a.yaml", "b.yaml"), "first plan: got unexpected extra argument"),
        (("distill", "a.yaml", "--set"), "option '--set' requires an argument; see"),
        (("plan", "a.yaml", "--processes", "x"), "first plan: invalid value for '--processes': "),
    ],
)
def test_wrong_usage_is_one_sentence(args: tuple[str, ...], sentence: str) -> None:
    result = first(*args)
    result.mistake(sentence)
    assert result.err.count("\n") == 1 and result.out == ""


def test_without_arguments_the_help_is_printed() -> None:
    result = first()
    assert result.code == 2 and result.err == ""
    assert result.out.split() == first("--help").out.split()


@pytest.mark.parametrize("command", [(), *((command,) for command in COMMANDS)])
def test_help_shows_no_types_of_flags_but_an_example_and_the_docs(command: tuple[str, ...]) -> None:
    shown = first(*command, "--help").out
    assert "<bool>" not in shown and "[no-]" not in shown and "BOOLEAN" not in shown
    assert f"Example: first {' '.join(command)}" in shown
    assert f"Documentation: {firstcli.DOCUMENTATION}" in shown


def test_help_groups_commands_and_options() -> None:
    shown = first("--help").out
    panels = [
        shown.index(f"─ {title}") for title in ("Options", *dict.fromkeys(cli.PANELS.values()))
    ]
    assert panels == sorted(panels)
    assert shown.index("Steps, in") < shown.index("finetune") < shown.index("report")
    options = first("eval", "--help").out
    panels = [options.index(f"─ {title}") for title in ("What runs", "Output", "With --from")]
    places = [options.index(option) for option in ("--only", "--quiet", "--versus")]
    assert sorted(panels + places) == [
        panels[0],
        places[0],
        panels[1],
        places[1],
        panels[2],
        places[2],
    ]


def test_mistakes_go_to_stderr_even_when_quiet(tmp_path: Path) -> None:
    path = command_line.write_recipe(tmp_path, seed="x")
    for option in ("--json", "--quiet"):
        result = first("plan", path, option)
        result.mistake("seed")
        assert result.out == ""


@pytest.mark.parametrize("stage", STAGES)
def test_json_is_all_that_stdout_gets(finished: Finished, tmp_path: Path, stage: str) -> None:
    run = finished.copied_to(tmp_path)
    result = first(stage, finished.recipe, "--run-dir", run, "--json", "--force")
    assert result.code == 0, result.err

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    answer = json.loads(result.out, parse_constant=refuse)
    assert answer["run"] == str(run)
    units = {unit["unit"]: unit for unit in answer["units"]}
    assert {key for key in units if key.split()[0] == stage} == {
        key for key, unit in units.items() if unit["reason"] == "--force"
    }
    assert answer["result"]
    assert f"{stage}" in result.err
    assert not CONTROL.search(result.err)


def test_results_of_each_stage_as_json(finished: Finished) -> None:
    def of(stage: str) -> dict[str, object]:
        answer = first(stage, finished.recipe, "--run-dir", finished.run, "--json").json
        result: dict[str, object] = answer["result"]
        return result

    assert of("finetune").keys() == {"finetune"}
    assert of("extract").keys() == {"extract train", "extract validation"}
    assert of("calibrate").keys() == {"first"}
    assert of("distill").keys() == {"fine-tune", "distill", "first"}
    models = ("teacher", "fine-tune", "distill", "first")
    assert of("eval").keys() == {f"{on}/{of}" for on in ("known-world", "shifted") for of in models}
    assert "rows" in of("report")


def test_plain_output_has_no_control_codes_and_is_not_cut(finished: Finished) -> None:
    for command in ("plan", "eval", "report"):
        result = first(command, finished.recipe, "--run-dir", finished.run)
        assert result.code == 0
        assert not CONTROL.search(result.out + result.err)
        assert "…" not in result.out
    assert str(finished.run / "report" / "index.html") in result.out


def test_quiet_prints_nothing_but_errors(finished: Finished, tmp_path: Path) -> None:
    run = finished.copied_to(tmp_path)
    result = first("calibrate", finished.recipe, "--run-dir", run, "--force", "--quiet")
    assert (result.code, result.out, result.err) == (0, "", "")
    result = first("eval", finished.recipe, "--run-dir", run, "--quiet", "--json")
    assert result.json["result"] and result.err == ""


def test_the_default_run_folder_is_named_after_the_recipe(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert first("plan", finished.recipe, "--json").json["run"] == "runs/tiny"
    named = first("plan", finished.recipe, "--json", "--set", "name=other")
    assert named.json["run"] == "runs/other"


def test_set_reaches_the_run(finished: Finished, tmp_path: Path) -> None:
    command = ("distill", finished.recipe, "--arm", "fine-tune", "--run-dir", tmp_path / "run")
    assert first(*command, "--set", "student.training.epochs=0.2").code == 0
    manifest = json.loads((tmp_path / "run/students/fine-tune/manifest.json").read_text())
    assert manifest["facts"]["steps"] == 1
    assert "epochs: 0.2" in (tmp_path / "run" / "recipe.yaml").read_text()


def test_a_rank_that_is_not_the_first_says_nothing(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    result = first("plan", finished.recipe, "--run-dir", finished.run)
    assert (result.code, result.out, result.err) == (0, "", "")


def test_python_dash_m_is_the_same_command(tmp_path: Path) -> None:
    code = "import runpy; runpy.run_module('firstcli', run_name='__main__', alter_sys=True)"
    command_line.finish(command_line.python(code, "plan", tmp_path / "none.yaml")).mistake(
        "none.yaml"
    )
