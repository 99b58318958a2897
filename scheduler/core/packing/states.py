"""The states that hosts are in. Hosts in equal states are one: a question is asked once for all of them."""

from __future__ import annotations

from heapq import heappop, heappush

from .gpus import Pattern, Patterns
from .sizes import WHOLE, HostSize, Shape
from .worth import EVER, Worth

Node = tuple[int, int, Pattern]  # free cores in thousandths, free MiB, free GPUs
Key = tuple[str | int | tuple[int, ...], ...]
Step = tuple[float, tuple[Node, ...]]  # by a task: how much more is lost then, and what is free

KEPT = 100_000  # states with what they answered; when there are more, those that no host is in go
STEPS_KEPT = 256  # answers of one state


class State:
    """What is free on some hosts. `key` says it all in numbers, flat, so that it is soon compared."""

    __slots__ = (
        "count", "cpu_milli", "hosts", "key", "kind", "lost", "memory_mib", "model", "node_gpus", "nodes", "number",
        "steps", "top", "whole_host", "whole_milli",
    )  # fmt: skip

    def __init__(self, model: str, node_gpus: int, kind: int, nodes: tuple[Node, ...]) -> None:
        self.number = -1  # greater than that of any that came up earlier
        self.model = model
        self.node_gpus = node_gpus  # of its largest node when empty
        self.kind = kind  # the class of its model
        self.nodes = nodes
        self.cpu_milli = self.memory_mib = self.top = self.whole_milli = 0
        key: list[str | int | tuple[int, ...]] = [model, node_gpus]
        for cpu_milli, memory_mib, pattern in nodes:
            key += cpu_milli, memory_mib, pattern.free
            self.cpu_milli += cpu_milli
            self.memory_mib += memory_mib
            self.top = max(self.top, pattern.top)
            self.whole_milli += WHOLE * pattern.whole
        self.key: Key = tuple(key)
        self.lost: tuple[float, ...] = ()  # by node
        self.whole_host = 0.0
        self.count = 0  # hosts that are in it
        self.hosts: list[int] = []  # a heap of them, with some that have left
        self.steps: dict[Shape, Step | None] = {}  # by need, as far as it was asked

    def __lt__(self, other: State) -> bool:
        """Of two that are equal one was forgotten: where answers are sorted, neither is first."""
        return False


class States:
    """Every state that a host is in, once; and some that hosts were in."""

    def __init__(self, worth: Worth) -> None:
        self.worth = worth
        self.patterns = Patterns()
        # By class of models and number, in the order in which they came up.
        self.live: list[dict[int, State]] = [{} for _ in worth.classes]
        self.newest = [-1] * len(worth.classes)  # the number of the last that came up
        self._known: dict[tuple[str, int, tuple[Node, ...]], State] = {}
        self._came_up = 0

    def of(self, model: str, node_gpus: int, nodes: tuple[Node, ...]) -> State:
        """The state of a host that has so much free."""
        key = model, node_gpus, nodes
        state = self._known.get(key)
        if state is None:
            if len(self._known) >= KEPT:
                live = [state for live in self.live for state in live.values()]
                self._known = {(state.model, state.node_gpus, state.nodes): state for state in live}
            state = self._known[key] = State(model, node_gpus, self.worth.class_of[model], nodes)
            state.lost = tuple([self.worth.lost(state.kind, *node) for node in nodes])
            if len(nodes) > 1:
                state.whole_host = self.worth.whole_host(state.kind, nodes, node_gpus)
        return state

    def enter(self, state: State, host: int) -> None:
        """One more host is in it."""
        if not state.count:
            state.number = self.newest[state.kind] = self._came_up
            self.live[state.kind][state.number] = state
            self._came_up += 1
        state.count += 1
        heappush(state.hosts, host)

    def leave(self, state: State) -> None:
        """One host is no longer in it."""
        state.count -= 1
        if not state.count:
            del self.live[state.kind][state.number]
            state.hosts.clear()

    def judge(self, state: State, need: Shape) -> Step | None:
        """How much more would be lost if the task went there, and what would then be free; None: it has no room.

        Of what models the task may have, it is not asked.
        """
        if len(state.nodes) > 1:
            return self._known_step(state, need)
        gpu, cpu, memory, _ = need
        free_cpu, free_memory, pattern = state.nodes[0]
        free_cpu -= cpu
        free_memory -= memory
        able = pattern.after.get(gpu) or self.patterns.after(pattern, gpu)
        if free_cpu < 0 or free_memory < 0 or not able:
            return None
        least, left = self.worth.least(state.kind, free_cpu, free_memory, able)
        return least - state.lost[0], ((free_cpu, free_memory, left),)

    def _known_step(self, state: State, need: Shape) -> Step | None:
        """With several nodes it takes longer, so what was answered is kept."""
        if need in state.steps:
            return state.steps[need]
        if len(state.steps) >= STEPS_KEPT:
            state.steps.clear()
        wide = need.gpu_milli > state.node_gpus * WHOLE
        step = state.steps[need] = self._judge_all_nodes(state, need) if wide else self._judge_nodes(state, need)
        return step

    def _judge_nodes(self, state: State, need: Shape) -> Step | None:
        best, least = None, EVER
        for place, (free_cpu, free_memory, pattern) in enumerate(state.nodes):
            cpu, memory = free_cpu - need.cpu_milli, free_memory - need.memory_mib
            if cpu < 0 or memory < 0:
                continue
            for left in self.patterns.after(pattern, need.gpu_milli):  # none if so much is not free
                nodes = (*state.nodes[:place], (cpu, memory, left), *state.nodes[place + 1 :])
                more = self.worth.lost(state.kind, cpu, memory, left) - state.lost[place]
                if state.whole_host:  # else it has none after it either
                    more += state.whole_host - self.worth.whole_host(state.kind, nodes, state.node_gpus)
                if more < least:
                    best, least = nodes, more
        return (least, best) if best is not None else None

    def _judge_all_nodes(self, state: State, need: Shape) -> Step | None:
        nodes = []
        for place, (cpu, memory, pattern) in enumerate(state.nodes):
            share = _even_share(need, place, len(state.nodes))
            if cpu < share.cpu_milli or memory < share.memory_mib or not pattern.takes(share.gpu_milli):
                return None
            left = self.patterns.after(pattern, share.gpu_milli)[0]
            nodes.append((cpu - share.cpu_milli, memory - share.memory_mib, left))
        more = sum(self.worth.lost(state.kind, *node) for node in nodes) - sum(state.lost)
        more += state.whole_host - self.worth.whole_host(state.kind, tuple(nodes), state.node_gpus)
        return more, tuple(nodes)


def _even_share(need: Shape, place: int, count: int) -> Shape:
    """What a task that is spread over `count` nodes takes of one; the first have what does not divide evenly."""
    gpus = need.gpu_milli // WHOLE
    return Shape(
        (gpus // count + (place < gpus % count)) * WHOLE,
        need.cpu_milli // count + (place < need.cpu_milli % count),
        need.memory_mib // count + (place < need.memory_mib % count),
    )


def first_host(state: State, states_of_hosts: list[State | None]) -> int:
    """The first of the hosts that are in this state. They have the order of their names."""
    while states_of_hosts[state.hosts[0]] is not state:
        heappop(state.hosts)
    return state.hosts[0]


def empty_nodes(size: HostSize, patterns: Patterns) -> tuple[Node, ...]:
    """What is free on the host when nothing is taken."""
    return tuple((node.cpu_milli, node.memory_mib, patterns.of([WHOLE] * node.gpus)) for node in size.nodes)
