"""The tasks that `first export --lm-eval` writes, and lm-evaluation-harness, which runs them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from firstcli import metrics
from firstcli.api import Sample
from firstcli.data.encoding import Encoding, encode_questions
from firstcli.export import harness, lm_eval_hook
from firstcli.metrics.records import EvalRecords
from support.command_line import first

pytest_plugins = ["support.run_with_temperature"]

ANSWERS = st.lists(st.lists(st.floats(-20, 0), min_size=2, max_size=4), min_size=1, max_size=30)


@settings(max_examples=50)
@given(log_likelihoods=ANSWERS, bins=st.integers(1, 30))
def test_the_hook_measures_what_firstcli_measures(
    log_likelihoods: list[list[float]], bins: int
) -> None:
    right = [index % len(row) for index, row in enumerate(log_likelihoods)]
    ids = [str(index) for index in range(len(right))]
    # The harness compares choices whose probabilities need not sum to less than 1.
    records = EvalRecords.from_log_probs(ids, right, log_likelihoods, scope="candidates")
    scored = [
        lm_eval_hook.score({"answer": answer}, [(value, False) for value in row])
        for answer, row in zip(right, log_likelihoods, strict=True)
    ]
    assert [bool(each["acc"]) for each in scored] == records.correct.tolist()
    confidences = [each["ece"][0] for each in scored]
    np.testing.assert_allclose(confidences, records.confidence, rtol=1e-12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_eval_hook, "BINS", bins)
        found = lm_eval_hook.ece([each["ece"] for each in scored])
    expected = metrics.ece(np.array(confidences), records.correct, bins)
    assert math.isclose(found, expected, abs_tol=1e-12)


def test_an_edge_belongs_to_the_bin_below() -> None:
    assert lm_eval_hook.ece([(0.2, True), (0.15, False)]) == pytest.approx(abs(0.8 - 0.15) / 2)
    assert lm_eval_hook.ece([(0.2, True), (0.25, False)]) == pytest.approx((0.8 + 0.25) / 2)


def row_of(sample: Sample, tokenizer: PreTrainedTokenizerFast) -> dict[str, object] | None:
    (question,) = encode_questions([sample], Encoding(tokenizer, "test"))
    row = harness._by_token(sample, question, tokenizer)
    if row is not None:
        for choice, token in zip(row["choices"], question.candidate_ids, strict=True):
            pair = harness._harness_tokens(row["context"], choice, tokenizer)
            assert pair == (question.input_ids.tolist(), [token])
    return row


@pytest.mark.parametrize(
    "candidates", [(" yes", " no"), (" the water is wet.", " the fire is dry."), (" a", " b")]
)
def test_choices_are_the_tokens_in_which_candidates_differ(
    tokenizer: PreTrainedTokenizerFast, candidates: tuple[str, str]
) -> None:
    """With byte-level BPE, and with Llama's, which puts a BOS in front."""
    row = row_of(Sample.question("Answer:", candidates, 1, id="q"), tokenizer)
    assert row is not None
    assert row["answer"] == 1
    texts = [f"{row['context']}{choice}" for choice in row["choices"]]  # type: ignore[attr-defined]
    whole = [f"Answer:{candidate}" for candidate in candidates]
    assert all(long.startswith(short) for long, short in zip(whole, texts, strict=True))


@pytest.fixture(scope="session")
def tasks(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the export `out` and the tasks in `tasks`."""
    home = tmp_path_factory.mktemp("harness")
    args = ("--arm", "fine-tune + T", "--lm-eval", home / "tasks")
    result = first("export", run, home / "out", *args)
    assert result.code == 0, result.err
    assert "lm_eval --model hf" in result.out
    return home


def test_every_evaluation_becomes_a_task(tasks: Path) -> None:
    names = {path.name for path in (tasks / "tasks").iterdir()}
    expected = [
        f"tiny_{name}.{e}" for name in ("known_world", "shifted") for e in ("yaml", "jsonl")
    ]
    assert names == {"firstcli_ece.py", *expected}
    lines = (tasks / "tasks" / "tiny_known_world.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 24
    assert set(rows[0]) == {"id", "context", "choices", "answer"}
    for path in (tasks / "tasks").iterdir():
        assert str(tasks) not in path.read_text()


def test_the_harness_agrees(tasks: Path, run: Path) -> None:
    """Run lm-evaluation-harness on the exported folder; the run's records are the reference."""
    lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found,unused-ignore]

    names = {"tiny_known_world": "known-world", "tiny_shifted": "shifted"}
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tasks / "out")},
        device="cpu",
        tasks=list(names),
        task_manager=TaskManager(include_path=str(tasks / "tasks"), include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    for task, evaluation in names.items():
        path = run / "eval" / evaluation / "fine-tune+T.parquet"
        records = EvalRecords.load(path)
        assert found[task]["acc,none"] == metrics.accuracy(records.correct)
        expected = metrics.ece(records.confidence, records.correct)
        assert found[task]["ece,none"] == pytest.approx(expected, abs=1e-6)
