"""Access Control Services in config space: what each kind of bridge comes to, and that no bytes are too odd."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.doctor.acs import DOWNSTREAM_PORT, EXPRESS_TO_PCI, ROOT_PORT, UPSTREAM_PORT, why_shared
from tests.unit.doctor_host import config


@pytest.mark.parametrize("kind", [ROOT_PORT, DOWNSTREAM_PORT])
def test_a_port_separates_by_acs(kind: int) -> None:
    assert why_shared(config(kind, acs=(0x1F, 0x1D))) == ""
    assert why_shared(config(kind, acs=None)) == "no ACS capability"
    assert why_shared(config(kind, acs=(0x1F, 0x00))) == "its ACS is switched off"
    assert why_shared(config(kind, acs=(0x1F, 0x19))) == "its ACS is switched off", "request redirect is off"


def test_only_what_the_port_can_do_is_asked_of_it() -> None:
    """As the kernel judges: a port without peer-to-peer routing need not redirect any."""
    assert why_shared(config(acs=(0x01, 0x01))) == ""


def test_bridges_that_are_not_asked_or_never_can() -> None:
    assert why_shared(config(UPSTREAM_PORT, acs=None)) == ""
    assert "conventional PCI" in why_shared(config(EXPRESS_TO_PCI))
    plain = bytearray(256)
    plain[:2] = bytes([0x86, 0x80])
    assert "conventional PCI" in why_shared(bytes(plain))


def test_what_cannot_be_read_is_said() -> None:
    assert "cannot be read" in why_shared(None)
    assert "cannot be read" in why_shared(b"")
    assert "root" in why_shared(config(size=64)), "what others than root may read"
    assert "root" in why_shared(config(size=256))


@pytest.mark.parametrize("byte", [0x00, 0xFF])
@pytest.mark.parametrize("size", [64, 256, 4096])
def test_a_bridge_that_does_not_answer_is_not_called_conventional(byte: int, size: int) -> None:
    assert "does not answer" in why_shared(bytes([byte] * size))


def test_a_list_that_loops_ends() -> None:
    looping = bytearray(config(acs=None))
    looping[0x50:0x52] = bytes([0x01, 0x50])
    assert "conventional" in why_shared(bytes(looping))
    looping = bytearray(config(acs=None))
    looping[0x148:0x14C] = (0x0001 | 1 << 16 | 0x100 << 20).to_bytes(4, "little")
    assert why_shared(bytes(looping)) == "no ACS capability"


@settings(deadline=None)
@given(
    head=st.binary(max_size=600),
    size=st.sampled_from([0, 63, 64, 256, 4095, 4096, 5000]),
    fill=st.integers(0, 255),
    kind=st.sampled_from([None, ROOT_PORT]),
)
def test_no_bytes_are_too_odd(head: bytes, size: int, fill: int, kind: int | None) -> None:
    base = bytearray(config(kind)) if kind is not None else bytearray([fill] * 5000)
    base[: len(head)] = head
    assert isinstance(why_shared(bytes(base[:size])), str)
