"""Train many small Llamas of one shape at once: their weights are stacked in one batched model.

A tiny model leaves most of a processor idle: each of its products is too small, and Python takes
longer than the arithmetic. Here every matrix product is one batched product over all models. The
rest of the forward pass is that of transformers, to which the sequences of all models are one large
batch. Models do not influence each other: each has its own batches, targets, loss, gradient norm
and Adam state. `worlds.py` uses it; `tests/test_worlds.py` compares it with `first` itself.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, get_cosine_schedule_with_warmup
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from firstcli.data.encoded import IntArray, counts_of, lengths_of
from firstcli.data.encoding import EncodedSample
from firstcli.recipe.sections import Training
from firstcli.training import objectives
from firstcli.training.batches import SoftTargetSource, TrainingBatches, batches_of_epoch
from firstcli.training.copies import CopyChoice

WARMUP = 0.03  # of the steps, as in `training.arguments`
MAX_NORM = 1.0
Objective = Literal["labels", "topk-tail", "hard-gate"]


class StackedLinear(nn.Module):
    """The linear layers of A models, which get the A parts of a batch."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (A * B, L, D) to (A * B, L, D')."""
        models, width, depth = self.weight.shape
        product = torch.bmm(hidden.reshape(models, -1, depth), self.weight.mT)
        return product.view(*hidden.shape[:-1], width)


class StackedNorm(nn.Module):
    """The RMSNorm layers of A models."""

    def __init__(self, layers: Sequence[Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.epsilon: float = layers[0].variance_epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise (A * B, L, D) and scale it by the weights (A, D)."""
        models, depth = self.weight.shape
        normed = nn.functional.rms_norm(hidden, (depth,), eps=self.epsilon)
        scaled = normed.view(models, -1, depth) * self.weight[:, None]
        return scaled.view(hidden.shape)


class StackedEmbedding(nn.Module):
    """The token embeddings of A models."""

    def __init__(self, layers: Sequence[nn.Embedding]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))

    def forward(self, token_ids: Tensor) -> Tensor:
        """Map token ids (A * B, L) to (A * B, L, D)."""
        models, vocabulary, depth = self.weight.shape
        first = torch.arange(models).mul(vocabulary).repeat_interleave(len(token_ids) // models)
        return nn.functional.embedding(token_ids + first[:, None], self.weight.view(-1, depth))


class Stack(nn.Module):
    """A models of one shape as one; the output layer's weights are those of the embedding."""

    def __init__(self, models: Sequence[LlamaForCausalLM]) -> None:
        """Copy the weights of the models, which stay as they are."""
        super().__init__()
        if not all(model.config.tie_word_embeddings for model in models):
            raise ValueError("the models' output layers must be tied to their embeddings")
        self.models = len(models)
        self._template = [copy.deepcopy(models[0])]  # a list hides it from `parameters`
        trunk = copy.deepcopy(models[0].model)
        for name, module in list(trunk.named_modules()):
            parts: list[Any] = [model.model.get_submodule(name) for model in models]
            stacked: nn.Module
            if isinstance(module, nn.Linear):
                stacked = StackedLinear(parts)
            elif isinstance(module, nn.Embedding):
                stacked = StackedEmbedding(parts)
            elif hasattr(module, "variance_epsilon"):
                stacked = StackedNorm(parts)
            else:
                continue
            trunk.set_submodule(name, stacked)
        self.trunk = trunk

    def forward(self, token_ids: Tensor, columns: Tensor) -> Tensor:
        """Return the logits (A, B, P, V) after the tokens at `columns`.

        Only these positions are computed in the last layer, of which no other layer reads more.

        Args:
            token_ids: sequences padded on the right, which no token before the padding can see,
                (A, B, L).
            columns: (A, B, P).
        """
        models, batch, length = token_ids.shape
        trunk, at = self.trunk, columns.flatten(0, 1)  # (A * B, P)
        hidden = trunk.embed_tokens(token_ids.flatten(0, 1))
        positions = torch.arange(length)[None]
        angles = trunk.rotary_emb(hidden, positions)  # cosines and sines, each (1, L, D / heads)
        *layers, last = trunk.layers
        for layer in layers:
            hidden = _block(layer, hidden, hidden, angles, angles, None)
        is_seen = positions <= at[..., None]  # (A * B, P, L)
        angles_at = tuple(part[0][at] for part in angles)  # (A * B, P, D / heads)
        chosen = hidden.gather(1, at[..., None].expand(*at.shape, hidden.shape[-1]))
        hidden = trunk.norm(_block(last, chosen, hidden, angles_at, angles, is_seen[:, None]))
        logits = torch.bmm(hidden.view(models, -1, hidden.shape[-1]), trunk.embed_tokens.weight.mT)
        return logits.view(models, batch, columns.shape[2], -1)

    @torch.no_grad()
    def model(self, index: int) -> LlamaForCausalLM:
        """Return a copy of one of the models, ready for inference."""
        single: LlamaForCausalLM = copy.deepcopy(self._template[0])
        own = dict(single.model.named_parameters())
        for name, value in self.trunk.named_parameters():
            own[name].copy_(value[index])
        single.eval()
        return single


def _block(
    layer: Any,
    hidden: Tensor,
    context: Tensor,
    angles: tuple[Tensor, ...],
    context_angles: tuple[Tensor, ...],
    is_seen: Tensor | None,
) -> Tensor:
    """Return the output (N, P, D) of a transformer block at some positions of N sequences.

    Args:
        layer: the block.
        hidden: its input at these positions, (N, P, D).
        context: its input at all positions, (N, L, D).
        angles: cosines and sines of the positions, each (N or 1, P, D / heads).
        context_angles: those of all positions.
        is_seen: which positions each of the P sees, (N, 1, P, L); None: P = L, and each sees those
            up to itself.
    """
    attention, size = layer.self_attn, layer.self_attn.head_dim

    def heads(values: Tensor) -> Tensor:
        parts: Tensor = values.unflatten(-1, (-1, size))  # (N, positions, heads, size)
        return parts.transpose(1, 2)

    normed = layer.input_layernorm(context)
    asking = normed if hidden is context else layer.input_layernorm(hidden)
    queries = _rotated(heads(attention.q_proj(asking)), angles)
    keys = _rotated(heads(attention.k_proj(normed)), context_angles)
    read = nn.functional.scaled_dot_product_attention(
        queries, keys, heads(attention.v_proj(normed)), is_seen, is_causal=is_seen is None
    )
    hidden = hidden + attention.o_proj(read.transpose(1, 2).flatten(2))
    normed, mlp = layer.post_attention_layernorm(hidden), layer.mlp
    added: Tensor = mlp.down_proj(mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed))
    return hidden + added


def _rotated(values: Tensor, angles: tuple[Tensor, ...]) -> Tensor:
    cosines, sines = angles
    rotated: Tensor = apply_rotary_pos_emb(values, values, cosines, sines)[0]
    return rotated


@dataclass(frozen=True)
class Lesson:
    """What one model of a stack learns: N training samples, and rows that can stand for them."""

    batches: TrainingBatches
    """The R rows, of which the first N are the training samples themselves."""
    samples: int
    """N."""
    choice: CopyChoice | None = None
    """Default: every sample stands for itself."""
    objective: Objective = "topk-tail"

    @classmethod
    def of(
        cls,
        rows: Sequence[EncodedSample],
        samples: int,
        soft_targets: SoftTargetSource | None,
        choice: CopyChoice | None = None,
    ) -> Lesson:
        """Build the lesson of soft targets, or of labels without them."""
        batches = TrainingBatches(rows, soft_targets)
        return cls(batches, samples, choice, "topk-tail" if soft_targets else "labels")


@dataclass
class _Tensors:
    """All rows of the lessons of a stack; the supervised positions of each row are P."""

    token_ids: Tensor  # (A, R, L)
    lengths: IntArray  # (A, R)
    fields: dict[str, Tensor] = field(default_factory=dict)  # (A, R, P, ...)

    @classmethod
    def of(cls, lessons: Sequence[Lesson]) -> _Tensors:
        counts = [counts_of(lesson.batches.samples) for lesson in lessons]
        if np.unique(counts).size > 1:
            raise ValueError("the rows must have equally many supervised positions")
        every = [lesson.batches[range(len(lesson.batches))] for lesson in lessons]
        rows = len(lessons[0].batches)
        tokens = nn.utils.rnn.pad_sequence([each["input_ids"].mT for each in every])  # (L, A, R)
        lengths = np.stack([lengths_of(lesson.batches.samples) for lesson in lessons])
        soft = next((each for each in every if "tail" in each), every[0])
        fields: dict[str, Tensor] = {}
        for name in ("columns", "targets", "token_ids", "probabilities", "tail"):
            if name not in soft:
                continue
            parts = [each.get(name, torch.zeros_like(soft[name])) for each in every]
            fields[name] = torch.stack([part.view(rows, -1, *part.shape[1:]) for part in parts])
        return cls(tokens.permute(1, 2, 0).contiguous(), lengths, fields)

    def batch(self, chosen: Tensor, length: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the tokens (A, B, L) and the fields (A, B, P, ...) of the rows (A, B)."""
        model = torch.arange(len(chosen))[:, None]
        return (
            self.token_ids[model, chosen, :length],
            {name: value[model, chosen] for name, value in self.fields.items()},
        )


def losses(logits: Tensor, fields: dict[str, Tensor], lessons: Sequence[Lesson]) -> Tensor:
    """Return each model's mean loss over the positions of its batch, (A,).

    Args:
        logits: (A, B, P, V).
        fields: `targets` (A, B, P) and, with soft targets, those of `TrainingBatches`.
        lessons: which objective each model has, A.
    """
    result = logits.new_zeros(len(lessons))
    for objective in dict.fromkeys(lesson.objective for lesson in lessons):
        index = torch.tensor([i for i, each in enumerate(lessons) if each.objective == objective])
        flat = logits[index].flatten(0, 2)
        own = {name: value[index].flatten(0, 2) for name, value in fields.items()}
        if objective == "labels":
            loss = objectives.labels(flat, own["targets"])
        else:
            student = objectives.student_view(flat, own["token_ids"])
            soft = own["probabilities"], own["tail"]
            if objective == "hard-gate":
                is_label = own["token_ids"] == own["targets"][:, None]
                soft = objectives.gated(student.log_q, *soft, is_label)[:2]
            loss = objectives.topk_tail(student, *soft)
        result = result.index_copy(0, index, loss.view(len(index), -1).mean(-1))
    return result


@torch.no_grad()
def clip_(parameters: Sequence[nn.Parameter], max_norm: float) -> None:
    """Scale each model's gradient down to a norm, as `torch.nn.utils.clip_grad_norm_` does."""
    gradients = [value.grad for value in parameters if value.grad is not None]
    squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients])
    scale = (max_norm / (squares.sum(0).sqrt() + 1e-6)).clamp(max=1.0)  # (A,)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))


def train(
    stack: Stack,
    lessons: Sequence[Lesson],
    settings: Training,
    seed: int,
    after_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Train a stack in place, one lesson a model, as `training.trainer.train` trains one model.

    Args:
        stack: the models.
        lessons: what each of them learns; all have the same numbers of samples, of rows, and of
            supervised positions per row.
        settings: epochs, learning rate and batch size.
        seed: determines the order of the samples.
        after_step: called after each step.

    Returns:
        The loss of every model at each step, (steps, A).
    """
    tensors, samples = _Tensors.of(lessons), lessons[0].samples
    itself = np.arange(samples)
    per_epoch = -(-samples // settings.batch_size)
    steps = math.ceil(per_epoch * settings.epochs)
    parameters = list(stack.parameters())
    optimizer = torch.optim.AdamW(
        parameters, settings.learning_rate, (0.9, 0.999), 1e-6, weight_decay=0.0, fused=True
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(WARMUP * steps), steps)
    curve = []
    stack.train()
    for step in range(steps):
        epoch, number = divmod(step, per_epoch)
        if number == 0:
            order = []
            for lesson, lengths in zip(lessons, tensors.lengths, strict=True):
                rows = itself if lesson.choice is None else lesson.choice.of_epoch(epoch)
                cut = batches_of_epoch(lengths[rows], settings.batch_size, seed, epoch)
                order.append([rows[batch] for batch in cut])
        chosen = np.stack([batches[number] for batches in order])  # (A, B)
        length = int(np.take_along_axis(tensors.lengths, chosen, 1).max())
        token_ids, fields = tensors.batch(torch.from_numpy(chosen), length)
        loss = losses(stack(token_ids, fields.pop("columns")), fields, lessons)
        optimizer.zero_grad()
        loss.sum().backward()
        clip_(parameters, MAX_NORM)
        optimizer.step()
        schedule.step()
        after_step()
        curve.append(loss.detach())
    stack.eval()
    return torch.stack(curve)
