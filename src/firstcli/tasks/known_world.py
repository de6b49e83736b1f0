"""Questions about an invented world whose true answer distribution is known.

    Belmo is a grey fox from the marsh. At dusk it will| hide

The question contains the creature's profile, so a model has to learn the world's laws. The name
carries no information, and the answer is drawn from the true distribution, so a model that is
trained for too long memorises names and random answers and becomes over-confident.

In the split `unanswerable` the words of the profile do not exist in this world, so no answer is
right, and a well-calibrated model has a confidence of no more than 1 / `choices`:

    Belbo is a bleen wug from the quim. At snodge it will|
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from random import Random

from pydantic import Field

from firstcli.api import PluginOptions, Sample, Split, Task, TaskUsage
from firstcli.api.usage import prompt_usage

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

# The initials differ, so the first tokens differ in every tokenizer, whether or not the leading
# space is a separate token.
ANSWERS = ("sing", "hide", "rest", "dance", "feed")

WORDINGS = (
    "{name} is a {colour} {kind} from the {home}. At {hour} it will",
    "At {hour} {name}, the {colour} {kind} of the {home}, will",
    "In the {home} lives {name}, a {colour} {kind}. At {hour} it will",
    "It is {hour}. What will the {colour} {kind} {name} do in the {home}? It will",
    "A {kind} of the {home}, {name} is {colour}. It is {hour} and it will",
)
SHIFTED_WORDINGS = (
    "It is {hour} in the {home}. A {colour} {kind}, {name}, will",
    "What will a {colour} {kind} of the {home} do at {hour}? {name} will",
    "The {kind} {name} of the {home} is {colour}. At {hour} it will",
)

BEGINNINGS = ("Bel", "Dor", "Fen", "Gal", "Kir", "Lum", "Mar", "Nol", "Pim", "Ros", "Tav", "Wil")
ENDINGS = ("bo", "da", "fi", "gu", "ko", "la", "mo", "ni", "pa", "ru", "so", "ti")
SHIFTED_BEGINNINGS = ("Cas", "Hov", "Jun", "Sel", "Ull", "Zeb")
SHIFTED_ENDINGS = ("ba", "do", "fu", "gi", "ka", "lo", "mu", "ne", "po", "ri", "sa", "tu")
NAMES = [first + last for first in BEGINNINGS for last in ENDINGS]
SHIFTED_NAMES = [first + last for first in SHIFTED_BEGINNINGS for last in SHIFTED_ENDINGS]

INVENTED: dict[str, tuple[str, ...]] = {  # words that occur in no other split
    "kind": ("wug", "dax", "blicket", "zorn", "tulver", "fep"),
    "colour": ("grue", "bleen", "plim", "vostic", "jarn", "murl"),
    "home": ("quim", "drosk", "fendle", "yarrop", "vaun", "lirth"),
    "hour": ("brill", "tarno", "snodge", "wextide"),
}


class Laws:
    """The laws of a world: how a creature's traits determine what it will do.

    Every value of every attribute has a hidden trait. An answer's score is the sum of an additive
    part over the attributes and of products of the traits of two attributes, so that the log-odds
    of two answers depend on combinations: dusk has a different effect on a fox than on a moth.
    """

    def __init__(self, seed: int, answers: int) -> None:
        """Draw the laws from a seed, for a number of answers."""
        random = Random(f"known-world laws {seed}")
        self.traits = {name: _traits(values, random) for name, values in ATTRIBUTES.items()}
        homes = random.sample(ATTRIBUTES["home"], len(ATTRIBUTES["kind"]))
        self.withheld = dict(zip(ATTRIBUTES["kind"], homes, strict=True))
        """kind -> a home where creatures of that kind live only in the shifted split"""
        each_main = math.sqrt((1 - INTERACTION) / len(ATTRIBUTES))
        each_pair = math.sqrt(INTERACTION / len(PAIRS))
        self.additive = {
            name: {value: _direction(answers, each_main, random) for value in values}
            for name, values in ATTRIBUTES.items()
        }
        """attribute -> value -> a score for each answer"""
        self.directions = {pair: _direction(answers, each_pair, random) for pair in PAIRS}
        """pair of attributes -> each answer's weight of the product of their traits"""

    def scores(self, profile: Mapping[str, str]) -> list[float]:
        """Return each answer's score for attribute -> value; its variance is about 1."""
        parts = [self.additive[name][value] for name, value in profile.items()]
        for (first, second), direction in self.directions.items():
            product = self.traits[first][profile[first]] * self.traits[second][profile[second]]
            parts.append([product * weight for weight in direction])
        return [sum(column) for column in zip(*parts, strict=True)]

    def truth(self, profile: Mapping[str, str], noise: float) -> tuple[float, ...]:
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


class KnownWorldOptions(PluginOptions):
    """The size and the difficulty of the world."""

    # There are about 520,000 prompts for train and test together, and 31,000 for shifted.
    train: int = Field(2800, ge=1, le=100_000, description="questions in the split `train`")
    test: int = Field(2000, ge=1, le=100_000, description="questions in the split `test`")
    shifted: int = Field(
        2000,
        ge=1,
        le=10_000,
        description="questions in the split `shifted`: other names and wordings, and combinations "
        "of kind and home that occur in no other split",
    )
    unanswerable: int = Field(
        500,
        ge=1,
        le=100_000,
        description="questions in the split `unanswerable`: about creatures, colours, places and "
        "hours that do not exist, so that no answer is right",
    )
    choices: int = Field(5, ge=3, le=len(ANSWERS), description="number of candidate answers")
    noise: float = Field(
        0.45,
        gt=0,
        le=100,
        description="how uncertain the true answers are: near 0 one answer is certain, far above 1 "
        "all are equally likely",
    )
    seed: int = Field(0, description="draws the world's laws, its questions and their answers")


class KnownWorld(Task[KnownWorldOptions]):
    """Questions in English about an invented world, with their true answer distribution."""

    Options = KnownWorldOptions

    splits = ("train", "test", "shifted", "unanswerable")

    def sources(self, split: str) -> Sequence[Path]:
        return ()  # the options alone determine the questions

    def usage(self) -> TaskUsage:
        return prompt_usage(self._candidates)

    @property
    def _candidates(self) -> tuple[str, ...]:
        return tuple(f" {answer}" for answer in ANSWERS[: self.options.choices])

    def load(self, split: str) -> Split:
        """Return the questions of a split; a larger split begins with those of a smaller one."""
        # Training questions avoid the test questions, so that `test` does not depend on the size
        # of `train`. Shifted questions cannot coincide: their combinations are withheld.
        others = self.load("test").samples if split == "train" else ()
        questions = self._questions(split, {sample.prompt for sample in others})
        return Split(islice(questions, getattr(self.options, split)))

    def _questions(self, split: str, taken: set[str]) -> Iterator[Sample]:
        """Yield endless questions whose prompts are distinct and not in `taken`."""
        options = self.options
        random = Random(f"known-world {split} {options.seed}")
        laws = Laws(options.seed, options.choices)
        candidates = self._candidates
        number = 0
        while True:
            answer, truth = None, None
            if split == "unanswerable":
                words = {name: random.choice(values) for name, values in INVENTED.items()}
                prompt = random.choice(WORDINGS).format(name=random.choice(NAMES), **words)
            else:
                prompt, profile = _prompt(laws, split == "shifted", random)
                truth = laws.truth(profile, options.noise)
                answer = random.choices(range(len(truth)), weights=truth)[0]
            if prompt not in taken:
                taken.add(prompt)
                number += 1
                yield Sample.question(
                    prompt, candidates, answer, id=f"{split}-{number}", truth=truth
                )


def _prompt(laws: Laws, shifted: bool, random: Random) -> tuple[str, dict[str, str]]:
    """Draw a creature and its situation; return the question and the profile."""
    profile = {name: random.choice(values) for name, values in ATTRIBUTES.items()}
    withheld = laws.withheld[profile["kind"]]
    homes = [home for home in ATTRIBUTES["home"] if (home == withheld) == shifted]
    profile["home"] = random.choice(homes)
    name = random.choice(SHIFTED_NAMES if shifted else NAMES)
    wording = random.choice(SHIFTED_WORDINGS if shifted else WORDINGS)
    return wording.format(name=name, **profile), profile
