"""What is made of libvirt's texts: the samples are its own (9.0, QEMU 7.2)."""

from __future__ import annotations

import pytest

from agent.vms.errors import _MOUNT, readable_open, readable_start

QEMU = (
    "internal error: process exited while connecting to monitor: 2026-11-23T08:00:00.1Z qemu-system-x86_64: -blockdev: "
)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        (
            QEMU + 'Failed to get "write" lock\nIs another process using the image [/srv/v.img]?',
            "image lock refused: another VM writes to /srv/v.img",
        ),
        ("Cannot access storage file '/v.img': No such file or directory", "file /v.img does not exist"),
        ("Cannot access storage file '/v.img' (as uid:0, gid:0): No such file", "file /v.img does not exist"),
        (
            "invalid argument: could not find capabilities for domaintype=kvm ",
            "KVM is not available on this host",
        ),
        (
            "unsupported configuration: Cannot check QEMU binary /usr/bin/qemu: No such file",
            "libvirt knows no emulator for x86_64: install qemu-system-x86",
        ),
        (
            QEMU + "vfio 0000:21:00.0: failed to open /dev/vfio/12: Device or resource busy",
            "/dev/vfio/12 is in use: another process owns a device of that IOMMU group",
        ),
        ("Cannot get interface MTU on 'br7': No such device", "the host has no network interface br7; make it first"),
        (
            "internal error: Unable to find any usable hugetlbfs mount for 1048576 KiB",
            f"no hugetlbfs is mounted for pages of 1048576 KiB: {_MOUNT}",
        ),
        ("something  new\nin two lines", "something new in two lines"),
    ],
)  # fmt: skip
def test_start(text: str, meaning: str) -> None:
    assert readable_start(text) == meaning


def test_out_of_memory_keeps_the_detail() -> None:
    text = readable_start("cannot set up guest memory 'pc.ram': Cannot allocate memory")
    assert text == "out of memory on the host (cannot set up guest memory 'pc.ram': Cannot allocate memory)"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("Failed to acquire pid file '/r/run/qemu/driver.pid': busy", "another agent holds /r/run/qemu/driver.pid"),
        ("no connection driver available for qemu:///embed?root=/r", "libvirt-daemon-driver-qemu"),
        ("Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such file", "libvirt-daemon-driver-qemu"),
        ("Failed to parse user 'libvirt-qemu'", "make it with useradd"),
    ],
)
def test_open(text: str, part: str) -> None:
    assert part in readable_open(text)
