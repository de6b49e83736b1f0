"""Types of the options that say how a model samples text."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Temperature = Annotated[
    float,
    Field(
        ge=0,
        description="temperature of the next token's distribution; 0 always takes the most likely "
        "token",
    ),
]
TopP = Annotated[
    float,
    Field(
        gt=0,
        le=1,
        description="sample from the fewest most likely tokens whose probabilities sum to at least "
        "this",
    ),
]
