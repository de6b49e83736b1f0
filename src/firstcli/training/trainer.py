"""Train a model on supervised positions with `transformers.Trainer`.

The objective runs inside the model's own forward (`objective_forward`). The loss is the mean over
the supervised positions of the global batch, regardless of how it is split into micro-batches and
processes.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, default_convert
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from firstcli.checkpoints import placement
from firstcli.data.encoded import counts_of, lengths_of
from firstcli.data.encoding import EncodedSample
from firstcli.errors import UserError, shortened
from firstcli.models import inference
from firstcli.plugins.objectives import CheckedObjective
from firstcli.runtime import distributed
from firstcli.runtime.console import Advance, Console
from firstcli.runtime.files import write_text
from firstcli.training import averaging, checkpoints, lora
from firstcli.training.batches import MicroBatches, SoftTargetSource, TrainingBatches, padding_share
from firstcli.training.copies import CopyChoice
from firstcli.training.mixture import DomainDraws, MixturePlan, draws_of
from firstcli.training.objective_forward import Objective, install_objective

if TYPE_CHECKING:
    from peft import PeftModel

UNLOGGED = "unlogged-{rank}.json"
"""In a checkpoint: what a process has summed since the last log, which the next log reports."""


class PositionTrainer(Trainer):
    """A Trainer whose unit is the supervised position, not the micro-batch."""

    train_dataset: TrainingBatches
    average: averaging.WeightAverage | None = None
    """The average of the weights that checkpoints hold, in the first process."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # the loss is scaled here, not by the Trainer
        self.loss_is_scaled_for_ga = True
        micro, processes = self.args.per_device_train_batch_size, self.args.world_size
        self.micro_batches = MicroBatches(
            lengths=lengths_of(self.train_dataset.samples),
            batch_size=micro * self.args.gradient_accumulation_steps * processes,
            micro_batch_size=micro,
            processes=processes,
            rank=self.args.process_index,
            seed=self.args.seed,
            choice=self.train_dataset.choice,
        )
        self._sums: dict[str, Tensor] = {}  # the outputs since the last log, by name
        self._tokens = torch.zeros((), device=self.args.device)  # of this process, since then
        self._logged_at = time.perf_counter()
        self._for_trackers: dict[str, float] = {}

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Load this process's micro-batches, without Accelerate's `prepare`.

        That would shard them again, and fill an incomplete last batch with samples from the
        beginning, which would then count twice.
        """
        loader: DataLoader[Any] = DataLoader(
            self.train_dataset,
            batch_sampler=self.micro_batches,
            collate_fn=default_convert,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        vars(loader)["set_epoch"] = self.micro_batches.set_epoch  # the Trainer calls it
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """Collect the micro-batches of one step, and sum up what divides the sum of their losses.

        It is the number of positions over all processes, or the sum of their weights.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        weighted = [float(batch["weights"].sum()) for batch in batches if "weights" in batch]
        count = sum(weighted) if weighted else sum(len(batch["targets"]) for batch in batches)
        total: Tensor = self.accelerator.gather(torch.tensor(count, device=device)).sum()
        return batches, total

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **kwargs: Any) -> Any:
        indices = inputs.pop("samples")
        if len(inputs["targets"]):  # otherwise the sample only keeps this process busy
            mask = inputs.get("attention_mask")  # packed batches have none, and no padding
            self._tokens += inputs["input_ids"].numel() if mask is None else mask.sum()
        output = model(**inputs)
        # DDP averages gradients over processes, so the loss is multiplied by their number.
        loss = output["loss"] * self.accelerator.num_processes / kwargs["num_items_in_batch"]
        if not torch.isfinite(loss):
            ids = [self.train_dataset.samples[int(i)].id for i in indices]
            raise UserError(
                f"the loss became {loss.item()} at step {self.state.global_step + 1} of "
                f"{self.state.max_steps}, in the batch of samples {shortened(ids, 3)}; the last "
                "good checkpoint is kept, lower the learning rate or check these samples"
            )
        for name in output.keys() - {"loss"}:  # on the device, to avoid a sync
            self._sums[name] = self._sums.get(name, 0) + output[name].detach()
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean teacher mass P and student mass Q since the last log, over all processes.

        With `hard-gate`, also add the share of positions that learn from their label.

        Trackers also get the student's mean entropy and the tokens per second, padding excluded.
        The log's file does not, so that it is the same whether or not a run was interrupted.
        """
        is_gated = "from_label" in self._sums
        names = ("positions", "P", "Q", "entropy", "from_label")
        sums = [float(self._sums.get(name, 0)) for name in names]
        sums.append(float(self._tokens))
        totals: Tensor = self.accelerator.reduce(torch.tensor(sums, device=self.args.device))
        count, teacher, student, entropy, from_label, tokens = totals.tolist()
        if count and "loss" in logs:
            if teacher:
                logs = {**logs, "P": teacher / count, "Q": student / count}
            if is_gated:
                logs = {**logs, "from_label": from_label / count}
            seconds = time.perf_counter() - self._logged_at
            self._for_trackers = {"entropy": entropy / count, "tokens_per_second": tokens / seconds}
        self._sums = {}
        self._tokens.zero_()
        self._logged_at = time.perf_counter()
        draws, epoch = self.train_dataset.choice, self.state.epoch
        if not isinstance(draws, DomainDraws):
            super().log(logs, *args, **kwargs)
            return
        weights = {f"weight of {name}": weight for name, weight in draws.current.items()}
        # The Trainer counts periods.
        self.state.epoch = self.state.global_step / draws.plan.steps_per_pass(draws.batch_size)
        super().log({**logs, **weights}, *args, **kwargs)
        self.state.epoch = epoch

    def values_for_trackers(self) -> dict[str, float]:
        """Return what trackers get of the current log beyond its file, once."""
        values, self._for_trackers = self._for_trackers, {}
        return values

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.require_finite_weights(model)
        super()._save_checkpoint(model, trial)
        last = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        self._save_unlogged(last)
        if self.average is not None:
            self.average.save(last)
        if isinstance(self.train_dataset.choice, DomainDraws) and distributed.is_first():
            self.train_dataset.choice.save(last)
        distributed.wait()  # each process writes its part of a checkpoint
        if self.args.should_save:
            os.sync()
            # On disk before earlier checkpoints are deleted.
            write_text(last / checkpoints.COMPLETE_MARK, "")
            for folder in last.parent.glob("checkpoint-*"):
                if folder != last:
                    shutil.rmtree(folder)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Save weights under the names that they have in memory, by which the Trainer loads them.

        By default, transformers gives them the names and shapes of the published checkpoint, such
        as one matrix per expert, and a Trainer that resumes skips what it does not know.
        """
        if not isinstance(self.model, PreTrainedModel):  # adapters keep their names
            super()._save(output_dir, state_dict)
            return
        model: Any = self.model
        model.save_pretrained = partial(model.save_pretrained, save_original_format=False)
        try:
            super()._save(output_dir, state_dict)
        finally:
            del model.save_pretrained

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse a checkpoint that has not set all weights; the Trainer would only warn."""
        model: Any = self.model
        parameters = dict(model.named_parameters(remove_duplicate=False))
        missing = set(load_result.missing_keys)
        loaded = {id(value) for name, value in parameters.items() if name not in missing}
        lost = [n for n in sorted(missing & parameters.keys()) if id(parameters[n]) not in loaded]
        if lost or load_result.unexpected_keys:
            names = shortened(lost or sorted(load_result.unexpected_keys), 2)
            raise UserError(
                f"{self.args.output_dir}: its checkpoint does not match the model's weights, such "
                f"as {names}; an earlier version of firstcli may have written it; delete the "
                "folder to train anew"
            )

    def _save_unlogged(self, checkpoint: Path) -> None:
        unlogged = {
            "loss": self._tr_loss.item(),
            "last_logged": self._globalstep_last_logged,
            "sums": {name: value.item() for name, value in self._sums.items()},
        }
        checkpoint.mkdir(exist_ok=True)
        path = checkpoint / UNLOGGED.format(rank=distributed.rank())
        path.write_text(json.dumps(unlogged), "utf-8")

    def restore_unlogged(self, checkpoint: Path) -> None:
        """Continue the sums of the interrupted run, so that the next log equals its next log."""
        path = checkpoint / UNLOGGED.format(rank=distributed.rank())
        if path.exists():  # checkpoints of earlier versions have none
            unlogged = json.loads(path.read_text("utf-8"))
            self._tr_loss.fill_(unlogged["loss"])
            self._globalstep_last_logged = unlogged["last_logged"]
            sums = unlogged["sums"].items()
            self._sums = {name: torch.tensor(v, device=self.args.device) for name, v in sums}

    def require_finite_weights(self, model: torch.nn.Module) -> None:
        """Refuse weights that an infinite gradient of a finite loss has corrupted."""
        trained = ((name, value) for name, value in model.named_parameters() if value.requires_grad)
        local = [name for name, value in trained if not _is_finite(value)]
        corrupted = [name for names in distributed.gathered(local) for name in names]
        if corrupted:
            raise UserError(
                f"weights such as {shortened(corrupted, 2)} are no longer finite after step "
                f"{self.state.global_step} of {self.state.max_steps}; the last good checkpoint is "
                "kept, lower the learning rate"
            )

    def gathered_weights(self) -> dict[str, Tensor] | None:
        """Return whole weights if processes hold shards of them, or None if the model is whole."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return None
        weights: dict[str, Tensor] = self.accelerator.get_state_dict(self.model_wrapped)
        return weights


def _is_finite(value: Tensor) -> bool:
    """Check a weight, or this process's shard of it."""
    local = value.to_local() if isinstance(value, DTensor) else value
    return bool(torch.isfinite(local).all())


@dataclass
class _Progress(TrainerCallback):
    advance: Advance
    done: int

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.advance(state.global_step - self.done)
        self.done = state.global_step


@dataclass
class _Tracking(TrainerCallback):
    """Stands before the trackers, and adds values to what they get."""

    trainer: PositionTrainer

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        logs.update(self.trainer.values_for_trackers())


@dataclass
class _Restoring(TrainerCallback):
    trainer: PositionTrainer
    checkpoint: Path

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.restore_unlogged(self.checkpoint)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of training a model."""

    samples: int
    steps: int
    positions: int
    loss: float
    """Mean loss per supervised position at the last log; without logs, of the whole training."""
    log: list[dict[str, float]]
    padding: float
    """Share of padding among the tokens of the first epoch."""
    weights: dict[str, Tensor] | None
    """The whole weights, in the first process, if the model holds only shards of them."""
    mixture: DomainDraws | None = None
    """The weights of the domains, if the samples are a mixture that follows the gaps."""

    @property
    def facts(self) -> dict[str, Any]:
        """The numbers for the manifest."""
        names = ("samples", "steps", "positions", "loss", "padding")
        last = self.log[-1] if self.log else {}
        logged: dict[str, Any] = {
            name: last[name] for name in ("P", "Q", "from_label") if name in last
        }
        if self.mixture is not None:
            logged["mixture"] = self.mixture.current
        return {name: getattr(self, name) for name in names} | logged


def train(
    model: PreTrainedModel | PeftModel,
    samples: Sequence[EncodedSample],
    soft_targets: SoftTargetSource | None,
    objective: Objective | CheckedObjective,
    args: TrainingArguments,
    console: Console,
    title: str,
    batching: inference.Batching = "padded",
    choice: CopyChoice | None = None,
    averaged: averaging.Averaging = averaging.LAST_STEP,
    mixture: MixturePlan | None = None,
) -> Outcome:
    """Train a model in place, resuming from the last complete checkpoint in `args.output_dir`.

    Args:
        model: the model, in the dtype that it trains in; with adapters, their checkpoints hold
            nothing else.
        samples: the training samples, and after them their copies, if there are any.
        soft_targets: provides the soft targets of each batch; None for the objective `labels`.
        objective: the loss to minimise.
        args: settings, as `arguments.arguments` makes them.
        console: shows progress.
        title: what is being done, for progress and messages.
        batching: how a micro-batch holds its samples.
        choice: chooses in each epoch which samples a copy stands for; None if there are no copies.
        averaged: which weights the model has in the end, in the first process; not for shards.
        mixture: the domains from which samples are drawn by their gaps; None takes every sample
            once in each epoch. Not for shards, and not with copies.

    Raises:
        UserError: the loss or the weights are no longer finite.
    """
    if not is_sharded(args):  # its own launcher moves the shards
        # The trial of the output layer must run where training does: some kernels need a GPU.
        placement.move(model, args.device)
    inner, tracked = lora.base_model(model), bool(args.report_to)
    draws = None
    if mixture is not None:
        install_objective(inner, "topk-tail")
        draws = draws_of(mixture, inner, inner.forward, args)
        del inner.forward
    install_objective(
        inner, objective, console.say, together=is_sharded(args), with_entropy=tracked
    )
    batches = TrainingBatches(samples, soft_targets, batching, choice if draws is None else draws)
    trainer = PositionTrainer(model=model, args=args, train_dataset=batches)
    trainer.remove_callback(PrinterCallback)
    if tracked:
        trainer.callback_handler.callbacks.insert(0, _Tracking(trainer))
    checkpoint = distributed.by_first(lambda: last_checkpoint(Path(str(args.output_dir))))
    done = checkpoints.step_of(checkpoint) if checkpoint else 0
    if draws is not None and checkpoint:
        draws.restore(checkpoint)
    if checkpoint:
        console.say(f"{title}: resuming after step {done}")
        trainer.add_callback(_Restoring(trainer, checkpoint))
    start = None
    if distributed.is_first():  # which saves the model
        if averaged.interpolate is not None:
            start = averaging.StartingWeights(model)
        if averaged.ema is not None:
            trainer.average = averaging.WeightAverage(model, averaged.ema)
            trainer.add_callback(averaging.AveragingCallback(trainer.average, checkpoint))
    micro_batches = trainer.micro_batches
    steps = args.max_steps
    if steps <= 0:
        per_epoch = -(-micro_batches.samples // micro_batches.batch_size)
        steps = math.ceil(per_epoch * args.num_train_epochs)
    count = micro_batches.samples if draws is None else draws.samples
    own = (part for part in micro_batches if part[0] >= 0)
    padding = 0.0 if batching == "packed" else padding_share(micro_batches.lengths, own)
    with console.progress(title, steps, "steps", done) as advance:
        trainer.add_callback(_Progress(advance, done))
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.require_finite_weights(model)
    if trainer.average is not None:
        trainer.average.apply()
    if start is not None and averaged.interpolate is not None:
        start.interpolate(averaged.interpolate)
    del inner.forward  # the installed one refers to the model and would keep it in memory
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return Outcome(
        samples=count,
        steps=trainer.state.global_step,
        positions=int(counts_of(samples)[:count].sum()),
        loss=float(log[-1]["loss"] if log else result.training_loss),
        log=log,
        padding=padding,
        weights=trainer.gathered_weights(),
        mixture=draws,
    )


def is_sharded(args: TrainingArguments) -> bool:
    """Return whether processes share the weights, so that no device holds the whole model."""
    launched = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    by_launcher = any(os.environ.get(name, "false").lower() in ("true", "1") for name in launched)
    return bool(args.fsdp or args.deepspeed or by_launcher)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint; incomplete ones are deleted."""
    complete = []
    for path in checkpoints.checkpoints(folder):
        if checkpoints.is_complete(path):
            complete.append(path)
        else:
            shutil.rmtree(path)
    return complete[-1] if complete else None


def write_log(path: Path, log: Sequence[Mapping[str, object]]) -> None:
    lines = (json.dumps(entry, sort_keys=True) for entry in log)  # sorted like a resumed run's
    path.write_text("".join(line + "\n" for line in lines), "utf-8")
