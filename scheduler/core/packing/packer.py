"""Takes tasks in, lets them go, and knows which GPU of which host each has."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import compress
from operator import ne

from .index import Index
from .mix import Mix
from .pressure import STEPS, prices
from .sizes import WHOLE, HostSize, Shape, Share, Taken, Totals
from .states import Node, State, States, empty_nodes, first_host
from .worth import Worth

PRICES_KEPT = 4096


class _Host:
    """One host, with what is free on each of its GPUs."""

    __slots__ = ("free", "node_gpus", "size")

    def __init__(self, size: HostSize) -> None:
        self.size = size
        self.node_gpus = max((node.gpus for node in size.nodes), default=0)
        self.free = [[WHOLE] * node.gpus for node in size.nodes]


class Packer:
    """A fleet. It never gives away what is taken; what it is told to free must have come from `place`."""

    def __init__(self, hosts: Iterable[HostSize], mix: Mix) -> None:
        ordered = sorted(hosts, key=lambda host: host.name)
        worth = Worth(mix, frozenset(host.model for host in ordered), _totals(ordered))
        self._states = States(worth)
        self._index = Index(self._states)
        self._hosts = [_Host(size) for size in ordered]
        self._place_of = {host.size.name: i for i, host in enumerate(self._hosts)}
        self._demands = mix.demands(worth.classes)
        self._free = [0] * len(worth.classes)  # thousandths of GPU on hosts that are open
        self._all = [0] * len(worth.classes)
        self._steps = [-1] * len(worth.classes)
        self._prices: list[float] | None = None
        self._prices_at: dict[tuple[int, ...], list[float]] = {}
        self._state_of: list[State | None] = [None] * len(ordered)
        self._nodes_of = [empty_nodes(size, self._states.patterns) for size in ordered]
        for host in self._hosts:
            self._all[self._class(host)] += host.size.gpus * WHOLE
        for place in range(len(ordered)):
            self._open(place)

    def place(self, shape: Shape) -> Taken | None:
        """Take what the task needs, where the least is lost by it; None: it fits nowhere."""
        found = self._index.best(shape, self._current_prices())
        if found is None:
            return None
        state, nodes = found
        place = first_host(state, self._state_of)
        host = self._hosts[place]
        gpu_milli = shape.gpu_milli
        shares = [
            _share(number, before, nodes[number], host.free[number], gpu_milli)
            for number, before in enumerate(state.nodes)
            if before is not nodes[number]
        ]
        if gpu_milli:
            self._count(state.kind, -gpu_milli)
        self._move(place, nodes)
        return Taken(host.size.name, tuple(shares))

    def take(self, taken: Iterable[Taken]) -> None:
        """What tasks have already, by another's decision: it must be free."""
        for one in taken:
            self._change(one, -1)

    def free(self, taken: Taken) -> None:
        """Give back what a task had."""
        self._change(taken, +1)

    def _change(self, taken: Taken, sign: int) -> None:
        place = self._place_of[taken.host]
        state, host = self._state_of[place], self._hosts[place]
        nodes = list(self._nodes_of[place])
        for node, cpu_milli, memory_mib, gpus, gpu_milli in taken.shares:
            cpu, memory, _ = nodes[node]
            free = host.free[node]
            for gpu in gpus:
                free[gpu] += sign * gpu_milli
            nodes[node] = cpu + sign * cpu_milli, memory + sign * memory_mib, self._states.patterns.of(free)
            if state is not None:
                self._count(state.kind, sign * gpu_milli * len(gpus))
        self._move(place, tuple(nodes))

    def close(self, name: str) -> None:
        """Nothing more is placed there. What is there stays until it is freed."""
        place = self._place_of[name]
        state = self._state_of[place]
        if state is not None:
            self._states.leave(state)
            self._state_of[place] = None
            self._count(state.kind, -self._free_gpu(place))

    def open(self, name: str) -> None:
        """The host takes tasks again."""
        if self._state_of[self._place_of[name]] is None:
            self._open(self._place_of[name])

    def free_of(self, name: str) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
        """For each node of the host: thousandths of cores, MiB, thousandths of each GPU."""
        place = self._place_of[name]
        free = self._hosts[place].free
        return tuple(
            (cpu, memory, tuple(gpus)) for (cpu, memory, _), gpus in zip(self._nodes_of[place], free, strict=True)
        )

    def _class(self, host: _Host) -> int:
        return self._states.worth.class_of[host.size.model]

    def _free_gpu(self, place: int) -> int:
        return sum(pattern.total for _, _, pattern in self._nodes_of[place])

    def _open(self, place: int) -> None:
        host = self._hosts[place]
        self._count(self._class(host), self._free_gpu(place))
        self._enter(place, self._states.of(host.size.model, host.node_gpus, self._nodes_of[place]))

    def _move(self, place: int, nodes: tuple[Node, ...]) -> None:
        """The host has this free now."""
        self._nodes_of[place] = nodes
        state = self._state_of[place]
        if state is not None:
            self._states.leave(state)
            self._enter(place, self._states.of(state.model, state.node_gpus, nodes))

    def _enter(self, place: int, state: State) -> None:
        self._state_of[place] = state
        self._states.enter(state, place)

    def _count(self, kind: int, gpu_milli: int) -> None:
        """So much more of a class is free. Prices follow in steps, so that they are seldom computed."""
        self._free[kind] += gpu_milli
        step = -(-self._free[kind] * STEPS // (self._all[kind] or 1))
        if step != self._steps[kind]:
            self._steps[kind] = step
            self._prices = None

    def _current_prices(self) -> list[float]:
        if self._prices is None:
            steps = tuple(self._steps)
            self._prices = self._prices_at.get(steps)
            if self._prices is None:
                if len(self._prices_at) >= PRICES_KEPT:
                    self._prices_at.clear()
                free = [step * total // STEPS for step, total in zip(steps, self._all, strict=True)]
                self._prices = self._prices_at[steps] = prices(self._demands, free)
        return self._prices


def _totals(hosts: Iterable[HostSize]) -> Totals:
    nodes = [node for host in hosts for node in host.nodes]
    return Totals(
        sum(node.gpus for node in nodes) * WHOLE, sum(n.cpu_milli for n in nodes), sum(n.memory_mib for n in nodes)
    )


def _share(number: int, before: Node, after: Node, free: list[int], gpu_milli: int) -> Share:
    """Take from `free`, the GPUs of one node, what makes it look like `after`: the first GPUs that will do."""
    cpu, memory = before[0] - after[0], before[1] - after[1]
    if gpu_milli >= WHOLE:
        count = before[2].whole - after[2].whole
        gpus = tuple([gpu for gpu, left in enumerate(free) if left == WHOLE][:count])
        each = WHOLE
    elif gpu_milli:
        gpus, each = (free.index(_sliced(before, after)),), gpu_milli
    else:
        gpus, each = (), 0
    for gpu in gpus:
        free[gpu] -= each
    return Share(number, cpu, memory, gpus, each)


def _sliced(before: Node, after: Node) -> int:
    """What was free on the GPU that the slice is of: the patterns differ there alone, and the larger one is first."""
    return next(compress(before[2].free, map(ne, before[2].free, after[2].free)))
