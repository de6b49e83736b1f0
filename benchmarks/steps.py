"""A distillation step against a plain Trainer with hard labels and with dense teacher logits.

    python benchmarks/steps.py [--repeats 5]

All contenders train the same model on the same samples in the same batches with the same padding
and TrainingArguments: firstcli through `trainer.train` with soft targets from a store on disk, the
others through `transformers.Trainer`. A step lasts from the end of one step to the end of the next;
the first is not counted. Memory is the increase of the resident peak of a fresh process over its
loaded models, so the weights of a live teacher do not count.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

import measure
import shapes
from firstcli.data.encoded import lengths_of
from firstcli.data.encoding import EncodedSample
from firstcli.models import inference
from firstcli.recipe.sections import Training
from firstcli.runtime.console import Advance, Console
from firstcli.training import arguments, batches, trainer
from measure import Comparison, Report
from shapes import INSTRUCTION, LARGE, QUESTION

if TYPE_CHECKING:
    from peft import PeftModel

BATCH = {"questions": 16, "instructions": 4}  # small, to limit the duration
BATCH_FOR_MEMORY = 16  # in small batches, gradients and Adam's moments dominate

HARD, STORED, LIVE = "hard labels, Trainer", "stored dense logits", "live dense teacher"
HARD_LORA = "hard labels, peft and Trainer"


class Clock(Console):
    """A console that records the end of each step instead of showing it."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.ends: list[float] = []

    @contextmanager
    def progress(self, what: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        """Record the time of every advance."""
        yield lambda _: self.ends.append(measure.now())


class Ends(TrainerCallback):
    """Records the end of each step of a plain Trainer."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(measure.now())


@dataclass(frozen=True, slots=True)
class Setting:
    """A model, a kind of text, and the size of the training."""

    model: shapes.Model
    text: shapes.Text
    batch: int
    steps: int = 3
    place: shapes.Place = shapes.CPU
    lora: int | None = None
    """The rank of adapters on all linear layers but the output layer; None trains all weights."""

    @property
    def name(self) -> str:
        adapters = f", LoRA of rank {self.lora}" if self.lora else ""
        return f"{self.model.name}{adapters}, {self.batch} {self.text.name}"

    def make(self) -> PreTrainedModel | PeftModel:
        """Create the model to train, with adapters if the setting has them."""
        model = self.model.make(self.place)
        if self.lora is None:
            return model
        from peft import LoraConfig, TaskType, get_peft_model

        config = LoraConfig(
            r=self.lora,
            lora_alpha=2 * self.lora,
            target_modules="all-linear",
            task_type=TaskType.CAUSAL_LM,
        )
        adapted: Any = get_peft_model(model, config)
        return cast("PeftModel", adapted)

    def rows(self) -> list[EncodedSample]:
        return self.text.rows(self.steps * self.batch, self.model.vocabulary)

    def arguments(self, folder: Path) -> TrainingArguments:
        settings = Training(
            batch_size=self.batch, epochs=1, learning_rate=1e-5, dtype=self.place.dtype
        )
        trainer = {"save_strategy": "no", "logging_steps": 1000}
        return arguments.arguments(folder / "run", settings, trainer, 0, self.place.device)


Prepared = Callable[[], list[float]]
"""Trains and returns the end time of each step."""


def distillation(
    setting: Setting,
    model: PreTrainedModel | PeftModel,
    folder: Path,
    batching: inference.Batching = "padded",
) -> Prepared:
    """Prepare firstcli's training."""
    rows = setting.rows()
    store = folder / "knowledge"
    store.mkdir(exist_ok=True)
    known = shapes.random_knowledge(rows, setting.model.vocabulary)
    shapes.write_store(store, rows, known, len(rows))
    soft_targets = shapes.soft_targets(store, rows)

    def work() -> list[float]:
        clock = Clock()
        args = setting.arguments(folder)
        trainer.train(model, rows, soft_targets, "topk-tail", args, clock, "benchmark", batching)
        return clock.ends

    return work


def plain(
    setting: Setting,
    model: PreTrainedModel | PeftModel,
    folder: Path,
    trainer_class: type[Trainer] = Trainer,
    stored: Sequence[np.ndarray[Any, Any]] = (),
) -> Prepared:
    """Prepare a plain Trainer on firstcli's batches."""
    rows = setting.rows()
    parts = batches.MicroBatches(lengths_of(rows), setting.batch, setting.batch, 1, 0, seed=0)
    order = [index for part in parts for index in part]

    def work() -> list[float]:
        args = setting.arguments(folder)
        args.train_sampling_strategy = "sequential"
        ends = Ends()
        trainer = trainer_class(
            model=model,
            args=args,
            train_dataset=order,
            data_collator=partial(labelled, rows, stored),
            callbacks=[ends],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return ends.ends

    return work


def labelled(
    rows: Sequence[EncodedSample], stored: Sequence[np.ndarray[Any, Any]], indices: Sequence[int]
) -> dict[str, Tensor]:
    """Collate for a plain Trainer: labels are -100 on prompt and padding."""
    chosen = [rows[i] for i in indices]
    padded = inference.pad([row.input_ids for row in chosen])
    labels = torch.full_like(padded.input_ids, -100)
    for label, row in zip(labels, chosen, strict=True):
        label[row.start : len(row.input_ids)] = torch.from_numpy(row.targets)
    batch = {
        "input_ids": padded.input_ids,
        "attention_mask": padded.attention_mask,
        "labels": labels,
    }
    if stored:
        batch["teacher"] = torch.from_numpy(np.concatenate([stored[i] for i in indices]))
    return batch


class DenseDistillation(Trainer):
    """Distil the whole vocabulary from logits (N, V) of the supervised positions."""

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        chosen = inputs.pop("labels")[:, 1:] != -100
        teacher = torch.log_softmax(self.teacher_logits(inputs, chosen), -1)
        student = torch.log_softmax(model(**inputs).logits[:, :-1][chosen], -1)
        divergence = torch.nn.functional.kl_div(student, teacher, reduction="sum", log_target=True)
        assert num_items_in_batch is not None
        return divergence / num_items_in_batch

    def teacher_logits(self, inputs: dict[str, Any], chosen: Tensor) -> Tensor:
        """Return the stored logits."""
        logits: Tensor = inputs.pop("teacher").float()
        return logits


def with_teacher(teacher: PreTrainedModel) -> type[Trainer]:
    """Return a Trainer that runs the teacher next to the student."""

    class LiveDistillation(DenseDistillation):
        def teacher_logits(self, inputs: dict[str, Any], chosen: Tensor) -> Tensor:
            with torch.no_grad():
                logits: Tensor = teacher(**inputs).logits[:, :-1][chosen]
            return logits

    return LiveDistillation


def stored_logits(setting: Setting, folder: Path) -> list[np.ndarray[Any, Any]]:
    """Write random float16 logits (N, V), one file per sample, and map them into memory."""
    draw = np.random.default_rng(3)
    longest = setting.text.response[1]
    logits = draw.standard_normal((longest, setting.model.vocabulary), np.float32).astype(
        np.float16
    )
    mapped = []
    for number, row in enumerate(setting.rows()):
        path = folder / f"logits-{number}.npy"
        np.save(path, logits[: len(row.targets)])
        mapped.append(np.load(path, mmap_mode="r"))
    return mapped


def prepare(
    contender: str, setting: Setting, model: PreTrainedModel | PeftModel, folder: Path
) -> Prepared:
    """Prepare one contender."""
    if contender == "first":
        return distillation(setting, model, folder)
    if contender in (HARD, HARD_LORA):
        return plain(setting, model, folder)
    if contender == STORED:
        stored = stored_logits(setting, folder)
        return plain(setting, model, folder, DenseDistillation, stored)
    return plain(setting, model, folder, with_teacher(setting.model.make()))


def step_seconds(work: Prepared) -> float:
    """Return the median duration of a step, without the first."""
    return float(np.median(np.diff(work())))


def peak(contender: str, setting: Setting) -> float:
    """Measure the peak memory of training in MB, beyond the loaded models."""
    measure.limit_threads()
    with tempfile.TemporaryDirectory() as name:
        work = prepare(contender, setting, setting.make(), Path(name))
        return measure.peak_of(work)


def compare(
    setting: Setting, against: dict[str, tuple[float, float]], repeats: int
) -> list[Comparison]:
    """Compare firstcli with other contenders, each with goals for time and memory."""
    names = ["first", *against]
    model = setting.make()
    with tempfile.TemporaryDirectory() as folder:
        works = {name: prepare(name, setting, model, Path(folder)) for name in names}
        times = measure.in_turns(
            {name: partial(step_seconds, work) for name, work in works.items()}, repeats
        )
    del works, model
    filled = replace(setting, batch=BATCH_FOR_MEMORY, steps=2)
    peaks = {name: measure.in_child(peak, name, filled) for name in names}
    rows = []
    for name, (time_goal, memory_goal) in against.items():
        seconds = " and ".join(f"{np.median(times[key]):.3g}" for key in ("first", name))
        megabytes = f"{peaks['first']:.0f} and {peaks[name]:.0f}"
        time_ratios = measure.ratios(times["first"], times[name])
        what = f"time of a step, {setting.name}"
        rows.append(Comparison(what, name, time_ratios, time_goal, figures=f"{seconds} s"))
        memory_ratios = measure.ratios([peaks["first"]], [peaks[name]])
        what = f"memory of a step, {filled.name}"
        rows.append(Comparison(what, name, memory_ratios, memory_goal, figures=f"{megabytes} MB"))
    return rows


def setting_of(model: shapes.Model, text: shapes.Text) -> Setting:
    return Setting(model, text, BATCH[text.name])


def report(repeats: int) -> Report:
    """Measure both models on both kinds of text, the large one also against full vocabularies."""
    questions, instructions = {HARD: (0.9, 1.0)}, {HARD: (1.02, 1.0)}
    dense = {STORED: (0.6, 0.4), LIVE: (0.6, 0.4)}
    rows: list[Comparison] = []
    for shape in shapes.MODELS:
        rows += compare(setting_of(shape, QUESTION), questions, repeats)
        against = instructions | dense if shape is LARGE else instructions
        rows += compare(setting_of(shape, INSTRUCTION), against, repeats)
    notes = []
    if find_spec("peft"):
        adapters = replace(setting_of(LARGE, INSTRUCTION), lora=16)
        rows += compare(adapters, {HARD_LORA: (1.0, 1.0)}, repeats)
    else:
        notes.append("Left out: a step with LoRA, which needs `pip install 'firstcli[peft]'`.")
    return Report(rows, notes)


if __name__ == "__main__":
    measure.main(report, __doc__)
