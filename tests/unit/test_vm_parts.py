"""The parts of a domain that are arithmetic or formats: CPU plans, windows, locked memory, FAT, firmware, cgroups."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.domain.cpus import plan_cpus
from agent.domain.fat import fat_image
from agent.domain.memory import locked_mib
from agent.domain.pci import slots_of, window_mib
from agent.domain.seed import seed_image
from agent.ports import GuestCell, PassedFunction
from agent.vms import firmware
from agent.vms.accel import is_amd
from agent.vms.cgroup import VmCgroup
from agent.vms.foreign import passed_addresses
from agent.vms.images import has_efi_partition

GIB = 1 << 30


@st.composite
def hosts(draw: st.DrawFn) -> tuple[GuestCell, ...]:
    counter = iter(range(10000))
    widths = st.lists(st.integers(1, 4), max_size=6)
    return tuple(
        GuestCell(node, tuple(tuple(next(counter) for _ in range(width)) for width in draw(widths)), 64)
        for node in range(draw(st.integers(1, 4)))
    )


@given(hosts(), st.integers(1, 80))
def test_a_plan_covers_each_vcpu_once_and_keeps_sockets_in_cells(cells: tuple[GuestCell, ...], vcpus: int) -> None:
    have = [cpu for cell in cells for core in cell.cores for cpu in core]
    if vcpus > len(have):
        with pytest.raises(ValueError, match="CPUs are reserved"):
            plan_cpus(cells, vcpus)
        return
    plan = plan_cpus(cells, vcpus)
    assert len(set(plan.pins)) == vcpus == sum(plan.per_cell)
    assert set(plan.pins) <= set(have)
    assert plan.sockets * plan.cores * plan.threads == vcpus
    assert all(count % (plan.cores * plan.threads) == 0 for count in plan.per_cell)


def test_threads_of_a_guest_core_are_threads_of_one_host_core() -> None:
    plan = plan_cpus((GuestCell(0, ((0, 32), (1, 33)), 1), GuestCell(1, ((16, 48), (17, 49)), 1)), 8)
    assert (plan.sockets, plan.cores, plan.threads) == (2, 2, 2)
    assert plan.pins == (0, 32, 1, 33, 16, 48, 17, 49)


@pytest.mark.parametrize(
    ("bars_gib", "mib"),
    [
        ([], 32 * 1024),
        ([[0.25]], 32 * 1024),
        ([[128]], 128 * 1024),
        ([[128, 0.03125]], 256 * 1024),  # the port's window is aligned to 128 GiB and holds both
        ([[128, 0.03125]] * 8, 2048 * 1024),
        ([[64]] * 3, 256 * 1024),
    ],
)
def test_the_window_holds_aligned_bars(bars_gib: list[list[float]], mib: int) -> None:
    functions = [
        PassedFunction(f"0000:{bus:02x}:00.0", 0, tuple(int(size * GIB) for size in sizes))
        for bus, sizes in enumerate(bars_gib)
    ]
    assert window_mib(functions) == mib


@given(st.lists(st.lists(st.integers(12, 38), min_size=1, max_size=6), max_size=8))
def test_aligned_placement_fits_into_the_window(devices: list[list[int]]) -> None:
    """As firmware does it: the largest first, each port's window aligned to its largest BAR."""
    functions = [
        PassedFunction(f"0000:{bus:02x}:00.0", 0, tuple(1 << bits for bits in bars)) for bus, bars in enumerate(devices)
    ]
    ports = sorted(((max(1 << 20, *bars), sum(bars)) for bars in (f.bar_bytes for f in functions)), reverse=True)
    end = 0
    for align, size in ports:
        end = -(-end // align) * align + size
    assert end <= window_mib(functions) << 20


def test_functions_of_one_device_stay_together() -> None:
    gpu = [PassedFunction(f"0000:21:00.{n}", 0, unit="0000:21:00.0") for n in (1, 0, 3)]
    (slot,) = slots_of(gpu, ())
    assert slot.functions == (("0000:21:00.0", 0), ("0000:21:00.1", 1), ("0000:21:00.3", 3))


def test_a_device_without_its_function_0_gets_one() -> None:
    (slot,) = slots_of([PassedFunction("0000:21:00.1"), PassedFunction("0000:21:00.3")], ())
    assert slot.functions == (("0000:21:00.1", 0), ("0000:21:00.3", 1))


def test_virtual_functions_of_one_card_that_are_units_of_their_own_are_devices_of_their_own() -> None:
    functions = [PassedFunction(f"0000:3b:00.{n}", 0, unit=f"0000:3b:00.{n}") for n in (2, 3)]
    assert [slot.functions for slot in slots_of(functions, ())] == [(("0000:3b:00.2", 0),), (("0000:3b:00.3", 0),)]


def test_locked_memory_counts_ram_once_or_for_each_device_behind_a_guest_iommu() -> None:
    ram, rest = 65536, 65536 // 128 + 1024
    assert locked_mib(ram, 0, guest_iommu=False) == ram + rest
    assert locked_mib(ram, 8, guest_iommu=False) == ram + rest
    assert locked_mib(ram, 8, guest_iommu=True) == 8 * ram + rest
    assert locked_mib(ram, 0, guest_iommu=True) == ram + rest


# FAT


def read_fat(image: bytes) -> tuple[str, dict[str, bytes]]:
    """The label and the files, read by the book (Microsoft's FAT 1.03), apart from the writer."""
    size, cluster, reserved, fats, entries, sectors, _, fat_sectors = struct.unpack_from("<HBHBHHBH", image, 11)
    assert len(image) == sectors * size
    tables = [image[size * (reserved + n * fat_sectors) :][: fat_sectors * size] for n in range(fats)]
    assert all(table == tables[0] for table in tables)
    start = size * (reserved + fats * fat_sectors)
    data = start + entries * 32
    assert (sectors - data // size) // cluster < 4085, "it would be FAT16"

    def following(number: int) -> int:
        (word,) = struct.unpack_from("<H", tables[0], number * 3 // 2)
        return int(word >> 4 if number & 1 else word & 0xFFF)

    label, files, parts = "", {}, {}
    for offset in range(start, data, 32):
        entry = image[offset : offset + 32]
        if not entry[0]:
            break
        if entry[11] == 0x0F:
            assert entry[13] == checksum(image, offset)
            parts[entry[0] & 0x3F] = (entry[1:11] + entry[14:26] + entry[28:32]).decode("utf-16-le")
        elif entry[11] & 0x08:
            label = entry[:11].decode().strip()
        else:
            number, length = struct.unpack_from("<HI", entry, 26)
            content = b""
            while number < 0xFF8:
                content += image[data + (number - 2) * size * cluster :][: size * cluster]
                number = following(number)
            files["".join(parts[n] for n in sorted(parts)).split("\0")[0]] = content[:length]
            parts = {}
    return label, files


def checksum(image: bytes, offset: int) -> int:
    while image[offset + 11] == 0x0F:
        offset += 32
    total = 0
    for byte in image[offset : offset + 11]:
        total = ((total >> 1 | total << 7) + byte) & 0xFF
    return total


@given(st.dictionaries(st.from_regex(r"[a-z][a-z-]{0,40}", fullmatch=True), st.binary(max_size=3000), max_size=6))
def test_a_fat_image_reads_back(files: dict[str, bytes]) -> None:
    assert read_fat(fat_image("CIDATA", files)) == ("CIDATA", files)


def test_a_seed_holds_identity_and_wishes() -> None:
    image = seed_image("Train_X.12", "#cloud-config\nruncmd: []\n")
    assert read_fat(image) == (
        "CIDATA",
        {
            "meta-data": b"instance-id: Train_X.12\nlocal-hostname: train-x-12\n",
            "user-data": b"#cloud-config\nruncmd: []\n",
        },
    )
    assert seed_image("Train_X.12", "#cloud-config\nruncmd: []\n") == image


def test_a_seed_that_is_too_large_says_so() -> None:
    with pytest.raises(ValueError, match="user data of 2000000 bytes; at most"):
        seed_image("a", "x" * 2_000_000)


# UEFI


def gpt(kind: str) -> bytes:
    import uuid  # noqa: PLC0415

    header = b"EFI PART".ljust(72, b"\0") + struct.pack("<QII", 2, 128, 128)
    return b"\0" * 512 + header.ljust(512, b"\0") + uuid.UUID(kind).bytes_le.ljust(128 * 128, b"\0")


def mbr(kind: int) -> bytes:
    return (b"\0" * 446 + b"\0\0\0\0" + bytes([kind])).ljust(510, b"\0") + b"\x55\xaa" + b"\0" * 8192


@pytest.mark.parametrize(
    ("head", "bootable"),
    [
        (gpt("c12a7328-f81f-11d2-ba4b-00a0c93ec93b"), True),
        (gpt("0fc63daf-8483-4772-8e79-3d69d8477de4"), False),
        (gpt("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")[:1024], False),
        (mbr(0xEF), True),
        (mbr(0x83), False),
        (fat_image("ESP", {}), True),
        (b"", False),
        (b"\0" * 32768, False),
    ],
)
def test_efi_partitions(head: bytes, *, bootable: bool) -> None:
    assert has_efi_partition(head) is bootable


@given(st.binary(max_size=2048))
def test_no_disk_is_too_odd_to_look_at(tail: bytes) -> None:
    has_efi_partition(tail)
    has_efi_partition(b"\0" * 512 + b"EFI PART" + tail)


def descriptor(**changes: Any) -> str:
    flash = {"device": "flash", "executable": {"filename": "/code", "format": "raw"}}
    base = {
        "interface-types": ["uefi"],
        "mapping": flash | {"nvram-template": {"filename": "/vars", "format": "raw"}},
        "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
        "features": ["acpi-s3", "amd-sev", "verbose-dynamic"],
    }
    return json.dumps(base | changes)


def test_firmware_that_needs_least_is_taken() -> None:
    offered = {
        "40-keys": descriptor(features=["enrolled-keys", "requires-smm"]),
        "50-secure": descriptor(features=["requires-smm", "secure-boot"]),
        "55-arm": descriptor(targets=[{"architecture": "aarch64", "machines": ["virt-*"]}]),
        "56-bios": descriptor(**{"interface-types": ["bios"]}),
        "57-memory": descriptor(mapping={"device": "memory", "filename": "/x"}),
        "60-plain": descriptor(),
        "70-broken": "{",
        "71-odd": '{"targets": 3}',
    }
    plain = firmware.Firmware(Path("/code"), Path("/vars"))
    assert firmware.choose(offered) == [plain, firmware.Firmware(plain.code, plain.variables, needs_smm=True)]


def test_firmware_is_found_only_if_its_files_are_there(tmp_path: Path) -> None:
    assert firmware.find_firmware([tmp_path]) is None
    (tmp_path / "60.json").write_text(
        descriptor().replace("/code", f"{tmp_path}/code").replace("/vars", f"{tmp_path}/v")
    )
    assert firmware.find_firmware([tmp_path / "none", tmp_path]) is None
    (tmp_path / "code").touch()
    (tmp_path / "v").touch()
    assert firmware.find_firmware([tmp_path]) == firmware.Firmware(tmp_path / "code", tmp_path / "v")


# The host


def test_devices_of_others() -> None:
    xml = """<domain><devices>
      <hostdev type='pci'><source><address domain='0x0000' bus='0x21' slot='0x00' function='0x0'/></source>
        <address type='pci' domain='0x0000' bus='0x05' slot='0x00' function='0x0'/></hostdev>
      <hostdev type='usb'><source><address bus='1' device='2'/></source></hostdev>
      <interface type='hostdev'><source><address type='pci' domain='0x10000' bus='0xa2' slot='0x1f' function='0x7'/>
        </source></interface>
      <disk type='nvme'><source type='pci' namespace='1'><address domain='0x0' bus='0x1' slot='0x0' function='0x0'/>
        </source></disk>
    </devices></domain>"""
    assert passed_addresses(xml) == ["0000:01:00.0", "0000:21:00.0", "10000:a2:1f.7"]
    assert passed_addresses("<domain/>") == passed_addresses("what") == []


def test_amd(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\n")
    assert is_amd(file)
    file.write_text("vendor_id\t: GenuineIntel\n")
    assert not is_amd(file)
    assert not is_amd(tmp_path / "none")


def test_oom_kills_are_claimed_once_each(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("oom 5\noom_kill 2\n")
    cgroup = VmCgroup(tmp_path)
    cgroup.make()
    assert not cgroup.claim_oom()
    events.write_text("oom 7\noom_kill 4\n")
    assert [cgroup.claim_oom() for _ in range(3)] == [True, True, False]
    assert not VmCgroup(None).claim_oom()


def test_a_process_keeps_its_cpus_when_it_is_enclosed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The move into a cgroup with a cpuset gives threads all CPUs; a kernel that does so is played here."""
    affinity = {thread: {0} for thread in map(int, os.listdir("/proc/self/task"))}  # noqa: PTH208
    write = Path.write_text

    def moves(self: Path, text: str, *rest: Any, **more: Any) -> int:
        if self.name == "cgroup.procs":
            affinity.update({thread: {0, 1, 2} for thread in affinity})
        return write(self, text, *rest, **more)

    monkeypatch.setattr(Path, "write_text", moves)
    monkeypatch.setattr(os, "sched_getaffinity", lambda thread: affinity.get(thread, {0}))
    monkeypatch.setattr(os, "sched_setaffinity", lambda thread, cpus: affinity.update({thread: cpus}))
    VmCgroup(tmp_path).enclose(os.getpid())
    assert (tmp_path / "cgroup.procs").read_text() == str(os.getpid())
    assert all(cpus == {0} for cpus in affinity.values())


def test_devices_that_the_bus_numbers_of_many_nodes_do_not_reach_are_refused() -> None:
    cells = tuple(GuestCell(node, (), 64) for node in range(14))
    functions = [PassedFunction(f"{node:04x}:{bus:02x}:00.0", node) for node in range(14) for bus in range(12)]
    assert len(slots_of(functions, cells)) == 14 * 12
    with pytest.raises(ValueError, match="13 devices near one NUMA node; this VM can show 12"):
        slots_of([*functions, PassedFunction("0003:99:00.0", 3)], cells)
