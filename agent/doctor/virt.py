"""libvirt and QEMU: present, and not older than what was tried."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .facts import Facts
from .model import WARNING, Advice, Found, ok, unknown

LIBVIRT, QEMU = "libvirt", "qemu"
# The oldest that the project's tests ran with (Debian 12). libvirt-python refuses libraries much older than itself.
OLDEST_LIBVIRT, OLDEST_QEMU = (9, 0), (7, 2)
_DAEMONS = ("libvirtd", "virtqemud", "/usr/sbin/libvirtd", "/usr/sbin/virtqemud")
_EMULATORS = ("qemu-system-x86_64", "/usr/libexec/qemu-kvm", "qemu-system-aarch64")
_VERSION = re.compile(r"\b([0-9]{1,3})\.([0-9]{1,3})(?:\.[0-9]{1,3})?\b")


@dataclass(frozen=True, slots=True)
class _Program:
    check: str
    names: tuple[str, ...]  # where it may be
    oldest: tuple[int, int]
    advice: Advice  # how to install it


def libvirt(facts: Facts) -> Iterator[Found]:
    """The version of libvirt's daemon."""
    advice = Advice(
        debian="apt-get install libvirt-daemon-system libvirt-daemon-driver-qemu",
        rhel="dnf install libvirt-daemon-kvm\nsystemctl enable --now virtqemud.socket",
    )
    yield _judge(facts, _Program(LIBVIRT, _DAEMONS, OLDEST_LIBVIRT, advice), facts.context.libvirt_version)


def qemu(facts: Facts) -> Iterator[Found]:
    """The version of the emulator."""
    advice = Advice(debian="apt-get install qemu-system-x86 ovmf", rhel="dnf install qemu-kvm edk2-ovmf")
    yield _judge(facts, _Program(QEMU, _EMULATORS, OLDEST_QEMU, advice), facts.context.qemu_version)


def _judge(facts: Facts, program: _Program, known: str) -> Found:
    text = known or next(filter(None, (facts.machine.run((name, "--version")) for name in program.names)), "")
    match = _VERSION.search(text)
    if match is None and not text and facts.machine.writable("/") is None:
        return unknown(program.check, "the version is not known from files alone")
    if match is None:
        seen = f"{program.check} says {text[:40]!r}" if text else f"none of {', '.join(program.names)} answers"
        return Found(program.check, WARNING, seen, "No VM starts, unless it is installed elsewhere.", program.advice)
    if (int(match[1]), int(match[2])) < program.oldest:
        least = ".".join(str(number) for number in program.oldest)
        risk = "Nobody has tried gpupool with a version this old."
        return Found(program.check, WARNING, f"{match[0]}, older than {least}", risk, program.advice)
    return ok(program.check, match[0])
