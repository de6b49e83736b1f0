"""From knowledge to what is taught: which positions, which mass, which tail."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from firstcli.api import PluginOptions, Recalibrator
from firstcli.data.encoding import EncodedSample
from firstcli.knowledge import codec, store
from firstcli.knowledge.store import Knowledge
from firstcli.knowledge.top_k import TopK
from firstcli.recalibration.builtin import NoRecalibration
from firstcli.recipe.schema import Arm, recalibrator_of
from firstcli.training import soft_targets
from firstcli.training.soft_targets import Positions, SoftTargetBuilder, SoftTargets, taught_of

if TYPE_CHECKING:
    from firstcli.api import FloatArray

E = 1e-6  # the paper's epsilon, appendix A.1
FORMAT = store.StoreFormat(2, "standard", "train", shards=1, teacher="t")


def arm(recalibrator: str = "none", /, options: dict[str, Any] | None = None, **fields: Any) -> Arm:
    return Arm.model_validate(
        {"recalibrator": {"name": recalibrator, "options": options or {}}, **fields}
    )


def recalibrator(of: Arm) -> Recalibrator[PluginOptions]:
    return recalibrator_of(of)


@pytest.fixture
def rows() -> list[EncodedSample]:
    """Two questions: the first decides at its first target, the second at its second of three."""
    return [
        EncodedSample("a", np.array([1, 2, 10, 9], np.int32), start=2, answer_position=2),
        EncodedSample("b", np.array([3, 4, 20, 11, 9], np.int32), start=2, answer_position=3),
    ]


def as_stored(probabilities: list[list[float]]) -> list[list[float]]:
    """Return what the store makes of them: probabilities and tail at each position."""
    log = np.log(probabilities).astype(np.float32)
    grid = codec.GRIDS["standard"]
    log_probs, log_tail = codec.decode(codec.encode(log[:, :-1], log[:, -1], grid), grid)
    stored: list[list[float]] = np.exp(np.column_stack([log_probs, log_tail])).tolist()
    return stored


# The last of each is the tail.
STORED = {
    "a": as_stored([[0.7, 0.2, 0.1], [0.95, 0.04, 0.01]]),
    "b": as_stored([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.9, 0.0999, 1e-4]]),
}
PROBABILITIES = {id: [one[:2] for one in stored] for id, stored in STORED.items()}
TAILS = {id: [one[2] for one in stored] for id, stored in STORED.items()}
TOKENS = {"a": [[10, 5], [9, 5]], "b": [[5, 20], [6, 7], [9, 5]]}


@pytest.fixture
def knowledge(tmp_path: Path, rows: list[EncodedSample]) -> Knowledge:
    """The knowledge of both, written in the other order."""
    known = [
        TopK(
            np.array(TOKENS[row.id], np.int32),
            np.log(PROBABILITIES[row.id]).astype(np.float32),
            np.log(TAILS[row.id]).astype(np.float32),
        )
        for row in rows
    ]
    store.write_shard(store.shard_path(tmp_path, 0), rows[::-1], known[::-1], FORMAT)
    return Knowledge(tmp_path)


@pytest.fixture
def positions(rows: list[EncodedSample], knowledge: Knowledge) -> Positions:
    return soft_targets.positions_of(rows, knowledge)


DECISIVE = [True, False, False, True, False]


def test_positions_line_up_with_the_samples(positions: Positions) -> None:
    np.testing.assert_allclose(positions.topk, PROBABILITIES["a"] + PROBABILITIES["b"], rtol=1e-6)
    assert positions.topk.dtype == np.float64
    assert positions.targets.tolist() == [10, 9, 20, 11, 9]
    assert positions.decisive.tolist() == DECISIVE
    # The true token is the first, the first, the second, none, the first of the k.
    assert positions.is_label.tolist() == [
        [True, False],
        [True, False],
        [False, True],
        [False, False],
        [True, False],
    ]
    np.testing.assert_allclose(positions.mass, 1 - np.array(TAILS["a"] + TAILS["b"]), rtol=1e-6)
    chosen = positions.where(positions.decisive)
    assert chosen.targets.tolist() == [10, 11] and chosen.token_ids.tolist() == [[10, 5], [6, 7]]


def test_another_order_of_samples_is_followed(
    rows: list[EncodedSample], knowledge: Knowledge
) -> None:
    turned = soft_targets.positions_of(rows[::-1], knowledge)
    assert turned.targets.tolist() == [20, 11, 9, 10, 9]
    np.testing.assert_allclose(turned.topk, PROBABILITIES["b"] + PROBABILITIES["a"], rtol=1e-6)


def test_instruction_tasks_have_no_decisive_position(tmp_path: Path) -> None:
    row = EncodedSample("a", np.array([1, 2, 3], np.int32), start=1, answer_position=None)
    half, nothing = np.full((2, 2), -0.6931472, np.float32), np.full(2, -np.inf, np.float32)
    known = TopK(np.zeros((2, 2), np.int32), half, nothing)
    store.write_shard(store.shard_path(tmp_path, 0), [row], [known], FORMAT)
    positions = soft_targets.positions_of([row], Knowledge(tmp_path))
    assert not positions.decisive.any()
    assert soft_targets.recalibrated_positions(arm(), positions).all()


def test_small_tails_keep_their_digits(positions: Positions) -> None:
    """1 - (1 - t) has none of them left."""
    tails = np.array([1e-17, 1e-12, 1e-9, 0.5, 0.0])
    with np.errstate(divide="ignore"):
        exact = Positions(
            positions.topk,
            np.log(tails),
            positions.token_ids,
            positions.targets,
            positions.decisive,
        )
    probabilities = taught_of(arm(), exact, np.full((5, 2), 0.5))
    np.testing.assert_allclose(probabilities.tail, tails, rtol=1e-5)
    assert (exact.mass <= 1).all() and exact.mass[4] == 1


# Which positions are recalibrated.


def smoothed(top: float, second: float) -> list[float]:
    share = top / (top + second)
    return [share - 0.1, 1 - share + 0.1]


def plain(top: float, second: float) -> list[float]:
    return [(top + E) / (top + second + 2 * E), (second + E) / (top + second + 2 * E)]


@pytest.mark.parametrize(
    ("mode", "chosen"),
    [(None, DECISIVE), ("decisive", DECISIVE), ("all", [True] * 5)],
)
def test_only_the_chosen_positions_are_recalibrated(
    positions: Positions, mode: str | None, chosen: list[bool]
) -> None:
    """The others get `none`: a bracket or EOS must not be taught with doubt."""
    smoothing = arm("label-smoothing", {"delta": 0.1}, recalibrate=mode)
    assert soft_targets.recalibrated_positions(smoothing, positions).tolist() == chosen
    got = soft_targets.targets(smoothing, recalibrator(smoothing), positions)
    given = PROBABILITIES["a"] + PROBABILITIES["b"]
    expected = [
        smoothed(*p) if is_chosen else plain(*p) for p, is_chosen in zip(given, chosen, strict=True)
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(got.sum(axis=1), 1.0)


def test_temperature_scaling_acts_on_probabilities_as_stored(positions: Positions) -> None:
    """Eq. 4 is exp(p / T), over the probabilities themselves: not p^(1/T), not p / P."""
    scaling = arm("temperature-scaling", {"temperature": 0.3})
    got = soft_targets.targets(scaling, recalibrator(scaling), positions)
    weights = np.exp(np.array(PROBABILITIES["b"][1]) / 0.3)
    np.testing.assert_allclose(got[3], weights / weights.sum(), rtol=1e-6)
    np.testing.assert_allclose(got[1], plain(*PROBABILITIES["a"][1]), rtol=1e-5)


# Mass.


def probabilities(of: Arm, positions: Positions) -> SoftTargets:
    return taught_of(of, positions, soft_targets.targets(of, recalibrator(of), positions))


def test_mass_teacher_leaves_outside_what_was_outside(positions: Positions) -> None:
    one = probabilities(arm("label-smoothing", {"delta": 0.1}), positions)
    tails = TAILS["a"] + TAILS["b"]
    np.testing.assert_allclose(one.tail, tails, rtol=1e-6)
    np.testing.assert_allclose(one.probabilities.sum(axis=1) + one.tail, 1.0, atol=1e-6)
    np.testing.assert_allclose(one.teacher_mass, 1 - np.array(tails), rtol=1e-6)
    assert one.probabilities.dtype == one.tail.dtype == one.teacher_mass.dtype == np.float32
    (decisive, other), (tail, small) = PROBABILITIES["a"], TAILS["a"]
    expected = [(1 - tail) * np.array(smoothed(*decisive)), (1 - small) * np.array(plain(*other))]
    np.testing.assert_allclose(one.probabilities[:2], expected, 1e-5)
    assert one.token_ids.tolist() == TOKENS["a"] + TOKENS["b"]


def test_mass_one_teaches_that_there_is_nothing_else(positions: Positions) -> None:
    for of in (arm(mass="one"), arm(objective="topk-renormalized")):
        one, tails = probabilities(of, positions), TAILS["a"] + TAILS["b"]
        assert (one.tail == 0).all()  # exactly, or a log of nothing enters the loss
        np.testing.assert_allclose(one.probabilities.sum(axis=1), 1.0, atol=1e-6)
        # P is what the teacher had, whatever is taught.
        np.testing.assert_allclose(one.teacher_mass, 1 - np.array(tails), rtol=1e-6)


# A batch at a time.


def many(
    folder: Path, count: int, decisive: bool, k: int = 5
) -> tuple[list[EncodedSample], Knowledge]:
    """Samples with 1 to 6 positions; every other one decides somewhere, or none does."""
    draw = np.random.default_rng(0)
    rows, known = [], []
    for number in range(count):
        start, positions = int(draw.integers(1, 5)), int(draw.integers(1, 7))
        ids = draw.integers(0, 30, start + positions, dtype=np.int32)
        at = start + positions - 1 if decisive and number % 2 else None
        rows.append(EncodedSample(f"s{number}", ids, start, at))
        p = -np.sort(-draw.dirichlet(np.ones(k + 1), positions)[:, :k], axis=1)
        known.append(
            TopK(
                draw.integers(0, 30, (positions, k), dtype=np.int32),
                np.log(p).astype(np.float32),
                np.log1p(-p.sum(axis=1)).astype(np.float32),
            )
        )
    store.write_shard(
        store.shard_path(folder, 0), rows, known, dataclasses.replace(FORMAT, top_k=k)
    )
    return rows, Knowledge(folder)


ARMS = [
    arm(name, options, mass=mass, recalibrate=recalibrate)
    for name, options in (
        ("none", {}),
        ("label-smoothing", {"delta": 0.1}),
        ("temperature-scaling", {"temperature": 0.3}),
        ("logit-temperature", {"temperature": 1.7}),
    )
    for mass in ("teacher", "one")
    for recalibrate in (None, "decisive", "all")
]


@pytest.mark.parametrize("decisive", [False, True])
def test_a_batch_is_taught_what_it_is_among_all_samples(tmp_path: Path, decisive: bool) -> None:
    """Bit for bit; also where a batch by itself has no decisive position, but others have."""
    rows, known = many(tmp_path, 60, decisive)
    whole = soft_targets.positions_of(rows, known)
    counts = [len(row.targets) for row in rows]
    places = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    for of in ARMS:
        expected = probabilities(of, whole)
        lessons = SoftTargetBuilder(of, recalibrator(of), known, rows)
        for batch in ([0], [2, 0, 4], [1], list(range(60))[::-1], [7, 8, 9, 59]):
            found = lessons([rows[i] for i in batch])
            at = np.concatenate([places[i] for i in batch])
            for name in ("token_ids", "probabilities", "tail", "teacher_mass"):
                ours, theirs = getattr(found, name), getattr(expected, name)[at]
                assert ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes(), (of, name)


def test_a_recalibrator_is_fitted_on_the_positions_it_is_applied_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soft_targets, "CHUNK", 7)
    rows, known = many(tmp_path, 60, True)
    whole = soft_targets.positions_of(rows, known)
    for of in ARMS:
        expected = whole.where(soft_targets.recalibrated_positions(of, whole))
        found = Positions.joined(list(soft_targets.recalibrated_of(of, rows, known)))
        for field in dataclasses.fields(Positions):
            ours, theirs = getattr(found, field.name), getattr(expected, field.name)
            np.testing.assert_array_equal(ours, theirs)


class Turned(NoRecalibration):
    """Puts the second token first where the teacher is not sure."""

    order_preserving = False

    def transform(self, topk: FloatArray) -> FloatArray:
        target = super().transform(topk)
        unsure = topk[:, 0] < 0.6
        target[unsure, :2] = target[unsure, 1::-1]
        return target


def test_swapped_ranks_are_counted_over_all_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soft_targets, "CHUNK", 7)
    rows, known = many(tmp_path, 60, False)
    unsure = soft_targets.positions_of(rows, known).topk[:, 0] < 0.6
    assert 0 < unsure.mean() < 1
    turned = Turned(Turned.Options())
    assert SoftTargetBuilder(arm(), turned, known, rows).rank_swaps() == pytest.approx(
        unsure.mean()
    )
    monkeypatch.setattr(Turned, "order_preserving", True)
    assert SoftTargetBuilder(arm(), turned, known, rows).rank_swaps() == 0


# Fitted recalibrators.


def test_a_fitted_state_is_taken_from_its_artifact(tmp_path: Path, positions: Positions) -> None:
    fitted = arm("temperature-scaling")
    original = recalibrator(fitted)
    chosen = positions.where(positions.decisive)
    original.fit(chosen.topk, chosen.is_label, chosen.mass, "teacher")
    artifact = tmp_path / "first.json"
    artifact.write_text(json.dumps({"state": original.state(), "rows": 2}))
    restored = soft_targets.recalibrator_for(fitted, artifact)
    np.testing.assert_array_equal(restored.transform(chosen.topk), original.transform(chosen.topk))


def test_a_recalibrator_that_is_not_fitted_needs_no_artifact(tmp_path: Path) -> None:
    made = soft_targets.recalibrator_for(arm("label-smoothing"), tmp_path / "absent.json")
    assert not made.needs_fit
