"""Family `scratch`: a small Llama with random weights and a tokenizer trained on the task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from firstcli.api import Dtype, ModelFamily, ModelRef, PluginOptions

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase


class ScratchOptions(PluginOptions):
    """Options of `scratch`: the shape of a Llama."""

    hidden_size: int = Field(128, ge=8, description="Width of the hidden states.")
    layers: int = Field(3, ge=1, description="Number of transformer blocks.")
    heads: int = Field(4, ge=1, description="Attention heads; must divide hidden_size.")
    vocabulary: int = Field(
        1024,
        ge=260,
        description="Maximum size of the byte-level BPE vocabulary; the bytes alone take 258.",
    )
    context: int = Field(512, ge=8, description="Maximum sequence length in tokens.")

    @model_validator(mode="after")
    def _heads_divide(self) -> ScratchOptions:
        if self.hidden_size % (2 * self.heads):
            raise ValueError("hidden_size must be a multiple of 2 * heads")
        return self


class Scratch(ModelFamily[ScratchOptions]):
    """A model without a checkpoint: weights come from the seed, the tokenizer from the text.

    The tokenizer is a pure function of the text and `vocabulary`, so teacher and student share it.
    """

    Options = ScratchOptions
    needs_checkpoint = False
    needs_text = True

    def tokenizer(self, ref: ModelRef, text: Iterable[str]) -> PreTrainedTokenizerBase:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
        from transformers import PreTrainedTokenizerFast

        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        bpe.post_processor = processors.ByteLevel(trim_offsets=False)
        bpe.train_from_iterator(
            text,
            trainers.BpeTrainer(
                vocab_size=self.options.vocabulary,
                special_tokens=["<pad>", "</s>"],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=bpe,
            pad_token="<pad>",
            eos_token="</s>",
            model_max_length=self.options.context,
        )

    def empty_model(self, ref: ModelRef, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        import torch
        from transformers import LlamaForCausalLM

        with torch.device("meta"):
            return LlamaForCausalLM(self._config(tokenizer))

    def model(
        self, ref: ModelRef, tokenizer: PreTrainedTokenizerBase, dtype: Dtype, seed: int
    ) -> PreTrainedModel:
        import torch
        from transformers import LlamaForCausalLM

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = LlamaForCausalLM(self._config(tokenizer))
        model.to(getattr(torch, dtype))
        return model

    def _config(self, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.options.hidden_size,
            intermediate_size=self.options.hidden_size * 8 // 3 // 8 * 8,
            num_hidden_layers=self.options.layers,
            num_attention_heads=self.options.heads,
            max_position_embeddings=self.options.context,
            # Llama's 0.02 suits widths of thousands; a narrow model hardly learns with it.
            initializer_range=0.5 * self.options.hidden_size**-0.5,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
