"""Mutants of the simulations and of dumps: secrets that get out, hosts that do not die, a core that is not asked."""

from __future__ import annotations

from tests.mutants.model import Edit, Mutant, Suite, tests

DUMP, WORLD, VMS = "scheduler/api/cluster_dump.py", "scheduler/simulate/world.py", "scheduler/simulate/vms.py"


def load(name: str) -> Suite:
    """The test that must fail."""
    return tests(f"unit/test_simulate_load.py::{name}")


def whatif(name: str) -> Suite:
    """The test that must fail."""
    return tests(f"unit/test_whatif.py::{name}")


SIMULATE = (
    Mutant(
        "a dump tells the environment",
        "whoever may read a dump reads the secrets that jobs have in their environment",
        [Edit(DUMP, '    spec.ClearField("env")\n', "")],
        whatif("test_a_dump_has_no_secrets"),
        fast=True,
    ),
    Mutant(
        "a dump tells nonces",
        "whoever may read a dump reads what a session proves itself with",
        [Edit(DUMP, '            session.ClearField("nonce")\n', "")],
        whatif("test_a_dump_has_no_secrets"),
    ),
    Mutant(
        "a dump forgets who is asked about",
        "a job whose dependency has ended waits for ever in a loaded dump, or starts though it must not",
        [Edit(DUMP, "    return over - wanted\n", "    return over\n")],
        whatif("test_finished_jobs_stay_out_unless_somebody_asks_about_them"),
    ),
    Mutant(
        "simulated hosts outlive their death",
        "the VMs of a simulated host that died count as running for ever",
        [
            Edit(
                VMS,
                "            self._forget(vm)\n        self.world.after(self.lease",
                "        self.world.after(self.lease",
            )
        ],
        load("test_what_dies_with_a_host_runs_no_longer"),
    ),
    Mutant(
        "simulated units are never clean",
        "a simulated host's units are free at once, whatever a reclaim takes",
        [
            Edit(
                VMS,
                "            self._later(self.pace.reclaim_s, allocation, self._clean)\n\n",
                "            self._clean(allocation)\n\n",
            )
        ],
        whatif("test_declared_limits_are_foreseen"),
    ),
    Mutant(
        "simulated leader does not preempt",
        "a simulation leaves out a part of the leader's turn",
        [Edit(WORLD, "            moved += self._preempter.preempt(self.cluster, self.now)\n", "")],
        load("test_a_job_stops_for_a_higher_priority"),
    ),
    Mutant(
        "one turn a moment",
        "what became placeable with a commit is not placed until something else happens",
        [Edit(WORLD, "            if not (moved or dirty.hosts or dirty.cluster):", "            if self.turns:")],
        whatif("test_new_hosts_take_who_waits"),
    ),
    Mutant(
        "a reservation stands in preemption's way",
        "a job of a higher priority that has a place kept until limits of time are over waits for that",
        [Edit("scheduler/core/gangs/make_room.py", "claim in claims if not claim.at_s)", "claim in claims)")],
        tests("golden/test_golden.py::test_scenario[preempt_in_spite_of_a_reservation]"),
        fast=True,
    ),
)
