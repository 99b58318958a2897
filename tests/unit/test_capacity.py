"""What is asked of a host before a VM is made, on invented trees."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.ports import GuestOptions
from agent.vms.capacity import LinuxHost, shortages
from tests.unit.test_domain import TWO_NODES, shape


@dataclass
class Host:
    """Implements HostState."""

    mib: dict[int, int | None] = field(default_factory=lambda: {0: 32768, 2: 32768})
    pages: dict[int, int | None] = field(default_factory=lambda: {0: 32, 2: 32})
    limit: int | None = None
    cpus: frozenset[int] | None = frozenset(range(256))

    def free_mib(self, node: int) -> int | None:
        return self.mib[node]

    def free_pages(self, node: int, size_kib: int) -> int | None:
        return self.pages[node] if size_kib == 1 << 20 else 0

    def lock_limit_mib(self) -> int | None:
        return self.limit

    def online_cpus(self) -> frozenset[int] | None:
        return self.cpus


PLAIN = shape(TWO_NODES)
HUGE = shape(
    type(TWO_NODES)(**{f: getattr(TWO_NODES, f) for f in TWO_NODES.__slots__} | {"options": GuestOptions(1 << 20)})
)


def test_a_host_that_has_it_all() -> None:
    assert list(shortages(PLAIN, Host())) == []
    assert list(shortages(HUGE, Host())) == []


def test_what_cannot_be_read_is_no_shortage() -> None:
    nothing: dict[int, int | None] = {0: None, 2: None}
    assert list(shortages(PLAIN, Host(nothing, nothing, None, None))) == []
    assert list(shortages(HUGE, Host(nothing, nothing, None, None))) == []


def test_each_shortage_is_named_with_its_node() -> None:
    assert list(shortages(PLAIN, Host(mib={0: 32768, 2: 32767}))) == [
        "NUMA node 2 has 32767 MiB that are free or can be freed, the VM needs 32768"
    ]
    (text,) = shortages(HUGE, Host(pages={0: 31, 2: 32}))
    assert "node 0 has 31 free hugepages of 1048576 KiB, the VM needs 32" in text
    assert "node0/hugepages/hugepages-1048576kB/nr_hugepages" in text


def test_the_memlock_limit_is_said_before_the_start() -> None:
    need = 65536 + 65536 // 128 + 1024
    assert list(shortages(PLAIN, Host(limit=need))) == []
    (text,) = shortages(PLAIN, Host(limit=need - 1))
    assert f"needs to lock {need} MiB, and QEMU's limit is {need - 1} MiB: raise it (LimitMEMLOCK=infinity" in text


def test_cpus_that_are_off() -> None:
    (text,) = shortages(PLAIN, Host(cpus=frozenset(range(256)) - {33, 96}))
    assert text.startswith("host CPUs [33, 96] of this VM are offline")


MEMINFO = """\
Node 1 MemTotal:       1000000 kB
Node 1 MemFree:         102400 kB
Node 1 Active(file):     10240 kB
Node 1 Inactive(file):   20480 kB
Node 1 SReclaimable:      1024 kB
Node 1 HugePages_Total:     0
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    node = tmp_path / "sys/devices/system/node/node1"
    (node / "hugepages/hugepages-2048kB").mkdir(parents=True)
    (node / "hugepages/hugepages-2048kB/free_hugepages").write_text("7\n")
    (node / "meminfo").write_text(MEMINFO)
    (tmp_path / "sys/devices/system/cpu").mkdir()
    (tmp_path / "sys/devices/system/cpu/online").write_text("0-2,5\n")
    (tmp_path / "proc/42").mkdir(parents=True)
    return tmp_path


def test_reading_a_node(tree: Path) -> None:
    host = LinuxHost(lambda: None, tree)
    assert host.free_mib(1) == (102400 + 10240 + 20480 + 1024) // 1024
    assert host.free_pages(1, 2048) == 7
    assert host.free_pages(1, 1 << 20) == 0
    assert host.online_cpus() == frozenset({0, 1, 2, 5})
    assert host.free_mib(0) is None
    assert host.free_pages(0, 2048) is None


@pytest.mark.parametrize("text", ["", "\n", "Node 1 MemFree:", "garbage\0", "Node 1 MemFree: many kB"])
def test_half_written_files_say_nothing(tree: Path, text: str) -> None:
    for file in ("node/node1/meminfo", "cpu/online"):
        (tree / "sys/devices/system" / file).write_text(text)
    host = LinuxHost(lambda: None, tree)
    assert host.free_mib(1) is None
    assert host.online_cpus() is None


@pytest.mark.parametrize("text", ["0-99999999", "3-1", "0-3,x", "٣", "-1"])
def test_a_list_of_cpus_that_makes_no_sense_says_nothing(tree: Path, text: str) -> None:
    (tree / "sys/devices/system/cpu/online").write_text(text)
    assert LinuxHost(lambda: None, tree).online_cpus() is None


CAN, CANNOT = "CapEff:\t000001ffffffffff\n", "CapEff:\t000001fffeffffff\n"
LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max locked memory         65536                {} bytes
"""


@pytest.mark.parametrize(
    ("status", "hard", "limit"),
    [
        (CAN, "8388608", None),
        (CANNOT, "8388608", 8),
        (CANNOT, "unlimited", None),
        ("", "8388608", None),
        ("CapEff:\n", "8388608", None),
        ("CapEff: zz\n", "8388608", None),
        ("CapEff:\nffff\n", "8388608", None),
    ],
)
def test_the_limit_is_libvirtds_unless_it_may_raise_it(tree: Path, status: str, hard: str, limit: int | None) -> None:
    (tree / "proc/42/status").write_text(status)
    (tree / "proc/42/limits").write_text(LIMITS.format(hard.ljust(20)))
    assert LinuxHost(lambda: 42, tree).lock_limit_mib() == limit


def test_nobody_knows_who_starts_qemu(tree: Path) -> None:
    assert LinuxHost(lambda: None, tree).lock_limit_mib() is None
    assert LinuxHost(lambda: 43, tree).lock_limit_mib() is None
