"""Check the contract of a model family: tokenizer, vocabulary, seed, saved folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from firstcli.api import ModelFamily, ModelRef
from firstcli.testing.requirements import GivenOptions, options_of, require

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEXT = ("Q: Is water wet?\nA: Yes.", "Q: Is fire cold?\nA: No.", "Q: Is grass green?\nA: Yes.")


def check_family(
    cls: type[ModelFamily[Any]],
    options: GivenOptions = None,
    *,
    ref: ModelRef | None = None,
    text: Iterable[str] = TEXT,
) -> None:
    """Check the contract of a model family on the CPU.

    Args:
        cls: the plugin's class.
        options: its options, as in a recipe; default: the plugin's defaults.
        ref: a small checkpoint; omit it for a family that needs none.
        text: texts that a tokenizer can be trained on, and that are encoded.

    Raises:
        AssertionError: the class breaks the contract.
    """
    name, texts, ref = cls.__name__, list(text), ref or ModelRef(checkpoint=None)
    require(issubclass(cls, ModelFamily), f"{name} is not a firstcli.api.ModelFamily")
    family = cls(options_of(cls, options))
    tokenizer = family.tokenizer(ref, texts)
    _check_tokenizer(name, tokenizer, texts)
    model = family.model(ref, tokenizer, "float32", seed=1)
    _check_model(name, family.empty_model(ref, tokenizer), model, tokenizer)
    again = family.model(ref, tokenizer, "float32", seed=1)
    require(
        _same_logits(_logits(model, tokenizer, texts), _logits(again, tokenizer, texts)),
        f"{name}.model gives different weights for the same seed",
    )
    _check_saved(family, model, tokenizer, texts)


def _check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> None:
    require(
        tokenizer.is_fast,
        f"{name}.tokenizer has no offsets: return a fast tokenizer",
    )
    for text in texts:
        offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        covered = {position for start, end in offsets for position in range(start, end)}
        missing = [i for i, character in enumerate(text) if i not in covered and character.strip()]
        require(not missing, f"{name}.tokenizer: the offsets do not cover all of {text!r}")


def _check_model(
    name: str,
    empty: PreTrainedModel,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    import torch

    vocabulary = int(model.get_input_embeddings().get_parameter("weight").shape[0])
    require(
        vocabulary >= len(tokenizer),
        f"{name}: the model has {vocabulary} tokens, fewer than its tokenizer's {len(tokenizer)}",
    )
    require(
        all(parameter.dtype == torch.float32 for parameter in model.parameters()),
        f"{name}.model does not have the requested dtype, float32",
    )
    require(
        all(parameter.is_meta for parameter in empty.parameters()),
        f"{name}.empty_model allocates weights: build it on the meta device",
    )
    shapes = [{n: p.shape for n, p in each.named_parameters()} for each in (empty, model)]
    require(shapes[0] == shapes[1], f"{name}: empty_model and model have different parameters")


def _check_saved(
    family: ModelFamily[Any],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
) -> None:
    from transformers import AutoTokenizer

    name = type(family).__name__
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        loaded = family.load_trained(Path(folder), "float32")
        loaded_tokenizer = AutoTokenizer.from_pretrained(folder)
    require(
        tokenizer(texts)["input_ids"] == loaded_tokenizer(texts)["input_ids"],
        f"{name}: the tokenizer encodes differently after saving and loading",
    )
    require(
        _same_logits(_logits(model, tokenizer, texts), _logits(loaded, tokenizer, texts)),
        f"{name}: the model predicts differently after saving and loading",
    )


def _logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> list[Tensor]:
    """Return the logits of each text, (1, L, V)."""
    import torch

    model.train(False)
    with torch.no_grad():
        return [model(**_input(tokenizer, text)).logits.float() for text in texts]


def _input(tokenizer: PreTrainedTokenizerBase, text: str) -> dict[str, Tensor]:
    import torch

    return {"input_ids": torch.tensor([tokenizer(text)["input_ids"]])}


def _same_logits(left: list[Tensor], right: list[Tensor]) -> bool:
    import torch

    return all(torch.allclose(a, b, rtol=0, atol=1e-5) for a, b in zip(left, right, strict=True))
