"""Scenarios about demands: labels of hosts and jobs, and where units sit; and how such demands are stored."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gpupool.v1 import inventory_pb2, job_pb2
from scheduler.core.explain import explain
from scheduler.core.state import events
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.facts import InventoryFact, UnitFact
from scheduler.core.state.jobs import Job
from scheduler.core.state.rules import Labels, Nic, Rules, Within, meant

DEMANDS = frozenset(
    {
        "near",
        "apart",
        "labels",
        "models",
        "vendor",
        "driver",
        "within",
        "nic",
        "hosts",
        "not_hosts",
        "whole",
        "failures",
    }
)
VENDORS = {"nvidia": 0x10DE, "amd": 0x1002, "intel": 0x8086, "": 0}


def as_asked(spec: job_pb2.JobSpec, rules: Rules) -> None:
    """The demands, as a user would write them."""
    spec.gpus.models.extend(rules.models)
    spec.gpus.vendor, spec.gpus.driver = rules.vendor, rules.driver
    if rules.within is not Within.ANY:
        spec.gpus.within = job_pb2.GpuLocality.Value(f"GPU_LOCALITY_{rules.within.value}")
    spec.gpus.nic = rules.nic  # type: ignore[assignment] # the values are the same
    for where in ("hosts", "not_hosts", "near", "apart"):
        getattr(spec.placement, where).update(dict(getattr(rules, where)))
    spec.placement.whole_host = rules.whole_host


def functions(unit: UnitFact) -> list[inventory_pb2.PciFunction]:
    """Those of a unit, as its agent would have read them."""
    vendor = VENDORS.get(unit.vendor, 0) or int(unit.vendor or "0", 16)
    return [
        inventory_pb2.PciFunction(address=a, vendor_id=vendor, root_bus=unit.root if a == unit.id else "")
        for a in unit.functions
    ]


def labels(text: str) -> Labels:
    """`zone:a,rack:r*`, as scripts write them."""
    return tuple(sorted((name, value) for name, _, value in (pair.partition(":") for pair in text.split(",") if pair)))


class Ruled:
    """Commands: roots, vendor, nearest; and what `submit` may demand."""

    if TYPE_CHECKING:
        cluster: Cluster
        now: float
        log: list[str]

        def tell(self, event: events.Event) -> None: ...
        def _inventory(self, host: str) -> InventoryFact: ...

    def do_roots(self, host: str, *roots: str) -> None:
        """The host's units sit below these PCIe roots, in turn; `-`: nobody knows."""
        found = self._inventory(host)
        names = [root if root != "-" else "" for root in roots]
        units = [replace(u, root=names[n % len(names)]) for n, u in enumerate(found.units)]
        self.tell(events.InventoryChanged(host, replace(found, units=tuple(units))))

    def do_nics(self, host: str, *nics: str) -> None:
        """The host's units have NICs of their own so near, in turn."""
        found = self._inventory(host)
        units = [replace(u, nic=int(Nic[nics[n % len(nics)]])) for n, u in enumerate(found.units)]
        self.tell(events.InventoryChanged(host, replace(found, units=tuple(units))))

    def do_vendor(self, host: str, vendor: str) -> None:
        found = self._inventory(host)
        self.tell(
            events.InventoryChanged(host, replace(found, units=tuple(replace(u, vendor=vendor) for u in found.units)))
        )

    def do_nearest(self, job: str) -> None:
        """Which host is nearest to taking the job, and what it lacks."""
        found = explain(self.cluster, self.cluster.jobs[job], self.now)
        self.log.append(f"  {job}: {found.nearest or 'nothing is near'}")

    @staticmethod
    def demanding(job: Job, **said: str) -> Job:
        """The job with what a script's `submit` says beside amounts."""
        near, apart, mine = labels(said.get("near", "")), labels(said.get("apart", "")), labels(said.get("labels", ""))
        rules = Rules(
            models=tuple(sorted(filter(None, said.get("models", "").split(",")))),
            vendor=said.get("vendor", ""),
            driver=said.get("driver", ""),
            within=Within[said.get("within", "ANY")],
            nic=Nic[said.get("nic", "NONE")],
            hosts=labels(said.get("hosts", "")),
            not_hosts=labels(said.get("not_hosts", "")),
            near=near,
            apart=apart,
            whole_host=said.get("whole", "no") == "yes",
            own=meant((*near, *apart), mine) if near or apart else (),
        )
        if rules != Rules():
            job.request = replace(job.request, rules=rules)
        job.labels, job.max_failures_per_host = mine, int(said.get("failures", "0"))
        return job
