"""The kernel's news of devices: what counts, how it is gathered, and what happens where there is none."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.inventory.uevents import SUBSYSTEMS, Uevents, subsystem_of

ADD = b"add@/devices/pci0000:20/x\0ACTION=add\0DEVPATH=/devices/pci0000:20/x\0SUBSYSTEM=%s\0SEQNUM=7\0"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    with ours, kernels:
        yield ours, kernels


async def first(news: Uevents) -> frozenset[str]:
    async with asyncio.timeout(10):
        async for changed in news.changes():
            return changed
    raise AssertionError("no news at all")


@pytest.mark.parametrize(
    ("message", "subsystem"),
    [
        (ADD % b"pci", "pci"),
        (b"libudev\0\xfe\xed\xca\xfe\0SUBSYSTEM=pci\0", ""),  # udevd's own format
        (b"add@/devices/x\0ACTION=add\0", ""),
        (b"SUBSYSTEM=pci\0", ""),
        (b"", ""),
    ],
)
def test_subsystems(message: bytes, subsystem: str) -> None:
    assert subsystem_of(message) == subsystem


@given(st.binary(max_size=200))
def test_no_message_is_too_odd(message: bytes) -> None:
    assert isinstance(subsystem_of(b"add@/x\0SUBSYSTEM=" + message), str)
    assert isinstance(subsystem_of(message), str)


async def test_a_burst_is_one_change(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, kernels = pair
    for subsystem in (b"net", b"pci", b"usb", b"memory", b"pci"):
        kernels.send(ADD % subsystem)
    assert await first(Uevents(lambda: ours, settle_s=0.05)) == {"pci", "memory"}


async def test_what_is_not_asked_for_is_no_change(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, kernels = pair
    kernels.send(ADD % b"net")
    task = asyncio.create_task(first(Uevents(lambda: ours, settle_s=0)))
    done, _ = await asyncio.wait([task], timeout=0.2)
    assert not done
    kernels.send(ADD % b"cpu")
    assert await task == {"cpu"}


async def test_lost_events_mean_that_anything_may_have_changed() -> None:
    class Overrun(socket.socket):
        def recvfrom(self, *_: object) -> tuple[bytes, object]:
            raise OSError(errno.ENOBUFS, "No buffer space available")

    with Overrun(socket.AF_UNIX, socket.SOCK_DGRAM) as source:
        source.setblocking(False)
        news = Uevents(lambda: source, settle_s=0.01)
        assert await news._next(source) == SUBSYSTEMS


@pytest.mark.parametrize(("port", "changed"), [(0, {"pci"}), (4711, set())])
async def test_only_the_kernel_is_believed(port: int, changed: set[str]) -> None:
    class Sent(socket.socket):
        def recvfrom(self, *_: object) -> tuple[bytes, object]:
            return ADD % b"pci", (port, 1)

    with Sent(socket.AF_UNIX, socket.SOCK_DGRAM) as source:
        source.setblocking(False)
        assert await Uevents(lambda: source)._next(source) == changed


async def test_where_there_is_no_news_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    def refused() -> socket.socket:
        raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")

    with caplog.at_level(logging.WARNING):
        assert [changed async for changed in Uevents(refused).changes()] == []
    assert len(caplog.records) == 1
    assert "Protocol not supported" in caplog.text
