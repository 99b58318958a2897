"""What happens behind the scenes of a runbook: the trouble that its reader is called to."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from gpupool.v1 import records_pb2, scheduler_pb2
from tests.e2e.fleet import FOREVER, Fleet, job, until
from tests.fakes.relay import Relay

FENCING, FENCED = records_pb2.HOST_STATE_FENCING, records_pb2.HOST_STATE_FENCED
LEASE_S = 6.0
OUTAGE_S = 15.0  # leases are of 6 s


class Stage:
    """`names` are what the page calls by capitals, such as JOB, and what they stand for."""

    def __init__(self, fleet: Fleet, cable: Relay) -> None:
        self.names: dict[str, str] = {}
        self._cable = cable
        self._fleet = fleet

    async def do(self, words: str) -> None:
        """One line such as "runs job on h2". Raises AttributeError for a word that it does not know."""
        name, *arguments = words.split()
        act: Callable[..., Awaitable[None]] = getattr(self, f"do_{name.replace('-', '_')}")
        await act(*arguments)

    async def do_runs(self, name: str, host: str) -> None:
        """A job of this name runs, on that host, until it is stopped."""
        others = [other for other in self._fleet.hosts if other != host]
        for other in others:
            await self._fleet.client.cordon(other, "stage", by="stage")
        spec = job(FOREVER, name=name)
        self.names[name] = (await self._fleet.client.submit(spec)).id
        await self._fleet.runs(self.names[name])
        for other in others:
            await self._fleet.client.uncordon(other, by="stage")

    async def do_runs_again(self, name: str) -> None:
        """Wait until the second attempt of a job runs."""
        await self._fleet.runs(self.names[name], attempt=2)

    async def do_power_cut(self, *hosts: str) -> None:
        """These hosts lose their power, at once."""
        for host in hosts:
            await self._fleet.hosts[host].power_cut()

    async def do_new_agent(self, host: str) -> None:
        """The agent of a host is replaced, as `systemctl restart` does."""
        agent = self._fleet.hosts[host].agent
        assert agent is not None
        await agent.stop()
        self._fleet.hosts[host].start_agent()

    async def do_new_scheduler(self, name: str) -> None:
        """A replica of the scheduler is replaced."""
        await self._fleet.cluster.replicas[name].stop()
        await self._fleet.cluster.start_replica(name)

    async def do_power_on(self, *hosts: str) -> None:
        """Somebody switches these hosts on."""
        for host in hosts:
            self._fleet.hosts[host].power_on()

    async def do_cut(self, host: str) -> None:
        """The cable between a host and etcd is cut, until its loss is noticed."""
        self._cable.silence()
        await self.do_lost(host)

    async def do_mend(self, host: str) -> None:
        """It is mended, and the host is back."""
        self._cable.speak()
        await self.do_ready(host)

    async def do_etcd_stops(self) -> None:
        """Two of three members are stopped, for longer than a lease lasts."""
        await self._fleet.etcd.stop()
        await asyncio.sleep(OUTAGE_S)

    async def do_etcd_starts(self) -> None:
        """They are started again."""
        await self._fleet.etcd.start()

    async def do_backup(self) -> None:
        """Somebody's cron job takes a snapshot of etcd."""
        await self._etcdctl("--endpoints", self._fleet.etcd.endpoint, "snapshot", "save", str(self._snapshot))

    async def do_restore(self) -> None:
        """etcd is stopped, and started from the snapshot."""
        etcd = self._fleet.etcd
        await etcd.stop()
        shutil.rmtree(etcd.data_dir / "member")
        peer = "http://127.0.0.1:1"  # a member alone never talks to it
        names = ["--name", "gpupool", "--initial-cluster", f"gpupool={peer}", "--initial-advertise-peer-urls", peer]
        await self._etcdctl(
            "snapshot", "restore", str(self._snapshot), "--data-dir", str(etcd.data_dir / "member"), *names
        )
        await etcd.start()
        await asyncio.sleep(LEASE_S)

    @property
    def _snapshot(self) -> Path:
        return self._fleet.cluster.folder / "backup.db"

    async def _etcdctl(self, *arguments: str) -> None:
        done = await asyncio.create_subprocess_exec("etcdctl", *arguments)
        assert await done.wait() == 0, arguments

    async def do_lost(self, host: str) -> None:
        """Wait until the loss of a host has been noticed."""

        async def lost() -> bool:
            return (await self._host(host)).record.state in (FENCING, FENCED)

        await until(lost)

    async def do_ready(self, host: str) -> None:
        """Wait until a host is back, with its units proven."""
        await self._fleet.cluster.ready({host})

    async def _host(self, name: str) -> scheduler_pb2.Host:
        return next(host for host in await self._fleet.client.hosts() if host.name == name)

    async def do_reset_fails(self, host: str) -> None:
        """The GPU of a host does not come back from its reset, from now on."""
        for unit in await self._fleet.units(self._fleet.hosts[host]):
            self._fleet.inject(self._fleet.hosts[host], unit, "reset-fails")
            self.names["unit"] = unit

    async def do_reset_works(self, host: str) -> None:
        """It does again: somebody has reseated it."""
        for unit in await self._fleet.units(self._fleet.hosts[host]):
            self._fleet.inject(self._fleet.hosts[host], unit, None)

    async def do_ends(self, name: str) -> None:
        """A job is cancelled, and over."""
        await self._fleet.client.cancel(self.names[name])
        await self._fleet.ends(self.names[name])

    async def do_quarantined(self, host: str) -> None:
        """Wait until a unit of the host is quarantined."""

        async def some() -> bool:
            views = (await self._fleet.units(self._fleet.hosts[host])).values()
            return any(view.state == records_pb2.UNIT_STATE_QUARANTINED for view in views)

        await until(some)
