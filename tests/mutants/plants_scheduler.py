"""Mutants of the scheduler: leadership, commits, evidence, restarts, placement, the API."""

from __future__ import annotations

from tests.mutants.model import Edit, Mutant, Sim, tests

LEADER, ELECTION, LOAD = "scheduler/leader.py", "scheduler/election.py", "scheduler/load.py"
FENCE, STEP, CLUSTER, HOSTS, RANKING = (
    "scheduler/core/failover/fence.py",
    "scheduler/core/step.py",
    "scheduler/core/state/cluster.py",
    "scheduler/core/state/hosts.py",
    "scheduler/core/fitting/ranking.py",
)

VALUATION = "scheduler/core/fitting/valuation.py"
ALIKE = "scheduler/core/fitting/alike.py"

SCHEDULER = (
    Mutant(
        "commits without a term",
        "a leader writes without its term as a guard, so one that was paused overwrites its successor",
        [Edit(LEADER, "[self._term.guard, *self._history.guards(), *guards]", "[*guards]")],
        tests("e2e/test_leader_failover.py::test_a_frozen_leaders_commit_comes_too_late"),
    ),
    Mutant(
        "silence taken for death",
        "a standby deposes a leader that it only cannot reach",
        [
            Edit(
                "scheduler/deathwatch.py",
                "        except (OSError, TimeoutError):\n            refused = 0\n",
                "        except (OSError, TimeoutError):\n            refused += reached\n",
            )
        ],
        Sim("partition", words=":1 for dead, which lives", seeds=40),
    ),
    Mutant(
        "session unchecked at commit",
        "an allocation is written although its host's session has just ended",
        [
            Edit(
                LEADER,
                "                group.guards.append(Created(keys.session(allocation.host), allocation.session))\n",
                "",
            )
        ],
        tests("unit/test_leader.py::test_a_session_that_ends_before_the_commit_costs_nothing"),
    ),
    Mutant(
        "two leaders",
        "a replica takes the leader key though another holds it",
        [Edit(ELECTION, "store.commit([Created(LEADER, 0)], [Put(LEADER,", "store.commit([], [Put(LEADER,")],
        tests("unit/test_election.py"),
    ),
    Mutant(
        "deposed by a later life",
        "a standby that saw a leader die deletes the key of the next one",
        [
            Edit(
                ELECTION,
                "self._store.commit([Created(LEADER, leader.create_revision)], [Delete(LEADER)])",
                "self._store.commit([], [Delete(LEADER)])",
            )
        ],
        tests("unit/test_deathwatch.py::test_a_later_life_of_the_key_is_left_alone"),
    ),
    Mutant(
        "its own end unheard",
        "a leader with nothing to write does not hear that its term is over, and goes on acting",
        [Edit(LEADER, "                self._still_mine(news)\n", "")],
        tests("unit/test_leader.py::test_a_leader_with_nothing_to_write_hears_of_its_end"),
    ),
    Mutant(
        "watch from one too far",
        "who follows the store watches from the revision after the next, so one change is never seen",
        [
            Edit(
                "gpupool/store/follow.py",
                "store.watch(prefix, after_revision=revision)",
                "store.watch(prefix, after_revision=revision + 1)",
            )
        ],
        tests("unit/test_leader.py::test_what_changes_between_its_reading_and_its_watching_is_seen"),
    ),
    Mutant(
        "a leader on a mirror that is made anew",
        "a leader goes on with what its replica's mirror has thrown away, and never hears of the changes in between",
        [
            Edit(
                "scheduler/mirror/mirror.py",
                "            feed.end()\n        self._whole",
                "            pass\n        self._whole",
            )
        ],
        tests("unit/test_feed.py"),
    ),
    Mutant(
        "a leader takes over half a mirror",
        "a leader begins while its replica's mirror is still being filled, and never hears of the rest",
        [Edit("scheduler/mirror/mirror.py", "lambda: self._whole and self.revision", "lambda: self.revision")],
        tests("unit/test_feed.py"),
    ),
    Mutant(
        "unknown fate is failure",
        "a commit without an answer counts as not done, and its allocation is taken back while the VM starts",
        [
            Edit(
                LEADER,
                "        done = await self._store.commit([self._term.guard, *self._history.guards(), *guards], ops)\n",
                "        try:\n"
                "            all_guards = [self._term.guard, *self._history.guards(), *guards]\n"
                "            done = await self._store.commit(all_guards, ops)\n"
                "        except StoreError:\n"
                "            return False\n",
            )
        ],
        tests("unit/test_leader.py::test_a_commit_of_unknown_fate_makes_it_read_again"),
    ),
    Mutant(
        "hosts before jobs",
        "a fence is written before what it does to jobs, so a leader that dies between the two loses them",
        [
            Edit(LEADER, "self._batches(self._job_groups(dirty))", "self._batches(self.LATER(dirty))"),
            Edit(LEADER, "self._batches(self._host_groups(dirty))", "self._batches(self._job_groups(dirty))"),
            Edit(LEADER, "self.LATER(dirty)", "self._host_groups(dirty)"),
        ],
        tests("unit/test_leader.py::test_killed_within_a_fence"),
    ),
    Mutant(
        "placed before its host is on record",
        "an allocation is written before the session that it is of",
        [
            Edit(
                RANKING,
                "host.state is HostState.READY and host.name not in cluster.dirty.hosts",
                "host.state is HostState.READY",
            )
        ],
        tests("unit/test_leader.py::test_nothing_is_placed_before_its_hosts_session_is_on_record"),
    ),
    Mutant(
        "rankings miss who was placed",
        "what a host has given away is not told to the rankings, so it is given away once more",
        [Edit(CLUSTER, "        self.movers.add(host.name)\n        self.stale_hosts", "        self.stale_hosts")],
        tests("unit/test_place.py"),
    ),
    Mutant(
        "prices forgotten",
        "what a scarce model costs is not told to the rankings, so that jobs which need none take it",
        [
            Edit(RANKING, "priced = (rank[0], rank[1] + price,", "priced = (rank[0], rank[1],"),
            Edit(RANKING, "yield (rank[0], rank[1] + price,", "yield (rank[0], rank[1],"),
        ],
        tests("unit/test_place.py"),
    ),
    Mutant(
        "what was lost there before",
        "what is lost on a host is that of when it was first asked",
        [Edit(VALUATION, "if found is None or found.version != host.version:", "if found is None:")],
        tests("unit/test_place.py"),
    ),
    Mutant(
        "writes overtake each other",
        "a transaction of the leader is given up for the next one, whatever became of it",
        [Edit(LEADER, "                await writing\n", "")],
        tests("unit/test_leader.py::test_of_many_writes_one_is_under_way_and_what_is_retracted_spoils_no_other"),
    ),
    Mutant(
        "alike for ever",
        "what a host gives is what it gave when it was first asked",
        [Edit(ALIKE, "if known is None or known[0] != host.version:", "if known is None:")],
        tests("unit/test_place.py"),
    ),
    Mutant(
        "sick ones are alike too",
        "a unit that is sick is handed out, as the host is like one where it is well",
        [Edit(ALIKE, "return name not in host.sick", "return True")],
        tests("unit/test_place.py"),
    ),
    Mutant(
        "one step leads on for all",
        "what changed on a host since it was asked is taken for what the job took",
        [
            Edit(ALIKE, "if state is None or version != host.version - 1:", "if state is None:"),
            Edit(ALIKE, "if found is None or found.fit is not given:", "if found is None:"),
        ],
        tests("unit/test_place.py"),
    ),
    Mutant(
        "start before evidence",
        "a host whose session is gone counts as dead at once, whatever its guard",
        [
            Edit(
                FENCE,
                "    if host.fact is not None:\n        return None\n    powered",
                '    return Evidence.OPERATOR, "it will be dead by now"\n    powered',
            )
        ],
        tests("golden"),
    ),
    Mutant(
        "any guard is enough",
        "the end of a lease proves the VMs dead although no guard was declared any more",
        [Edit("scheduler/core/failover/proof.py", "    if guard is not GuardKind.SOFT:\n        return None\n", "")],
        tests("golden/test_golden.py", "unit/test_leader.py::test_a_guard_that_died_is_no_evidence"),
    ),
    Mutant(
        "evidence for another session",
        "an operator's word on an earlier session of a host counts for the present one",
        [
            Edit(
                FENCE,
                "0 < host.intent.confirmed_dead_session == host.session",
                "0 < host.intent.confirmed_dead_session",
            )
        ],
        tests("golden", "unit"),
    ),
    Mutant(
        "same boot, same death",
        "a host that is back proves its VMs dead although it is of the same boot and did not look",
        [Edit(FENCE, "back is not None and back.boot_id != host.boot_id", "back is not None")],
        tests("golden"),
    ),
    Mutant(
        "lost attempt left open",
        "a host is fenced, and nobody closes the attempts that were lost with it or queues their jobs",
        [
            Edit(
                FENCE, "        end_attempt(cluster, job, Outcome.HOST_LOST, now, message=message, evidence=kind)\n", ""
            )
        ],
        tests("golden"),
    ),
    Mutant(
        "any session's word on a VM",
        "a report counts although it comes from a session that has no say in the allocation",
        [Edit(STEP, " or allocation.session != event.session:\n", ":\n")],
        tests("unit/test_leader.py::test_another_sessions_word_on_a_vm_is_none"),
    ),
    Mutant(
        "stale unit reports",
        "a unit is offered on the word of an earlier session",
        [
            Edit(
                HOSTS, "current = report is not None and report.session == self.session", "current = report is not None"
            )
        ],
        tests("unit/test_leader.py::test_what_an_earlier_session_told_counts_no_more"),
    ),
    Mutant(
        "stale inventory",
        "a host is READY on the inventory of an earlier session",
        [
            Edit(
                STEP,
                "if host.state is HostState.JOINING and current and host.session:",
                "if host.state is HostState.JOINING and host.inventory and host.session:",
            )
        ],
        tests("unit/test_leader.py::test_what_an_earlier_session_told_counts_no_more"),
    ),
    Mutant(
        "allocation deleted before proof",
        "units are free as soon as the VM has ended",
        [
            Edit(
                STEP,
                "        if report.state not in (UnitState.FREE, UnitState.QUARANTINED):\n            return\n",
                "",
            )
        ],
        tests("unit/test_leader.py::test_an_allocation_stays_until_its_units_are_proven"),
    ),
    Mutant(
        "unit shared",
        "the scheduler forgets that a unit is held",
        [
            Edit(HOSTS, "        if unit in self.held:\n            return UnitState.HELD\n", ""),
            Edit(LEADER, "(broken := await in_pauses(checking(self.cluster)))", "(broken := [])"),
        ],
        Sim("power-cut", "reserved for", seeds=40),
    ),
    Mutant(
        "idempotency ignored",
        "a submission that is repeated after a lost answer is another job",
        [
            Edit(
                "scheduler/api/jobs_api.py",
                "request.idempotency_key.encode() if request.idempotency_key else self._token()",
                "self._token()",
            )
        ],
        tests("unit/test_jobs_api.py::test_the_same_key_gives_the_same_job"),
    ),
)
