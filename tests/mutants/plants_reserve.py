"""Mutants of the room that is kept for restarts, and of the plan for a host's loss."""

from __future__ import annotations

from tests.mutants.model import Edit, Mutant, Sim, Suite, tests

RESERVE, ROOM, ADMISSION = (
    "scheduler/core/reservation/reserve.py",
    "scheduler/core/reservation/room.py",
    "scheduler/core/reservation/admission.py",
)
WITNESS, PLAN, DOMAINS = (
    "scheduler/core/reservation/witness.py",
    "scheduler/core/failover/plan.py",
    "scheduler/core/reservation/domains.py",
)
SCRATCH, BRUTE = "test_kept_up_as_from_scratch", "test_as_brute_force_says"
OTHERS = "self._mended(made, shapes, known.get(domain), self._domains.members(domain))"


def unit(name: str) -> Suite:
    """The property that must fail."""
    return tests(f"unit/test_reserve.py::{name}")


def scenario(name: str) -> Suite:
    """The golden scenario that must differ."""
    return tests(f"golden/test_golden.py::test_scenario[{name}]")


RESERVATION = (
    Mutant(
        "verdict not heeded",
        "a job is placed where it takes the room that is kept for restarts",
        [Edit(ADMISSION, "            if verdict.broken is None:\n", "            if True:\n")],
        Sim("crash", words="takes the room that", seeds=40),
    ),
    Mutant(
        "room on the dead host",
        "a host's jobs count as covered by room on that very host",
        [Edit(RESERVE, OTHERS, "made.main")],
        unit(BRUTE),
    ),
    Mutant(
        "one's own room only",
        "a job is admitted if its own domain is covered, whosever room it takes",
        [Edit(RESERVE, "sorted({*self._users.get(host.name, ()), new} - {()}", "sorted({new} - {()}")],
        unit("test_no_admission_breaks_what_was_covered"),
    ),
    Mutant(
        "memory is lent twice",
        "two restarts on one host are both covered by the memory that one of them needs",
        [Edit(ROOM, "lent[node.id, size_kib] + mib:", "mib:")],
        unit("test_takes_of_one_host_stand_only_together"),
        fast=True,
    ),
    Mutant(
        "restarts share GPUs",
        "two restarts on one host are covered by one GPU",
        [Edit(ROOM, "    made.held.update(dict.fromkeys(take.fit.units, _TRIED))\n", "")],
        unit(SCRATCH),
    ),
    Mutant(
        "a witness is for ever",
        "a domain stays covered by a host that has broken since",
        [Edit(RESERVE, "asked |= self._users.get(name, set())", "pass")],
        unit(SCRATCH),
    ),
    Mutant(
        "room is not found again",
        "what is set free covers nobody",
        [Edit(RESERVE, "if moved or self._may_help(hosts, shapes)}", "if moved}")],
        unit(SCRATCH),
    ),
    Mutant(
        "newcomers first",
        "while lost jobs wait, a new one takes the room that was kept for them",
        [Edit(DOMAINS, "waits != (cluster.hosts[name].state in _LOST)", "waits or cluster.hosts[name].state in _LOST")],
        scenario("reservation_is_for_the_lost"),
        fast=True,
    ),
    Mutant(
        "small ones first",
        "a small job that restarts first takes the only place where a large one fits",
        [Edit(ADMISSION, "if (kept is None and not on_loan) or reserve.spares(", "if True or (")],
        scenario("reservation_restarts_leave_room_for_each_other"),
        fast=True,
    ),
    Mutant(
        "a search given up has found",
        "the first that has no place ends the search, and the rest passes for all",
        [
            Edit(
                WITNESS,
                "        if found is None:\n            return None\n        takes.append(found)",
                "        if found is None:\n            break\n        takes.append(found)",
            )
        ],
        unit(SCRATCH),
    ),
    Mutant(
        "off at once",
        "a plan counts on power fencing that the brake or a disarmament withholds",
        [Edit(PLAN, "        if not withheld(self.cluster):\n", "        if True:\n")],
        scenario("plan_with_power_fencing"),
        fast=True,
    ),
)
