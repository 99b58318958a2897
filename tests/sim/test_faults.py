"""The simulated network, store and fault plans."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from random import Random

import pytest

from gpupool.store.port import Compacted, LeaseNotFound, Put, Unavailable
from tests.sim.faults import Kind, Mix, apply_plan, make_plan
from tests.sim.link import Impairment
from tests.sim.processes import Boot
from tests.sim.world import World


@pytest.fixture
def world() -> Iterator[World]:
    with World(1) as made:
        yield made


def outcome(world: World, factory: Boot, until: float = 100) -> object:
    """What a coroutine of node n returns."""
    task = world.spawn("n", factory)
    world.run(until)
    return task.result()


async def put(world: World, key: str) -> None:
    await world.store("n").commit([], [Put(key, b"1")])


def test_a_lost_reply_means_done_but_unknown(world: World) -> None:
    world.link("n").impair(Impairment(reply_loss=1.0))

    async def main() -> str:
        with pytest.raises(Unavailable):
            await put(world, "k")
        world.link("n").heal()
        found = await world.store("n").get("k")
        return found.key if found else "absent"

    assert outcome(world, main) == "k"


def test_a_lost_request_means_not_done(world: World) -> None:
    world.link("n").impair(Impairment(request_loss=1.0))

    async def main() -> object:
        with pytest.raises(Unavailable):
            await put(world, "k")
        world.link("n").heal()
        return await world.store("n").get("k")

    assert outcome(world, main) is None


def test_a_partition_hangs_until_the_timeout_and_heals(world: World) -> None:
    world.link("n").partition()

    async def main() -> float:
        with pytest.raises(Unavailable):
            await put(world, "k")
        assert world.loop.time() == 5.0
        world.link("n").heal()
        await put(world, "k")
        return world.loop.time()

    assert 5.0 < float(str(outcome(world, main))) < 5.1


def test_a_request_outlives_its_sender(world: World) -> None:
    world.link("n").latency_s = (1.0, 1.0)
    world.spawn("n", lambda: put(world, "k"))
    world.at(0.5, lambda: world.crash("n"))
    world.run(10)
    assert world.backend.revision == 2
    assert not any("n#1" in line for line in world.lines)


@pytest.mark.parametrize("disturb", ["partition", "reset"])
def test_a_watch_sees_each_change_once_whatever_the_link_does(world: World, disturb: str) -> None:
    seen: list[int] = []

    async def watch() -> None:
        async for batch in world.store("n").watch("k", after_revision=0):
            seen.extend(change.revision for change in batch)

    async def write() -> None:
        for number in range(100):
            await world.store("w").commit([], [Put(f"k{number}", b"")])
            await asyncio.sleep(0.1)

    world.spawn("n", watch)
    world.spawn("w", write)
    link = world.link("n")
    for second in range(1, 10):
        world.at(second, getattr(link, disturb))
        world.at(second + 0.4, link.heal)
    world.at(1.35, lambda: seen.append(-1))
    world.at(1.4, lambda: seen.append(-2))
    world.run(20)
    assert [revision for revision in seen if revision > 0] == list(range(2, 102))
    if disturb == "partition":
        assert seen.index(-1) + 1 == seen.index(-2)


def test_a_watch_that_lags_knows_less_than_a_read(world: World) -> None:
    told: dict[int, float] = {}
    world.link("n").impair(Impairment(lag_s=3.0))

    async def watch() -> None:
        async for batch in world.store("n").watch("k", after_revision=0):
            told[batch[-1].revision] = world.loop.time()

    async def write_and_read() -> bool:
        await put(world, "k")
        return await world.store("n").get("k") is not None and world.loop.time() < 0.1 and not told

    world.spawn("n", watch)
    assert outcome(world, write_and_read)
    assert list(told) == [2]
    assert 3.0 < told[2] < 3.1


def test_a_watch_that_slept_through_a_compaction_says_so(world: World) -> None:
    async def watch() -> None:
        with pytest.raises(Compacted):
            async for _ in world.store("n").watch("k", after_revision=1):
                pass
        world.trace("compacted")

    async def write() -> None:
        for _ in range(10):
            await world.store("w").commit([], [Put("k", b"")])

    world.spawn("n", watch)
    world.at(1, world.link("n").partition)
    world.at(2, lambda: world.spawn("w", write))
    world.at(5, lambda: world.backend.compact(8))
    world.at(6, world.link("n").heal)
    world.run(10)
    assert world.lines[-1].endswith("compacted")


@pytest.mark.parametrize("end", ["crash", "close", "break"])
def test_watches_leave_nothing_at_the_store(world: World, end: str) -> None:
    async def watch() -> None:
        store = world.store("n")
        if end == "close":
            world.at(3, lambda: world.spawn("n", store.close))
        stream = store.watch("", after_revision=0)
        try:
            async for _ in stream:
                if end == "break":
                    break
        except Unavailable:
            world.trace("closed")
        await stream.aclose()

    world.spawn("n", watch)
    world.at(1, lambda: world.spawn("w", lambda: put(world, "k")))
    if end == "crash":
        world.at(3, lambda: world.crash("n"))
    world.at(0.5, lambda: world.trace(f"watchers {world.backend.watchers}"))
    world.run(10)
    assert world.lines[0].endswith("watchers 1")
    assert world.backend.watchers == 0


@pytest.mark.parametrize("outage", [False, True])
def test_a_lease_ends_unless_there_is_no_leader(world: World, outage: bool) -> None:
    async def main() -> object:
        store = world.store("n")
        lease = await store.grant(10)
        await store.commit([], [Put("k", b"", lease)])
        await asyncio.sleep(39)
        return await store.renew(lease)

    if outage:
        world.at(5, lambda: world.store_outage(True))
        world.at(35, lambda: world.store_outage(False))
        assert outcome(world, main, 40) == 10
        assert not any("del k" in line for line in world.lines)
    else:
        with pytest.raises(LeaseNotFound):
            outcome(world, main)
        assert any("10.0" in line and "del k" in line for line in world.lines)


def test_without_a_leader_the_store_refuses_and_nodes_still_reach_each_other(world: World) -> None:
    async def main() -> object:
        with pytest.raises(Unavailable):
            await put(world, "k")
        return await world.call("n", "server", lambda: asyncio.sleep(1, "answer"))

    world.spawn("server", lambda: asyncio.sleep(0))
    world.store_outage(True)
    assert outcome(world, main) == "answer"
    assert world.backend.revision == 1


def test_power_takes_all_processes_of_a_machine(world: World) -> None:
    async def main() -> None:
        await asyncio.sleep(1000)

    powered: list[tuple[str, bool]] = []
    world.on_power.append(lambda machine, on: powered.append((machine, on)))
    for node in ("h1/agent", "h1/guard", "h2/agent"):
        world.add(node, main, domain=node[:2], restart_s=1.0)
        world.start(node)
    world.at(5, lambda: world.power_cut("h1"))
    world.at(6, lambda: world.start("h1/agent"))  # no power, no start
    world.at(9, lambda: world.power_on("h1"))
    world.run(20)
    numbers = {
        node: life.number for node in ("h1/agent", "h1/guard", "h2/agent") if (life := world.loop.incarnation(node))
    }
    assert numbers == {"h1/agent": 2, "h1/guard": 2, "h2/agent": 1}
    assert powered == [("h1", False), ("h1", True)]


def test_a_call_runs_as_the_server_and_dies_with_it(world: World) -> None:
    async def work() -> str:
        await asyncio.sleep(3)
        return str(world.loop.current())

    async def main() -> list[str]:
        answers = [await world.call("n", "server", work)]
        world.after(1, lambda: world.crash("server"))
        with pytest.raises(ConnectionError):
            await world.call("n", "server", work)
        with pytest.raises(ConnectionError):
            await world.call("n", "server", work)
        return answers

    world.spawn("server", lambda: asyncio.sleep(0))
    assert outcome(world, main) == ["server#1"]


def test_plans_are_bounded_and_of_every_kind() -> None:
    mix = Mix(most=30, quiet_s=50)
    kinds = set()
    for seed in range(100):
        made = [
            make_plan(
                Random(seed), until_s=400, nodes=["s1", "h1/agent"], machines=["h1", "h2"], replicas=["s1"], mix=mix
            )
            for _ in range(2)
        ]
        plan = made[0]
        assert plan == made[1]
        assert len(plan) <= 30
        assert sum(fault.duration_s is None for fault in plan) <= mix.most_lost
        assert all(fault.at_s + (fault.duration_s or 0) <= 350 for fault in plan)
        kinds |= {fault.kind for fault in plan}
    assert kinds == set(Kind)


def test_a_plan_stands_in_the_trace(world: World) -> None:
    async def main() -> None:
        await asyncio.sleep(1000)

    world.add("n", main)
    world.start("n")
    plan = make_plan(Random(3), until_s=300, nodes=["n"], machines=["n"])
    assert plan
    apply_plan(world, plan)
    world.run(300)
    assert sum("plan: " in line for line in world.lines) == len(plan) + 1
    assert sum(": fault " in line for line in world.lines) == len(plan)
