"""A chat from the recipe to the student: trained, evaluated, asked, exported and shown."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from firstcli.metrics.records import EvalRecords
from firstcli.student.load import load_student
from support import command_line
from support.chat_templates import LLAMA_3, PHI, QWEN_2_5, ChatStyle, with_style
from support.command_line import first, pending, write_rows
from support.tickets import TrainedRun, sidecar, tickets

Checkpoint = Callable[..., Path]
SYSTEM = "Name the kind."


@pytest.fixture(scope="session")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory,
    byte_tokenizer: PreTrainedTokenizerFast,
    make_llama: Any,
) -> Checkpoint:
    """Make a checkpoint with a style's tokens, and with its template or without one."""

    def make(style: ChatStyle, template: str | None, seed: int = 0) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint")
        tokenizer = with_style(byte_tokenizer, style)
        tokenizer.chat_template = template
        make_llama(len(tokenizer), seed, max_position_embeddings=192).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def model(folder: Path, **keys: Any) -> dict[str, Any]:
    return {"family": "causal-lm", "checkpoint": str(folder), **keys}


def recipe(
    folder: Path, teacher: dict[str, Any], student: dict[str, Any], arms: Any = None, **chat: Any
) -> Path:
    """Write a recipe that classifies tickets as a chat."""
    write_rows(folder / "data" / "train.jsonl", tickets(60))
    write_rows(folder / "data" / "test.jsonl", tickets(15, 90))
    task = {"name": "classification", "options": {"path": str(folder / "data")}, **chat}
    return command_line.write_recipe(
        folder,
        train={"task": task, "validation": 0.3},
        evaluate=[{"name": "tickets"}],
        teacher={"model": teacher},
        student={"model": student, "training": command_line.TRAINING | {"epochs": 4}},
        arms=arms or {"distill": {"posthoc": {"name": "logit-temperature"}}},
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint) -> TrainedRun:
    """A student without a template of its own, which has learned from a teacher that has one.

    The template ends an answer with a token that is not EOS.
    """
    folder = tmp_path_factory.mktemp("chat")
    teacher, student = checkpoint(PHI, PHI.template), checkpoint(PHI, None, 1)
    path = recipe(folder, model(teacher), model(student), chat=True, system=SYSTEM)
    result = command_line.report(path, "--run-dir", folder / "run", "--json")
    assert result.code == 0, result.err
    return TrainedRun(path, folder / "run", folder / "run" / "students" / "distill")


def test_the_student_takes_the_template_and_stops_at_its_end(trained: TrainedRun) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(trained.folder)
    assert tokenizer.chat_template == PHI.template
    about = sidecar(trained.folder)
    found = {name: about[name] for name in ("format", "chat", "system", "end")}
    assert found == {"format": 2, "chat": True, "system": SYSTEM, "end": "<|end|>"}
    stops = GenerationConfig.from_pretrained(trained.folder).eos_token_id
    assert tokenizer.convert_tokens_to_ids("<|end|>") in stops


def test_predictions_are_those_of_the_evaluation(trained: TrainedRun, tmp_path: Path) -> None:
    student = load_student(trained.alone(tmp_path / "student"))
    records = EvalRecords.load(trained.run / "eval" / "tickets" / "distill+T.parquet")
    predictions = student.predict(tickets(15, 90))
    np.testing.assert_allclose(predictions.confidences, records.confidence, atol=1e-5)


def test_the_code_of_the_card_gives_the_same_answer(
    trained: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (trained.folder / "README.md").read_text("utf-8")
    assert "the user's message of a chat" in text
    code = re.findall(r"~~~python\n(.*?)\n~~~", text, re.DOTALL)[0]
    monkeypatch.chdir(trained.folder)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "card", "exec"), {})
    answer, confidence = out.getvalue().rsplit(maxsplit=1)
    predictions = load_student(trained.folder).predict("Write your text here.")
    assert answer.strip() == predictions.labels[0]
    assert float(confidence) == pytest.approx(predictions.confidences[0], abs=1e-5)


def test_an_export_is_checked_and_the_harness_gets_rendered_texts(
    trained: TrainedRun, tmp_path: Path
) -> None:
    out, tasks = tmp_path / "out", tmp_path / "tasks"
    result = first("export", trained.run, "--arm", "distill + T", out, "--lm-eval", tasks, "--json")
    assert result.code == 0, result.err
    (path,) = tasks.glob("*.jsonl")
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert all(row["context"].startswith(f"<|system|>\n{SYSTEM}<|end|>\n") for row in rows)
    assert all(choice == choice.strip() for choice in rows[0]["choices"])
    found, expected = load_student(out), load_student(trained.folder)
    texts = [row["text"] for row in tickets(3)]
    np.testing.assert_allclose(
        found.predict(texts).confidences, expected.predict(texts).confidences, atol=1e-5
    )


def test_a_student_without_its_template_is_refused(trained: TrainedRun, tmp_path: Path) -> None:
    folder = trained.alone(tmp_path / "student")
    (folder / "chat_template.jinja").unlink()
    first("predict", folder, "hello").mistake("no chat template", "copy the whole folder")


def test_the_samples_are_shown_with_marks(trained: TrainedRun) -> None:
    result = first("plan", trained.recipe, "--run-dir", trained.run, "--show", 2)
    text = "".join(result.out.split())  # lines may break anywhere
    assert "|<|assistant|>|\\n|" in text and "[<|end|>]|" in text
    assert re.search(r"<<[bdr]\w*>>\|", text)
    found = first("plan", trained.recipe, "--run-dir", trained.run, "--show", 2, "--json").json
    one, other = found["samples"]
    assert one["read_by"] == ["teacher", "student"] and one["id"] != other["id"]
    learned = [token["text"] for token in one["tokens"] if token["supervised"]]
    assert learned[-1] == "<|end|>" and "".join(learned[:-1]) in ("billing", "delivery", "refund")
    assert sum(token["answer"] for token in one["tokens"]) == 1


def test_what_changes_the_chat_reruns_the_training(trained: TrainedRun) -> None:
    def changed(*values: str) -> set[str]:
        options = [word for value in values for word in ("--set", f"train.task.{value}")]
        return pending(trained.recipe, "--run-dir", trained.run, *options)

    assert changed() == set()
    assert changed("chat=auto") == set()
    assert {"extract train", "distill distill"} <= changed("system=Other words.")
    assert {"extract train", "distill distill"} <= changed("system=null", "chat=false")


def test_an_evaluation_may_ask_in_a_different_way(trained: TrainedRun) -> None:
    task = f"{{name: classification, options: {{path: {trained.recipe.parent / 'data'}}}}}"
    args = ("--run-dir", trained.run, "--set", f"evaluate.0.task={task}")
    units = pending(trained.recipe, *args)
    assert "eval tickets/distill" in units and "distill distill" not in units
    warnings = first("plan", trained.recipe, *args).err + first("plan", trained.recipe, *args).out
    assert "asked without the chat template with which they are trained" in warnings


def test_auto_without_a_template_changes_nothing(tmp_path: Path, pico_folder: Path) -> None:
    run = ("--run-dir", tmp_path / "run")
    path = recipe(tmp_path, model(pico_folder), model(pico_folder))
    assert command_line.report(path, *run, "--quiet").code == 0
    assert pending(path, *run, "--set", "train.task.chat=auto") == set()


def test_a_chat_without_a_template_is_refused(tmp_path: Path, pico_folder: Path) -> None:
    path = recipe(tmp_path, model(pico_folder), model(pico_folder), chat=True)
    result = first("plan", path, "--run-dir", tmp_path / "run")
    result.mistake("chat: no model of this recipe has a chat template", "`chat_template: FILE`")


def test_a_system_message_needs_a_chat(tmp_path: Path, pico_folder: Path) -> None:
    path = recipe(tmp_path, model(pico_folder), model(pico_folder), system="Be brief.")
    result = first("plan", path, "--run-dir", tmp_path / "run")
    result.mistake("train.task.system: has no effect without a chat")


def test_a_missing_template_is_named(tmp_path: Path, pico_folder: Path) -> None:
    path = recipe(tmp_path, model(pico_folder, chat_template="no.jinja"), model(pico_folder))
    result = first("plan", path, "--run-dir", tmp_path / "run")
    result.mistake("teacher.model.chat_template: there is no file", "no.jinja")


def test_a_template_of_ones_own_is_read_and_saved(tmp_path: Path, pico_folder: Path) -> None:
    template = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\n' }}{% endfor %}"
    end = "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    own = tmp_path / "own.jinja"
    own.write_text(template + end)
    run = ("--run-dir", tmp_path / "run")
    path = recipe(tmp_path, model(pico_folder), model(pico_folder, chat_template="own.jinja"))
    path.write_text(path.read_text().replace("own.jinja", os.path.relpath(own, path.parent)))
    args = (*run, "--set", "train.task.chat=true")
    assert command_line.report(path, *args, "--quiet").code == 0
    folder = tmp_path / "run" / "students" / "distill"
    assert AutoTokenizer.from_pretrained(folder).chat_template == template + end
    assert pending(path, *args) == set()
    own.write_text(template.replace(": ", " - ") + end.replace(":", " -"))
    assert "distill distill" in pending(path, *args)


def test_each_model_reads_its_own_template(tmp_path: Path, checkpoint: Checkpoint) -> None:
    """Prompts may differ in any way; responses have the same tokens."""
    other = QWEN_2_5.template.replace("<|im_start|>", "<|user|>").replace("<|im_end|>", "<|end|>")
    path = recipe(
        tmp_path,
        model(checkpoint(PHI, PHI.template)),
        model(checkpoint(PHI, other, 1)),
        chat="auto",
    )
    run = ("--run-dir", tmp_path / "run")
    result = first("plan", path, *run, "--show", 1, "--json")
    assert result.code == 0, result.err
    teacher, student = result.json["samples"]
    assert (teacher["read_by"], student["read_by"]) == (["teacher"], ["student"])
    learned = [[t["id"] for t in each["tokens"] if t["supervised"]] for each in (teacher, student)]
    assert learned[0] == learned[1]
    assert len(teacher["tokens"]) != len(student["tokens"])
    assert first("distill", path, *run, "--quiet").code == 0


def test_ends_that_differ_are_exchanged(tmp_path: Path, checkpoint: Checkpoint) -> None:
    other = PHI.template.replace("<|end|>", "<|system|>")
    teacher, student = checkpoint(PHI, PHI.template), checkpoint(PHI, other, 1)
    path = recipe(tmp_path, model(teacher), model(student), chat=True)
    result = first("distill", path, "--run-dir", tmp_path / "run")
    assert result.code == 0, result.err
    warning = "end responses with different tokens, '<|end|>' and '<|system|>'"
    assert warning in result.out + result.err
    assert sidecar(tmp_path / "run" / "students" / "distill")["end"] == "<|system|>"


def without_teacher(folder: Path, task: dict[str, Any], student: Path) -> Path:
    """Write a recipe whose student learns a task's responses by heart."""
    return command_line.write_recipe(
        folder,
        train={"task": task, "validation": 0.3},
        evaluate=[{"task": command_line.WORLD}],
        teacher=None,
        student={
            "model": model(student),
            "training": command_line.TRAINING | {"epochs": 30, "batch_size": 8},
        },
        arms={"plain": {"learn": "labels"}},
    )


def test_an_instruction_student_answers_in_its_chat(tmp_path: Path, checkpoint: Checkpoint) -> None:
    rows = [{"prompt": f"Say {i % 3}.", "response": f" word{i % 3}"} for i in range(60)]
    write_rows(tmp_path / "train.jsonl", rows)
    options = {"path": str(tmp_path / "train.jsonl")}
    task = {"name": "instruction", "options": options, "chat": True}
    path = without_teacher(tmp_path, task, checkpoint(LLAMA_3, LLAMA_3.template))
    assert first("distill", path, "--run-dir", tmp_path / "run", "--quiet").code == 0
    student = load_student(tmp_path / "run" / "students" / "plain")
    (found,) = student.generate(["Say 1."], max_new_tokens=30)
    assert found.finished and found.text == "word1"


def test_a_student_of_conversations_is_asked_in_its_template(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    """Also without `chat`, and its generation stops where the template ends an answer."""
    turns = [
        [
            {"role": "user", "content": f"Say {i % 3}."},
            {"role": "assistant", "content": f"word{i % 3}"},
        ]
        for i in range(60)
    ]
    write_rows(tmp_path / "train.jsonl", [{"messages": each} for each in turns])
    task = {"name": "instruction", "options": {"path": str(tmp_path / "train.jsonl")}}
    path = without_teacher(tmp_path, task, checkpoint(PHI, PHI.template))
    run = ("--run-dir", tmp_path / "run")
    shown = first("plan", path, *run, "--show", 1, "--json").json["samples"][0]["tokens"]
    assert "<|end|>" in [token["text"] for token in shown if token["supervised"]]
    assert first("distill", path, *run, "--quiet").code == 0
    folder = tmp_path / "run" / "students" / "plain"
    assert sidecar(folder)["chat"] is True and sidecar(folder)["end"] == "<|end|>"
    (found,) = load_student(folder).generate(["Say 1."], max_new_tokens=30)
    assert found.finished and found.text == "word1"
