"""Questions about an invented world whose true answer distribution is known.

    Belmo is a grey fox from the marsh. At dusk it will| hide

The question contains the creature's profile, so a model has to learn the world's laws. The name
carries no information, and the answer is drawn from the true distribution, so a model that is
trained for too long memorises names and random answers and becomes over-confident.

In the split `unanswerable` the words of the profile do not exist in this world, so no answer is
correct, and the confidence of a well-calibrated model is no higher than 1 / `choices`:

    Belbo is a bleen wug from the quim. At snodge it will|
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random

from pydantic import Field

from firstcli.api import PluginOptions, Sample, Split, Task
from firstcli.tasks.world_laws import ATTRIBUTES, Laws

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
        "hours that do not exist, so that no answer is correct",
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

    @property
    def splits(self) -> tuple[str, ...]:
        """Two splits of the same world, a shifted one, and one of nonsense questions."""
        return ("train", "test", "shifted", "unanswerable")

    def sources(self, split: str) -> Sequence[Path]:
        return ()  # the options alone determine the questions

    def load(self, split: str) -> Split:
        """Return the questions of a split; a larger split begins with those of a smaller one."""
        size: int = getattr(self.options, split)
        if split == "unanswerable":
            return Split(islice(self._nonsense(), size))
        laws = Laws.drawn(self.options.seed, self.options.choices)
        # Training questions avoid the test questions, so that `test` does not depend on the size
        # of `train`. Shifted questions cannot coincide: their combinations are withheld.
        taken = (
            {sample.prompt for sample in self.load("test").samples} if split == "train" else set()
        )
        questions = self._questions(laws, split, taken)
        return Split(islice(questions, size))

    @property
    def _candidates(self) -> list[str]:
        return [f" {answer}" for answer in ANSWERS[: self.options.choices]]

    def _nonsense(self) -> Iterator[Sample]:
        """Yield endless distinct questions that have no correct answer."""
        random = Random(f"known-world unanswerable {self.options.seed}")
        taken: set[str] = set()
        while True:
            profile = {name: random.choice(words) for name, words in INVENTED.items()}
            prompt = random.choice(WORDINGS).format(name=random.choice(NAMES), **profile)
            if prompt not in taken:
                taken.add(prompt)
                yield Sample.question(
                    prompt, self._candidates, None, id=f"unanswerable-{len(taken)}"
                )

    def _questions(self, laws: Laws, split: str, taken: set[str]) -> Iterator[Sample]:
        """Yield endless questions whose prompts are distinct and not in `taken`."""
        random = Random(f"known-world {split} {self.options.seed}")
        number = 0
        while True:
            prompt, profile = _prompt(laws, split == "shifted", random)
            truth = laws.truth(profile, self.options.noise)
            answer = random.choices(range(len(truth)), weights=truth)[0]
            if prompt in taken:
                continue
            taken.add(prompt)
            number += 1
            yield Sample.question(
                prompt, self._candidates, answer, id=f"{split}-{number}", truth=truth
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
