"""Extraction: exact tails, and the same knowledge for a sample in any batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from conftest import MakeLlama
from firstcli.api import Sample
from firstcli.data.encoding import EncodedSample
from firstcli.errors import UserError
from firstcli.knowledge import shards, store
from firstcli.knowledge.codec import Precision
from firstcli.knowledge.top_k import TopK
from firstcli.models import inference, readout
from firstcli.recipe.schema import Recipe
from firstcli.runtime.console import Console
from firstcli.stages import inputs, role_models, scoring, units_of
from firstcli.stages.extract import EXTRACT
from firstcli.stages.scoring import split_into_shards, top_k_of
from firstcli.workspace.run import Run
from support.encoding import encode_training

TOP_K = 5


def row(id: str, ids: Sequence[int], start: int, answer: int | None = None) -> EncodedSample:
    return EncodedSample(id, np.array(ids, np.int32), start, answer)


def random_rows(count: int, vocabulary: int, seed: int = 0) -> list[EncodedSample]:
    """Samples of different lengths, each with its own number of supervised positions."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        length = int(generator.integers(3, 20))
        start = int(generator.integers(1, length))
        rows.append(row(f"s{number}", generator.integers(0, vocabulary, length).tolist(), start))
    return rows


# The arithmetic, against float64.


@given(
    vocabulary=st.integers(2, 40),
    data=st.data(),
    spread=st.sampled_from([0.1, 1.0, 5.0, 30.0]),
    seed=st.integers(0, 2**31),
)
def test_top_k_and_tail_against_a_dense_float64_softmax(
    vocabulary: int, data: st.DataObject, spread: float, seed: int
) -> None:
    limit = data.draw(st.integers(1, vocabulary))
    k = data.draw(st.integers(1, limit))
    logits = spread * torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(seed))
    p = logits.double().softmax(-1)
    token_ids, log_probs, log_tail = readout.unpack(
        readout.top_k(readout.Logits(logits.clone()), k, limit)
    )
    assert token_ids.max() < limit and token_ids.shape == (3, k)
    assert (log_probs.diff(dim=-1) <= 0).all()  # most likely first
    expected = p[:, :limit].topk(k, dim=-1).values
    torch.testing.assert_close(log_probs.double(), expected.log(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(p.gather(-1, token_ids), expected)
    tail = p.scatter(-1, token_ids, 0.0).sum(-1)
    torch.testing.assert_close(log_tail.double(), tail.log(), rtol=1e-5, atol=1e-5)
    if k == vocabulary:
        assert torch.isneginf(log_tail).all()


def test_ids_that_the_student_lacks_count_as_tail() -> None:
    """The teacher's most likely token may lie beyond the student's vocabulary."""
    p = torch.tensor([[0.1, 0.2, 0.05, 0.65]])
    token_ids, log_probs, log_tail = readout.unpack(
        readout.top_k(readout.Logits(p.log()), 2, limit=3)
    )
    assert token_ids.tolist() == [[1, 0]]
    torch.testing.assert_close(log_probs.exp(), torch.tensor([[0.2, 0.1]]))
    torch.testing.assert_close(log_tail.exp(), torch.tensor([0.7]))


# The alignment: what is stored for a target is the prediction of that target.


class Successor(nn.Module):
    """A teacher that predicts t + 1 after token t, with falling log-probabilities around it.

    Its head is the identity, so that the logits at a position are a known function of its token.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        distance = (torch.arange(vocabulary)[None] - torch.arange(vocabulary)[:, None] - 1).abs()
        self.table = nn.Parameter(-distance.float())
        self.head = nn.Identity()

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, **_: object) -> object:
        logits = self.head(self.table[input_ids])
        return type("Output", (), {"logits": logits})


def test_planted_tokens_are_found_where_they_were_planted() -> None:
    """Counting sequences: the stored top-1 at every target is the target, no position off."""
    rows = [
        row("a", range(10, 20), start=4),
        row("b", range(3, 6), start=2),
        row("c", range(30, 45), start=1),
    ]
    reader = readout.Reader(Successor(60))  # type: ignore[arg-type]
    with torch.no_grad():
        found = top_k_of(reader, rows, TOP_K, 60)
    for one in rows:
        assert found[one.id].token_ids[:, 0].tolist() == one.targets.tolist()
        neighbours = [{int(t) + d for d in (-2, -1, 0, 1, 2)} for t in one.targets]
        assert [set(ids.tolist()) for ids in found[one.id].token_ids] == neighbours


def naive_top_k(
    model: nn.Module, one: EncodedSample, k: int
) -> tuple[list[list[int]], list[float]]:
    """Read each target's top-k ids and tail off one unpadded forward pass, position by position."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(one.input_ids[None], dtype=torch.long)).logits[0]
    ids, tails = [], []
    for target in range(one.start, len(one.input_ids)):
        p = logits[target - 1].double().softmax(-1)
        top = p.topk(k).indices
        ids.append(top.tolist())
        tails.append(float(1 - p[top].sum()))
    return ids, tails


@torch.inference_mode()
def extract(
    model: object, rows: Sequence[EncodedSample], tokens: int, limit: int
) -> dict[str, TopK]:
    reader = readout.Reader(model)  # type: ignore[arg-type]
    found: dict[str, TopK] = {}
    for batch in inference.batches([len(one.input_ids) for one in rows], tokens):
        found |= top_k_of(reader, [rows[i] for i in batch], TOP_K, limit)
    return found


def assert_same_knowledge(some: TopK, other: TopK) -> None:
    np.testing.assert_allclose(some.log_probs, other.log_probs, atol=1e-5)
    np.testing.assert_allclose(some.log_tail, other.log_tail, atol=1e-5)
    np.testing.assert_array_equal(some.token_ids, other.token_ids)


def assert_within_bounds(stored: TopK, exact: TopK, precision: Precision) -> None:
    """What a precision promises: ids and ranks kept, no probability further off than this."""
    bound = {"standard": 0.005, "compact": 0.025}[precision]
    np.testing.assert_array_equal(stored.token_ids, exact.token_ids)
    assert (np.diff(stored.log_probs) <= 0).all()
    np.testing.assert_allclose(np.exp(stored.log_probs), np.exp(exact.log_probs), 0, bound)
    np.testing.assert_allclose(np.exp(stored.log_tail), np.exp(exact.log_tail), 0, bound)


def test_a_real_model_against_one_position_at_a_time(make_llama: MakeLlama) -> None:
    model, rows = make_llama(50), random_rows(12, 50)
    found = extract(model, rows, tokens=64, limit=50)
    for one in rows:
        ids, tails = naive_top_k(model, one, TOP_K)
        assert found[one.id].token_ids.tolist() == ids
        np.testing.assert_allclose(np.exp(found[one.id].log_tail), tails, atol=1e-5)
        assert found[one.id].token_ids.dtype == np.int32
        assert found[one.id].log_probs.dtype == found[one.id].log_tail.dtype == np.float32


def test_batch_composition_order_and_padding_change_nothing(make_llama: MakeLlama) -> None:
    model, rows = make_llama(50), random_rows(12, 50)
    alone = extract(model, rows, tokens=1, limit=50)
    for tokens, order in ((10_000, rows), (60, rows[::-1]), (200, rows[6:] + rows[:6])):
        together = extract(model, order, tokens, limit=50)
        assert together.keys() == alone.keys()
        for id in alone:
            assert_same_knowledge(together[id], alone[id])


def test_output_that_is_not_finite_names_its_samples(make_llama: MakeLlama) -> None:
    model, rows = make_llama(50), random_rows(4, 48)
    rows[2] = row("broken", [1, 2, 49, 3], start=1)
    with torch.no_grad():
        model.get_input_embeddings().get_parameter("weight")[49] = torch.nan
    with pytest.raises(UserError, match=r"not finite for 1 samples, such as 'broken'"):
        extract(model, rows, tokens=10_000, limit=50)


# Shards: the data alone decides, and looking up goes by id.


def test_shards_do_not_depend_on_the_order_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SHARD_POSITIONS", 40)
    rows = random_rows(13, 50)
    parts = [[one.id for one in shard] for shard in split_into_shards(rows)]
    counts = {one.id: len(one.targets) for one in rows}
    sizes = [sum(counts[id] for id in shard) for shard in parts]
    assert len(parts) > 2 and max(sizes) <= 40
    # None could have taken the next shard's first sample.
    firsts = [counts[shard[0]] for shard in parts[1:]]
    assert all(size + more > 40 for size, more in zip(sizes, firsts, strict=False))
    assert parts == [[one.id for one in shard] for shard in split_into_shards(rows[::-1])]


@pytest.mark.parametrize("precision", ["standard", "compact"])
@pytest.mark.parametrize("shard_positions", [30, 1000])
def test_a_store_gives_every_sample_its_own(
    tmp_path: Path,
    make_llama: MakeLlama,
    monkeypatch: pytest.MonkeyPatch,
    shard_positions: int,
    precision: Precision,
) -> None:
    monkeypatch.setattr(store, "SHARD_POSITIONS", shard_positions)
    rows = random_rows(10, 50)
    found = extract(make_llama(50), rows, tokens=64, limit=50)
    parts = split_into_shards(rows)
    format = shards.StoreFormat(TOP_K, precision, shards=len(parts))
    for index, shard in enumerate(parts):
        path = shards.shard_path(tmp_path, index)
        shards.write_shard(path, shard, [found[one.id] for one in shard], format)
    opened = store.Knowledge(tmp_path)
    opened.check(rows)
    for one in rows[::-1]:
        assert_within_bounds(opened.of(one), found[one.id], precision)


# The whole stage: a teacher with new weights, killed and resumed.


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A recipe whose teacher is not trained, over 40 rows of text."""
    lines = [
        {"id": f"r{n}", "prompt": f"Count {n}:", "response": " one two three"[: 3 + n % 11]}
        for n in range(40)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    model = {
        "family": "scratch",
        "options": {"hidden_size": 16, "layers": 1, "heads": 2, "vocabulary": 280},
    }
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "train": {"task": {"name": "instruction", "options": {"path": str(data)}}},
            "evaluate": [{"task": {"name": "known-world"}}],
            "teacher": {"model": model},
            "student": {"model": model},
            "arms": {"distill": {}},
        }
    )
    return Run(recipe, tmp_path / "run", Console(quiet=True))


def test_the_stage_stores_every_sample_under_its_id(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches and shards of several lengths, against one position at a time."""
    monkeypatch.setattr(store, "SHARD_POSITIONS", 80)
    monkeypatch.setattr(scoring, "EXTRACTION_TOKENS", 60)
    unit = units_of(run.recipe, run.folder)["extract train"]
    facts = EXTRACT.work(run, unit, tmp_path)
    assert facts
    opened = store.Knowledge(tmp_path)
    rows = inputs.training_rows(run, "teacher", "train")
    assert len(opened) == facts.samples == len(rows) > 32
    model = role_models.teacher(run)
    for one in rows:
        ids, tails = naive_top_k(model, one, TOP_K)
        known = opened.of(one)
        assert known.token_ids.tolist() == ids
        np.testing.assert_allclose(np.exp(known.log_tail), tails, atol=0.005)


def test_a_killed_extraction_resumes_and_ends_the_same(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SHARD_POSITIONS", 30)
    unit = units_of(run.recipe, run.folder)["extract train"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    facts = EXTRACT.work(run, unit, whole)
    written: list[str] = []
    write_shard = shards.write_shard

    def dies_at_the_third(path: Path, *args: Any) -> None:
        if len(written) == 2:
            path.with_name(f".{path.name}.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path.name)
        write_shard(path, *args)

    with monkeypatch.context() as dying:
        dying.setattr(shards, "write_shard", dies_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            EXTRACT.work(run, unit, killed)
    first = shards.shard_path(killed, 0).stat().st_mtime_ns
    assert EXTRACT.work(run, unit, killed) == facts
    assert shards.shard_path(killed, 0).stat().st_mtime_ns == first  # not done again
    assert {path.name: path.read_bytes() for path in killed.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }


@pytest.mark.shared
@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_real_tokenizers(name: str, shared_models: Path, make_llama: MakeLlama) -> None:
    """The paper's candidates, on a small random model with the whole vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(shared_models / "tokenizers" / name)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    prompt = "Q: Where?\n(a) here\n(b) over there\nA: The answer is ("
    samples = [
        Sample.question(prompt.replace("here", place), ["a).", "b)."], 1, id=place)
        for place in ("in the small house", "on top")
    ]
    rows, _ = encode_training(samples, tokenizer, "train")
    model = make_llama(len(tokenizer))
    found = extract(model, rows, tokens=1000, limit=len(tokenizer))
    for one in rows:
        ids, tails = naive_top_k(model, one, TOP_K)
        assert found[one.id].token_ids.tolist() == ids
        np.testing.assert_allclose(np.exp(found[one.id].log_tail), tails, atol=1e-5)
