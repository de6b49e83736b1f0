"""Answers are aligned by ids, else by unambiguous texts; what does not fit is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from firstcli_server import ServerOptions
from firstcli_server.protocols import Chat, Echo, FirstToken, NextToken, Sglang, Vllm
from firstcli_server.scorer import Scorer, _best
from firstcli_server.texts import Texts

from firstcli.api import CandidateQuery, UserError


class Answering:
    """In place of a client: every request gets the same answer."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.bodies = answer, list[Any]()

    def post(self, path: str, body: Any) -> Any:
        self.bodies.append(body)
        return self.answer


OPTIONS = ServerOptions(url="http://localhost", model="m")
Made = Callable[[Any, Any], Any]


@pytest.fixture
def made(tokenizer: Any) -> Made:
    return lambda kind, answer: kind(OPTIONS, Answering(answer), Texts(tokenizer))


def test_vllm_drops_the_extra_entry_of_the_actual_token(made: Made) -> None:
    entry = {"7": {"logprob": -9.0}, "3": {"logprob": -1.0}, "4": {"logprob": -0.7}}
    answer = {"choices": [{"prompt_logprobs": [None, entry]}]}
    (top,) = made(Vllm, answer).tops("q", [5, 7], [1], 2)
    assert _best(top, 2) == [(4, -0.7), (3, -1.0)]
    with pytest.raises(UserError, match="lacks the token of the prompt"):
        made(Vllm, answer).tops("q", [5, 8], [1], 2)
    with pytest.raises(UserError, match="2 positions for 3 tokens"):
        made(Vllm, answer).tops("q", [5, 7, 7], [1], 2)
    with pytest.raises(UserError, match="returns 3 tokens at a position, fewer than the 4"):
        made(Vllm, answer).tops("q", [5, 7], [1], 4)


def test_sglang_is_aligned_by_ids(made: Made) -> None:
    facts = {
        "input_token_logprobs": [[None, 5, None], [-9.0, 7, None]],
        "input_top_logprobs": [None, [[-0.7, 4, None], [-1.0, 3, None]]],
    }
    (top,) = made(Sglang, {"meta_info": facts}).tops("q", [5, 7], [1], 2)
    assert top == {4: -0.7, 3: -1.0, 7: -9.0}
    with pytest.raises(UserError, match="not those of the prompt"):
        made(Sglang, {"meta_info": facts}).tops("q", [5, 8], [1], 2)


def echo(tokens: list[str], top: dict[str, float]) -> Any:
    found = {"tokens": tokens, "token_logprobs": [None, -3.0], "top_logprobs": [None, top]}
    return {"choices": [{"logprobs": found}]}


def test_echo_is_aligned_by_texts(made: Made, tokenizer: Any) -> None:
    a, b, c = (tokenizer(letter)["input_ids"][0] for letter in "abc")
    (top,) = made(Echo, echo(["a", "b"], {"c": -0.5})).tops("q", [a, b], [1], 1)
    assert top == {c: -0.5, b: -3.0}
    with pytest.raises(UserError, match="read as 1 tokens, not 2"):
        made(Echo, echo(["ab"], {"c": -0.5})).tops("q", [a, b], [1], 1)
    with pytest.raises(UserError, match="was read as 'c'"):
        made(Echo, echo(["a", "c"], {"c": -0.5})).tops("q", [a, b], [1], 1)
    with pytest.raises(UserError, match="no token has it"):
        made(Echo, echo(["a", "b"], {"unknown": -0.5})).tops("q", [a, b], [1], 1)
    with pytest.raises(UserError, match="tokens have it"):  # bytes that are no text
        made(Echo, echo(["a", "b"], {"\ufffd": -0.5})).tops("q", [a, b], [1], 1)


def test_text_that_is_read_as_other_tokens_is_refused(made: Made, tokenizer: Any) -> None:
    merged = tokenizer("star")["input_ids"]
    letters = [tokenizer(letter)["input_ids"][0] for letter in "star"]
    assert merged != letters
    with pytest.raises(UserError, match="read as other tokens"):
        made(Echo, None).tops("q", letters, [1], 1)


def test_next_token_takes_ids_and_refuses_an_added_token(made: Made) -> None:
    content = [{"top_logprobs": [{"id": 4, "logprob": -0.7}, {"id": 3, "logprob": -1.0}]}]
    answer = {"choices": [{"logprobs": {"content": content}}], "usage": {"prompt_tokens": 2}}
    protocol = made(NextToken, answer)
    assert protocol.tops("q", [5, 7, 9], [2], 2) == [{4: -0.7, 3: -1.0}]
    assert protocol.client.bodies[0]["prompt"] == [5, 7]
    with pytest.raises(UserError, match="read as 2 tokens, not 1"):
        protocol.tops("q", [5, 7], [1], 2)


def test_first_token_and_chat_send_texts(made: Made, tokenizer: Any) -> None:
    ids = tokenizer("The sun")["input_ids"]
    classic = {"choices": [{"logprobs": {"top_logprobs": [{"a": -0.7, "b": -1.0}]}}]}
    protocol = made(FirstToken, classic)
    assert sorted(protocol.tops("q", ids, [len(ids)], 2)[0].values()) == [-1.0, -0.7]
    assert protocol.client.bodies[0]["prompt"] == "The sun"
    names = [{"token": "a", "logprob": -0.7}, {"token": "b", "logprob": -1.0}]
    chat = {"choices": [{"logprobs": {"content": [{"top_logprobs": names}]}}]}
    protocol = made(Chat, chat)
    assert len(protocol.tops("q", ids, [len(ids)], 2)[0]) == 2
    assert protocol.client.bodies[0]["messages"] == [{"role": "user", "content": "The sun"}]
    with pytest.raises(UserError, match="renders the conversation itself"):
        protocol.tops("q", [*ids, tokenizer.eos_token_id], [len(ids) + 1], 2)


def test_a_candidate_outside_the_top_gets_the_most_that_it_can_have(tokenizer: Any) -> None:
    scorer = Scorer(OPTIONS.model_copy(update={"protocol": "first-token"}), tokenizer)
    scorer._known_k = 2

    class Fixed:
        def tops(self, *_: object) -> list[dict[int, float]]:
            return [{1: -0.2, 2: -2.0}]

    query: Any = CandidateQuery("q", __import__("numpy").array([5]), (1, 9))
    values = scorer._from_top(Fixed(), query)  # type: ignore[arg-type]
    assert values[0] == -0.2
    assert values[1] == pytest.approx(-3.08, abs=0.1)  # log(1 - e^-0.2 - e^-2)
