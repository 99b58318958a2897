"""How much of a host's free GPUs is as good as lost, in thousandths: the least increase decides where a task goes.

Two losses are added:

- *stranded*: the free GPU that a task of the mix could not use, averaged over the mix. This is the fragmentation of
  Weng et al., "Beware of Fragmentation" (USENIX ATC 2023), section 4; to follow its gradient is their FGD.
- *short*: the free GPU for which cores or memory will not last, at what the mix needs for each GPU. Fragmentation sees
  cores only when the next task no longer fits; here each core that is taken on a host short of them costs at once, and
  one on a host that has many is free, so that tasks with many cores go where cores are plenty.

Where cores or memory run short in the whole fleet, `_scarcity` asks for more to be kept beside each GPU.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate

from .gpus import Pattern
from .mix import Mix
from .sizes import WHOLE, Totals

PLENTY = 0.8  # of a fleet's cores or memory, in use when all GPUs are: up to here, nothing is kept beyond the need
EVER = float(1 << 60)


class _Cell:
    """Nodes of one class into which the same tasks of the mix fit, GPUs aside."""

    __slots__ = ("chances", "slices", "stranded")

    def __init__(self, chances: list[float], kinds_of_slices: int) -> None:
        self.chances = chances  # that one of these tasks is the next, by kind
        self.slices = [0.0, *accumulate(chances[:kinds_of_slices])]  # by how many kinds of slices fit: of one of them
        self.stranded: dict[Pattern, float] = {}


class Worth:
    """What is lost, by node. Belongs to one mix and one fleet."""

    def __init__(self, mix: Mix, models: frozenset[str], fleet: Totals) -> None:
        self._mix = mix
        self._cpus, self._memories = mix.cpus, mix.memories
        self.classes = mix.classes(models)
        self.class_of = {model: i for i, models in enumerate(self.classes) for model in models}
        self._cells: dict[tuple[int, int, int], _Cell] = {}  # by class and how many amounts of cores and memory fit in
        self._with_chances: dict[tuple[float, ...], _Cell] = {}  # what differs in nothing that counts is one cell
        self._kinds_of_slices = bisect_left(mix.kinds, WHOLE)
        cpu, memory = mix.needs(all_tasks=False)
        cpu_scarcity, memory_scarcity = _scarcity(mix, fleet)
        self._a_core = 1 / (cpu * cpu_scarcity) if cpu else EVER  # thousandths of GPU for each of a core
        self._a_mib = 1 / (memory * memory_scarcity) if memory else EVER

    def lost(self, kind: int, cpu_milli: int, memory_mib: int, pattern: Pattern) -> float:
        """Of one node with GPUs of this class of models."""
        return self.least(kind, cpu_milli, memory_mib, (pattern,))[0]

    def least(self, kind: int, cpu_milli: int, memory_mib: int, able: tuple[Pattern, ...]) -> tuple[float, Pattern]:
        """Of the patterns that the node may be left with, all with as much free: the least that is lost, and where."""
        least, best = EVER, able[0]
        total = best.total
        if not total:
            return 0.0, best
        key = kind, bisect_right(self._cpus, cpu_milli), bisect_right(self._memories, memory_mib)
        cell = self._cells.get(key) or self._new_cell(key)
        lasts, by_memory = cpu_milli * self._a_core, memory_mib * self._a_mib
        lasts = min(lasts, by_memory)
        for pattern in able:
            lost = cell.stranded.get(pattern)
            if lost is None:
                lost = cell.stranded[pattern] = self._stranded(cell, pattern)
            if lasts < total:
                lost = lost + total - lasts
            if lost < least:
                least, best = lost, pattern
        return least, best

    def whole_host(self, kind: int, nodes: tuple[tuple[int, int, Pattern], ...], node_gpus: int) -> float:
        """What is not lost, though its nodes say so, since tasks that no node can take would have the whole host."""
        count = len(nodes)
        whole = min(pattern.whole for _, _, pattern in nodes) * WHOLE
        if whole * count <= node_gpus * WHOLE:
            return 0.0
        cpus = bisect_right(self._mix.cpus, min(node[0] for node in nodes) * count)
        memories = bisect_right(self._mix.memories, min(node[1] for node in nodes) * count)
        chances = zip(self._mix.kinds, self._mix.chances(self.classes[kind], cpus, memories), strict=True)
        chance = sum(chance for asked, chance in chances if node_gpus * WHOLE < asked <= whole * count)
        return chance * whole * count

    def _new_cell(self, key: tuple[int, int, int]) -> _Cell:
        kind, cpus, memories = key
        chances = self._mix.chances(self.classes[kind], cpus, memories)
        cell = self._with_chances.get(tuple(chances)) or _Cell(chances, self._kinds_of_slices)
        self._cells[key] = self._with_chances[tuple(chances)] = cell
        return cell

    def _stranded(self, cell: _Cell, pattern: Pattern) -> float:
        slices, kinds = cell.slices, self._mix.kinds
        usable = 0.0
        for free in pattern.free:
            if not free:
                break
            usable += free * slices[bisect_right(kinds, free, 0, self._kinds_of_slices)]
        whole = pattern.whole * WHOLE
        for place in range(self._kinds_of_slices, len(kinds)):
            if kinds[place] > whole:
                break
            usable += whole * cell.chances[place]
        return pattern.total - usable


def _scarcity(mix: Mix, fleet: Totals) -> tuple[float, float]:
    """From 1, by how much more cores and memory are to be kept beside each GPU than tasks with GPUs need.

    Tasks without GPUs live on what others leave. If all are served and more than PLENTY is in use, they would take it
    from the GPUs.
    """
    have = fleet.cpu_milli, fleet.memory_mib
    need = mix.needs(all_tasks=True)
    cpu, memory = (max(1.0, n * fleet.gpu_milli / h / PLENTY) if h else 1.0 for n, h in zip(need, have, strict=True))
    return cpu, memory
