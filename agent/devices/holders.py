"""Who uses a PCI function: programs, mounts, the console, other VMs. What the host uses is never taken from it.

Decides what must be left alone, and says who is to be asked; changes nothing. Pure over a root of files ("sys/...",
"proc/..."), of which it needs root's view: a process whose files we may not see is a user whom we do not find. Two
users leave no trace there: a ZFS pool, and a network interface that was moved to another network namespace.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from gpupool.v1 import inventory_pb2

from ..inventory.pci import VGA
from ..inventory.sysfs import told
from .nodes import PCI, Below, Disk, Root, below, last

_RESOURCE = re.compile(r"/([0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])/resource[0-9]")  # a BAR, mapped by a program
_ESCAPE = re.compile(r"\\([0-7]{3})")  # fs/proc_namespace.c: blanks in mountinfo are octal
_GUEST_NAME = re.compile(r"(?:^|\0)-name\0(?:guest=)?([^,\0]+)")
_TABLE_BYTES = 8 << 20  # of a mount table: a host of many containers has thousands of lines
_CLASS = re.compile(r"0x([0-9a-f]{4})[0-9a-f]{2}")
_COMMAND_CHARS = 120
_INTERFACE_UP = 0x1  # IFF_UP, linux/if.h
_MAX_HOLDERS = 64  # of one disk, through device mapper and RAID


class Use(StrEnum):
    """What kind of user a holder is."""

    PROCESS = "process"
    MOUNT = "mount"
    SWAP = "swap"
    STORAGE = "storage"  # device mapper, RAID, a file system of several disks
    NETWORK = "network"
    CONSOLE = "console"
    DOMAIN = "domain"  # a libvirt domain that is not ours


@dataclass(frozen=True, slots=True)
class Holder:
    """One user of a function. `who`: as an operator knows it; `detail`: through what it uses the function."""

    address: str
    use: Use
    who: str
    detail: str
    pid: int = 0  # 0: no process

    def __str__(self) -> str:
        return f"{self.address} is used by {self.who} ({self.detail})"


def holders(
    root: Root, addresses: Iterable[str], *, ours: Collection[int], foreign: Mapping[str, str] | None = None
) -> list[Holder]:
    """Everything but the processes `ours` that uses one of the functions, in the order of addresses.

    `foreign` names the libvirt domains that are not ours by the functions that they use.
    """
    found = {address: below(root, address) for address in addresses}
    users = _open_files(root, found, ours)
    storage = _Storage(root, needed=any(what.disks for what in found.values()))
    result: list[Holder] = []
    for address, what in found.items():
        if name := (foreign or {}).get(address):
            result.append(Holder(address, Use.DOMAIN, f"libvirt domain {name!r}", "it is none of gpupool's"))
        result += users.get(address, [])
        result += _console(root, address, what)
        result += _network(root, address, what)
        for disk in what.disks:
            result += storage.holders(address, disk)
    return result


def in_use(
    root: Root, units: Iterable[inventory_pb2.Unit], foreign: Mapping[str, str], ours: Collection[int]
) -> dict[str, str]:
    """Why units must be left alone, by unit id: for the inventory. Units that nobody uses are not in it."""
    units = list(units)
    addresses = [function.address for unit in units for function in unit.functions]
    reasons = refusals(root, addresses, ours=ours, foreign=foreign)
    found = {unit.id: [reasons[f.address] for f in unit.functions if f.address in reasons] for unit in units}
    return {name: "; ".join(texts) for name, texts in found.items() if texts}


def refusals(
    root: Root, addresses: Sequence[str], *, ours: Collection[int], foreign: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Why functions must be left alone, by address; the `refuse` that `bind` asks, once its roots are filled in."""
    texts: dict[str, list[str]] = defaultdict(list)
    for holder in holders(root, addresses, ours=ours, foreign=foreign):
        texts[holder.address].append(str(holder))
    return {address: _brief(lines) for address, lines in texts.items()}


def members(root: Root, cgroup: str) -> frozenset[int]:
    """The processes in a cgroup, given by its path below the root: those that the guard can end are ours."""
    return frozenset(int(line) for line in (root.read(f"{cgroup}/cgroup.procs") or "").split() if line.isdecimal())


def _brief(lines: list[str], most: int = 3) -> str:
    more = f" and {len(lines) - most} more" if len(lines) > most else ""
    return told("; ".join(lines[:most]) + more)


# Processes


def _open_files(root: Root, found: Mapping[str, Below], ours: Collection[int]) -> dict[str, list[Holder]]:
    """Processes that have a function's nodes open, one holder for each process and function."""
    users: dict[str, set[str]] = defaultdict(set)  # node to functions
    for address, what in found.items():
        for node in (*what.nodes, *what.shared):
            users[node].add(address)
    result: dict[str, list[Holder]] = defaultdict(list)
    for pid in sorted(int(name) for name in root.list("proc") if name.isdecimal()):
        if pid in ours:
            continue
        opened: dict[str, str] = {}
        for target in _targets(root, pid):
            for address in _functions_of(target, users, found):
                opened.setdefault(address, target)
        for address, target in sorted(opened.items()):
            shared = ", which serves several devices" if target in found[address].shared else ""
            result[address].append(_process(root, address, pid, f"has {target} open{shared}"))
    return result


def _targets(root: Root, pid: int) -> Iterator[str]:
    home = f"proc/{pid}/fd"
    for name in root.list(home):
        target = root.link_target(f"{home}/{name}") or ""
        if target.startswith(("/dev/", "/sys/")):
            yield target.removesuffix(" (deleted)")


def _functions_of(target: str, users: Mapping[str, set[str]], found: Mapping[str, Below]) -> Collection[str]:
    if target in users:
        return users[target]
    match = _RESOURCE.search(target) if target.startswith("/sys/") else None
    return (match[1],) if match and match[1] in found else ()


def _process(root: Root, address: str, pid: int, detail: str) -> Holder:
    command = (root.read_bytes(f"proc/{pid}/cmdline") or b"").decode("utf-8", errors="replace")
    words = " ".join(command.replace("\0", " ").split()) or (root.read(f"proc/{pid}/comm") or "?")
    cut = words if len(words) <= _COMMAND_CHARS else f"{words[:_COMMAND_CHARS]}..."
    guest = f", VM {match[1]!r}" if "qemu" in words and (match := _GUEST_NAME.search(command)) else ""
    return Holder(address, Use.PROCESS, f"process {pid}{guest} [{cut}]", detail, pid)


# Console and network


def _console(root: Root, address: str, what: Below) -> Iterator[Holder]:
    """The host's console, if this is the boot VGA: on its framebuffer, or where the firmware left it.

    Other GPUs' drivers make framebuffers too, and fbcon takes them all; it lets go of those when the driver does.
    """
    said = _boot_vga(root, address)
    if not said:
        return
    consoles = [root.read(f"sys/class/vtconsole/{name}/name") or "" for name in _bound_consoles(root)]
    if what.framebuffers and any("frame buffer" in name for name in consoles):
        yield Holder(address, Use.CONSOLE, "the text console", f"drawn on {what.framebuffers[0]}")
    if what.framebuffers:
        return
    for name in root.list("sys/class/graphics"):
        device = root.link_target(f"sys/class/graphics/{name}") or ""
        if name.startswith("fb") and name[2:].isdecimal() and "/platform/" in device:
            yield Holder(address, Use.CONSOLE, "the firmware's framebuffer", f"{name}; {said}")
    if any("VGA" in name for name in consoles):
        yield Holder(address, Use.CONSOLE, "the VGA text console", said)


def _boot_vga(root: Root, address: str) -> str:
    """Whether this is the boot VGA, in words; empty: no. It may be one where neither the kernel nor the class says."""
    text = root.read(f"{PCI}/{address}/boot_vga")
    if text in ("0", "1"):
        return "this is the boot VGA" if text == "1" else ""
    found = _CLASS.fullmatch(root.read(f"{PCI}/{address}/class") or "")
    if text is None and found and int(found[1], 16) != VGA:
        return ""  # no other class has that attribute
    return "this may be the boot VGA, its boot_vga cannot be read" if root.list(f"{PCI}/{address}") else ""


def _bound_consoles(root: Root) -> Iterator[str]:
    home = "sys/class/vtconsole"
    return (name for name in root.list(home) if root.read(f"{home}/{name}/bind") == "1")


def _network(root: Root, address: str, what: Below) -> Iterator[Holder]:
    for nic in what.nics:
        home = f"sys/class/net/{nic}"
        if master := last(root.link_target(f"{home}/master")):
            yield Holder(address, Use.NETWORK, f"network interface {nic}", f"a port of {master}")
        elif _flags(root.read(f"{home}/flags")) & _INTERFACE_UP:
            yield Holder(address, Use.NETWORK, f"network interface {nic}", "it is up")


def _flags(text: str | None) -> int:
    try:
        return int(text or "0", 16)
    except ValueError:
        return _INTERFACE_UP  # what cannot be read counts as up


# Storage


@dataclass(frozen=True, slots=True)
class _Mount:
    point: str
    number: str  # of the device; "0:..." for file systems that have none of their own, such as btrfs
    source: str


class _Storage:
    """Mounts of every mount namespace, and swaps, read once if they are `needed`."""

    def __init__(self, root: Root, *, needed: bool) -> None:
        self._root = root
        self._mounts = list(dict.fromkeys(_mounts(root))) if needed else []
        swaps = (root.read("proc/swaps") or "").splitlines()[1:]
        self._swaps = {line.split()[0] for line in swaps if line.split()}

    def holders(self, address: str, disk: Disk) -> Iterator[Holder]:
        """Who uses the disk or partition itself, or what is built upon it."""
        for name, number, way in self._stack(disk):
            names = {f"/dev/{name}"}
            if mapped := self._root.read(f"sys/class/block/{name}/dm/name"):
                names.add(f"/dev/mapper/{mapped}")
            if way:
                yield Holder(address, Use.STORAGE, f"/dev/{name}{f' ({mapped})' if mapped else ''}", f"built on {way}")
            for mount in self._mounts:
                if (number and mount.number == number) or mount.source in names:
                    yield Holder(address, Use.MOUNT, f"the file system mounted on {mount.point}", f"on /dev/{name}")
            for swap in sorted(names & self._swaps):
                yield Holder(address, Use.SWAP, f"swap on {swap}", f"on /dev/{name}")
            for label in self._root.list("sys/fs/btrfs"):
                if name in self._root.list(f"sys/fs/btrfs/{label}/devices"):
                    yield Holder(address, Use.STORAGE, f"btrfs {label}", f"/dev/{name} is a part of it")

    def _stack(self, disk: Disk) -> Iterator[tuple[str, str, str]]:
        """The disk and all that device mapper and RAID build on it: name, number, and on what; none of it twice."""
        todo, seen = [(disk.name, disk.number, "")], {disk.name}
        while todo and len(seen) <= _MAX_HOLDERS:
            name, number, way = todo.pop(0)
            yield name, number, way
            for upper in self._root.list(f"sys/class/block/{name}/holders"):
                if upper not in seen:
                    seen.add(upper)
                    todo.append((upper, self._root.read(f"sys/class/block/{upper}/dev") or "", f"/dev/{name}"))


def _mounts(root: Root) -> Iterator[_Mount]:
    """Mounts as proc(5) lists them, one table for each mount namespace: containers mount disks too."""
    namespaces: set[str] = set()
    for pid in sorted((name for name in root.list("proc") if name.isdecimal()), key=int):
        space = root.link_target(f"proc/{pid}/ns/mnt") or ("" if pid == "1" else "?")
        if space == "?" or space in namespaces:
            continue
        if table := root.read_bytes(f"proc/{pid}/mountinfo", _TABLE_BYTES) or b"":
            namespaces.add(space)  # else the process ended meanwhile: ask the next one in it
        for line in table.decode("utf-8", errors="replace").splitlines():
            fields, _, rest = line.partition(" - ")
            words, source = fields.split(), rest.split()
            if len(words) >= 5 and len(source) >= 2:
                yield _Mount(_unescaped(words[4]), words[2], _unescaped(source[1]))


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
