"""Encode samples into a list."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from firstcli.api import Sample
from firstcli.data.encoding import EncodedSample, Encoding, each_encoded


def encode_training(
    samples: Iterable[Sample], tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[list[EncodedSample], list[str]]:
    """Encode samples for training; return them with the warnings."""
    encoding = Encoding(tokenizer, where)
    return list(each_encoded(samples, encoding)), encoding.warnings
