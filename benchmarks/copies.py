"""Perturbed copies of prompts: a stand-in until firstcli's augmenter `perturb` can be imported."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random


def perturbed(prompt: str, level: float, words: Sequence[str], random: Random) -> str:
    """Drop, swap or replace each word but the last with probability `level`."""
    *before, last = prompt.split()
    kept = []
    for word in before:
        if random.random() >= level:
            kept.append(word)
            continue
        kind = random.randrange(3)
        if kind == 1:
            kept.append(random.choice(words))
        elif kind == 2:
            kept.append(invented(word, random.choice(words), random))
    return " ".join([*kept, last])


def invented(word: str, other: str, random: Random) -> str:
    """Shuffle a word's letters, or join the first half of it and the second half of another."""
    if random.random() < 0.5:
        return "".join(random.sample(word, len(word)))
    return word[: (len(word) + 1) // 2] + other[len(other) // 2 :]
