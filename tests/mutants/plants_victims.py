"""Mutants of who is asked to stop: never one who could stay, never for nothing, and not at everybody's cost."""

from __future__ import annotations

from tests.mutants.model import Edit, Mutant, tests

SETS, SEARCH, FEWEST = (
    "scheduler/core/queueing/sets.py", "scheduler/core/queueing/search.py", "scheduler/core/gangs/fewest.py",
)  # fmt: skip
WORK = "scheduler/core/work.py"
MANY = "unit/test_many_victims.py"

VICTIMS = (
    Mutant(
        "stopped and not needed",
        "of victims that were found greedily nobody is let off who could stay",
        [Edit(SETS, "            if works(fewer):\n", "            if False and works(fewer):\n")],
        tests(f"{MANY}::test_a_greedy_set_has_nobody_who_could_stay", f"{MANY}::test_of_many_victims_none_could_stay"),
        fast=True,
    ),
    Mutant(
        "eight and no more",
        "a job for which nine would have to leave is never helped",
        [Edit(SEARCH, "    if found is None:\n        found = yield from _large(places)\n", "")],
        tests(f"{MANY}::test_a_host_of_sixteen_is_emptied_for_one_job"),
        fast=True,
    ),
    Mutant(
        "a gang's eight and no more",
        "a gang for one of whose hosts nine would have to leave is never helped",
        [Edit(FEWEST, "(yield from self._large(host, largest, have, most))", "()")],
        tests(f"{MANY}::test_a_gang_empties_hosts_of_sixteen"),
    ),
    Mutant(
        "alike that are not",
        "VMs count as alike though their cores are of different nodes",
        [Edit(SETS, "    yield tuple(sorted((node_of.get(core, -1), len(core)) for core in victim.cores))\n", "")],
        tests(f"{MANY}::test_each_of_a_kind_leaves_the_same_behind"),
    ),
    Mutant(
        "more of many than was borrowed",
        "where many leave, more of a queue is taken back than it has borrowed",
        [
            Edit(
                SEARCH,
                "            yield within_loans(self.cluster, self.job, order)\n",
                "            yield list(order)\n",
            )
        ],
        tests(f"{MANY}::test_no_more_than_was_borrowed_of_many"),
    ),
    Mutant(
        "spared for another host's sake",
        "who could stay, since another host of the gang has room for more of it, is asked to stop",
        [Edit(FEWEST, "        if not self.inexact:\n", "        if True:\n")],
        tests(f"{MANY}::test_who_makes_more_room_than_is_needed_spares_another"),
    ),
    Mutant(
        "all in one go",
        "nobody else runs while victims are sought",
        [Edit(WORK, "        if cost >= PAUSE:\n", "        if False:\n")],
        tests(f"{MANY}::test_others_run_while_victims_are_sought"),
        fast=True,
    ),
)
