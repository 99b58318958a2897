"""Mutants of power fencing: what counts as off, for whom, who is switched off, and who gets to see a password."""

from __future__ import annotations

from tests.mutants.model import Edit, Mutant, Suite, tests

POWER, ACTING, LEADER = "scheduler/core/failover/power.py", "scheduler/fencing/acting.py", "scheduler/leader.py"
REDFISH, AGENTS = "scheduler/fencing/redfish.py", "scheduler/fencing/agents.py"


def golden(name: str) -> Suite:
    return tests(f"golden/test_golden.py::test_scenario[{name}]")


POWER_FENCING = (
    Mutant(
        "an acknowledgement is off",
        "the BMC's answer to the command is taken for the power state",
        [
            Edit(
                REDFISH,
                "        while (seen := bmc.power()) is not Power.OFF:",
                "        while (seen := Power.OFF) is not Power.OFF:",
            )
        ],
        tests("unit/test_redfish.py::test_an_acknowledged_command_is_not_success"),
    ),
    Mutant(
        "any state but on is off",
        "a power state that is neither is taken for off",
        [Edit(REDFISH, "if state == self._sushy.PowerState.OFF:", "if state != self._sushy.PowerState.ON:")],
        tests("unit/test_redfish.py::test_no_other_state_is_off"),
    ),
    Mutant(
        "a program's word for off",
        "a fence program that reports success is not asked what it sees",
        [Edit(AGENTS, "if (seen := await self.status()) is not", "if (seen := Power.OFF) is not")],
        tests("unit/test_fence_programs.py::test_an_acknowledged_off_that_is_not_seen_proves_nothing"),
    ),
    Mutant(
        "an error is off",
        "a fence program whose status fails is taken to have seen off",
        [
            Edit(AGENTS, "if code in (0, STATUS_OFF):", "if code != 99:"),
            Edit(
                AGENTS, "return Power.OFF if code == STATUS_OFF else Power.ON", "return Power.OFF if code else Power.ON"
            ),
        ],
        tests("unit/test_fence_programs.py::test_a_status_that_fails_is_not_off"),
    ),
    Mutant(
        "a late program lives on",
        "only the fence program is killed when it is late, not what it started",
        [Edit(AGENTS, "os.killpg(process.pid, signal.SIGKILL)", "process.kill()")],
        tests("unit/test_fence_programs.py::test_a_late_program_is_killed_with_its_children"),
    ),
    Mutant(
        "a password on the command line",
        "a fence program is given the password as an argument",
        [Edit(AGENTS, "self.program, env=", "self.program, secret, env=")],
        tests("unit/test_fence_programs.py::test_the_password_is_told_on_standard_input_only"),
    ),
    Mutant(
        "a password in an error",
        "what a fence program printed is told as it is",
        [
            Edit(
                "scheduler/fencing/secret.py",
                '            text = text.replace(spelling, "***")\n',
                "            pass\n",
            )
        ],
        tests("unit/test_fence_programs.py::test_what_a_program_prints_is_told_without_the_password"),
    ),
    Mutant(
        "off for another session",
        "a try for an earlier session is taken as proof about the present one",
        [
            Edit(POWER, "is not HostState.FENCING or event.session != host.session:", "is not HostState.FENCING:"),
            Edit(POWER, "PowerFencing(event.device, event.session,", "PowerFencing(event.device, host.session,"),
        ],
        golden("power_result_of_an_earlier_session"),
    ),
    Mutant(
        "a failed try is evidence",
        "that somebody tried to switch a host off is taken for its being off",
        [Edit(POWER, "if power is None or power.error or", "if power is None or")],
        golden("power_bmc_unreachable_then_other_evidence"),
    ),
    Mutant(
        "hammering a BMC",
        "the next try does not wait for its time",
        [Edit(POWER, "if _next_s(host, now) <= now]", "]")],
        golden("power_backoff_survives_a_new_leader"),
    ),
    Mutant(
        "a new leader hammers",
        "tries are not on record, so each leader begins at once",
        [Edit("scheduler/codec/encode.py", "if (power := host.power) is not None:", "if (power := None) is not None:")],
        golden("power_backoff_survives_a_new_leader"),
    ),
    Mutant(
        "switched off under the brake",
        "hosts are switched off although the brake is on or fencing is disarmed",
        [Edit(POWER, "    if withheld(cluster):\n        return []\n", "")],
        golden("power_brake_withholds"),
    ),
    Mutant(
        "a living host is switched off",
        "nobody looks, just before the act, whether the host is still gone",
        [
            Edit(
                LEADER,
                "        host = self.cluster.hosts[effect.host]\n        known =",
                '        return ""\n        known =',
            )
        ],
        tests("unit/test_power_acting.py::test_a_host_that_comes_back_is_not_switched_off"),
    ),
    Mutant(
        "a deposed leader switches off",
        "the store is not asked, just before the act, who leads",
        [Edit(LEADER, "            await self._still_leading()\n            session =", "            session =")],
        tests("unit/test_power_acting.py::test_a_deposed_leader_switches_nothing_off"),
    ),
    Mutant(
        "a try that nobody wants goes on",
        "a host that comes back during a try is switched off all the same",
        [Edit(ACTING, "                task.cancel()\n                del", "                del")],
        tests("unit/test_power_acting.py::test_a_host_that_comes_back_during_the_try_is_let_go"),
    ),
    Mutant(
        "unproven and untold",
        "a real host behind a soft guard, without a fence device, is not told of before it dies",
        [
            Edit(
                "scheduler/core/failover/proof.py",
                "    if useful or lease_proves(",
                "    if guard is GuardKind.SOFT or lease_proves(",
            )
        ],
        tests("unit/test_provable.py"),
    ),
    Mutant(
        "a slip in the power file",
        "a fence device of a host that nobody knows is not told of",
        [Edit("scheduler/api/provable.py", "policy.powered.keys() - {ids[0]", "policy.powered.keys() & {ids[0]")],
        tests("unit/test_provable.py"),
    ),
)
