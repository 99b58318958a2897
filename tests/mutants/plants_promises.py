"""Mutants of what an agent promises about its guard, of riding out a store's outage, and of policies about failures."""

from __future__ import annotations

from tests.mutants.model import Edit, Mutant, tests

SESSION, DECLARE, RIDING = "agent/session.py", "agent/declare.py", "agent/riding.py"
FENCE, HOSTS = "scheduler/core/failover/fence.py", "scheduler/core/state/hosts.py"

PROMISES = (
    Mutant(
        "silence is absence",
        "a member of the store that does not answer counts as one that does not lead",
        [Edit(RIDING, "_NO_LEADER = (Sight.NO_LEADER, Sight.NOT_RUNNING)", "_NO_LEADER = (*Sight,)")],
        tests("unit/test_riding.py"),
    ),
    Mutant(
        "a majority is enough",
        "VMs live on past their deadline though one member of the store may lead, and end the lease",
        [Edit(RIDING, "    if unproven:\n", "    if 2 * len(unproven) > len(poll.members):\n")],
        tests("unit/test_riding.py"),
    ),
    Mutant(
        "a poll counts from its end",
        "an outage extends the deadline by a full TTL from when the last member answered",
        [Edit(RIDING, "began_s + ttl_s - margin_s", "ended_s + ttl_s - margin_s")],
        tests("unit/test_riding.py"),
    ),
    Mutant(
        "a deadline revives",
        "a poll moves a deadline on that has passed",
        [Edit(RIDING, "if not refusal and ended_s >= kill_at_s:", "if False:")],
        tests("unit/test_riding.py"),
    ),
    Mutant(
        "relaxes before the record",
        "VMs live on without renewals before the store says that their end is no evidence",
        [Edit(DECLARE, "return self._relaxed and bool(", "return bool(")],
        tests("unit/test_declare.py"),
    ),
    Mutant(
        "a dead guard is declared",
        "the session's record says that a guard is armed although it does not answer",
        [Edit(DECLARE, "        if not self._guard.alive():\n", "        if False:\n")],
        tests("unit/test_declare.py"),
    ),
    Mutant(
        "declared beyond renewals",
        "a guard is declared while its deadline lies beyond what any renewal allows",
        [Edit(DECLARE, "if self._guard.deadline > kill_at + _SAME_S:", "if False:")],
        tests("unit/test_declare.py"),
    ),
    Mutant(
        "late word on the guard",
        "what was written of the guard earlier, and arrives late, undoes what was said since",
        [
            Edit(
                SESSION,
                "                [Unmodified(self._key, kv.mod_revision)], [put,",
                "                [Created(self._key, kv.create_revision)], [put,",
            )
        ],
        tests("unit/test_declare.py::test_record_that_was_sent_long_ago_cannot_undo_what_was_said_since"),
    ),
    Mutant(
        "last word unheard",
        "a new leader takes what the last one knew of a guard for what the lost session said last of it",
        [Edit(FENCE, "    elif word is not None and word.session == host.session:\n", "    elif False:\n")],
        tests("golden"),
    ),
    Mutant(
        "word of another session",
        "what a later session said of its guard counts for one that nobody saw end",
        [Edit(FENCE, " or (word is not None and word.session > host.session):", ":")],
        tests("unit/test_last_word.py"),
    ),
    Mutant(
        "last word left unsaid",
        "an agent takes its guard back in the record that goes with its lease, and not in the one that stays",
        [Edit(SESSION, "[put, self._last_word(said, kv.create_revision)]", "[put]")],
        tests("unit/test_last_word.py"),
    ),
    Mutant(
        "last word swept up",
        "an agent that tidies its reports deletes what it said of its guard",
        [Edit("agent/work/report.py", "kv.key not in self._not_ours", "kv.key != self._session_key")],
        tests("unit/test_last_word.py"),
    ),
    Mutant(
        "another machine's boot",
        "a session of another machine, with another boot id, proves that the first one's VMs are dead",
        [Edit(HOSTS, "return fact if fact.machine != self.machine else None", "return None")],
        tests("golden"),
    ),
    Mutant(
        "another machine's word",
        "an agent on another machine vouches that no VM lives on the first",
        [Edit(FENCE, "back.boot_id == host.boot_id and back.vms_found_dead", "back.vms_found_dead")],
        tests("golden"),
    ),
    Mutant(
        "another machine's power",
        "a host is switched off, and counts as off, although nobody knows which of two machines that is",
        [
            Edit(
                "scheduler/core/failover/power.py",
                "    if host.taken_by() is not None:\n        return  #",
                "    if False:\n        return  #",
            )
        ],
        tests("golden"),
    ),
    Mutant(
        "another machine's session",
        "an agent deletes the live session of another machine that has its name and address",
        [Edit("agent/timing.py", "if old.machine != me.machine:", "if False:")],
        tests("unit/test_machine.py::test_another_machine_at_the_same_address_ends_no_live_session"),
    ),
    Mutant(
        "known and unknown are one",
        "an unknown machine passes for one that is known",
        [
            Edit(
                HOSTS,
                "return fact if fact.machine != self.machine else None",
                "return fact if fact.machine and self.machine and fact.machine != self.machine else None",
            )
        ],
        tests("golden"),
    ),
    Mutant(
        "firmware's placeholder",
        "a product UUID that many boards have passes for a machine's own",
        [Edit("agent/machine.py", " and digits not in _PLACEHOLDERS", "")],
        tests("unit/test_machine.py"),
    ),
    Mutant(
        "killer VM at large",
        "a job whose hosts die one after the other is never held",
        [Edit(FENCE, "            breaker.host_died(cluster, job, host)\n", "            pass\n")],
        tests("golden"),
    ),
    Mutant(
        "flapping host welcome",
        "a host that is lost again and again is not held out",
        [Edit(FENCE, "            flap.host_lost(cluster, host, now)\n", "")],
        tests("golden"),
    ),
    Mutant(
        "disarming without effect",
        "while fencing is disarmed, evidence is sought all the same",
        [Edit(FENCE, "(found is not None or not cluster.intent.disarmed)", "True")],
        tests("golden"),
    ),
)
