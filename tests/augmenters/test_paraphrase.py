"""Copies that the teacher writes: what it is asked, and what of its text counts."""

from __future__ import annotations

import pytest

from firstcli import plugins
from firstcli.api import Sample, TaskUsage
from firstcli.augmenters.paraphrase import Paraphrase
from firstcli.data.copies import WrittenText, copies_of, requests_of
from firstcli.plugins import calls
from firstcli.tasks.fields import training_prompt
from firstcli.testing import check_augmenter, simulated_prompts
from firstcli.testing.augmenters import LETTERED_USAGE

AUGMENTER = Paraphrase(Paraphrase.Options(copies=2, request="Again: {text} ->"))


def test_it_conforms() -> None:
    check_augmenter(Paraphrase)


def test_the_longest_text_is_asked_for() -> None:
    prompts = simulated_prompts()
    assert AUGMENTER.request(prompts["lettered choices"][0], 0) == (
        "Again: Where does a fox live? ->"
    )
    assert AUGMENTER.request(prompts["instructions"][0], 1) == "Again: Describe a fox. ->"
    assert AUGMENTER.request(prompts["questions"][0], 0) is None  # the text ends the prompt


def test_only_the_text_is_replaced() -> None:
    prompt = simulated_prompts()["lettered choices"][0]
    copy = AUGMENTER.written(prompt, 0, " A fox: where?\nAnd more", finished=False)
    assert copy is not None
    assert copy.prompt == prompt.sample.prompt.replace("Where does a fox live?", "A fox: where?")
    assert (copy.candidates, copy.answer) == (prompt.sample.candidates, prompt.sample.answer)


@pytest.mark.parametrize(("text", "finished"), [("", True), ("  \n", True), ("cut off", False)])
def test_texts_that_are_empty_or_cut_off_give_no_copy(text: str, finished: bool) -> None:
    prompt = simulated_prompts()["lettered choices"][0]
    assert AUGMENTER.written(prompt, 0, text, finished=finished) is None


def test_copies_are_numbered_over_all_augmenters() -> None:
    prompts = simulated_prompts()["lettered choices"]
    samples = [prompt.sample for prompt in prompts]
    paraphrase = calls.augmenter("paraphrase", AUGMENTER.options)
    perturb = calls.augmenter("perturb", calls.validated(_plugin("perturb"), {"levels": [0.3]}))
    requests = {
        str(each.id) for each in requests_of(samples, LETTERED_USAGE, [perturb, paraphrase])
    }
    assert requests == {f"copy{n}/l{i}" for n in (2, 3) for i in range(len(samples))}

    def written(request: Sample) -> WrittenText | None:
        return WrittenText(f"words of {request.id}", True) if "copy3" in str(request.id) else None

    made = list(copies_of(samples, LETTERED_USAGE, [perturb, paraphrase], 1, written))
    assert [copy.id for copy in made[:2]] == ["copy1/l0", "copy3/l0"]
    assert len(made) == 2 * len(samples)
    assert training_prompt(made[1], LETTERED_USAGE).texts == ["words of copy3/l0"]


def _plugin(name: str) -> plugins.Plugin:
    return plugins.find("augmenters", name)


def test_a_prompt_of_one_text_has_no_request() -> None:
    samples = [Sample("one two", "", "a")]
    usage = TaskUsage.model_validate(
        {"kind": "instruction", "prompt": "{q}", "inputs": {"q": {"columns": ["q"]}}}
    )
    augmenter = calls.augmenter("paraphrase", AUGMENTER.options)
    assert list(requests_of(samples, usage, [augmenter])) == []
