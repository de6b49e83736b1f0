"""Predictions after texts that begin like generated ones, whose keys and values are reused.

A student has written an explanation, and its answer is read after each step. All these texts begin
with the same tokens, which the cache of the generation still holds, so only what follows them runs
through the model. Results are those of whole texts; models whose caches do not allow it get whole
texts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from firstcli.api import FloatArray, IntArray
from firstcli.checkpoints.causality import difference, evaluating, tolerance
from firstcli.checkpoints.placement import input_device
from firstcli.models import inference, readout
from firstcli.models.answers import EVALUATION_TOKENS
from firstcli.models.generation import cache_argument, continuations

_TRIAL_LENGTHS = (5, 9)
_TRIAL_NEW = 4
_TRIAL_LONGEST = max(_TRIAL_LENGTHS) + _TRIAL_NEW + 2


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """A text, and how many predictions of it are read."""

    row: int
    """The generated text that it begins like."""
    input_ids: Sequence[int]
    count: int = 1
    """The predictions after each of the last `count` tokens are read."""


@dataclass(frozen=True, slots=True, eq=False)
class Generated:
    """A generated batch with its keys and values."""

    prompts: Sequence[Sequence[int]]
    new: Sequence[Sequence[int]]
    """The tokens that were generated after each prompt."""
    cache: Any
    """A cache of the padded batch; None if it cannot be reused."""

    @property
    def width(self) -> int:
        """Length of the padded prompts."""
        return max(map(len, self.prompts))

    def shared(self, branch: Branch) -> int:
        """Return how many tokens of a branch the cache holds."""
        if self.cache is None:
            return 0
        # The last token of a text was chosen, but has not run through the model.
        known = [*self.prompts[branch.row], *self.new[branch.row][:-1]]
        most = min(len(known), len(branch.input_ids) - branch.count)
        pairs = zip(known[:most], branch.input_ids, strict=False)
        return next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), most)

    def start(self, branch: Branch) -> int:
        """Return where a branch's tokens start in the cache, after the padding."""
        return self.width - len(self.prompts[branch.row])


def generated(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    limit: int,
    ends: Sequence[int],
    processors: LogitsProcessorList,
    *,
    keeps: bool,
) -> Generated:
    """Continue prompts as `continuations` does.

    Args:
        model: a causal language model.
        prompts: the tokens of each prompt, at least one.
        limit: tokens after which a text is cut off.
        ends: the tokens that end a text; may be empty.
        processors: choose the tokens; without any, the most likely one is taken.
        keeps: whether to keep the cache, for models without a `fault`.
    """
    cache = _empty_cache(model) if keeps else None
    new = continuations(model, prompts, limit, ends, processors, cache)
    return Generated(prompts, new, cache)


def log_probs(
    reader: readout.Reader,
    text: Generated,
    branches: Sequence[Branch],
    token_ids: Sequence[IntArray],
) -> list[FloatArray]:
    """Return log-probabilities of tokens at each prediction of each branch, (count, C).

    Args:
        reader: the model.
        text: the generated batch that the branches belong to.
        branches: the branches.
        token_ids: the tokens of each prediction of each branch, (count, C).
    """
    width = max(ids.shape[1] for ids in token_ids)

    def readout_of(chosen: Sequence[int]) -> readout.Readout:
        rows = [np.pad(token_ids[i], ((0, 0), (0, width - token_ids[i].shape[1]))) for i in chosen]
        ids = torch.from_numpy(np.concatenate(rows))
        return lambda scores: readout.log_probs(scores, ids)

    found = _read(reader, text, branches, readout_of)
    return [
        values[:, : ids.shape[1]].numpy().astype(np.float64)
        for values, ids in zip(found, token_ids, strict=True)
    ]


def likeliest(
    reader: readout.Reader, text: Generated, branches: Sequence[Branch], k: int
) -> list[IntArray]:
    """Return the k likeliest tokens at each prediction of each branch, (count, k).

    Args:
        reader: the model.
        text: the generated batch that the branches belong to.
        branches: the branches.
        k: number of tokens.
    """
    limit = inference.vocabulary_size(reader.model)
    found = _read(reader, text, branches, lambda _: lambda scores: readout.top_k(scores, k, limit))
    return [readout.unpack(values)[0].numpy() for values in found]


def _read(
    reader: readout.Reader,
    text: Generated,
    branches: Sequence[Branch],
    readout_of: Callable[[Sequence[int]], readout.Readout],
) -> list[Tensor]:
    """Return what is read at the predictions of each branch, (count, X), on the CPU.

    Args:
        reader: the model.
        text: the generated batch.
        branches: the branches.
        readout_of: returns the readout of some branches, one after the other.
    """
    results: list[Tensor | None] = [None] * len(branches)
    known = [text.shared(branch) for branch in branches]
    for chosen in _batches(text, branches, known):
        some = [branches[i] for i in chosen]
        values = _run(reader, text, some, [known[i] for i in chosen], readout_of(chosen)).cpu()
        for i, part in zip(chosen, values.split([branch.count for branch in some]), strict=True):
            results[i] = part
    return [result for result in results if result is not None]


def _batches(
    text: Generated, branches: Sequence[Branch], known: Sequence[int]
) -> Iterator[list[int]]:
    """Group branches; the cached and the new tokens of a batch fit into its limit.

    Args:
        text: the generated batch.
        branches: the branches.
        known: how many tokens of each the cache holds.
    """
    ends = [text.start(branch) + count for branch, count in zip(branches, known, strict=True)]
    news = [len(branch.input_ids) - count for branch, count in zip(branches, known, strict=True)]
    batch: list[int] = []
    most_cached = most_new = 0
    for i in sorted(range(len(branches)), key=lambda i: (-ends[i], -news[i], i)):
        most_cached, most_new = max(most_cached, ends[i]), max(most_new, news[i])
        if batch and (most_cached + most_new) * (len(batch) + 1) > EVALUATION_TOKENS:
            yield batch
            batch, most_cached, most_new = [], ends[i], news[i]
        batch.append(i)
    if batch:
        yield batch


def _run(
    reader: readout.Reader,
    text: Generated,
    branches: Sequence[Branch],
    known: Sequence[int],
    read: readout.Readout,
) -> Tensor:
    """Return the readout of the predictions of one batch of branches, one after the other.

    Args:
        reader: the model.
        text: the generated batch.
        branches: the branches.
        known: how many tokens of each the cache holds.
        read: the readout.
    """
    device = input_device(reader.model)
    pairs = list(zip(branches, known, strict=True))
    padded = inference.pad(
        [np.asarray(branch.input_ids[count:], np.int32) for branch, count in pairs]
    )
    rows: list[int] = []
    columns: list[int] = []
    for row, (branch, count) in enumerate(pairs):
        last = len(branch.input_ids) - count
        rows += [row] * branch.count
        columns += range(last - branch.count, last)
    mask = padded.attention_mask
    positions: Tensor | None = None
    cache: readout.Cached | None = None
    if text.cache is not None:
        length = max(text.start(branch) + count for branch, count in pairs)
        seen = torch.zeros(len(branches), length, dtype=torch.long)
        for row, (branch, count) in enumerate(pairs):
            start = text.start(branch)
            seen[row, start : start + count] = 1
        mask = torch.cat([seen, mask], 1)
        steps = torch.arange(padded.input_ids.shape[1])
        # Padding repeats the last position, so that none lies outside the model's context.
        ends = torch.tensor([len(branch.input_ids) for branch in branches])[:, None]
        positions = torch.minimum(torch.tensor(known)[:, None] + steps, ends - 1).to(device)
        selected = _selected(text.cache, [branch.row for branch in branches], length)
        cache = readout.Cached(selected, cache_argument(reader.model))
    return reader(
        padded.input_ids.to(device),
        mask.to(device),
        torch.tensor(rows, device=device),
        torch.tensor(columns, device=device),
        read,
        positions,
        cache,
    )


def _empty_cache(model: PreTrainedModel) -> Any:
    return DynamicCache(config=model.config)


def _selected(cache: Any, rows: Sequence[int], length: int) -> Any:
    """Return a cache with some rows of another one, and only the first tokens of these."""
    selected = copy.copy(cache)
    selected.layers = []
    for layer in cache.layers:
        part = copy.copy(layer)
        if layer.is_initialized:
            index = torch.tensor(rows, device=layer.keys.device)
            part.keys = layer.keys[:, :, :length].index_select(0, index)
            part.values = layer.values[:, :, :length].index_select(0, index)
        selected.layers.append(part)
    return selected


@torch.no_grad()
def fault(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Try out whether a model's cache can be reused; return why not, or None if it can.

    The model continues two prompts of different lengths. Its predictions after texts that begin
    like these must be the same with the cache as without, up to a small part of what different
    tokens change. Which architectures do that cannot be read from a configuration: some keep a
    sliding window, or a state that cannot be taken back.
    """
    token_ids = inference.ordinary_tokens(model, tokenizer)
    longest = inference.context_length(model)
    if len(token_ids) < 2 or (longest is not None and longest < _TRIAL_LONGEST):
        return "its context or its vocabulary is too small for a trial"
    ids = [token_ids[i % len(token_ids)] for i in range(2 * max(_TRIAL_LENGTHS))]
    prompts = [ids[:length] for length in _TRIAL_LENGTHS]
    reader = readout.Reader(model)

    def logits(text: Generated) -> Tensor:
        branches = [
            Branch(row, [*prompt, *text.new[row][:kept], *ids[-2:]], 2)
            for row, prompt in enumerate(prompts)
            for kept in (0, _TRIAL_NEW - 1)
        ]
        parts = _read(reader, text, branches, lambda _: _all_logits)
        return torch.cat(parts)

    with evaluating(model):
        try:
            empty = _empty_cache(model)
            if not all(type(layer) is DynamicLayer for layer in empty.layers):
                return "its cache does not keep all tokens"
            text = generated(model, prompts, _TRIAL_NEW, (), LogitsProcessorList(), keeps=True)
            cached = logits(text)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever an architecture raises: whole texts always work
            return f"a trial failed ({' '.join(str(error).split())[:100]})"
        plain = logits(Generated(text.prompts, text.new, None))
    bound = difference(plain[0], plain[1]) * tolerance(model, plain)
    worst = difference(cached, plain)
    if worst <= bound:
        return None
    return f"predictions that reuse it differ by up to {worst:.2g}"


def _all_logits(scores: readout.Scores) -> Tensor:
    return torch.cat([logits.clone() for _, logits in scores.chunks(readout.CHUNK_ROWS)])
