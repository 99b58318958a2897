"""Mutants that seeds must find by themselves: twin machines, guards that change unseen, a death between two commits.

And of what must be told: what a guard was refused, and that a replica's policy is not the leader's.
"""

from __future__ import annotations

from tests.mutants.model import Edit, Mutant, Sim, tests

FENCE, HOSTS, LEADER = "scheduler/core/failover/fence.py", "scheduler/core/state/hosts.py", "scheduler/leader.py"
LOST = Sim("guard-lost", "which is fenced")

TWINS = (
    Mutant(
        "a twin's boot, by chance",
        "another machine under a host's name, with another boot id, proves that the host's VMs are dead",
        [Edit(HOSTS, "return fact if fact.machine != self.machine else None", "return None")],
        LOST,
    ),
    Mutant(
        "an old record, by chance",
        "of a guard that was taken back while nobody led, a new leader believes what was on record before",
        [Edit(FENCE, "    elif word is not None and word.session == host.session:\n", "    elif False:\n")],
        LOST,
    ),
    Mutant(
        "a twin makes way, by chance",
        "an agent deletes the session of another machine that has its name and address, whose VMs live on",
        [Edit("agent/timing.py", "if old.machine != me.machine:", "if False:")],
        Sim("twin,partition,pause,guard-lost", "which is fenced"),
    ),
    Mutant(
        "hosts before jobs, at every commit",
        "a fence is written before what it does to jobs, so a leader that dies between the two loses them",
        [
            Edit(LEADER, "self._batches(self._job_groups(dirty))", "self._batches(self.LATER(dirty))"),
            Edit(LEADER, "self._batches(self._host_groups(dirty))", "self._batches(self._job_groups(dirty))"),
            Edit(LEADER, "self.LATER(dirty)", "self._host_groups(dirty)"),
        ],
        tests("sim/test_commit_points.py"),
    ),
    Mutant(
        "refused and untold",
        "what the system refused the guard stands in its log only",
        [Edit("agent/session.py", "            guard_refused=said.refused,\n", "")],
        tests("unit/test_declare.py::test_what_the_guard_was_refused_is_in_the_record"),
    ),
    Mutant(
        "another policy, untold",
        "a standby with another policy than the leader's says nothing",
        [
            Edit(
                "scheduler/replica.py",
                "if found := differences(self.policy, self.name, leader):",
                "if found := differences(self.policy, leader.id, leader):",
            )
        ],
        tests("unit/test_policy_told.py"),
    ),
)
