"""Mutants of the policies about failures: brake, breaker, flapping, order and pace of restarts, disarming."""

from __future__ import annotations

from tests.mutants.model import Edit, Mutant, Suite, tests


def scenario(name: str) -> Suite:
    """The golden scenario that must differ."""
    return tests(f"golden/test_golden.py::test_scenario[{name}]")


POLICIES = (
    Mutant(
        "brake for newcomers only",
        "the brake does not hold up what is queued already",
        [
            Edit(
                "scheduler/core/failover/brake.py",
                "        cluster.dirty.cluster = True\n        cluster.requeue_lost()\n\n\ndef _until_s",
                "        cluster.dirty.cluster = True\n\n\ndef _until_s",
            )
        ],
        scenario("brake_by_share"),
    ),
    Mutant(
        "soft guard anywhere",
        "soft guard of a real host is enough",
        [
            Edit(
                "scheduler/core/failover/proof.py",
                "    if simulated and not powered:",
                "    if guard is GuardKind.SOFT:",
            )
        ],
        scenario("evidence_soft_guard_where_power_could_tell"),
    ),
    Mutant(
        "unguarded, and yet guarded",
        "a declared guard counts though the agent says it does not stand",
        [
            Edit(
                "scheduler/core/state/facts.py",
                "return GuardKind.NONE if self.unguarded else self.guard",
                "return self.guard",
            )
        ],
        scenario("evidence_none_while_unguarded"),
    ),
    Mutant(
        "old losses count again",
        "losses before the last release count again",
        [
            Edit(
                "scheduler/core/failover/brake.py",
                "return last_s if last_s > cluster.settled_s else -inf",
                "return last_s",
            )
        ],
        scenario("brake_released_and_needed_again"),
    ),
    Mutant(
        "brake forgotten",
        "a new leader forgets the brake",
        [Edit("scheduler/codec/decode.py", 'if record.HasField("brake"):', "if False:")],
        scenario("brake_survives_the_leader"),
    ),
    Mutant(
        "all hosts lost",
        "all hosts lost is nothing special",
        [
            Edit(
                "scheduler/core/failover/brake.py",
                'return found if by_number or by_share or everything else ""',
                'return found if by_number or by_share else ""',
            )
        ],
        scenario("brake_all_hosts_lost"),
    ),
    Mutant(
        "arming without a look",
        "arming does not weigh what is still lost",
        [Edit("scheduler/core/failover/brake.py", "        last_s = max(last_s, armed_s)\n", "        pass\n")],
        scenario("disarm_much_still_lost_when_armed"),
    ),
    Mutant(
        "restarts while disarmed",
        "lost jobs restart while disarmed",
        [
            Edit(
                "scheduler/core/state/cluster.py",
                "        withheld = job.lost and (self.brake is not None or self.intent.disarmed)",
                "        withheld = job.lost and self.brake is not None",
            )
        ],
        scenario("disarm_host_back_meanwhile"),
    ),
    Mutant(
        "breaker without effect",
        "the breaker holds nothing",
        [
            Edit(
                "scheduler/core/failover/breaker.py",
                "if not 0 < job.max_host_deaths <= job.host_deaths or job.hold:",
                "if True:",
            )
        ],
        scenario("killer_vm_cancelled_while_held"),
    ),
    Mutant(
        "long runs clear nothing",
        "an hour on the host clears nothing",
        [Edit("scheduler/core/failover/breaker.py", "if started_s and lost_s - started_s >= LONG_RUN_S:", "if False:")],
        scenario("killer_vm_long_run_clears"),
    ),
    Mutant(
        "blamed for a mass failure",
        "jobs are blamed for a mass failure",
        [
            Edit(
                "scheduler/core/failover/breaker.py",
                "if cluster.brake is not None:\n        return",
                "if False:\n        return",
            )
        ],
        scenario("killer_vm_not_blamed_for_a_mass_failure"),
    ),
    Mutant(
        "blamed for nothing",
        "jobs are blamed for hosts they never reached",
        [Edit("scheduler/core/failover/fence.py", "ran = allocation.state is not AllocationState.BOUND", "ran = True")],
        scenario("killer_vm_not_before_it_started"),
    ),
    Mutant(
        "uncordoned too early",
        "an uncordon before the flapping lets the host in",
        [
            Edit(
                "scheduler/core/failover/flap.py",
                "if not host.held_out or host.intent.uncordoned_s <= host.held_out_s:",
                "if not host.held_out:",
            )
        ],
        scenario("flapping_host_is_held_out"),
    ),
    Mutant(
        "circle of jobs",
        "who waits for each other waits for ever",
        [
            Edit(
                "scheduler/core/queueing/order.py",
                "return [other for other in _named(cluster, job) if not _leads_to(cluster, other, job)]",
                "return list(_named(cluster, job))",
            )
        ],
        scenario("restart_order_in_a_circle"),
    ),
    Mutant(
        "order judged once",
        "order is judged once only",
        [
            Edit(
                "scheduler/core/queueing/order.py",
                "if parked != cluster.pending.parked(job_id):",
                "if parked and parked != cluster.pending.parked(job_id):",
            )
        ],
        scenario("restart_order_waits_for_a_held_job"),
    ),
    Mutant(
        "starts never end",
        "a start that is over is not counted off",
        [
            Edit(
                "scheduler/core/state/cluster.py",
                "            host.starting.discard(allocation.id)\n            if enough",
                "            if enough",
            )
        ],
        scenario("drain_waits_for_a_place"),
    ),
    Mutant(
        "nobody is told",
        "nobody is told that one may start again",
        [
            Edit(
                "scheduler/core/state/cluster.py",
                "            if enough:\n                self.touch(host)",
                "            pass",
            )
        ],
        scenario("restart_pace_under_another_leader"),
    ),
    Mutant(
        "restart priority ignored",
        "restart priority is ignored",
        [
            Edit(
                "scheduler/core/state/cluster.py",
                "first = (0, -job.restart_priority) if lost",
                "first = (0, 0) if lost",
            )
        ],
        scenario("restart_priority"),
    ),
    Mutant(
        "elsewhere at once",
        "a crashed VM does not wait for its own units",
        [Edit("scheduler/core/failover/retry.py", "delay_s = max(delay_s, SAME_HOST_S)", "pass")],
        scenario("vm_crashes"),
    ),
    Mutant(
        "units clean, unheard",
        "who waits for its units is not told that they are clean",
        [Edit("scheduler/core/failover/retry.py", "    if due_s < job.not_before_s:", "    if False:")],
        scenario("brake_and_a_crash_elsewhere"),
    ),
    Mutant(
        "planned work is a loss",
        "planned work counts as a loss",
        [Edit("scheduler/core/failover/fence.py", "if not brake.planned(host):", "if True:")],
        scenario("brake_ignores_planned_work"),
    ),
    Mutant(
        "last host switched off",
        "the last host is switched off",
        [Edit("scheduler/core/failover/power.py", 'if nothing_lives(cluster) else ""', 'if False else ""')],
        scenario("last_host_is_not_switched_off"),
    ),
    Mutant(
        "no jitter",
        "jitter is the same for all",
        [Edit("scheduler/core/failover/retry.py", "sha256(what.encode())", 'sha256(b"x")')],
        scenario("restart_waits_longer_each_time"),
    ),
    Mutant(
        "forgotten at its limit",
        "a job whose limit passes between its host's death and the notice of it ends, as if it had had its time",
        [Edit("scheduler/core/failover/fence.py", "        if short and job.ending:", "        if False:")],
        scenario("time_limit_of_a_dead_host"),
        fast=True,
    ),
    Mutant(
        "heard for another reason",
        "a VM that was stopping before its limit passed, and died with its host, counts as one that had its time",
        [
            Edit(
                "scheduler/core/state/limits.py",
                "    return not heard or allocation.stop_requested_s < out_s",
                "    return not heard",
            )
        ],
        scenario("time_limit_of_a_dead_host"),
    ),
    Mutant(
        "limits of the lost run out",
        "while nobody can say whether a VM lives, its time limit ends the job",
        [
            Edit(
                "scheduler/core/queueing/deadlines.py",
                "why := limits.expired(job, now, lost=lost(cluster, job)):",
                "why := limits.expired(job, now):",
            )
        ],
        scenario("time_limit_waits_for_evidence"),
    ),
    Mutant(
        "a late word on a crash",
        "a VM that crashed before its limit, of which the leader hears after it, counts as one that had its time",
        [
            Edit(
                "scheduler/core/step.py",
                "if outcome is Outcome.CRASHED and limits.fell_short(",
                "if False and limits.fell_short(",
            )
        ],
        scenario("time_limit_and_a_crash"),
    ),
)
