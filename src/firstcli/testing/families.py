"""Check the contract of a model family: tokenizer, vocabulary, seed, saved folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from firstcli.api import JSON, ModelFamily, ModelRef, PluginOptions
from firstcli.errors import UserError
from firstcli.testing.requirements import require

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEXT = ("Q: Is water wet?\nA: Yes.", "Q: Is fire cold?\nA: No.", "Q: Is grass green?\nA: Yes.")


def check_family(
    cls: type[ModelFamily[Any]],
    options: PluginOptions | Mapping[str, JSON] | None = None,
    *,
    ref: ModelRef | None = None,
    text: Iterable[str] = TEXT,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Check the contract of a model family on the CPU.

    Args:
        cls: the plugin's class.
        options: its options, as in a recipe; default: the plugin's defaults.
        ref: a small checkpoint; omit it for a family that needs none.
        text: texts that a tokenizer can be trained on, and that are encoded.
        teacher_tokenizer: for a family that uses the teacher's.

    Raises:
        AssertionError: the class breaks the contract.
    """
    from transformers import AutoTokenizer

    name, texts, ref = cls.__name__, list(text), ref or ModelRef(checkpoint=None)
    require(issubclass(cls, ModelFamily), f"{name} is not a firstcli.api.ModelFamily")
    family = cls(cls.Options.model_validate(dict(options or {})))
    if family.uses_teacher_tokenizer:
        problem = "uses the teacher's tokenizer: give the check one as `teacher_tokenizer`"
        require(teacher_tokenizer is not None, f"{name} {problem}")
    else:
        teacher_tokenizer = family.tokenizer(ref, texts)
    assert teacher_tokenizer is not None
    tokenizer = teacher_tokenizer
    _check_tokenizer(name, tokenizer, texts)
    model = family.model(ref, tokenizer, "float32", seed=1)
    rows, size = len(model.get_input_embeddings().get_parameter("weight")), len(tokenizer)
    problem = f"the model has {rows} tokens, fewer than its tokenizer's {size}"
    require(rows >= size, f"{name}: {problem}")
    _check_parameters(name, family.empty_model(ref, tokenizer), model)
    inputs = tokenizer(texts)["input_ids"]
    _check_causality(name, model, tokenizer, inputs)
    again = family.model(ref, tokenizer, "float32", seed=1)
    same = _same_logits(model, again, inputs)
    require(same, f"{name}.model gives different weights for the same seed")
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        loaded = family.load_trained(Path(folder), "float32")
        same = AutoTokenizer.from_pretrained(folder)(texts)["input_ids"] == inputs
        _check_incomplete(name, family, Path(folder))
    require(same, f"{name}: the tokenizer encodes differently after saving and loading")
    same = _same_logits(model, loaded, inputs)
    require(same, f"{name}: the model predicts differently after saving and loading")


def _check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> None:
    require(tokenizer.is_fast, f"{name}.tokenizer has no offsets: return a fast tokenizer")
    for text in texts:
        offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        covered = {position for start, end in offsets for position in range(start, end)}
        missing = [i for i, character in enumerate(text) if i not in covered and character.strip()]
        require(not missing, f"{name}.tokenizer: the offsets do not cover all of {text!r}")


def _check_parameters(name: str, empty: PreTrainedModel, model: PreTrainedModel) -> None:
    import torch

    is_float = all(parameter.dtype == torch.float32 for parameter in model.parameters())
    require(is_float, f"{name}.model does not have the requested dtype, float32")
    is_meta = all(parameter.is_meta for parameter in empty.parameters())
    require(is_meta, f"{name}.empty_model allocates weights: build it on the meta device")
    shapes = [{n: p.shape for n, p in each.named_parameters()} for each in (empty, model)]
    require(shapes[0] == shapes[1], f"{name}: empty_model and model have different parameters")


def _check_causality(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: list[list[int]],
) -> None:
    from firstcli.checkpoints import causality

    ids = {token_id for text in inputs for token_id in text} - set(tokenizer.all_special_ids)
    problem = causality.fault(model, sorted(ids), context=None)
    require(problem is None, f"{name}.model cannot be used, because {problem}")


def _check_incomplete(name: str, family: ModelFamily[Any], folder: Path) -> None:
    """Check that a weight which the saved configuration does not declare is not passed over."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    stray = {"stray.weight": next(iter(weights.values())).clone()}
    save_file(weights | stray, path, metadata={"format": "pt"})
    try:
        family.load_trained(folder, "float32")
    except UserError:
        return
    require(False, f"{name}.load_trained passes over weights that have no place in the model")


def _same_logits(left: PreTrainedModel, right: PreTrainedModel, inputs: list[list[int]]) -> bool:
    """Compare the logits of each encoded text."""
    import torch

    for input_ids in inputs:
        with torch.no_grad():
            batch = torch.tensor([input_ids])
            a, b = (model.eval()(input_ids=batch).logits.float() for model in (left, right))
        if not torch.allclose(a, b, rtol=0, atol=1e-5):
            return False
    return True
