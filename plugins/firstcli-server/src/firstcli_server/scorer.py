"""What firstcli asks: the top k at positions, and the log-probabilities of candidates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from firstcli.api import (
    CandidateQuery,
    FloatArray,
    RemoteScorer,
    RemoteText,
    RemoteUsage,
    TextQuery,
    TokenQuery,
    TopTokens,
    UserError,
)
from firstcli_server.client import Client, Refused
from firstcli_server.protocols import BY_NAME, Chat, Echo, NextToken, Protocol, Sglang, Top, Vllm
from firstcli_server.texts import Texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from firstcli_server import ServerOptions

PROBE = "The sun is a star."
FEW = 5
"""Tokens that are asked for to find candidates, if no other number is known."""


class Scorer(RemoteScorer):
    """Asks one model of one server."""

    def __init__(self, options: ServerOptions, tokenizer: PreTrainedTokenizerBase) -> None:
        """Connect to nothing yet.

        Raises:
            UserError: the key is missing.
        """
        self._options, self._tokenizer = options, tokenizer
        self._client = Client(options)
        self._texts = Texts(tokenizer)
        self._known_k = FEW

    @property
    def used(self) -> RemoteUsage:
        return self._client.used

    def close(self) -> None:
        self._client.close()

    def check(self, top_k: int) -> None:
        self._known_k = top_k
        self._require_model()
        probe = self._probe
        try:
            self._protocol.tops("a trial", probe, [len(probe) - 1], top_k)
        except Refused as refusal:
            raise self._client.refusal(refusal) from refusal

    @cached_property
    def _probe(self) -> list[int]:
        ids = self._tokenizer(PROBE, add_special_tokens=True)["input_ids"]
        return [int(token_id) for token_id in ids]

    def _require_model(self) -> None:
        answer = self._client.get("/v1/models")
        listed = answer.get("data") if isinstance(answer, dict) else None
        names = [str(each.get("id")) for each in listed or [] if isinstance(each, dict)]
        if names and self._options.model not in names:
            raise UserError(
                f"server {self._client.url}: it has no model '{self._options.model}'; it has "
                f"{', '.join(names[:5])}; correct teacher.model.options.model"
            )

    @cached_property
    def _protocol(self) -> Protocol:
        if self._options.protocol != "auto":
            return self._made(BY_NAME[self._options.protocol])
        self._client.trying = True
        try:
            return self._first_that_fits()
        finally:
            self._client.trying = False

    def _first_that_fits(self) -> Protocol:
        refused: list[Refused] = []
        for kind in (Vllm, Echo, Sglang, NextToken):
            protocol = self._made(kind)
            try:
                protocol.tops("a trial", self._probe, [len(self._probe) - 1], 1)
            except Refused as refusal:
                refused.append(refusal)
                if refusal.status in (401, 403):
                    break
            except UserError as error:
                if "asked" in str(error) and "times" in str(error):
                    raise
            else:
                return protocol
        if refused and (len(refused) == 4 or refused[-1].status in (401, 403)):
            raise self._client.refusal(refused[0 if len(refused) == 4 else -1])
        raise UserError(
            f"server {self._client.url}: it returns log-probabilities neither of the prompt's "
            "tokens nor of a token after given ids; for tasks with candidates, set protocol: "
            "first-token or chat, which ask for the first generated token alone"
        )

    def _made(self, kind: type[Protocol]) -> Protocol:
        return kind(self._options, self._client, self._texts)

    def top_k(self, queries: Sequence[TokenQuery], top_k: int) -> Iterator[tuple[int, TopTokens]]:
        if not queries:
            return
        protocol = self._protocol
        self._known_k = top_k

        def ask(query: TokenQuery) -> TopTokens:
            positions = query.positions.tolist()
            tops = protocol.tops(query.id, query.token_ids.tolist(), positions, top_k)
            best = [_best(top, top_k) for top in tops]
            return TopTokens(
                np.array([[token for token, _ in row] for row in best], np.int64),
                np.array([[value for _, value in row] for row in best], np.float64),
            )

        yield from self._client.each(ask, queries)

    def candidates(self, queries: Sequence[CandidateQuery]) -> Iterator[tuple[int, FloatArray]]:
        if not queries:
            return
        protocol = self._protocol
        if protocol.whole:
            ask = partial(self._from_prompts, protocol)
        elif self._options.protocol in ("auto", "next-token"):
            ask = partial(self._from_wider_tops, protocol)
        else:
            ask = partial(self._from_top, protocol)
        yield from self._client.each(ask, queries)

    def _from_prompts(self, protocol: Protocol, query: CandidateQuery) -> FloatArray:
        """Put each candidate that no earlier answer has at the end of the prompt."""
        known: Top = {}
        before = query.token_ids.tolist()
        for candidate in query.candidates:
            if candidate not in known:
                sequence = [*before, candidate]
                (top,) = protocol.tops(query.id, sequence, [len(before)], self._known_k)
                known |= top
        return np.array([known[candidate] for candidate in query.candidates])

    def _from_wider_tops(self, protocol: Protocol, query: CandidateQuery) -> FloatArray:
        """Ask for more and more tokens, until all candidates are among them."""
        before, k, size = query.token_ids.tolist(), 4 * FEW, len(self._tokenizer)
        while True:
            k = min(k, size)
            (top,) = protocol.tops(query.id, before, [len(before)], k)
            if k == size or all(candidate in top for candidate in query.candidates):
                break
            k *= 8
        missing = [candidate for candidate in query.candidates if candidate not in top]
        if missing:
            raise UserError(f"sample '{query.id}': the server does not know token {missing[0]}")
        return np.array([top[candidate] for candidate in query.candidates])

    def _from_top(self, protocol: Protocol, query: CandidateQuery) -> FloatArray:
        """Give a candidate that is not among the top k the most that it can have.

        That is the smaller of the k-th token's probability and of what the top k leave.
        """
        before = query.token_ids.tolist()
        (top,) = protocol.tops(query.id, before, [len(before)], self._known_k)
        known = any(candidate in top for candidate in query.candidates)
        if isinstance(protocol, Chat) and not known:
            raise UserError(
                f"sample '{query.id}': none of its candidates is among the {len(top)} most likely "
                "first tokens; a chat answers without a space, so let responses begin without one"
            )
        values = np.array([value for _, value in _best(top, self._known_k)])
        left = max(1 - np.exp(values).sum(), 1e-12)
        most = min(values[-1], float(np.log(left)))
        return np.array([top.get(candidate, most) for candidate in query.candidates])

    def texts(self, queries: Sequence[TextQuery]) -> Iterator[tuple[int, RemoteText]]:
        if queries:
            yield from self._client.each(self._protocol.write, queries)

    def estimate(self, queries: Sequence[TokenQuery]) -> RemoteUsage:
        if self._protocol.whole:
            requests, tokens = len(queries), sum(len(query.token_ids) for query in queries)
        else:
            requests = sum(len(query.positions) for query in queries)
            tokens = sum(int(query.positions.sum()) for query in queries)
        return RemoteUsage(requests, tokens, requests, self._client.cost(tokens, requests))


def _best(top: Top, k: int) -> list[tuple[int, float]]:
    """Return the k most likely tokens: without the actual one, if it is not among them."""
    return sorted(top.items(), key=lambda item: (-item[1], item[0]))[:k]
