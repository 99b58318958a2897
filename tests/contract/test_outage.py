"""Three real etcd members, a real session and a real guard: which outages a VM outlives, and which it must not.

The VM is a process that a pid file names. Times are those of a small TTL; make the outages longer with
GPUPOOL_OUTAGE_S (the protocol asks for two minutes).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from agent.clock import BootClock
from agent.guard.client import ProcessGuard
from agent.history import History
from agent.session import SessionKeeper
from agent.timing import Identity, Timing
from gpupool.embedded.etcd import EmbeddedEtcd, free_port
from gpupool.store.etcd import EtcdStore
from gpupool.store.etcd_members import Known
from gpupool.store.port import Sight, StoreError
from tests.e2e.three_etcd import three_members
from tests.fakes.agent_rig import MemoryRecords
from tests.fakes.relay import Relay

pytestmark = pytest.mark.etcd
TIMING = Timing(ttl_s=10, renew_s=2.0, kill_margin_s=2.0)
OUTAGE_S = float(os.environ.get("GPUPOOL_OUTAGE_S", "14"))


@pytest.fixture
async def members(etcd_binary: str, tmp_path: Path) -> AsyncIterator[list[EmbeddedEtcd]]:
    made = await three_members(tmp_path, etcd_binary)
    yield made
    for member in made:
        await member.kill()


class Host:
    """One session with its guard and its VM."""

    def __init__(self, directory: Path, endpoints: list[str]) -> None:
        self._vms = directory / "vms"
        self._vms.mkdir(parents=True)
        self.store = EtcdStore(endpoints)
        self.guard = ProcessGuard(directory / "guard.state", None, self._vms)
        self.vm: subprocess.Popen[bytes]
        records = MemoryRecords()
        me = Identity(directory.name, "boot-1", "127.0.0.1:1", "test", simulated=True)
        self.keeper = SessionKeeper(
            me, TIMING, self.store, self.guard, BootClock(), records, no_vms, history=History(records)
        )
        self._task: asyncio.Task[str] | None = None

    async def open(self) -> None:
        await self.keeper.open()
        self._start_vm()
        self._task = asyncio.create_task(self.keeper.hold())
        await within(10, self._knows_members)

    def _start_vm(self) -> None:
        self.vm = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(900)", str(self._vms)])
        (self._vms / "gpupool-j1.1.pid").write_text(str(self.vm.pid))

    async def _knows_members(self) -> bool:
        return not (await self.store.poll_members()).doubt

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.store.close()
        self.vm.kill()
        self.vm.wait()
        if self.guard.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.guard.pid, signal.SIGKILL)


async def no_vms() -> None:
    """The VM is made after the session, as far as the session knows."""


async def within(limit_s: float, holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(limit_s):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.1)


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[Callable[[list[str]], Awaitable[Host]]]:
    async with AsyncExitStack() as stack:

        async def make(endpoints: list[str]) -> Host:
            host = Host(tmp_path / "h1", endpoints)
            stack.push_async_callback(host.close)
            await host.open()
            return host

        yield make


Hosts = Callable[[list[str]], Awaitable[Host]]


async def sees(host: Host, *sights: Sight) -> None:
    """Wait until a poll sees these, in whatever order."""

    async def so() -> bool:
        seen = [sight for _, sight in (await host.store.poll_members()).members]
        return sorted(s.value for s in seen) == sorted(s.value for s in sights)

    await within(20, so)


async def dies_in_time(host: Host) -> None:
    assert host.vm.poll() is None
    left_s = host.keeper.left_s()
    began = time.monotonic()
    await asyncio.to_thread(host.vm.wait, left_s + TIMING.kill_margin_s)
    assert time.monotonic() - began < left_s + TIMING.kill_margin_s


async def test_two_of_three_are_stopped_and_vms_live_on(members: list[EmbeddedEtcd], hosts: Hosts) -> None:
    host = await hosts([member.endpoint for member in members])
    await asyncio.gather(members[0].kill(), members[1].stop())
    await sees(host, Sight.NO_LEADER, Sight.NOT_RUNNING, Sight.NOT_RUNNING)
    await asyncio.sleep(OUTAGE_S)
    assert host.vm.poll() is None
    assert host.keeper.left_s() > 0
    assert not host.keeper.fresh()  # VMs live on; none may start
    await asyncio.gather(members[0].start(60), members[1].start(60))

    async def fresh() -> bool:
        return host.keeper.fresh()

    await within(30, fresh)
    assert host.vm.poll() is None
    for member in members:
        await member.kill()
    await dies_in_time(host)  # no member answers: a firewall that refuses would look the same


async def test_members_that_are_silent_are_not_taken_for_absent(members: list[EmbeddedEtcd], hosts: Hosts) -> None:
    host = await hosts([member.endpoint for member in members])
    await members[0].kill()
    members[1].freeze()
    await sees(host, Sight.NO_LEADER, Sight.NOT_RUNNING, Sight.SILENT)
    await dies_in_time(host)


async def test_a_host_that_is_cut_off_loses_its_vms(members: list[EmbeddedEtcd], hosts: Hosts) -> None:
    async with AsyncExitStack() as stack:
        relays = [await stack.enter_async_context(Relay(member.endpoint)) for member in members]
        host = await hosts([relay.endpoint for relay in relays])
        for relay in relays:
            relay.silence()
        await dies_in_time(host)


async def test_a_list_that_is_not_the_clusters_is_never_ridden_on(members: list[EmbeddedEtcd]) -> None:
    store = EtcdStore([members[0].endpoint, members[1].endpoint])
    try:
        await store.learn_members()
        poll = await store.poll_members()
        assert "name each member once" in poll.doubt
        assert [sight for _, sight in poll.members] == [Sight.LEADER, Sight.LEADER]
        with contextlib.suppress(StoreError):
            await store.learn_members()
    finally:
        await store.close()


async def test_a_member_that_refuses_clients_only_may_still_lead() -> None:
    """etcd that is stopped closes its clients' port first; its peers' port tells when Raft has ended."""
    endpoint = f"127.0.0.1:{free_port()}"
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    peer = server.sockets[0].getsockname()[:2]
    store = EtcdStore([endpoint])
    try:
        store._members._known[endpoint] = Known(1, 2, (peer,), {peer})
        assert (await store.poll_members()).members == ((endpoint, Sight.SILENT),)
        server.close()
        await server.wait_closed()
        assert (await store.poll_members()).members == ((endpoint, Sight.NOT_RUNNING),)
        store._members._known[endpoint].accepted.clear()  # never seen to accept: a firewall, perhaps
        assert (await store.poll_members()).members == ((endpoint, Sight.SILENT),)
    finally:
        await store.close()
