"""Whose fence device it is: that power is off proves something of the machine that the device switches, of no other.

A fence device stands at a name in the power file, and a name can pass to another machine. So which machine each device
is of is decided here: as the power file says (`machine`), else the machine that had the name when a leader first saw a
session live under it with this device in its file (trust on first use). It must never learn that from a session that is
lost, nor forget what it learnt because another device, or none, stands in the file meanwhile: files of replicas differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..state.cluster import Cluster
from ..state.hosts import Host
from ..state.losses import DeviceOf
from ..state.policy import Device
from ..state.tables import HostState

KEPT = 8  # devices of one name; nobody has as many files that differ


def seen_alive(cluster: Cluster, host: Host) -> None:
    """The host's session lives: what its fence device is of is put on record, unless it is there."""
    device = cluster.policy.powered.get(host.name)
    lives = host.fact is not None and host.fact.session == host.session
    if device is None or not lives or host.state not in (HostState.JOINING, HostState.READY):
        return
    machine = owner(device, host.devices)
    found = DeviceOf(device.mark, host.machine if machine is None else machine)
    if found not in host.devices:
        others = [other for other in host.devices if other.mark != device.mark]
        host.devices = (*others[1 - KEPT :], found)
        cluster.dirty.hosts.add(host.name)


def replaced_by(cluster: Cluster, host: Host, machine: str) -> None:
    """A machine gets the name. If it is another one than before, and nothing is on record of any device (an older
    version led), the device of the name is taken for its predecessor's: whoever knows better can say so.
    """
    device = cluster.policy.powered.get(host.name)
    if device is not None and host.session and not host.devices and machine != host.machine:
        host.devices = (DeviceOf(device.mark, device.machine or host.machine),)


def machine_told(cluster: Cluster, host: Host, machine: str) -> None:
    """The host's own session says another machine id than before: it is the same machine, under the id that counts."""
    before, host.machine = host.machine, machine
    host.devices = tuple(replace(each, machine=machine) if each.machine == before else each for each in host.devices)
    cluster.dirty.hosts.add(host.name)


def owner(device: Device, known: Iterable[DeviceOf]) -> str | None:
    """The machine that the device is taken to be of; "": one without an id; None: nobody knows."""
    if device.machine:
        return device.machine
    return next((each.machine for each in known if each.mark == device.mark), None)


def not_its_own(cluster: Cluster, host: Host) -> str:
    """Why the host's fence device proves nothing of its session; "": it does, or there is none. See `mismatch`."""
    device = cluster.policy.powered.get(host.name)
    return mismatch(host.name, device, host.devices, host.session, host.machine) if device is not None else ""


def mismatch(host: str, device: Device, known: Iterable[DeviceOf], session: int, machine: str) -> str:
    """Why the device is not known to be of the machine that the session is of, and the way out; "": it is.

    Two machines without an id pass for one, as with boots (`Host.taken_by`).
    """
    of = owner(device, known)
    if of == machine:
        return ""
    seen = f"the fence device of {host} is of machine {of or 'unknown'}"
    seen += " (the power file says so)" if device.machine else " (the first that was seen)"
    if of is None:
        seen = f"nobody knows of which machine the fence device of {host} is"
    mend = "have its agent tell which machine it is"
    if machine:
        mend = f'if it is of {machine}, write machine: "{machine}" at {host} in the power file, restart the schedulers'
    return f"{seen}, session {session} is of machine {machine or 'unknown'}: {mend}"
