"""Toy processes for the engine's own tests: a counter that several nodes raise in one store, under faults."""

from __future__ import annotations

import asyncio
from functools import partial

from gpupool.store.port import Compacted, Put, Unavailable, Unmodified
from tests.sim.faults import Mix, apply_plan, make_plan
from tests.sim.world import World

NODES = ("n1", "n2", "n3")
UNTIL_S = 300.0


def scenario(world: World) -> None:
    """Three nodes raise one counter and watch it; power, network and processes fail by the seed."""
    for node in NODES:
        world.add(node, partial(_main, world, node), domain=f"m-{node}", restart_s=1.0)
        world.start(node)
    machines = [f"m-{node}" for node in NODES]
    apply_plan(world, make_plan(world.rng("faults"), until_s=UNTIL_S, nodes=NODES, machines=machines, mix=Mix(most=20)))
    world.run(UNTIL_S)


async def _main(world: World, node: str) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(_count(world, node))
        group.create_task(_follow(world, node))


async def _count(world: World, node: str) -> None:
    store, rng = world.store(node), world.rng(f"pace {node}")
    while True:
        try:
            old = await store.get("counter")
            value = int(old.value) + 1 if old else 1
            guard = Unmodified("counter", old.mod_revision if old else 0)
            done = await store.commit([guard], [Put("counter", b"%d" % value)])
            world.trace(f"{value} {'done' if done.succeeded else 'conflict'}")
        except Unavailable as exc:
            world.trace(f"unavailable: {exc}")
        await asyncio.sleep(rng.uniform(0.1, 2.0))


async def _follow(world: World, node: str) -> None:
    revision = 0
    while True:
        try:
            async for batch in world.store(node).watch("counter", after_revision=revision):
                world.trace(f"saw {[change.revision for change in batch]}")
                revision = batch[-1].revision
        except Compacted as exc:
            world.trace(f"compacted: {exc}")
            revision = exc.compact_revision
