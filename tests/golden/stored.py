"""A cluster as etcd would hold it: what the leader wrote, through the real encoder, and the facts that others wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields

from google.protobuf.message import Message

from gpupool.store import keys
from gpupool.store.port import KeyValue
from gpupool.v1 import inventory_pb2, job_pb2, records_pb2
from scheduler.codec import encode
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.events import VmReported
from scheduler.core.state.facts import HostIntent, JobIntent, SessionFact
from scheduler.core.state.hosts import Host
from scheduler.core.state.jobs import Job
from tests.golden.queued import wire_queue, wire_terms
from tests.golden.ruled import as_asked, functions


def stored(cluster: Cluster, reports: dict[str, VmReported], said: Mapping[str, SessionFact] = {}) -> list[KeyValue]:
    """Everything under the root, for `scheduler.load`. `said`: by each host's last session."""
    items: list[KeyValue] = []

    def put(key: str, message: Message, revision: int = 1) -> None:
        items.append(KeyValue(key, message.SerializeToString(deterministic=True), revision, revision))

    for job in cluster.jobs.values():
        put(keys.job_spec(job.id), records_pb2.JobRecord(spec=spec_of(job), submitted_s=job.submitted_s), job.arrival)
        put(keys.job_status(job.id), encode.status(job))
        if job.intent != JobIntent():
            wanted = {field.name: getattr(job.intent, field.name) for field in fields(job.intent)}
            put(keys.job_intent(job.id), records_pb2.JobIntent(**wanted))
    for allocation in cluster.allocations.values():
        host = cluster.hosts[allocation.host]
        record = records_pb2.JobRecord(spec=spec_of(cluster.jobs[allocation.job]))
        value = encode.allocation(allocation, host, record.SerializeToString())
        items.append(KeyValue(keys.allocation(host.name, allocation.id), value, 1, 1))
    for host in cluster.hosts.values():
        put(keys.host(host.name), encode.host_record(host))
        put(keys.host_intent(host.name), _intent(host.intent))
        for key, message, revision in _facts(host):
            put(key, message, revision)
    for name, fact in said.items():
        word = records_pb2.GuardRecord(guard=_guard(fact), unguarded=fact.unguarded, machine=fact.machine)
        put(keys.guard(name), word, fact.session)
    for name, queue in cluster.books.queues.known.items():
        put(keys.queue(name), wire_queue(queue))
    put(keys.SHARES, encode.shares(cluster))
    put(keys.CLUSTER, encode.cluster_record(cluster))
    wanted = {field.name: getattr(cluster.intent, field.name) for field in fields(cluster.intent)}
    put(keys.CLUSTER_INTENT, records_pb2.ClusterIntent(**wanted))
    for (name, session), failover in cluster.failovers.items():
        put(keys.failover(name, session), encode.failover(failover))
    for event in reports.values():
        put(keys.vm(event.host, event.allocation), _report(event))
    return items


def spec_of(job: Job) -> job_pb2.JobSpec:
    request = job.request
    spec = job_pb2.JobSpec(
        image=request.image,
        command=["true"],
        gpus=job_pb2.GpuRequest(count=request.gpus, model=request.model, memory_mib=request.gpu_memory_mib),
        cpus=request.cpus,
        memory_mib=request.memory_mib,
        numa=job_pb2.NumaPolicy.Value(f"NUMA_POLICY_{request.numa.value}"),
        priority=job.priority,
        vm=job_pb2.VmOptions(hugepage_size_kib=request.hugepage_size_kib),
        restart=job_pb2.RestartPolicy(
            max_restarts=job.max_restarts,
            max_start_failures=job.max_start_failures,
            priority=job.restart_priority,
            after=job.after,
            max_host_deaths=job.max_host_deaths,
        ),
        name=job.name,
        **wire_terms(job.terms),
        labels=dict(job.labels),
        placement=job_pb2.Placement(max_failures_per_host=job.max_failures_per_host),
    )
    if request.rules is not None:
        as_asked(spec, request.rules)
    return spec


def _intent(intent: HostIntent) -> records_pb2.HostIntent:
    drain = intent.drain
    return records_pb2.HostIntent(
        cordoned=intent.cordoned,
        reason=intent.reason,
        confirmed_dead_session=intent.confirmed_dead_session,
        confirmed_by=intent.confirmed_by,
        confirmed_reason=intent.confirmed_reason,
        maintenance=intent.maintenance,
        maintenance_reason=intent.maintenance_reason,
        uncordoned_s=intent.uncordoned_s,
        drain=None
        if drain is None
        else records_pb2.Drain(
            at_s=drain.at_s,
            by=drain.by,
            reason=drain.reason,
            grace_s=drain.grace_s,
            at_once=drain.at_once,
            wait=drain.wait,
            paused=drain.paused,
        ),
    )


def _guard(fact: SessionFact) -> records_pb2.GuardKind.ValueType:
    name = fact.guard.value if fact.guard.value != "NONE" else "UNSPECIFIED"
    return records_pb2.GuardKind.Value(f"GUARD_KIND_{name}")


def _facts(host: Host) -> Iterator[tuple[str, Message, int]]:
    if host.fact is not None:
        fact = host.fact
        session = records_pb2.Session(
            boot_id=fact.boot_id,
            guard=_guard(fact),
            simulated=fact.simulated,
            vms_found_dead=fact.vms_found_dead,
            nonce=fact.nonce,
            unguarded=fact.unguarded,
            ttl_s=fact.ttl_s,
            machine=fact.machine,
        )
        yield keys.session(host.name), session, fact.session
    if host.inventory is not None:
        found = host.inventory
        inventory = inventory_pb2.Inventory(
            session=found.session, images=sorted(found.images), labels=dict(found.labels)
        )
        for unit in found.units:
            inventory.units.add(
                id=unit.id, model=unit.model, gpu_memory_mib=unit.memory_mib, numa_node=unit.node, unfit=unit.unfit,
                identity=unit.identity,
                functions=functions(unit), nic_locality=unit.nic,
            )  # fmt: skip
        for node, cores, memory_mib in found.nodes:
            wire = [inventory_pb2.CpuCore(threads=core) for core in cores]
            pages = [
                inventory_pb2.Hugepages(size_kib=p.size_kib, total=p.total, free=p.free)
                for p in found.hugepages
                if p.node == node
            ]
            inventory.numa_nodes.add(id=node, cores=wire, memory_mib=memory_mib, hugepages=pages)
        yield keys.inventory(host.name), inventory, 1
    for unit_id, report in host.reports.items():
        state = records_pb2.UnitState.Value(f"UNIT_STATE_{report.state.value}")
        wire_report = records_pb2.UnitReport(
            state=state, session=report.session, allocation=report.allocation, reason=report.reason, sick=report.sick
        )
        yield keys.unit(host.name, unit_id), wire_report, 1


def _report(event: VmReported) -> records_pb2.VmReport:
    wire = records_pb2.VmReport(
        state=records_pb2.AllocationState.Value(f"ALLOCATION_STATE_{event.state.value}"),
        session=event.session,
        message=event.message,
        started_s=event.started_s,
        ended_s=event.ended_s,
        warnings=event.warnings,
    )
    if event.outcome is not None:
        wire.outcome = job_pb2.Outcome.Value(f"OUTCOME_{event.outcome.value}")
    if event.exit_code is not None:
        wire.exit_code = event.exit_code
    return wire
