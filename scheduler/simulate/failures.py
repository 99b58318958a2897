"""Hosts that fail and come back, by a seed of their own, so that the same jobs arrive with and without failures."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from .vms import Agents
from .work import SimHost


@dataclass(frozen=True, slots=True)
class Failing:
    """`mtbf_h`: mean hours from a host's start to its failure, exponential; 0: never. `count`: so many more failures,
    each of a host and at a moment drawn from the time in which jobs arrive.
    """

    mtbf_h: float = 0.0
    count: int = 0


@dataclass(slots=True)
class Failures:
    """Plans them, and has the agents carry them out. `happened` counts those that did."""

    agents: Agents
    hosts: Mapping[str, SimHost]
    failing: Failing
    seed: int
    happened: int = 0
    _rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._rng = random.Random(f"failures {self.seed}")  # noqa: S311  (an experiment that can be repeated)

    def plan(self, first_s: float, last_s: float) -> None:
        """From now on hosts fail."""
        names = sorted(self.hosts)
        for _ in range(self.failing.count):
            at_s, name = self._rng.uniform(first_s, last_s), self._rng.choice(names)
            self.agents.world.at(at_s, lambda name=name: self._fail(name), background=True)  # type: ignore[misc]
        for name in names:
            self._next(name)

    def _next(self, name: str) -> None:
        if self.failing.mtbf_h:
            life_s = self._rng.expovariate(1.0 / (self.failing.mtbf_h * 3600.0))
            self.agents.world.after(life_s, lambda: self._wears_out(name), background=True)

    def _wears_out(self, name: str) -> None:
        self._fail(name)
        self._next(name)  # counted from the failure, as if a host aged while it is mended

    def _fail(self, name: str) -> None:
        if self.agents.fail(name):
            self.happened += 1
            self.agents.world.after(self.agents.pace.repair_s, lambda: self.agents.join(self.hosts[name]))
