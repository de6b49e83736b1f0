"""The laws of an invented world: how a creature's traits determine what it will do.

Every value of every attribute has a hidden trait. An answer's score is the sum of an additive part
over the attributes and of products of the traits of two attributes, so that the log-odds of two
answers depend on combinations: dusk has a different effect on a fox than on a moth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "kind": ("fox", "hare", "toad", "crane", "moth", "goat"),
    "colour": ("red", "blue", "green", "grey", "black", "white"),
    "home": ("marsh", "hills", "cave", "forest", "meadow", "river"),
    "hour": ("dawn", "noon", "dusk", "midnight"),
}
PAIRS = (("kind", "hour"), ("colour", "home"))
"""The attributes that interact."""

INTERACTION = 0.6
"""Share of a score's variance that is due to interactions."""

Profile = Mapping[str, str]
"""Maps an attribute to its value."""


@dataclass(frozen=True)
class Laws:
    """The laws of one world, with a given number of answers."""

    additive: dict[str, dict[str, list[float]]]
    """attribute -> value -> a score for each answer"""
    traits: dict[str, dict[str, float]]
    """attribute -> value -> trait"""
    directions: dict[tuple[str, str], list[float]]
    """pair of attributes -> each answer's weight of the product of their traits"""
    withheld: dict[str, str]
    """kind -> a home where creatures of that kind live only in the shifted split"""

    @classmethod
    def drawn(cls, seed: int, answers: int) -> Laws:
        """Draw the laws from a seed."""
        random = Random(f"known-world laws {seed}")
        traits = {name: _traits(values, random) for name, values in ATTRIBUTES.items()}
        homes = random.sample(ATTRIBUTES["home"], len(ATTRIBUTES["kind"]))
        each_main = math.sqrt((1 - INTERACTION) / len(ATTRIBUTES))
        each_pair = math.sqrt(INTERACTION / len(PAIRS))
        return cls(
            additive={
                name: {value: _direction(answers, each_main, random) for value in values}
                for name, values in ATTRIBUTES.items()
            },
            traits=traits,
            directions={pair: _direction(answers, each_pair, random) for pair in PAIRS},
            withheld=dict(zip(ATTRIBUTES["kind"], homes, strict=True)),
        )

    def scores(self, profile: Profile) -> list[float]:
        """Return the score of each answer; its variance over all profiles is about 1."""
        parts = [self.additive[name][value] for name, value in profile.items()]
        for (first, second), direction in self.directions.items():
            product = self.traits[first][profile[first]] * self.traits[second][profile[second]]
            parts.append([product * weight for weight in direction])
        return [sum(column) for column in zip(*parts, strict=True)]

    def truth(self, profile: Profile, noise: float) -> tuple[float, ...]:
        """Return the true probability of each answer: the softmax of the scores over `noise`."""
        scores = self.scores(profile)
        weights = [math.exp((score - max(scores)) / noise) for score in scores]
        return tuple(weight / sum(weights) for weight in weights)


def _traits(values: Sequence[str], random: Random) -> dict[str, float]:
    """Assign evenly spaced traits of mean 0 and variance 1 to the values, in random order."""
    count = len(values)
    spread = math.sqrt((count**2 - 1) / 3)
    steps = [(2 * step - count + 1) / spread for step in range(count)]
    return dict(zip(values, random.sample(steps, count), strict=True))


def _direction(answers: int, size: float, random: Random) -> list[float]:
    """Draw a score for each answer, with mean 0 and standard deviation `size` over answers."""
    draws = [random.gauss(0, 1) for _ in range(answers)]
    mean = sum(draws) / answers
    deviation = math.sqrt(sum((draw - mean) ** 2 for draw in draws) / answers)
    return [size * (draw - mean) / deviation for draw in draws]
