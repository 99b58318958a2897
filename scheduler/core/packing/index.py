"""The best state for each need, kept up to date: one host changes with each decision, and only that is asked anew.

Each need has a heap of what states answered, by class of models, since the price of a class changes without its hosts
changing, and since shapes with the same need share it whatever models they name. It reads the log of states that came
up since the need was last asked, so what is never asked costs nothing. Answers of states that no host is in any more
are passed over. Scores end in the state's key: the best is a function of what is free, and of nothing else
(tests/unit/test_packing.py compares it with one built anew).
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from weakref import WeakValueDictionary

from .sizes import WHOLE, Shape
from .states import Key, Node, State, States

LOG_KEPT = 1 << 15
SHAPES_KEPT = 4096  # shapes; the oldest goes
SLACK = 64  # answers of dead states that a heap may have beside twice as many as there are states

Answer = tuple[float, Key, int, State, tuple[Node, ...]]


class _Heap:
    """What the states of one class answered to one need. `read`: up to where it has read the log; -1: not at all.

    `models`: asks only states of these, if there are any; for who names some of a class of which the mix names all.
    """

    __slots__ = ("__weakref__", "answers", "models", "read")

    def __init__(self, models: tuple[str, ...] = ()) -> None:
        self.read = -1
        self.models = models
        self.answers: list[Answer] = []


class _Log:
    """The states of one class that came up, in order; `forgotten` older ones are no longer in it."""

    __slots__ = ("forgotten", "live", "states")

    def __init__(self, live: dict[Key, State]) -> None:
        self.live = live
        self.states: list[State] = []
        self.forgotten = 0

    def add(self, state: State) -> None:
        self.states.append(state)
        if len(self.states) > LOG_KEPT:
            half = LOG_KEPT // 2
            del self.states[:half]
            self.forgotten += half


class Index:
    """Belongs to one set of states."""

    def __init__(self, states: States) -> None:
        self._states = states
        self._logs = [_Log(live) for live in states.live]
        self._shapes: dict[Shape, list[tuple[int, _Heap]]] = {}  # for each class that it may have
        self._needs: WeakValueDictionary[tuple[int, Shape], _Heap] = WeakValueDictionary()  # those without models

    def came_up(self, state: State) -> None:
        """A host is in a state in which none was."""
        self._logs[state.kind].add(state)

    def best(self, shape: Shape, prices: list[float]) -> tuple[State, tuple[Node, ...]] | None:
        """The state whose hosts lose least by the task, with what would then be free; None: it fits nowhere."""
        heaps = self._shapes.get(shape) or self._new_shape(shape)
        least: tuple[float, Key] | None = None
        found: Answer | None = None
        for kind, heap in heaps:
            log = self._logs[kind]
            if heap.read != log.forgotten + len(log.states):
                self._catch_up(shape, heap, log)
            answers = heap.answers
            while answers and not answers[0][3].count:
                heappop(answers)
            if answers:
                rank = answers[0][0] + shape.gpu_milli * prices[kind], answers[0][1]
                if least is None or rank < least:
                    least, found = rank, answers[0]
        return (found[3], found[4]) if found is not None else None

    def _new_shape(self, shape: Shape) -> list[tuple[int, _Heap]]:
        if len(self._shapes) >= SHAPES_KEPT:
            del self._shapes[next(iter(self._shapes))]
        classes = self._states.worth.classes
        heaps = []
        for kind, models in enumerate(classes):
            allowed = [model for model in models if shape.allows(model)]
            if len(allowed) == len(models):
                need = kind, shape._replace(models=())
                heap = self._needs.get(need)
                if heap is None:
                    heap = self._needs[need] = _Heap()
                heaps.append((kind, heap))
            elif allowed:
                heaps.append((kind, _Heap(shape.models)))
        self._shapes[shape] = heaps
        return heaps

    def _catch_up(self, shape: Shape, heap: _Heap, log: _Log) -> None:
        """Ask the states that came up meanwhile; all, if these are fewer."""
        gpu, cpu, memory, _ = shape
        one_gpu = min(WHOLE, gpu)
        end = log.forgotten + len(log.states)
        behind = end - heap.read
        if heap.read < log.forgotten or behind > len(log.live):
            unread: Iterable[State] = log.live.values()
            heap.answers.clear()
        else:
            unread = log.states[len(log.states) - behind :]
        answers, judge, models = heap.answers, self._states.judge, heap.models
        for state in unread:
            if state.top >= one_gpu and state.cpu_milli >= cpu and state.memory_mib >= memory and state.count:
                answer = judge(state, shape)
                if answer is not None and (not models or state.model in models):
                    heappush(answers, (answer[0], state.key, state.number, state, answer[1]))
        heap.read = end
        if len(answers) > 2 * len(log.live) + SLACK:
            _sweep(answers)


def _sweep(answers: list[Answer]) -> None:
    """Drop what is out of date, and all but one of what is there twice."""
    alive = {answer[2]: answer for answer in answers if answer[3].count}
    answers[:] = alive.values()
    heapify(answers)
