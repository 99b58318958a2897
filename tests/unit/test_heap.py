"""A large heap is put aside, a small one collected; and only when there is enough that is new."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from scheduler import heap


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


class Node:
    """Names itself: only a collection frees it."""

    def __init__(self, freed: list[int]) -> None:
        self.me, self.freed = self, freed

    def __del__(self) -> None:
        self.freed.append(1)


def aged(rounds: int) -> None:
    """So many collections of the middle-aged pass."""
    gc.collect()
    for _ in range(rounds):
        gc.collect(1)


def test_a_small_heap_is_collected_once_there_is_enough_that_is_new() -> None:
    heap.begin()
    freed: list[int] = []
    aged(0)
    Node(freed)
    aged_node = Node(freed)
    gc.collect(1)  # the first is freed young, the other grows old
    del aged_node
    assert len(freed) == 1
    heap.look(heap.LARGE - 1)
    assert len(freed) == 1, "too early"
    for _ in range(heap.ROUNDS):
        gc.collect(1)
    heap.look(heap.LARGE - 1)
    assert len(freed) == 2
    assert not gc.get_freeze_count()


def test_a_large_heap_is_put_aside() -> None:
    heap.begin()
    aged(heap.ROUNDS)
    heap.look(heap.LARGE)
    assert gc.get_freeze_count() > 1000
    assert gc.get_count()[2] < heap.ROUNDS


def test_nothing_is_collected_as_a_whole_by_itself() -> None:
    heap.begin()
    before = gc.get_stats()[2]["collections"]
    kept = [[n] for n in range(700_000)]
    assert len(kept) == 700_000
    assert gc.get_stats()[2]["collections"] == before


def test_what_a_large_load_makes_is_put_aside_at_once() -> None:
    heap.begin()
    before = gc.get_stats()[0]["collections"]
    with heap.still():
        kept = [[n] for n in range(heap.MANY + 1)]
        assert gc.get_stats()[0]["collections"] == before
    assert gc.isenabled()
    assert gc.get_freeze_count() > len(kept)
