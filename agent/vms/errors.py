"""What libvirt's errors mean for whoever reads a job's message. Pure: texts in, texts out.

libvirt gives most failures of QEMU the same error code, so its text is all there is to go by. What no rule knows is
passed on as it is, cut to one line.
"""

from __future__ import annotations

import re

from ..ports import VmRuntimeError

PACKAGES = "libvirt-daemon, libvirt-daemon-driver-qemu and qemu-system-x86 (apt-get install)"
_LIMIT = 400

_NO_EMULATOR = r"find suitable emulator|find any emulator|could not find capabilities|Cannot check QEMU binary"
_UNREADABLE = r"(?:Could not open|Cannot access storage file) '([^']+)'.*: Permission denied"
_MOUNT = "mount -t hugetlbfs -o pagesize=SIZE none /dev/hugepages-SIZE, then restart libvirtd"

# The first rule that matches is used; {0}, {1} are its groups, {text} is all of it.
_START_RULES = (
    (r"Is another process using the image \[([^\]]+)\]", "image lock refused: another VM writes to {0}"),
    (r"Failed to get \".*\" lock", "image lock refused: another VM writes to one of its disks"),
    (r"Could not open '([^']+)': No such file", "file {0} does not exist"),
    (r"Cannot access storage file '([^']+)'.*: No such file", "file {0} does not exist"),
    (_UNREADABLE, "file {0} may not be read by QEMU"),
    (r"No space left on device", "the host's disk is full: free some of it ({text})"),
    (
        r"find any usable hugetlbfs mount for (\d+)",
        "no hugetlbfs is mounted for pages of {0} KiB: " + _MOUNT,
    ),
    (
        r"[Hh]ugepages are disabled|hugetlbfs filesystem is not mounted",
        "no hugetlbfs is mounted: " + _MOUNT,
    ),
    (r"(/dev/vfio/\d+): Device or resource busy", "{0} is in use: another process owns a device of that IOMMU group"),
    (r"(?:MTU|flags|index)[^']*'([^']+)': No such device", "the host has no network interface {0}; make it first"),
    (r"[Cc]annot allocate memory", "out of memory on the host ({text})"),
    (r"could not find capabilities for domaintype=kvm", "KVM is not available on this host"),
    (_NO_EMULATOR, "libvirt knows no emulator for x86_64: install qemu-system-x86"),
)
_OPEN_RULES = (
    (r"Failed to acquire pid file '([^']+)'", "another agent holds {0}: one libvirt root serves one agent"),
    (r"no connection driver available|driver .*not (?:found|loaded)", f"no QEMU driver: it takes {PACKAGES}"),
    (r"Failed to connect socket to '([^']+)'", f"no libvirtd listens on {{0}}: start it, or install {PACKAGES}"),
    (r"Failed to parse (user|group) '([^']+)'", "libvirt needs a system {0} {1}: make it with useradd --system"),
)


class RuntimeUnavailableError(Exception):
    """The hypervisor cannot be used on this host; the message says what to do."""


class HypervisorError(VmRuntimeError):
    """A call of the hypervisor's failed; the message is its own."""


class ConnectionLostError(HypervisorError):
    """The connection to the hypervisor broke, or cannot be had: nobody knows what became of the call."""


def readable_start(text: str) -> str:
    """Why a VM could not be started."""
    return _explain(text, _START_RULES)


def readable_open(text: str) -> str:
    """Why libvirt could not be opened."""
    return _explain(text, _OPEN_RULES)


def _explain(text: str, rules: tuple[tuple[str, str], ...]) -> str:
    line = " ".join(text.split())[:_LIMIT]
    for pattern, meaning in rules:
        if match := re.search(pattern, text, re.DOTALL):
            return meaning.format(*match.groups(), text=line)
    return line
