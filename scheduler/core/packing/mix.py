"""The tasks that are expected, as shares; and what they need for each GPU."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from .sizes import Shape


@dataclass(slots=True)
class Mix:
    """How many tasks of each shape there are among those expected."""

    counts: Mapping[Shape, int]
    kinds: tuple[int, ...] = field(init=False)  # the thousandths of GPU that are asked for, ascending
    _shapes: list[tuple[Shape, float]] = field(init=False)
    cpus: list[int] = field(init=False)  # what tasks with GPUs ask for, ascending
    memories: list[int] = field(init=False)
    _by_cpu: list[list[tuple[Shape, float]]] = field(init=False)
    _enough: list[int] = field(init=False)  # by how many amounts of cores fit in: more of memory are of no use there
    _chances: dict[tuple[frozenset[str], int, int], list[float]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        shapes = sorted(shape for shape, count in self.counts.items() if count > 0)
        total = sum(self.counts[shape] for shape in shapes)
        self._shapes = [(shape, self.counts[shape] / total) for shape in shapes]
        self.kinds = tuple(sorted({shape.gpu_milli for shape in shapes if shape.gpu_milli}))
        with_gpus = [(shape, share) for shape, share in self._shapes if shape.gpu_milli]
        self.cpus = sorted({shape.cpu_milli for shape, _ in with_gpus})
        self.memories = sorted({shape.memory_mib for shape, _ in with_gpus})
        self._by_cpu = [[(s, share) for s, share in with_gpus if s.cpu_milli == cpu] for cpu in self.cpus]
        most = accumulate((max(shape.memory_mib for shape, _ in some) for some in self._by_cpu), max, initial=-1)
        self._enough = [bisect_right(self.memories, memory_mib) for memory_mib in most]

    def needs(self, *, all_tasks: bool) -> tuple[float, float]:
        """Thousandths of a core and MiB for each thousandth of GPU; of tasks that take GPUs, or of all tasks."""
        gpu = cpu = memory = 0.0
        for shape, share in self._shapes:
            gpu += share * shape.gpu_milli
            if shape.gpu_milli or all_tasks:
                cpu += share * shape.cpu_milli
                memory += share * shape.memory_mib
        return (cpu / gpu, memory / gpu) if gpu else (0.0, 0.0)

    def chances(self, models: frozenset[str], cpus: int, memories: int) -> list[float]:
        """For each of `kinds`: the share of tasks that ask for it and may run there, GPUs aside. Not to be changed.

        There so many of the amounts in `cpus` and in `memories` fit in.
        """
        memories = min(memories, self._enough[cpus])
        known = cpus
        while known and (models, known, memories) not in self._chances:
            known -= 1
        chances = self._chances[models, known, memories] if known else [0.0] * len(self.kinds)
        memory_mib = self.memories[memories - 1] if memories else -1
        for upto in range(known + 1, cpus + 1):  # those with fewer cores, and these
            chances = chances.copy()
            for shape, share in self._by_cpu[upto - 1]:
                if shape.memory_mib <= memory_mib and (not shape.models or not models.isdisjoint(shape.models)):
                    chances[bisect_left(self.kinds, shape.gpu_milli)] += share
            self._chances[models, upto, memories] = chances
        return chances

    def classes(self, models: frozenset[str]) -> list[frozenset[str]]:
        """The models, those together that no task tells apart; sorted."""
        named = [frozenset(s.models) & models for s in sorted({s for s, _ in self._shapes if s.models})]
        together: dict[tuple[bool, ...], set[str]] = {}
        for model in sorted(models):
            together.setdefault(tuple(model in names for names in named), set()).add(model)
        return sorted(map(frozenset, together.values()), key=sorted)

    def demands(self, classes: list[frozenset[str]]) -> dict[tuple[int, ...], float]:
        """Thousandths of GPU a task, by the classes of models that may serve them."""
        demands: dict[tuple[int, ...], float] = {}
        for shape, share in self._shapes:
            able = tuple(i for i, c in enumerate(classes) if not shape.models or not c.isdisjoint(shape.models))
            if able and shape.gpu_milli:
                demands[able] = demands.get(able, 0.0) + share * shape.gpu_milli
        return demands
