"""Third-party plugins in whole runs: refused results, edited code, richer arguments, post-hoc."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from firstcli.metrics.records import EvalRecords
from firstcli.workspace.artifacts import fingerprint
from support import command_line
from support.command_line import Finished, first

if TYPE_CHECKING:
    from support.installed_plugins import Install

pytest_plugins = ["support.finished_runs", "support.installed_plugins"]

FITTED = """
from firstcli.api import PluginOptions, Recalibrator, UserError

class Mine(Recalibrator[PluginOptions]):
    needs_fit = True
    weight = None

    def check(self, k, rows):
        if k < 3 or rows < 20:
            raise UserError(f"recalibrator 'mine' needs 3 tokens and 20 rows, not {k} and {rows}")

    def fit(self, topk, is_label, mass, mass_mode):
        self.weight = SHARE * float(is_label[:, 0].mean())

    def transform(self, topk):
        return TOTAL * (self.weight * topk / topk.sum(1, keepdims=True)
            + (1 - self.weight) / topk.shape[1])

    def state(self):
        return {"weight": self.weight}

    def restore(self, state):
        self.weight = state["weight"]

    def summary(self):
        return f"weight {self.weight:.2f}"
"""


def code(share: float = 1.0, total: float = 1.0) -> str:
    return FITTED.replace("SHARE", str(share)).replace("TOTAL", str(total))


def with_arm(folder: Path, arm: str = "mine", **settings: Any) -> Path:
    """Write the recipe of the finished run with one more arm, or a different one."""
    settings = settings or {"recalibrator": {"name": "mine"}}
    return command_line.write_recipe(folder, arms=command_line.recipe()["arms"] | {arm: settings})


@pytest.fixture
def run(finished: Finished, tmp_path: Path) -> tuple[str, Path]:
    """The option that selects a copy of a finished run."""
    return "--run-dir", finished.copied_to(tmp_path)


def test_wrong_rows_stop_the_fit_and_leave_nothing_behind(
    run: tuple[str, Path], install: Install, tmp_path: Path
) -> None:
    install("first-mine", code(total=0.5))
    recipe = with_arm(tmp_path)
    message = first("distill", recipe, "--arm", "mine", *run).mistake(
        "calibrate mine: recalibrator 'mine' from first-mine 1.2: `transform` returned",
        "which sum to 0.5 instead of 1; correct the plugin",
    )
    assert "Traceback" not in message
    assert not (run[1] / "students" / "mine").exists()
    install("first-mine", code())
    result = first("calibrate", recipe, *run)
    assert result.code == 0, result.err
    assert "weight 0." in result.out and "learned" in result.out
    artifact = json.loads((run[1] / "calibration" / "mine.json").read_text("utf-8"))
    assert artifact["learned"].startswith("weight 0.")


def test_edited_code_is_never_mixed_with_what_older_code_fitted(
    run: tuple[str, Path], install: Install, tmp_path: Path
) -> None:
    install("first-mine", code())
    recipe, state = with_arm(tmp_path), run[1] / "calibration" / "mine.json"
    assert first("distill", recipe, "--arm", "mine", *run).code == 0
    weight = json.loads(state.read_text("utf-8"))["state"]["weight"]
    manifest = json.loads((run[1] / "calibration" / "mine.manifest.json").read_text("utf-8"))
    inputs = manifest["reads"]
    assert inputs["plugin of arms.mine.recalibrator"] == "first-mine 1.2, format 1"
    assert len(inputs["source of the plugin of arms.mine.recalibrator"]) == 16
    assert not {"calibrate mine", "distill mine"} & command_line.pending(recipe, *run)
    install("first-mine", code(share=0.5))
    assert {"calibrate mine", "distill mine"} <= command_line.pending(recipe, *run)
    assert first("distill", recipe, "--arm", "mine", "--force", *run).code == 0
    refitted = json.loads(state.read_text("utf-8"))["state"]["weight"]
    assert refitted == pytest.approx(weight / 2)


def without_sources(run: Path) -> None:
    """Remove the digests of code from every manifest, as firstcli wrote them before."""
    for path in [*run.rglob("manifest.json"), *run.rglob("*.manifest.json")]:
        manifest = json.loads(path.read_text("utf-8"))
        reads = {k: v for k, v in manifest["reads"].items() if not k.startswith("source of")}
        path.write_text(json.dumps(manifest | {"reads": reads, "fingerprint": fingerprint(reads)}))


def test_a_run_without_recorded_code_is_current_until_the_code_changes(
    run: tuple[str, Path], install: Install, tmp_path: Path
) -> None:
    install("first-mine", code())
    recipe = with_arm(tmp_path)
    assert first("calibrate", recipe, *run).code == 0
    without_sources(run[1])
    result = first("calibrate", recipe, *run)
    assert "everything is up to date" in result.out
    assert "made before the code of plugins was recorded" in result.err
    install("first-mine", code(share=0.5))
    assert "calibrate mine" in command_line.pending(recipe, *run)


def test_a_recalibrator_checks_before_anything_runs(install: Install, tmp_path: Path) -> None:
    install("first-mine", code())
    for change in ("train.validation=0.1", "knowledge.top_k=2"):
        result = first("plan", with_arm(tmp_path), "--set", change, "--run-dir", tmp_path / "run")
        result.mistake("recalibrator 'mine' needs 3 tokens and 20 rows")
    assert first("plan", with_arm(tmp_path)).code == 0


VECTOR = {"name": "vector-scaling"}


@pytest.fixture
def vector_scaling(install: Install) -> None:
    target = "support.vector_scaling:VectorScaling"
    install("first-vector", "", name="vector-scaling", target=target)


def test_vector_scaling_recalibrates_soft_targets_and_students(
    run: tuple[Any, ...], vector_scaling: None, tmp_path: Path
) -> None:
    """It needs candidates and mass, and moves the tail: the contract is open to such methods."""
    recipe = with_arm(tmp_path, recalibrator=VECTOR, posthoc=VECTOR)
    run = (*run, "--set", "knowledge.top_k=200")  # this teacher has not learned to answer
    result = first("eval", recipe, "--arm", "mine", *run)
    assert result.code == 0, result.err
    for name in ("mine", "mine+T"):
        fitted = json.loads((run[1] / "calibration" / f"{name}.json").read_text("utf-8"))
        assert len(fitted["state"]["biases"]) == 3 and any(fitted["state"]["biases"])
        assert fitted["learned"].startswith("w ")
    for evaluation in ("known-world", "shifted"):
        folder = run[1] / "eval" / evaluation
        plain, after = (EvalRecords.load(folder / f"{n}.parquet") for n in ("mine", "mine+T"))
        weight, biases = fitted["state"]["weight"], np.array(fitted["state"]["biases"])
        odds = np.exp(weight * np.log(plain.probabilities) + biases)
        expected = odds / odds.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(after.probabilities, expected, rtol=1e-9)
        assert (after.ids, after.scope) == (plain.ids, "candidates")
    assert not {key for key in command_line.pending(recipe, *run) if "mine" in key}


@pytest.mark.parametrize("name", ["temperature-scaling", "label-smoothing", "none"])
def test_any_recalibrator_can_be_post_hoc(run: tuple[str, Path], tmp_path: Path, name: str) -> None:
    recipe = with_arm(tmp_path, "fine-tune", learn="labels", posthoc={"name": name})
    result = first("eval", recipe, "--arm", "fine-tune", *run)
    assert result.code == 0, result.err
    folder = run[1] / "eval" / "known-world"
    plain, after = (EvalRecords.load(folder / f"fine-tune{t}.parquet") for t in ("", "+T"))
    fitted = json.loads((run[1] / "calibration" / "fine-tune+T.json").read_text("utf-8"))
    shares = plain.probabilities
    if name == "temperature-scaling":
        assert fitted["criterion"] == "nll"
        expected = np.exp(shares / fitted["temperature"])
        expected /= expected.sum(axis=1, keepdims=True)
    elif name == "label-smoothing":
        top = np.arange(3) == shares.argmax(axis=1)[:, None]
        expected = np.where(top, shares - 0.1, shares + 0.05)
    else:
        expected = (shares + 1e-6) / (1 + 3e-6)
    np.testing.assert_allclose(after.probabilities, expected, rtol=1e-6)


FAMILY = """
from firstcli.api import ModelFamily, PluginOptions

class Mine(ModelFamily[PluginOptions]):
    needs_checkpoint = False
    uses_teacher_tokenizer = True

    def tokenizer(self, ref, text):
        raise AssertionError("the teacher's is used")

    def empty_model(self, ref, tokenizer):
        import torch
        with torch.device("meta"):
            return self._built(tokenizer)

    def model(self, ref, tokenizer, dtype, seed):
        import torch
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self._built(tokenizer)

    def _built(self, tokenizer):
        from transformers import LlamaConfig, LlamaForCausalLM
        return LlamaForCausalLM(LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16,
            num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=128))
"""


def test_a_student_can_use_the_teachers_tokenizer(install: Install, tmp_path: Path) -> None:
    """A teacher whose tokenizer no other family can make: of a vocabulary of its own size."""
    install("first-mine", FAMILY, kind="families")
    teacher = json.loads(json.dumps(command_line.MODEL))
    teacher["options"]["vocabulary"] = 310
    sections: dict[str, Any] = {
        "teacher": {"model": teacher, "finetune": command_line.TRAINING},
        "student": {"model": {"family": "mine"}, "training": command_line.TRAINING},
        "arms": {"distill": {"recalibrator": {"name": "none"}}},
    }
    recipe, run = command_line.write_recipe(tmp_path, **sections), tmp_path / "run"
    assert (result := first("distill", recipe, "--run-dir", run)).code == 0, result.err
    saved = [
        (run / name / "tokenizer.json").read_bytes() for name in ("teacher", "students/distill")
    ]
    assert saved[0] == saved[1]
    changed = ("--run-dir", run, "--set", "teacher.model.options.vocabulary=305")
    assert "distill distill" in command_line.pending(recipe, *changed)
    alone = {"student": sections["student"], "arms": {"a": {"learn": "labels"}}, "teacher": None}
    recipe = command_line.write_recipe(tmp_path, **alone)
    first("plan", recipe, "--run-dir", tmp_path / "other").mistake(
        "student.model: family 'mine' uses the teacher's tokenizer, but the recipe has no teacher"
    )
