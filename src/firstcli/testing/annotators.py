"""Check the contract of an annotator on simulated questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from firstcli.api import (
    JSON,
    Annotator,
    Explained,
    PluginOptions,
    Sample,
    Task,
    ToAnnotate,
    Unparsable,
    UserError,
    WritingSettings,
)
from firstcli.plugins.annotators import annotation_problem
from firstcli.testing.requirements import require

_ODD_TEXTS = (
    "",
    " \n\t ",
    "I do not know.",
    "Answer:",
    "Answer: yes",
    "Step 1: <the first step>\nStep 2: and so on\nAnswer: <the answer alone>",
    "Step 1: One.\nStep 3: Three.\nAnswer: 4",
    "Step 2: Two.\nAnswer: 4\nStep 3: Three.",
    "First wrong step: none\nAnswer: 4",
    "First wrong step: 99999999999999999999\nStep 1: One.\nAnswer: 4",
    "{question} {0} %s \\1 \x00 \u2028 \ud800 \N{GRINNING FACE}",
    "\n".join(f"Step {number}: {number}" for number in range(1, 300)),
)


def check_annotator(
    cls: type[Annotator[Any]],
    options: PluginOptions | Mapping[str, JSON] | None = None,
    *,
    task: Task[Any] | None = None,
    items: Sequence[ToAnnotate] | None = None,
    text: Callable[[ToAnnotate], str] | None = None,
) -> None:
    """Check the contract of an annotator.

    Args:
        cls: the plugin's class.
        options: its options, as in a recipe; default: the plugin's defaults.
        task: the task of the questions, for an annotator with `prepare`.
        items: the questions and what the student says; default: `simulated_items`.
        text: returns what a teacher should write about a question, which must then be parsable.

    Raises:
        AssertionError: the class breaks the contract.
        UserError: the annotator needs a task, or not this one.
    """
    name = cls.__name__
    require(issubclass(cls, Annotator), f"{name} is not a firstcli.api.Annotator")
    settings = cls.Options.model_validate(dict(options or {}))

    def built() -> Annotator[Any]:
        annotator = cls(settings)
        if cls.prepare is not Annotator.prepare:
            if task is None:
                raise UserError(f"{name} has `prepare`; give `task`")
            annotator.prepare(task)
        return annotator

    given = simulated_items() if items is None else items
    labelled = [item for item in given if item.right_answer is not None]
    require(labelled, "no item has a label")
    if cls.generates:
        _check_prompts(built, given)
        _check_parsing(built, given, text)
    elif not cls.scores_candidates:
        _check_annotating(built, labelled if cls.buys_label else list(map(_unlabelled, given)))


def simulated_items() -> list[ToAnnotate]:
    """Return questions with and without candidates, and good, wrong and empty explanations."""
    items = []
    said = (
        (("There are 6 eggs.", "2 break, so 4 are left."), "4"),
        (("There are 9 eggs.", "3 break."), "6"),
        ((), ""),
    )
    for n in range(2, 8):
        text = f"A box has {n} rows of {n + 1} eggs, and {n} break. How many are left?"
        sample = Sample(text, f" The answer is {n * n}.", id=f"q{n}")
        steps, answer = said[n % len(said)]
        items.append(ToAnnotate(sample, steps, answer, right_answer=str(n * n)))
    choices = ("fox", "crane", "moth")
    candidates = [f" The answer is {choice}." for choice in choices]
    for n in range(3):
        sample = Sample.question(f"Which of these {n} is a bird?", candidates, 1, id=f"c{n}")
        items.append(ToAnnotate(sample, ("It has feathers.",), choices[n], choices, "crane"))
    return items


def _unlabelled(item: ToAnnotate) -> ToAnnotate:
    sample = replace(item.sample, response="", answer=None)
    return replace(item, sample=sample, right_answer=None)


def _check_prompts(built: Callable[[], Annotator[Any]], items: Sequence[ToAnnotate]) -> None:
    annotator = built()
    name, cls = type(annotator).__name__, type(annotator)
    require(isinstance(annotator.writing, WritingSettings), f"{name}.writing is no WritingSettings")
    prompts = _prompts(annotator, items)
    require(prompts == _prompts(built(), items[::-1]), f"{name}.prompt is not deterministic")
    for item in items:
        prompt, where = prompts[str(item.sample.id)], f"{name}.prompt of '{item.sample.id}'"
        require(isinstance(prompt, str) and prompt.strip(), f"{where} is {prompt!r}, expected text")
        require(item.sample.prompt in prompt, f"{where} does not contain the question")
    if not cls.buys_label:
        require(
            prompts == _prompts(annotator, map(_unlabelled, items)),
            f"{name}.prompt depends on the label, but {name} does not declare `buys_label`",
        )
    if not cls.reads_explanation:
        without = [replace(item, explanation=(), answer="") for item in items]
        require(
            prompts == _prompts(annotator, without),
            f"{name}.prompt depends on the student's text, but {name} does not declare "
            "`reads_explanation`",
        )


def _prompts(annotator: Annotator[Any], items: Iterable[ToAnnotate]) -> dict[str, str]:
    return {str(item.sample.id): annotator.prompt(item) for item in items}


def _check_parsing(
    built: Callable[[], Annotator[Any]],
    items: Sequence[ToAnnotate],
    text: Callable[[ToAnnotate], str] | None,
) -> None:
    annotator = built()
    name = type(annotator).__name__
    for item in items:
        texts = [*_ODD_TEXTS, annotator.prompt(item), "\n".join((*item.explanation, item.answer))]
        good = [] if text is None else [text(item)]
        for each in (*texts, *good):
            found, again = _parsed(annotator, item, each), _parsed(built(), item, each)
            require(found == again, f"{name}.parse gives different results for the text {each!r}")
            require(
                found is not None or each not in good,
                f"{name}.parse cannot read the text {each!r}, which it should",
            )


def _problem(annotator: Annotator[Any], found: object, item: ToAnnotate) -> str | None:
    return annotation_problem(
        *(found, item),
        revises=annotator.reads_explanation,
        writes_questions=annotator.writes_questions,
    )


def _parsed(annotator: Annotator[Any], item: ToAnnotate, text: str) -> Explained | None:
    name = type(annotator).__name__
    try:
        found = annotator.parse(item, text)
    except Unparsable:
        return None
    except Exception as error:
        raise AssertionError(
            f"{name}.parse raised {type(error).__name__} for the text {text!r}, expected Unparsable"
        ) from error
    problem = _problem(annotator, found, item)
    require(problem is None, f"{name}.parse {problem}, for the text {text!r}")
    return found


def _check_annotating(built: Callable[[], Annotator[Any]], items: Sequence[ToAnnotate]) -> None:
    found, again = _annotated(built(), items), _annotated(built(), items[::-1])
    name = type(built()).__name__
    require(found == again, f"{name}.annotate gives different results for the same question")
    require(any(found.values()), f"{name}.annotate annotates none of the questions")


def _annotated(
    annotator: Annotator[Any], items: Sequence[ToAnnotate]
) -> dict[str, Explained | None]:
    name, results = type(annotator).__name__, dict[str, Explained | None]()
    for item in items:
        try:
            found = annotator.annotate(item)
        except Unparsable:
            results[str(item.sample.id)] = None
            continue
        problem = _problem(annotator, found, item)
        require(problem is None, f"{name}.annotate {problem}, for sample '{item.sample.id}'")
        results[str(item.sample.id)] = found
    return results
