"""Mutants of planned work: drain, maintenance, the rolling reboot."""

from __future__ import annotations

from tests.mutants.model import Edit, Mutant, Suite, tests

CORE, RETRY, FIT = (
    "scheduler/core/failover/drain.py",
    "scheduler/core/failover/retry.py",
    "scheduler/core/fitting/fit.py",
)
ROLLING, DRAINING = "gpupool/cli/rolling.py", "gpupool/cli/draining.py"
MOVE = "    move = outcome is Outcome.STOPPED and bool(moved)\n"
EXITED, CANCELLED = "    if outcome is Outcome.EXITED and exit", "    elif job.cancel_reason is not None:\n"
MAINTENANCE = "    if host.intent.maintenance:\n"


def scenario(name: str) -> Suite:
    """The golden scenario that must differ."""
    return tests(f"golden/test_golden.py::test_scenario[{name}]")


DRAIN = (
    Mutant(
        "a drain is a cancel to the next leader",
        "a new leader takes a VM that was asked to stop for a drain for one whose job is to end",
        [Edit("scheduler/load.py", "or job.cancel_reason is None or job.allocation", "or job.allocation")],
        scenario("drain_under_another_leader"),
        fast=True,
    ),
    Mutant(
        "a drained job pays",
        "a job that was moved for a drain loses a restart, and fails when it has none",
        [Edit(RETRY, MOVE, "    move = False\n")],
        tests("unit/test_drain.py::test_a_drain_never_loses_a_job"),
    ),
    Mutant(
        "an exit is moved",
        "a job that ends by itself while it is asked to stop runs once more",
        [Edit(RETRY, MOVE, "    move = bool(moved)\n"), Edit(RETRY, EXITED, EXITED.replace("if", "if not move and"))],
        scenario("drain_meets_a_job_that_ends_by_itself"),
    ),
    Mutant(
        "stops are free",
        "an agent that says STOPPED unasked has its job started again without end",
        [Edit(RETRY, MOVE, "    move = outcome is Outcome.STOPPED\n")],
        scenario("stop_that_nobody_asked_for"),
    ),
    Mutant(
        "cancelled, and moved",
        "a job that is cancelled while it is drained starts again elsewhere",
        [Edit(RETRY, CANCELLED, CANCELLED.replace(":", " and not move:"))],
        scenario("drain_and_cancel"),
    ),
    Mutant(
        "more at once than may",
        "a drain does not count who is stopping already",
        [Edit(CORE, "wanted.at_once - stopping(cluster, host) if wanted.at_once", "wanted.at_once if wanted.at_once")],
        tests("unit/test_drain.py::test_no_more_stop_at_once_than_may"),
    ),
    Mutant(
        "one place for two",
        "a drain that waits for places gives the same one to a second VM while the first is on its way",
        [Edit(CORE, "claimed = _claims(cluster, placer) if claimed is None else claimed",
              "claimed = set() if claimed is None else claimed")],
        scenario("drain_waits_and_minds_who_is_on_the_way"),
    ),
    Mutant(
        "a draining host is filled",
        "jobs are placed on a host that is being emptied",
        [Edit(FIT, "if (drain := host.drain) is not None:",
              "if (drain := host.drain) is not None and not drain.at_s:")],
        scenario("drain_takes_nothing_new"),
    ),
    Mutant(
        "a drain stops the lost",
        "VMs of a host in FENCING are asked to stop, as if somebody there could hear it",
        [Edit(CORE, " or host.state is not HostState.READY:", ":")],
        scenario("drain_stops_nothing_without_evidence"),
    ),
    Mutant(
        "a drain under the brake",
        "VMs are stopped while too much is lost to start them again",
        [Edit(CORE, "    if cluster.brake is not None:\n", "    if False:\n")],
        scenario("drain_under_the_brake"),
    ),
    Mutant(
        "maintenance ends with the session",
        "a host in maintenance takes jobs again after a reboot",
        [Edit(FIT, MAINTENANCE, MAINTENANCE.replace(":", " and host.last_fence is None:"))],
        scenario("maintenance_survives_a_reboot"),
    ),
    Mutant(
        "rebooted with a VM",
        "a rolling reboot takes the first look at an empty host for the last",
        [Edit(DRAINING, "        if clear > 1:\n", "        if clear:\n")],
        tests("unit/test_cli_planned.py::test_a_host_is_drained_only_if_it_has_no_vm_at_two_looks"),
    ),
    Mutant(
        "on after a broken host",
        "a rolling reboot goes on although a host came back with less",
        [Edit(ROLLING, "                    self._stopped = True\n", "")],
        tests("unit/test_cli_reboot.py::test_it_stops_at_a_host_that_comes_back_with_less"),
    ),
)  # fmt: skip
