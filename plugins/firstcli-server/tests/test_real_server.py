"""Knowledge from llama.cpp's own server equals that of the same weights, loaded here.

`FIRSTCLI_SERVER_PYTHON` is the Python of an environment with `xllamacpp`, `gguf`, `numpy` and
`safetensors`; see `.ci/server-python`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from firstcli_server import ServerOptions
from firstcli_server.protocols import NextToken
from firstcli_server.scorer import Scorer

from firstcli.api import CandidateQuery, TokenQuery

HERE = Path(__file__).parent
PYTHON = os.environ.get("FIRSTCLI_SERVER_PYTHON", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="FIRSTCLI_SERVER_PYTHON is not set")
TEXTS = ("The sun is a star. yes", "Is water wet? no", "A much longer text about the sun, 1234.")


@pytest.fixture(scope="module")
def local(model: Path) -> Any:
    """The weights rounded to float16, as the GGUF file has them, computed in float32."""
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.mul_(1.5)  # so that probabilities differ more than a new model's
            parameter.copy_(parameter.half().float())
    return loaded


@pytest.fixture(scope="module")
def address(local: Any, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("gguf")
    local.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    target = folder / "model.gguf"
    subprocess.run([PYTHON, HERE / "make_gguf.py", folder, target], check=True)
    server = subprocess.Popen(
        [PYTHON, HERE / "llama_server.py", target.name],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout and server.stdin
    yield server.stdout.readline().strip()
    server.stdin.close()
    server.terminate()
    server.wait(20)


def test_knowledge_is_that_of_the_same_weights(address: str, local: Any, tokenizer: Any) -> None:
    scorer = Scorer(ServerOptions(url=address, model="model.gguf"), tokenizer)
    scorer.check(5)
    assert type(scorer._protocol) is NextToken
    rows = [np.array([*tokenizer(text)["input_ids"], tokenizer.eos_token_id]) for text in TEXTS]
    queries = [TokenQuery(str(i), row, np.arange(3, len(row))) for i, row in enumerate(rows)]
    answers = dict(scorer.top_k(queries, 5))
    assert sorted(answers) == [0, 1, 2]
    for index, query in enumerate(queries):
        with torch.no_grad():
            logits = local(torch.tensor(query.token_ids)[None]).logits[0]
        exact = logits.double().log_softmax(-1).numpy()[query.positions - 1]  # (N, V)
        top, found = np.sort(exact, axis=1)[:, :-6:-1], answers[index]
        ours = np.take_along_axis(exact, found.token_ids, axis=1)
        assert np.abs(np.exp(found.log_probs) - np.exp(ours)).max() < 2e-3  # float16 rounding
        assert np.abs(np.exp(found.log_probs) - np.exp(top)).max() < 2e-3
    one = CandidateQuery("c", rows[0][:4], (7, 250, 90))
    ((_, values),) = scorer.candidates([one])
    with torch.no_grad():
        last = local(torch.tensor(one.token_ids)[None]).logits[0, -1].double().log_softmax(-1)
    assert np.abs(values - last[list(one.candidates)].numpy()).max() < 0.02
    assert scorer.used.requests > sum(len(query.positions) for query in queries)
