"""From knowledge to soft targets: recalibrated positions, mass and tail."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstcli.api import FloatArray, TopKRows
from firstcli.data.encoding import EncodedSample
from firstcli.knowledge import codec, shards
from firstcli.knowledge.store import Knowledge
from firstcli.knowledge.top_k import TopK
from firstcli.plugins.recalibrators import CheckedRecalibrator, Recalibrated
from firstcli.recalibration.builtin import NoRecalibration
from firstcli.recalibration.diagnostics import PositionsMode
from firstcli.recipe.sections import Arm
from firstcli.training import soft_targets
from firstcli.training.soft_targets import (
    Positions,
    SoftTargetBuilder,
    SoftTargets,
    soft_targets_of,
)
from support.recalibration import checked

E = 1e-6  # the paper's epsilon, appendix A.1
FORMAT = shards.StoreFormat(2, "standard", "train", shards=1, teacher="t")


def arm(recalibrator: str = "none", /, options: dict[str, Any] | None = None, **fields: Any) -> Arm:
    return Arm.model_validate(
        {"recalibrator": {"name": recalibrator, "options": options or {}}, **fields}
    )


def recalibrator(of: Arm) -> CheckedRecalibrator:
    assert of.recalibrator
    return of.recalibrator.build()


def distribution(of: Arm, mode: PositionsMode, positions: Positions) -> FloatArray:
    return soft_targets.recalibrated(of, mode, recalibrator(of), positions).distribution


@pytest.fixture
def rows() -> list[EncodedSample]:
    """Two questions: the answer position is the first of 2 targets, and the second of 3."""
    return [
        EncodedSample("a", np.array([1, 2, 10, 9], np.int32), start=2, answer_position=2),
        EncodedSample("b", np.array([3, 4, 20, 11, 9], np.int32), start=2, answer_position=3),
    ]


def as_stored(probabilities: list[list[float]]) -> list[list[float]]:
    """Return probabilities and tail at each position after encoding and decoding."""
    log = np.log(probabilities).astype(np.float32)
    grid = codec.GRIDS["standard"]
    log_probs, log_tail = codec.decode(codec.encode(log[:, :-1], log[:, -1], grid), grid)
    stored: list[list[float]] = np.exp(np.column_stack([log_probs, log_tail])).tolist()
    return stored


# The last number of each position is the tail.
STORED = {
    "a": as_stored([[0.7, 0.2, 0.1], [0.95, 0.04, 0.01]]),
    "b": as_stored([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.9, 0.0999, 1e-4]]),
}
PROBABILITIES = {id: [position[:2] for position in stored] for id, stored in STORED.items()}
TAILS = {id: [position[2] for position in stored] for id, stored in STORED.items()}
TOKENS = {"a": [[10, 5], [9, 5]], "b": [[5, 20], [6, 7], [9, 5]]}


@pytest.fixture
def knowledge(tmp_path: Path, rows: list[EncodedSample]) -> Knowledge:
    """The knowledge of both, written in reverse order."""
    known = [
        TopK(
            np.array(TOKENS[row.id], np.int32),
            np.log(PROBABILITIES[row.id]).astype(np.float32),
            np.log(TAILS[row.id]).astype(np.float32),
        )
        for row in rows
    ]
    shards.write_shard(shards.shard_path(tmp_path, 0), rows[::-1], known[::-1], FORMAT)
    return Knowledge(tmp_path)


@pytest.fixture
def positions(rows: list[EncodedSample], knowledge: Knowledge) -> Positions:
    return soft_targets.positions_of(rows, knowledge)


IS_ANSWER = [True, False, False, True, False]


def test_positions_line_up_with_the_samples(positions: Positions) -> None:
    np.testing.assert_allclose(positions.topk, PROBABILITIES["a"] + PROBABILITIES["b"], rtol=1e-6)
    assert positions.topk.dtype == np.float64
    assert positions.targets.tolist() == [10, 9, 20, 11, 9]
    assert positions.is_answer.tolist() == IS_ANSWER
    # Which of the k is the true token: the first, the first, the second, none, the first.
    assert positions.is_label.tolist() == [
        [True, False],
        [True, False],
        [False, True],
        [False, False],
        [True, False],
    ]
    np.testing.assert_allclose(positions.mass, 1 - np.array(TAILS["a"] + TAILS["b"]), rtol=1e-6)
    answers = positions.where(positions.is_answer)
    assert answers.targets.tolist() == [10, 11]
    assert answers.token_ids.tolist() == [[10, 5], [6, 7]]


def test_positions_follow_the_order_of_the_samples(
    rows: list[EncodedSample], knowledge: Knowledge
) -> None:
    reverse = soft_targets.positions_of(rows[::-1], knowledge)
    assert reverse.targets.tolist() == [20, 11, 9, 10, 9]
    np.testing.assert_allclose(reverse.topk, PROBABILITIES["b"] + PROBABILITIES["a"], rtol=1e-6)


def test_instruction_tasks_recalibrate_all_positions(tmp_path: Path) -> None:
    row = EncodedSample("a", np.array([1, 2, 3], np.int32), start=1, answer_position=None)
    half, nothing = np.full((2, 2), -0.6931472, np.float32), np.full(2, -np.inf, np.float32)
    known = TopK(np.zeros((2, 2), np.int32), half, nothing)
    shards.write_shard(shards.shard_path(tmp_path, 0), [row], [known], FORMAT)
    positions = soft_targets.positions_of([row], Knowledge(tmp_path))
    assert not positions.is_answer.any()
    assert soft_targets.positions_mode(arm(), [row]) == "all"
    assert soft_targets.is_recalibrated("all", positions).all()


def test_small_tails_keep_their_digits(positions: Positions) -> None:
    """1 - (1 - t) would lose all of them."""
    tails = np.array([1e-17, 1e-12, 1e-9, 0.5, 0.0])
    with np.errstate(divide="ignore"):
        exact = Positions(
            positions.topk,
            np.log(tails),
            positions.token_ids,
            positions.targets,
            positions.is_answer,
            positions.sample_ids,
            positions.number,
        )
    soft = soft_targets_of(arm(), exact, Recalibrated(np.full((5, 2), 0.5), exact.mass, None))
    np.testing.assert_allclose(soft.tail, tails, rtol=1e-5)
    assert (exact.mass <= 1).all() and exact.mass[4] == 1


# Which positions are recalibrated.


def smoothed(top: float, second: float) -> list[float]:
    share = top / (top + second)
    return [share - 0.1, 1 - share + 0.1]


def plain(top: float, second: float) -> list[float]:
    return [(top + E) / (top + second + 2 * E), (second + E) / (top + second + 2 * E)]


@pytest.mark.parametrize(
    ("recalibrate", "mask"),
    [(None, IS_ANSWER), ("decisive", IS_ANSWER), ("all", [True] * 5)],
)
def test_only_the_selected_positions_are_recalibrated(
    rows: list[EncodedSample], positions: Positions, recalibrate: str | None, mask: list[bool]
) -> None:
    """All other positions get `none`: brackets and EOS must keep their confidence."""
    smoothing = arm("label-smoothing", {"delta": 0.1}, recalibrate=recalibrate)
    mode = soft_targets.positions_mode(smoothing, rows)
    assert soft_targets.is_recalibrated(mode, positions).tolist() == mask
    got = distribution(smoothing, mode, positions)
    expected = [
        smoothed(*p) if selected else plain(*p)
        for p, selected in zip(PROBABILITIES["a"] + PROBABILITIES["b"], mask, strict=True)
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(got.sum(axis=1), 1.0)


def test_temperature_scaling_acts_on_probabilities_as_stored(positions: Positions) -> None:
    """Eq. 4 is exp(p / T), over the probabilities themselves: not p^(1/T), not p / P."""
    scaling = arm("temperature-scaling", {"temperature": 0.3})
    got = distribution(scaling, "decisive", positions)
    weights = np.exp(np.array(PROBABILITIES["b"][1]) / 0.3)
    np.testing.assert_allclose(got[3], weights / weights.sum(), rtol=1e-6)
    np.testing.assert_allclose(got[1], plain(*PROBABILITIES["a"][1]), rtol=1e-5)


# Mass.


def soft_targets_at(positions: Positions, of: Arm, mode: PositionsMode = "decisive") -> SoftTargets:
    result = soft_targets.recalibrated(of, mode, recalibrator(of), positions)
    return soft_targets_of(of, positions, result)


def test_mass_teacher_keeps_the_tail(positions: Positions) -> None:
    soft = soft_targets_at(positions, arm("label-smoothing", {"delta": 0.1}))
    tails = TAILS["a"] + TAILS["b"]
    np.testing.assert_allclose(soft.tail, tails, rtol=1e-6)
    np.testing.assert_allclose(soft.probabilities.sum(axis=1) + soft.tail, 1.0, atol=1e-6)
    np.testing.assert_allclose(soft.teacher_mass, 1 - np.array(tails), rtol=1e-6)
    assert soft.probabilities.dtype == soft.tail.dtype == soft.teacher_mass.dtype == np.float32
    (answer, other), (tail, small) = PROBABILITIES["a"], TAILS["a"]
    expected = [(1 - tail) * np.array(smoothed(*answer)), (1 - small) * np.array(plain(*other))]
    np.testing.assert_allclose(soft.probabilities[:2], expected, 1e-5)
    assert soft.token_ids.tolist() == TOKENS["a"] + TOKENS["b"]


def test_mass_one_leaves_no_tail(positions: Positions) -> None:
    for of in (arm(mass="one"), arm(objective="topk-renormalized")):
        soft, tails = soft_targets_at(positions, of), TAILS["a"] + TAILS["b"]
        assert (soft.tail == 0).all()  # exactly 0, or log(0) enters the loss
        np.testing.assert_allclose(soft.probabilities.sum(axis=1), 1.0, atol=1e-6)
        # P is the teacher's mass, independent of M.
        np.testing.assert_allclose(soft.teacher_mass, 1 - np.array(tails), rtol=1e-6)


# Batches.


def drawn_knowledge(
    folder: Path, count: int, answers: bool, k: int = 5
) -> tuple[list[EncodedSample], Knowledge]:
    """Samples with 1 to 6 positions; every second one has an answer position, or none has."""
    draw = np.random.default_rng(0)
    rows, known = [], []
    for number in range(count):
        start, positions = int(draw.integers(1, 5)), int(draw.integers(1, 7))
        ids = draw.integers(0, 30, start + positions, dtype=np.int32)
        at = start + positions - 1 if answers and number % 2 else None
        rows.append(EncodedSample(f"s{number}", ids, start, at))
        p = -np.sort(-draw.dirichlet(np.ones(k + 1), positions)[:, :k], axis=1)
        known.append(
            TopK(
                draw.integers(0, 30, (positions, k), dtype=np.int32),
                np.log(p).astype(np.float32),
                np.log1p(-p.sum(axis=1)).astype(np.float32),
            )
        )
    shards.write_shard(
        shards.shard_path(folder, 0), rows, known, dataclasses.replace(FORMAT, top_k=k)
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


@pytest.mark.parametrize("answers", [False, True])
def test_soft_targets_do_not_depend_on_the_batch(tmp_path: Path, answers: bool) -> None:
    """Bit for bit, also for a batch without answer positions when other batches have some."""
    rows, known = drawn_knowledge(tmp_path, 60, answers)
    whole = soft_targets.positions_of(rows, known)
    counts = [len(row.targets) for row in rows]
    places = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    for of in ARMS:
        expected = soft_targets_at(whole, of, soft_targets.positions_mode(of, rows))
        builder = SoftTargetBuilder(of, recalibrator(of), known, rows)
        for batch in ([0], [2, 0, 4], [1], list(range(60))[::-1], [7, 8, 9, 59]):
            got = builder([rows[i] for i in batch])
            selected = np.concatenate([places[i] for i in batch])
            for name in ("token_ids", "probabilities", "tail", "teacher_mass"):
                ours, theirs = getattr(got, name), getattr(expected, name)[selected]
                assert ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes(), (of, name)


def test_a_recalibrator_is_fitted_on_the_positions_it_is_applied_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soft_targets, "CHUNK_SAMPLES", 7)
    rows, known = drawn_knowledge(tmp_path, 60, True)
    whole = soft_targets.positions_of(rows, known)
    for of in ARMS:
        mode = soft_targets.positions_mode(of, rows)
        expected = whole.where(soft_targets.is_recalibrated(mode, whole))
        joined = Positions.joined(list(soft_targets.recalibrated_chunks(of, rows, known)))
        for field in dataclasses.fields(Positions):
            ours, theirs = getattr(joined, field.name), getattr(expected, field.name)
            np.testing.assert_array_equal(ours, theirs)


class Swapping(NoRecalibration):
    """Swaps the first two tokens where the teacher is not confident."""

    order_preserving = False

    def transform(self, topk: FloatArray) -> FloatArray:
        target = super().transform(topk)
        low = topk[:, 0] < 0.6
        target[low, :2] = target[low, 1::-1]
        return target


def test_swapped_ranks_are_counted_over_all_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soft_targets, "CHUNK_SAMPLES", 7)
    rows, known = drawn_knowledge(tmp_path, 60, False)
    swapped = soft_targets.positions_of(rows, known).topk[:, 0] < 0.6
    assert 0 < swapped.mean() < 1
    swapping = checked(Swapping(Swapping.Options()))
    assert SoftTargetBuilder(arm(), swapping, known, rows).rank_swaps() == pytest.approx(
        swapped.mean()
    )
    monkeypatch.setattr(Swapping, "order_preserving", True)
    assert SoftTargetBuilder(arm(), swapping, known, rows).rank_swaps() == 0


# Fitted recalibrators.


def test_a_fitted_state_is_read_from_its_artifact(tmp_path: Path, positions: Positions) -> None:
    fitted = arm("temperature-scaling")
    original = recalibrator(fitted)
    answers = positions.where(positions.is_answer)
    answer_rows = soft_targets.rows_of(fitted, answers, "", {})
    original.fit(answer_rows, answers.is_label)
    artifact = tmp_path / "first.json"
    artifact.write_text(json.dumps({"state": original.state(), "rows": 2}))
    restored = soft_targets.recalibrator_for(fitted, artifact)
    np.testing.assert_array_equal(
        restored.transform(answer_rows).distribution, original.transform(answer_rows).distribution
    )


def test_a_recalibrator_that_is_not_fitted_needs_no_artifact(tmp_path: Path) -> None:
    smoothing = soft_targets.recalibrator_for(arm("label-smoothing"), tmp_path / "absent.json")
    assert not smoothing.needs_fit


class MovingTheTail(NoRecalibration):
    """Gives the first token a fixed share of all probability, and the tail the rest."""

    def transform_rows(self, rows: TopKRows) -> FloatArray:
        received.append(rows)
        share = np.full((len(rows), 1), 0.75)
        return np.hstack([share, np.zeros((len(rows), rows.topk.shape[1] - 1)), 1 - share])


received: list[TopKRows] = []


def test_a_recalibrator_gets_everything_and_can_move_the_tail(
    rows: list[EncodedSample], knowledge: Knowledge
) -> None:
    received.clear()
    moving, tokens = checked(MovingTheTail(NoRecalibration.Options())), {"a": (5, 10), "b": (7, 8)}
    soft = SoftTargetBuilder(arm(), moving, knowledge, rows, "a task", tokens)(rows)
    tails = np.array(TAILS["a"] + TAILS["b"])
    answer = np.array(IS_ANSWER)
    np.testing.assert_allclose(soft.tail, np.where(answer, 0.25, tails), rtol=1e-6)
    np.testing.assert_allclose(soft.probabilities.sum(axis=1) + soft.tail, 1, atol=1e-6)
    np.testing.assert_allclose(soft.probabilities[answer], [[0.75, 0], [0.75, 0]], rtol=1e-6)
    np.testing.assert_allclose(soft.teacher_mass, 1 - tails, rtol=1e-6)
    [given] = received
    assert (given.task, given.mass_mode, list(given.sample_ids)) == (
        "a task",
        "teacher",
        ["a", "b"],
    )
    assert given.token_ids is not None and given.token_ids.tolist() == [[10, 5], [6, 7]]
    assert given.candidate.tolist() == [[1, 0], [-1, 0]]
    assert given.position.tolist() == [0, 1] and given.is_answer.all()
    np.testing.assert_allclose(given.mass, 1 - tails[answer], rtol=1e-6)


def test_token_ids_are_exchanged_after_recalibration(
    rows: list[EncodedSample], knowledge: Knowledge
) -> None:
    """A recalibrator sees the teacher's tokens, as it did when it was fitted."""
    received.clear()
    moving, tokens = checked(MovingTheTail(NoRecalibration.Options())), {"a": (5, 10), "b": (7, 8)}
    plain = SoftTargetBuilder(arm(), moving, knowledge, rows, "a task", tokens)(rows)
    builder = SoftTargetBuilder(arm(), moving, knowledge, rows, "a task", tokens, (5, 6))
    exchanged = builder(rows)
    names = {5: 6, 6: 5}
    expected = [[names.get(id, id) for id in row] for row in plain.token_ids.tolist()]
    assert exchanged.token_ids.tolist() == expected != plain.token_ids.tolist()
    np.testing.assert_array_equal(exchanged.probabilities, plain.probabilities)
    assert received[0].token_ids is not None and received[1].token_ids is not None
    assert received[0].token_ids.tolist() == received[1].token_ids.tolist()
    assert received[0].candidate.tolist() == received[1].candidate.tolist()


def test_labels_are_marked_for_the_hard_gate_alone(
    rows: list[EncodedSample], knowledge: Knowledge
) -> None:
    """In the student's tokens; a sample without a label, and a label outside, have no mark."""
    none, gate = recalibrator(arm()), arm(objective="hard-gate")
    assert SoftTargetBuilder(arm(), none, knowledge, rows)(rows).is_label is None
    marked = SoftTargetBuilder(gate, none, knowledge, rows)(rows).is_label
    assert marked is not None
    expected = [[True, False], [True, False], [False, True], [False, False], [True, False]]
    assert marked.tolist() == expected
    labelled = SoftTargetBuilder(gate, none, knowledge, rows, without_label={"b"})(rows)
    assert labelled.is_label is not None
    assert labelled.is_label.tolist() == [*expected[:2], *[[False, False]] * 3]
    exchanged = SoftTargetBuilder(gate, none, knowledge, rows, exchanged=(7, 11))(rows)
    assert exchanged.is_label is not None
    assert exchanged.is_label.tolist()[3] == [False, True]  # the teacher's 7 is the student's 11
