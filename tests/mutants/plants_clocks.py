"""Mutants of dates: machines whose clocks differ write them, and they are compared."""

from __future__ import annotations

from tests.mutants.model import Edit, Mutant, Suite, tests

SKEW, AHEAD, POWER = (
    "scheduler/core/state/skew.py",
    "scheduler/core/failover/ahead.py",
    "scheduler/core/failover/power.py",
)
WORDS = tests("unit/test_intents_api.py")


def golden(name: str) -> Suite:
    return tests(f"golden/test_golden.py::test_scenario[clock_{name}]")


CLOCKS = (
    Mutant(
        "brake released by date",
        "the release of the brake is dated by the replica's own clock",
        [Edit("scheduler/api/cluster_intents.py", "= record.brake.since_s ", "= self._wall() ")],
        WORDS,
    ),
    Mutant(
        "uncordoned by date",
        "an uncordon is dated by the replica's own clock",
        [Edit("scheduler/api/host_intents.py", "= answers(*record.lost_s, record.held_out_s)", "= self._wall()")],
        WORDS,
    ),
    Mutant(
        "job released by date",
        "the release of a job is dated by the replica's own clock",
        [
            Edit(
                "scheduler/api/jobs_api.py",
                "= answers(job.status.held_s, intent.held_s, intent.released_s)",
                "= self._wall()",
            )
        ],
        WORDS,
    ),
    Mutant(
        "unit retried by date",
        "the retry of a unit is dated by the replica's own clock",
        [Edit("scheduler/api/operations_api.py", "asked_s = answers(view.report.since_s)", "asked_s = self._wall()")],
        WORDS,
    ),
    Mutant(
        "retried without end",
        "a unit's change is dated before the last one when the clock goes back",
        [
            Edit(
                "agent/work/ledger.py",
                "= max(self._clock.wall(), unit.since_s + _MOMENT_S)",
                "= self._clock.wall()",
            )
        ],
        tests("unit/test_unit_care.py"),
    ),
    Mutant(
        "off is told again",
        "that power was seen off is passed over if an earlier try is dated later",
        [
            Edit(
                POWER,
                "(event.at_s, event.off) == (before.last_s, not before.error)",
                "event.at_s <= before.last_s",
            )
        ],
        golden("power_off_is_never_dropped"),
    ),
    Mutant(
        "an hour until the next try",
        "the next try waits for a time that a clock ahead of ours has written",
        [Edit(POWER, "power is not None and power.next_s <= now + LONGEST_RETRY_S", "power is not None")],
        golden("power_after_a_faster_leader"),
    ),
    Mutant(
        "released before it began",
        "the release of an earlier brake ends a later one that is dated before it",
        [Edit("scheduler/core/failover/brake.py", "no_earlier(now, cluster.intent.brake_released_s)", "now")],
        golden("brake_under_a_slower_leader"),
    ),
    Mutant(
        "losses dated back",
        "losses are dated before the word after which they count anew",
        [
            Edit(
                SKEW,
                "return max(no_earlier(now, cluster.settled_s), *host.lost_s[-1:], host.intent.uncordoned_s)",
                "return now",
            )
        ],
        golden("flapping_under_a_slower_leader"),
    ),
    Mutant(
        "let in before it was held out",
        "an old uncordon lets a host in that was held out after it, by a clock that is behind",
        [Edit("scheduler/core/failover/flap.py", "no_earlier(now, host.intent.uncordoned_s)", "now")],
        golden("flapping_under_a_slower_leader"),
    ),
    Mutant(
        "released before it was held",
        "the release of an earlier hold ends a later one that is dated before it",
        [Edit("scheduler/core/failover/breaker.py", "no_earlier(now, job.intent.released_s)", "now")],
        golden("hold_under_a_slower_leader"),
    ),
    Mutant(
        "losses to come",
        "losses that are dated later than now count until then",
        [Edit(AHEAD, "    if ahead_s <= 0:\n", "    if True:\n")],
        golden("losses_seen_by_a_faster_leader"),
    ),
    Mutant(
        "brake of a faster clock",
        "a brake lasts until a time that a clock ahead of ours has written",
        [Edit(AHEAD, "brake.until_s > latest_s > now:", "False:")],
        golden("brake_under_a_slower_leader"),
    ),
    Mutant(
        "back-off of a faster clock",
        "a job waits until a time that a clock ahead of ours has written",
        [Edit(AHEAD, "        if job.not_before_s > now + BACKOFF_MAX_S:\n", "        if False:\n")],
        golden("backoff_under_a_slower_leader"),
    ),
    Mutant(
        "an agent's own time",
        "an attempt's time runs from when its agent's clock says that it began",
        [
            Edit(
                "scheduler/core/step.py",
                "= min(max(event.started_s, attempt.created_s), now)",
                "= event.started_s",
            )
        ],
        golden("of_an_agent"),
    ),
)
