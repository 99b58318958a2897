"""Mutants of gangs: what starts together, when it starts again, and who follows whom."""

from __future__ import annotations

from tests.mutants.model import Edit, Mutant, Sim, Suite, tests

API = "unit/test_gangs_api.py"
ROOM, FEWEST = "scheduler/core/gangs/make_room.py", "scheduler/core/gangs/fewest.py"
COSTS = "scheduler/core/gangs/costs.py"


def scenario(name: str) -> Suite:
    """The golden scenario that must differ."""
    return tests(f"golden/test_golden.py::test_scenario[{name}]")


GANGS = (
    Mutant(
        "a gang in parts",
        "members' allocations are written each by itself, so some may be on record and others not",
        [
            Edit(
                "scheduler/leader.py",
                "        together_with = together.as_one(self.cluster, dirty)\n",
                "        together_with: dict[str, str] = {}\n",
            )
        ],
        tests(
            f"{API}::test_where_one_cannot_be_written_none_is", f"{API}::test_a_gang_is_committed_in_one_transaction"
        ),
        fast=True,
    ),
    Mutant(
        "again while others live",
        "a gang's lost member starts again before the VMs of the others are dead",
        [
            Edit(
                "scheduler/core/gangs/members.py",
                "            return frozenset(self.free) if self.alone else frozenset()\n",
                "            return frozenset(self.free)\n",
            )
        ],
        scenario("gang_restarts_as_one"),
        fast=True,
    ),
    Mutant(
        "again while others live, seen from outside",
        "the same, with machines that fail",
        [
            Edit(
                "scheduler/core/gangs/members.py",
                "            return frozenset(self.free) if self.alone else frozenset()\n",
                "            return frozenset(self.free)\n",
            ),
            Edit("scheduler/core/invariants.py", "        *_gangs(cluster),\n", ""),
        ],
        Sim("all", "of its gang"),
    ),
    Mutant(
        "a member left bound",
        "when room for restarts forbids one member, not all that were bound before are taken back",
        [
            Edit(
                "scheduler/core/gangs/place.py",
                "            for other in reversed(bound):\n",
                "            for other in reversed(bound[1:]):\n",
            )
        ],
        scenario("gang_room_for_restarts"),
    ),
    Mutant(
        "nothing has happened, and yet",
        "a gang that was taken back leaves the impression that something was set free",
        [
            Edit(
                "scheduler/core/gangs/place.py",
                "        cluster.capacity_epoch = self.epoch\n        del cluster.log[self.log :]\n",
                "        del cluster.log[self.log :]\n",
            )
        ],
        tests("unit/test_gangs.py::test_a_gang_that_is_refused_leaves_nothing_behind"),
    ),
    Mutant(
        "others go on",
        "the others of a gang are not asked to stop when one has lost its VM",
        [Edit("scheduler/core/gangs/together.py", "    if not gone and not stops:\n", "    if True:\n")],
        scenario("gang_restarts_as_one"),
    ),
    Mutant(
        "asked to stop, and its gang goes on",
        "when a member is asked to stop, the others of its gang are not looked at",
        [
            Edit(
                "scheduler/core/state/cluster.py",
                "            self.books.gangs.touched.add(job.terms.member.gang)\n",
                "            pass\n",
            )
        ],
        scenario("gang_drained"),
    ),
    Mutant(
        "others go on under another leader",
        "a new leader looks only at what it sees change",
        [Edit("scheduler/core/gangs/members.py", "        self.touched.add(member.gang)\n", "        pass\n")],
        tests(f"{API}::test_what_of_a_gang_is_left_is_done_by_another_leader"),
    ),
    Mutant(
        "stopped under the brake",
        "the others of a gang are stopped while too much is lost to start them again",
        [
            Edit(
                "scheduler/core/gangs/together.py",
                "    if cluster.brake is not None or cluster.intent.disarmed:\n        cluster.books",
                "    if cluster.intent.disarmed:\n        cluster.books",
            )
        ],
        scenario("gang_under_the_brake"),
    ),
    Mutant(
        "a quota for one",
        "of a gang one member is counted before it starts",
        [
            Edit(
                "scheduler/core/gangs/place.py",
                "    if cluster.books.queues.refusal(job, len(members)):\n",
                "    if cluster.books.queues.refusal(job):\n",
            ),
            Edit(
                "scheduler/core/place.py",
                "refusal(job, request.count if isinstance(request, Party) else 1)",
                "refusal(job)",
            ),
        ],
        scenario("gang_and_quota"),
    ),
    Mutant(
        "a gang's places for one",
        "of what a gang needs on a host room for one member is kept",
        [
            Edit(
                "scheduler/core/queueing/claims.py",
                "    return not shuns(ask, host) and len(seats(ask, host, count)) >= count\n",
                "    return not shuns(ask, host) and len(seats(ask, host, 1)) >= 1\n",
            )
        ],
        scenario("gang_place_is_kept"),
    ),
    Mutant(
        "first come, first seated",
        "a member that may not use a host does not change its seat with another",
        [
            Edit(
                "scheduler/core/gangs/arrange.py",
                "        if _give(taken[member], options, members, taken, seen):\n",
                "        if False:\n",
            )
        ],
        tests("unit/test_gangs.py::test_members_change_places_if_that_helps"),
    ),
    Mutant(
        "spread over what peers have",
        "a member that starts again alone does not mind where the others are",
        [
            Edit(
                "scheduler/core/gangs/arrange.py",
                "            if cell and cell not in ask.used:\n",
                "            if cell:\n",
            )
        ],
        scenario("gang_member_restarts_alone"),
    ),
    Mutant(
        "due for ever",
        "what was due when a gang was refused is due again at once, so the leader never sleeps",
        [Edit("scheduler/core/gangs/place.py", "not_before_s if not_before_s > now else 0.0", "not_before_s")],
        tests("golden/test_golden.py::test_scenario[gang_refused_after_its_wait]"),
    ),
    Mutant(
        "asked again and again",
        "a gang that was refused for the room that is kept is judged anew at each turn",
        [Edit("scheduler/core/gangs/place.py", "    places.refusals.known.add(key)\n", "")],
        tests("unit/test_gangs.py::test_a_gang_that_was_refused_is_not_judged_again_for_nothing"),
    ),
    Mutant(
        "refused for ever",
        "a gang that was refused is not asked again though something was set free",
        [Edit("scheduler/core/gangs/refusals.py", "            self.known.clear()\n", "")],
        tests("unit/test_gangs.py::test_what_could_lift_a_refusal_does"),
    ),
    Mutant(
        "a gap is not heard of",
        "a restart that opens a gap, which then blocks nobody, lifts no refusal",
        [
            Edit(
                "scheduler/core/reservation/admission.py",
                "self.moved += self.reserve is not None",
                "self.moved += False",
            )
        ],
        tests("unit/test_gangs.py::test_a_gap_that_a_restart_opens_lifts_a_refusal"),
    ),
    Mutant(
        "room for the dead",
        "who was kept out for the sake of a restart is not asked again once that is cancelled",
        [
            Edit(
                "scheduler/core/state/cluster.py",
                "            self.capacity_epoch += before is JobState.PENDING and bool(job.attempts)",
                "            self.capacity_epoch += False",
            )
        ],
        tests("unit/test_gangs.py::test_a_job_is_asked_again_once_nobody_is_to_restart_in_its_place"),
    ),
    Mutant(
        "a place that was kept is kept for ever",
        "a gang that was refused for places kept for others is not asked again once these are given up",
        [Edit("scheduler/core/gangs/refusals.py", "    kept = frozenset(barred)\n", "    kept = frozenset(())\n")],
        tests("unit/test_gangs.py::test_a_place_that_is_given_up_lifts_a_refusal"),
    ),
    Mutant(
        "an end that nobody answered",
        "a member whose time limit its agent has not answered, since its host is dead, ends the gang",
        [
            Edit(
                "scheduler/core/gangs/together.py",
                "    return bool(job.ending) and (",
                "    return bool(job.ending) or (",
            )
        ],
        scenario("gang_time_limit_of_a_dead_host"),
    ),
    Mutant(
        "stopped for a part",
        "VMs are stopped for a gang of which one member would still have no room",
        [
            Edit(FEWEST, "spread_out(self.count, ", "spread_out(max(1, self.count - 1), "),
            Edit(ROOM, "rooms is not None and (yield from _seated(ask, len(members), search.then(rooms))):", "rooms:"),
        ],
        tests(
            "unit/test_make_room.py::test_nobody_is_stopped_for_part_of_a_gang",
            "unit/test_make_room.py::test_as_few_as_possible_for_all_or_nobody",
        ),
    ),
    Mutant(
        "more than it needs",
        "for a gang the first victims that do are taken, not the fewest",
        [Edit(COSTS, "                if known is None or cost < known[0]:", "                if known is None:")],
        tests("unit/test_make_room.py::test_as_few_as_possible_for_all_or_nobody"),
    ),
    Mutant(
        "the oldest go",
        "of sets of victims for a gang of one size the oldest is taken",
        [Edit("scheduler/core/queueing/victims.py", "sorted((-a.created_s for a", "sorted((a.created_s for a")],
        tests("unit/test_make_room.py::test_as_few_as_possible_for_all_or_nobody"),
    ),
    Mutant(
        "stopped where room is kept",
        "VMs are stopped for a gang that room for restarts may then keep from starting",
        [Edit(ROOM, "    if kept.hosts and not kept.warn and", "    if False and")],
        scenario("gang_preempts_nobody"),
    ),
    Mutant(
        "a gang's places under another leader",
        "a new leader keeps for a gang only what somebody leaves for it, and not what was free for it already",
        [Edit("scheduler/core/place.py", "            yield from make_room.mending(cluster)\n", "            pass\n")],
        tests("unit/test_make_room.py::test_as_few_as_possible_for_all_or_nobody"),
    ),
    Mutant(
        "more than was borrowed",
        "a gang within what its queue is guaranteed takes back more than another queue has borrowed",
        [
            Edit(
                ROOM,
                "_by_host(within_loans(cluster, members[0], some))",
                "_by_host(some)",
            )
        ],
        tests("unit/test_make_room.py::test_no_more_is_taken_back_than_was_borrowed"),
    ),
)
