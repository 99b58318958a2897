"""What each member of an etcd cluster says for itself, for those who must know that nobody leads.

`learn` notes who the members are while the cluster answers; `poll` asks every one of them at its own address. What is
concluded is the caller's affair (agent/riding.py, docs/failover.md). This module must never call a member gone, or
the list complete, that might not be: whatever is not certain is SILENT, or a doubt.

A member that is stopped closes its clients' port first, and may go on leading until its last streams have ended; its
peers' port closes only after Raft has stopped (`Etcd.Close` in etcd's embed/etcd.go), and opens before Raft
begins. So a member is not running only if *both* refuse a connection. And a firewall may refuse in its name: a peers'
port counts only if it once accepted a connection from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import grpc
from aetcd.rpc import rpc_pb2

from gpupool.store.etcd_link import Link, Member
from gpupool.store.port import Poll, Sight

STATUS_S = 0.6
CONNECT_S = 0.3
_Address = tuple[str, int]


@dataclass
class Known:
    """What is known of one endpoint's member: its ids by its own word, its peers' addresses by the cluster's."""

    cluster: int
    member: int
    peers: tuple[_Address, ...] = ()
    accepted: set[_Address] = field(default_factory=set)

    def refusable(self) -> bool:
        """Whether a refusal at all of its peers' addresses would mean something."""
        return bool(self.peers) and self.accepted.issuperset(self.peers)


class Members:
    """The cluster's members behind a link's endpoints. `probe` is a read that our role is permitted."""

    def __init__(self, link: Link, probe: rpc_pb2.RangeRequest) -> None:
        self._link = link
        self._probe = probe
        self._known: dict[str, Known] = {}  # by endpoint
        self._doubt = "the members of the cluster were never learnt"

    async def learn(self) -> None:
        """See Store.learn_members."""
        listed = await self._link.run(self._list, again=True)
        if {known.member for known in self._known.values()} != set(listed):
            self._known.clear()  # somebody came or went: ask all endpoints anew
            self._doubt = "the members of the cluster have changed"  # stands, if we get no further
        await asyncio.gather(*(self._meet(m) for m in self._link.members if m.endpoint not in self._known))
        self._doubt = _doubt([m.endpoint for m in self._link.members], self._known, set(listed))
        for known in self._known.values():
            known.peers = listed.get(known.member, ())
        await asyncio.gather(*(self._try_peers(endpoint, known) for endpoint, known in self._known.items()))

    async def _list(
        self, member: Member, timeout_s: float, metadata: grpc.aio.Metadata
    ) -> dict[int, tuple[_Address, ...]]:
        """Peers' addresses by member. The list is of one member; the read before makes sure that it is not behind."""
        await member.kv.Range(self._probe, timeout=timeout_s, metadata=metadata)
        answer = await member.cluster.MemberList(rpc_pb2.MemberListRequest(), timeout=timeout_s, metadata=metadata)
        return {one.ID: _addresses(one.peerURLs) for one in answer.members}

    async def _meet(self, member: Member) -> None:
        status = await self._status(member)
        if status is not None:
            self._known[member.endpoint] = Known(status.header.cluster_id, status.header.member_id)

    async def _try_peers(self, endpoint: str, known: Known) -> None:
        """Once: see that the peers' addresses can be reached, and are not some loopback that means another machine."""
        ours = _loopback(_split(endpoint)[0])
        for address in set(known.peers) - known.accepted:
            if _loopback(address[0]) <= ours and await _connects(address) is True:
                known.accepted.add(address)

    async def poll(self) -> Poll:
        """See Store.poll_members."""
        sights = await asyncio.gather(*(self._sight(member) for member in self._link.members))
        names = [member.endpoint for member in self._link.members]
        return Poll(tuple(sorted(zip(names, sights, strict=True))), self._doubt)

    async def _sight(self, member: Member) -> Sight:
        known = self._known.get(member.endpoint)
        if known is None:
            return Sight.SILENT
        status = await self._status(member)
        if status is not None:
            if (status.header.cluster_id, status.header.member_id) != (known.cluster, known.member):
                return Sight.SILENT  # another member answers under this address
            return Sight.LEADER if status.leader else Sight.NO_LEADER
        if not known.refusable():
            return Sight.SILENT
        refused = [await _connects(address) is False for address in (_split(member.endpoint), *known.peers)]
        return Sight.NOT_RUNNING if all(refused) else Sight.SILENT

    async def _status(self, member: Member) -> Any:
        """The member's own word, or None. Without "hasleader", which would refuse just when we want to hear."""
        try:
            async with asyncio.timeout(STATUS_S):
                if not await member.connected(STATUS_S):
                    return None
                metadata = grpc.aio.Metadata(*self._link.token())
                return await member.maintenance.Status(rpc_pb2.StatusRequest(), timeout=STATUS_S, metadata=metadata)
        except (grpc.aio.AioRpcError, TimeoutError):
            return None


def _doubt(endpoints: Sequence[str], known: dict[str, Known], listed: set[int]) -> str:
    """Why the endpoints may not be all members, one for one; empty if they are."""
    unmet = [endpoint for endpoint in endpoints if endpoint not in known]
    if unmet:
        return f"{', '.join(unmet)} has not yet said which member it is"
    members = sorted(one.member for one in known.values())
    if members != sorted(listed) or len({one.cluster for one in known.values()}) != 1:
        return (
            f"the endpoints {', '.join(endpoints)} are the members {_hex(members)}, but the cluster's members are "
            f"{_hex(sorted(listed))}; name each member once"
        )
    return ""


def _hex(members: Sequence[int]) -> str:
    return ", ".join(f"{member:x}" for member in members)


def _addresses(urls: Sequence[str]) -> tuple[_Address, ...]:
    """Hosts and ports of URLs; nothing at all if one of them cannot be read."""
    try:
        parts = [urlsplit(url) for url in urls]
        return tuple(sorted((part.hostname or "", part.port or 0) for part in parts))
    except ValueError:
        return ()


def _split(endpoint: str) -> _Address:
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _connects(address: _Address) -> bool | None:
    """Whether a TCP connection is accepted; False: refused, by each of the name's addresses; None: neither is sure."""
    try:
        async with asyncio.timeout(CONNECT_S):
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(*address, type=socket.SOCK_STREAM)
            outcomes = [await _connect(family, where) for family, _, _, _, where in found]
    except (OSError, TimeoutError):
        return None
    if any(outcomes):
        return True
    return False if outcomes and all(outcome is False for outcome in outcomes) else None


async def _connect(family: int, where: Any) -> bool | None:
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(probe, where)
        except ConnectionRefusedError:
            return False
        except OSError:
            return None
    return True
