"""The recipe's section on low-rank adapters (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from firstcli.recipe.references import RecipeSection, mistake

Saved = Literal["merged", "adapter", "both"]


class Lora(RecipeSection):
    """Train small matrices A and B beside frozen weights W: the layer computes W + alpha/rank BA.

    The adapter starts without effect, because B starts at 0.
    """

    rank: int = Field(default=16, ge=1)
    """Rows of A and columns of B: the higher, the more a layer can change."""
    alpha: int = Field(default=32, ge=1)
    """Scale of the adapter: its product is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs that is set to 0 in training. With dropout, results depend on
    how a batch is split into micro-batches and processes."""
    targets: Literal["auto"] | Annotated[tuple[str, ...], Field(strict=False)] = "auto"
    """The linear layers that get an adapter: all but the output layer (`auto`), or those with these
    names, such as `[q_proj, v_proj]`. A name may be the end of a longer one."""

    @field_validator("targets", mode="before")
    @classmethod
    def _are_names(cls, targets: object) -> object:
        """Refuse anything else in one sentence; a union would give one for each branch."""
        names = targets if isinstance(targets, list | tuple) else ()
        if targets != "auto" and not (names and all(n and isinstance(n, str) for n in names)):
            raise mistake(
                f"found {targets!r}, expected auto or a list of names of layers, such as "
                "[q_proj, v_proj]"
            )
        return targets
