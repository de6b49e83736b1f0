"""From a checkpoint of each architecture to predictions and an export; encoders are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    MixtralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from firstcli.metrics.records import EvalRecords
from firstcli.student.load import load_student
from firstcli.tasks.known_world import KnownWorld, KnownWorldOptions
from support import command_line
from support.architectures import ARCHITECTURES, BASE, Architecture
from support.command_line import first

WORLD: dict[str, Any] = {
    "name": "known-world",
    "options": {"train": 24, "test": 6, "shifted": 6, "choices": 3},
}
TRAINING: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-3, "batch_size": 8}
ENCODERS: dict[str, Any] = {
    "bert": lambda size: BertLMHeadModel(BertConfig(**BASE | {"vocab_size": size})),
    "masked-bert": lambda size: BertForMaskedLM(BertConfig(**BASE | {"vocab_size": size})),
    "roberta": lambda size: RobertaForMaskedLM(RobertaConfig(**BASE | {"vocab_size": size})),
}
WITHOUT_CAUSAL_CLASS: dict[str, Any] = {
    "DistilBert": lambda size: DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=size, dim=16, n_layers=1, n_heads=2, hidden_dim=24)
    ),
    "T5": lambda size: T5ForConditionalGeneration(
        T5Config(vocab_size=size, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    ),
}


def save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def recipe(folder: Path, checkpoint: Path, **sections: Any) -> Path:
    """Write a recipe whose students start with a checkpoint; without a teacher, unless given."""
    model = {"family": "causal-lm", "checkpoint": str(checkpoint)}
    common: dict[str, Any] = {
        "train": {"task": WORLD, "validation": 0.4},
        "evaluate": [{"task": WORLD}],
        "teacher": None,
        "student": {"model": model, "training": TRAINING},
        "arms": {"plain": {"learn": "labels"}},
    }
    return command_line.write_recipe(folder, **common | sections)


def confidences(folder: Path) -> list[float]:
    """Return those of the test questions, with nothing but transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    found = []
    for sample in KnownWorld(KnownWorldOptions(**WORLD["options"])).load("test").samples:
        whole = [tokenizer(sample.prompt + text)["input_ids"] for text in sample.candidates]
        at = next(i for i, ids in enumerate(zip(*whole, strict=False)) if len({*ids}) > 1)
        tokens = [ids[at] for ids in whole]  # where the candidates differ
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([whole[0][:at]])).logits[0, -1].double()
        found.append(float(logits[tokens].softmax(-1).max()))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.name)
def test_from_checkpoint_to_export(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, architecture: Architecture
) -> None:
    """Teacher, student with a temperature, student with adapters; the export agrees with `eval`."""
    pytest.importorskip("peft")
    checkpoint = save(tmp_path / "base", architecture.build(len(byte_tokenizer)), byte_tokenizer)
    path = recipe(
        tmp_path,
        checkpoint,
        teacher={
            "model": {"family": "causal-lm", "checkpoint": str(checkpoint)},
            "finetune": TRAINING,
        },
        arms={
            "plain": {"learn": "labels", "posthoc": {"name": "logit-temperature"}},
            "adapter": {
                "recalibrator": {"name": "none"},
                "training": {"lora": {"rank": 2}, "save": "adapter"},
            },
        },
    )
    run = tmp_path / "run"
    result = first("eval", path, "--run-dir", run)
    assert result.code == 0, result.err
    capped = architecture.name == "Gemma 2"
    if capped:
        refused = first("export", run, "--arm", "plain+T", tmp_path / "refused")
        refused.mistake("its logits are not proportional", "soft-capped")
    for arm in ("plain" if capped else "plain+T", "adapter"):
        target = tmp_path / f"exported-{arm}"
        exported = first("export", run, "--arm", arm, target)
        assert exported.code == 0, exported.err
        records = EvalRecords.load(run / "eval" / "known-world" / f"{arm}.parquet")
        np.testing.assert_allclose(confidences(target), records.confidence, rtol=0, atol=1e-5)
        student = load_student(target)
        assert student.predict([{name: "x" for name in student.usage.inputs}]).probabilities.any()


# Refused before training.


def refusal(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *parts: str
) -> None:
    path = recipe(folder, save(folder / "base", model, tokenizer))
    for command in ("plan", "distill"):
        first(command, path, "--run-dir", folder / "run").mistake(*parts)
    assert not (folder / "run" / "students").exists()


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_with_a_language_modelling_head_is_refused(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    model = ENCODERS[name](len(byte_tokenizer))
    refusal(tmp_path, model, byte_tokenizer, "cannot be used, because it is not causal")


@pytest.mark.parametrize("name", WITHOUT_CAUSAL_CLASS)
def test_a_model_without_a_causal_class_is_refused(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    model = WITHOUT_CAUSAL_CLASS[name](len(byte_tokenizer))
    said = f"transformers has no causal language model of the type {name}; choose a decoder"
    refusal(tmp_path, model, byte_tokenizer, said)


def test_the_plan_warns_of_a_loss_that_is_left_out(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    [mixtral] = [each for each in ARCHITECTURES if each.kind is MixtralConfig]
    for asks in (False, True):
        folder = tmp_path / str(asks)
        model = mixtral.build(len(byte_tokenizer), output_router_logits=asks)
        path = recipe(folder, save(folder / "base", model, byte_tokenizer))
        result = first("plan", path, "--run-dir", folder / "run")
        assert result.code == 0, result.err
        assert ("the router's auxiliary loss (output_router_logits)" in result.err) == asks
