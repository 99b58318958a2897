"""What the list of hosts shows. Pure; `now_s` is Unix time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from gpupool.v1 import inventory_pb2, records_pb2, scheduler_pb2

from .views import View, age, enum_name, labels

HOSTS = ("NAME", "STATE", "UNITS", "VMS", "SESSION", "AGE")
HOSTS_WIDE = (*HOSTS, "BOOT", "GUARD", "ADDRESS", "PROBLEMS", "WARNINGS", "IMAGES", "LABELS")


def hosts(found: Iterable[scheduler_pb2.Host], now_s: float, *, wide: bool = False) -> View:
    """One row for each host."""
    rows = [[*_host(host, now_s), *(_host_wide(host) if wide else ())] for host in found]
    return HOSTS_WIDE if wide else HOSTS, rows


def _host(host: scheduler_pb2.Host, now_s: float) -> list[str]:
    state = enum_name(records_pb2.HostState, host.record.state)
    return [
        host.name,
        ",".join((state, *wishes(host))),
        f"{host.units_free}/{host.units_total}",
        str(host.vms),
        str(host.record.session or ""),
        age(host.record.since_s, now_s),
    ]


def _host_wide(host: scheduler_pb2.Host) -> list[str]:
    images = ",".join(host.inventory.images)
    counts = Counter(found.level for found in host.inventory.findings)
    bad = [str(counts[level]) for level in (inventory_pb2.FINDING_LEVEL_PROBLEM, inventory_pb2.FINDING_LEVEL_WARNING)]
    return [host.record.boot_id[:8], _guard(host), host.session.address, *bad, images, labels(host.inventory.labels)]


def wishes(host: scheduler_pb2.Host) -> list[str]:
    """What keeps jobs from the host beside its state, as the list of hosts shows it."""
    intent, found = host.intent, []
    if intent.cordoned:
        found.append("CORDONED")
    if host.record.held_out:
        found.append("HELD-OUT")
    if intent.HasField("drain") or host.ordered_drain:
        found.append("TO-DRAIN" if intent.drain.paused and host.vms else "DRAINING" if host.vms else "DRAINED")
    if intent.maintenance:
        found.append("MAINTENANCE")
    return found


def _guard(host: scheduler_pb2.Host) -> str:
    kind, refused = enum_name(records_pb2.GuardKind, host.record.guard).lower(), host.session.guard_refused
    return f"{kind}, refused {refused}" if kind and refused else kind
