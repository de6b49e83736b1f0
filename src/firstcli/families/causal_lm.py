"""Family `causal-lm`: any Hugging Face decoder-only model, from a local folder or the hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from firstcli.api import Dtype, ModelFamily, ModelRef, PluginOptions
from firstcli.checkpoints import adapters
from firstcli.checkpoints.folder import ADAPTER, BESIDE_WEIGHTS, read_json
from firstcli.checkpoints.loading import load_complete
from firstcli.checkpoints.quantization import check_quantization
from firstcli.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_CONFIG = "tokenizer_config.json"


class CausalLMOptions(PluginOptions):
    """Options of `causal-lm`."""

    dtype: Literal["auto"] | Dtype = Field(
        "auto",
        description="Type of the weights outside training; auto: bfloat16 on GPUs that support it.",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps, ...")
    attn_implementation: str | None = Field(
        None, description="Passed to transformers: sdpa, eager, flash_attention_2, ..."
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code from the checkpoint; only for code that you have read."
    )


class CausalLM(ModelFamily[CausalLMOptions]):
    """A checkpoint in the Hugging Face format, loaded with the Auto classes."""

    Options = CausalLMOptions

    def __init__(self, options: CausalLMOptions) -> None:
        super().__init__(options)
        self.device, self.inference_dtype = options.device, options.dtype

    def tokenizer(self, ref: ModelRef, text: Iterable[str]) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        if ref.folder is not None and not (ref.folder / TOKENIZER_CONFIG).is_file():
            ref = _whole_model(ref)
        with self._loading(ref, "tokenizer") as source:
            return AutoTokenizer.from_pretrained(**source)

    def empty_model(self, ref: ModelRef, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        trust = self.options.trust_remote_code
        model: PreTrainedModel
        with self._loading(_whole_model(ref), "configuration") as source:
            config = AutoConfig.from_pretrained(**source)
        check_quantization(str(ref.checkpoint), config)
        with self._loading(ref, "model"), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
        return model

    def model(
        self, ref: ModelRef, tokenizer: PreTrainedTokenizerBase, dtype: Dtype, seed: int
    ) -> PreTrainedModel:
        return self._model(ref, dtype)

    def load_trained(self, folder: Path, dtype: Dtype) -> PreTrainedModel:
        return self._model(ModelRef(str(folder.absolute())), dtype)

    def _model(self, ref: ModelRef, dtype: Dtype) -> PreTrainedModel:
        import torch

        with self._loading(ref, "model") as source:
            return load_complete(
                source.pop("pretrained_model_name_or_path"),
                dtype=getattr(torch, dtype),
                attn_implementation=self.options.attn_implementation,
                **source,
            )

    @contextmanager
    def _loading(self, ref: ModelRef, part: str) -> Iterator[dict[str, Any]]:
        """Yield the arguments of `from_pretrained`; its errors become UserErrors about `part`."""
        from safetensors import SafetensorError

        if ref.folder is not None:
            adapters.check_checkpoint(ref.folder)
        elif problem := _hub_adapter_problem(ref):
            raise UserError(f"checkpoint {ref.checkpoint}: {problem}")
        try:
            yield {
                "pretrained_model_name_or_path": ref.checkpoint,
                "revision": ref.revision,
                "trust_remote_code": self.options.trust_remote_code,
            }
        # transformers raises any of these for a faulty checkpoint.
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:300]
            if ref.folder is None:
                reason += "; without a network, give a local folder or set HF_HUB_OFFLINE=1"
            raise UserError(
                f"checkpoint {ref.checkpoint}: its {part} cannot be loaded: {reason}"
            ) from error


def _whole_model(ref: ModelRef) -> ModelRef:
    """Return the base model of an adapter's folder; other checkpoints unchanged."""
    if ref.folder is None or not adapters.is_adapter(ref.folder):
        return ref
    adapters.check_checkpoint(ref.folder)
    base = adapters.whole_model(ref.folder)
    return ModelRef(base.checkpoint, base.revision)


@cache
def _hub_adapter_problem(ref: ModelRef) -> str | None:
    """Describe the adapter at a hub id, if it is or holds one; without a network, None."""
    from transformers.utils.hub import cached_file
    from transformers.utils.peft_utils import find_adapter_config_file

    source = str(ref.checkpoint)
    adapter = find_adapter_config_file(source, revision=ref.revision)
    if adapter is None:
        return None
    config = cached_file(
        source,
        "config.json",
        revision=ref.revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if config is not None:
        return BESIDE_WEIGHTS
    base = read_json(Path(adapter)).get(adapters.BASE_KEY)
    of = f" of '{base}'" if base else ""
    return f"is an adapter{of} ({ADAPTER}), not a whole model; download it and give its folder"
