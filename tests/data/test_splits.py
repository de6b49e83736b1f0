"""Ids, duplicates, the validation split and overlap depend on content, never on position."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstcli.api import Sample
from firstcli.data import splits
from firstcli.data.samples import Samples
from firstcli.errors import UserError


def samples_of(count: int, prompts: int | None = None) -> list[Sample]:
    return [Sample(f"prompt {n % (prompts or count)}", f"response {n}") for n in range(count)]


# Ids.


def test_given_ids_stay() -> None:
    samples = [Sample("a", "b", id="one"), Sample("a", "b", id="two")]
    assert list(splits.with_ids(samples, "train.task")) == samples


def test_given_ids_that_occur_twice_are_an_error() -> None:
    samples = [Sample("a", "b", id="x"), Sample("c", "d", id="y"), Sample("e", "f", id="x")]
    with pytest.raises(UserError, match=r"train.task: 1 sample ids occur more than once.*'x'"):
        list(splits.with_ids(samples, "train.task"))


def test_derived_ids_come_from_the_content_with_a_counter() -> None:
    samples = [Sample("a", "b"), Sample("a", "c"), Sample("a", "b"), Sample("a", "b")]
    ids = [str(sample.id) for sample in splits.with_ids(samples, "train")]
    assert len(set(ids)) == 4
    assert ids[2] == f"{ids[0]}-2" and ids[3] == f"{ids[0]}-3"
    # They do not depend on the order or the split.
    again = splits.with_ids([samples[1], samples[0]], "test")
    assert [sample.id for sample in again] == [ids[1], ids[0]]


def test_only_the_id_is_added() -> None:
    sample = Sample.question("q", ["a", "b"], 1, truth=[0.3, 0.7])
    [named] = splits.with_ids([sample], "train")
    assert replace(named, id=None) == sample


def test_duplicates_are_counted() -> None:
    samples = [Sample("a", "b", id=str(n)) for n in range(3)] + [Sample("a", "c", id="3")]
    assert splits.duplicate_rows(samples) == 2


# The validation split.


def test_equal_prompts_stay_on_one_side() -> None:
    train, validation = splits.cut_validation(samples_of(2000, prompts=400), 0.3)
    assert not {one.prompt for one in train} & {one.prompt for one in validation}
    assert Counter([*train, *validation]) == Counter(samples_of(2000, prompts=400))


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5, 0.9])
def test_the_share_is_about_right(share: float) -> None:
    _, validation = splits.cut_validation(samples_of(5000), share)
    spread = (share * (1 - share) / 5000) ** 0.5
    assert abs(len(validation) / 5000 - share) < 4 * spread


@given(st.sets(st.integers(0, 199)), st.floats(0, 0.99))
def test_the_side_of_a_sample_does_not_depend_on_others(kept: set[int], share: float) -> None:
    samples = samples_of(200)
    train, validation = splits.cut_validation(samples, share)
    few = [samples[n] for n in sorted(kept)]
    fewer_train, fewer_validation = splits.cut_validation(few, share)
    assert list(fewer_train) == [one for one in train if one in few]
    assert list(fewer_validation) == [one for one in validation if one in few]


def test_a_larger_share_only_adds() -> None:
    small = splits.cut_validation(samples_of(500), 0.1)[1]
    large = splits.cut_validation(samples_of(500), 0.2)[1]
    assert set(small) < set(large)


def test_without_a_share_there_is_no_validation() -> None:
    train, validation = splits.cut_validation(samples_of(100), 0)
    assert list(train) == samples_of(100) and not validation


def test_the_validation_split_is_the_same_on_every_machine() -> None:
    """If it changed, teachers of existing runs would have seen new validation samples."""
    _, validation = splits.cut_validation(samples_of(40), 0.1)
    assert [one.prompt for one in validation] == ["prompt 2", "prompt 11", "prompt 12", "prompt 14"]


# Overlap and digests.


def test_overlap_compares_prompts() -> None:
    training = [Sample("a", "x"), Sample("b", "x")]
    evaluation = [Sample("b", "other"), Sample("c", "x"), Sample("b", "x")]
    trained = splits.prompt_digests(training)
    assert splits.overlap(trained, evaluation) == 2
    assert splits.overlap(trained, []) == 0


def test_the_digest_covers_all_fields_and_the_order() -> None:
    base = Sample.question("q", ["a", "b"], 0, id="1", truth=[0.5, 0.5])
    other = Sample("p", "r", id="2")
    changed = [
        replace(base, id="3"),
        replace(base, prompt="Q"),
        replace(base, response="A"),
        replace(base, candidates=("a", "c")),
        replace(base, answer=1),
        replace(base, truth=(0.4, 0.6)),
    ]
    lists = [[base, other], [other, base], [base], *([one, other] for one in changed)]
    assert len({splits.content_digest(samples) for samples in lists}) == len(lists)
    assert splits.content_digest([base, other]) == splits.content_digest([base, other])


def test_the_digest_of_samples_in_a_spool_is_that_of_a_list(tmp_path: Path) -> None:
    """The spool's bytes are digested as they are, without decoding the samples."""
    samples = [
        Sample.question(f"Wo? {i} \u2028é", ["ja", "nein"], i % 2, id=str(i), truth=[0.1, 0.9])
        for i in range(5)
    ]
    spooled = Samples(samples, tmp_path)
    assert splits.content_digest(spooled) == splits.content_digest(samples)
    assert splits.content_digest(spooled[1:4]) == splits.content_digest(samples[1:4])
