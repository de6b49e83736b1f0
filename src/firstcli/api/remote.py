"""The part of the contract for teachers whose model runs elsewhere, such as behind a server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NoReturn

from firstcli.api.contract import Dtype, FloatArray, IntArray, ModelFamily, ModelRef, OptionsT
from firstcli.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class TokenQuery:
    """A sequence of tokens, and the positions at which a model's probabilities are wanted."""

    id: str
    """The sample or question, for messages."""
    token_ids: IntArray  # (L,)
    positions: IntArray
    """Indices (N,) of the tokens that are predicted from the tokens before them, ascending, from 1
    to L. L stands for the token that would follow."""


@dataclass(frozen=True, slots=True)
class TopTokens:
    """The k most likely tokens at the N positions of a query, in any order."""

    token_ids: IntArray  # (N, k)
    log_probs: FloatArray  # (N, k), natural logarithms


@dataclass(frozen=True, slots=True)
class CandidateQuery:
    """A sequence of tokens, and the tokens that may follow it."""

    id: str
    """The question, for messages."""
    token_ids: IntArray  # (L,)
    candidates: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RemoteUsage:
    """What questions to a remote model take."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None
    """In the currency of the prices that the user stated; None without prices."""


@dataclass(frozen=True, slots=True)
class TextQuery:
    """A prompt that a model continues."""

    id: str
    """The sample, for messages."""
    prompt: str
    """The text, as a person would write it: without what a chat template adds."""
    token_ids: IntArray  # (L,)
    """The prompt's tokens, with what the chat template adds if the recipe asks for a chat."""
    temperature: float
    """0 always takes the most likely token."""
    top_p: float
    max_new_tokens: int
    seed: int
    """From 0 to 2**31 - 1, for servers that sample reproducibly."""
    system: str | None = None
    """The chat's system message, for servers that render the chat themselves; None without one."""


@dataclass(frozen=True, slots=True)
class RemoteText:
    """What a model wrote after a prompt."""

    text: str
    finished: bool
    """Whether the model ended the text itself."""
    input_tokens: int
    output_tokens: int


class RemoteScorer(ABC):
    """Asks a remote model. Answers come one by one, so that none is lost if a run is killed."""

    @abstractmethod
    def check(self, top_k: int) -> None:
        """Ask one short question.

        Raises:
            UserError: the model cannot be asked, or does not return `top_k` tokens.
        """

    @abstractmethod
    def top_k(self, queries: Sequence[TokenQuery], top_k: int) -> Iterator[tuple[int, TopTokens]]:
        """Yield the index of a query and its answer, as they come.

        Raises:
            UserError: an answer is refused, or does not fit the query.
        """

    @abstractmethod
    def candidates(self, queries: Sequence[CandidateQuery]) -> Iterator[tuple[int, FloatArray]]:
        """Yield the index of a query and each candidate's log-probability as the next token.

        Raises:
            UserError: an answer is refused, or does not fit the query.
        """

    def texts(self, queries: Sequence[TextQuery]) -> Iterator[tuple[int, RemoteText]]:
        """Yield the index of a query and what the model wrote, as they come.

        Only families that declare `writes_text` need it.

        Raises:
            UserError: an answer is refused, or does not fit the query.
        """
        raise NotImplementedError

    @abstractmethod
    def estimate(self, queries: Sequence[TokenQuery]) -> RemoteUsage:
        """Estimate what `top_k` takes, without asking."""

    @property
    @abstractmethod
    def used(self) -> RemoteUsage:
        """What all questions so far took."""

    def close(self) -> None:
        """Free connections."""
        return


class RemoteFamily(ModelFamily[OptionsT]):
    """A model family that has a tokenizer, but whose model runs elsewhere.

    It can only be a teacher without `finetune`. Its `checkpoint` is where the tokenizer and the
    configuration come from; weights are never read.
    """

    is_remote: ClassVar[bool] = True
    writes_text: ClassVar[bool] = False
    """Whether `RemoteScorer.texts` can be used."""
    answers_only: bool = False
    """Whether only the answer position of questions can be asked for, because the model returns
    probabilities of the first generated token alone."""
    answers_without_space: bool = False
    """Whether the model begins an answer without a space, as in a chat. Candidates that begin with
    one are then refused."""

    @abstractmethod
    def context(self, ref: ModelRef) -> int | None:
        """Return the length in tokens of the longest sequence, or None if there is no limit."""

    @abstractmethod
    def scorer(self, ref: ModelRef, tokenizer: PreTrainedTokenizerBase) -> RemoteScorer:
        """Return what asks the model; it may connect at the first question."""

    def empty_model(self, ref: ModelRef, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        self._refuse()

    def model(
        self, ref: ModelRef, tokenizer: PreTrainedTokenizerBase, dtype: Dtype, seed: int
    ) -> PreTrainedModel:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UserError(
            f"family {type(self).__name__}: its model runs elsewhere and cannot be loaded; use it "
            "as a teacher without `finetune`"
        )
