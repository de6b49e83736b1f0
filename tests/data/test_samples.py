"""Samples in a spool equal a list of them, and so do their ids, split and digests."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstcli.api import ChatMessage, Sample
from firstcli.data import splits
from firstcli.data.samples import MOST_SHARED, Samples, as_json, to_json
from firstcli.data.sequences import Selected
from firstcli.tasks.known_world import KnownWorld, KnownWorldOptions
from support import command_line

NOWHERE = Path("/no/such/folder")  # the spool is then in the system's temporary folder
TEXT = st.text(max_size=4) | st.just("\ud800")  # an unpaired surrogate, which JSON can contain
NUMBER = st.floats(0, 1) | st.integers(0, 1)


@st.composite
def any_sample(draw: st.DrawFn) -> Sample:
    count = draw(st.integers(0, 3))
    return Sample(
        prompt=draw(TEXT),
        response=draw(TEXT),
        id=draw(st.none() | TEXT),
        candidates=tuple(draw(TEXT) for _ in range(count)),
        answer=draw(st.none() | st.integers(0, 3)),
        truth=draw(st.none() | st.lists(NUMBER, max_size=3).map(tuple)),
        teacher_prompt=draw(st.none() | TEXT),
    )


@st.composite
def any_conversation(draw: st.DrawFn) -> Sample:
    roles = ("system", "user", "assistant")
    turns = st.lists(st.builds(ChatMessage, st.sampled_from(roles), TEXT), min_size=2, max_size=5)
    messages = draw(turns)
    supervised = draw(st.sets(st.integers(1, len(messages) - 1), min_size=1))
    return Sample.conversation(messages, sorted(supervised), id=draw(st.none() | TEXT))


@settings(deadline=None)
@given(st.lists(any_sample() | any_conversation(), max_size=8))
def test_samples_equal_the_list(samples: list[Sample]) -> None:
    stored = Samples(iter(samples), NOWHERE)
    assert len(stored) == len(samples)
    assert list(stored) == samples
    assert list(as_json(stored)) == [to_json(sample) for sample in samples]
    assert [stored[i] for i in range(-len(samples), 0)] == samples
    assert list(stored[1:][::-2]) == samples[1:][::-2]
    with pytest.raises(IndexError):
        stored[len(samples)]


def test_a_prompt_for_the_teacher_changes_digests_and_its_absence_does_not() -> None:
    sample = Sample("p", "r", "i", ("r", "s"), 0)
    assert to_json(sample) == b'["i", "p", "r", ["r", "s"], 0, null]'
    other = replace(sample, teacher_prompt="facts p")
    assert to_json(other) != to_json(sample)
    assert other.as_teacher == replace(sample, prompt="facts p")
    assert sample.as_teacher is sample


def test_samples_share_their_candidates() -> None:
    labels = tuple(f" label {number}" for number in range(1000))
    samples = [Sample.question(f"text {i}", labels, i, id=str(i)) for i in range(500)]
    stored = Samples(iter(samples), NOWHERE)
    assert list(stored) == samples
    assert len({id(sample.candidates) for sample in stored}) == 1
    assert stored._spool._borders[-1] < 100 * len(samples)  # bytes
    assert list(as_json(stored)) == [to_json(sample) for sample in samples]


def test_more_sets_of_candidates_than_are_kept() -> None:
    sets = [(f"a{number}", "b") for number in range(2 * MOST_SHARED)]
    samples = [Sample.question("?", sets[i % len(sets)], 1, id=str(i)) for i in range(300)]
    stored = Samples(iter(samples), NOWHERE)
    assert list(stored) == samples
    assert list(as_json(stored[::-1])) == [to_json(sample) for sample in reversed(samples)]


def test_a_selection_keeps_its_order() -> None:
    selection = Selected(["a", "b", "c"], np.array([2, 0]))
    assert list(selection) == ["c", "a"]
    assert selection[-1] == "a" and list(selection[1:]) == ["a"]


# Ids, validation split and overlap, compared with a naive computation in memory.


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def naive_ids(samples: Sequence[Sample]) -> Iterator[str]:
    seen: Counter[str] = Counter()
    for sample in samples:
        key = digest(sample.prompt, sample.response)[:12]
        seen[key] += sample.id is None
        yield sample.id or (key if seen[key] == 1 else f"{key}-{seen[key]}")


TEXTS = st.sampled_from(["", "a", "b", "ä"])


@settings(deadline=None)
@given(
    st.lists(st.tuples(TEXTS, TEXTS, st.booleans()), max_size=30),
    st.lists(st.tuples(TEXTS, TEXTS), max_size=5),
    st.floats(0, 0.99),
)
def test_streaming_changes_no_id_split_or_count(
    rows: list[tuple[str, str, bool]], others: list[tuple[str, str]], share: float
) -> None:
    given = [Sample(p, r, f"g{i}" if has else None) for i, (p, r, has) in enumerate(rows)]
    named = [replace(one, id=id) for one, id in zip(given, naive_ids(given), strict=True)]
    stored = Samples(splits.with_ids(Samples(given, NOWHERE), "train.task"), NOWHERE)
    assert list(stored) == named
    assert splits.content_digest(stored) == splits.content_digest(named)
    texts = [(one.prompt, one.response) for one in named]
    assert splits.duplicate_rows(stored) == len(texts) - len(set(texts))
    sides = [int(digest("validation", one.prompt)[:13], 16) / 16**13 < share for one in named]
    train, validation = splits.cut_validation(stored, share)
    assert list(train) == [one for one, out in zip(named, sides, strict=True) if not out]
    assert list(validation) == list(itertools.compress(named, sides))
    evaluated = [Sample(p, r) for p, r in others]
    assert splits.overlap(splits.prompt_digests(stored), evaluated) == sum(
        p in {one.prompt for one in named} for p, _ in others
    )


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (
            list(KnownWorld(KnownWorldOptions(train=300, test=10)).load("train").samples),
            (
                "96213dfcf7824186a340577ee7e8b5201a98449339e7ee1cece342c02574e8c1",
                "ae620fee664288a07a34313f6d65676f9875cc433ae720bbfefbe6dff3d1ac94",
            ),
        ),
        (
            [Sample(f"p {n % 7} \u2028ä", f" r{n % 5}") for n in range(60)],
            (
                "555cdc494b3aef5fbec9ae2d71af7d4d4b4d4097cc8937eee62113ef58b2d533",
                "59266290607fe75c918ed2a8a907711aec567622d555c6824843d6154d82a4c1",
            ),
        ),
    ],
)
def test_content_digests_are_stable(samples: list[Sample], expected: tuple[str, str]) -> None:
    """Fingerprints depend on them: if they changed, every existing run would be stale."""
    stored = Samples(splits.with_ids(samples, "train.task"), NOWHERE)
    train, validation = splits.cut_validation(stored, 0.25)
    assert (splits.content_digest(train), splits.content_digest(validation)) == expected


PEAK = """
import sys
from pathlib import Path
import numpy as np
from firstcli.data import splits
from firstcli.data.encoding import EncodedSample
from firstcli.data.samples import Samples
from firstcli.tasks.instruction import Instruction, InstructionOptions
from firstcli.data.encoded import EncodedStore
folder = Path(sys.argv[1]).parent
task = Instruction(InstructionOptions.model_validate({"path": sys.argv[1]}))
given = Samples(task.load("train").samples, folder)
stored = Samples(splits.with_ids(given, "train"), folder)
splits.duplicate_rows(stored)
train, validation = splits.cut_validation(stored, 0.1)
splits.overlap(splits.prompt_digests(stored), validation)
splits.content_digest(train)
encoded = (EncodedSample(str(one.id), np.zeros(500, np.int32), 1, None) for one in train)
rows = EncodedStore(encoded, folder)
for index in np.random.default_rng(0).permutation(len(rows)).tolist():
    assert len(rows[index].targets) == 499
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        print(line.split()[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak in /proc")
def test_ten_times_the_data_need_hardly_more_memory(tmp_path: Path) -> None:
    """18,000 more rows are 36 MB of text and 36 MB of tokens; an index of 1 MB is kept."""
    peaks = []
    for count in (2_000, 20_000):
        path = tmp_path / f"{count}.jsonl"
        rows = ({"prompt": f"{n} {'word ' * 400}", "response": " x"} for n in range(count))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        result = command_line.finish(command_line.python(PEAK, path))
        assert result.code == 0, result.err
        peaks.append(int(result.out))  # kB
    assert peaks[1] - peaks[0] < 24_000


def test_a_group_is_kept_and_its_absence_changes_no_digest() -> None:
    plain = Sample.question("Is it?", (" yes", " no"), 0, id="a")
    grouped = Sample.question("Is it?", (" yes", " no"), 0, id="a", group="law")
    assert list(Samples([plain, grouped], NOWHERE)) == [plain, grouped]
    # as earlier versions wrote it
    assert to_json(plain) == b'["a", "Is it?", " yes", [" yes", " no"], 0, null]'
    assert to_json(grouped) != to_json(plain)
