"""Family `causal-lm`: any Hugging Face decoder-only model, from a local folder or the hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from firstcli.api import Dtype, ModelFamily, ModelRef, PluginOptions
from firstcli.errors import UserError, shortened

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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

        with self._loading(ref, "tokenizer") as source:
            return AutoTokenizer.from_pretrained(**source)

    def empty_model(self, ref: ModelRef, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        trust = self.options.trust_remote_code
        model: PreTrainedModel
        with self._loading(ref, "configuration") as source:
            config = AutoConfig.from_pretrained(**source)
        with self._loading(ref, "model"), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
        return model

    def model(
        self, ref: ModelRef, tokenizer: PreTrainedTokenizerBase, dtype: Dtype, seed: int
    ) -> PreTrainedModel:
        import torch
        from transformers import AutoModelForCausalLM

        model: PreTrainedModel
        load: Any = AutoModelForCausalLM.from_pretrained  # returns a pair with output_loading_info
        with self._loading(ref, "model") as source:
            model, loading = load(
                **source,
                dtype=getattr(torch, dtype),
                use_safetensors=True,  # never unpickle weights
                attn_implementation=self.options.attn_implementation,
                output_loading_info=True,
            )
        if missing := sorted(loading["missing_keys"]):  # transformers would initialise them
            raise UserError(
                f"checkpoint {ref.checkpoint}: {len(missing)} weights are missing, such as "
                f"{shortened(missing, 2)}; give a complete checkpoint of a causal language model"
            )
        return model

    def load_trained(self, folder: Path, dtype: Dtype) -> PreTrainedModel:
        ref = ModelRef(str(folder))
        return self.model(ref, self.tokenizer(ref, ()), dtype, seed=0)

    @contextmanager
    def _loading(self, ref: ModelRef, part: str) -> Iterator[dict[str, Any]]:
        """Yield the arguments of `from_pretrained`; its errors become UserErrors about `part`."""
        from safetensors import SafetensorError

        if ref.folder is not None and not (ref.folder / "config.json").is_file():
            problem = "has no config.json" if ref.folder.is_dir() else "no such folder"
            raise UserError(
                f"checkpoint {ref.folder}: {problem}; give a Hugging Face model folder or a hub id"
            )
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
