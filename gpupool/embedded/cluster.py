"""A whole gpupool on one machine: etcd, schedulers, and agents of simulated hosts that start real VMs.

Everything listens on loopback, lives in one folder, and dies with this process.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gpupool.client import AsyncClient
from gpupool.embedded.daemons import Daemon, DaemonError, Fuse, remove_tree
from gpupool.embedded.etcd import EmbeddedEtcd
from gpupool.v1 import records_pb2, scheduler_pb2

READY_S = 60.0
# A few hosts that are killed on purpose, and often: that is no mass failure, and none of them is worn out.
POLICY = "brake: {share: 0, cooldown_s: 10}\nflap: {losses: 0}\n"


class SimulatedHost:
    """One host: its power, its agent, its guard and VMs."""

    def __init__(self, name: str, gpus: str, root: Path, arguments: Mapping[str, str]) -> None:
        self.name = name
        self.gpus = gpus
        self.folder = root / name
        self._arguments = dict(arguments)
        self._fuse = Fuse(f"gpupool-{os.getpid()}-{name}", self.folder)
        self.boot_id = ""
        self.agent: Daemon | None = None

    def power_on(self) -> None:
        """Boot: nothing of an earlier boot is left on its tmpfs."""
        remove_tree(self.folder)
        self.folder.mkdir(parents=True)
        self.boot_id = str(uuid.uuid4())
        self.start_agent()

    def start_agent(self) -> None:
        """Start the agent, on this boot."""
        options = {
            **self._arguments,
            "--name": self.name,
            "--simulate": self.gpus,
            "--state-dir": f"{self.folder}/state",
            "--libvirt-uri": f"qemu:///embed?root={self.folder}/state/vms",
            "--boot-id": self.boot_id,
        }
        if self._fuse.cgroup is not None:
            vms = self._fuse.cgroup / "vms"
            vms.mkdir(exist_ok=True)
            options["--cgroup"] = str(vms)
        self.agent = Daemon("agent", [w for pair in options.items() for w in pair], self.folder.with_suffix(".log"))
        self.agent.start()
        self._fuse.add(self.agent.pid)

    async def power_cut(self) -> None:
        """End agent, guard and VMs at once, as a power cut does; returns when none is left."""
        await self._fuse.blow()
        if self.agent is not None:
            await self.agent.kill()

    async def stop(self) -> None:
        """End everything and clean up."""
        await self.power_cut()
        self._fuse.remove()


class EmbeddedCluster:
    """See the module docstring. `hosts` maps names to GPUs, e.g. {"h1": "4xnvidia-a100-80gb"}.

    `folder` should have a short path (UNIX sockets live in it). `agent_options` are passed on to every agent,
    `host_options` to that of one host, `scheduler_options` to every replica.
    """

    def __init__(
        self,
        folder: Path,
        *,
        images: Path,
        hosts: Mapping[str, str],
        replicas: int = 2,
        port: int = 0,
        agent_options: Mapping[str, str] | None = None,
        host_options: Mapping[str, Mapping[str, str]] | None = None,
        scheduler_options: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self._images = images.absolute()
        self._replica_count = replicas
        self._port = port
        self._agent_options = dict(agent_options or {})
        self._host_options = dict(host_options or {})
        self._scheduler_options = dict(scheduler_options or {})
        self._shapes = dict(hosts)
        self.etcd = EmbeddedEtcd(folder / "etcd")
        self.hosts: dict[str, SimulatedHost] = {}
        self.replicas: dict[str, Daemon] = {}
        self._addresses: dict[str, str] = {}

    @property
    def server(self) -> str:
        """Addresses of all replicas, for a client."""
        return ",".join(self._addresses[name] for name in sorted(self._addresses))

    async def start(self, tell: Callable[[str], None] = lambda _: None) -> None:
        """Start all of it, and return when every host is READY and its units are proven clean. Raises DaemonError."""
        await self.etcd.start()
        tell(f"etcd serves at {self.etcd.endpoint}")
        for number in range(1, self._replica_count + 1):
            self._start_replica(f"s{number}", self._port + number - 1 if self._port else 0)
        volumes = self.folder / "volumes"
        volumes.mkdir(exist_ok=True)
        shared = {"--etcd": self.etcd.endpoint, "--images": str(self._images), "--volumes": str(volumes)}
        for name, gpus in sorted(self._shapes.items()):
            options = {**shared, **self._agent_options, **self._host_options.get(name, {})}
            host = SimulatedHost(name, gpus, self.folder / "hosts", options)
            self.hosts[name] = host
            await host.power_cut()  # VMs may have outlived an earlier cluster in this folder that was killed
            host.power_on()
        for name in sorted(self.replicas):
            self._addresses[name] = await self._announced(name)
            tell(f"scheduler {name} serves at {self._addresses[name]}")
        await self.ready(set(self.hosts), tell)

    async def ready(self, hosts: set[str], tell: Callable[[str], None] = lambda _: None) -> None:
        """Return when these hosts are READY and no unit of theirs is left to prove."""
        told: set[str] = set()
        async with asyncio.timeout(READY_S), AsyncClient(self.server, timeout_s=READY_S) as client:
            while told < hosts:
                self.check()
                for host in await client.hosts():
                    if host.name in hosts - told and (units := await self._settled(client, host)):
                        told.add(host.name)
                        free = sum(unit.state == records_pb2.UNIT_STATE_FREE for unit in units)
                        tell(f"host {host.name} is READY: {self._shapes[host.name]}, {free} units proven clean")
                await asyncio.sleep(0.1)

    async def _settled(self, client: AsyncClient, host: scheduler_pb2.Host) -> Sequence[scheduler_pb2.UnitView]:
        """The host's units, if it is READY, in a session of its present boot, with every unit proven or in use."""
        if host.record.state != records_pb2.HOST_STATE_READY or host.record.boot_id != self.hosts[host.name].boot_id:
            return ()
        units = await client.units(host.name)
        done = (records_pb2.UNIT_STATE_FREE, records_pb2.UNIT_STATE_QUARANTINED, records_pb2.UNIT_STATE_HELD)
        return units if all(unit.state in done and unit.current for unit in units) else ()

    def check(self) -> None:
        """Raise DaemonError if a daemon that should run has ended."""
        for daemon in (*self.replicas.values(), *(h.agent for h in self.hosts.values() if h.agent)):
            daemon.check()

    async def leader(self) -> str:
        """The name of the leading replica. Raises GpupoolError."""
        async with AsyncClient(self.server) as client:
            return (await client.cluster()).leader.id

    async def start_replica(self, name: str) -> None:
        """Start a replica that has ended, at the address that it had. Raises DaemonError."""
        self._start_replica(name, int(self._addresses[name].rpartition(":")[2]))
        await self._announced(name)

    def _start_replica(self, name: str, port: int) -> None:
        announce = self.folder / f"{name}.address"
        announce.unlink(missing_ok=True)
        arguments = ["--name", name, "--etcd", self.etcd.endpoint, "--listen", f"127.0.0.1:{port}"]
        policy = self.folder / "policy.yaml"
        policy.write_text(POLICY)
        options = {"--policy": str(policy), **self._scheduler_options}
        arguments += [word for pair in options.items() for word in pair]
        self.replicas[name] = Daemon(
            "scheduler", [*arguments, "--announce", str(announce)], self.folder / f"{name}.log"
        )
        self.replicas[name].start()

    async def _announced(self, name: str) -> str:
        announce = self.folder / f"{name}.address"
        for _ in range(int(READY_S / 0.05)):
            if announce.exists() and (address := announce.read_text()):
                return address
            self.replicas[name].check()
            await asyncio.sleep(0.05)
        raise DaemonError(f"scheduler {name} did not start in {READY_S:g} s; see {self.replicas[name].log}")

    async def stop(self) -> None:
        """End everything that was started."""
        await asyncio.gather(*(host.stop() for host in self.hosts.values()))
        await asyncio.gather(*(replica.stop() for replica in self.replicas.values()))
        await self.etcd.stop()
