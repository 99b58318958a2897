"""Mutants of backfill: who has a place kept, and that nobody passes who would take it."""

from __future__ import annotations

from tests.mutants.model import Edit, Mutant, tests

PLACE, BACKFILL = "scheduler/core/place.py", "scheduler/core/queueing/backfill.py"
SCENARIO, UNIT = "golden/test_golden.py::test_scenario[backfill_conservative]", "unit/test_backfill.py"

BACKFILLS = (
    Mutant(
        "conservative in name",
        "with conservative backfill only the first job has a place kept",
        [
            Edit(
                "scheduler/core/state/policy.py",
                "MOST_KEPT if self.conservative else self.reservations",
                "self.reservations",
            )
        ],
        tests(SCENARIO),
        fast=True,
    ),
    Mutant(
        "passed meanwhile",
        "while places are still to be looked for, jobs that come later take them",
        [Edit(PLACE, "                    self.due_s = now + backfill.LATER_S\n                    break\n", "")],
        tests(f"{UNIT}::test_no_more_places_are_looked_for_in_a_turn_than_may_and_nobody_passes_meanwhile"),
    ),
    Mutant(
        "one of a shape",
        "with conservative backfill only the first job of a shape has a place kept",
        [
            Edit(
                PLACE,
                "                if kept and cluster.policy.backfill.conservative:\n",
                "                if False:\n",
            )
        ],
        tests(SCENARIO),
        fast=True,
    ),
    Mutant(
        "as many places as there are jobs",
        "places are looked for in one turn for all that wait",
        [Edit(BACKFILL, "        turns.left -= 1\n", "")],
        tests(f"{UNIT}::test_no_more_places_are_looked_for_in_a_turn_than_may_and_nobody_passes_meanwhile"),
    ),
)
