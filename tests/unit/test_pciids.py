"""Names from pci.ids: found, missing, changed under our feet, and nonsense."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from agent.inventory.pciids import PciIds, look_up

TEXT = b"""#
# a comment
1002  Advanced Micro Devices, Inc. [AMD/ATI]
\t20b5  A device of AMD's
10de  NVIDIA Corporation
# with a comment in between
\t20b5  GA100 [A100 PCIe 80GB]
\t\t10de 1533  A board
\t2330  GH100 [H100 SXM5 80GB]
10df  Emulex Corporation
\t0720  OneConnect NIC
C 02  Network controller
\t00  Ethernet controller
"""
A100, H100 = ("NVIDIA Corporation", "GA100 [A100 PCIe 80GB]"), ("NVIDIA Corporation", "GH100 [H100 SXM5 80GB]")


def no_note(line: str) -> None:
    raise AssertionError(line)


def test_names() -> None:
    wanted = [(0x10DE, 0x20B5), (0x10DE, 0x2330), (0x10DE, 0x0720), (0x1533, 1), (0x10DF, 0x00)]
    assert look_up(TEXT, wanted) == {
        (0x10DE, 0x20B5): A100,
        (0x10DE, 0x2330): H100,
        (0x10DE, 0x0720): ("NVIDIA Corporation", ""),  # it is another vendor's
        (0x1533, 1): ("", ""),  # a subsystem is no vendor
        (0x10DF, 0x00): ("Emulex Corporation", ""),  # nor a class a device
    }


@given(st.binary(max_size=300), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_any_content(content: bytes, vendor: int, device: int) -> None:
    look_up(content, [(vendor, device)])
    odd = b"%04x %s\n\t%04x %s" % (vendor, content, device, content)
    for name in look_up(odd, [(vendor, device)])[vendor, device]:
        name.encode()


def test_a_file_is_read_once_until_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "pci.ids"
    file.write_bytes(TEXT)
    os.utime(file, ns=(1, 1))
    ids = PciIds([tmp_path / "missing", file])
    assert ids.names([(0x10DE, 0x20B5)], no_note) == {(0x10DE, 0x20B5): A100}
    file.write_bytes(TEXT.replace(b"GA100", b"GA999"))
    os.utime(file, ns=(1, 1))
    assert ids.names([(0x10DE, 0x20B5)], no_note) == {(0x10DE, 0x20B5): A100}, "read again without need"
    assert ids.names([(0x10DE, 0x2330)], no_note) == {(0x10DE, 0x2330): H100}, "what is new is looked up"
    os.utime(file, ns=(2, 2))
    assert ids.names([(0x10DE, 0x20B5)], no_note)[0x10DE, 0x20B5][1].startswith("GA999")


def test_without_a_file_there_are_no_names_and_a_note_that_says_what_to_install(tmp_path: Path) -> None:
    notes: list[str] = []
    ids = PciIds([tmp_path / "missing", tmp_path])
    assert ids.names([(0x10DE, 0x20B5)], notes.append) == {(0x10DE, 0x20B5): ("", "")}
    (note,) = notes
    assert "install pci.ids (Debian) or hwdata (RHEL)" in note
