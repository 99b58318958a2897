"""Where more must leave than all sets of can be tried: whoever is stopped is needed, and nobody waits for nothing."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.fitting.scratch import without
from scheduler.core.gangs.ask import ask_of
from scheduler.core.gangs.fewest import Search
from scheduler.core.queueing.claims import fits_without
from scheduler.core.queueing.preempt import Preempter
from scheduler.core.queueing.search import MOST
from scheduler.core.queueing.sets import greedy, kinds, needed, sets_of
from scheduler.core.queueing.victims import Victims, ages
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.hosts import Allocation
from scheduler.core.state.jobs import Job
from scheduler.core.state.tables import JobState
from scheduler.core.work import PAUSE, done, pauses
from tests.golden.runner import Player
from tests.unit.test_gangs import arranged

PARTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=9)


def vm(number: int, gpus: int, age: int) -> Allocation:
    units = tuple(f"u{number}.{n}" for n in range(gpus))
    return Allocation(f"j{number}.1", f"j{number}", 1, "h", 1, units, (0,), (), (0,), float(age))


@given(PARTS, st.integers(1, 12), st.integers(0, 12))
def test_a_greedy_set_has_nobody_who_could_stay(parts: list[tuple[int, int, int]], gpus: int, cores: int) -> None:
    """Two things are asked for, and the VMs have some of each."""
    vms = [vm(number, part[0], part[2]) for number, part in enumerate(parts)]
    has = {victim.id: part for victim, part in zip(vms, parts, strict=True)}

    def works(victims: Victims) -> bool:
        return all(sum(has[v.id][what] for v in victims) >= want for what, want in enumerate((gpus, cores)))

    found = done(greedy([vms, vms[::-1]], works))
    if found is None:
        assert not works(tuple(vms))
        return
    assert works(found)
    for size in range(len(found)):
        assert not any(map(works, combinations(found, size))), "fewer of them would have done"


@given(PARTS, st.integers(0, 8), st.integers(0, 8))
def test_nobody_is_let_off_whom_others_are_near_to(parts: list[tuple[int, int, int]], gpus: int, near: int) -> None:
    """The more leave, the less there may be room: who is to be near somebody has none once that one has left."""
    vms = [vm(number, part[0], part[2]) for number, part in enumerate(parts)]

    def works(victims: Victims) -> bool:
        left = {v.id for v in victims}
        return sum(len(v.units) for v in victims) >= gpus and vms[near % len(vms)].id not in left

    able = [v for number, v in enumerate(vms) if number != near % len(vms)]
    if works(tuple(able)):
        found = done(needed(able, works))
        assert works(found)
        assert not any(works(tuple(v for v in found if v is not one)) for one in found)


def cluster_of(hosts: list[int], vms: list[tuple[int, int, int]]) -> Player:
    player = Player()
    player.play("policy starts_at_once=0")
    for n, gpus in enumerate(hosts):
        player.play(f"host h{n} {gpus}xa100")
    for n, (gpus, cpus, priority) in enumerate(vms):
        player.play(f"submit j{n} gpus={gpus} cpus={cpus} mib=64 priority={priority}\nplace")
        player.now += n % 3
    for job in list(player.cluster.jobs.values()):
        if job.state is JobState.PENDING:
            player.play(f"cancel {job.id}")
    player.play("run\npolicy preemption.lower_priority=yes")
    return player


def lower(cluster: Cluster, job: Job) -> list[Allocation]:
    return [a for a in cluster.allocations.values() if cluster.jobs[a.job].priority < job.priority]


HOSTS = st.lists(st.integers(9, 12), min_size=1, max_size=2)
VMS = st.lists(st.tuples(st.sampled_from([1, 1, 1, 2]), st.integers(1, 3), st.sampled_from([0, 0, 0, 5])), max_size=24)


@settings(deadline=None, max_examples=40)
@given(
    HOSTS, VMS, st.tuples(st.integers(7, 12), st.integers(1, 28), st.sampled_from(["NONE", "PREFERRED", "REQUIRED"]))
)
def test_of_many_victims_none_could_stay(
    hosts: list[int], vms: list[tuple[int, int, int]], wanted: tuple[int, int, str]
) -> None:
    player = cluster_of(hosts, vms)
    cluster = player.cluster
    gpus, cpus, numa = wanted
    player.play(f"submit new gpus={gpus} cpus={cpus} mib=64 priority=3 numa={numa}")
    job = cluster.jobs["new"]
    player.placer.place(cluster, player.now)
    if job.state is not JobState.PENDING:
        return
    ready = lower(cluster, job)
    could = [
        host
        for host in cluster.hosts.values()
        if fits_without(cluster, host, job, [a for a in ready if a.host == host.name])
    ]
    Preempter().preempt(cluster, player.now)
    victims = [a for a in cluster.allocations.values() if a.preempted_for]
    assert bool(victims) == bool(could)
    if victims:
        host = cluster.hosts[victims[0].host]
        assert {a.host for a in victims} == {host.name}
        assert all(a in ready for a in victims)
        assert fits_without(cluster, host, job, victims)
        for one in victims:
            assert not fits_without(cluster, host, job, [a for a in victims if a is not one]), f"{one.id} could stay"


@settings(deadline=None, max_examples=40)
@given(VMS, st.integers(1, 6))
def test_of_each_kind_the_youngest_stand_for_all(vms: list[tuple[int, int, int]], want: int) -> None:
    """What is found among the sets that are looked at is the youngest of all sets of that size."""
    player = cluster_of([9], vms[:8])
    cluster = player.cluster
    player.play(f"submit new gpus={want} cpus=14 mib=64 priority=9 numa=REQUIRED")
    job, host = cluster.jobs["new"], cluster.hosts["h0"]
    ready = sorted(lower(cluster, job), key=lambda a: (-a.created_s, a.id))

    def best(sets: list[Victims]) -> tuple[tuple[float, ...], list[str]] | None:
        found = [(ages(s), sorted(a.id for a in s)) for s in sets if fits_without(cluster, host, job, s)]
        return min(found, default=None)

    for size in range(1, len(ready) + 1):
        assert best(list(sets_of(size, kinds(host, ready)))) == best(list(combinations(ready, size)))


def test_each_of_a_kind_leaves_the_same_behind() -> None:
    """A GPU of node 0 and three cores; two of the VMs have two of these on node 0, one has two on node 1."""
    player = Player()
    player.play("host h0 6xa100")
    host = player.cluster.hosts["h0"]
    units = [unit.id for unit in host.units.values() if not unit.node]
    cores = {node.id: node.cores for node in host.nodes.values()}
    taken = [(*cores[0][:2], cores[1][0]), (*cores[0][2:4], cores[1][1]), (cores[0][4], *cores[1][2:4])]
    vms = [
        Allocation(f"j{n}.1", f"j{n}", 1, "h0", 1, (unit,), (0, 1), mine, (64, 64), 1.0)
        for n, (unit, mine) in enumerate(zip(units, taken, strict=True))
    ]
    host.held.update({unit: vm.id for unit, vm in zip(units, vms, strict=True)})
    assert kinds(host, vms) == [vms[:2], vms[2:]]
    assert kinds(host, vms, own={"j1.1"}) == [[vm] for vm in vms]


def test_a_host_of_sixteen_is_emptied_for_one_job() -> None:
    player = cluster_of([16], [(1, 1, 0)] * 16)
    player.play("submit new gpus=16 numa=NONE priority=1\nrun")
    left = [a.job for a in player.cluster.allocations.values() if a.stop_reason]
    assert len(left) == 16 > MOST


@pytest.mark.parametrize(("wants", "stopped"), [(9, 9), (12, 12), (13, 0)])
def test_no_more_than_was_borrowed_of_many(wants: int, stopped: int) -> None:
    player = Player()
    player.play("host h1 16xa100\nqueue q guaranteed=16\nqueue r guaranteed=4")
    for n in range(16):
        player.play(f"submit r{n} queue=r\nrun")
    player.play(f"submit new queue=q gpus={wants} numa=NONE\nrun")
    assert len([a for a in player.cluster.allocations.values() if a.stop_reason]) == stopped


GANG = st.tuples(st.integers(1, 3), st.integers(3, 9), st.sampled_from(["", "", "spread:host", "pack:host"]))


@settings(deadline=None, max_examples=40)
@given(HOSTS, VMS, GANG)
def test_of_many_victims_for_a_gang_none_could_stay(
    hosts: list[int], vms: list[tuple[int, int, int]], gang: tuple[int, int, str]
) -> None:
    player = cluster_of(hosts, vms)
    cluster = player.cluster
    count, gpus, how = gang
    player.play(f"gang g {count} {how} gpus={gpus} cpus=1 mib=64 numa=NONE priority=3")
    party = [cluster.jobs[f"g-{n}"] for n in range(count)]
    player.placer.place(cluster, player.now)
    if party[0].state is not JobState.PENDING:
        return
    ready = lower(cluster, party[0])

    def room(victims: list[Allocation]) -> bool:
        then = {name: without(host, [a for a in victims if a.host == name]) for name, host in cluster.hosts.items()}
        return bool(arranged(then, party))

    Preempter().preempt(cluster, player.now)
    victims = [a for a in cluster.allocations.values() if a.preempted_for]
    assert bool(victims) == room(ready)
    if victims:
        assert all(a in ready for a in victims)
        assert room(victims)
        for one in victims:
            assert not room([a for a in victims if a is not one]), f"{one.id} could stay"


def test_a_gang_empties_hosts_of_sixteen() -> None:
    player = cluster_of([16, 16, 16], [(1, 1, 0)] * 48)
    player.play("gang g 2 spread:host gpus=16 cpus=1 mib=64 numa=NONE priority=1\nrun")
    left = [a for a in player.cluster.allocations.values() if a.stop_reason]
    assert len(left) == 32
    assert len({a.host for a in left}) == 2


def test_who_makes_more_room_than_is_needed_spares_another() -> None:
    """Of three members two are to go to h0 and one to h1; but once those of h0 have left, all three have room there."""
    player = cluster_of([12, 12], [(1, 1, 0)] * 24)
    cluster = player.cluster
    player.play("gang g 3 gpus=4 cpus=1 mib=64 numa=NONE priority=1")
    search = Search(cluster, ask_of(cluster, [cluster.jobs[f"g-{n}"] for n in range(3)]), 3)
    ready = {
        name: tuple(cluster.allocations[a] for a in sorted(host.allocations)) for name, host in cluster.hosts.items()
    }
    search.inexact = True
    rooms = done(search.trimmed({"h0": (2, ready["h0"]), "h1": (1, ready["h1"][:4])}))
    assert {name: (count, len(victims)) for name, (count, victims) in rooms.items()} == {"h0": (2, 8), "h1": (1, 4)}


def test_others_run_while_victims_are_sought() -> None:
    """Between two pauses there is little to do; and all that is done is done with pauses as it is without."""
    player = cluster_of([12] * 12, [(1, 1, 0)] * 144)
    player.play("gang g 6 spread:host gpus=12 cpus=1 mib=64 numa=NONE priority=1")
    player.placer.place(player.cluster, player.now)
    work = Preempter().preempting(player.cluster, player.now)
    costs = list(work)
    assert len([a for a in player.cluster.allocations.values() if a.stop_reason]) == 72
    assert max(costs) <= PAUSE < sum(costs)
    assert len(list(pauses(one for one in costs))) > sum(costs) // (2 * PAUSE)
