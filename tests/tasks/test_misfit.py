"""Which other wordings suit a task: those with its names that end alike."""

from __future__ import annotations

import pytest

from firstcli.tasks.templates import misfit

OWN = "Q: {question}\n{choices}\nA: The answer is ("


@pytest.mark.parametrize(
    ("template", "own", "part"),
    [
        ("Pick: {question} {choices} Letter: (", OWN, ""),
        ("Pick: {question} {choices} Letter:", OWN, "after its last word comes '', and in"),
        ("Pick: {question} {choices} ({{", OWN, "after its last word comes ' ({', and in"),
        ("{choices} {question} The right letter is", "{question}\n{choices}\nAnswer:", ""),
        ("{question}", "{question} Answer:", ""),
        ("{question} Say: “", "{question} Answer:", "after its last word comes ' “'"),
        ("{question}\n", "{question}\n\n### Response:\n", ""),
        ("{question} ", "{question}", "it ends with white space, unlike"),
        ("{question}", "{question}\n", "it ends with no white space, unlike"),
        ("{question} Letter (", OWN, "it lacks {choices}"),
        ("{text} {prompt}", "", "unknown {text}"),
        ("{prompt} (", "", ""),
    ],
)
def test_a_wording_ends_as_the_tasks_template_does(template: str, own: str, part: str) -> None:
    problem = misfit(template, own)
    assert part in problem if part else problem == ""
