"""`first export` as a user calls it: a plain folder that is right, or none."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from firstcli.export import check, folder, gguf, hub
from firstcli.export.fold import Fold, fold
from firstcli.export.source import ExportSource
from firstcli.metrics import ece
from firstcli.metrics.records import EvalRecords
from firstcli.student.load import load_student
from firstcli.student.usage import ValidationAnswers, read_usage
from firstcli.tasks.known_world import KnownWorld, KnownWorldOptions
from support import command_line
from support.checkpoints import edit
from support.command_line import first

pytest_plugins = ["support.run_with_temperature"]


@pytest.fixture
def moved(run: Path, tmp_path: Path) -> Path:
    """The student's folder, copied away from its run."""
    return command_line.copy_run(run / "students" / "fine-tune", tmp_path / "moved")


def export(source: Path, target: Path, *args: object) -> dict[str, Any]:
    result = first("export", source, target, "--json", *args)
    assert result.code == 0, result.err
    assert isinstance(result.json, dict)
    return result.json


def refused(source: Path, target: Path, *args: object) -> command_line.Result:
    """Return the result of a command that fails and must leave nothing behind."""
    result = first("export", source, target, *args)
    assert result.code == 2, result.out + result.err
    assert not target.exists()
    assert [path.name for path in target.parent.iterdir() if "partial" in path.name] == []
    return result


def naive_answers(target: Path) -> tuple[Any, Any]:
    """Return confidence and correctness of 24 questions, with nothing but transformers."""
    tokenizer = AutoTokenizer.from_pretrained(target)
    model = AutoModelForCausalLM.from_pretrained(target)
    options: Any = command_line.WORLD["options"]
    world = KnownWorld(KnownWorldOptions(**options))
    confidence, correct = [], []
    for sample in world.load("test").samples:
        ids = tokenizer(sample.prompt, return_tensors="pt")
        tokens = [tokenizer(sample.prompt + text)["input_ids"][-1] for text in sample.candidates]
        with torch.no_grad():
            logits = model(**ids).logits[0, -1].double()
        probabilities = logits[tokens].softmax(-1)
        confidence.append(float(probabilities.max()))
        correct.append(int(probabilities.argmax()) == sample.answer)
    return np.array(confidence), np.array(correct)


def test_plain_transformers_shows_the_confidence_and_the_ece_of_the_run(
    run: Path, tmp_path: Path
) -> None:
    result = export(run, tmp_path / "out", "--arm", "fine-tune + T")
    confidence, correct = naive_answers(tmp_path / "out")
    recorded = EvalRecords.load(run / "eval" / "known-world" / "fine-tune+T.parquet")
    np.testing.assert_allclose(confidence, recorded.confidence, atol=1e-5)
    assert ece(confidence, correct) == pytest.approx(ece(recorded.confidence, recorded.correct))
    checked = result["check"]
    assert (checked["evaluation"], checked["count"]) == ("known-world", 24)
    assert checked["largest"] == pytest.approx(
        abs(confidence - recorded.confidence).max(), abs=1e-6
    )
    assert checked["ece"] == pytest.approx(checked["recorded_ece"], abs=1e-5)
    assert result["folded"]["module"] == "model.norm" and not result["folded"]["untied"]
    state = json.loads((run / "calibration" / "fine-tune+T.json").read_text())["state"]
    assert result["folded"]["temperature"] == state["temperature"]


def test_the_temperature_changes_the_confidence(run: Path, tmp_path: Path) -> None:
    """The test above would prove nothing if the fitted temperature were 1."""
    export(run, tmp_path / "out", "--arm", "fine-tune")
    plain, _ = naive_answers(tmp_path / "out")
    recorded = EvalRecords.load(run / "eval" / "known-world" / "fine-tune+T.parquet")
    assert abs(plain - recorded.confidence).max() > 1e-3
    assert read_usage(tmp_path / "out").folded is None


def test_the_folder_describes_itself(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out", "--arm", "fine-tune+T")
    usage, before = read_usage(tmp_path / "out"), read_usage(run / "students" / "fine-tune")
    assert usage.posthoc is None and before.posthoc is not None and usage.folded is not None
    assert usage.folded.temperature == before.posthoc.temperature
    assert usage.numbers == before.numbers and usage.labels == before.labels
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert {"firstcli.json", "reliability.png"} <= names
    assert not {"manifest.json", "training_log.jsonl"} & names
    for name in names - {"model.safetensors", "reliability.png"}:
        assert str(run.parent) not in (tmp_path / "out" / name).read_text()
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\n") and "folded" in card and "## Training" in card
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "transformers"


def test_an_export_answers_as_the_student_with_its_temperature(run: Path, tmp_path: Path) -> None:
    """`first predict` divides by T once, wherever T is."""
    export(run, tmp_path / "out", "--arm", "fine-tune + T")
    texts = ["At dusk in the fog it will", "The moth of the hills is green. It will"]
    inside = load_student(tmp_path / "out").predict(texts)
    outside = load_student(run / "students" / "fine-tune").predict(texts)
    np.testing.assert_allclose(inside.confidences, outside.confidences, atol=1e-5)


def test_an_exported_folder_can_be_exported_again(run: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    export(run, once, "--arm", "fine-tune + T")
    assert export(once, twice, "--dtype", "bfloat16")["dtype"] == "bfloat16"
    assert read_usage(twice).folded == read_usage(once).folded


@pytest.mark.parametrize("temperature", [None, 2.0])
def test_an_export_takes_the_validation_answers_of_its_own_probabilities(
    run: Path, temperature: float | None
) -> None:
    """`first predict --target-accuracy` chooses the threshold from them."""
    recalibrated = ValidationAnswers(confidence=(0.6,), correct=(True,))
    raw = ValidationAnswers(confidence=(0.9,), correct=(True,))
    folder = run / "students" / "fine-tune"
    both = {"validation": recalibrated, "raw_validation": raw}
    usage = read_usage(folder).model_copy(update=both)
    exported = ExportSource(folder, usage, "fine-tune", temperature).exported_usage
    assert exported.posthoc is None and exported.raw_validation is None
    assert exported.validation == (raw if temperature is None else recalibrated)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_is_measured(run: Path, tmp_path: Path, dtype: str) -> None:
    result = first("export", run, tmp_path / "out", "--arm", "fine-tune + T", "--dtype", dtype)
    assert result.code == 0, result.err
    assert f"(the rounding of {dtype})" in result.out
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == getattr(torch, dtype)


def test_the_teacher_and_a_moved_folder(run: Path, moved: Path, tmp_path: Path) -> None:
    assert export(run, tmp_path / "teacher", "--arm", "teacher + T")["check"]["count"] == 24
    result = export(moved, tmp_path / "out")  # no questions are at hand, and no arm is needed
    assert result["model"] == "fine-tune + T"
    assert (result["check"]["evaluation"], result["check"]["count"]) == (None, 3)
    inside = export(run / "students" / "fine-tune", tmp_path / "inside")
    assert inside["check"]["evaluation"] == "known-world"
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "inside")]
    assert files[0] == files[1]


def break_a_weight(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Let the fold be wrong after its own check."""

    def wrong(model: PreTrainedModel, *args: Any) -> Fold:
        done = fold(model, *args)
        with torch.no_grad():
            model.get_submodule("model.norm").weight.mul_(factor)  # type: ignore[operator]
        return done

    monkeypatch.setattr(folder, "fold", wrong)


@pytest.mark.parametrize(("factor", "dtype"), [(1.01, "float32"), (3.0, "bfloat16")])
def test_a_wrong_folder_is_never_left_behind(
    run: Path,
    moved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    factor: float,
    dtype: str,
) -> None:
    break_a_weight(monkeypatch, factor)
    args = ("--arm", "fine-tune + T", "--dtype", dtype)
    refused(run, tmp_path / "out", *args).mistake("failed its check and was deleted", "differ")
    refused(moved, tmp_path / "out", *args).mistake("in probe texts", "log-probabilities differ")


def test_an_interrupted_export_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "check", interrupted)
    first("export", run, tmp_path / "out", "--arm", "plain")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".out.partial").mkdir()  # what a killed process leaves
    (tmp_path / ".out.partial" / "half.json").write_text("{")
    monkeypatch.undo()
    export(run, tmp_path / "out", "--arm", "plain")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "half.json").exists()


def test_records_of_a_different_precision_are_told_from_a_wrong_folder(
    run: Path, tmp_path: Path
) -> None:
    """Records that were made in half precision differ; the folder is compared with the weights."""
    other = command_line.copy_run(run, tmp_path / "run")
    path = other / "eval" / "known-world" / "fine-tune+T.parquet"
    stored = EvalRecords.load(path)

    def changed(noise: float) -> None:
        rows = stored.ragged(
            stored.log_probs + noise * (-1.0) ** np.arange(stored.log_probs.shape[1])
        )
        answers = stored.answer.tolist()
        EvalRecords.from_log_probs(stored.ids, answers, rows, scope="candidates").save(path, {})

    changed(1e-3)
    result = export(other, tmp_path / "out", "--arm", "fine-tune + T")
    assert "different precision" in result["check"]["note"]
    changed(1.0)
    refused(other, tmp_path / "no", "--arm", "fine-tune + T").mistake("first eval", path.name)


def test_mistakes_are_sentences(run: Path, moved: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(run, out).mistake("--arm", "'fine-tune + T'")
    refused(run, out, "--arm", "fine tune + T").mistake("did you mean 'fine-tune + T'")
    refused(run, out, "--arm", "plain + T").mistake("no temperature was fitted", "posthoc")
    refused(run, out, "--arm", "plain", "--dtype", "int8").mistake("float32 or bfloat16")
    refused(tmp_path, out).mistake("neither a run folder")
    refused(run, out, "--arm", "plain", "--dry-run").mistake("--hub")
    refused(run, out, "--arm", "plain", "--gguf-type", "q8_0").mistake("--gguf FILE")
    refused(run, run / "students" / "plain" / "out", "--arm", "plain").mistake("lies inside")
    full = first("export", run, moved, "--arm", "plain")
    full.mistake("exists already")
    edit(moved, vocab_size=7)
    refused(moved, out).mistake("do not match")


def test_other_recalibrators_are_refused(moved: Path, tmp_path: Path) -> None:
    path = moved / "firstcli.json"
    content = json.loads(path.read_text())
    content["posthoc"] = {"name": "isotonic", "options": {}, "state": {}}
    path.write_text(json.dumps(content))
    refused(moved, tmp_path / "out").mistake("`isotonic` is not a temperature", "first predict")
    assert export(moved, tmp_path / "out", "--arm", "fine-tune")["folded"] is None


def test_a_student_that_writes_text_needs_a_flag(moved: Path, tmp_path: Path) -> None:
    path = moved / "firstcli.json"
    content = json.loads(path.read_text()) | {"kind": "instruction", "labels": []}
    path.write_text(json.dumps(content))
    refused(moved, tmp_path / "out").mistake(
        "changes how that text is sampled", "--change-sampling"
    )
    assert export(moved, tmp_path / "out", "--change-sampling")["folded"]["temperature"] != 1


def test_a_damaged_student_is_refused(run: Path, tmp_path: Path) -> None:
    other = command_line.copy_run(run, tmp_path / "run")
    weights = other / "students" / "plain" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    refused(other, tmp_path / "out", "--arm", "plain").mistake("model.safetensors is damaged")


# The hub, with a fake in its place.


class FakeHub:
    """Notes what is uploaded."""

    calls: list[tuple[str, Any]]

    def __init__(self, token: str) -> None:
        self.calls.append(("token", token))

    def create_repo(self, repository: str, **options: Any) -> str:
        self.calls.append((repository, options))
        return f"https://huggingface.co/{repository}"

    def upload_folder(self, *, folder_path: Path, repo_id: str, commit_message: str) -> None:
        self.calls.append((repo_id, sorted(path.name for path in folder_path.iterdir())))


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    FakeHub.calls = []
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    monkeypatch.delenv(hub.TOKEN, raising=False)
    return FakeHub.calls


def test_a_dry_run_lists_the_upload(
    run: Path, tmp_path: Path, fake_hub: list[tuple[str, Any]]
) -> None:
    args = ("--arm", "plain", "--hub", "me/student", "--dry-run")
    result = export(run, tmp_path / "out", *args)
    assert result["hub"]["uploaded"] is False and fake_hub == []
    assert {"model.safetensors", "README.md"} <= set(result["hub"]["files"])


def test_an_upload_takes_its_token_from_the_environment(
    run: Path, tmp_path: Path, fake_hub: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("--arm", "plain", "--hub", "me/student")
    refused(run, tmp_path / "out", *args).mistake("HF_TOKEN is not set", "--dry-run")
    monkeypatch.setenv(hub.TOKEN, "secret")
    result = export(run, tmp_path / "out", *args)
    assert result["hub"]["url"] == "https://huggingface.co/me/student"
    token, created, uploaded = fake_hub
    assert token == ("token", "secret") and created[1]["private"] is True
    assert uploaded == ("me/student", sorted(path.name for path in (tmp_path / "out").iterdir()))
    assert "secret" not in json.dumps(result)


def test_a_failed_upload_says_that_the_folder_is_complete(
    run: Path, tmp_path: Path, fake_hub: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setenv(hub.TOKEN, "secret")
    monkeypatch.setattr(FakeHub, "upload_folder", lost)
    result = first("export", run, tmp_path / "out", "--arm", "plain", "--hub", "me/student")
    result.mistake("no route to host", "is complete", "hf upload")
    assert (tmp_path / "out" / "config.json").is_file()


# GGUF, with programs in the place of llama.cpp's.

CONVERTER = """
import sys
from pathlib import Path
folder, _, file, _, kind = sys.argv[1:]
assert (Path(folder) / "config.json").is_file()
Path(file).write_text(f"converted {kind}")
"""
FAILING = "import sys; print('Traceback', file=sys.stderr); sys.exit('unknown architecture')"
QUANTIZER = f"""#!{sys.executable}
import sys
from pathlib import Path
Path(sys.argv[2]).write_text(Path(sys.argv[1]).read_text() + f", quantised {{sys.argv[3]}}")
"""


@pytest.fixture
def llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "llama.cpp"
    (home / "build" / "bin").mkdir(parents=True)
    (home / gguf.CONVERTER).write_text(CONVERTER)
    monkeypatch.setenv(gguf.HOME, str(home))
    return home


def test_gguf_needs_the_programs_of_llama_cpp(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(gguf.HOME, raising=False)
    monkeypatch.setenv("PATH", "")
    args = ("--arm", "plain", "--gguf", tmp_path / "x.gguf")
    refused(run, tmp_path / "out", *args).mistake("convert_hf_to_gguf.py", "llama.cpp", "LLAMA_CPP")


def test_gguf_is_converted_and_quantised(run: Path, tmp_path: Path, llama_cpp: Path) -> None:
    target = tmp_path / "files" / "x.gguf"
    args = ("--arm", "plain", "--gguf", target)
    refused(run, tmp_path / "out", *args, "--gguf-type", "Q4_K_M").mistake("llama-quantize")
    result = export(run, tmp_path / "out", *args)
    assert target.read_text() == "converted f16"
    assert result["gguf"]["check"] is None and result["gguf"]["problem"]  # it is no GGUF
    quantizer = llama_cpp / "build" / "bin" / gguf.QUANTIZER
    quantizer.write_text(QUANTIZER)
    quantizer.chmod(0o755)
    again = tmp_path / "files" / "y.gguf"
    export(run, tmp_path / "second", "--arm", "plain", "--gguf", again, "--gguf-type", "Q4_K_M")
    assert again.read_text() == "converted f32, quantised Q4_K_M"
    assert sorted(path.name for path in target.parent.iterdir()) == ["x.gguf", "y.gguf"]


def test_a_failing_converter_leaves_the_folder_and_no_file(
    run: Path, tmp_path: Path, llama_cpp: Path
) -> None:
    (llama_cpp / gguf.CONVERTER).write_text(FAILING)
    args = ("--arm", "plain", "--gguf", tmp_path / "x.gguf")
    first("export", run, tmp_path / "out", *args).mistake("unknown architecture", "is complete")
    assert (tmp_path / "out" / "config.json").is_file()
    assert not list(tmp_path.glob("*.gguf*"))


# The model card's code, as a reader would run it.


def blocks(card: Path, language: str) -> list[str]:
    return re.findall(rf"~~~{language}\n(.*?)\n~~~", card.read_text(), re.DOTALL)


def printed(code: str) -> str:
    """Run code in the current folder and return what it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})
    return out.getvalue().strip()


@pytest.mark.parametrize("exported", [False, True])
def test_the_code_in_the_card_agrees_with_first_predict(
    run: Path, tmp_path: Path, exported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = run / "students" / "fine-tune"
    if exported:
        place = tmp_path / "out"
        export(run, place, "--arm", "fine-tune + T")
    code, vllm = blocks(place / "README.md", "python")
    assert "vllm" in vllm and "transformers" in code
    monkeypatch.chdir(place)
    answer, confidence = printed(code).split()
    (command,) = blocks(place / "README.md", "sh")
    program, *words = shlex.split(command)
    assert program == "first"
    result = first(*words)
    assert result.code == 0, result.err
    (row,) = [json.loads(line) for line in result.out.splitlines() if line.startswith("{")]
    assert row["prediction"] == answer
    assert row["confidence"] == pytest.approx(float(confidence), abs=1e-5)
