"""What it costs to make room for members of a gang, and the cheapest way to make room for all of them.

Costs add up host by host, and keep their order when the same is added to both, so dynamic programming over cells, of
each of which one option is taken, is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..queueing.victims import Victims, ages
from ..work import Work

_COSTS = 4  # that are added up in the time of a try


@dataclass(frozen=True, slots=True, order=True)
class Cost:
    """What is to be as small as can be."""

    count: int = 0
    ages: tuple[float, ...] = ()
    names: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, host: str, victims: Victims) -> Cost:
        """Of these, who are all on the host."""
        return cls(len(victims), ages(victims), tuple(sorted((host, a.id) for a in victims)))

    def plus(self, other: Cost) -> Cost:
        """Both together."""
        if not other.count:
            return self
        both = tuple(sorted((*self.ages, *other.ages), reverse=True))
        return Cost(self.count + other.count, both, tuple(sorted((*self.names, *other.names))))


@dataclass(frozen=True, slots=True)
class Option:
    """So many members on a host, once these have left it."""

    host: str
    count: int
    victims: Victims
    cost: Cost


def spread_out(count: int, cells: Sequence[Sequence[Option]]) -> Work[tuple[Cost, list[Option]] | None]:
    """The cheapest options, at most one of each cell, that have room for all; None: there are none."""
    best: list[tuple[Cost, list[Option]] | None] = [(Cost(), []), *[None] * count]
    for options in cells:
        for have in range(count, 0, -1):  # from above: of each cell one option is taken
            for option in options:
                before, known = best[have - option.count] if option.count <= have else None, best[have]
                if before is None or (known and before[0].count + option.cost.count > known[0].count):
                    continue
                cost = before[0].plus(option.cost)
                if known is None or cost < known[0]:
                    best[have] = cost, [*before[1], option]
        yield 1 + count // _COSTS
    return best[count]
