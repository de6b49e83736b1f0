"""Check the contract of an augmenter on simulated samples."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from firstcli.api import (
    JSON,
    Augmenter,
    ChoiceForm,
    InputField,
    PluginOptions,
    Sample,
    TaskUsage,
    TrainingPrompt,
)
from firstcli.plugins.samples import copy_problem
from firstcli.tasks.fields import training_prompt
from firstcli.testing.requirements import require

_ANIMALS = ("fox", "hare", "toad", "crane", "moth", "goat")
_PLACES = ("marsh", "hills", "cave")
_WRITTEN = ("", "  \n", " Other words\nand a second line", "Other words {text} (A) \u65e5\u672c")
"""What a teacher may write for a copy: nothing, several lines, braces and letters of choices."""
LETTERED_USAGE = TaskUsage(
    kind="multiple-choice",
    prompt="Q: {question}\nAnswer Choices:\n{choices}\nA: The answer is (",
    inputs={"question": InputField(columns=("question",))},
    choices=ChoiceForm(columns=("choices",), line="({letter}) {text}", response="{answer})."),
)
INSTRUCTION_USAGE = TaskUsage(
    kind="instruction",
    prompt="### Instruction:\n{instruction}\n\n### Response:\n",
    inputs={"instruction": InputField(columns=("instruction",))},
)


def check_augmenter(
    cls: type[Augmenter[Any]], options: PluginOptions | Mapping[str, JSON] | None = None
) -> None:
    """Check the contract of an augmenter.

    Args:
        cls: the plugin's class.
        options: its options, as in a recipe; default: the plugin's defaults.

    Raises:
        AssertionError: the class breaks the contract.
    """
    for prompts in simulated_prompts().values():
        check_augmenter_on(cls, options, prompts)


def check_augmenter_on(
    cls: type[Augmenter[Any]],
    options: PluginOptions | Mapping[str, JSON] | None,
    prompts: Sequence[TrainingPrompt],
) -> None:
    """Check the contract of an augmenter that suits certain prompts only.

    Args:
        cls: the plugin's class.
        options: its options, as in a recipe.
        prompts: the prompts, such as some of `simulated_prompts`.

    Raises:
        AssertionError: the class breaks the contract.
    """
    name = cls.__name__
    require(issubclass(cls, Augmenter), f"{name} is not a firstcli.api.Augmenter")
    settings = cls.Options.model_validate(dict(options or {}))
    count = cls(settings).copies
    problem = f"{name}.copies is {count!r}, expected a whole number above 0"
    require(type(count) is int and count > 0, problem)
    _check_on(cls, settings, prompts)


def simulated_prompts() -> dict[str, list[TrainingPrompt]]:
    """Return prompts of four kinds: questions, lettered choices, instructions, and single words."""
    questions, lettered, instructions, words = [], [], [], []
    for number, animal in enumerate(_ANIMALS):
        place = _PLACES[number % len(_PLACES)]
        text = f"A {animal} lives in the {place}.  It is often\nasleep there, and it will"
        candidates = [" sing", " hide", " rest"]
        truth = (0.5, 0.3, 0.2)
        questions.append(
            Sample.question(text, candidates, number % 3, id=f"q{number}", truth=truth)
        )
        lines = "\n".join(f"({letter}) the {at}" for letter, at in zip("ABC", _PLACES, strict=True))
        prompt = f"Q: Where does a {animal} live?\nAnswer Choices:\n{lines}\nA: The answer is ("
        responses = ["A).", "B).", "C)."]
        lettered.append(Sample.question(prompt, responses, number % 3, id=f"l{number}", group="a"))
        text = f"### Instruction:\nDescribe a {animal}.\n\n### Response:\n"
        instructions.append(Sample(text, f"It lives in the {place}.", id=f"i{number}"))
        words.append(Sample.question(animal, [" yes", " no"], number % 2, id=f"w{number}"))
    return {
        "questions": [training_prompt(sample, None) for sample in questions],
        "lettered choices": [training_prompt(sample, LETTERED_USAGE) for sample in lettered],
        "instructions": [training_prompt(sample, INSTRUCTION_USAGE) for sample in instructions],
        "single words": [training_prompt(sample, None) for sample in words],
    }


def _check_on(
    cls: type[Augmenter[Any]], settings: PluginOptions, prompts: Sequence[TrainingPrompt]
) -> None:
    state = random.getstate()
    try:
        random.seed(0)
        copies = _copies(cls, settings, prompts, prompts)
        random.seed(1)
        again = _copies(cls, settings, prompts, prompts)
    finally:
        random.setstate(state)
    name = cls.__name__
    method = "copy" if cls(settings).writing is None else "written"
    require(copies == again, f"{name}.{method} gives different copies of the same sample")
    backwards = _copies(cls, settings, prompts, prompts[::-1])
    problem = f"{name}.{method} depends on the copies that were made before"
    require(copies == backwards, problem)
    reordered = _copies(cls, settings, prompts[::-1], prompts)
    require(
        copies == reordered, f"{name}: the copies depend on the order in which `read` gets prompts"
    )


def _copies(
    cls: type[Augmenter[Any]],
    settings: PluginOptions,
    read: Sequence[TrainingPrompt],
    prompts: Sequence[TrainingPrompt],
) -> dict[str, Sample | None]:
    """Make all copies with a new augmenter.

    Args:
        cls: the plugin's class.
        settings: its options.
        read: the prompts in the order in which the augmenter reads them.
        prompts: the prompts in the order in which copies are made.
    """
    augmenter = cls(settings)
    augmenter.read(iter(read))
    copies: dict[str, Sample | None] = {}
    for prompt in prompts:
        for number in range(augmenter.copies):
            name = f"{prompt.sample.id} {number}"
            if augmenter.writing is None:
                copy = augmenter.copy(prompt, number, Random(name))
                copies[name] = _checked(copy, prompt, f"{cls.__name__}.copy")
            else:
                copies |= _written(augmenter, prompt, number)
    return copies


def _written(
    augmenter: Augmenter[Any], prompt: TrainingPrompt, number: int
) -> dict[str, Sample | None]:
    """Return a copy for each of a few texts that a teacher may write; none without a request."""
    name = type(augmenter).__name__
    request = augmenter.request(prompt, number)
    if request is None:
        return {}
    is_text = isinstance(request, str) and bool(request.strip())
    require(is_text, f"{name}.request returned {request!r}, expected text or None")
    copies: dict[str, Sample | None] = {f"{prompt.sample.id} {number} asked {request}": None}
    for text in _WRITTEN:
        for finished in (True, False):
            copy = augmenter.written(prompt, number, text, finished=finished)
            key = f"{prompt.sample.id} {number} {finished} {text}"
            copies[key] = _checked(copy, prompt, f"{name}.written")
    return copies


def _checked(copy: Sample | None, prompt: TrainingPrompt, where: str) -> Sample | None:
    sample = prompt.sample
    problem = None if copy is None else copy_problem(copy, sample, by_letter=prompt.by_letter)
    require(problem is None, f"{where}: the copy of sample '{sample.id}' {problem}")
    return copy
