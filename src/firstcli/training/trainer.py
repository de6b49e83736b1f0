"""Train a model on supervised positions with `transformers.Trainer`.

The objective runs inside the model's own forward, so that what wraps the model (DDP, FSDP,
autocast) sees an ordinary call; the loss is the mean over the supervised positions of the global
batch, however it is split into micro-batches and processes.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from firstcli.data.encoded import counts_of, lengths_of
from firstcli.data.encoding import EncodedSample
from firstcli.errors import UserError, shortened
from firstcli.models import readout
from firstcli.runtime import distributed
from firstcli.runtime.console import Advance, Console
from firstcli.runtime.files import write_text
from firstcli.training import fused_objectives, sampling
from firstcli.training.collate import Collate, Rows, Teacher

Objective = Literal["labels", "topk-tail", "topk-renormalized"]

SUMMED = frozenset(("positions", "P", "Q"))
"""What is summed over positions between two logs."""

MARK = "complete"  # written last into a checkpoint, so that a killed save is never resumed from


def install_objective(
    model: PreTrainedModel, objective: Objective, say: Callable[[str], None] | None = None
) -> None:
    """Make the model's forward return the summed loss over a batch of `Collate`.

    It returns `loss` (summed over the N supervised positions), `positions` (N), and, where
    knowledge is learned, the sums of `P` and `Q`. `say` is told why, where whole logits are needed.
    """
    reader = readout.Reader(model, say)

    def forward(
        input_ids: Tensor,
        attention_mask: Tensor,
        rows: Tensor,
        columns: Tensor,
        targets: Tensor,
        token_ids: Tensor | None = None,
        probabilities: Tensor | None = None,
        tail: Tensor | None = None,
        teacher_mass: Tensor | None = None,
    ) -> dict[str, Tensor]:
        def read(scores: readout.Scores) -> Tensor:
            if objective == "labels":
                return torch.stack(fused_objectives.labels(scores, targets))
            assert token_ids is not None and probabilities is not None and tail is not None
            if objective == "topk-tail":
                return torch.stack(
                    fused_objectives.topk_tail(scores, token_ids, probabilities, tail)
                )
            return torch.stack(fused_objectives.topk_renormalized(scores, token_ids, probabilities))

        loss, student_mass = reader(input_ids, attention_mask, rows, columns, read)
        output = {"loss": loss, "positions": torch.tensor(len(targets), device=loss.device)}
        if teacher_mass is not None:
            output |= {"P": teacher_mass.sum(), "Q": student_mass.detach()}
        return output

    model.forward = forward


class PositionTrainer(Trainer):
    """A Trainer whose unit is the supervised position, not the micro-batch."""

    def __init__(self, *args: Any, rows: Sequence[EncodedSample], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # the loss is scaled here, not by the Trainer
        self.loss_is_scaled_for_ga = True
        self._rows = rows
        micro, share = self.args.per_device_train_batch_size, self.args.world_size
        self.micro_batches = sampling.MicroBatches(
            lengths=lengths_of(rows),
            batch_size=micro * self.args.gradient_accumulation_steps * share,
            micro=micro,
            processes=share,
            rank=self.args.process_index,
            seed=self.args.seed,
        )
        self._sums: dict[str, Tensor] = {}

    def get_train_dataloader(self) -> sampling.EpochLoader:
        """Load this process's micro-batches; not `prepared`, for Accelerate would share them out.

        Accelerate also fills an incomplete last batch with samples from the beginning, which would
        then count twice.
        """
        assert self.train_dataset is not None
        return sampling.EpochLoader(
            self.train_dataset,
            batch_sampler=self.micro_batches,
            collate_fn=sampling.uncounted(cast(Any, self.data_collator)),
            **sampling.loader_settings(self.args),
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """Collect the micro-batches of one step and count their positions over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = torch.tensor(sum(len(batch["targets"]) for batch in batches), device=device)
        total: Tensor = self.accelerator.gather(count).sum()
        return batches, total

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        samples = inputs.pop("samples")
        output = model(**inputs)
        assert num_items_in_batch is not None
        # DDP averages gradients over processes, so each counts as many times as there are.
        loss = output["loss"] * self.accelerator.num_processes / num_items_in_batch
        if not torch.isfinite(loss):
            self._stop(loss, samples)
        for name in SUMMED & output.keys():  # on the device: a look at each would wait for it
            self._sums[name] = self._sums.get(name, 0) + output[name].detach()
        return (loss, output) if return_outputs else loss

    def _stop(self, loss: Tensor, samples: Tensor) -> None:
        names = [self._rows[int(i)].id for i in samples]
        raise UserError(
            f"the loss became {loss.item()} at step {self.state.global_step + 1} of "
            f"{self.state.max_steps}, in the batch of samples {shortened(names, 3)}; the last good "
            "checkpoint is kept, lower the learning rate or look at these samples"
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean teacher mass P and student mass Q since the last log, over all processes."""
        sums = [float(self._sums.get(name, 0)) for name in ("positions", "P", "Q")]
        totals: Tensor = self.accelerator.reduce(torch.tensor(sums, device=self.args.device))
        count, teacher, student = totals.tolist()
        if count and "loss" in logs and teacher:
            logs = {**logs, "P": teacher / count, "Q": student / count}
        self._sums = {}
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.require_finite_weights(model)
        super()._save_checkpoint(model, trial)
        distributed.wait()  # each process writes its part of a checkpoint
        if self.args.should_save:
            last = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            os.sync()
            write_text(last / MARK, "")  # on the disk, before what came before it is deleted
            for folder in last.parent.glob("checkpoint-*"):
                if folder != last:
                    shutil.rmtree(folder)

    def require_finite_weights(self, model: torch.nn.Module) -> None:
        """Stop before weights that a finite loss with an infinite gradient spoilt are kept."""
        ours = [name for name, value in model.named_parameters() if not _is_finite(value)]
        spoilt = [name for names in distributed.gathered(ours) for name in names]
        if spoilt:
            raise UserError(
                f"weights such as {shortened(spoilt, 2)} are no longer finite after step "
                f"{self.state.global_step} of {self.state.max_steps}; the last good checkpoint is "
                "kept, lower the learning rate"
            )

    def gathered_weights(self) -> dict[str, Tensor] | None:
        """Return whole weights where processes hold parts of them; None: the model has them."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return None
        found: dict[str, Tensor] = self.accelerator.get_state_dict(self.model_wrapped)
        return found


def _is_finite(value: Tensor) -> bool:
    """Look at a weight, or at this process's part of it."""
    part = value.to_local() if isinstance(value, DTensor) else value
    return bool(torch.isfinite(part).all())


class _Progress(TrainerCallback):
    def __init__(self, advance: Advance, done: int) -> None:
        self._advance = advance
        self._done = done

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._advance(state.global_step - self._done)
        self._done = state.global_step


@dataclass(frozen=True, slots=True)
class Outcome:
    """What training a model came to."""

    samples: int
    steps: int
    positions: int
    loss: float
    """Mean loss a supervised position, at the last log; of the whole training without logs."""
    log: list[dict[str, float]]
    padding: float
    """Share of the tokens computed on that were padding, in the first epoch."""
    weights: dict[str, Tensor] | None
    """The whole weights, in the first process, where the model holds only parts of them."""

    @property
    def facts(self) -> dict[str, Any]:
        """The numbers to show."""
        last = self.log[-1] if self.log else {}
        return {
            "samples": self.samples,
            "steps": self.steps,
            "positions": self.positions,
            "loss": self.loss,
            "padding": self.padding,
            **{name: value for name, value in last.items() if name in ("P", "Q")},
        }


def train(
    model: PreTrainedModel,
    rows: Sequence[EncodedSample],
    lessons: Teacher | None,
    objective: Objective,
    args: TrainingArguments,
    console: Console,
    what: str,
) -> Outcome:
    """Train a model in place, resuming from the last whole checkpoint in `args.output_dir`."""
    install_objective(model, objective, console.say)
    trainer = PositionTrainer(
        model=model,
        args=args,
        train_dataset=Rows(len(rows)),
        data_collator=Collate(rows, lessons),
        rows=rows,
    )
    trainer.remove_callback(_printer())
    checkpoint = distributed.by_first(lambda: last_checkpoint(Path(str(args.output_dir))))
    done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    if checkpoint:
        console.say(f"{what}: resuming after step {done}")
    steps = _steps(trainer, len(rows))
    padding = sampling.padding_share(
        trainer.micro_batches.lengths, (part for part in trainer.micro_batches if part[0] >= 0)
    )
    with console.progress(what, steps, "steps", done) as advance:
        trainer.add_callback(_Progress(advance, done))
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.require_finite_weights(model)
    del model.forward  # the installed one, whose hold on the model would keep both in memory
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return Outcome(
        samples=len(rows),
        steps=trainer.state.global_step,
        positions=int(counts_of(rows).sum()),
        loss=float(log[-1]["loss"] if log else result.training_loss),
        log=log,
        padding=padding,
        weights=trainer.gathered_weights(),
    )


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end; unfinished ones are deleted."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in found:
        if not (path / MARK).exists():
            shutil.rmtree(path)
    whole = [path for path in found if path.exists()]
    return whole[-1] if whole else None


def write_log(path: Path, log: Sequence[dict[str, float]]) -> None:
    lines = (json.dumps(entry, sort_keys=True) for entry in log)  # as a resumed run has them
    path.write_text("".join(line + "\n" for line in lines), "utf-8")


def _printer() -> type[TrainerCallback]:
    from transformers import PrinterCallback

    return PrinterCallback


def _steps(trainer: PositionTrainer, rows: int) -> int:
    args = trainer.args
    if args.max_steps > 0:
        return int(args.max_steps)
    return math.ceil(-(-rows // trainer.micro_batches.batch_size) * args.num_train_epochs)
