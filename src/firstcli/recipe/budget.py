"""What annotations may cost."""

from __future__ import annotations

from pydantic import ConfigDict, Field, model_validator

from firstcli.recipe.references import RecipeSection, mistake


class Budget(RecipeSection):
    """What may be spent on annotations, per arm and seed; the first limit that is reached counts.

    The samples that are labelled from the start are not part of it.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"samples": 1000}]})

    samples: int | None = Field(default=None, ge=1)
    """Number of annotations."""
    tokens: int | None = Field(default=None, ge=1)
    """Tokens that the teacher reads and writes."""
    cost: float | None = Field(default=None, gt=0)
    """Money, in the currency of `prices`."""

    @model_validator(mode="after")
    def _is_limited(self) -> Budget:
        if self.samples is None and self.tokens is None and self.cost is None:
            raise mistake("found no limit, expected samples, tokens or cost")
        return self


class Prices(RecipeSection):
    """What the teacher's tokens cost, in any currency."""

    read: float = Field(ge=0)
    """Price of a million tokens that the teacher reads."""
    written: float = Field(ge=0)
    """Price of a million tokens that it writes."""

    def cost(self, read: int, written: int) -> float:
        """Return the price of some tokens."""
        return (self.read * read + self.written * written) / 1e6
