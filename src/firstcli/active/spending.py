"""What annotations cost, and what a round may spend."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from firstcli.recipe.active import Active


@dataclass(frozen=True, slots=True)
class Spent:
    """What some annotations have cost."""

    samples: int = 0
    """Number of annotations; those that failed do not count."""
    tokens_read: int = 0
    tokens_written: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.samples + other.samples,
            self.tokens_read + other.tokens_read,
            self.tokens_written + other.tokens_written,
        )

    @property
    def tokens(self) -> int:
        """Tokens that were read and written."""
        return self.tokens_read + self.tokens_written

    def amounts(self, active: Active) -> Iterator[tuple[float, float]]:
        """Yield what was spent and may be spent, for each limit of the budget."""
        budget = active.budget
        if budget.samples is not None:
            yield self.samples, budget.samples
        if budget.tokens is not None:
            yield self.tokens, budget.tokens
        if budget.cost is not None and active.prices:
            yield active.prices.cost(self.tokens_read, self.tokens_written), budget.cost


def affordable(active: Active, spent: Spent, each: Spent, number: int, largest: int) -> int:
    """Return how many more annotations a round may buy.

    The budget is spread evenly: after round r of R, at most r / R of each limit is spent. What a
    round leaves goes to the next.

    Args:
        active: budget, rounds and prices.
        spent: what was spent so far, earlier rounds included.
        each: what an annotation costs on average, times `each.samples`.
        number: the round, from 1.
        largest: the number of questions that are left.
    """
    counts = [float(largest)]
    for (used, limit), (price, _) in zip(spent.amounts(active), each.amounts(active), strict=True):
        allowed = limit * number / active.rounds
        if price:
            counts.append(max(0.0, (allowed - used) * each.samples / price))
    return math.floor(min(counts) + 1e-9)
