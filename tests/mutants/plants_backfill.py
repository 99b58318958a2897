"""Mutants of backfill: who has a place kept, and that nobody passes who would take it."""

from __future__ import annotations

from tests.mutants.model import Edit, Mutant, tests

PLACE, BACKFILL = "scheduler/core/place.py", "scheduler/core/queueing/backfill.py"
CLUSTER, LEAVERS = "scheduler/core/state/cluster.py", "scheduler/core/queueing/leavers.py"
FORECAST = "scheduler/core/queueing/forecast.py"
KEPT_UP = "unit/test_leavers.py::test_what_is_kept_up_is_what_looking_all_up_gives"
SCENARIO, UNIT = "golden/test_golden.py::test_scenario[backfill_conservative]", "unit/test_backfill.py"

BACKFILLS = (
    Mutant(
        "nobody ahead",
        "the estimated start counts nobody who is ahead",
        [Edit(FORECAST, "            yield from play.start(other, EACH)\n", "            pass\n")],
        tests("unit/test_forecast.py::test_where_all_keep_to_their_limits_it_comes_out_so"),
    ),
    Mutant(
        "at least, unsaid",
        "where not all who are ahead are counted, nothing is said of it",
        [Edit(FORECAST, "    if found.counted < found.ahead:\n", "    if False:\n")],
        tests("unit/test_forecast.py::test_who_is_far_behind_is_told_at_least"),
        fast=True,
    ),
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
        [Edit(PLACE, "                if turns.over:  # nobody who", "                if False:  # nobody who")],
        tests(f"{UNIT}::test_no_more_places_are_looked_for_in_a_turn_than_may_and_nobody_passes_meanwhile"),
    ),
    Mutant(
        "all wait for who is looked at",
        "jobs of which nobody knows when they could start keep all that come later from starting",
        [
            Edit(
                BACKFILL,
                "        turns.over = turns.left <= 0\n",
                "        turns.over = min(turns.left, turns.looks) <= 0\n",
            )
        ],
        tests(f"{UNIT}::test_of_whom_nothing_is_known_others_do_not_wait"),
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
        [Edit(BACKFILL, "    turns.left -= kept\n", "")],
        tests(f"{UNIT}::test_no_more_places_are_looked_for_in_a_turn_than_may_and_nobody_passes_meanwhile"),
    ),
    Mutant(
        "asked to stop, and not known to leave",
        "when somebody is asked to stop, what is known of who leaves when stays as it was",
        [Edit(CLUSTER, "        self.leaving.add(allocation.host)\n", "")],
        tests(KEPT_UP),
    ),
    Mutant(
        "started, and not known to leave",
        "when a job with a limit of time starts or ends, what is known of who leaves when stays as it was",
        [Edit(CLUSTER, "            self.leaving.add(job.attempts[-1].host)\n", "            pass\n")],
        tests(KEPT_UP),
    ),
    Mutant(
        "a place in one go",
        "nobody else runs while a place is looked for",
        [
            Edit(
                PLACE,
                "kept = yield from backfill.reserving(cluster, job, now, turns)\n",
                "kept = done(backfill.reserving(cluster, job, now, turns))\n",
            )
        ],
        tests("unit/test_leavers.py::test_others_run_while_a_place_is_looked_for"),
        fast=True,
    ),
    Mutant(
        "GPUs that will not do",
        "a place is looked for where GPUs of other models are free",
        [Edit(LEAVERS, "    return request.gpus, models or", "    return request.gpus, () and")],
        tests("unit/test_leavers.py::test_a_place_is_found_beyond_hosts_of_other_models"),
    ),
)
