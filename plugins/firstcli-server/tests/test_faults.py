"""Runs against a server that misbehaves: repeated, or one sentence and nothing lost."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from firstcli_server import client
from stub_server import Stub

from conftest import Run
from firstcli.knowledge.shards import Shard, read_shard

SHARD = Path("runs/r/knowledge/train/shard-00000.parquet")
PARTIAL = Path("runs/r/knowledge/.train.partial")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)


def extracted(folder: Path) -> Shard:
    return read_shard(folder / SHARD)


def expect(stub: Stub, shard: Shard, prompts: dict[int, list[int]]) -> None:
    """Compare stored knowledge with the stub's own function."""
    for place, before in prompts.items():
        exact = np.sort(np.exp(stub.log_probs(before)))[::-1][:5]
        assert np.abs(np.exp(shard.known.log_probs[place]) - exact).max() < 0.005


def test_knowledge_is_that_of_the_server(stub: Stub, first: Run, folder: Path) -> None:
    done = first("extract", more="input_price: 2, output_price: 8")
    assert done.returncode == 0, done.stderr
    shard = extracted(folder)
    firsts = np.cumsum(shard.counts) - shard.counts
    # The probe of the check is no sample.
    prompts = {tuple(p): p for p in stub.prompts if len(p) > 10}.values()
    seen = []
    for prompt in prompts:
        for start in range(1, len(prompt)):
            exact = np.sort(np.exp(stub.log_probs(prompt[:start])))[::-1][:5]
            seen.append(exact)
    for place in firsts.tolist():
        stored = np.exp(shard.known.log_probs[place])
        assert min(np.abs(stored - exact).max() for exact in seen) < 0.005
        assert np.exp(shard.known.log_tail[place]) == pytest.approx(1 - stored.sum(), abs=1e-5)
    assert "requests" in done.stdout and "cost" in done.stdout
    again = first("extract")  # neither prices nor speed make anything out of date
    assert "up to date" in again.stdout


@pytest.mark.parametrize("kind", ["500", "429", "truncated", "slow", "closed"])
def test_a_fault_that_passes_is_repeated(
    kind: str, stub: Stub, first: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    ended = threading.Event()
    real = time.sleep

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        real(min(seconds, 0.01))

    monkeypatch.setattr(client.Client.__init__, "__defaults__", (sleep,))

    def fault(stub: Stub, handler: Any, number: int) -> bool:
        # A repeated request is answered: two threads must not meet the fault in step.
        if kind == "slow" and number != 3:  # one is enough, because it takes the whole time-out
            return False
        if number % 5 != 3 or stub.prompts.count(stub.prompts[number - 1]) > 1:
            return False
        if kind == "500":
            handler.reply(500, {"error": "overloaded"})
        elif kind == "429":
            handler.reply(429, {"error": "slow down"}, Retry_After="7")
        elif kind == "truncated":
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(b'{"choices": [{"prompt_lo')
        elif kind == "slow":
            ended.wait(60)
        return True

    stub.fault = fault
    # Long enough for the other answers also on a machine that is busy.
    done = first("extract", more="timeout: 3" if kind == "slow" else "")
    ended.set()
    assert done.returncode == 0, done.stderr
    assert len(extracted(folder).ids) > 20
    assert waits and (kind != "429" or max(waits) >= 7)


def dies_after(limit: int) -> Any:
    def fault(stub: Stub, handler: BaseHTTPRequestHandler, number: int) -> bool:
        if number <= limit:
            return False
        handler.send_response(500)
        handler.end_headers()
        return True

    return fault


def test_no_answer_is_asked_for_twice_after_the_server_died(
    stub: Stub, first: Run, folder: Path
) -> None:
    stub.fault = dies_after(12)
    done = first("extract")
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr
    assert "run the same command again" in done.stderr
    assert not (folder / SHARD).exists()
    kept = (folder / PARTIAL / ".answers-00000.jsonl").read_text().split("\n")
    assert sum(bool(line) for line in kept) >= 8
    before = {tuple(prompt) for prompt in stub.prompts[:12]}
    stub.fault, stub.prompts = (lambda *_: False), []
    done = first("extract")
    assert done.returncode == 0, done.stderr
    repeated = [prompt for prompt in stub.prompts if tuple(prompt) in before and len(prompt) > 10]
    assert len(repeated) <= 3  # asked again to see whether the model is the same
    assert not list((folder / SHARD).parent.glob(".answers*"))
    assert not list((folder / SHARD).parent.glob(".spent*"))


def test_a_torn_line_is_asked_for_again(stub: Stub, first: Run, folder: Path) -> None:
    stub.fault = dies_after(12)
    assert first("extract").returncode == 2
    kept = folder / PARTIAL / ".answers-00000.jsonl"
    kept.write_bytes(kept.read_bytes()[:-30])
    stub.fault = lambda *_: False
    assert first("extract").returncode == 0
    assert len(extracted(folder).ids) > 20


def test_a_changed_model_is_noticed_when_work_goes_on(stub: Stub, first: Run, folder: Path) -> None:
    stub.fault = dies_after(12)
    assert first("extract").returncode == 2
    kept = (folder / PARTIAL / ".answers-00000.jsonl").read_text()
    stub.fault, stub.seed = (lambda *_: False), 1
    done = first("extract")
    assert done.returncode == 2
    assert "now answers differently" in done.stderr and "--force" in done.stderr
    assert (folder / PARTIAL / ".answers-00000.jsonl").read_text() == kept
    stub.seed = 0
    assert first("extract").returncode == 0


def test_a_changed_model_is_noticed_before_it_is_evaluated(stub: Stub, first: Run) -> None:
    assert first("extract").returncode == 0
    stub.seed = 1
    done = first("eval")
    assert done.returncode == 2 and "now answers differently" in done.stderr


def test_generated_tokens_alone_teach_the_answers_of_questions(
    stub: Stub, first: Run, folder: Path
) -> None:
    more = "protocol: first-token"
    done = first("eval", more=more)  # extracts, trains and evaluates
    assert done.returncode == 0, done.stderr
    shard = extracted(folder)
    assert set(shard.counts.tolist()) == {1}
    prompts = [stub.tokenizer(text)["input_ids"] for text in map(str, stub.prompts)]
    exact = [np.sort(np.exp(stub.log_probs(prompt)))[::-1][:5] for prompt in prompts]
    for stored in np.exp(shard.known.log_probs):
        assert min(np.abs(stored - each).max() for each in exact) < 0.005
    (folder / "text.jsonl").write_text('{"prompt": "a", "response": " b"}\n' * 9)
    task = "train.task={name: instruction, options: {path: text.jsonl}}"
    refused = first("plan", "--set", task, more=more)
    assert refused.returncode == 2 and "only the first generated token" in refused.stderr


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("teacher.finetune={epochs: 1, learning_rate: 0.1, batch_size: 4}", "runs elsewhere"),
        (
            "student.model={family: server, checkpoint: m/m, options: {url: 'http://x', model: x}}",
            "runs elsewhere and cannot be trained",
        ),
        ("teacher.model.options.url=http://me:pw@host", "no user or password"),
        ("metrics.candidates=whole", "first tokens only"),
        ("teacher.model.options.protocol=chat", "train.task: candidates such as ' no' begin with"),
    ],
)
def test_what_a_server_cannot_do_is_refused(setting: str, words: str, first: Run) -> None:
    done = first("plan", "--set", setting)
    assert done.returncode == 2 and words in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "other"}, ["no model 'stub'", "other"]),
        ({"most": 2}, ["knowledge.top_k", "--max-logprobs"]),
        ({"extra": 1}, ["does not fit", "positions for"]),
    ],
)
def test_a_lasting_fault_is_one_sentence(
    change: dict[str, Any], words: list[str], stub: Stub, first: Run, folder: Path
) -> None:
    for name, value in change.items():
        setattr(stub, name, value)
    done = first("extract", more="protocol: vllm")
    assert done.returncode == 2 and done.stderr.count("error:") == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert not (folder / SHARD).exists()


def test_the_key_is_sent_and_never_written(
    stub: Stub, first: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = "api_key_env: STUB_KEY"
    missing = first("extract", more=more)
    assert missing.returncode == 2 and "STUB_KEY is not set" in missing.stderr
    monkeypatch.setenv("STUB_KEY", "very-secret-17")
    done = first("extract", more=more)
    assert done.returncode == 0, done.stderr
    assert stub.keys == {"Bearer very-secret-17"}

    def refuse(stub: Stub, handler: Any, number: int) -> bool:
        handler.reply(401, {"error": {"message": "bad key very-secret-17"}})
        return True

    stub.fault = refuse
    refused = first("extract", "--force", more=more)
    assert refused.returncode == 2 and "STUB_KEY" in refused.stderr
    shown = [part for run in (done, refused) for part in (run.stdout, run.stderr)]
    files = [path.read_bytes() for path in (folder / "runs").rglob("*") if path.is_file()]
    assert not any("very-secret" in text for text in shown)
    assert not any(b"very-secret" in content for content in files)
