"""Mutants of what stands between a session and its VMs: watchdog, declared guard, restored stores, the way to stop."""

from __future__ import annotations

from tests.mutants.model import Edit, Mutant, tests

DOG, DECLARE = "agent/guard/watchdog.py", "agent/declare.py"
SESSION = "agent/session.py"
HISTORY, ACTIONS = "agent/history.py", "agent/work/actions.py"

GUARD = (
    Mutant(
        "petted too late",
        "the watchdog is petted although it would then fire after the limit",
        [
            Edit(
                DOG,
                "elif self._wanted and now + self._timeout_ns <= state[Word.LIMIT]:",
                "elif self._wanted and now <= state[Word.LIMIT]:",
            )
        ],
        tests("unit/test_watchdog.py"),
    ),
    Mutant(
        "watchdog stopped while VMs live",
        "the watchdog is stopped at the deadline without making sure that nothing lives",
        [Edit(DOG, "        elif idle:\n", "        elif now >= state[Word.DEADLINE]:\n")],
        tests("unit/test_watchdog.py"),
    ),
    Mutant(
        "watchdog stopped under a new VM",
        "the deadline is not looked at again after the word was cleared",
        [Edit(DOG, "        if not still_idle():\n", "        if False:\n")],
        tests(
            "unit/test_watchdog.py::test_the_agent_that_moves_the_deadline_on_while_it_is_being_stopped_finds_it_armed"
        ),
    ),
    Mutant(
        "declared and not armed",
        "a VM is started behind a watchdog that is declared and has been stopped",
        [Edit(DECLARE, "(not self._hardware or self._guard.watchdog_s() > 0)", "True")],
        tests("unit/test_declare.py"),
    ),
    Mutant(
        "lower revision believed",
        "that the store's revision went back is not noticed",
        [Edit(HISTORY, "        if found.revision < before.revision:\n", "        if False:\n")],
        tests("unit/test_history.py"),
    ),
    Mutant(
        "lost write believed",
        "that our last acknowledged write is gone is not noticed once the revision has caught up",
        [Edit(HISTORY, "if before.key and ours < before.written and", "if False and")],
        tests("unit/test_history.py"),
    ),
    Mutant(
        "forgotten allocation started",
        "a VM is started though its allocation is not in the store any more",
        [Edit(ACTIONS, "if not await self._worker.wishes.still(want):", "if False:")],
        tests("unit/test_history.py"),
    ),
    Mutant(
        "drain's grace ignored",
        "a VM that is drained has the time of its job's own spec",
        [
            Edit(
                "agent/work/reconcile.py",
                "want.stop_grace_s or want.spec.stop_grace_s or",
                "want.spec.stop_grace_s or",
            )
        ],
        tests("unit/test_worker.py::test_grace_of_a_drain_comes_before_the_jobs_own"),
    ),
    Mutant(
        "lease of other times",
        "an agent that comes back with other times goes on with the lease of the old ones",
        [Edit(SESSION, "        if self._wants_another(ttl_s):\n", "        if False:\n")],
        tests("unit/test_session_lease.py::test_other_times_end_no_session_and_kill_nothing"),
    ),
    Mutant(
        "guarded by a longer lease",
        "a session on its new, shorter lease declares its guard by the deadline of the old one",
        [
            Edit(
                SESSION,
                "            sent, ttl_s = await self._another_lease(kv.create_revision)\n",
                "            await self._another_lease(kv.create_revision)\n",
            )
        ],
        tests("unit/test_session_lease.py"),
    ),
    Mutant(
        "move that arrives late",
        "an agent does not write over what an earlier one sent to move the session to another lease",
        [Edit(SESSION, "!= (put.value, put.lease) or self._others:", "!= (put.value, put.lease):")],
        tests("unit/test_session_lease.py::test_agent_that_dies_during_the_move"),
    ),
    Mutant(
        "reset by a shorter lease",
        "a session gets a lease too short for the watchdog that is armed",
        [Edit(SESSION, "        return not why\n", "        return True\n")],
        tests("unit/test_session_lease.py"),
    ),
)
