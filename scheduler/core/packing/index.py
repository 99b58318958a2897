"""The best state for each need, kept up to date: one host changes with each decision, and only that is asked anew.

Each need has a heap of what states answered, by class of models, since the price of a class changes without its hosts
changing, and since shapes with the same need share it whatever models they name. When a need is asked for, only states
that have come up since the last time are asked, so what is never asked for costs nothing. Answers of states that no
host is in any more are passed over. Scores end in the state's key: the best is a function of what is free, and of
nothing else (tests/unit/test_packing.py compares it with one built anew).
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from weakref import WeakValueDictionary

from .sizes import WHOLE, Shape
from .states import Key, Node, State, States

SHAPES_KEPT = 1024  # shapes; the oldest goes
SLACK = 64  # answers of dead states that a heap may have beside twice as many as there are states

Answer = tuple[float, Key, State, tuple[Node, ...]]  # how much more would be lost, where, and what would then be free


class _Heap:
    """What the states of one class answered to one need. `newest`: the last state that was asked.

    `models`: asks only states of these, if there are any; for who names some of a class of which the mix names all.
    """

    __slots__ = ("__weakref__", "answers", "models", "need", "newest", "states")

    def __init__(self, need: Shape, models: tuple[str, ...] = ()) -> None:
        self.need = need
        self.newest = -1
        self.models = models
        self.answers: list[Answer] = []
        self.states: set[State] = set()  # those with an answer in it


class Index:
    """Belongs to one set of states."""

    def __init__(self, states: States) -> None:
        self._states = states
        self._shapes: dict[Shape, list[tuple[int, _Heap]]] = {}  # for each class that it may have
        self._needs: WeakValueDictionary[tuple[int, Shape], _Heap] = WeakValueDictionary()  # those without models

    def best(self, shape: Shape, prices: list[float]) -> tuple[State, tuple[Node, ...]] | None:
        """The state whose hosts lose least by the task, with what would then be free; None: it fits nowhere."""
        heaps = self._shapes.get(shape) or self._new_shape(shape)
        newest, gpu = self._states.newest, shape[0]
        least = 0.0
        found: Answer | None = None
        for kind, heap in heaps:
            if heap.newest != newest[kind]:
                self._catch_up(kind, heap)
            answers = heap.answers
            while answers and not answers[0][2].count:
                heap.states.discard(heappop(answers)[2])
            if answers:
                first = answers[0]
                score = first[0] + gpu * prices[kind]
                if found is None or score < least or (score == least and first[1] < found[1]):
                    least, found = score, first
        return (found[2], found[3]) if found is not None else None

    def _new_shape(self, shape: Shape) -> list[tuple[int, _Heap]]:
        if len(self._shapes) >= SHAPES_KEPT:
            del self._shapes[next(iter(self._shapes))]
        classes = self._states.worth.classes
        heaps = []
        need = shape._replace(models=())
        for kind, models in enumerate(classes):
            allowed = [model for model in models if shape.allows(model)]
            if len(allowed) == len(models):
                heap = self._needs.get((kind, need))
                if heap is None:
                    heap = self._needs[kind, need] = _Heap(need)
                heaps.append((kind, heap))
            elif allowed:
                heaps.append((kind, _Heap(need, shape.models)))
        self._shapes[shape] = heaps
        return heaps

    def _catch_up(self, kind: int, heap: _Heap) -> None:
        """Ask the states that came up meanwhile, but for those that came back before their answer was dropped."""
        answers, states, judge, models, newest = heap.answers, heap.states, self._states.judge, heap.models, heap.newest
        gpu, cpu, memory, _ = need = heap.need
        for state in reversed(self._states.live[kind].values()):  # the last one first
            if state.number <= newest:
                break
            free = state.whole_milli if gpu >= WHOLE else state.top
            if free >= gpu and state.cpu_milli >= cpu and state.memory_mib >= memory and state not in states:
                step = judge(state, need)
                if step is not None and (not models or state.model in models):
                    heappush(answers, (step[0], state.key, state, step[1]))
                    states.add(state)
        heap.newest = self._states.newest[kind]
        if len(answers) > 2 * len(self._states.live[kind]) + SLACK:
            _sweep(heap)


def _sweep(heap: _Heap) -> None:
    """Drop what is out of date."""
    heap.answers = [answer for answer in heap.answers if answer[2].count]
    heapify(heap.answers)
    heap.states = {answer[2] for answer in heap.answers}
