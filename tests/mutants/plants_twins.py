"""Mutants that seeds must find by themselves: twin machines, guards that change unseen, a death between two commits.

And of what must be told: what a guard was refused, and that a replica's policy is not the leader's.
"""

from __future__ import annotations

from tests.mutants.model import Edit, Mutant, Sim, tests
from tests.mutants.plants_power import golden

FENCE, HOSTS, LEADER = "scheduler/core/failover/fence.py", "scheduler/core/state/hosts.py", "scheduler/leader.py"
LOST = Sim("guard-lost", "which is fenced")
DEVICES, POWER = "scheduler/core/failover/devices.py", "scheduler/core/failover/power.py"

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
        "a predecessor's power, by chance",
        "a host is switched off by a fence device that is of another machine, and its VMs count as dead",
        [Edit(DEVICES, "    if of == machine:", "    if of is not None:")],
        Sim("twin", "which is fenced"),
    ),
    Mutant(
        "whose it is, from a lost session",
        "a new leader, or a changed power file, takes the device for one of a machine that is lost already",
        [Edit(DEVICES, "is None or not lives or host.state not in (HostState.JOINING, HostState.READY):", "is None:")],
        tests("unit/test_whose_device.py"),
    ),
    Mutant(
        "whose it is, forgotten",
        "once another device stood in the power file, nobody knows any more whose the first one is",
        [Edit(DEVICES, "(*others[1 - KEPT :], found)", "(found,)")],
        golden("power_of_the_right_machine"),
    ),
    Mutant(
        "whose it is, not on record",
        "each leader learns anew whose a fence device is: from whoever has the name by then",
        [
            Edit(
                "scheduler/codec/encode.py",
                "    for device in host.devices:\n",
                "    for device in host.devices[:0]:\n",
            )
        ],
        golden("power_of_a_predecessor"),
    ),
    Mutant(
        "whose it is, from before",
        "of a name that changed hands while an older version led, the device is taken for its new machine's",
        [Edit(DEVICES, "if device is not None and host.session and not host.devices and", "if False and")],
        tests("unit/test_whose_device.py"),
    ),
    Mutant(
        "a power-off of another version",
        "that the power was off is believed of a record that does not say of which machine",
        [Edit(POWER, " or power.machine != host.machine:", ":")],
        tests("unit/test_whose_device.py"),
    ),
    Mutant(
        "an address in a dump",
        "a dump tells the marks of fence devices, from which their addresses can be guessed",
        [
            Edit(
                "scheduler/api/cluster_dump.py",
                "        record.fence_devices.add(machine=machine)",
                "        record.fence_devices.add(mark=device.mark if device else '', machine=machine)",
            )
        ],
        tests("unit/test_whose_device.py"),
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
