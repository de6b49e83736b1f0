"""Family `causal-lm`: any Hugging Face decoder-only model, from a local folder or the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from firstcli.api import Dtype, ModelFamily, ModelRef, PluginOptions
from firstcli.checkpoints import adapters
from firstcli.checkpoints.folder import ADAPTER, BESIDE_WEIGHTS, read_json
from firstcli.checkpoints.loading import load_complete
from firstcli.checkpoints.placement import map_problem, parted_ties
from firstcli.checkpoints.quantization import (
    bitsandbytes_config,
    check_quantization,
    is_quantized,
)
from firstcli.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_CONFIG = "tokenizer_config.json"
_NO_DECODER = re.compile(r"Unrecognized configuration class <class '[\w.]*?(\w+)Config'>")
"""How transformers says that a type of model has no causal language model."""
_SIZE = re.compile(r"\d+(\.\d+)?\s*[KMGT]i?B", re.IGNORECASE)


def _numbered(device: object) -> object:
    """Return the number of a GPU as an integer; JSON has no other keys than text."""
    return int(device) if isinstance(device, str) and device.isdecimal() else device


DeviceName = Annotated[int | str, BeforeValidator(_numbered)]


class Quantization(PluginOptions):
    """How weights are quantised by bitsandbytes while they are loaded."""

    load_in: Literal["nf4", "fp4", "int8"] = Field(
        description="Type of the linear layers' weights; the other weights keep `dtype`."
    )
    compute_dtype: Dtype | None = Field(
        None, description="Type of the products with nf4 and fp4 weights; default: bfloat16."
    )
    double_quant: bool = Field(
        False, description="Quantise the scales of nf4 and fp4 weights, too; saves 0.05 bytes each."
    )

    @model_validator(mode="after")
    def _int8_has_no_settings(self) -> Quantization:
        if self.load_in == "int8" and (self.compute_dtype or self.double_quant):
            raise ValueError("compute_dtype and double_quant have no effect with load_in: int8")
        return self


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
    quantization: Quantization | None = Field(
        None, description="Quantise the weights while they are loaded: load_in, ...; needs a GPU."
    )
    device_map: Literal["auto", "balanced", "sequential"] | dict[str, DeviceName] | None = Field(
        None,
        description="Spread the layers over devices outside training: auto, balanced, sequential, "
        "or module names with a device each (0, cuda:1, cpu, disk).",
    )
    max_memory: dict[DeviceName, str] | None = Field(
        None, description='What device_map may use of each device, such as {0: "20GB", cpu: "60GB"}'
    )

    @field_validator("max_memory")
    @classmethod
    def _sizes(cls, sizes: dict[int | str, str] | None) -> dict[int | str, str] | None:
        for device, size in (sizes or {}).items():
            if not _SIZE.fullmatch(size):
                raise ValueError(f"{device}: found '{size}', expected a size such as 20GB or 500MB")
        return sizes

    @model_validator(mode="after")
    def _fit_together(self) -> CausalLMOptions:
        if self.max_memory is not None and not isinstance(self.device_map, str):
            raise ValueError("max_memory has no effect without device_map: auto")
        if self.device_map is not None and self.device != "auto":
            raise ValueError("device has no effect beside device_map; leave one of them out")
        if self.device_map == {}:
            raise ValueError("device_map names no part of the model; leave it out")
        stated = self.device_map.values() if isinstance(self.device_map, dict) else ()
        places = {f"cuda:{place}" if isinstance(place, int) else place for place in stated}
        if len(places) == 1 and places != {"disk"}:
            (device,) = places
            raise ValueError(
                f"device_map puts the whole model on one device; set device: {device} instead"
            )
        return self


class CausalLM(ModelFamily[CausalLMOptions]):
    """A checkpoint in the Hugging Face format, loaded with the Auto classes."""

    Options = CausalLMOptions

    def __init__(self, options: CausalLMOptions) -> None:
        super().__init__(options)
        self.device, self.inference_dtype = options.device, options.dtype
        self.spreads = options.device_map is not None

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
        if (settings := self._quantization(ref, config)) is not None:
            config.quantization_config = settings  # says how the weights will be held
        with self._loading(ref, "model"), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
        places = self.options.device_map
        if isinstance(places, dict) and (problem := map_problem(model, places)):
            raise UserError(f"model.options.device_map: {problem}")
        return model

    def model(
        self, ref: ModelRef, tokenizer: PreTrainedTokenizerBase, dtype: Dtype, seed: int
    ) -> PreTrainedModel:
        return self._model(ref, dtype)

    def load_trained(self, folder: Path, dtype: Dtype) -> PreTrainedModel:
        return self._model(ModelRef(str(folder.absolute())), dtype)

    def placed(
        self, ref: ModelRef, dtype: Dtype, device: torch.device, offload: Path
    ) -> PreTrainedModel | None:
        from transformers import AutoConfig

        places = self.options.device_map
        if places is None:
            with self._loading(_whole_model(ref), "configuration") as source:
                config = AutoConfig.from_pretrained(**source)
            # Quantised weights are made for the device that they are loaded on.
            if self.options.quantization is None and not is_quantized(config):
                return None
        if self.spreads and ref.folder is not None and adapters.is_adapter(ref.folder):
            raise UserError(
                "model.options.device_map: an adapter cannot be merged into a model that is spread "
                "over devices; give the merged model, or leave it out"
            )
        limits = self.options.max_memory
        model = self._model(
            ref,
            dtype,
            device_map={"": device} if places is None else places,
            max_memory=limits and dict(limits),  # transformers turns the sizes into bytes
            offload_folder=str(offload),
        )
        if parted := parted_ties(model):
            raise UserError(
                f"model.options.device_map: '{parted[0]}' and '{parted[1]}' are the same weight "
                "and must be on the same device; change the map"
            )
        return model

    def _model(self, ref: ModelRef, dtype: Dtype, **placing: Any) -> PreTrainedModel:
        import torch

        with self._loading(ref, "model") as source:
            if (settings := self._quantization(ref)) is not None:
                placing["quantization_config"] = settings
            return load_complete(
                source.pop("pretrained_model_name_or_path"),
                dtype=getattr(torch, dtype),
                attn_implementation=self.options.attn_implementation,
                **source,
                **placing,
            )

    def _quantization(self, ref: ModelRef, config: Any = None) -> Any:
        """Return the configuration of the quantisation that the options ask for, or None."""
        chosen = self.options.quantization
        if chosen is None:
            return None
        if config is not None and is_quantized(config):
            raise UserError(
                f"model.options.quantization: the weights of checkpoint {ref.checkpoint} are "
                "quantised already; leave it out"
            )
        return bitsandbytes_config(
            chosen.load_in, chosen.compute_dtype, double_quant=chosen.double_quant
        )

    @contextmanager
    def _loading(self, ref: ModelRef, part: str) -> Iterator[dict[str, Any]]:
        """Yield the arguments of `from_pretrained`; its errors become UserErrors about `part`."""
        from huggingface_hub import is_offline_mode
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
            reason = " ".join(str(error).split())[:300].rstrip(".")
            if encoder := _NO_DECODER.match(reason):
                raise UserError(
                    f"checkpoint {ref.checkpoint}: transformers has no causal language model of "
                    f"the type {encoder[1]}; choose a decoder"
                ) from error
            if ref.folder is None:
                offline = is_offline_mode()
                reason += "; without a network, give a local folder"
                reason += "" if offline else " or set HF_HUB_OFFLINE=1"
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
