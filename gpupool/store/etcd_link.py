"""Connections to the members of an etcd cluster: which one to ask, with which token, and until when.

One gRPC channel a member and our own rotation, instead of one channel with gRPC's pick_first or round_robin over
`ipv4:a,b`: those leave a member only when its TCP connection breaks, never because it is silent, cut off from its
leader, or slow, and they cannot mix DNS names or say which member answered. Here a member that lets a deadline pass or
reports no leader loses its turn. A request is sent only over a connection that stands, so a dead member costs no
write: nothing was sent. Beyond that, only what may safely be sent twice is sent twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
from aetcd.rpc import rpc_pb2, rpc_pb2_grpc

from gpupool.store import etcd_wire as wire
from gpupool.store.port import Refused, StoreError, Unavailable

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_OPTIONS: list[tuple[str, Any]] = [
    # etcd closes the connection of a client that pings oftener than its --grpc-keepalive-min-time, by default 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Neither pages of a list nor a watch's backlog fit gRPC's 4 MiB; etcd limits what we send.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # One channel's failures must not slow another down, and a member that came back is tried soon. The smallest backoff
    # is also the time that one attempt to connect gets.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),
]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. `ca` proves the server; `cert` and `key` prove us. Read once, when the store is made.

    `server_name` is checked in the server's certificate instead of the endpoint's host name.
    """

    ca: Path
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None


class Member:
    """One endpoint and its stubs."""

    def __init__(self, endpoint: str, tls: TlsFiles | None) -> None:
        self.endpoint = endpoint
        self.channel = _channel(endpoint, tls)
        self.kv: Any = rpc_pb2_grpc.KVStub(self.channel)
        self.lease: Any = rpc_pb2_grpc.LeaseStub(self.channel)
        self.watch: Any = rpc_pb2_grpc.WatchStub(self.channel)
        self.auth: Any = rpc_pb2_grpc.AuthStub(self.channel)
        self.maintenance: Any = rpc_pb2_grpc.MaintenanceStub(self.channel)
        self.cluster: Any = rpc_pb2_grpc.ClusterStub(self.channel)

    async def connected(self, within_s: float) -> bool:
        """Whether the connection stands within that time; False at once when connecting fails."""
        give_up = _now() + within_s
        while (state := self.channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE or _now() >= give_up:
                return False
            # Not wait_for_state_change: it cannot be cancelled cleanly, the core's callback outlives the waiter.
            await asyncio.sleep(0.01)
        return True


class Link:
    """The members in turn, the auth token, and the one way to send a request."""

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: TlsFiles | None,
        user: str | None,
        password: str | None,
        timeout_s: float,
    ) -> None:
        if not endpoints:
            raise ValueError("an etcd store needs at least one endpoint, such as 10.0.0.1:2379")
        self.timeout_s = timeout_s
        self.closed = False
        self.members = [Member(endpoint, tls) for endpoint in endpoints]
        self._current = 0
        self._login = rpc_pb2.AuthenticateRequest(name=user, password=password) if user is not None else None
        self._token: str | None = None
        self._token_lock = asyncio.Lock()

    async def run(self, send: Callable[[Member, float, grpc.aio.Metadata], Awaitable[_T]], *, again: bool) -> _T:
        """Call `send(member, timeout_s, metadata)`, and return its result, within `timeout_s` in all.

        `again` allows the next member to be asked when one failed in a way that leaves the outcome open. A token that
        is not known is replaced and the request sent once more in any case: it was not looked at. Raises StoreError,
        and gRPC's own error for a revision that is compacted.
        """
        deadline = _now() + self.timeout_s
        tries = len(self.members) if again else 1
        fresh_token = False
        while True:
            member = await self.ready(deadline)
            try:
                with self.open():
                    metadata = await self.metadata(member, deadline, renew=fresh_token)
                    return await send(member, max((deadline - _now()) / min(tries, 2), 0.001), metadata)
            except grpc.aio.AioRpcError as exc:
                if wire.is_stale_token(wire.details(exc)) and self._login and not fresh_token:
                    fresh_token = True
                    continue
                if wire.is_compacted(exc):
                    raise
                error: StoreError = wire.store_error(exc, member.endpoint)
            except (Unavailable, TimeoutError) as exc:
                error = exc if isinstance(exc, Unavailable) else Unavailable(f"{member.endpoint}: no answer in time")
            if not isinstance(error, Unavailable):
                raise error
            self.rotate(member)
            tries -= 1
            if tries == 0 or _now() >= deadline:
                raise error

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """What runs inside ends with Unavailable when the store is closed, and is still cancelled when it should be."""
        try:
            yield
        except asyncio.CancelledError:
            # gRPC ends the calls of a closed channel with the exception that also means "this task is cancelled".
            task = asyncio.current_task()
            if self.closed and task and not task.cancelling():
                raise Unavailable("the store was closed") from None
            raise

    async def ready(self, deadline: float) -> Member:
        """A member whose connection stands, the one in turn first. Raises Unavailable; then nothing has been sent."""
        first, count = self._current, len(self.members)
        for step in range(count):
            if self.closed:
                break
            index = (first + step) % count
            member = self.members[index]
            if await member.connected((deadline - _now()) / min(count - step, 2)):
                self._current = index
                return member
        raise Unavailable("the store is closed" if self.closed else f"no connection to {self}")

    def rotate(self, failed: Member) -> None:
        """Give the turn to the next member, unless another call has done so already."""
        if self.members[self._current] is failed:
            self._current = (self._current + 1) % len(self.members)

    async def metadata(self, member: Member, deadline: float, *, renew: bool = False) -> grpc.aio.Metadata:
        """What goes with every call: our token, and the wish to hear at once when the member knows no leader."""
        stale = self._token if renew else None
        async with self._token_lock:  # one login for all calls that wait for it: etcd hashes the password each time
            if self._login and (self._token is None or self._token == stale):
                self._token = await self._authenticate(member, deadline)
        return grpc.aio.Metadata(("hasleader", "true"), *self.token())

    def token(self) -> tuple[tuple[str, str], ...]:
        """The metadata that says who we are, as far as it is known; for what must work without a leader."""
        return (("token", self._token),) if self._token else ()

    async def _authenticate(self, member: Member, deadline: float) -> str:
        """A new token; empty when the cluster does not ask for one."""
        try:
            return str((await member.auth.Authenticate(self._login, timeout=max(deadline - _now(), 0.001))).token)
        except grpc.aio.AioRpcError as exc:
            if "authentication is not enabled" in wire.details(exc):
                return ""
            error = wire.store_error(exc, member.endpoint)
            if isinstance(error, Refused):
                _log.error("etcd refuses our login: %s", error)
            raise error from exc

    async def close(self) -> None:
        """Close every channel; calls under way end with Unavailable."""
        self.closed = True
        for member in self.members:
            await member.channel.close()

    def __str__(self) -> str:
        return ", ".join(member.endpoint for member in self.members)


def _channel(endpoint: str, tls: TlsFiles | None) -> grpc.aio.Channel:
    if tls is None:
        return grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(
        tls.ca.read_bytes(),
        tls.key.read_bytes() if tls.key else None,
        tls.cert.read_bytes() if tls.cert else None,
    )
    named = [("grpc.ssl_target_name_override", tls.server_name)] if tls.server_name else []
    return grpc.aio.secure_channel(endpoint, credentials, options=[*_OPTIONS, *named])


def _now() -> float:
    return asyncio.get_running_loop().time()
