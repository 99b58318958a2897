"""Parsers of single PCI attributes: what they make of real text, of odd text, and of any text."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.inventory import attributes, bars, config_space, path
from agent.inventory.bars import Bar
from agent.inventory.path import Path
from tests.unit.sysfs_fake import FakeSysfs

A100 = """0x00000000c0000000 0x00000000c0ffffff 0x0000000000040200
0x0000380000000000 0x0000381fffffffff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000382000000000 0x0000382001ffffff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000000002000 0x000000000000207f 0x0000000000040101
0x00000000c1000000 0x00000000c107ffff 0x0000000000046200
0x00000000f0000000 0x00000000f0ffffff 0x0000000000140204
"""
NONE = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"


def test_bars_of_a_gpu() -> None:
    found, wrong = bars.parse_resource(A100)
    assert not wrong
    assert found == (
        Bar(0, 16 << 20, 0xC0000000, is_64bit=False, prefetchable=False),
        Bar(1, 128 << 30, 0x380000000000, is_64bit=True, prefetchable=True),
        Bar(3, 32 << 20, 0x382000000000, is_64bit=True, prefetchable=True),
        Bar(6, 512 << 10, 0xC1000000, is_64bit=False, prefetchable=True),
    )
    assert [bar.is_above_4g for bar in found] == [False, True, True, False]
    assert bars.largest(found) == 128 << 30


def test_a_bar_that_got_no_place_has_a_size_and_no_address() -> None:
    unset = "0x0000000000000000 0x0000001fffffffff 0x000000002014220c\n"
    assert bars.parse_resource(unset + NONE * 6) == ((Bar(0, 128 << 30, 0, is_64bit=True, prefetchable=True),), "")
    stale = "0x0000000100000000 0x0000001fffffffff 0x000000002014220c\n"
    assert bars.parse_resource(stale + NONE * 6)[0][0].address == 0


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "ends after 0 of 6 lines"),
        (NONE * 3, "ends after 3 of 6 lines"),
        ("0x1 0x2\n" + NONE * 6, "line 0 is '0x1 0x2'"),
        ("x y z\n" + NONE * 6, "line 0"),
        ("0x1000 0x1fff 0x0\n" + NONE * 6, "line 0"),  # a range of no kind
        ("0x1 0x2 0x3 0x4\n" + NONE * 6, "line 0"),
        (NONE + "0x10000000000000000 0x0 0x0\n" + NONE * 5, "line 1"),
        ("0x2000 0x1fff 0x14220c\n" + NONE * 6, "line 0"),  # ends before it begins
        ("0x0 0xffffffffffffffff 0x14220c\n" + NONE * 6, "line 0"),  # of no bytes, or of all
        ("0x0 0x10000000000000 0x14220c\n" + NONE * 6, "line 0"),
    ],
)
def test_what_is_wrong_with_a_resource_file_is_said(text: str, wrong: str) -> None:
    found, complaint = bars.parse_resource(text)
    assert wrong in complaint
    assert not found


def test_one_bad_line_costs_one_bar() -> None:
    lines = A100.splitlines()
    lines[3] = "garbage"
    found, complaint = bars.parse_resource("\n".join(lines))
    assert [bar.index for bar in found] == [0, 1, 6]
    assert "line 3" in complaint


@given(st.one_of(st.text(max_size=300), st.lists(st.integers(0, 2**66).map(hex), max_size=30).map(" ".join)))
def test_any_text_has_bars_that_fit_the_contract(text: str) -> None:
    for bar in bars.parse_resource(text)[0]:
        assert 0 <= bar.index <= bars.ROM
        assert 0 < bar.size_bytes < 2**64
        assert 0 <= bar.address < 2**64


@pytest.mark.parametrize(
    ("target", "where"),
    [
        ("../../../devices/pci0000:20/0000:20:00.0/0000:21:00.0", Path("0000:20", ("0000:20:00.0",))),
        ("../../../devices/pci0000:00/0000:21:00.0", Path("0000:00", ())),
        (
            "/sys/devices/platform/40000000.pcie/pci0001:00/0001:00:01.0/0000:21:00.0",
            Path("0001:00", ("0001:00:01.0",)),
        ),
        # Intel VMD: a PCI device with a host bridge of its own below.
        (
            "../devices/pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0/0000:21:00.0",
            Path("10000:e0", ("10000:e0:06.0",)),
        ),
        ("../../../devices/pci0000:20/0000:20:00.0/0000:22:00.0", None),
        ("../../../devices/pci0000:20/virtio0/0000:21:00.0", None),
        ("../../../devices/pci0000:20/0000:21:00.0/0000:21:00.0", None),  # above itself
        ("0000:21:00.0", None),
        ("", None),
        ("/", None),
    ],
)
def test_paths(target: str, where: Path | None) -> None:
    assert path.parse_path(target, "0000:21:00.0") == where


@given(st.lists(st.sampled_from(["..", "devices", "pci0000:20", "0000:20:00.0", "0000:21:00.0", "x", ""]), max_size=9))
def test_any_path_ends_where_it_says(parts: list[str]) -> None:
    found = path.parse_path("/".join(parts), "0000:21:00.0")
    if found is not None:
        assert "0000:21:00.0" not in found.bridges
        assert found.root_bus == "0000:20"


@pytest.mark.parametrize(
    ("text", "state"), [("D0", "D0"), ("D3cold", "D3cold"), ("unknown", ""), ("error", ""), ("D9", None), ("", None)]
)
def test_power_states(text: str, state: str | None) -> None:
    assert attributes.power_state(text) == state


@pytest.mark.parametrize(
    ("text", "methods"),
    [
        ("flr bus", ("flr", "bus")),
        ("", ()),
        ("device_specific", ("device_specific",)),
        ("\ufffd\ufffd", None),
        ("a " * 99, None),
        ("FLR", None),
    ],
)
def test_reset_methods(text: str, methods: tuple[str, ...] | None) -> None:
    assert attributes.reset_methods(text) == methods


def capabilities(*entries: tuple[int, int, bytes], size: int = 4096) -> bytes:
    """A config space with extended capabilities: (offset, id and next, what follows)."""
    space = bytearray(size)
    for offset, header, rest in entries:
        struct.pack_into("<I", space, offset, header)
        space[offset + 4 : offset + 4 + len(rest)] = rest
    return bytes(space)


def header(capability: int, following: int) -> int:
    return following << 20 | 1 << 16 | capability


SERIAL = struct.pack("<Q", 0x48B02D0011223344)


@pytest.mark.parametrize(
    ("space", "serial"),
    [
        (capabilities((0x100, header(3, 0), SERIAL)), "48b02d0011223344"),
        (capabilities((0x100, header(1, 0x148), b""), (0x148, header(3, 0), SERIAL)), "48b02d0011223344"),
        (capabilities((0x100, header(1, 0x148), b""), (0x148, header(0xB, 0), b"")), ""),
        (
            capabilities(
                *((at, header(1, at + 16), b"") for at in range(0x100, 0x800, 16)), (0x800, header(3, 0), SERIAL)
            ),
            "48b02d0011223344",
        ),
        (capabilities((0x100, header(3, 0), bytes(8))), ""),  # left blank
        (capabilities((0x100, header(3, 0), b"\xff" * 8)), ""),
        (capabilities((0x100, header(1, 0x100), b"")), None),  # a loop
        (capabilities((0x100, header(1, 0x140), b""), (0x140, header(1, 0x100), b"")), None),
        (capabilities((0x100, header(1, 0xFFC), b""), (0xFFC, header(3, 0), b""))[:4096], None),  # runs over the end
        (bytes(4096), ""),
        (b"\xff" * 4096, None),  # does not answer
        (bytes(256), ""),  # conventional PCI
        (bytes(64), None),  # what a process that is not root sees
        (bytes(16), None),
        (b"", None),
        (bytes(0x102), None),
    ],
)
def test_serial_numbers(space: bytes, serial: str | None) -> None:
    assert config_space.serial_number(lambda offset, count: space[offset : offset + count]) == serial


@given(st.lists(st.binary(min_size=4, max_size=4), max_size=64), st.integers(0, 4096))
def test_no_config_space_is_too_odd(words: list[bytes], length: int) -> None:
    space = (bytes(0x100) + b"".join(words)).ljust(4096, b"\0")[:length]
    found = config_space.serial_number(lambda offset, count: space[offset : offset + count])
    assert found is None or found == "" or len(found) == 16
    buses = config_space.bridge_buses(space)
    assert buses is None or 0 < buses[0] <= buses[1] <= 255


def test_a_serial_number_is_asked_for_once_and_forgotten_with_its_device() -> None:
    sysfs = FakeSysfs({"d/config": capabilities((0x100, header(3, 0), SERIAL))})
    serials = config_space.Serials()
    assert serials.of(sysfs, "d", "0000:21:00.0") == "48b02d0011223344"
    sysfs.files["d/config"] = b"\xff" * 4096  # asleep, in reset, or off the bus
    assert serials.of(sysfs, "d", "0000:21:00.0") == "48b02d0011223344"
    serials.keep([])
    assert serials.of(sysfs, "d", "0000:21:00.0") is None
    sysfs.files["d/config"] = capabilities()
    assert serials.of(sysfs, "d", "0000:21:00.0") == "", "what could not be read is asked for again"


def test_newer_kernels_tell_the_serial_number() -> None:
    sysfs = FakeSysfs({"d/serial_number": "48-B0-2d-00-11-22-33-44\n"})
    assert config_space.Serials().of(sysfs, "d", "0000:21:00.0") == "48b02d0011223344"
    assert config_space.Serials().of(FakeSysfs({"d/serial_number": "junk"}), "d", "0000:21:00.0") is None
