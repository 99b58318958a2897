"""What operators want, and what is held back, is told once, with who and why; and that a drain is done."""

from __future__ import annotations

import asyncio

from gpupool.store import keys
from gpupool.store.port import Delete, Put
from gpupool.v1 import job_pb2, records_pb2
from scheduler.mirror.mirror import Mirror
from tests.fakes.pool import Pool, wall
from tests.fakes.virtual_time import virtual_time


async def history(pool: Pool, *steps: Put | Delete) -> list[str]:
    """What a mirror that sees these writes, one after the other, tells."""
    mirror = Mirror(pool.store, wall)
    task = asyncio.create_task(mirror.run())
    await mirror.synced.wait()
    for step in steps:
        await mirror.reached((await pool.store.commit([], [step])).revision)
    task.cancel()
    return [f"{e.kind} {e.subject}: {getattr(e, 'from')} -> {e.to} ({e.reason})" for e in mirror.history]


def intent(**fields: object) -> Put:
    return Put(keys.host_intent("h1"), records_pb2.HostIntent(**fields).SerializeToString())  # type: ignore[arg-type]


def draining(**fields: object) -> records_pb2.Drain:
    return records_pb2.Drain(by="ann", reason="new fans", **fields)  # type: ignore[arg-type]


@virtual_time
async def test_wishes_about_a_host() -> None:
    assert await history(
        Pool(),
        intent(cordoned=True, by="bob", reason="loud"),
        intent(cordoned=True, by="bob", reason="loud", confirmed_dead_session=3),  # no other wish
        intent(maintenance=True, maintenance_by="cid", by="bob"),
        intent(maintenance_by="dot", by="bob"),
    ) == [
        "host h1: OPEN -> CORDONED (bob: loud)",
        "host h1: CORDONED -> MAINTENANCE (cid)",
        "host h1: MAINTENANCE -> OPEN (dot)",
    ]


@virtual_time
async def test_a_drain_is_done_when_the_last_allocation_is_gone() -> None:
    pool = Pool()
    for each in ("a.1", "b.1"):
        await pool.put(Put(keys.allocation("h1", each), b""))
    await pool.put(Put(keys.allocation("h2", "c.1"), b""))
    assert await history(
        pool,
        intent(drain=draining(paused=True)),
        intent(drain=draining()),
        Delete(keys.allocation("h1", "a.1")),
        Delete(keys.allocation("h1", "b.1")),
        Delete(keys.allocation("h2", "c.1")),
        intent(by="bob"),
    ) == [
        "host h1: OPEN -> TO BE DRAINED (ann: new fans)",
        "host h1: TO BE DRAINED -> DRAINING (ann: new fans)",
        "host h1: DRAINING -> DRAINED (no VM is left)",
        "host h1: DRAINING -> OPEN (bob)",
    ]


@virtual_time
async def test_a_host_without_vms_is_drained_at_once_and_that_is_told_once() -> None:
    assert await history(Pool(), intent(drain=draining()), intent(drain=draining(grace_s=9))) == [
        "host h1: OPEN -> DRAINING (ann: new fans)",
        "host h1: DRAINING -> DRAINED (no VM is left)",
    ]


@virtual_time
async def test_what_holds_everything_up() -> None:
    brake = records_pb2.ClusterRecord(brake=records_pb2.Brake(reason="5 of 12 hosts were lost within 60 s"))
    disarmed = records_pb2.ClusterIntent(disarmed=True, by="ann", reason="new etcd disks")
    pending = job_pb2.JobStatus(state=job_pb2.JOB_STATE_PENDING)
    held = job_pb2.JobStatus(state=job_pb2.JOB_STATE_PENDING, hold="3 hosts died with it")
    out = records_pb2.HostRecord(held_out="lost 3 times within an hour")
    assert await history(
        Pool(),
        Put(keys.CLUSTER, brake.SerializeToString()),
        Put(keys.CLUSTER, records_pb2.ClusterRecord(settled_s=9.0).SerializeToString()),
        Put(keys.CLUSTER_INTENT, disarmed.SerializeToString()),
        Put(keys.CLUSTER_INTENT, records_pb2.ClusterIntent(by="ann").SerializeToString()),
        Put(keys.job_status("j"), pending.SerializeToString()),
        Put(keys.job_status("j"), held.SerializeToString()),
        Put(keys.job_status("j"), pending.SerializeToString()),
        Put(keys.host("h1"), records_pb2.HostRecord().SerializeToString()),
        Put(keys.host("h1"), out.SerializeToString()),
        Put(keys.host("h1"), records_pb2.HostRecord().SerializeToString()),
    ) == [
        "cluster restarts: FREE -> BRAKED (5 of 12 hosts were lost within 60 s)",
        "cluster restarts: BRAKED -> FREE ()",
        "cluster fencing: ARMED -> DISARMED (ann: new etcd disks)",
        "cluster fencing: DISARMED -> ARMED (ann)",
        "job j:  -> PENDING ()",
        "job j: FREE -> HELD (3 hosts died with it)",
        "job j: HELD -> FREE (released)",
        "host h1:  -> UNSPECIFIED (session 0)",
        "host h1: IN -> HELD OUT (lost 3 times within an hour)",
        "host h1: HELD OUT -> IN (let in again)",
    ]
