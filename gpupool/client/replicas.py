"""The replicas of a scheduler: their addresses, one channel each, and which one is asked now."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from gpupool.errors import InvalidSpec

DEFAULT_PORT = 50151
MAX_MESSAGE_BYTES = 64 * 2**20  # a page of 1000 jobs with long specs

# Without pings a watch on a replica that lost its power would be silent for ever. A replica that has come back is
# tried within seconds, where gRPC's own back-off grows to two minutes. The minimum is also how long one attempt to
# connect may take (20 s by default), so a silent address is noticed in time to ask the next.
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # a limit of its own, 60 s by default
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
)

C = TypeVar("C")
S = TypeVar("S")


def addresses(text: str) -> list[str]:
    """Split "host1:port,host2"; a missing port is 50151. Raises InvalidSpec when there is none, or a bad port."""
    found = [_with_port(part.strip()) for part in text.split(",") if part.strip()]
    if not found:
        raise InvalidSpec([f'{text!r} names no scheduler; write "host:port", several with commas'])
    return found


def _with_port(address: str) -> str:
    if address.startswith("unix:") or "//" in address:
        return address  # gRPC's own spelling: unix:/path, dns:///name
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        return f"{address}:{DEFAULT_PORT}"
    if ":" in host and not host.startswith("["):
        return f"[{address}]:{DEFAULT_PORT}"  # a bare IPv6 address
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidSpec([f'{address!r} is no address; write "host:port"'])
    return address


@dataclass(frozen=True, slots=True)
class Replica(Generic[C, S]):
    """One address with its channel and stubs."""

    address: str
    channel: C
    stubs: S


class Replicas(Generic[C, S]):
    """All replicas; `current` is the one to ask. Channels are opened when first needed."""

    def __init__(self, text: str, channel: Callable[[str], C], stubs: Callable[[C], S]) -> None:
        self._addresses = addresses(text)
        self._channel = channel
        self._stubs = stubs
        self._open: dict[str, Replica[C, S]] = {}
        self._at = 0
        self._opening = threading.Lock()  # threads may share a Client

    def __len__(self) -> int:
        return len(self._addresses)

    @property
    def current(self) -> Replica[C, S]:
        """The replica to ask now."""
        address = self._addresses[self._at]
        with self._opening:
            if address not in self._open:
                channel = self._channel(address)
                self._open[address] = Replica(address, channel, self._stubs(channel))
            return self._open[address]

    def failed(self, replica: Replica[C, S]) -> None:
        """`replica` did not answer: ask the next one, unless another call has moved on already."""
        if replica.address == self._addresses[self._at]:
            self._at = (self._at + 1) % len(self._addresses)

    def take_channels(self) -> list[C]:
        """All channels that were opened, to be closed; none is open afterwards."""
        channels = [replica.channel for replica in self._open.values()]
        self._open.clear()
        return channels
