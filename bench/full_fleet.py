"""A large cluster in etcd, as agents, users and a leader would have left it: every GPU in use but one, and a queue.

Each job of one GPU has a name, an environment and labels of its own, and each GPU an identity: nothing is alike that
would not be in life. The first job that waits fits the one GPU that is free; the others fit nowhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import islice

from gpupool.store import keys
from gpupool.store.port import Op, Put, Store
from gpupool.v1 import inventory_pb2, job_pb2, records_pb2

from .fleet import CORES, IMAGE, MODEL, NODES, UNITS, inventory, unit_id

OPS, PIPELINED = 120, 4
LEASE_S = 7200  # of all sessions: to write all this takes minutes on a busy machine
CPUS, MEMORY_MIB = 8, 64 * 1024
SHAPES = 50  # among the jobs that fit nowhere
_STARTED_S = 1_700_000_000.0


def name(number: int) -> str:
    return f"h{number:05}"


def job_id(number: int) -> str:
    """As long as real ones."""
    return f"j{number:013d}"


async def write(store: Store, hosts: int, jobs: int) -> int:
    """Write it all; returns how many keys there are."""
    lease = await store.grant(LEASE_S)
    written = 0
    sessions: dict[int, int] = {}
    for first in range(0, hosts, OPS):
        block = range(first, min(hosts, first + OPS))
        done = await store.commit([], [Put(keys.session(name(n)), _session(n), lease) for n in block])
        sessions.update(dict.fromkeys(block, done.revision))
        written += len(block)
    ops = _ops(sessions, hosts, jobs)
    counts = await asyncio.gather(*(_write(store, ops) for _ in range(PIPELINED)))
    return written + sum(counts)


async def _write(store: Store, ops: Iterator[Op]) -> int:
    written = 0
    while batch := list(islice(ops, OPS)):  # shared: each worker takes the next
        assert (await store.commit([], batch)).succeeded
        written += len(batch)
    return written


def _ops(sessions: dict[int, int], hosts: int, jobs: int) -> Iterator[Op]:
    last = hosts * UNITS - 1  # its GPU is free
    for number in range(hosts):
        yield from _host(number, sessions[number])
    for number in range(jobs):
        fits_nowhere = number > last
        spec = _spec(number, shape=(number % SHAPES) + 1 if fits_nowhere else 0)
        record = records_pb2.JobRecord(spec=spec, submitted_s=_STARTED_S, idempotency_key=f"key-{number}")
        yield Put(keys.job_spec(job_id(number)), record.SerializeToString(deterministic=True))
        host, unit = divmod(number, UNITS)
        placed = number < last
        yield Put(keys.job_status(job_id(number)), _status(host, unit, placed=placed))
        if placed:
            yield from _vm(number, host, unit, sessions[host], spec)
        elif not fits_nowhere:
            report = records_pb2.UnitReport(state=records_pb2.UNIT_STATE_FREE, session=sessions[host], proof="flr")
            yield Put(keys.unit(name(host), unit_id(unit)), report.SerializeToString())


def _session(number: int) -> bytes:
    record = records_pb2.Session(
        boot_id=f"boot-{name(number)}", address=f"{name(number)}:50251", ttl_s=LEASE_S, started_s=1.0,
        guard=records_pb2.GUARD_KIND_SOFT, simulated=True, vms_found_dead=True, nonce=f"nonce-{number}",
    )  # fmt: skip
    return record.SerializeToString()


def _host(number: int, session: int) -> Iterator[Op]:
    wire = inventory(session)
    for unit in wire.units:
        unit.identity = f"10de-20b2 {number:08x}-{unit.id}"
    yield Put(keys.inventory(name(number)), wire.SerializeToString())
    record = records_pb2.HostRecord(
        state=records_pb2.HOST_STATE_READY, session=session, boot_id=f"boot-{name(number)}", simulated=True,
        guard=records_pb2.GUARD_KIND_SOFT, since_s=_STARTED_S, boot_s=_STARTED_S,
    )  # fmt: skip
    yield Put(keys.host(name(number)), record.SerializeToString())


def _spec(number: int, shape: int) -> job_pb2.JobSpec:
    """`shape` 0: it fits a host; else it is of one of those that fit nowhere now."""
    gpus = UNITS if shape else 1
    return job_pb2.JobSpec(
        name=f"train-{number}", image=IMAGE, command=["python3", "/opt/train.py", f"--run={number}"],
        cpus=CPUS, memory_mib=MEMORY_MIB + 1024 * shape, gpus=job_pb2.GpuRequest(count=gpus, model=MODEL),
        env={"RANK": "0", "RUN": str(number)}, labels={"team": f"t{number % 40}"},
    )  # fmt: skip


def _status(host: int, unit: int, *, placed: bool) -> bytes:
    wire = job_pb2.JobStatus(state=job_pb2.JOB_STATE_PENDING, submitted_s=_STARTED_S, message="submitted")
    if placed:
        wire.state, wire.attempt_count, wire.message = job_pb2.JOB_STATE_RUNNING, 1, f"runs on {name(host)}"
        wire.attempts.add(
            number=1, host=name(host), units=[unit_id(unit)], created_s=_STARTED_S, started_s=_STARTED_S + 9
        )
    return wire.SerializeToString()


def _vm(number: int, host: int, unit: int, session: int, spec: job_pb2.JobSpec) -> Iterator[Op]:
    """Allocation, report and unit of a job that runs on that unit."""
    node, place = unit % NODES, unit // NODES
    first = node * CORES + place * CPUS // 2
    cores = [inventory_pb2.CpuCore(threads=[2 * core, 2 * core + 1]) for core in range(first, first + CPUS // 2)]
    allocation = records_pb2.Allocation(
        id=f"{job_id(number)}.1", job=job_id(number), attempt=1, host=name(host), session=session,
        units=[unit_id(unit)], unit_identities=[f"10de-20b2 {host:08x}-{unit_id(unit)}"], numa_nodes=[node],
        pci_addresses=[unit_id(unit)], cores=cores, memory_mib=MEMORY_MIB, memory_mib_per_node=[MEMORY_MIB], spec=spec,
        desired=records_pb2.DESIRED_RUN, created_s=_STARTED_S, session_nonce=f"nonce-{host}",
    )  # fmt: skip
    yield Put(keys.allocation(name(host), allocation.id), allocation.SerializeToString())
    vm = records_pb2.VmReport(
        session=session, state=records_pb2.ALLOCATION_STATE_RUNNING, started_s=_STARTED_S + 9,
        vm_started_s=_STARTED_S + 4,
    )  # fmt: skip
    yield Put(keys.vm(name(host), allocation.id), vm.SerializeToString())
    report = records_pb2.UnitReport(state=records_pb2.UNIT_STATE_HELD, session=session, allocation=allocation.id)
    yield Put(keys.unit(name(host), unit_id(unit)), report.SerializeToString())
