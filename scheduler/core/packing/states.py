"""The states that hosts are in. Hosts in equal states are one: a question is asked once for all of them."""

from __future__ import annotations

from heapq import heappop, heappush

from .gpus import Pattern, Patterns
from .sizes import WHOLE, HostSize, Shape
from .worth import EVER, Worth

Node = tuple[int, int, Pattern]  # free cores in thousandths, free MiB, free GPUs
Key = tuple[str, int, tuple[tuple[int, int, tuple[int, ...]], ...]]


KEPT = 100_000  # states with what they answered; when there are more, those that no host is in go
STEPS_KEPT = 256  # answers of one state


class Step:
    """From one state to another, by a task. `after`: the other, once a host has gone that way."""

    __slots__ = ("after", "more", "nodes")

    def __init__(self, more: float, nodes: tuple[Node, ...]) -> None:
        self.more = more  # is lost then
        self.nodes = nodes
        self.after: State | None = None

    def __lt__(self, other: Step) -> bool:
        """Steps of one state by one need are alike: where answers are sorted, neither is first."""
        return False


class State:
    """What is free on some hosts. `key` says it all in numbers; equal keys are equal states."""

    __slots__ = (
        "count", "cpu_milli", "gone", "hosts", "key", "kind", "lost", "memory_mib", "model", "node_gpus", "nodes",
        "number", "steps", "top", "whole_host",
    )  # fmt: skip

    def __init__(self, key: Key, kind: int, nodes: tuple[Node, ...]) -> None:
        self.number = -1  # greater than that of any that came up earlier
        self.key = key
        self.model, self.node_gpus = key[0], key[1]  # the GPUs of its largest node when empty
        self.kind = kind  # the class of its model
        self.nodes = nodes
        self.cpu_milli = sum([node[0] for node in nodes])
        self.memory_mib = sum([node[1] for node in nodes])
        self.top = max([node[2].top for node in nodes], default=0)
        self.lost: tuple[float, ...] = ()  # by node
        self.whole_host = 0.0
        self.count = 0  # hosts that are in it
        self.gone = False  # forgotten: no host may enter it any more, as another that equals it may be made
        self.hosts: list[int] = []  # a heap of them, with some that have left
        self.steps: dict[Shape, Step | None] = {}  # by need, as far as it was asked

    def __lt__(self, other: State) -> bool:
        """Of two that are equal one is gone: where answers are sorted, neither is first."""
        return False


class States:
    """Every state that a host is in, once; and some that hosts were in."""

    def __init__(self, worth: Worth) -> None:
        self.worth = worth
        self.patterns = Patterns()
        # By class of models, in the order in which they came up.
        self.live: list[dict[Key, State]] = [{} for _ in worth.classes]
        self.newest = [-1] * len(worth.classes)  # the number of the last that came up
        self._known: dict[Key, State] = {}
        self._came_up = 0

    def of(self, model: str, node_gpus: int, nodes: tuple[Node, ...]) -> State:
        """The state of a host that has so much free."""
        key: Key = model, node_gpus, tuple([(cpu, memory, pattern.free) for cpu, memory, pattern in nodes])
        state = self._known.get(key)
        if state is None:
            if len(self._known) >= KEPT:
                self._forget()
            state = self._known[key] = State(key, self.worth.class_of[model], nodes)
            state.lost = tuple([self.worth.lost(state.kind, *node) for node in nodes])
            if len(nodes) > 1:
                state.whole_host = self.worth.whole_host(state.kind, nodes, node_gpus)
        return state

    def enter(self, state: State, host: int) -> None:
        """One more host is in it."""
        if not state.count:
            self.live[state.kind][state.key] = state
            state.number = self.newest[state.kind] = self._came_up
            self._came_up += 1
        state.count += 1
        heappush(state.hosts, host)

    def leave(self, state: State) -> None:
        """One host is no longer in it."""
        state.count -= 1
        if not state.count:
            del self.live[state.kind][state.key]
            state.hosts.clear()

    def _forget(self) -> None:
        """Those without hosts. Steps to them are dropped here as far as states still have them; heaps have more."""
        for state in self._known.values():
            state.gone = not state.count
        self._known = {key: state for live in self.live for key, state in live.items()}
        for state in self._known.values():
            for step in state.steps.values():
                if step is not None:
                    step.after = None

    def judge(self, state: State, shape: Shape) -> Step | None:
        """How much more would be lost if the task went there, and what would then be free; None: it has no room.

        Of what models the task may have, it is not asked.
        """
        if shape in state.steps:
            return state.steps[shape]
        if len(state.steps) >= STEPS_KEPT:
            state.steps.clear()
        step = state.steps[shape] = self._step(state, shape)
        return step

    def _step(self, state: State, shape: Shape) -> Step | None:
        gpu, cpu, memory, _ = shape
        if len(state.nodes) > 1:
            if gpu > state.node_gpus * WHOLE:
                return self._judge_all_nodes(state, shape)
            return self._judge_nodes(state, shape)
        free_cpu, free_memory, pattern = state.nodes[0]
        free_cpu -= cpu
        free_memory -= memory
        if free_cpu < 0 or free_memory < 0 or not pattern.takes(gpu):
            return None
        best, least = pattern, EVER
        for left in pattern.after.get(gpu) or self.patterns.after(pattern, gpu):
            lost = self.worth.lost(state.kind, free_cpu, free_memory, left)
            if lost < least:
                best, least = left, lost
        return Step(least - state.lost[0], ((free_cpu, free_memory, best),))

    def _judge_nodes(self, state: State, shape: Shape) -> Step | None:
        best: Step | None = None
        gpu, cpu, memory, _ = shape
        for place, (free_cpu, free_memory, pattern) in enumerate(state.nodes):
            if free_cpu < cpu or free_memory < memory or not pattern.takes(gpu):
                continue
            for left in self.patterns.after(pattern, gpu):
                node = free_cpu - cpu, free_memory - memory, left
                nodes = (*state.nodes[:place], node, *state.nodes[place + 1 :])
                more = self.worth.lost(state.kind, *node) - state.lost[place]
                more += state.whole_host - self.worth.whole_host(state.kind, nodes, state.node_gpus)
                if best is None or more < best.more:
                    best = Step(more, nodes)
        return best

    def _judge_all_nodes(self, state: State, shape: Shape) -> Step | None:
        nodes = []
        for place, (cpu, memory, pattern) in enumerate(state.nodes):
            share = even_share(shape, place, len(state.nodes))
            if cpu < share.cpu_milli or memory < share.memory_mib or not pattern.takes(share.gpu_milli):
                return None
            left = self.patterns.after(pattern, share.gpu_milli)[0]
            nodes.append((cpu - share.cpu_milli, memory - share.memory_mib, left))
        more = sum(self.worth.lost(state.kind, *node) for node in nodes) - sum(state.lost)
        more += state.whole_host - self.worth.whole_host(state.kind, tuple(nodes), state.node_gpus)
        return Step(more, tuple(nodes))


def even_share(shape: Shape, place: int, count: int) -> Shape:
    """What a task that is spread over `count` nodes takes of one; the first have what does not divide evenly."""
    gpus = shape.gpu_milli // WHOLE
    return Shape(
        (gpus // count + (place < gpus % count)) * WHOLE,
        shape.cpu_milli // count + (place < shape.cpu_milli % count),
        shape.memory_mib // count + (place < shape.memory_mib % count),
    )


def first_host(state: State, states_of_hosts: list[State | None]) -> int:
    """The first of the hosts that are in this state. They have the order of their names."""
    while states_of_hosts[state.hosts[0]] is not state:
        heappop(state.hosts)
    return state.hosts[0]


def empty_nodes(size: HostSize, patterns: Patterns) -> tuple[Node, ...]:
    """What is free on the host when nothing is taken."""
    return tuple((node.cpu_milli, node.memory_mib, patterns.of([WHOLE] * node.gpus)) for node in size.nodes)
