"""The engine itself, with toy coroutines: virtual time, order, pause, crash, refusal of real I/O."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from random import Random

import pytest

from tests.sim import toys
from tests.sim.loop import VirtualLoop
from tests.sim.nodes import DeadlockError, SimulationError
from tests.sim.world import SeedFailedError, World


@pytest.fixture
def world() -> Iterator[World]:
    with World(1, jitter=False) as made:
        yield made


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.close()


def said(world: World) -> list[str]:
    return [line.split(": ", 1)[1] for line in world.lines]


def test_time_jumps(loop: VirtualLoop) -> None:
    async def main() -> float:
        await asyncio.sleep(86_400)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await asyncio.Event().wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.get_running_loop().create_future(), 5)
        return loop.time()

    before = time.process_time()
    assert loop.run_until_complete(main()) == 86_415
    assert time.process_time() - before < 5


def test_queue_and_task_group_work(loop: VirtualLoop) -> None:
    async def main() -> list[int]:
        queue: asyncio.Queue[int] = asyncio.Queue(maxsize=1)
        async with asyncio.TaskGroup() as group:
            group.create_task(_feed(queue))
            return [await queue.get() for _ in range(3)]

    async def _feed(queue: asyncio.Queue[int]) -> None:
        for item in range(3):
            await asyncio.sleep(1)
            await queue.put(item)

    assert loop.run_until_complete(main()) == [0, 1, 2]
    assert loop.time() == 3


def test_timers_of_one_time_fire_in_order(loop: VirtualLoop) -> None:
    fired: list[int] = []
    for number in range(100):
        loop.call_at(5.0, fired.append, number)
    loop.run_to(5.0)
    assert fired == list(range(100))


def test_task_group_cancels_in_order_of_creation(world: World) -> None:
    async def sleeper(number: int) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            world.trace(f"{number} cancelled")

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(sleeper(number))
            await asyncio.sleep(1)
            raise ValueError

    async def caught() -> None:
        with pytest.raises(ExceptionGroup):
            await main()

    world.spawn("n", caught)
    world.run(10)
    assert said(world) == [f"{number} cancelled" for number in range(50)]


def test_deadlock_names_who_waits(loop: VirtualLoop) -> None:
    async def forgotten() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        await loop.start(loop.begin("n1"), forgotten(), name="the-task")

    with pytest.raises(DeadlockError, match=r"(?s)n1#1 \(running\) the-task: Event.wait \(locks.py"):
        loop.run_until_complete(main())


def test_livelock_is_noticed(loop: VirtualLoop) -> None:
    async def spin() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0)

    with pytest.raises(SimulationError, match="livelock"):
        loop.run_until_complete(spin())


def test_same_seed_same_bytes() -> None:
    first = _digests(range(6))
    assert _digests(range(6)) == first
    assert _digests([4]) == [first[4]]  # whatever ran before
    assert len(set(first)) == 6


def test_what_another_thread_logs_meanwhile_changes_no_bytes() -> None:
    """Threads of earlier tests may end late, and say so, above all on a busy machine."""
    due, said_it = threading.Event(), threading.Event()

    def left_behind() -> None:
        due.wait()
        logging.getLogger("agent.vms.calls").warning("a call that nobody waits for has ended")
        said_it.set()

    def let_it_speak() -> None:
        due.set()
        said_it.wait()

    thread = threading.Thread(target=left_behind)
    thread.start()
    with World(2) as world:
        world.at(5.0, let_it_speak)
        toys.scenario(world)
        disturbed = world.digest()
    thread.join()
    with World(2) as world:
        world.at(5.0, lambda: None)
        toys.scenario(world)
        assert world.digest() == disturbed


@pytest.mark.parametrize("hash_seed", ["1", "4242"])
def test_same_bytes_under_another_hash_seed(hash_seed: str) -> None:
    command = [sys.executable, "-m", "tests.sim", "--scenario", "tests.sim.toys:scenario", "--seed", "2"]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert printed.split()[-1] == _digests([2])[0]


def _digests(seeds: range | list[int]) -> list[str]:
    digests = []
    for seed in seeds:
        with World(seed) as world:
            toys.scenario(world)
            digests.append(world.digest())
    return digests


def test_jitter_reorders_nodes_but_not_within_one() -> None:
    orders = set()
    for seed in range(20):
        loop = VirtualLoop(jitter=Random(seed))
        fired: list[tuple[str, int]] = []
        lives = [loop.begin("a"), loop.begin("b")]
        for number in range(5):
            for life in lives:
                loop.call_in(life, fired.append, (life.name, number))
        loop.run_to(0)
        loop.close()
        for life in lives:
            assert [number for name, number in fired if name == life.name] == list(range(5))
        orders.add(tuple(name for name, _ in fired))
    assert len(orders) > 5


def test_pause_holds_and_resumes_in_order(world: World) -> None:
    inbox: asyncio.Queue[str] = asyncio.Queue()

    async def read() -> None:
        while True:
            world.trace(f"got {await inbox.get()}")

    async def tick(number: int) -> None:
        await asyncio.sleep(number)
        world.trace(f"tick {number}")

    world.spawn("n", read)
    for number in (3, 1, 2, 6):
        world.spawn("n", lambda number=number: tick(number))  # type: ignore[misc]
    world.at(0.5, lambda: world.pause("n"))
    world.at(2.5, lambda: inbox.put_nowait("a"))
    world.at(2.6, lambda: inbox.put_nowait("b"))
    world.at(5, lambda: world.resume("n"))
    world.run(10)
    # What arrived comes first, then the timers that were slept through, by the time at which they were due.
    assert said(world) == ["pause", "resume", "got a", "got b", "tick 1", "tick 2", "tick 3", "tick 6"]
    assert world.lines[2].lstrip().startswith("5.000000 ")


def test_crash_runs_no_cleanup(world: World) -> None:
    async def numbers() -> AsyncGenerator[int, None]:
        try:
            yield 1
            await asyncio.sleep(100)
        finally:
            world.trace("generator cleanup")

    async def main() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(100))
                async for _ in numbers():
                    world.trace("up")
        except BaseException:
            world.trace("except")
            raise
        finally:
            world.trace("finally")
            await asyncio.sleep(1)

    world.add("n", main)
    world.start("n")
    world.at(5, lambda: world.crash("n"))
    world.at(6, lambda: world.start("n"))
    world.at(7, lambda: world.crash("n"))
    world.run(200)
    world.close()
    assert said(world) == ["start", "up", "crash", "start", "up", "crash"]
    assert "n#2: up" in world.lines[4]


def test_an_abandoned_generator_is_closed_by_its_node(world: World) -> None:
    async def numbers() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            await asyncio.sleep(1)
            world.trace("cleanup")

    async def main() -> None:
        async for _ in numbers():
            break

    world.spawn("n", main)
    world.run(5)
    assert said(world) == ["cleanup"]
    assert "n#1" in world.lines[0]


def test_a_daemon_that_exits_is_started_again(world: World) -> None:
    async def nested() -> None:
        await asyncio.sleep(1)
        raise SystemExit(3)

    async def main() -> None:
        child = asyncio.create_task(nested())
        await child

    world.add("n", main, restart_s=2.0)
    world.start("n")
    world.run(5)
    assert said(world) == ["start", "exit: SystemExit 3", "start", "exit: SystemExit 3"]


def test_an_unexpected_exception_fails_the_run(world: World) -> None:
    async def main() -> None:
        await asyncio.sleep(1)
        raise ValueError("oops")

    world.add("n", main, restart_s=1.0)
    world.start("n")
    with pytest.raises(SeedFailedError, match=r"(?s)seed 1 failed at 1.0.*ValueError: oops.*--seed 1.*n#1: start"):
        world.run(5)


def test_an_exception_that_nobody_awaits_fails_the_run(world: World) -> None:
    async def bad() -> None:
        raise KeyError("lost")

    async def main() -> None:
        asyncio.create_task(bad())  # noqa: RUF006
        await asyncio.sleep(10)

    world.spawn("n", main)
    with pytest.raises(SeedFailedError, match="lost"):
        world.run(5)


def test_real_things_are_refused_even_if_the_error_is_swallowed(world: World) -> None:
    for attempt in (
        lambda: asyncio.open_connection("127.0.0.1", 1),
        lambda: asyncio.to_thread(time.sleep, 1),
        lambda: asyncio.to_thread(socket.socket),
        lambda: asyncio.create_subprocess_exec("true"),
    ):

        async def main(attempt: object = attempt) -> None:
            try:
                await attempt()  # type: ignore[operator]
            except Exception:  # noqa: BLE001
                world.trace("swallowed")

        with World(1) as other:
            other.spawn("n", main)
            with pytest.raises(SeedFailedError, match="no real I/O and no threads"):
                other.run(1)


def test_executor_runs_inline_or_after_its_delay() -> None:
    for delay_s in (None, (2.0, 2.0)):
        with World(1, executor_delay_s=delay_s) as world:

            async def main(world: World = world) -> None:
                world.trace(str(await asyncio.to_thread(sum, [1, 2])))
                with pytest.raises(ZeroDivisionError):
                    await asyncio.to_thread(divmod, 1, 0)

            world.spawn("n", main)
            world.run(10)
            assert world.lines == [f"{2 if delay_s else 0:12.6f} n#1: 3"]


def test_clocks_and_ids_are_the_seeds() -> None:
    def ids(seed: int) -> list[str]:
        with World(seed) as world:

            async def main() -> None:
                await asyncio.sleep(3)
                world.trace(f"{time.time()} {time.monotonic()} {uuid.uuid4()}")

            for until in (5, 10):  # the second run must not repeat the first one's randomness
                world.spawn("n", main)
                world.run(until)
            return world.lines

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)
    assert len({line.split()[-1] for line in ids(1)}) == 2


def test_a_violation_ends_the_run_with_a_report(world: World) -> None:
    store = world.store("n")

    async def main() -> None:
        from gpupool.store.port import Put  # noqa: PLC0415

        for number in range(60):
            await store.commit([], [Put("k", b"%d" % number)])

    world.checks.append(lambda: ["too many"] if world.backend.revision > 50 else [])
    world.spawn("n", main)
    with pytest.raises(SeedFailedError, match=r"(?s)InvariantError: too many.*store r51 put k") as caught:
        world.run(60)
    assert str(caught.value).count("\n") == 42


def test_a_hundred_thousand_timers_are_quick(loop: VirtualLoop) -> None:
    async def sleeper(rounds: int) -> None:
        for _ in range(rounds):
            await asyncio.sleep(1)

    async def main() -> None:
        await asyncio.gather(*(sleeper(1000) for _ in range(100)))

    before = time.process_time()
    loop.run_until_complete(main())
    assert loop.time() == 1000
    assert time.process_time() - before < 10  # about one second; the rest is for a slow machine
