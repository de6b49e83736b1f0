"""The data of the loop: questions without labels, the samples known from the start, the guard."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from firstcli.active.data import QuestionPool, UnboughtLabelError, _drawn, _question
from firstcli.active.purchases import Buyer
from firstcli.active.reading import Said
from firstcli.api import Sample
from firstcli.data import splits
from firstcli.recipe.active import Active
from firstcli.tasks.annotated import from_row, to_row

SAMPLES = [
    Sample.question(f"Is {i} even?", (" yes", " no"), i % 2, id=f"q{i}", group="sums")
    for i in range(6)
]


def test_a_question_says_nothing_of_its_label() -> None:
    one = SAMPLES[0]
    other = replace(one, answer=1, response=" no", truth=(0.1, 0.9))
    assert _question(one, None) == _question(other, None)
    assert _question(one, None).response == "" and _question(one, None).answer is None


def test_an_id_that_is_made_of_the_label_is_made_anew() -> None:
    texts = [Sample("Say yes", response) for response in (" yes", " no")]
    ids = [next(iter(splits.with_ids([text], "here"))) for text in texts]
    assert ids[0].id != ids[1].id
    assert _question(ids[0], None) == _question(ids[1], None)


def test_a_label_is_read_only_after_it_was_bought() -> None:
    pool = QuestionPool([_question(sample, None) for sample in SAMPLES], SAMPLES)
    with pytest.raises(UnboughtLabelError, match="q3"):
        pool.label("q3")
    pool.buy(["q3"])
    assert pool.label("q3") == SAMPLES[3]
    with pytest.raises(UnboughtLabelError):
        pool.label("q2")


def test_labels_that_are_bought_to_be_checked_are_seen_by_nobody() -> None:
    active = {"seed_samples": 1, "budget": {"samples": 2}, "rounds": 1}
    answering: Any = SimpleNamespace(buys_label=False)
    for check_labels in (False, True):
        pool = QuestionPool([_question(sample, None) for sample in SAMPLES], SAMPLES)
        section = Active.model_validate({**active, "check_labels": check_labels})
        nothing = cast(Any, None)
        buyer = Buyer(nothing, section, nothing, pool, nothing, 0)
        vars(buyer).update(annotator=answering, form=None)  # as if they were built
        item = buyer._item("q3", Said("q3"))
        assert item.sample == pool.question("q3") and item.sample.answer is None
        assert item.right_answer == ("no" if check_labels else None)
        assert buyer.knows_labels == check_labels


def test_drawn_samples_do_not_depend_on_the_order() -> None:
    ids = [f"q{i}" for i in range(50)]
    mixed = np.random.default_rng(0).permutation(ids).tolist()
    drawn = {ids[place] for place in _drawn(ids, 10, seed=3)}
    assert drawn == {mixed[place] for place in _drawn(mixed, 10, seed=3)}
    assert len(drawn) == 10
    assert drawn != {ids[place] for place in _drawn(ids, 10, seed=4)}


@pytest.mark.parametrize(
    "sample", [SAMPLES[0], _question(SAMPLES[1], None), Sample("Say it", " said", "s", truth=None)]
)
def test_a_sample_survives_its_row(sample: Sample) -> None:
    row = to_row(sample)
    assert from_row(row) == sample
    assert None not in row.values()
