"""Questions about an invented world that take several steps, each of which can be checked.

    Start with Belbo. Take its friend. Take its age. Add 5. Multiply by 3. What is the result?
    Explanation:| The friend of Belbo is Dorda.
    The age of Dorda is 7.
    7 plus 5 is 2.
    2 times 3 is 6.
    The answer is 6.

Creatures have friends, neighbours and an age, every number is the house of some creature, and
numbers go round after 9. The prompt contains the program but none of the facts, so a model has to
learn them. Every question has one chain of facts that answers it, and a fact has one value, so each
step of an explanation is right or wrong, and the shortest repair of an explanation is known.

Some facts are needed far more often than others (`skew`), so that a small training set leaves gaps.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from random import Random
from typing import TypeVar

from pydantic import Field, model_validator

from firstcli.api import ExplanationForm, PluginOptions, Sample, Split, Task, TaskUsage, render
from firstcli.api.usage import InputField
from firstcli.tasks.known_world import BEGINNINGS, ENDINGS

NUMBERS = 10
"""Numbers go from 0 to 9 and then round."""
RELATIONS = ("friend", "neighbour", "teacher", "rival")
"""Each creature has one of each, which is another creature."""
AGE, OWNER = "age", "owner"
_OPERATIONS = (("Add {}", "plus", 1), ("Subtract {}", "minus", -1), ("Multiply by {}", "times", 0))
_SIGNS = {word: sign for _, word, sign in _OPERATIONS}
_FACTOR_FROM = 2  # nothing is multiplied by 0 or 1
_OPERAND_TO = 5

SHIFTED = "shifted"
SHARES = {"test": 0.2, "train": 0.3, "pool": 0.5}
"""The share of all prompts that belongs to each of the other splits."""

FORM = ExplanationForm()
_LARGEST_SHARE = 0.3
"""Of the possible questions of a split; more take long to draw, as most are drawn many times."""

PROMPT = "Start with {start}. {program} What is the result?\nExplanation:"


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a question's program."""

    name: str
    """A relation, `age`, `owner`, or the word of an arithmetic operation."""
    operand: int = 0

    @property
    def instruction(self) -> str:
        """What the prompt says, without the full stop."""
        for text, word, _ in _OPERATIONS:
            if word == self.name:
                return text.format(self.operand)
        return "Take the owner of that house" if self.name == OWNER else f"Take its {self.name}"

    def fact(self, before: str, after: str) -> str:
        """Return the step that takes one value to the next."""
        if self.name in _SIGNS:
            return f"{before} {self.name} {self.operand} is {after}."
        if self.name == OWNER:
            return f"The owner of house {before} is {after}."
        return f"The {self.name} of {before} is {after}."


_T = TypeVar("_T")

_OF_CREATURES = (*RELATIONS, AGE)
_OF_NUMBERS = (*_SIGNS, OWNER)


def _operands(name: str) -> Sequence[int]:
    """Return the numbers that an operation may have; 0 stands for none."""
    if name not in _SIGNS:
        return (0,)
    return range(1 if _SIGNS[name] else _FACTOR_FROM, _OPERAND_TO + 1)


_INSTRUCTIONS = {
    operation.instruction: operation
    for name in (*_OF_CREATURES, *_OF_NUMBERS)
    for operation in (Operation(name, operand) for operand in _operands(name))
}
"""All operations, by what the prompt says."""


def _programs(length: int) -> int:
    """Count the programs of a length that take a creature to a number."""
    arithmetic = sum(len(_operands(name)) for name in _SIGNS)
    creatures, numbers = 1, 0  # programs that end with each kind of value
    for _ in range(length - 1):
        creatures, numbers = creatures * len(RELATIONS) + numbers, creatures + numbers * arithmetic
    return creatures + numbers * arithmetic


class StepsWorld:
    """The facts of a world."""

    def __init__(self, seed: int, creatures: int) -> None:
        """Draw the facts from a seed, for a number of creatures."""
        random = Random(f"known-steps world {seed}")
        names = [first + last for first in BEGINNINGS for last in ENDINGS]
        self.creatures = tuple(random.sample(names, creatures))
        self._relations = {name: self._cycle(random) for name in RELATIONS}
        ages = [str(number % NUMBERS) for number in range(creatures)]
        random.shuffle(ages)
        self._ages = dict(zip(self.creatures, ages, strict=True))
        owners = random.sample(self.creatures, NUMBERS)
        self._owners = {str(number): name for number, name in enumerate(owners)}

    def _cycle(self, random: Random) -> dict[str, str]:
        """Return a relation in which nobody is related to itself: one cycle through all."""
        order = random.sample(self.creatures, len(self.creatures))
        return dict(zip(order, [*order[1:], order[0]], strict=True))

    def after(self, value: str, operation: Operation) -> str:
        """Return the value that an operation makes of a creature or a number."""
        if operation.name in RELATIONS:
            return self._relations[operation.name][value]
        if operation.name == AGE:
            return self._ages[value]
        if operation.name == OWNER:
            return self._owners[value]
        sign, number = _SIGNS[operation.name], int(value)
        result = number + sign * operation.operand if sign else number * operation.operand
        return str(result % NUMBERS)

    def chain(self, start: str, program: Sequence[Operation]) -> tuple[tuple[str, ...], str]:
        """Return the steps that carry out a program, and the result."""
        steps, value = [], start
        for operation in program:
            before, value = value, self.after(value, operation)
            steps.append(operation.fact(before, value))
        return tuple(steps), value


class KnownStepsOptions(PluginOptions):
    """The size and the difficulty of the world."""

    train: int = Field(2000, ge=1, le=100_000, description="questions in the split `train`")
    pool: int = Field(
        4000,
        ge=1,
        le=200_000,
        description="questions in the split `pool`, of which some are bought",
    )
    test: int = Field(1000, ge=1, le=100_000, description="questions in the split `test`")
    shifted: int = Field(
        1000,
        ge=1,
        le=100_000,
        description="questions in the split `shifted`, whose chains are longer",
    )
    creatures: int = Field(
        24, ge=NUMBERS, le=len(BEGINNINGS) * len(ENDINGS), description="number of creatures"
    )
    least_steps: int = Field(2, ge=2, le=8, description="steps of the shortest chains")
    most_steps: int = Field(
        4, ge=2, le=7, description="steps of the longest chains, except in `shifted`"
    )
    shifted_steps: int = Field(
        8,
        ge=3,
        le=8,
        description="steps of the longest chains in `shifted`, whose shortest have one more step "
        "than `most_steps`",
    )
    skew: float = Field(
        0.7,
        ge=0,
        le=1.5,
        description="how unequally often creatures and operations occur: the k-th is drawn in "
        "proportion to 1 / k^skew, and with 0 all equally often",
    )
    seed: int = Field(0, description="draws the world's facts and its questions")

    @model_validator(mode="after")
    def _lengths_ascend(self) -> KnownStepsOptions:
        lengths = (self.least_steps, self.most_steps, self.shifted_steps)
        if not lengths[0] <= lengths[1] < lengths[2]:
            raise ValueError(
                f"least_steps, most_steps and shifted_steps are {lengths}; expected the second to "
                "be at least the first, and the third to be larger than the second"
            )
        return self

    @model_validator(mode="after")
    def _has_enough_questions(self) -> KnownStepsOptions:
        for split, share in {**SHARES, SHIFTED: 1.0}.items():
            prompts = self.creatures * sum(map(_programs, self.lengths(split)))
            most = int(_LARGEST_SHARE * share * prompts)
            if (count := getattr(self, split)) > most:
                raise ValueError(
                    f"{split}: found {count}, expected at most {most:,} of the questions that "
                    f"{self.creatures} creatures and these numbers of steps allow; raise the "
                    "largest number of steps"
                )
        return self

    def lengths(self, split: str) -> range:
        """Return the numbers of steps that the chains of a split may have."""
        if split == SHIFTED:
            return range(self.most_steps + 1, self.shifted_steps + 1)
        return range(self.least_steps, self.most_steps + 1)


class KnownSteps(Task[KnownStepsOptions]):
    """Questions of several steps about an invented world, whose steps can be checked."""

    Options = KnownStepsOptions

    splits = ("train", "pool", "test", SHIFTED)

    def __init__(self, options: KnownStepsOptions) -> None:
        super().__init__(options)
        self.world = StepsWorld(options.seed, options.creatures)
        weights = (1 / rank**options.skew for rank in range(1, options.creatures + 1))
        self._cumulative = list(accumulate(weights))

    def sources(self, split: str) -> Sequence[Path]:
        return ()  # the options alone determine the questions

    def explanations(self) -> ExplanationForm:
        return FORM

    def usage(self) -> TaskUsage:
        inputs = {"prompt": InputField(columns=("prompt", "text"))}
        return TaskUsage(kind="instruction", prompt="{prompt}", inputs=inputs)

    def load(self, split: str) -> Split:
        """Return the questions of a split; a larger split begins with those of a smaller one.

        No prompt occurs twice, in one split or in two.
        """
        return Split(islice(self._questions(split), getattr(self.options, split)))

    def _questions(self, split: str) -> Iterator[Sample]:
        """Yield questions, endlessly until there are no more, whose prompts are distinct."""
        random = Random(f"known-steps {split} {self.options.seed}")
        lengths = self.options.lengths(split)
        taken: set[str] = set()
        while True:
            length = random.choice(lengths)
            start = self._drawn(self.world.creatures, random)
            program = self._program(length, random)
            prompt = _prompt(start, program)
            if prompt not in taken and split in (SHIFTED, _split_of(prompt)):
                taken.add(prompt)
                yield self._sample(prompt, start, program, f"{split}-{len(taken)}")

    def _program(self, length: int, random: Random) -> list[Operation]:
        """Draw operations that fit one another, from a creature to a number."""
        program: list[Operation] = []
        is_creature = True
        for remaining in range(length - 1, -1, -1):
            names = _OF_CREATURES if is_creature else _OF_NUMBERS
            if remaining == 0:
                names = (AGE,) if is_creature else tuple(_SIGNS)
            name = self._drawn(names, random)
            program.append(Operation(name, self._drawn(_operands(name), random)))
            is_creature = name in RELATIONS or name == OWNER
        return program

    def _drawn(self, values: Sequence[_T], random: Random) -> _T:
        return random.choices(values, cum_weights=self._cumulative[: len(values)])[0]

    def _sample(self, prompt: str, start: str, program: Sequence[Operation], id: str) -> Sample:
        steps, result = self.world.chain(start, program)
        candidates = tuple(render(steps, str(number), FORM) for number in range(NUMBERS))
        response = candidates[int(result)]
        return Sample(prompt, response, id, candidates, int(result), steps=steps)

    def true_steps(self, sample: Sample) -> tuple[str, ...]:
        """Return the chain that answers a question; only its prompt is read.

        Raises:
            ValueError: the prompt is not one of this task's.
        """
        return self.world.chain(*self._parsed(sample.prompt))[0]

    def true_answer(self, sample: Sample) -> str:
        """Return the right answer of a question; only its prompt is read.

        Raises:
            ValueError: the prompt is not one of this task's.
        """
        return self.world.chain(*self._parsed(sample.prompt))[1]

    def check_steps(self, sample: Sample, steps: Sequence[str]) -> tuple[bool, ...]:
        """Return which steps of an explanation are right, (S,).

        A step is right if it states a fact that the question needs, after the facts that precede it
        in the chain. Of all ways to match the steps with the chain, one that matches most of them
        counts. Upper and lower case, white space and the last full stop have no meaning.

        All steps can be right although the explanation is incomplete; see `repair`.

        Args:
            sample: the question; only its prompt is read.
            steps: the explanation.
        """
        right = {mine for mine, _ in _matched(steps, self.true_steps(sample))}
        return tuple(number in right for number in range(len(steps)))

    def repair(self, sample: Sample, steps: Sequence[str]) -> tuple[str, ...]:
        """Return the correct explanation that differs in the fewest steps from a given one.

        Right steps keep their wording; the others are replaced, left out or added.

        Args:
            sample: the question; only its prompt is read.
            steps: the explanation.
        """
        repaired = list(self.true_steps(sample))
        for mine, true in _matched(steps, repaired):
            repaired[true] = steps[mine]
        return tuple(repaired)

    def _parsed(self, prompt: str) -> tuple[str, list[Operation]]:
        """Return the start and the program of a prompt."""
        found = _PATTERN.fullmatch(prompt)
        sentences = found["program"].removesuffix(".").split(". ") if found else []
        program = [_INSTRUCTIONS[text] for text in sentences if text in _INSTRUCTIONS]
        if not found or found["start"] not in self.world.creatures or len(program) < len(sentences):
            raise ValueError(f"not a prompt of this world: {prompt!r}")
        return found["start"], program


_PATTERN = re.compile(
    re.escape(PROMPT)
    .replace(r"\{start\}", r"(?P<start>\w+)")
    .replace(r"\{program\}", "(?P<program>.+)")
)


def _prompt(start: str, program: Sequence[Operation]) -> str:
    text = " ".join(f"{operation.instruction}." for operation in program)
    return PROMPT.format(start=start, program=text)


def _split_of(prompt: str) -> str:
    """Return the split that a prompt belongs to, unless its chain is that of a shifted one."""
    digest = hashlib.sha256(prompt.encode()).digest()
    position = int.from_bytes(digest[:6], "big") / 2**48
    for split, share in SHARES.items():
        if position < share:
            return split
        position -= share
    return split  # rounding


def _plain(step: str) -> str:
    """Return a step without what has no meaning."""
    return " ".join(step.split()).removesuffix(".").rstrip().casefold()


def _matched(steps: Sequence[str], chain: Sequence[str]) -> list[tuple[int, int]]:
    """Return a longest common subsequence, as pairs of indices; earlier steps are preferred."""
    mine, true = [*map(_plain, steps)], [*map(_plain, chain)]
    # longest[i][j]: how many of mine[i:] and true[j:] can be matched
    longest = [[0] * (len(true) + 1) for _ in range(len(mine) + 1)]
    for i in range(len(mine) - 1, -1, -1):
        for j in range(len(true) - 1, -1, -1):
            equal = 1 + longest[i + 1][j + 1] if mine[i] == true[j] else 0
            longest[i][j] = max(longest[i + 1][j], longest[i][j + 1], equal)
    pairs: list[tuple[int, int]] = []
    i = j = 0
    while i < len(mine) and j < len(true):
        if mine[i] == true[j]:  # matching equal first elements is never worse
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif longest[i + 1][j] > longest[i][j + 1]:
            i += 1
        else:
            j += 1
    return pairs
