"""Who leaves when is kept up by what changes, and is always what looking all up anew gives; others run meanwhile."""

from __future__ import annotations

from copy import deepcopy

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scheduler.core.explain import explain, explaining
from scheduler.core.failover.plan import plan, planning
from scheduler.core.fitting.fit import closed
from scheduler.core.invariants import checking
from scheduler.core.queueing.claims import ends
from scheduler.core.queueing.leavers import Leavers
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.events import VmReported
from scheduler.core.state.jobs import Job, Request
from scheduler.core.state.tables import AllocationState
from scheduler.core.work import PAUSE, Work, done
from tests.golden.runner import Player

KINDS = ((1, ""), (2, ""), (4, ""), (1, "h100"), (3, "a100"))
WHAT = st.sampled_from(
    ["submit", "submit", "place", "start", "late", "end", "dirty", "stopped", "cancel", "requeue", "cordon", "uncordon",
     "drain", "above", "wait", "lost", "leader"]
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(WHAT, st.integers(0, 20)), min_size=8, max_size=30))
@example([("submit", 1), ("start", 0), ("requeue", 0)])
@example([("submit", 1), ("start", 0), ("dirty", 0)])
def test_what_is_kept_up_is_what_looking_all_up_gives(actions: list[tuple[str, int]]) -> None:
    player, kept = Player(), Leavers()
    player.play("policy preemption.lower_priority=true\nhost h0 2xa100 1xh100\nhost h1 4xa100\nhost h2 2xh100")
    for number, (what, which) in enumerate(actions):
        _do(player, number, what, which)
        if what == "leader":
            kept = Leavers()
        for gpus, model in KINDS:
            job = Job("probe", Request("img", gpus, model), 0, 0.0)
            found = done(kept.soonest(player.cluster, job, player.now, 9, ()))
            assert found == _by_hand(player.cluster, gpus, model, player.now)


def _do(player: Player, number: int, what: str, which: int) -> None:
    cluster, host = player.cluster, f"h{which % 3}"
    vms = sorted(cluster.allocations)
    vm = cluster.allocations[vms[which % len(vms)]] if vms else None
    live = vm is not None and cluster.jobs[vm.job].allocation_id == vm.id
    match what:
        case "submit":
            limit, end = ((0, 0), (100, 0), (0, 200), (60, 90))[which % 4]
            player.play(f"submit j{number} gpus={which % 2 + 1} limit={limit} end={end} grace={which}\nplace")
        case "above":
            player.play(f"submit j{number} gpus={which % 4 + 1} priority=2\nplace")
        case "place":
            player.play("place")
        case "wait":
            player.play(f"wait {10 * which}\nplace")
        case "lost" | "cordon" | "uncordon" | "drain":
            player.play(f"{what} {host}\nplace")
        case "leader":
            player.play("leader")
        case "start" | "late" if vm is not None and live and vm.state is AllocationState.BOUND:
            since_s = 0.0 if what == "late" else player.now  # an agent that does not say yet when its guest started
            player.tell(VmReported(vm.host, vm.id, vm.session, AllocationState.RUNNING, started_s=since_s))
        case "late" if vm is not None and live and vm.state is AllocationState.RUNNING:
            player.tell(VmReported(vm.host, vm.id, vm.session, AllocationState.STOPPING, started_s=player.now))
        case "dirty" if vm is not None and live:  # it has ended, and its units are not clean yet
            player.play(f"report {vm.id} ENDED outcome=EXITED code=0")
        case "end" | "stopped" | "cancel" | "requeue" if vm is not None and live:
            player.play(f"{what} {vm.job}")


def _by_hand(cluster: Cluster, gpus: int, model: str, now: float) -> list[tuple[float, str]]:
    found = []
    for host in cluster.hosts.values():
        free = [unit for unit in host.units if unit not in host.held]
        gone = [(now, tuple(free)), *((at_s, a.units) for at_s, a in ends(cluster, host, now))]
        have = 0
        for at_s, units in gone if closed(host) is None else ():
            have += sum(model in ("", host.units[unit].model) for unit in units)
            if have >= gpus:
                found.append((at_s, host.name))
                break
    return sorted(found)


def full(mode: str = "easy") -> Player:
    """Hosts that are full until a limit is over, each another's."""
    player = Player()
    player.play(f"policy backfill.mode={mode}")
    for n in range(30):
        player.play(f"host h{n:02} 4xa100\nsubmit a{n:02} gpus=3 limit={1000 - n} grace=5\nplace")
    return player


@pytest.mark.parametrize("waits", ["submit big gpus=4", "gang big 3 gpus=4", "submit big gpus=4 cpus=30 mib=70000"])
def test_others_run_while_a_place_is_looked_for(waits: str) -> None:
    """Between two pauses there is little to do; and all that is done is done with pauses as it is without."""
    player = full()
    player.play(waits)
    anew = deepcopy((player.cluster, player.placer))
    costs = list(player.placer.placing(player.cluster, player.now))
    assert max(costs) < PAUSE / 2
    assert sum(costs) >= 15
    anew[1].place(anew[0], player.now)
    claims = player.cluster.books.claims
    assert claims == anew[0].books.claims
    assert claims
    assert list(player.placer.placing(player.cluster, player.now + 1)).count(1) <= 3, "nothing is looked up again"


def test_a_place_is_found_beyond_hosts_of_other_models() -> None:
    """Those have GPUs now, but none that the job wants."""
    player = Player()
    for n in range(260):
        player.do_host(f"a{n:03}", "2xa100")
    player.play("host z 2xh100\nsubmit a model=h100 gpus=2 limit=100\nrun\nsubmit b model=h100 gpus=2\nplace")
    assert player.cluster.books.claims["b"].host == "z"


def test_others_run_while_a_gang_is_explained_a_plan_made_and_all_is_checked() -> None:
    player = full()
    player.play("gang g 3 gpus=4 cpus=500")
    cluster, job = player.cluster, player.cluster.jobs["g-0"]
    costs = _costs(explaining(cluster, job, player.now))
    assert costs[0] <= PAUSE
    assert costs[1] >= 60, "each host is asked twice: as it is, and beside members that have room"
    assert explain(cluster, job, player.now).counts[0][1] == 30
    assert _costs(checking(cluster))[0] <= PAUSE
    highest, all_ = _costs(planning(deepcopy(cluster), ["h00", "h01"], player.now))
    assert highest <= PAUSE
    assert all_ >= 2 * PAUSE, "what finds no place is explained"
    assert [restart.job for restart in plan(deepcopy(cluster), ["h00", "h01"], player.now).restarts] == ["a00", "a01"]


def _costs(work: Work[object]) -> tuple[int, int]:
    """The dearest part, and all of them."""
    costs = list(work)
    return max(costs), sum(costs)
