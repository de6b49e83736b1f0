"""Let a model continue prompts: greedily, or sampled so that only a row's own seed matters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from firstcli.checkpoints.placement import input_device
from firstcli.errors import UserError


@dataclass(frozen=True, slots=True)
class Sampler:
    """How the next token is chosen."""

    temperature: float = 0.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    top_k: int | None = None

    def processors(self, seeds: Sequence[str]) -> LogitsProcessorList:
        """Return what turns logits into a choice; `seeds` holds one text per row."""
        chain = LogitsProcessorList()
        if self.temperature == 0:
            return chain
        chain.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k is not None:
            chain.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            chain.append(TopPLogitsWarper(self.top_p))
        chain.append(SeededChoice(seeds))
        return chain


class SeededChoice(LogitsProcessor):
    """Sample each row's next token with its own random numbers, and leave only that token.

    A row's text then depends neither on the other rows of its batch nor on their number.
    """

    def __init__(self, seeds: Sequence[str]) -> None:
        """Start one stream of random numbers per row."""
        digests = (hashlib.sha256(seed.encode()).digest() for seed in seeds)
        keys = (int.from_bytes(digest[:16], "little") for digest in digests)
        self._streams = [np.random.Generator(np.random.Philox(key=key)) for key in keys]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V) that are 0 for the chosen tokens and -inf for all others."""
        uniform = torch.tensor(
            [[stream.random()] for stream in self._streams],
            dtype=torch.float64,
            device=scores.device,
        )
        cumulative = scores.double().softmax(-1).cumsum(-1)  # (B, V)
        if not bool(cumulative[:, -1].isfinite().all()):
            raise UserError(
                "the model's output is not finite; check its weights, or try "
                "model.options.dtype: float32"
            )
        # Inverse of the distribution function. The last sum may be below 1 by rounding.
        chosen = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen, 0.0)


def continuations(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    limit: int,
    ends: Sequence[int],
    processors: LogitsProcessorList,
    cache: Any = None,
) -> list[list[int]]:
    """Return each prompt's new tokens, up to and including the one that ends the text.

    The generation settings of the checkpoint have no effect: a penalty on repetitions, for example,
    would choose tokens that are not the most likely ones.

    Args:
        model: a causal language model.
        prompts: the tokens of each prompt, at least one.
        limit: tokens after which a text is cut off.
        ends: the tokens that end a text; may be empty.
        processors: choose the tokens; without any, the most likely one is taken.
        cache: an empty cache of transformers, which takes keys and values of the padded batch.
    """
    padding = ends[0] if ends else 0
    width = max(map(len, prompts))
    device = input_device(model)
    # On the left, so that every row continues at the end.
    ids = torch.tensor([[padding] * (width - len(row)) + list(row) for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    settings = GenerationConfig(
        max_new_tokens=limit,
        do_sample=False,
        eos_token_id=list(ends) or None,
        pad_token_id=padding,
    )
    generate: Any = model.generate
    with _without_own_settings(model):
        output = generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=settings,
            logits_processor=processors,
            **({} if cache is None else {cache_argument(model): cache}),
        )
    rows = output[:, width:].tolist()
    lengths = [next((i + 1 for i, id in enumerate(row) if id in ends), len(row)) for row in rows]
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]


def cache_argument(model: PreTrainedModel) -> str:
    """Return what a model calls its cache of keys and values: transformers has renamed it."""
    return "cache" if "cache" in signature(type(model).forward).parameters else "past_key_values"


class GreedyLogProbs(LogitsProcessor):
    """Note the log-probability of the most likely token of each row, step by step."""

    def __init__(self, temperature: float = 1.0) -> None:
        """Start with no step; `temperature` divides the logits before they become probabilities."""
        self._temperature = temperature
        self._steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores (B, V) as they are."""
        scaled = scores.float() / self._temperature
        self._steps.append(scaled.amax(-1) - scaled.logsumexp(-1))
        return scores

    def rows(self, lengths: Sequence[int]) -> list[npt.NDArray[np.float64]]:
        """Return the log-probabilities of each row's first tokens, (L_i,)."""
        if not self._steps:
            return [np.zeros(0) for _ in lengths]
        values = torch.stack(self._steps, 1).cpu().numpy().astype(np.float64)  # (B, L)
        return [row[:length] for row, length in zip(values, lengths, strict=True)]


@contextmanager
def _without_own_settings(model: PreTrainedModel) -> Iterator[None]:
    """Hide a model's generation settings, which fill in whatever `generate` is not told."""
    before = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before


def text_places(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], ends: Sequence[int]
) -> list[int]:
    """Return the places of the tokens that are text: neither special, nor the end of a text."""
    special = {*ends, *tokenizer.all_special_ids}
    return [place for place, id in enumerate(ids) if id not in special]


def written_text(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    ids: Sequence[int],
    ends: Sequence[int],
) -> str:
    """Return the text that a model wrote, without special tokens, which no explanation contains.

    Args:
        tokenizer: the model's tokenizer.
        prompt: the tokens before the text.
        ids: the tokens that the model wrote.
        ends: the tokens that end a text.
    """
    places = text_places(tokenizer, ids, ends)
    return text_after(tokenizer, prompt, [ids[place] for place in places])


def text_after(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], ids: Sequence[int]
) -> str:
    """Return the text of tokens that follow a prompt, with the space between the two.

    Decoders drop the space before the first token of a text, so the prompt is decoded as well.
    """
    decode: Any = tokenizer.decode
    before = decode(list(prompt), skip_special_tokens=False)
    whole: str = decode([*prompt, *ids], skip_special_tokens=False)
    return whole[len(before) :]
