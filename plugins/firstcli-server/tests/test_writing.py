"""The server writes text for annotators: what is asked, what is read, and what is counted."""

from __future__ import annotations

from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from firstcli_server import ServerOptions
from firstcli_server.protocols import COMPLETIONS, Chat, Echo, FirstToken, NextToken, Sglang, Vllm
from firstcli_server.scorer import Scorer
from firstcli_server.texts import Texts
from stub_server import Stub

from conftest import RECIPE
from firstcli import plugins
from firstcli.api import RemoteText, Sample, TextQuery, ToAnnotate, UserError
from firstcli.data.annotations import to_annotate
from firstcli.plugins.annotators import annotator
from firstcli.recipe.load import load_recipe
from firstcli.runtime.console import Console
from firstcli.stages.annotating import AnnotationOrder
from firstcli.stages.annotating_teachers import annotated, cache_of
from firstcli.workspace.run import Run

PROMPT = "Is the sun a star?"
OPTIONS = ServerOptions(url="http://localhost", model="m")


class Replying:
    """In place of a client: every request gets the same answer."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.requests = answer, list[tuple[str, Any]]()

    def post(self, path: str, body: Any) -> Any:
        self.requests.append((path, body))
        return self.answer


def reply(text: Any, reason: str = "stop") -> Any:
    usage = {"prompt_tokens": 6, "completion_tokens": 3}
    choice = {"text": text, "message": {"content": text}, "finish_reason": reason}
    return {"choices": [choice], "usage": usage}


def query(tokenizer: Any, prompt: str = PROMPT, id: str = "q") -> TextQuery:
    ids = np.array(tokenizer(prompt)["input_ids"], np.int64)
    return TextQuery(id, prompt, ids, 0.7, 0.9, 20, 5)


@pytest.mark.parametrize("kind", [Vllm, Sglang, Echo, NextToken, FirstToken, Chat])
def test_what_is_asked(kind: Any, tokenizer: Any) -> None:
    client, asked = Replying(reply(" yes")), query(tokenizer)
    found = kind(OPTIONS, client, Texts(tokenizer)).write(asked)
    assert found == RemoteText(" yes", True, 6, 3)
    ((path, body),) = client.requests
    settings = {"model": "m", "max_tokens": 20, "temperature": 0.7, "top_p": 0.9, "seed": 5}
    prompts: dict[Any, Any] = {Echo: PROMPT, FirstToken: PROMPT}
    if kind is Chat:
        assert path == "/v1/chat/completions"
        assert body == {"messages": [{"role": "user", "content": PROMPT}], **settings}
    else:
        assert path == COMPLETIONS
        assert body == {"prompt": prompts.get(kind, asked.token_ids.tolist()), **settings}


def test_the_system_message_of_a_chat(tokenizer: Any) -> None:
    client = Replying(reply(" yes"))
    Chat(OPTIONS, client, Texts(tokenizer)).write(replace(query(tokenizer), system="Be brief."))  # type: ignore[arg-type]
    ((_, body),) = client.requests
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": PROMPT},
    ]


def test_a_text_that_was_cut_off(tokenizer: Any) -> None:
    client = Replying(reply(" ye", "length"))
    assert not Vllm(OPTIONS, client, Texts(tokenizer)).write(query(tokenizer)).finished  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Vllm, Chat])
def test_a_text_that_the_server_withholds(kind: Any, tokenizer: Any) -> None:
    client = Replying(reply(None))
    found = kind(OPTIONS, client, Texts(tokenizer)).write(query(tokenizer))
    assert found == RemoteText("", False, 6, 3)  # is asked for once more, and then has failed


@pytest.mark.parametrize("kind", [Vllm, Chat])
def test_a_server_that_counts_no_tokens(kind: Any, tokenizer: Any) -> None:
    client, asked = Replying({**reply("yes it is"), "usage": None}), query(tokenizer)
    found = kind(OPTIONS, client, Texts(tokenizer)).write(asked)
    written = len(tokenizer("yes it is", add_special_tokens=False)["input_ids"])
    assert found == RemoteText("yes it is", True, len(asked.token_ids), written)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (reply(5), "found '5' in place of a text"),
        ({**reply("yes"), "choices": []}, "it has not exactly one choice"),
    ],
)
@pytest.mark.parametrize("kind", [Vllm, Chat])
def test_malformed_answers(kind: Any, answer: Any, problem: str, tokenizer: Any) -> None:
    with pytest.raises(UserError, match=f"sample 'q': the server's answer does not fit: {problem}"):
        kind(OPTIONS, Replying(answer), Texts(tokenizer)).write(query(tokenizer))


def test_texts_of_a_server(stub: Stub, url: str, tokenizer: Any) -> None:
    stub.text = lambda prompt: f"Answer: {len(prompt)}"
    options = ServerOptions(url=url, model="stub", input_price=2, output_price=8)
    scorer = Scorer(options, tokenizer)
    queries = [query(tokenizer, "Say " + "o" * count, f"q{count}") for count in range(1, 9)]
    found = dict(scorer.texts(queries))
    assert [found[place].text for place in range(8)] == [f"Answer: {4 + n}" for n in range(1, 9)]
    assert all(text.finished for text in found.values())
    read = sum(len(each.token_ids) for each in queries)
    assert sum(text.input_tokens for text in found.values()) == read
    scorer.close()


def test_scored_questions_count_with_their_own_tokens(
    stub: Stub, url: str, folder: Path, tokenizer: Any
) -> None:
    """Requests run side by side and several belong to a question, which changes no count."""
    (folder / "r.yaml").write_text(RECIPE.format(url=url, more=", protocol: vllm"))
    run = Run(load_recipe(folder / "r.yaml"), folder / "runs" / "r", Console(quiet=True))
    questions = [
        Sample(f"Is {'o' * number} a star?", " a", f"q{number}", (" a", " b"))
        for number in range(1, 9)
    ]
    built = annotator("answer", plugins.load("annotators", "answer").Options())
    order = AnnotationOrder(built, [to_annotate(each, None) for each in questions], 0, 0)
    found = annotated(run, order, "annotating").annotations
    read = [len(tokenizer(each.prompt)["input_ids"]) for each in questions]
    assert [each.tokens_read for each in found] == read
    assert {each.tokens_written for each in found} == {0}


def test_a_server_that_dies_is_asked_for_the_rest_alone(
    stub: Stub, url: str, folder: Path, tokenizer: Any
) -> None:
    (folder / "r.yaml").write_text(RECIPE.format(url=url, more=", protocol: vllm"))
    run = Run(load_recipe(folder / "r.yaml"), folder / "runs" / "r", Console(quiet=True))
    items = [
        ToAnnotate(Sample(f"Is {number} a star?", "", id=f"q{number}")) for number in range(12)
    ]
    options = {"template": "{question}", "max_new_tokens": 20}
    built = annotator("answer", plugins.load("annotators", "answer").Options(**options))
    order = AnnotationOrder(built, items, 0, 0, price=lambda read, written: 2.0 * read + written)
    refused = []

    def fault(stub: Stub, handler: BaseHTTPRequestHandler, number: int) -> bool:
        if number > 8:
            refused.append(number)
            handler.reply(400, {"error": "gone"})  # type: ignore[attr-defined]
        return number > 8

    stub.fault = fault
    with pytest.raises(UserError, match="status 400"):
        annotated(run, order, "annotating")
    assert (cache_of(run) / "texts.jsonl").read_text().count("\n") == 8
    stub.fault = lambda stub, handler, number: False
    outcome = annotated(run, order, "annotating")
    assert stub.count - len(refused) == 12
    assert [each.answer for each in outcome.annotations] == ["yes"] * 12
    read = sum(len(tokenizer(item.sample.prompt)["input_ids"]) for item in items)
    written = 12 * len(tokenizer("Answer: yes")["input_ids"])
    assert (outcome.tokens_read, outcome.tokens_written) == (read, written)
    assert outcome.cost == 2.0 * read + written
    assert annotated(run, order, "annotating") == outcome
    assert stub.count - len(refused) == 12
