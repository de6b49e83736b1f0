"""Family `server`: a teacher behind an OpenAI-compatible completions endpoint."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from firstcli.api import ModelRef, PluginOptions, RemoteFamily, RemoteScorer, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROTOCOLS = ("auto", "vllm", "sglang", "echo", "next-token", "first-token", "chat")
ANSWERS_ONLY = ("first-token", "chat")


class ServerOptions(PluginOptions):
    """Options of `server`."""

    url: str = Field(description="Address of the server, with or without `/v1`.")
    model: str = Field(description="Name under which the server knows the model.")
    protocol: Literal["auto", "vllm", "sglang", "echo", "next-token", "first-token", "chat"] = (
        Field(
            "auto",
            description="How to ask; auto: vllm, echo, sglang or next-token, as the server can.",
        )
    )
    context: int | None = Field(
        None, ge=2, description="Longest sequence in tokens; default: as the checkpoint states."
    )
    api_key_env: str | None = Field(
        None, description="Name of the environment variable that holds the key, if one is needed."
    )
    max_concurrency: int = Field(8, ge=1, le=256, description="Requests at the same time.")
    requests_per_second: float | None = Field(None, gt=0, description="Upper limit of the rate.")
    retries: int = Field(6, ge=0, description="How often a failed request is repeated.")
    timeout: float = Field(120.0, gt=0, description="Seconds after which a request has failed.")
    input_price: float | None = Field(None, ge=0, description="Price of a million input tokens.")
    output_price: float | None = Field(None, ge=0, description="Price of a million output tokens.")

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError("expected an address that begins with http:// or https://")
        if "@" in url.partition("://")[2].partition("/")[0]:
            raise ValueError("give no user or password in it; set api_key_env")
        return url


class Server(RemoteFamily[ServerOptions]):
    """A teacher that an OpenAI-compatible server runs; its checkpoint provides the tokenizer."""

    Options = ServerOptions
    writes_text: ClassVar[bool] = True
    harmless_options: ClassVar[tuple[str, ...]] = (
        *("url", "api_key_env", "max_concurrency", "requests_per_second", "retries", "timeout"),
        *("input_price", "output_price"),
    )

    def __init__(self, options: ServerOptions) -> None:
        super().__init__(options)
        self.answers_only = options.protocol in ANSWERS_ONLY
        self.answers_without_space = options.protocol == "chat"

    def tokenizer(self, ref: ModelRef, text: Iterable[str]) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(ref.checkpoint, revision=ref.revision)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"checkpoint {ref.checkpoint}: its tokenizer cannot be loaded: {reason}"
            ) from error

    def context(self, ref: ModelRef) -> int | None:
        from transformers import AutoConfig

        if self.options.context is not None:
            return self.options.context
        try:
            config = AutoConfig.from_pretrained(ref.checkpoint, revision=ref.revision)
        except (OSError, ValueError):  # a folder that holds a tokenizer alone
            return None
        length = getattr(config.get_text_config(), "max_position_embeddings", None)
        return length if isinstance(length, int) and length > 0 else None

    def scorer(self, ref: ModelRef, tokenizer: PreTrainedTokenizerBase) -> RemoteScorer:
        from firstcli_server.scorer import Scorer

        return Scorer(self.options, tokenizer)
