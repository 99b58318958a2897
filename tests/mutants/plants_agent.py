"""Mutants of the agent: session, guard, start of VMs, reports, units."""

from __future__ import annotations

from tests.mutants.model import Edit, Mutant, Sim, tests

DEADLINE = "agent/deadline.py"
SESSION, ACTIONS, WORKER = "agent/session.py", "agent/work/actions.py", "agent/work/worker.py"
HEALTH = "agent/devices/health.py"
RECONCILE, LEDGER, REPORT = "agent/work/reconcile.py", "agent/work/ledger.py", "agent/work/report.py"

AGENT = (
    Mutant(
        "guard asleep",
        "the guard does not kill at its deadline (its stand-in in the simulation)",
        [Edit("tests/fakes/vms.py", "            self.kills += self._vms.kill_all()\n", "            pass\n")],
        Sim("partition,cut-out", "lives on", seeds=40),
    ),
    Mutant(
        "real guard asleep",
        "the guard's process does not kill at its deadline",
        [Edit("agent/guard/__main__.py", "            if target.populated():\n", "            if False:\n")],
        tests("unit/test_guard.py"),
    ),
    Mutant(
        "expiry is punctual",
        "the deadline has no margin for the guard's look and for clocks that run wrong",
        [
            Edit(
                DEADLINE,
                "self._guard.extend(lease_end - self._timing.kill_margin_s, lease_end",
                "self._guard.extend(lease_end, lease_end",
            )
        ],
        tests("unit/test_session.py"),
    ),
    Mutant(
        "deadline from the answer",
        "the deadline counts from when a renewal's answer came, not from its sending",
        [
            Edit(
                SESSION,
                "        self._deadline.renewed(sent, min(ttl_s, self._ttl_s))\n",
                "        self._deadline.renewed(self._clock.boot(), min(ttl_s, self._ttl_s))\n",
            )
        ],
        tests("unit/test_session.py::test_deadline_counts_from_the_sending"),
    ),
    Mutant(
        "freshness ignored",
        "a VM is started though the session's deadline is about to pass, or has",
        [
            Edit(
                SESSION,
                "return self._session != 0 and self._deadline.may_start()",
                "return self._session != 0",
            )
        ],
        tests("unit/test_worker.py", "unit/test_session.py"),
    ),
    Mutant(
        "new session while VMs live",
        "a new session is announced before the VMs of the last one have ended",
        [Edit(SESSION, "            await self._no_vms()\n", "")],
        tests("unit/test_worker.py::test_new_session_waits_while_vms_cannot_be_killed"),
    ),
    Mutant(
        "another's session resumed",
        "an agent resumes a session whose key was made anew since",
        [
            Edit(
                SESSION,
                "if kv is None or not self._ours(kv) or saved not in (0, kv.create_revision):",
                "if kv is None:",
            )
        ],
        tests("unit/test_session.py"),
    ),
    Mutant(
        "anyone makes way",
        "an agent deletes whatever session stands under its name, also another machine's living one",
        [
            Edit(
                SESSION,
                "        if reason := why_not_replace(old, self._me",
                "        if False and (reason := why_not_replace(old, self._me",
            ),
            Edit(SESSION, "had_session=self._had_session):\n", "had_session=self._had_session)):\n"),
        ],
        tests("unit/test_session.py::test_two_machines_with_one_name_do_not_fight"),
    ),
    Mutant(
        "nonce ignored",
        "an allocation is run by its session's number alone, which comes again in a restored store",
        [
            Edit(
                RECONCILE,
                "want.session == self.session and want.session_nonce == self.nonce",
                "want.session == self.session",
            )
        ],
        tests("unit/test_reconcile.py::test_a_session_id_that_came_again_in_a_restored_store_starts_nothing"),
    ),
    Mutant(
        "allocation of any session",
        "an agent runs allocations that do not name its session",
        [
            Edit(
                RECONCILE,
                "want is not None and want.session == self.session and want.session_nonce == self.nonce",
                "want is not None",
            )
        ],
        tests("unit/test_reconcile.py", "unit/test_session.py"),
    ),
    Mutant(
        "start unconfirmed",
        "a VM is started before the store has confirmed the session",
        [Edit(ACTIONS, "        await self._worker.reporter.committed()\n", "")],
        tests("unit/test_worker.py::test_nothing_starts_before_the_store_has_confirmed_the_session"),
    ),
    Mutant(
        "may always run",
        "at the very moment when a VM's CPUs are let go, nobody asks again whether they may",
        [Edit(WORKER, "return session == self._session and self._may_start()", "return True")],
        tests("unit/test_worker.py::test_guard_that_dies_during_the_start_stops_it"),
    ),
    Mutant(
        "reports unguarded",
        "an agent whose session is over goes on writing reports",
        [Edit(REPORT, "self._store.commit([Created(self._session_key, session)], ops)", "self._store.commit([], ops)")],
        tests("unit/test_worker.py", "unit/test_session.py"),
    ),
    Mutant(
        "use forgotten",
        "it is not put on record that a VM is about to have a unit, so the unit is proven without a reset",
        [Edit(ACTIONS, "        self._ledger.touches(want.id)\n", "")],
        Sim("power-cut", "unproven"),
    ),
    Mutant(
        "last errors unasked",
        "fatal errors that came after the last look at a unit in use are lost with its reset",
        [Edit(ACTIONS, "if record.used and (found := await self._devices.toll(unit)):", "if found := '':")],
        tests("unit/test_unit_care.py::test_what_befell_a_unit_just_before_its_vm_ended_is_on_record_before_the_reset"),
    ),
    Mutant(
        "each agent's own first sight",
        "an agent that was restarted takes what it finds of a unit in use for what its VM found",
        [Edit(HEALTH, "        for record in records.load(_KIND).values():\n", "        for record in ():\n")],
        tests("unit/test_health.py::test_a_watch_that_is_new_goes_on_from_what_the_vm_found"),
    ),
    Mutant(
        "pairs made anew",
        "a NIC goes to another GPU as soon as that is nearer, though a VM may have it",
        [Edit("agent/inventory/pairing.py", "(before.get(nic) != unit.id, ", "(False, ")],
        tests("unit/test_pairing.py::test_a_pair_stays_when_a_nearer_nic_or_another_gpu_comes_or_goes"),
    ),
    Mutant(
        "rules forget drivers",
        "once the rules for the boot have worked, they are written anew without the drivers that had to wait",
        [Edit("agent/doctor/vfio.py", "found = waiting_in(facts.long(MODPROBE))", "found = set[str]()")],
        tests("unit/test_doctor_nics.py::test_rules_that_have_worked_are_not_unwritten"),
    ),
    Mutant(
        "a beat of the future",
        "a guard that beats while the agent looks is taken for dead",
        [
            Edit(
                "agent/guard/client.py",
                "        beat = self._state[Word.HEARTBEAT]\n        silent = boot_time_ns() - beat\n",
                "        silent = boot_time_ns() - self._state[Word.HEARTBEAT]\n",
            )
        ],
        tests("unit/test_guard.py::test_a_guard_that_beats_while_it_is_looked_at_is_alive"),
    ),
    Mutant(
        "a slow guard killed",
        "a guard that is only slow is killed, and nobody holds the deadline until another looks",
        [Edit("agent/guard/client.py", "self._silent_ns() >= self._patience_ns or", "True or")],
        tests("unit/test_guard.py::test_a_guard_that_is_only_slow_is_given_time"),
    ),
    Mutant(
        "declared in the gap",
        "while another guard takes long to come, the record goes on saying that there is one",
        [Edit("agent/session.py", "[0]:\n                await self._declare_due()\n", "[0]:\n                pass\n")],
        tests("unit/test_declare.py::test_while_another_guard_takes_long_to_come_none_is_declared"),
    ),
    Mutant(
        "virtual function removed",
        "a VF that is to be found anew is removed, and never comes back",
        [Edit("agent/devices/rescan.py", "if not is_virtual(sysfs, function.address)]", "]")],
        tests("unit/test_pairing.py::test_a_virtual_function_is_not_removed_for_it_would_not_come_back"),
    ),
)
