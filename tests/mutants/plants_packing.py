"""Mutants of the packing core, and of the protocol that measures it."""

from __future__ import annotations

from tests.mutants.model import Edit, Mutant, tests

INDEX, WORTH = (f"scheduler/core/packing/{name}.py" for name in ("index", "worth"))
OPENB = "scheduler/simulate/openb.py"


PACKING = (
    Mutant(
        "an answer that was dropped is thought to be there",
        "hosts that are again in the state are found by nobody",
        [Edit(INDEX, "heap.states.discard(heappop(answers)[2])", "heappop(answers)")],
        tests("unit/test_packing.py::test_a_state_that_comes_back_is_found_again"),
    ),
    Mutant(
        "answers that were swept out are thought to be there",
        "hosts that are again in their states are found by nobody",
        [Edit(INDEX, "    heap.states = {answer[2] for answer in heap.answers}\n", "")],
        tests("unit/test_packing.py::test_a_state_that_comes_back_is_found_again"),
    ),
    Mutant(
        "fragments do not count",
        "a GPU is filled so that what stays of it is of use to nobody",
        [Edit(WORTH, "        return pattern.total - usable\n", "        return 0.0\n")],
        tests("unit/test_packing.py::test_a_slice_leaves_what_others_can_use"),
    ),
    Mutant(
        "cores are never scarce",
        "tasks without GPUs take the cores that GPUs need",
        [Edit(WORTH, "return cpu, memory\n", "return 1.0, 1.0\n")],
        tests("unit/test_packing.py::test_where_cores_are_scarce_more_are_kept_beside_each_gpu"),
    ),
    Mutant(
        "whole hosts are worth nothing",
        "a small task begins a host that one for all of it could have had",
        [Edit(WORTH, "        return chance * whole * count\n", "        return 0.0\n")],
        tests("unit/test_packing.py::test_whole_hosts_are_kept_for_tasks_that_no_node_can_take"),
    ),
    Mutant(
        "the worst part of a GPU",
        "a slice is taken of the GPU where it costs the most",
        [Edit(WORTH, "            if lost < least:", "            if lost < EVER:")],
        tests("unit/test_packing_gap.py::test_on_average_near_the_best"),
    ),
    Mutant(
        "a task too late",
        "what is allocated at 100 % is that of one task more",
        [Edit(OPENB, "while asked >= mark:", "while asked > mark:")],
        tests("unit/test_simulate.py::test_what_is_allocated_counts_up_to_the_task_with_which_so_much_had_arrived"),
    ),
    Mutant(
        "all of the list",
        "more arrives than was asked for, and counts",
        [Edit(OPENB, "return queue[:number]", "return queue")],
        tests("unit/test_simulate.py::test_no_more_arrive_than_are_asked_for"),
    ),
)  # fmt: skip
