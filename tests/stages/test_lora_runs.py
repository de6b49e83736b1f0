"""Adapters from a recipe to the report, the prediction and the export."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from firstcli.checkpoints import adapters
from firstcli.student.load import load_student
from support import command_line, killable
from support.command_line import TRAINING, first
from support.killable import Moment

pytest.importorskip("peft")

IDS = torch.arange(24).reshape(2, 12)
LORA = TRAINING | {"learning_rate": 1e-2, "lora": {"rank": 4}}


def recipe(folder: Path, checkpoint: Path, **sections: Any) -> Path:
    """Write a recipe whose teacher and students train adapters."""
    model = {"family": "causal-lm", "checkpoint": str(checkpoint)}
    folder.mkdir(exist_ok=True)
    common: dict[str, Any] = {
        "evaluate": [{"task": command_line.WORLD}],
        "teacher": {"model": model, "finetune": LORA},
        "student": {"model": model, "training": LORA},
        "arms": {
            "both": {"recalibrator": {"name": "none"}},
            "alone": {"recalibrator": {"name": "none"}, "training": {"save": "adapter"}},
            "merged": {"recalibrator": {"name": "none"}, "training": {"save": "merged"}},
        },
    }
    return command_line.write_recipe(folder, **common | sections)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, pico_folder: Path) -> Path:
    """The run folder of such a recipe, from nothing to the report."""
    folder = tmp_path_factory.mktemp("lora")
    path = recipe(folder, pico_folder)
    result = first("report", path, "--run-dir", folder / "run")
    assert result.code == 0, result.err
    return folder / "run"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_save_decides_what_a_folder_holds(run: Path) -> None:
    adapter = {"adapter_config.json", "adapter_model.safetensors"}
    model = {"config.json", "model.safetensors"}
    students = run / "students"
    for folder in (run / "teacher", students / "both"):
        assert names(folder) >= model | {"adapter", "tokenizer.json"}
        assert not names(folder) & adapter
        assert names(folder / "adapter") >= adapter | {"tokenizer.json"}
    assert names(students / "alone") >= adapter | {"tokenizer.json"}
    assert not names(students / "alone") & {*model, "adapter"}
    assert names(students / "merged") >= model
    assert not names(students / "merged") & {*adapter, "adapter"}


def test_all_folders_hold_the_same_student(run: Path, pico_folder: Path) -> None:
    """Loaded by transformers alone, and by firstcli; the adapter changes the base model."""
    students = run / "students"
    folders = [students / name for name in ("both", "merged", "alone", "both/adapter")]
    models = [AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32) for f in folders]
    assert isinstance(models[0], LlamaForCausalLM)  # not confused by the adapter in it
    assert not any("lora" in name for name, _ in models[0].named_parameters())
    expected = models[0](IDS).logits
    scale = expected.abs().max()
    for model in models[1:]:
        assert (model(IDS).logits - expected).abs().max() < 1e-5 * scale
    base = AutoModelForCausalLM.from_pretrained(pico_folder, dtype=torch.float32)
    assert (base(IDS).logits - expected).abs().max() > 0.01


def test_only_the_targets_have_changed(run: Path, pico_folder: Path) -> None:
    before = load_file(pico_folder / "model.safetensors")
    after = load_file(run / "students" / "both" / "model.safetensors")
    same = {name for name, value in before.items() if torch.equal(after[name], value)}
    assert {name for name in before if "_proj" not in name} == same


def test_an_adapter_predicts_and_is_exported(run: Path, tmp_path: Path) -> None:
    """Also moved away from its run; its base model stays where it was."""
    moved = shutil.copytree(run / "students" / "alone", tmp_path / "moved")
    results = []
    for folder in (run / "students" / "both", moved):
        student = load_student(folder)
        results.append(student.predict([{name: "x" for name in student.usage.inputs}]))
    both, alone = (answers.probabilities for answers in results)
    assert both.max() > 0 and both == pytest.approx(alone, rel=1e-4)
    for source, target in ((run, "a"), (moved, "b")):
        arm = ("--arm", "alone") if source == run else ()
        result = first("export", source, *arm, tmp_path / target)
        assert result.code == 0, result.err
        assert "adapter_config.json" not in names(tmp_path / target)
        exported = load_file(tmp_path / target / "model.safetensors")
        merged = load_file(run / "students" / "both" / "model.safetensors")
        for name, value in merged.items():
            torch.testing.assert_close(exported[name], value, rtol=1e-5, atol=1e-6)


def test_the_code_in_an_adapters_card_agrees_with_first_predict(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also moved away from its run; vLLM is left to the card of the merged model."""
    moved = shutil.copytree(run / "students" / "alone", tmp_path / "moved")
    card = (moved / "README.md").read_text("utf-8")
    (code,) = re.findall(r"~~~python\n(.*?)\n~~~", card, re.DOTALL)
    assert "With transformers and peft" in card and "LLM(" not in card
    monkeypatch.chdir(moved)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})
    predict, export = re.findall(r"~~~sh\n(.*?)\n~~~", card, re.DOTALL)
    result = first(*shlex.split(predict)[1:])
    assert result.code == 0, result.err
    (row,) = [json.loads(line) for line in result.out.splitlines() if line.startswith("{")]
    answer, confidence = out.getvalue().split()
    assert row["prediction"] == answer
    assert row["confidence"] == pytest.approx(float(confidence), abs=1e-5)
    assert first(*shlex.split(export)[1:]).code == 0
    merged = (tmp_path / "merged" / "README.md").read_text("utf-8")
    assert "peft" not in merged.partition("## Training")[0] and "LLM(" in merged


@pytest.mark.parametrize("asked, saved", [((), "bfloat16"), (("--dtype", "float32"), "float32")])
def test_an_exported_adapter_has_the_dtype_of_its_checkpoint(
    run: Path, tmp_path: Path, asked: tuple[str, ...], saved: str
) -> None:
    base = adapters.base_of(run / "students" / "alone").folder
    assert base
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    whole.save_pretrained(tmp_path / "base")
    moved = shutil.copytree(run / "students" / "alone", tmp_path / "moved")
    config = moved / "adapter_config.json"
    values = json.loads(config.read_text()) | {"base_model_name_or_path": str(tmp_path / "base")}
    config.write_text(json.dumps(values))
    result = first("export", moved, tmp_path / "out", "--json", *asked)
    assert result.code == 0, result.err
    assert result.json["dtype"] == saved
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {str(value.dtype) for value in weights.values()} == {f"torch.{saved}"}


def test_save_dtype_holds_for_the_export_of_an_adapter(run: Path, tmp_path: Path) -> None:
    copied = command_line.copy_run(run, tmp_path / "run")
    recipe = copied / "recipe.yaml"
    content = yaml.safe_load(recipe.read_text("utf-8"))
    content["arms"]["alone"]["training"]["save_dtype"] = "bfloat16"
    recipe.write_text(yaml.safe_dump(content), "utf-8")
    result = first("export", copied, tmp_path / "out", "--arm", "alone", "--json")
    assert result.code == 0, result.err
    assert result.json["dtype"] == "bfloat16"


def test_an_adapter_is_a_checkpoint_of_a_later_recipe(run: Path, tmp_path: Path) -> None:
    """Of a teacher that is not fine-tuned, and of a student that is trained as a whole."""
    base = shutil.copytree(
        adapters.base_of(run / "teacher" / "adapter").folder or "", tmp_path / "base"
    )
    adapter = shutil.copytree(run / "teacher" / "adapter", tmp_path / "adapter")
    config = adapter / "adapter_config.json"
    values = json.loads(config.read_text()) | {"base_model_name_or_path": "../base"}
    config.write_text(json.dumps(values))
    model = {"family": "causal-lm", "checkpoint": str(adapter)}
    path = recipe(
        tmp_path / "recipe",
        adapter,
        teacher={"model": model},
        student={"model": model, "training": TRAINING},
        arms={"first": {"recalibrator": {"name": "none"}}},
    )
    out = tmp_path / "run"
    result = first("eval", path, "--run-dir", out)
    assert result.code == 0, result.err
    assert command_line.pending(path, "--run-dir", out) == {"report"}
    trained = load_file(out / "students" / "first" / "model.safetensors")
    before = load_file(base / "model.safetensors")
    assert not any(torch.equal(trained[name], value) for name, value in before.items())
    weights = base / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert "distill first" in command_line.pending(path, "--run-dir", out)
    shutil.rmtree(base)
    first("plan", path, "--run-dir", out).mistake("'../base', is not there")


def test_a_run_without_adapters_stays_up_to_date(tmp_path: Path, pico_folder: Path) -> None:
    """`save` and `lora` enter fingerprints only where they are set; the defaults are stated."""
    path = recipe(tmp_path, pico_folder)
    written = yaml.safe_load(path.read_text())
    out = ("--run-dir", tmp_path / "run")

    def inputs(**training: Any) -> Any:
        written["student"]["training"] = TRAINING | training
        written["arms"] = {"a": {"learn": "labels"}}
        written["teacher"] = None
        path.write_text(yaml.safe_dump({k: v for k, v in written.items() if v is not None}))
        from firstcli.recipe.load import load_recipe
        from firstcli.runtime.console import Console
        from firstcli.stages.distill import DISTILL
        from firstcli.workspace.run import Run

        run = Run(load_recipe(path), Path(out[1]), Console(quiet=True))
        (unit,) = DISTILL.units(run.recipe, run.folder)
        return {k: v for k, v in DISTILL.fingerprint_inputs(run, unit).items() if "training" in k}

    plain = inputs()
    assert not any("lora" in key or "save" in key for key in plain)
    default = inputs(lora={})
    assert default == inputs(lora={"rank": 16}, save="both")
    assert default != inputs(lora={}, save="adapter")
    assert default != inputs(lora={"rank": 8})


@pytest.mark.parametrize(
    "training, parts",
    [
        ({"save": "both"}, ("student.training.save", "without 'lora'")),
        ({"lora": {"rank": 0}}, ("student.training.lora.rank",)),
        ({"lora": {"targets": "q_proj"}}, ("student.training.lora.targets", "[q_proj, v_proj]")),
        ({"lora": {"targets": []}}, ("student.training.lora.targets",)),
        ({"lora": {"rang": 8}}, ("student.training.lora.rang",)),
        (
            {"lora": {"targets": ["q_prj"]}},
            ("student.training.lora.targets: ", "did you mean 'q_proj'?"),
        ),
    ],
)
def test_mistakes_are_named_with_their_key(
    tmp_path: Path, pico_folder: Path, training: Any, parts: tuple[str, ...]
) -> None:
    model = {"family": "causal-lm", "checkpoint": str(pico_folder)}
    student = {"model": model, "training": TRAINING | training}
    path = recipe(
        tmp_path, pico_folder, student=student, arms={"a": {"learn": "labels"}}, teacher=None
    )
    first("plan", path, "--run-dir", tmp_path / "run").mistake(*parts)


def test_a_wrong_target_is_named_with_the_section_that_states_it(
    tmp_path: Path, pico_folder: Path
) -> None:
    """The teacher and one arm name a layer that takes no adapter."""
    model = {"family": "causal-lm", "checkpoint": str(pico_folder)}
    wrong = {"lora": {"targets": ["lm_head"]}}
    path = recipe(
        tmp_path,
        pico_folder,
        teacher={"model": model, "finetune": TRAINING | wrong},
        student={"model": model, "training": TRAINING},
        arms={"plain": {"learn": "labels"}, "a": {"learn": "labels", "training": wrong}},
    )
    shown = first("plan", path, "--run-dir", tmp_path / "run")
    assert shown.code == 2
    for error, section in zip(shown.errors, ("teacher.finetune", "arms.a.training"), strict=True):
        assert f"{section}.lora.targets: 'lm_head' is the output layer" in error


def test_an_arm_that_saves_an_adapter_needs_one(tmp_path: Path, pico_folder: Path) -> None:
    model = {"family": "causal-lm", "checkpoint": str(pico_folder)}
    path = recipe(
        tmp_path,
        pico_folder,
        student={"model": model, "training": TRAINING},
        arms={"a": {"training": {"save": "adapter"}}},
    )
    first("plan", path, "--run-dir", tmp_path / "run").mistake(
        "arms.a.training.save", "without 'lora'"
    )


def test_a_model_without_a_checkpoint_is_saved_merged(tmp_path: Path) -> None:
    student = {"model": command_line.MODEL, "training": LORA}
    arms = {"a": {"learn": "labels"}}
    sections: dict[str, Any] = {"teacher": None, "student": student, "arms": arms}
    path = command_line.write_recipe(tmp_path, **sections)
    first("plan", path, "--run-dir", tmp_path / "run").mistake(
        "student.training.save", "no checkpoint", "set `save: merged`"
    )
    sections["student"] = student | {"training": LORA | {"save": "merged"}}
    path = command_line.write_recipe(tmp_path, **sections)
    result = first("distill", path, "--run-dir", tmp_path / "run")
    assert result.code == 0, result.err


def test_without_peft_the_extra_is_named(
    tmp_path: Path, pico_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    path = recipe(tmp_path, pico_folder, teacher=None, arms={"a": {"learn": "labels"}})
    first("plan", path, "--run-dir", tmp_path / "run").mistake(
        "student.training.lora: needs peft", "pip install 'firstcli[peft]'"
    )


def test_a_killed_training_continues(tmp_path: Path, pico_folder: Path) -> None:
    """Killed after a checkpoint; the adapter is that of an undisturbed run, byte for byte."""
    training = LORA | {"epochs": 3}
    model = {"family": "causal-lm", "checkpoint": str(pico_folder)}
    path = recipe(
        tmp_path,
        pico_folder,
        teacher=None,
        student={"model": model, "training": training | {"save": "adapter"}},
        arms={"a": {"learn": "labels"}},
    )
    whole = killable.command(("distill", path), tmp_path / "whole")
    assert whole.code == 0, whole.output
    moment = Moment(step=int(0.6 * whole.steps))  # of its steps on files
    ended = killable.command(("distill", path), tmp_path / "run", moment)
    assert ended.code == -9, ended.output
    last = killable.command(("distill", path), tmp_path / "run")
    assert last.code == 0, last.output
    assert "resuming after step" in last.output
    folders = [tmp_path / name / "students" / "a" for name in ("whole", "run")]
    for name in ("adapter_model.safetensors", "training_log.jsonl"):
        first_bytes, second_bytes = ((folder / name).read_bytes() for folder in folders)
        assert first_bytes == second_bytes
