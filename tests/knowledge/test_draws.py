"""Random draws of the teacher's tokens: unbiased, exact on disk, and bound to the sample."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from conftest import MakeLlama
from firstcli.data.encoding import EncodedSample
from firstcli.errors import UserError
from firstcli.knowledge import draws, shards
from firstcli.knowledge.codec import Precision
from firstcli.knowledge.shards import StoreFormat
from firstcli.knowledge.store import Knowledge
from firstcli.knowledge.top_k import TopK
from firstcli.models import inference, readout
from firstcli.recipe.sections import Arm
from firstcli.stages.scoring import DrawSettings, drawn_of
from firstcli.training import objectives, soft_targets

VOCABULARY = 50
N = 20


def some_logits(rows: int, vocabulary: int, seed: int, spread: float = 2.0) -> torch.Tensor:
    return spread * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def drawn(logits: torch.Tensor, uniforms: np.ndarray, limit: int) -> np.ndarray:
    points = torch.from_numpy(uniforms)
    return readout.drawn(readout.Logits(logits.clone()), points, limit).long().numpy()


def naive_counts(tokens: np.ndarray) -> dict[int, int]:
    counts: dict[int, int] = {}
    for token in tokens.tolist():
        counts[token] = counts.get(token, 0) + 1
    return counts


# The distribution.


@given(
    vocabulary=st.integers(1, 30), spread=st.sampled_from([0.1, 3.0, 30.0]), seed=st.integers(0, 99)
)
def test_the_inverse_of_the_cdf_against_a_loop_in_float64(
    vocabulary: int, spread: float, seed: int
) -> None:
    logits = some_logits(3, vocabulary, seed, spread)
    uniforms = np.random.default_rng(seed).random((3, 8))
    found = drawn(logits, uniforms, vocabulary)
    for p, points, tokens in zip(logits.double().softmax(-1).numpy(), uniforms, found, strict=True):
        for u, token in zip(points, tokens, strict=True):
            below, until = p[:token].sum(), p[: token + 1].sum()
            assert below - 1e-12 <= u <= until + 1e-12 and p[token] > 0


def test_evenly_spread_random_numbers_give_the_whole_distribution() -> None:
    """The expectation over the random number: within one of M of the float64 softmax."""
    many, logits = 100_000, some_logits(1, 12, 0)
    points = ((np.arange(many) + 0.5) / many)[None]
    shares = np.bincount(drawn(logits, points, 12)[0], minlength=12) / many
    np.testing.assert_allclose(shares, logits[0].double().softmax(-1), atol=1.01 / many)


def test_the_mean_over_seeds_is_the_whole_distribution() -> None:
    """Chi-square of the summed weights of 400 seeds, at two positions."""
    vocabulary, seeds = 9, 400
    logits = some_logits(2, vocabulary, 1, spread=1.5)
    total = np.zeros((2, vocabulary))
    for seed in range(seeds):
        known = draws.counted(
            drawn(logits, draws.uniforms("q", 2, N, seed), vocabulary), vocabulary
        )
        np.testing.assert_allclose(np.exp(known.log_probs, dtype=float).sum(1), 1, atol=1e-6)
        for position in range(2):
            total[position, known.token_ids[position]] += np.exp(known.log_probs[position])
    expected = logits.double().softmax(-1).numpy() * seeds
    for found, wanted in zip(total * N, expected * N, strict=True):
        assert stats.chisquare(found, wanted * found.sum() / wanted.sum()).pvalue > 0.01


def test_only_shared_tokens_of_some_probability_are_drawn() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0, 9.0]])
    edges = np.array([[0.0, 0.2689414213699951, 1 - 2.0**-53, 0.5]])
    found = drawn(logits, edges, 3)
    assert set(found[0].tolist()) == {0, 2} and found[0, 0] == 0 and found[0, 2] == 2
    with torch.no_grad():
        broken = readout.drawn(
            readout.Logits(torch.tensor([[torch.nan, 1.0]])), torch.zeros(1, 3).double(), 2
        )
    assert torch.isnan(broken).all()


# Random numbers belong to the sample.


def test_random_numbers_depend_on_sample_position_and_seed_alone() -> None:
    some = draws.uniforms("a", 5, N, 3)
    assert some.shape == (5, N) and some.min() >= 0 and some.max() < 1
    np.testing.assert_array_equal(some, draws.uniforms("a", 5, N, 3))
    np.testing.assert_array_equal(some[:2], draws.uniforms("a", 2, N, 3))
    for other in (draws.uniforms("b", 5, N, 3), draws.uniforms("a", 5, N, 4)):
        assert not np.intersect1d(some, other).size
    assert len(np.unique(some)) == some.size
    assert stats.kstest(draws.uniforms("a", 500, N, 0).ravel(), "uniform").pvalue > 0.01


def some_rows(count: int) -> list[EncodedSample]:
    generator = np.random.default_rng(0)
    rows = []
    for number in range(count):
        length = int(generator.integers(3, 20))
        ids = generator.integers(0, VOCABULARY, length, dtype=np.int32)
        rows.append(EncodedSample(f"s{number}", ids, int(generator.integers(1, length)), None))
    return rows


@torch.inference_mode()
def extract(
    model: object, rows: list[EncodedSample], tokens: int, batching: inference.Batching = "padded"
) -> dict[str, TopK]:
    reader = readout.Reader(model)  # type: ignore[arg-type]
    found: dict[str, TopK] = {}
    for batch in inference.batches([len(row.input_ids) for row in rows], tokens):
        chosen = [rows[i] for i in batch]
        found |= drawn_of(reader, chosen, DrawSettings(N, 7), VOCABULARY, batching)
    return found


def test_batch_composition_order_and_padding_change_nothing(make_llama: MakeLlama) -> None:
    model, rows = make_llama(VOCABULARY), some_rows(12)
    alone = extract(model, rows, tokens=1)
    for tokens, order in ((10_000, rows), (60, rows[::-1]), (200, rows[6:] + rows[:6])):
        together = extract(model, order, tokens)
        assert together.keys() == alone.keys()
        for id in alone:
            np.testing.assert_array_equal(together[id].token_ids, alone[id].token_ids)
            np.testing.assert_array_equal(together[id].log_probs, alone[id].log_probs)


def test_a_position_is_drawn_from_its_own_prediction(make_llama: MakeLlama) -> None:
    """Against one unpadded forward pass per sample and a loop in float64."""
    model, rows = make_llama(VOCABULARY), some_rows(6)
    found = extract(model, rows, tokens=10_000)
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(row.input_ids[None], dtype=torch.long)).logits[0]
        p = logits.double().softmax(-1).numpy()
        uniforms = draws.uniforms(row.id, len(row.targets), N, 7)
        for number, place in enumerate(row.positions):
            tokens = np.array([(np.cumsum(p[place - 1]) > u).argmax() for u in uniforms[number]])
            weights = np.exp(found[row.id].log_probs[number], dtype=float)
            stored = dict(zip(found[row.id].token_ids[number].tolist(), weights, strict=True))
            assert {token: round(N * w) for token, w in stored.items() if w} == naive_counts(tokens)


def test_output_that_is_not_finite_names_its_samples(make_llama: MakeLlama) -> None:
    model, rows = make_llama(VOCABULARY), some_rows(3)
    rows.append(EncodedSample("broken", np.array([1, 2, 49, 3], np.int32), 1, None))
    rows = [row for row in rows if row.id == "broken" or 49 not in row.input_ids]
    with torch.no_grad():
        model.get_input_embeddings().get_parameter("weight")[49] = torch.nan
    with pytest.raises(UserError, match=r"not finite for 1 samples, such as 'broken'"):
        extract(model, rows, tokens=10_000)


# Counting and storing.


@given(
    count=st.sampled_from([1, 2, 7, 20, 50, 1000]),
    vocabulary=st.integers(1, 60),
    seed=st.integers(0, 2**31),
)
def test_counts_against_a_naive_count_and_exact_after_storing(
    count: int, vocabulary: int, seed: int
) -> None:
    tokens = np.random.default_rng(seed).integers(0, vocabulary, (4, count))
    known = draws.counted(tokens, width := min(count, vocabulary))
    assert known.token_ids.shape == known.log_probs.shape == (4, width)
    logs, tail = draws.decode(draws.encode(known, count), count)
    np.testing.assert_array_equal(logs, known.log_probs)
    assert np.isneginf(tail).all() and np.isneginf(known.log_tail).all()
    for position in range(4):
        ids = known.token_ids[position].tolist()
        assert len(set(ids)) == width and max(ids) < vocabulary
        counts = draws.counts_of(logs[position], count)
        assert counts.sum() == count and (np.diff(counts) <= 0).all()
        found = {token: c for token, c in zip(ids, counts.tolist(), strict=True) if c}
        assert found == naive_counts(tokens[position])


@pytest.mark.parametrize("precision", ["standard", "compact"])
def test_weights_are_exact_in_the_store_of_either_precision(
    tmp_path: Path, precision: Precision
) -> None:
    rows, count = some_rows(8), 7
    known, width = {}, min(7, VOCABULARY)
    for row in rows:
        logits = some_logits(len(row.targets), VOCABULARY, len(row.input_ids), spread=4)
        tokens = drawn(logits, draws.uniforms(row.id, len(row.targets), count, 0), VOCABULARY)
        known[row.id] = draws.counted(tokens, width)
    format = StoreFormat(width, precision, "train", shards=1, draws=count)
    path = shards.shard_path(tmp_path, 0)
    shards.write_shard(path, rows, [known[row.id] for row in rows], format)
    assert StoreFormat.of(shards.read_shard(path).facts).draws == count
    stored = Knowledge(tmp_path, format)
    for row in rows:
        again = stored.of(row)
        np.testing.assert_array_equal(again.token_ids, known[row.id].token_ids)
        np.testing.assert_array_equal(again.log_probs, known[row.id].log_probs)
        targets = soft_targets.drawn_targets(soft_targets.Positions.of([row], [again]), count)
        weights = np.float32(draws.counts_of(known[row.id].log_probs, count) / count)
        np.testing.assert_array_equal(targets.probabilities, weights)
        assert not targets.tail.any() and (targets.teacher_mass == 1).all()
    with pytest.raises(UserError, match="made with draws = 7, not 8"):
        Knowledge(tmp_path, StoreFormat(width, precision, draws=8))


def test_the_share_of_changed_draws() -> None:
    before = draws.counted(np.array([[1, 1, 2, 3], [5, 5, 5, 5]]), 4)
    after = draws.counted(np.array([[1, 2, 2, 4], [5, 5, 5, 5]]), 4)
    assert draws.changed(before, before, 4) == 0
    assert draws.changed(before, after, 4) == pytest.approx(2 / 8)


def test_changed_draws_are_compared_position_by_position() -> None:
    """All pairs of 30 positions with 600 draws would take 10.8 million numbers."""
    drawn_ids = np.random.default_rng(0).integers(0, 5000, (2, 30, 600))
    before, after = (draws.counted(ids, 600) for ids in drawn_ids)
    same = sum(
        min(count, naive_counts(now).get(token, 0))
        for then, now in zip(*drawn_ids, strict=True)
        for token, count in naive_counts(then).items()
    )
    tracemalloc.start()
    share = draws.changed(before, after, 600)
    assert tracemalloc.get_traced_memory()[1] < 30 * 600 * 600
    tracemalloc.stop()
    assert share == pytest.approx(1 - same / (30 * 600))


# The loss.


def test_loss_and_gradient_are_those_of_the_mean_cross_entropy_of_all_draws() -> None:
    """Against a loop over draws in float64; the constant of the KL has no gradient."""
    positions, vocabulary = 5, 30
    teacher = some_logits(positions, vocabulary, 2)
    tokens = drawn(teacher, draws.uniforms("x", positions, N, 0), vocabulary)
    row = EncodedSample("x", np.arange(positions + 1, dtype=np.int32), 1, None)
    known = soft_targets.Positions.of([row], [draws.counted(tokens, N)])
    targets = soft_targets.drawn_targets(known, N)
    student = some_logits(positions, vocabulary, 3).double().requires_grad_()
    view = objectives.student_view(student, torch.from_numpy(targets.token_ids).long())
    p = torch.from_numpy(targets.probabilities).double()
    loss = objectives.topk_tail(view, p, torch.from_numpy(targets.tail).double())
    (gradient,) = torch.autograd.grad(loss.sum(), student)

    other = student.detach().clone().requires_grad_()
    naive = torch.zeros((), dtype=torch.float64)
    for position in range(positions):
        for token in tokens[position].tolist():
            naive = naive - other[position].log_softmax(-1)[token] / N
    (expected,) = torch.autograd.grad(naive, other)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-7)
    entropy = -torch.special.xlogy(p, p).sum()
    torch.testing.assert_close(loss.sum() + entropy, naive.detach(), rtol=1e-6, atol=1e-7)


def test_an_arm_learns_what_was_drawn(tmp_path: Path) -> None:
    """Not what `none` makes of it, which adds a little to every token."""
    row = EncodedSample("x", np.arange(3, dtype=np.int32), 1, None)
    known = draws.counted(np.array([[7, 7, 7, 2], [1, 1, 1, 1]]), 4)

    class Source:
        top_k = 4

        def of(self, sample: EncodedSample) -> TopK:
            return known

    arm = Arm.model_validate({"recalibrator": {"name": "none"}})
    recalibrator = soft_targets.recalibrator_for(arm, tmp_path)
    builder = soft_targets.SoftTargetBuilder(arm, recalibrator, Source(), [row], draws=4)
    targets = builder([row])
    assert targets.probabilities.tolist() == [[0.75, 0.25, 0, 0], [1, 0, 0, 0]]
    assert targets.token_ids.tolist() == [[7, 2, 0, 1], [1, 0, 2, 3]]
