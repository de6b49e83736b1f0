"""Fold a temperature into a model's weights: its logits then come out divided by T.

Temperature scaling (Guo et al. 2017, arXiv 1706.04599) divides all logits by one number. The output
layer is linear, so the last normalisation before it, whose result it multiplies, can hold the
division: weight and bias are divided by T, and so is the output layer's bias. Embeddings that are
tied to the output layer stay tied. Models without such a normalisation hold T in the output layer.

No list of architectures decides where T goes. Each place is tried on probe tokens with T = 2, a
power of two that rounds nothing, and is used only if every logit is halved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from firstcli.checkpoints.causality import evaluating
from firstcli.errors import UserError

TRIAL = 2.0
"""Temperature of the trials; multiplying a float by a power of two is exact."""
TOLERANCE = 1e-4
"""Largest error of a logit, relative to the largest logit."""
LARGE = 1e3
"""Size of the logits with which proportionality is tried; soft caps lie far below."""

Rescale = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True, slots=True)
class Fold:
    """Where a temperature was put."""

    temperature: float
    module: str
    """Name of the module that holds it, such as `model.norm`."""
    is_norm: bool
    """Whether that is a normalisation, not the output layer."""
    untied: bool = False
    """Whether the output layer no longer shares its weight with the embeddings."""


def fold(model: PreTrainedModel, temperature: float, token_ids: Sequence[int]) -> Fold:
    """Divide a model's logits by a temperature, by changing its weights in place.

    Args:
        model: a float32 model on any device; it cannot be used further after an error.
        temperature: T, above 0.
        token_ids: ordinary token ids to try the model with, at least one.

    Raises:
        UserError: no weights can hold the temperature, as for soft-capped logits.
    """
    probe = _Probe(model, token_ids)
    before = probe.logits()
    _require_proportional(probe, before)
    chosen = _choose(probe, before)
    chosen.apply(temperature)
    if not _equal(probe.logits(), before / temperature):
        raise UserError(
            f"{type(model).__name__}: after folding T = {temperature:g} into {chosen.module}, the "
            "logits are not the original ones divided by T; export the arm without '+ T'"
        )
    return Fold(temperature, chosen.module, chosen.is_norm, chosen.untied)


class _Probe:
    """A model and the tokens with which it is tried."""

    def __init__(self, model: PreTrainedModel, token_ids: Sequence[int]) -> None:
        self.model = model
        self.head: nn.Module = model.get_output_embeddings()
        if not isinstance(self.head, nn.Module):
            raise UserError(f"{type(model).__name__} has no output layer to fold into")
        ids = torch.tensor([token_ids[i % len(token_ids)] for i in range(16)])
        self._ids = ids.reshape(2, 8).to(next(model.parameters()).device)  # (2, 8)

    def logits(self) -> Tensor:
        """Return the logits of the probe tokens, (2, 8, V), in float64 for the comparisons."""
        with torch.no_grad(), evaluating(self.model):
            mask = torch.ones_like(self._ids)
            output = self.model(input_ids=self._ids, attention_mask=mask, use_cache=False)
        logits: Tensor = output.logits
        return logits.double()


@dataclass(slots=True)
class _Place:
    """Weights that may hold a temperature."""

    module: str
    is_norm: bool
    rescaled: Sequence[tuple[nn.Parameter, Rescale]]
    """Parameters, and what dividing the module's result by T makes of each."""
    untied: bool = False

    def apply(self, temperature: float) -> None:
        with torch.no_grad():
            for parameter, rescale in self.rescaled:
                parameter.copy_(rescale(parameter, temperature))

    @contextmanager
    def tried(self, temperature: float) -> Iterator[None]:
        """Apply a temperature for a while."""
        saved = [parameter.detach().clone() for parameter, _ in self.rescaled]
        self.apply(temperature)
        try:
            yield
        finally:
            with torch.no_grad():
                for (parameter, _), values in zip(self.rescaled, saved, strict=True):
                    parameter.copy_(values)


def _require_proportional(probe: _Probe, before: Tensor) -> None:
    """Check that the model's logits are proportional to what its output layer returns."""
    name, largest = type(probe.model).__name__, float(before.abs().max())
    if not torch.isfinite(before).all() or not largest:
        raise UserError(f"{name}: its logits are not finite, or all 0; check its weights")
    factor = 2.0
    while largest * factor < LARGE:
        factor *= 2

    def enlarge(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        return output * factor

    with probe.head.register_forward_hook(enlarge):
        enlarged = probe.logits()
    if not _equal(enlarged, before * factor):
        raise UserError(
            f"{name}: its logits are not proportional to the result of its output layer, because "
            "they are soft-capped (`final_logit_softcapping`) or changed otherwise, so no weights "
            "can hold a temperature; export the arm without '+ T', or keep the temperature outside "
            "the model, as `first predict` does"
        )


def _choose(probe: _Probe, before: Tensor) -> _Place:
    """Return the first place that halves all logits."""
    for place in _places(probe):
        with place.tried(TRIAL):
            if _equal(probe.logits(), before / TRIAL):
                return place
    raise UserError(
        f"{type(probe.model).__name__}: neither its last normalisation nor its output layer can "
        "hold a temperature, because the logits are not halved when their weights are; export the "
        "arm without '+ T'"
    )


def _places(probe: _Probe) -> Iterator[_Place]:
    """Yield the places to try; the output layer is untied when its turn comes."""
    head = probe.head
    of_head = [(parameter, _divided) for parameter in _own(head, "bias")]
    if last := _last_norm(probe):
        name, norm = last
        shift = [(parameter, _divided) for parameter in _own(norm, "bias")]
        for rescale in (_divided, _divided_one_plus):
            (weight,) = _own(norm, "weight")
            yield _Place(name, True, [(weight, rescale), *shift, *of_head])
    untied = _untie(probe.model, head)
    weights = [(parameter, _divided) for parameter in _own(head, "weight")]
    yield _Place(_name(probe.model, head), False, [*weights, *of_head], untied)


def _divided(parameter: Tensor, temperature: float) -> Tensor:
    return parameter / temperature


def _divided_one_plus(parameter: Tensor, temperature: float) -> Tensor:
    """Divide 1 + weight, by which some normalisations multiply (Gemma, Nemotron)."""
    return (1 + parameter) / temperature - 1


def _last_norm(probe: _Probe) -> tuple[str, nn.Module] | None:
    """Return the last module with one weight per channel that runs before the output layer."""
    ran: list[tuple[str, nn.Module]] = []
    last: list[tuple[str, nn.Module]] = []
    hooks = [probe.head.register_forward_pre_hook(lambda *_: last.extend(ran[-1:]))]
    for name, module in probe.model.named_modules():
        if any(weight.ndim == 1 for weight in _own(module, "weight")):
            note = _noting(ran, (name, module))
            hooks.append(module.register_forward_hook(note))
    try:
        probe.logits()
    finally:
        for hook in hooks:
            hook.remove()
    return last[0] if last else None


def _noting(ran: list[tuple[str, nn.Module]], entry: tuple[str, nn.Module]) -> Callable[..., None]:
    return lambda *_: ran.append(entry)


def _own(module: nn.Module, name: str) -> list[nn.Parameter]:
    """Return a module's own parameter of a name, if it has one."""
    parameter = module._parameters.get(name)
    return [] if parameter is None else [parameter]


def _untie(model: PreTrainedModel, head: nn.Module) -> bool:
    """Give the output layer its own weight; return whether it shared the embeddings'."""
    embeddings: Any = model.get_input_embeddings()
    if head.weight is not getattr(embeddings, "weight", None):
        return False
    head.weight = nn.Parameter(embeddings.weight.detach().clone())
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    return True


def _name(model: nn.Module, wanted: nn.Module) -> str:
    found: str = next(name for name, module in model.named_modules() if module is wanted)
    return found


def _equal(logits: Tensor, expected: Tensor) -> bool:
    """Return whether two arrays of logits are equal up to rounding; NaN never is."""
    return bool((logits - expected).abs().max() <= TOLERANCE * expected.abs().max())
