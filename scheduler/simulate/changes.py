"""What is changed on the copy of a cluster, before anybody looks what comes of it: hosts, losses, quotas, policy.

A change that means nothing there, such as the loss of a host that nobody knows, is refused with what is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any

from gpupool.errors import InvalidSpec
from gpupool.store.keys import check_name

from ..core.fitting.ruled import labels_of
from ..core.state.cluster import Cluster
from ..core.state.events import HostIntentChanged, QueueChanged
from ..core.state.facts import InventoryFact, QueueIntent, UnitFact
from ..core.state.policy import Policy
from ..core.state.rules import HOST, Label, has, shown
from ..core.state.tables import HostState
from .vms import Agents

GIB = 1024
UNKNOWN_SHOWN = 20
_GROUPS = ("max", "guaranteed", "user")
_PARTS = {"gpus": ("gpus", 1), "cpus": ("cpus", 1), "memory-gib": ("memory_mib", GIB)}
SETTINGS = (*(f"{group}-{part}" for group in _GROUPS for part in _PARTS), "user-jobs", "weight")
Quota = Mapping[str, int]  # by setting; -1: no limit


@dataclass(frozen=True, slots=True)
class Changes:
    """See the module docstring. `vouched`: an operator confirms that lost hosts are dead."""

    add: int = 0
    like: str = ""
    lose: tuple[str, ...] = ()
    lose_racks: tuple[Label, ...] = ()
    quotas: Mapping[str, Quota] = field(default_factory=dict)
    policy: Policy | None = None
    policy_file: Path | None = None
    vouched: bool = False


@dataclass(frozen=True, slots=True)
class _Copy:
    """A new host that is built as another is, and whole."""

    name: str
    fact: InventoryFact

    @property
    def units(self) -> tuple[UnitFact, ...]:
        """All fit."""
        return tuple(replace(unit, unfit="", identity=f"{self.name} {unit.id}") for unit in self.fact.units)

    def inventory(self, session: int) -> InventoryFact:
        """As of a session; nobody has taken hugepages yet."""
        pages = tuple(replace(found, free=found.total) for found in self.fact.hugepages)
        labels = tuple(label for label in self.fact.labels if label[0] != HOST)
        return replace(self.fact, session=session, units=self.units, hugepages=pages, labels=labels)


def make(changes: Changes, agents: Agents) -> list[str]:
    """Carry them out; returns what was done, in words. Raises InvalidSpec."""
    cluster = agents.world.cluster
    told = [] if changes.policy is None else [f"the policy is that of {changes.policy_file}"]
    told += [_quota(agents, name, changes.quotas[name]) for name in sorted(changes.quotas)]
    doomed = _doomed(cluster, changes)
    if changes.add:
        told.append(_add(agents, changes.add, changes.like))
    for name in doomed:
        host = cluster.hosts[name]
        away = host.state not in (HostState.READY, HostState.JOINING)
        agents.fail(name)
        told.append(f"{name} was lost already" if away else f"{name} is lost, with {len(host.allocations)} VMs")
        if changes.vouched:
            agents.world.after(agents.lease_s(name) + 1.0, lambda name=name: _vouch(agents, name))  # type: ignore[misc]
    return told


def _add(agents: Agents, count: int, like: str) -> str:
    cluster = agents.world.cluster
    model = cluster.hosts.get(like)
    if model is None:
        raise InvalidSpec([f"--like {like}: no such host; {_known(cluster)}"])
    if model.inventory is None:
        raise InvalidSpec([f"--like {like}: nobody knows what it has; name another"])
    names = []
    for number in range(1, count + 1):
        name = _name(cluster, like, number)
        names.append(name)
        agents.join(_Copy(name, model.inventory), guard=model.guard, simulated=model.simulated)
    some = ", ".join(names[:3]) + (", ..." if count > 3 else "")
    return f"{count} {'host' if count == 1 else 'hosts'} like {like}: {some}"


def _name(cluster: Cluster, like: str, number: int) -> str:
    """One that nobody has; a name that sorts behind that of its model."""
    suffix = f"-new{number}"
    while (name := check_name(f"{like[: 63 - len(suffix)]}{suffix}", "host")) in cluster.hosts:
        suffix = f"-new{suffix[4:]}x"
    return name


def _doomed(cluster: Cluster, changes: Changes) -> list[str]:
    found = set(changes.lose)
    for name in sorted(found):
        if name not in cluster.hosts:
            raise InvalidSpec([f"--lose-host {name}: no such host; {_known(cluster)}"])
    for rack in changes.lose_racks:
        mine = {name for name, host in cluster.hosts.items() if has(labels_of(host), rack)}
        if not mine:
            values = {value for host in cluster.hosts.values() for name, value in labels_of(host) if name == rack[0]}
            known = f"its values are {_some(values)}" if values else f"no host has a label {rack[0]}"
            raise InvalidSpec([f"--lose-rack {shown(rack)}: no host has it; {known}"])
        found |= mine
    return sorted(found)


def _known(cluster: Cluster) -> str:
    return f"known are {_some(cluster.hosts)}" if cluster.hosts else "the dump has no hosts"


def _some(names: Any) -> str:
    ranked = sorted(names)
    return ", ".join(ranked[:UNKNOWN_SHOWN]) + (", ..." if len(ranked) > UNKNOWN_SHOWN else "")


def _vouch(agents: Agents, name: str) -> None:
    host = agents.world.cluster.hosts[name]
    if host.state in (HostState.SUSPECT, HostState.FENCING):
        intent = replace(
            host.intent, confirmed_dead_session=host.session, confirmed_by="whatif", confirmed_reason="--confirm-dead"
        )
        agents.world.tell(HostIntentChanged(name, intent))


def _quota(agents: Agents, name: str, wanted: Quota) -> str:
    known = agents.world.cluster.books.queues.known
    if name not in known:
        raise InvalidSpec([f"--quota {name}: no such queue; queues at hand: {_some(known)}"])
    intent = known[name]
    for setting, value in sorted(wanted.items()):
        intent = _set(intent, setting, value)
    agents.world.tell(QueueChanged(name, intent))
    return f"queue {name}: " + ", ".join(
        f"{setting} {'none' if value < 0 else value}" for setting, value in sorted(wanted.items())
    )


def _set(intent: QueueIntent, setting: str, value: int) -> QueueIntent:
    if setting == "weight":
        return replace(intent, weight=value)
    if setting == "user-jobs":
        return replace(intent, user_jobs=inf if value < 0 else value)
    group, _, part = setting.partition("-")
    name, unit = _PARTS[part]
    if group == "guaranteed":
        return replace(intent, guaranteed=intent.guaranteed._replace(**{name: max(0, value) * unit}))
    amount = inf if value < 0 else value * unit
    if group == "max":
        return replace(intent, limit=intent.limit._replace(**{name: amount}))
    return replace(intent, user_limit=intent.user_limit._replace(**{name: amount}))
