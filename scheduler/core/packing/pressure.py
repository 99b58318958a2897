"""How hard each class of GPU models is asked for, when flexible tasks keep out of the way of those that cannot.

A task that names its models has only these; one that names none can have any. Demand is spread over the classes that
may serve it so that the fullest is as empty as can be (water-filling, round by round). What is then asked of a class,
for each thousandth that it has free, is its level; above the lowest level, each thousandth has a price. With no model
asked for by name there is one class and no price.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

ROUNDS = 8
WEIGHT = 3.0  # against what is lost on the host itself: 1,000 thousandths of a class twice as full cost 3,000 lost
STEPS = 32  # prices follow what is free in so many steps


def prices(demands: Mapping[tuple[int, ...], float], free: Sequence[int]) -> list[float]:
    """For each class: what a thousandth costs there beyond what it costs where it is cheapest."""
    levels = _levels(demands, [max(1, f) for f in free])
    lowest = min(levels, default=0.0)
    if lowest <= 0:
        return [0.0 if level <= 0 else WEIGHT for level in levels]
    return [WEIGHT * min(1.0, level / lowest - 1) for level in levels]


def _levels(demands: Mapping[tuple[int, ...], float], free: list[int]) -> list[float]:
    spread = {able: dict.fromkeys(able, demand / len(able)) for able, demand in sorted(demands.items())}
    loads = [sum(parts.get(i, 0.0) for parts in spread.values()) for i in range(len(free))]
    for _ in range(ROUNDS):
        for able, parts in spread.items():
            if len(able) > 1:
                _even_out(demands[able], parts, loads, free)
    return [load / f for load, f in zip(loads, free, strict=True)]


def _even_out(demand: float, parts: dict[int, float], loads: list[float], free: list[int]) -> None:
    """Spread one demand anew, to the emptiest first, all else left as it is."""
    order = sorted([(load / free[i] if (load := loads[i] - part) > 0 else 0.0, i) for i, part in parts.items()])
    level = room = below = 0.0
    for place, (base, i) in enumerate(order):
        room += free[i]
        below += base * free[i]
        level = (demand + below) / room
        if place + 1 == len(order) or level <= order[place + 1][0]:
            break
    for base, i in order:
        part = (level - base) * free[i] if base < level else 0.0
        loads[i] += part - parts[i]
        parts[i] = part
