"""How servers are asked for probabilities, and how their answers are read.

Some return probabilities of the prompt's tokens: one request answers for all positions. The others
return those of the next token: each position takes a request with the tokens before it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from firstcli.api import RemoteText, TextQuery, UserError
from firstcli_server.client import Client
from firstcli_server.texts import Texts

if TYPE_CHECKING:
    from firstcli_server import ServerOptions

Top = dict[int, float]
"""Log-probabilities by token id: the most likely tokens, and where it is known the actual one."""
COMPLETIONS = "/v1/completions"


class Protocol(ABC):
    """One way of asking a server."""

    whole: ClassVar[bool]
    """Whether one request answers for all positions of a sequence."""

    def __init__(self, options: ServerOptions, client: Client, texts: Texts) -> None:
        """Ask nothing yet."""
        self.client, self.texts, self._name = client, texts, options.model

    @abstractmethod
    def tops(self, id: str, token_ids: list[int], positions: Sequence[int], k: int) -> list[Top]:
        """Return what a server knows at each position, at least the top k.

        Args:
            id: the sample, for messages.
            token_ids: the sequence.
            positions: indices of predicted tokens.
            k: number of most likely tokens.

        Raises:
            Refused: the server refuses.
            UserError: the answer does not fit.
        """

    def write(self, query: TextQuery) -> RemoteText:
        """Let the server continue a prompt.

        Raises:
            Refused: the server refuses.
            UserError: the answer does not fit.
        """
        answer = self.client.post(COMPLETIONS, self._prompt_of(query) | self._settings(query))
        return written(query, answer, choice_of(query.id, answer).get("text"), self.texts)

    def _prompt_of(self, query: TextQuery) -> dict[str, Any]:
        """Return the part of a request that holds the prompt."""
        return {"prompt": query.token_ids.tolist()}

    def _settings(self, query: TextQuery) -> dict[str, Any]:
        """Return the part of a request that says how to write."""
        return {
            "model": self._name,
            "max_tokens": query.max_new_tokens,
            "temperature": query.temperature,
            "top_p": query.top_p,
            "seed": query.seed,
        }


def written(query: TextQuery, answer: Any, text: object, texts: Texts) -> RemoteText:
    """Return what a server wrote, with the numbers of tokens that it counted.

    A server that filters content returns null in place of the text: an empty text without an end.
    The tokens that a server does not count are counted with the tokenizer.

    Args:
        query: what was asked.
        answer: the whole answer.
        text: the text in it.
        texts: the tokenizer's texts.

    Raises:
        UserError: the text is none.
    """
    if not isinstance(text, str | None):
        raise malformed(query.id, f"found {str(text)[:40]!r} in place of a text")
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    read, wrote = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
    finished = text is not None and choice_of(query.id, answer).get("finish_reason") == "stop"
    return RemoteText(
        text or "",
        finished,
        read if isinstance(read, int) else len(query.token_ids),
        wrote if isinstance(wrote, int) else texts.count(text or ""),
    )


def malformed(id: str, problem: str) -> UserError:
    """Return the sentence for an answer that cannot be read."""
    return UserError(f"sample '{id}': the server's answer does not fit: {problem}")


def choice_of(id: str, answer: Any) -> Mapping[str, Any]:
    """Return the only choice of an answer.

    Raises:
        UserError: there is none.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise malformed(id, "it has not exactly one choice")
    choice: Mapping[str, Any] = choices[0]
    return choice


def number(id: str, value: object) -> float:
    """Return a log-probability.

    Raises:
        UserError: it is none.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value):
        return float(value)
    raise malformed(id, f"found {str(value)[:40]!r} in place of a log-probability")


def require(id: str, top: Top, k: int) -> Top:
    """Return a top if it has at least k tokens.

    Raises:
        UserError: it has fewer.
    """
    if len(top) < k:
        raise UserError(
            f"sample '{id}': the server returns {len(top)} tokens at a position, fewer than the "
            f"{k} asked for; lower knowledge.top_k, or raise the server's limit"
        )
    return top


class Vllm(Protocol):
    """vLLM: `prompt_logprobs`, by token id; the actual token is added to the top k."""

    whole = True

    def tops(self, id: str, token_ids: list[int], positions: Sequence[int], k: int) -> list[Top]:
        choice = choice_of(id, self.client.post(COMPLETIONS, self.body(token_ids, k)))
        entries = choice.get("prompt_logprobs")
        if not isinstance(entries, list) or len(entries) != len(token_ids):
            found = len(entries) if isinstance(entries, list) else "no"
            raise malformed(id, f"{found} positions for {len(token_ids)} tokens")
        return [self._top(id, entries[p], token_ids[p], k) for p in positions]

    def body(self, token_ids: list[int], k: int) -> dict[str, Any]:
        """Return a request that generates nothing, so that the whole context can be used."""
        body: dict[str, Any] = {"model": self._name, "prompt": token_ids, "echo": True}
        return body | {"max_tokens": 0, "temperature": 0, "prompt_logprobs": k}

    def _top(self, id: str, entry: object, actual: int, k: int) -> Top:
        if not isinstance(entry, dict) or str(actual) not in entry:
            raise malformed(id, "a position lacks the token of the prompt")
        try:
            top = {int(token): number(id, value["logprob"]) for token, value in entry.items()}
        except (ValueError, TypeError, KeyError):
            raise malformed(id, "a position has no log-probabilities by token id") from None
        return require(id, top, k)


class Sglang(Protocol):
    """SGLang's own endpoint: `input_top_logprobs`, by token id."""

    whole = True

    def tops(self, id: str, token_ids: list[int], positions: Sequence[int], k: int) -> list[Top]:
        body = {
            "input_ids": token_ids,
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": k,
        }
        answer = self.client.post("/generate", body)
        facts = answer.get("meta_info", {}) if isinstance(answer, dict) else {}
        actual, tops = facts.get("input_token_logprobs"), facts.get("input_top_logprobs")
        try:
            if [entry[1] for entry in actual] != token_ids or len(tops) != len(token_ids):
                raise malformed(id, "its tokens are not those of the prompt")
            return [
                require(id, {int(t): number(id, v) for v, t, *_ in (*tops[p], actual[p])}, k)
                for p in positions
            ]
        except (TypeError, ValueError, IndexError):
            raise malformed(id, "it has no log-probabilities of the prompt") from None


class Echo(Protocol):
    """Older servers and llama-cpp-python: the prompt's tokens are repeated, by their texts."""

    whole = True

    def _prompt_of(self, query: TextQuery) -> dict[str, Any]:
        return {"prompt": self.texts.text_of(query.id, query.token_ids.tolist())[0]}

    def tops(self, id: str, token_ids: list[int], positions: Sequence[int], k: int) -> list[Top]:
        text, _ = self.texts.text_of(id, token_ids)
        body = {"model": self._name, "prompt": text, "echo": True, "max_tokens": 1}
        answer = self.client.post(COMPLETIONS, body | {"temperature": 0, "logprobs": k})
        found = choice_of(id, answer).get("logprobs")
        found = found if isinstance(found, dict) else {}
        names, tops = found.get("tokens"), found.get("top_logprobs")
        own = found.get("token_logprobs")
        if not (isinstance(names, list) and isinstance(tops, list) and isinstance(own, list)):
            raise malformed(id, "it has no log-probabilities of the prompt")
        # The token that had to be generated may follow; a server ends early at an end token.
        if len(names) not in (len(token_ids), len(token_ids) + 1) or len(tops) != len(names):
            raise malformed(id, f"the prompt was read as {len(names)} tokens, not {len(token_ids)}")
        for place, (name, token_id) in enumerate(zip(names, token_ids, strict=False)):
            if not self.texts.has(token_id, name):
                raise malformed(id, f"token {place} was read as {name!r}, not as {token_id}")
        return [self._top(id, tops[p], (names[p], token_ids[p]), own[p], k) for p in positions]

    def _top(
        self, id: str, entry: object, actual: tuple[str, int], log_prob: object, k: int
    ) -> Top:
        if not isinstance(entry, dict):
            raise malformed(id, "a position has no log-probabilities")
        best = sorted(entry.items(), key=lambda item: -number(id, item[1]))[:k]
        top = {self.texts.id_of(name): number(id, value) for name, value in best}
        return require(id, top, k) | {actual[1]: number(id, log_prob)}


class NextToken(Protocol):
    """Servers that take token ids and return the next token's probabilities, as llama.cpp does."""

    whole = False
    path = COMPLETIONS

    def tops(self, id: str, token_ids: list[int], positions: Sequence[int], k: int) -> list[Top]:
        return [self._top(id, token_ids[:position], k) for position in positions]

    def body(self, id: str, token_ids: list[int], k: int) -> dict[str, Any]:
        """Return the request for the token after others."""
        body: dict[str, Any] = {"model": self._name, "prompt": token_ids, "max_tokens": 1}
        return body | {"temperature": 0, "logprobs": k, "return_tokens_as_token_ids": True}

    def _top(self, id: str, token_ids: list[int], k: int) -> Top:
        body = self.body(id, token_ids, k)
        found = self._log_probs(id, token_ids, body)
        if type(self) is NextToken and not (found.get("content") or found.get("top_logprobs")):
            # llama.cpp keeps back a generated token that is half a character. Its probabilities
            # are those before the bias, which makes it generate a letter.
            letter = self.texts.letter
            found = self._log_probs(id, token_ids, body | {"logit_bias": {str(letter): 100}})
            top = self._read(id, found, k)
            if top.get(letter, -1.0) > -1e-3:
                raise malformed(id, "it has no log-probabilities of half a character")
            return top
        return self._read(id, found, k)

    def _log_probs(self, id: str, token_ids: list[int], body: Mapping[str, Any]) -> Any:
        answer = self.client.post(self.path, body)
        self._check_length(id, answer, token_ids)
        found = choice_of(id, answer).get("logprobs")
        return found if isinstance(found, dict) else {}

    def _read(self, id: str, found: Mapping[str, Any], k: int) -> Top:
        content, tops = found.get("content"), found.get("top_logprobs")
        try:
            if content:
                entries = [(self._id(each), each["logprob"]) for each in content[0]["top_logprobs"]]
            else:
                entries = [(self.texts.id_of(name), value) for name, value in tops[0].items()]
        except (TypeError, KeyError, IndexError, AttributeError):
            raise malformed(id, "it has no log-probabilities of the generated token") from None
        top = {token_id: number(id, value) for token_id, value in entries}
        if len(top) < len(entries):
            raise malformed(id, "it has a token twice")
        return require(id, top, k)

    def _id(self, entry: Mapping[str, Any]) -> int:
        token_id = entry.get("id")
        return token_id if isinstance(token_id, int) else self.texts.id_of(entry["token"])

    def _check_length(self, id: str, answer: Any, token_ids: list[int]) -> None:
        usage = answer.get("usage") if isinstance(answer, dict) else None
        count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        if count is not None and count != len(token_ids):
            raise malformed(id, f"the prompt was read as {count} tokens, not {len(token_ids)}")


class FirstToken(NextToken):
    """Servers that take texts: the first generated token, for the answers of questions."""

    def body(self, id: str, token_ids: list[int], k: int) -> dict[str, Any]:
        text, _ = self.texts.text_of(id, token_ids)
        return super().body(id, token_ids, k) | {"prompt": text}

    def _prompt_of(self, query: TextQuery) -> dict[str, Any]:
        return {"prompt": self.texts.text_of(query.id, query.token_ids.tolist())[0]}


class Chat(FirstToken):
    """Chat completions: the prompt is the user's message."""

    path = "/v1/chat/completions"

    def body(self, id: str, token_ids: list[int], k: int) -> dict[str, Any]:
        text, added = self.texts.text_of(id, token_ids)
        special = self.texts.special_in(token_ids[added:])
        if special:
            raise UserError(
                f"sample '{id}': its prompt contains {special!r}, and the server renders the "
                "conversation itself; leave `chat` out for this teacher"
            )
        messages = [{"role": "user", "content": text}]
        body: dict[str, Any] = {"model": self._name, "messages": messages, "max_tokens": 1}
        return body | {"temperature": 0, "logprobs": True, "top_logprobs": k}

    def write(self, query: TextQuery) -> RemoteText:
        messages = [{"role": "user", "content": query.prompt}]
        if query.system is not None:
            messages.insert(0, {"role": "system", "content": query.system})
        answer = self.client.post(self.path, {"messages": messages} | self._settings(query))
        message = choice_of(query.id, answer).get("message")
        if not isinstance(message, dict):
            raise malformed(query.id, "it has no message")
        return written(query, answer, message.get("content"), self.texts)

    def _check_length(self, id: str, answer: Any, token_ids: list[int]) -> None:
        """The server adds the tokens of its template."""


BY_NAME: dict[str, type[Protocol]] = {
    "vllm": Vllm,
    "sglang": Sglang,
    "echo": Echo,
    "next-token": NextToken,
    "first-token": FirstToken,
    "chat": Chat,
}
