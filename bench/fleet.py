"""Hosts that are only records in etcd: sessions, inventories and clean units, as agents would have written them."""

from __future__ import annotations

from gpupool.store import keys
from gpupool.store.port import Op, Put, Store
from gpupool.v1 import inventory_pb2, records_pb2

UNITS, NODES, CORES = 8, 2, 32  # units a host; NUMA nodes a host; physical cores a node, of two threads
MEMORY_MIB = 512 * 1024  # a node
MODEL, IMAGE = "nvidia-a100-80gb", "debian-numpy"
LEASE_S = 600


def inventory(session: int) -> inventory_pb2.Inventory:
    """One host's: eight one-GPU units, four on each of two nodes."""
    made = inventory_pb2.Inventory(session=session, images=[IMAGE])
    for node in range(NODES):
        cores = [[2 * (node * CORES + core), 2 * (node * CORES + core) + 1] for core in range(CORES)]
        made.numa_nodes.add(
            id=node, memory_mib=MEMORY_MIB, cores=[inventory_pb2.CpuCore(threads=threads) for threads in cores]
        )
    for number in range(UNITS):
        function = inventory_pb2.PciFunction(
            address=unit_id(number), vendor_id=0x10DE, device_id=0x20B2, class_code=0x030200, driver="vfio-pci",
            iommu_group=number, numa_node=number % NODES, reset_methods=["flr", "bus"],
        )  # fmt: skip
        made.units.add(
            id=unit_id(number), functions=[function], model=MODEL, gpu_memory_mib=80 * 1024, numa_node=number % NODES
        )
    return made


def unit_id(number: int) -> str:
    """The address of a unit's only function."""
    return f"0000:{0x21 + number:02x}:00.0"


async def write_fleet(store: Store, hosts: int, first: int = 0) -> int:
    """READY hosts h0000.. (or from `first` on) with free units, for as long as one lease lasts, which is returned."""
    lease = await store.grant(LEASE_S)
    for number in range(first, first + hosts):
        name = f"h{number:04}"
        record = records_pb2.Session(
            boot_id=f"boot-{name}", address=f"{name}:50251", ttl_s=LEASE_S, guard=records_pb2.GUARD_KIND_SOFT,
            simulated=True, started_s=1.0, vms_found_dead=True,
        )  # fmt: skip
        session = (await store.commit([], [Put(keys.session(name), record.SerializeToString(), lease)])).revision
        report = records_pb2.UnitReport(state=records_pb2.UNIT_STATE_FREE, session=session, proof="flr")
        ops: list[Op] = [Put(keys.inventory(name), inventory(session).SerializeToString())]
        ops += [Put(keys.unit(name, unit_id(n)), report.SerializeToString()) for n in range(UNITS)]
        await store.commit([], ops)
    return lease
