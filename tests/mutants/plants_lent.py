"""Mutants of room that is kept for restarts and lent to preemptible jobs."""

from __future__ import annotations

from tests.mutants.model import Edit, Mutant, tests
from tests.mutants.plants_reserve import scenario

ADMISSION = "scheduler/core/reservation/admission.py"
LENDING, ROOM, RESERVE = (
    "scheduler/core/queueing/lent.py",
    "scheduler/core/reservation/room.py",
    "scheduler/core/reservation/reserve.py",
)
RESTARTS = tests("unit/test_lent.py::test_what_is_covered_does_restart_once_they_have_left")

LENT = (
    Mutant(
        "everybody's room is lent",
        "what jobs that are not preemptible have counts as room for restarts",
        [Edit(ROOM, "if a.job in jobs and jobs[a.job].terms.preemptible]", "if a.job in jobs]")],
        tests("unit/test_reserve.py::test_as_brute_force_says"),
    ),
    Mutant(
        "whoever has lent room stays",
        "a preemptible job is not asked to leave the room that a restart needs",
        [Edit(LENDING, "sum(_call_in(cluster, job, take, now) for", "sum(0 for")],
        RESTARTS,
        fast=True,
    ),
    Mutant(
        "anybody is in the way",
        "a job that is not preemptible is stopped for a restart",
        [Edit(LENDING, "live and job is not None and job.terms.preemptible and", "live and job is not None and")],
        tests("unit/test_lent.py::test_only_who_is_preemptible_is_in_the_way"),
    ),
    Mutant(
        "restart takes another's room",
        "a restart whose room is lent takes what another needs",
        [
            Edit(
                "scheduler/core/reservation/admission.py",
                "        on_loan = kept is None and any(",
                "        on_loan = False and any(",
            )
        ],
        RESTARTS,
    ),
    Mutant(
        "lent to the last",
        "a preemptible job starts where somebody is about to restart",
        [Edit(RESERVE, "if len(standing(taken, takes)) < len(standing(host, takes)):", "if False:")],
        scenario("lent_while_somebody_waits"),
    ),
    Mutant(
        "lent room is taken back",
        "a preemptible job stops, by its priority, what it left its place for",
        [
            Edit(
                "scheduler/core/queueing/victims.py",
                "return bool(cluster.policy.reservation.hosts) and job.terms.preemptible",
                "return False and job.terms.preemptible",
            )
        ],
        scenario("lent_and_not_taken_back"),
    ),
    Mutant(
        "all the grace they like",
        "a restart waits as long for lent room as the one who has it declared",
        [Edit(LENDING, "GRACE_S if grace_s > GRACE_S else 0", "0")],
        RESTARTS,
    ),
    Mutant(
        "room beside each, not all",
        "a job may take what is free beside each place that is kept on a host, though not beside all of them",
        [
            Edit(
                "scheduler/core/queueing/claims.py",
                "return found | _crowded(cluster, job, places - found)",
                "return found",
            )
        ],
        scenario("lent_until_a_restart"),
    ),
)
