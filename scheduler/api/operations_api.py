"""What operators ask to see: hosts, units, failovers, events; and the retry of a unit. Answered by any replica.

What they want of hosts is in `host_intents`, of all together in `cluster_intents`. Nothing here changes a state itself.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Iterable
from operator import itemgetter

import grpc

from gpupool.store import keys
from gpupool.store.keys import Kind
from gpupool.store.port import Put, Store
from gpupool.v1 import inventory_pb2, job_pb2, records_pb2, scheduler_pb2

from ..core.failover import quarantine
from ..core.state.policy import Policy
from ..core.state.skew import answers
from ..mirror.mirror import EVENTS_KEPT, Mirror
from ..mirror.subscribe import Subscription
from ..policy_told import differences
from .cluster_dump import ClusterDump
from .cluster_intents import ClusterIntents
from .failover_plan import FailoverPlans
from .host_intents import HostIntents
from .intents import ApiError
from .provable import not_its_own, powered_unknown, unprovable
from .queue_intents import QueueIntents

_Used = defaultdict[str, list[records_pb2.Allocation]]  # by host


class OperationsApi:
    """See the module docstring."""

    def __init__(
        self,
        store: Store,
        mirror: Mirror,
        *,
        replica: str,
        version: str,
        wall: Callable[[], float],
        policy: Policy | None = None,
    ) -> None:
        self._store = store
        self._mirror = mirror
        self._replica = replica
        self._version = version
        self._wall = wall
        self._policy = policy or Policy()
        self.host_intents = HostIntents(store, mirror, self.host, wall)
        self.cluster_intents = ClusterIntents(store, mirror, wall)
        self.queues = QueueIntents(store, mirror, policy or Policy(), wall)
        self.dump = ClusterDump(mirror, policy or Policy(), version, wall)
        self.plans = FailoverPlans(mirror, policy or Policy(), self.host, wall)

    def cluster(self) -> scheduler_pb2.Cluster:
        """A summary."""
        units = self.units("")
        hosts = self._mirror.all(Kind.HOST, records_pb2.HostRecord)
        ready = {ids[0] for ids, host in hosts.items() if host.state == records_pb2.HOST_STATE_READY}
        states = Counter(map(self._mirror.state_of, self._mirror.jobs()))
        leader = self._mirror.get(Kind.LEADER, records_pb2.Leader)
        return scheduler_pb2.Cluster(
            leader=leader,
            replica=self._replica,
            version=self._version,
            hosts=len(hosts),
            hosts_ready=len(ready),
            units=len(units),
            units_free=sum(u.state == records_pb2.UNIT_STATE_FREE and u.host in ready for u in units),
            jobs=dict(sorted((_state_name(state), count) for state, count in states.items())),
            revision=self._mirror.revision,
            record=self._mirror.get(Kind.CLUSTER, records_pb2.ClusterRecord),
            intent=self._mirror.get(Kind.CLUSTER_INTENT, records_pb2.ClusterIntent),
            reservation=self.plans.reservation(),
            unprovable=unprovable(self._mirror, self._policy),
            powered_unknown=powered_unknown(self._mirror, self._policy),
            policy_differs=differences(self._policy, self._replica, leader or records_pb2.Leader()),
        )

    # Hosts and units

    def hosts(self) -> list[scheduler_pb2.Host]:
        """Every known host, by name."""
        kinds = (Kind.HOST, Kind.SESSION, Kind.INVENTORY)
        names = {ids[0] for kind in kinds for ids in self._mirror.ids(kind)}
        used = self._used()
        return [self._host(name, used) for name in sorted(names)]

    def host(self, name: str) -> scheduler_pb2.Host:
        """One host. ApiError NOT_FOUND."""
        return self._host(name, self._used(name))

    def _host(self, name: str, used: _Used) -> scheduler_pb2.Host:
        mirror = self._mirror
        record = mirror.get(Kind.HOST, records_pb2.HostRecord, name)
        session = mirror.get(Kind.SESSION, records_pb2.Session, name)
        inventory = mirror.get(Kind.INVENTORY, inventory_pb2.Inventory, name)
        if record is None and session is None and inventory is None:
            known = ", ".join(sorted({ids[0] for ids in mirror.ids(Kind.HOST)})) or "none"
            raise ApiError(grpc.StatusCode.NOT_FOUND, f"no host {name!r}; known hosts: {known}")
        units = self._units(name, used)
        return scheduler_pb2.Host(
            name=name,
            record=record,
            session=session,
            intent=mirror.get(Kind.HOST_INTENT, records_pb2.HostIntent, name),
            inventory=inventory,
            units_total=len(units),
            units_free=sum(u.state == records_pb2.UNIT_STATE_FREE for u in units),
            vms=len(used[name]),
            vms_stopping=sum(self._stopping(allocation) for allocation in used[name]),
            ordered_drain=self._ordered_drain(inventory, units),
            power_not_its_own=not_its_own(name, record, self._policy) if record is not None else "",
        )

    def _ordered_drain(self, inventory: inventory_pb2.Inventory | None, units: list[scheduler_pb2.UnitView]) -> str:
        if not self._policy.drain_on_quarantine or inventory is None:
            return ""
        present = {unit.id for unit in inventory.units}
        bad = (view.unit.id for view in units if view.report.state == records_pb2.UNIT_STATE_QUARANTINED)
        return quarantine.reason(present.intersection(bad))

    def _stopping(self, allocation: records_pb2.Allocation) -> bool:
        report = self._mirror.get(Kind.VM, records_pb2.VmReport, allocation.host, allocation.id)
        ended = report is not None and report.state == records_pb2.ALLOCATION_STATE_ENDED
        return allocation.desired == records_pb2.DESIRED_STOP and not ended

    def units(self, host: str) -> list[scheduler_pb2.UnitView]:
        """Units of one host, or of all ("")."""
        used = self._used(host)
        hosts = [host] if host else sorted(ids[0] for ids in self._mirror.ids(Kind.INVENTORY))
        return [view for name in hosts for view in self._units(name, used)]

    def _used(self, host: str = "") -> _Used:
        """Allocations by host: of one host, or of all ("")."""
        of = records_pb2.Allocation
        found = self._mirror.of_host(Kind.ALLOCATION, of, host) if host else self._mirror.all(Kind.ALLOCATION, of)
        used: _Used = defaultdict(list)
        for allocation in found.values():
            used[allocation.host].append(allocation)
        return used

    def _units(self, host: str, used: _Used) -> list[scheduler_pb2.UnitView]:
        inventory = self._mirror.get(Kind.INVENTORY, inventory_pb2.Inventory, host)
        held = {unit: allocation.id for allocation in used[host] for unit in allocation.units}
        present = list(inventory.units) if inventory else []
        return [self._unit(host, unit, held.get(unit.id, "")) for unit in (*present, *self._absent(host, present))]

    def _absent(self, host: str, present: Iterable[inventory_pb2.Unit]) -> list[inventory_pb2.Unit]:
        """Units that are quarantined and not there now: their agent remembers them, in case they come back."""
        known = {unit.id for unit in present}
        reports = self._mirror.of_host(Kind.UNIT, records_pb2.UnitReport, host)
        return [
            inventory_pb2.Unit(id=unit, identity=report.identity, numa_node=-1, unfit="it is not on this host now")
            for (_, unit), report in sorted(reports.items(), key=itemgetter(0))
            if unit not in known and report.state == records_pb2.UNIT_STATE_QUARANTINED
        ]

    def _unit(self, host: str, unit: inventory_pb2.Unit, allocation: str) -> scheduler_pb2.UnitView:
        report = self._mirror.get(Kind.UNIT, records_pb2.UnitReport, host, unit.id)
        record = self._mirror.get(Kind.HOST, records_pb2.HostRecord, host)
        current = report is not None and record is not None and report.session == record.session
        state = report.state if report is not None and current else records_pb2.UNIT_STATE_DIRTY
        if allocation and state == records_pb2.UNIT_STATE_FREE:
            state = records_pb2.UNIT_STATE_HELD
        bad = bool(unit.unfit or (report is not None and current and report.sick))
        if bad and state in (records_pb2.UNIT_STATE_FREE, records_pb2.UNIT_STATE_DIRTY) and not allocation:
            state = records_pb2.UNIT_STATE_UNSPECIFIED  # no way leads from here to a job, so no state promises one
        return scheduler_pb2.UnitView(
            host=host, unit=unit, state=state, allocation=allocation, report=report, current=current
        )

    # Failovers

    def failovers(self, request: scheduler_pb2.ListFailoversRequest) -> scheduler_pb2.ListFailoversResponse:
        """Past losses of hosts, newest first. ApiError NOT_FOUND for a host that is not known."""
        if request.host:
            self.host(request.host)
        known = self._mirror.all(Kind.FAILOVER, records_pb2.FailoverRecord)
        found = [record for ids, record in sorted(known.items()) if request.host in ("", ids[0])]
        found.sort(key=lambda record: (-record.fence.fenced_s, record.host, record.fence.session))
        return scheduler_pb2.ListFailoversResponse(failovers=found[: request.last] if request.last else found)

    # Units

    async def retry_unit(self, request: scheduler_pb2.RetryUnitRequest) -> scheduler_pb2.UnitView:
        """Ask the agent to reset and prove a quarantined unit once more."""
        view = self._find_unit(request.host, request.unit)
        if view.state != records_pb2.UNIT_STATE_QUARANTINED:
            state = records_pb2.UnitState.Name(view.state).removeprefix("UNIT_STATE_")
            if view.state == records_pb2.UNIT_STATE_UNSPECIFIED:
                state = f"unfit ({view.unit.unfit or view.report.sick})"
            raise ApiError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"unit {request.unit} of {request.host} is {state}; only a QUARANTINED unit is tried again",
            )
        asked_s = answers(view.report.since_s)  # by the agent's clock, which it is compared with
        intent = records_pb2.UnitIntent(retry_requested_s=asked_s, by=request.by, reason=request.reason)
        put = Put(keys.unit_intent(request.host, request.unit), intent.SerializeToString())
        done = await self._store.commit([], [put])
        await self._mirror.reached(done.revision)
        return self._find_unit(request.host, request.unit)

    def _find_unit(self, host: str, unit: str) -> scheduler_pb2.UnitView:
        self.host(host)
        views = self.units(host)
        for view in views:
            if view.unit.id == unit:
                return view
        have = ", ".join(v.unit.id for v in views) or "none"
        raise ApiError(grpc.StatusCode.NOT_FOUND, f"host {host} has no unit {unit!r}; its units: {have}")

    # Events

    async def events(self, request: scheduler_pb2.WatchEventsRequest) -> AsyncGenerator[scheduler_pb2.Event, None]:
        """The kept events, then new ones as they come if `follow`. A reader too far behind loses the oldest."""
        with Subscription[str]() as news:
            fresh: deque[scheduler_pb2.Event] = deque(maxlen=EVENTS_KEPT)

            def tell(event: scheduler_pb2.Event) -> None:
                fresh.append(event)
                news.put("news")

            news.on_close(self._mirror.listen_events(tell))
            kept = list(self._mirror.history)
            for event in kept[-request.last :] if request.last else kept:
                yield event
            if not request.follow:
                return
            async for _ in news:
                while fresh:
                    yield fresh.popleft()


def _state_name(state: job_pb2.JobState.ValueType) -> str:
    return job_pb2.JobState.Name(state).removeprefix("JOB_STATE_")
