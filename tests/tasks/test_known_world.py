"""The invented world: its laws, its questions, and that its truth is the truth.

Run alone: pytest tests/test_known_world.py
"""

from __future__ import annotations

import math
from itertools import chain, product
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer

from firstcli import plugins
from firstcli.api import ModelRef, Sample
from firstcli.data.encoding import Encoding, encode_questions
from firstcli.data.splits import content_digest
from firstcli.families.scratch import Scratch, ScratchOptions
from firstcli.tasks.known_world import (
    ANSWERS,
    ATTRIBUTES,
    INVENTED,
    PAIRS,
    KnownWorld,
    KnownWorldOptions,
    Laws,
)
from firstcli.testing import check_task
from support.encoding import encode_training

SPLITS = ("train", "test", "shifted")
EVERY_SPLIT = (*SPLITS, "unanswerable")
MIDDLE = {name: values[0] for name, values in ATTRIBUTES.items()}


def samples(split: str, **options: Any) -> list[Sample]:
    return list(KnownWorld(KnownWorldOptions(**options)).load(split).samples)


def interaction(laws: Laws, first: str, second: str) -> float:
    """Largest double difference of two answers' log-odds over two values of two attributes."""

    def log_odds(**values: str) -> float:
        truth = laws.truth({**MIDDLE, **values}, noise=1.0)
        return math.log(truth[0] / truth[1])

    a, b = ATTRIBUTES[first][:2]
    return max(
        abs(
            log_odds(**{first: a, second: c})
            - log_odds(**{first: b, second: c})
            - log_odds(**{first: a, second: d})
            + log_odds(**{first: b, second: d})
        )
        for c, d in product(ATTRIBUTES[second], repeat=2)
    )


def test_it_is_registered() -> None:
    assert plugins.load("tasks", "known-world") is KnownWorld


@pytest.mark.parametrize("choices", [3, 4, 5])
def test_samples(choices: int) -> None:
    task = KnownWorld(KnownWorldOptions(train=30, test=20, shifted=10, choices=choices))
    assert task.splits == EVERY_SPLIT
    assert all(task.sources(split) == () for split in task.splits)
    assert [len(list(task.load(split).samples)) for split in SPLITS] == [30, 20, 10]
    for sample in (sample for split in SPLITS for sample in task.load(split).samples):
        assert sample.candidates == tuple(f" {answer}" for answer in ANSWERS[:choices])
        assert sample.answer is not None
        assert sample.truth is not None
        assert sample.response == sample.candidates[sample.answer]
        assert sample.prompt == sample.prompt.strip()
        assert "{" not in sample.prompt
        assert math.isclose(sum(sample.truth), 1, rel_tol=1e-12)
        assert len(sample.truth) == choices


def test_the_world_is_the_same_everywhere() -> None:
    """Pinned, because published numbers were measured on this world."""
    [first] = samples("test", test=1, seed=7, noise=0.4)
    assert first.prompt == "It is dusk. What will the black crane Nolni do in the forest? It will"
    assert first.truth == pytest.approx((0.04135, 0.011775, 0.050807, 0.801497, 0.094572), abs=1e-6)
    assert samples("train", seed=7) == samples("train", seed=7)


@pytest.mark.parametrize(
    ("split", "digest"),
    [("train", "7c1b2d0f72e5c7bd"), ("test", "ba9bdae41d9a689e"), ("shifted", "09c716f0f3330478")],
)
def test_adding_a_split_changes_no_other_split(split: str, digest: str) -> None:
    """Pinned before `unanswerable` was added, so that older runs stay up to date."""
    rows = samples(split, train=200, test=100, shifted=100)
    assert content_digest(rows).startswith(digest)


def test_it_conforms() -> None:
    check_task(KnownWorld(KnownWorldOptions(train=30, test=20, shifted=10, unanswerable=10)))


def test_unanswerable_questions_mean_nothing_in_this_world() -> None:
    rows = samples("unanswerable")
    assert len({row.prompt for row in rows}) == len({row.id for row in rows}) == len(rows) == 500
    known = {word for words in ATTRIBUTES.values() for word in words}
    for row in rows:
        assert (row.answer, row.truth, row.response) == (None, None, "")
        assert len(row.candidates) == 5
        assert not known & set(row.prompt.replace(",", " ").replace(".", " ").split())
    assert all(not set(ATTRIBUTES[name]) & set(INVENTED[name]) for name in ATTRIBUTES)
    assert rows[:100] == samples("unanswerable", unanswerable=100)
    assert rows != samples("unanswerable", seed=1)
    prompts = {row.prompt for split in SPLITS for row in samples(split)}
    assert not prompts & {row.prompt for row in rows}


def test_a_smaller_split_is_a_prefix_of_a_larger_one() -> None:
    for split in ("test", "shifted"):
        assert samples(split, train=10, **{split: 50}) == samples(split, **{split: 100})[:50]
    assert samples("train", train=50) == samples("train", train=100)[:50]


def test_the_seed_changes_laws_questions_and_answers() -> None:
    assert Laws(1, 5).truth(MIDDLE, 0.4) != Laws(2, 5).truth(MIDDLE, 0.4)
    assert samples("test", test=20, seed=1) != samples("test", test=20, seed=2)


def test_questions_are_distinct() -> None:
    rows = [sample for split in SPLITS for sample in samples(split, train=20_000, test=5000)]
    assert len({sample.prompt for sample in rows}) == len(rows)
    assert len({sample.id for sample in rows}) == len(rows)


def test_answers_are_drawn_from_the_truth() -> None:
    rows = samples("test", test=20_000)
    for answer in range(5):
        expected = [sample.truth[answer] for sample in rows if sample.truth]
        drawn = sum(sample.answer == answer for sample in rows)
        deviation = math.sqrt(sum(p * (1 - p) for p in expected))
        assert abs(drawn - sum(expected)) < 4 * deviation
    best = [max(sample.truth) for sample in rows if sample.truth]
    hits = sum(s.truth[s.answer] == max(s.truth) for s in rows if s.truth and s.answer is not None)
    assert abs(hits - sum(best)) < 4 * math.sqrt(sum(p * (1 - p) for p in best))


@pytest.mark.parametrize("pair", PAIRS)
def test_log_odds_depend_on_interactions(pair: tuple[str, str]) -> None:
    assert interaction(Laws(0, 5), *pair) > 0.1


def test_attributes_that_do_not_interact_are_additive() -> None:
    assert interaction(Laws(0, 5), "kind", "home") < 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_scores_have_the_promised_variance(seed: int) -> None:
    laws = Laws(seed, 5)
    profiles = [
        dict(zip(ATTRIBUTES, values, strict=True)) for values in product(*ATTRIBUTES.values())
    ]
    squares = [score**2 for profile in profiles for score in laws.scores(profile)]
    assert 0.5 < sum(squares) / len(squares) < 1.5


def test_noise_makes_the_truth_uncertain() -> None:
    laws = Laws(0, 5)
    tops = [max(laws.truth(MIDDLE, noise)) for noise in (0.01, 0.2, 0.4, 1.0, 100.0)]
    assert tops == sorted(tops, reverse=True)
    assert tops[-1] == pytest.approx(0.2, abs=0.02)


def test_shifted_has_combinations_of_no_other_split() -> None:
    def homes(split: str) -> set[tuple[str, str]]:
        options = {"train": 5000, "test": 5000, "shifted": 5000}
        prompts = (sample.prompt for sample in samples(split, **options))
        kinds, places = ATTRIBUTES["kind"], ATTRIBUTES["home"]
        return {
            (kind, home)
            for prompt in prompts
            for kind in kinds
            for home in places
            if f" {kind}" in prompt and f" {home}" in prompt
        }

    seen = homes("train") | homes("test")
    shifted = homes("shifted")
    assert not seen & shifted
    assert len(seen) == 30
    assert len(shifted) == 6


@pytest.mark.parametrize("vocabulary", [300, 1024])
def test_answers_differ_in_their_first_token(vocabulary: int) -> None:
    train = samples("train", train=1000)
    text = [sample.prompt + sample.response for sample in train]
    tokenizer = Scratch(ScratchOptions(vocabulary=vocabulary)).tokenizer(ModelRef(None), text)
    sizes = {"test": 50, "shifted": 50, "unanswerable": 50}
    encoded = [
        encode_questions(samples(split, **sizes), Encoding(tokenizer, "test")) for split in sizes
    ]
    for question in chain(*encoded):
        assert len(set(question.candidate_ids)) == 5
        assert len(question.input_ids) <= 64  # the quick start's context
    rows, warnings = encode_training(train, tokenizer, "train")
    assert not warnings
    if vocabulary == 1024:  # an answer is one token, and training on the CPU is quick
        assert {len(row.targets) for row in rows} == {2}
        assert max(len(row.input_ids) for row in rows) <= 24


@pytest.mark.shared
@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_real_tokenizers_distinguish_answers(name: str, shared_models: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_models / "tokenizers" / name)
    for question in encode_questions(samples("test", test=20), Encoding(tokenizer, "test")):
        assert len(set(question.candidate_ids)) == 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"choices": 2},
        {"choices": 6},
        {"noise": 0.0},
        {"noise": math.nan},
        {"train": 0},
        {"test": -1},
        {"shifted": 1_000_000},
        {"unanswerable": 0},
        {"hardness": 1},
    ],
)
def test_wrong_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        KnownWorldOptions(**wrong)
