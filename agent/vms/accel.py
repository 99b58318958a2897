"""Whether KVM can run a VM here, found out without running one."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
from pathlib import Path

KVM = Path("/dev/kvm")
CPUINFO = Path("/proc/cpuinfo")
CHOICES = ("auto", "kvm", "tcg")
_KVM_CREATE_VM = 0xAE01  # linux/kvm.h: _IO(KVMIO, 0x01)
_HARDWARE = re.compile(r"^flags\s*:.*\b(?:vmx|svm)\b", re.MULTILINE)
_AMD = re.compile(r"^vendor_id\s*:\s*(?:AuthenticAMD|HygonGenuine)", re.MULTILINE)


async def kvm_works(device: Path = KVM, cpuinfo: Path = CPUINFO) -> bool:
    """Whether a VM can be made and the CPU has the extensions for it.

    Both are asked: software-only modules (kvm_pvm) make VMs and even run single instructions, but an ordinary guest
    spins for ever; and the CPU's flag alone says nothing of permissions or of nesting.
    """
    return await asyncio.to_thread(_probe, device, cpuinfo)


async def choose(wanted: str, device: Path = KVM, cpuinfo: Path = CPUINFO) -> str:
    """Either "kvm" or "tcg": what is wanted, or for "auto" what works. Raises ValueError for anything else."""
    if wanted not in CHOICES:
        raise ValueError(f"accelerator {wanted!r}; there are {', '.join(CHOICES)}")
    if wanted != "auto":
        return wanted
    return "kvm" if await kvm_works(device, cpuinfo) else "tcg"


def is_amd(cpuinfo: Path = CPUINFO) -> bool:
    """Whether this machine's CPU is AMD's (or Hygon's, which is made after it); False if nobody says."""
    try:
        return _AMD.search(cpuinfo.read_text()) is not None
    except OSError:
        return False


def _probe(device: Path, cpuinfo: Path) -> bool:
    try:
        return _HARDWARE.search(cpuinfo.read_text()) is not None and _creates_vm(device)
    except OSError:
        return False


def _creates_vm(device: Path) -> bool:
    kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.close(fcntl.ioctl(kvm, _KVM_CREATE_VM, 0))
    finally:
        os.close(kvm)
    return True
