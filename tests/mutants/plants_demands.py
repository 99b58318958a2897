"""Mutants of what jobs demand of GPUs, hosts and neighbours, and of what is said of it."""

from __future__ import annotations

from tests.mutants.model import Edit, Mutant, tests

FIT, OWN, RULED, ROOM = (
    "scheduler/core/fitting/fit.py",
    "scheduler/core/fitting/own.py",
    "scheduler/core/fitting/ruled.py",
    "scheduler/core/reservation/room.py",
)
PLACE, CLUSTER = "scheduler/core/place.py", "scheduler/core/state/cluster.py"
KNOWN, NEAREST, EXPLAIN = (
    "scheduler/core/fitting/known.py",
    "scheduler/core/fitting/nearest.py",
    "scheduler/core/explain.py",
)
ORACLE = "unit/test_demands.py"  # random: a scenario beside it makes sure


def scenario(name: str) -> str:
    """A golden scenario that must differ."""
    return f"golden/test_golden.py::test_scenario[demands_{name}]"


DEMANDS = (
    Mutant(
        "a whole host is shared",
        "others come to a host that a job has for itself",
        [Edit(FIT, "    if host.company.whole:\n", "    if False:\n")],
        tests(ORACLE, scenario("whole_host")),
    ),
    Mutant(
        "a whole host that is not empty",
        "a job that wants a host for itself goes to one where others are",
        [Edit(RULED, "if rules.whole_host and host.allocations:", "if False:")],
        tests(ORACLE, scenario("whole_host")),
    ),
    Mutant(
        "apart in one direction",
        "a job may join one that is to be apart from it",
        [Edit(OWN, "    for pattern in sorted(host.company.shunned) if labels else ():\n", "    for pattern in ():\n")],
        tests(ORACLE, scenario("apart")),
    ),
    Mutant(
        "back to where it failed",
        "a host is used again though as many attempts as may failed there",
        [Edit(OWN, "    if host.name in failed:\n", "    if False:\n")],
        tests(ORACLE, scenario("not_where_it_failed")),
    ),
    Mutant(
        "one job's luck is all of its shape's",
        "a job that its own history keeps out stops all others of its shape",
        [Edit(PLACE, "        elif mine is not None:  # others", "        elif False:  # others")],
        tests("unit/test_rules.py"),
    ),
    Mutant(
        "room kept from one is kept from all",
        "a job that may use few hosts only, whose room is kept for restarts, stops all others of its shape",
        [Edit("scheduler/core/reservation/admission.py", "        self.refused.discard(_kind(job))\n", "")],
        tests("unit/test_rules.py"),
    ),
    Mutant(
        "nobody tells who waits for company",
        "a job that waits to be near another is not tried again when that one is placed",
        [Edit(CLUSTER, "self.capacity_epoch += 1  # somebody may have", "pass  # somebody may have")],
        tests(scenario("near")),
    ),
    Mutant(
        "units of any place",
        "units of which nobody knows where they sit count as near to each other",
        [Edit(RULED, "        if place := place_of(unit, within):\n            by_place",
              "        if (place := place_of(unit, within)) is not None:\n            by_place")],
        tests(ORACLE, "unit/test_rules.py"),
    ),
    Mutant(
        "room is promised beside whom it must not be",
        "restarts are promised places beside jobs from which they are to be apart, or on a host that another has whole",
        [Edit(ROOM, "        made.company.labels.update(rules.own)\n", "")],
        tests("unit/test_rules.py"),
    ),
    Mutant(
        "unfit units are none",
        "a job is refused for ever although units that are unfit now may be mended",
        [Edit(KNOWN, 'replace(unit, unfit="")', "replace(unit)")],
        tests("unit/test_known.py"),
    ),
    Mutant(
        "a host that left is asked",
        "hosts of a kind that nobody has any more still count as known",
        [Edit(KNOWN, "            del self._alike[kind]\n", "            pass\n")],
        tests("unit/test_known.py"),
    ),
    Mutant(
        "explain forgets the job's own bars",
        "a host is said to fit that placement will not use for this job",
        [Edit(EXPLAIN, "    if mine is not None:\n", "    if False:\n")],
        tests(ORACLE, scenario("apart")),
    ),
    Mutant(
        "nearest counts what is taken as free",
        "what is said to be lacking is not what keeps the job out",
        [Edit(NEAREST, "cpus_free = sum(node.free_cpus for node in nodes)", "cpus_free = cpus")],
        tests(ORACLE, "golden/test_golden.py::test_scenario[nearest_miss]"),
    ),
)  # fmt: skip
