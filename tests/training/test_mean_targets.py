"""The mean of the soft targets of several teachers, each recalibrated by itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstcli.api import MassMode
from firstcli.data.encoding import EncodedSample
from firstcli.knowledge.top_k import TopK
from firstcli.recalibration.builtin import NoRecalibration
from firstcli.recipe.sections import Arm
from firstcli.training.soft_targets import (
    Recalibration,
    SoftTargetBuilder,
    SoftTargets,
    mean_targets,
)
from support.recalibration import checked

VOCABULARY = 12
MASSES: tuple[MassMode, ...] = ("teacher", "one")


def some_targets(seed: int, positions: int, top_k: int, mass: MassMode) -> SoftTargets:
    generator = np.random.default_rng(seed)
    p = generator.dirichlet(np.full(VOCABULARY, 0.4), positions) + 1e-9
    p /= p.sum(axis=1, keepdims=True)
    ids = np.argsort(-p, axis=1)[:, :top_k]
    kept = np.take_along_axis(p, ids, axis=1)
    held = kept.sum(axis=1)
    tail = 1 - held
    if mass == "one":
        kept, tail = kept / held[:, None], np.zeros(positions)
    return SoftTargets(
        ids.astype(np.int32),
        kept.astype(np.float32),
        tail.astype(np.float32),
        held.astype(np.float32),
    )


@given(
    count=st.integers(1, 4),
    positions=st.integers(1, 4),
    top_k=st.integers(1, VOCABULARY - 1),
    mass=st.sampled_from(MASSES),
    seed=st.integers(0, 2**20),
)
def test_against_a_loop_over_teachers_and_tokens(
    count: int, positions: int, top_k: int, mass: MassMode, seed: int
) -> None:
    parts = [some_targets(seed + number, positions, top_k, mass) for number in range(count)]
    mean = mean_targets(parts, mass)
    assert mean.probabilities.shape == (positions, top_k)
    assert (np.diff(mean.probabilities, axis=1) <= 1e-6).all()
    for position in range(positions):
        sums: dict[int, float] = {}
        for part in parts:
            row = zip(part.token_ids[position], part.probabilities[position], strict=True)
            for token, value in row:
                sums[int(token)] = sums.get(int(token), 0.0) + float(value) / count
        best = dict(sorted(sums.items(), key=lambda item: (-item[1], item[0]))[:top_k])
        share = 1.0 if mass == "teacher" else 1 / sum(best.values())
        ids = mean.token_ids[position].tolist()
        assert len(set(ids)) == top_k
        for token, value in zip(ids, mean.probabilities[position], strict=True):
            np.testing.assert_allclose(value, share * sums[token], rtol=1e-5, atol=1e-7)
        tail = 1 - sum(best.values()) if mass == "teacher" else 0.0
        np.testing.assert_allclose(mean.tail[position], tail, atol=2e-6)
        held = np.mean([part.teacher_mass[position] for part in parts])
        np.testing.assert_allclose(mean.teacher_mass[position], held, rtol=1e-6)
    backwards = mean_targets(parts[::-1], mass)
    np.testing.assert_array_equal(backwards.token_ids, mean.token_ids)
    np.testing.assert_allclose(backwards.probabilities, mean.probabilities, rtol=1e-6)


@pytest.mark.parametrize("mass", MASSES)
@pytest.mark.parametrize("count", [2, 3])
def test_equal_teachers_are_one_teacher(mass: MassMode, count: int) -> None:
    one = some_targets(0, 6, 5, mass)
    mean = mean_targets([one] * count, mass)
    np.testing.assert_array_equal(mean.token_ids, one.token_ids)
    for name in ("probabilities", "tail", "teacher_mass"):
        np.testing.assert_allclose(getattr(mean, name), getattr(one, name), rtol=2e-6)


def test_certain_teachers_have_no_infinite_logarithm() -> None:
    certain = SoftTargets(
        np.array([[3, 0]], np.int32),
        np.array([[1, 0]], np.float32),
        np.zeros(1, np.float32),
        np.ones(1, np.float32),
    )
    other = dataclasses.replace(certain, token_ids=np.array([[5, 0]], np.int32))
    mean = mean_targets([certain, other], "one")
    assert dict(zip(mean.token_ids[0].tolist(), mean.probabilities[0].tolist(), strict=True)) == {
        3: pytest.approx(0.5),
        5: pytest.approx(0.5),
    }
    assert mean.tail.tolist() == [0]


class Halved(NoRecalibration):
    """Stands for a recalibrator that was fitted to one teacher: mixes with the uniform one."""

    def transform(self, topk: np.ndarray) -> np.ndarray:
        target = super().transform(topk)
        return np.asarray((target + 1 / topk.shape[1]) / 2)


def test_every_teacher_s_knowledge_meets_its_own_recalibrator() -> None:
    row = EncodedSample("x", np.arange(2, dtype=np.int32), 1, None)

    class Source:
        top_k = 2

        def __init__(self, p: list[float]) -> None:
            logs, tail = np.log(np.array([p], np.float32)), np.full(1, -20, np.float32)
            self.known = TopK(np.array([[4, 7]], np.int32), logs, tail)

        def of(self, sample: EncodedSample) -> TopK:
            return self.known

    arm = Arm.model_validate({"recalibrator": {"name": "none"}, "mass": "one"})
    plain, halved = (checked(each(each.Options())) for each in (NoRecalibration, Halved))
    further = [Recalibration(halved, Source([0.9, 0.1]))]
    builder = SoftTargetBuilder(arm, plain, Source([0.6, 0.4]), [row], further=further)
    targets = builder([row])
    assert targets.token_ids.tolist() == [[4, 7]]
    np.testing.assert_allclose(targets.probabilities, [[0.65, 0.35]], atol=1e-5)
