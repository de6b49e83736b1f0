"""The built-in annotators keep the contract; what they ask and return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from firstcli import plugins
from firstcli.annotators.explain import Explain, ExplainOptions
from firstcli.annotators.oracle import Oracle
from firstcli.annotators.revise import Revise, ReviseOptions
from firstcli.annotators.self_training import SelfTraining
from firstcli.api import (
    Annotator,
    Explained,
    PluginOptions,
    Sample,
    Split,
    Task,
    ToAnnotate,
    Unparsable,
    UserError,
)
from firstcli.plugins import annotators
from firstcli.testing import check_annotator, simulated_items

SAID = ToAnnotate(Sample("What is 2 + 3 + 4?", "", id="q"), ("2 + 3 = 6.", "6 + 4 = 10."), "10")


class Sums(Task[PluginOptions]):
    """A task whose right steps are the numbers from 1 on, as many as the question has words."""

    has_candidates = False
    splits = ("train",)

    def load(self, split: str) -> Split:
        return Split([])

    def repair(self, sample: Sample, steps: Sequence[str]) -> tuple[str, ...]:
        right = tuple(f"{number}." for number in range(1, len(sample.prompt.split()) + 1))
        kept = next((i for i, step in enumerate(steps) if step not in right[i : i + 1]), len(steps))
        return (*steps[:kept], *right[kept:])


def explained(item: ToAnnotate) -> str:
    return f"Step 1: It is so.\nAnswer: {(item.choices or ('4',))[0]}"


def revised(item: ToAnnotate) -> str:
    number = len(item.explanation) + 1
    answer = (item.choices or ("4",))[0]
    return f"First wrong step: {number}\nStep {number}: It is so.\nAnswer: {answer}"


def evolved(item: ToAnnotate) -> str:
    return f"Question: Is this new?\n{explained(item)}"


def answered(item: ToAnnotate) -> str:
    return f"Answer: {(item.choices or ('4',))[0]}"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("explain", explained),
        ("revise", revised),
        ("answer", answered),
        ("evolve", evolved),
        ("self", None),
        ("oracle", None),
        ("label", None),
    ],
)
def test_they_conform(name: str, text: Callable[[ToAnnotate], str] | None) -> None:
    task = Sums(PluginOptions()) if name == "oracle" else None
    check_annotator(plugins.load("annotators", name), task=task, text=text)


def test_all_are_registered() -> None:
    names = [plugin.name for plugin in plugins.registered("annotators")]
    assert {"answer", "evolve", "explain", "oracle", "revise", "self"} <= {*names}


def test_what_the_teacher_is_asked() -> None:
    prompt = Explain(ExplainOptions()).prompt(SAID)
    assert prompt.endswith("Question:\nWhat is 2 + 3 + 4?\n\n")
    assert "6" not in prompt
    prompt = Revise(ReviseOptions()).prompt(SAID)
    assert prompt.endswith(
        "Question:\nWhat is 2 + 3 + 4?\n\n"
        "The student's steps:\nStep 1: 2 + 3 = 6.\nStep 2: 6 + 4 = 10.\n\n"
        "The student's answer: 10\n\n"
    )
    nothing = Revise(ReviseOptions()).prompt(ToAnnotate(SAID.sample))
    assert "The student's steps:\n(none)\n\nThe student's answer: (none)\n" in nothing


def test_a_recipe_replaces_the_template() -> None:
    annotator = Explain(ExplainOptions(template="{{Q}} {question}\n", step="- {step}"))
    item = ToAnnotate(Sample("Is {x} a name?", "", id="q"))
    assert annotator.prompt(item) == "{Q} Is {x} a name?\n"
    found = annotator.parse(item, "- It is.\n-It has a letter.\nAnswer: yes")
    assert found == Explained(("It is.", "It has a letter."), "yes")


@pytest.mark.parametrize(
    ("cls", "options", "problem"),
    [
        (ExplainOptions, {"template": "Explain!"}, "expected {question} in it"),
        (
            ExplainOptions,
            {"template": "{question} {steps}"},
            "unknown {steps}, expected {question}",
        ),
        (ReviseOptions, {"template": "{question}"}, "expected {steps} in it"),
        (ExplainOptions, {"step": "Step {number}"}, "expected {step} in it"),
        (ExplainOptions, {"step": "{step} {step}"}, "each once at most"),
        (ExplainOptions, {"answer": "Answer: {step}"}, "found {step}, expected {answer}"),
        (ExplainOptions, {"answer": "So:\n{answer}"}, "expected one line"),
        (ReviseOptions, {"flaw": "Wrong"}, "expected {number} in it"),
    ],
)
def test_bad_options(cls: type[PluginOptions], options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError) as caught:
        cls.model_validate(options)
    assert problem in str(caught.value)


def test_the_oracle_repairs() -> None:
    oracle = Oracle(PluginOptions())
    oracle.prepare(Sums(PluginOptions()))
    sample = Sample("one two three", "3", id="q")

    def repaired(*steps: str) -> Explained:
        return oracle.annotate(ToAnnotate(sample, steps, "?", right_answer="3"))

    right = ("1.", "2.", "3.")
    assert repaired(*right) == Explained(right, "3", None)
    assert repaired("1.", "7.", "8.") == Explained(right, "3", 1)
    assert repaired("1.") == Explained(right, "3", 1)
    assert repaired() == Explained(right, "3", 0)
    assert repaired(*right, "4.") == Explained(right, "3", 3)


def test_the_oracle_needs_a_task_that_knows_steps() -> None:
    oracle = annotators.annotator("oracle", PluginOptions())
    known_world = plugins.load("tasks", "known-world")
    with pytest.raises(UserError, match="annotator 'oracle': the task of the pool cannot correct"):
        oracle.prepare(known_world(known_world.Options()))


def test_a_student_teaches_itself() -> None:
    student = SelfTraining(PluginOptions())
    assert student.annotate(SAID) == Explained(SAID.explanation, "10")
    with pytest.raises(Unparsable, match="the student's text has no answer"):
        student.annotate(ToAnnotate(SAID.sample, ("It is 10.",), " "))


class Lazy(Annotator[PluginOptions]):
    """Returns whatever it is given."""

    generates = True
    found: Any = None

    def prompt(self, item: ToAnnotate) -> str:
        return item.sample.prompt

    def parse(self, item: ToAnnotate, text: str) -> Explained:
        found: Explained = self.found
        return found


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        ("text", "returned a str, expected a firstcli.api.Explained"),
        (Explained(["a"], "b"), "returned steps that are not a tuple of texts"),  # type: ignore[arg-type]
        (Explained(("a", " "), "b"), "returned an empty step"),
        (Explained(("a",), ""), "returned the answer '', expected text"),
        (Explained(("a",), "b", 0), "although the annotator does not read the explanation"),
        (Explained(("a",), "b", None, " "), "returned the question ' ', expected text or None"),
    ],
)
def test_a_run_refuses_a_wrong_result(found: object, problem: str) -> None:
    plugin = plugins.Plugin("annotators", "mine", "mine:Mine", "first-mine", "1.2")
    lazy = Lazy(PluginOptions())
    lazy.found = found
    with pytest.raises(UserError) as caught:
        annotators.CheckedAnnotator(plugin, lazy).parse(SAID, "text")
    assert str(caught.value).startswith("annotator 'mine' from first-mine 1.2: `parse` returned")
    assert problem in str(caught.value)
    assert str(caught.value).endswith("(sample 'q'); correct the plugin")


def test_simulated_items_are_of_all_kinds() -> None:
    items = simulated_items()
    assert {bool(item.sample.candidates) for item in items} == {True, False}
    assert {bool(item.explanation) for item in items} == {True, False}


def test_the_oracle_repairs_what_known_steps_can_check() -> None:
    from firstcli.data.annotations import to_annotate, with_label
    from firstcli.tasks.known_steps import FORM, KnownSteps, KnownStepsOptions

    task = KnownSteps(KnownStepsOptions(train=20, pool=20, test=20, shifted=20))
    oracle = annotators.annotator("oracle", PluginOptions())
    oracle.prepare(task)
    samples = [sample for sample in task.load("pool").samples if len(sample.steps) > 1]
    said = []
    for number, sample in enumerate(samples):
        flaw = number % len(sample.steps)
        wrong = (*sample.steps[:flaw], "The owner of 3 is nobody.", *sample.steps[flaw + 1 :])
        item = to_annotate(replace(sample, id=str(number)), FORM, wrong, "Nobody")
        item = with_label(item, replace(sample, id=str(number)), FORM)
        said.append(item)
        found = oracle.annotate(item)
        assert found == Explained(sample.steps, task.true_answer(sample), flaw)
        right = oracle.annotate(replace(item, explanation=sample.steps))
        assert right == Explained(sample.steps, task.true_answer(sample), None)
    check_annotator(Oracle, task=task, items=said)
