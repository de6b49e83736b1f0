"""`first select` with a server that dies in the third round: nothing is lost or bought twice."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from firstcli_server import client
from stub_server import Stub

from firstcli import cli

RECIPE = """
name: r
seed: 3
train:
  task: {{name: classification, options: {{path: train.jsonl}}}}
  validation: 0.2
evaluate:
  - {{name: test, split: train, task: {{name: classification, options: {{path: test.jsonl}}}}}}
teacher:
  model:
    family: server
    checkpoint: model
    options: {{url: "{url}", model: stub, protocol: vllm, retries: 1, max_concurrency: 1}}
student:
  model: {{family: causal-lm, checkpoint: model}}
  training: {{epochs: 1, batch_size: 16}}
arms:
  first: {{recalibrator: {{name: temperature-scaling}}}}
active:
  pool: {{task: {{name: classification, options: {{path: pool.jsonl}}}}}}
  seed_samples: 6
  budget: {{samples: 12}}
  rounds: 3
  selector: {{name: entropy}}
"""
ROUND = Path("rounds/first/3")
REPEATED = 3 * 2
"""Stored answers that are asked for again in an extraction that goes on, and in the next one."""
Select = Callable[[str], int]


@pytest.fixture
def select(
    folder: Path, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Select:
    """Run `first select` with a run folder; return its exit code."""
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    monkeypatch.chdir(folder)
    rows = [{"text": f"pool {i} water", "label": ("no", "yes")[i % 2]} for i in range(20)]
    Path("pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("r.yaml").write_text(RECIPE.format(url=url))

    def run(name: str) -> int:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["first", "select", "r.yaml", "--run-dir", name])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        return int(exit.value.code or 0)

    return run


def results(run: Path) -> dict[str, Any]:
    """Return what was chosen, bought, learned and measured, and what the teacher has said."""
    found: dict[str, Any] = {}
    for name in ("chosen.json", "annotations.jsonl", "train.jsonl", "round.json"):
        for path in sorted((run / "rounds" / "first").glob(f"*/{name}")):
            content: Any = path.read_text()
            if name == "round.json":  # its fingerprint covers the paths of the round's files
                content = {k: v for k, v in json.loads(content).items() if k != "fingerprint"}
            found[f"{path.parent.name}/{name}"] = content
    for path in [*run.glob(".annotations/*/*.jsonl"), *run.glob("rounds/.answers/*.jsonl")]:
        found[path.name] = sorted(path.read_text().splitlines())
    for path in sorted(run.glob("rounds/first/*/run/knowledge/*/*.parquet")):
        found[str(path.relative_to(run))] = path.read_bytes()
    return found


def has_bought(run: Path) -> bool:
    """Return whether all annotations of the third round are bought."""
    try:
        return bool(json.loads((run / ROUND / "chosen.json").read_text())["done"])
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("in_extraction", [False, True])
def test_a_server_that_dies_in_the_third_round(
    in_extraction: bool, stub: Stub, select: Select, capsys: pytest.CaptureFixture[str]
) -> None:
    """It answers few more requests: some of those for annotations, or of those for knowledge."""
    paid: Counter[tuple[int, ...]] = Counter()
    left: list[int] = []
    run = Path("interrupted")

    def fault(stub: Stub, handler: Any, number: int) -> bool:
        if left and (has_bought(run) if in_extraction else (run / ROUND).exists()):
            left[0] -= 1
            if left[0] < 0:
                handler.reply(503, {"error": {"message": "down"}})
                return True
        paid[tuple(stub.prompts[number - 1])] += 1
        return False

    stub.fault = fault
    assert select("whole") == 0, capsys.readouterr().err
    expected = paid.copy()
    paid.clear()
    left.append(2)
    assert select("interrupted") == 2
    shown = capsys.readouterr()
    (sentence,) = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in shown.err
    assert "asked 2 times" in sentence
    assert has_bought(run) == in_extraction
    assert not (run / ROUND / "round.json").exists()
    left.clear()
    assert select("interrupted") == 0, capsys.readouterr().err
    assert results(run) == results(Path("whole"))
    assert not expected - paid
    assert (paid - expected).total() <= REPEATED
    assert select("interrupted") == 0
    assert paid.total() <= expected.total() + REPEATED
