"""A gpupool whose hosts are lab hosts: etcd and a scheduler outside, an agent in each host, all of it real.

Everything listens on loopback, lives in one folder, and dies with this process. Times are generous: a lab host is tens
of times slower than the machine that it runs on.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Self

from gpupool.client import AsyncClient
from gpupool.embedded.daemons import Daemon, DaemonError
from gpupool.embedded.etcd import EmbeddedEtcd
from gpupool.v1 import records_pb2, scheduler_pb2

from .host import Host, HostError
from .images import Images, Tell
from .machine import ACCELERATOR_IDS, AGENT_PORT, GATEWAY, Machine, Ports
from .shell import LOOPBACK, ShellError

READY_S = 240.0
BOOT_TRIES = 2  # of the lab's own boot, never of what is tested
AGENT_LOG = "/var/log/gpupool-agent.log"
AGENT_PID = "/run/gpupool-agent.pid"
AGENT_OPTIONS = {
    "--ttl-s": "60",
    "--renew-s": "10",
    "--kill-margin-s": "10",
    "--start-timeout-s": "150",
    "--reset-timeout-s": "60",
    "--reserved-memory-mib": "512",
    "--gpu": ACCELERATOR_IDS,
}
SETTLED = frozenset(
    {records_pb2.UNIT_STATE_FREE, records_pb2.UNIT_STATE_QUARANTINED, records_pb2.UNIT_STATE_HELD}
)  # fmt: skip


class Cluster:
    """An async context manager: etcd and scheduler run within; hosts and agents as `boot` and `start_agent` say.

    `timings` has seconds by name, such as "h1 ready".
    """

    def __init__(
        self, folder: Path, machines: Mapping[str, Machine], images: Images, tell: Tell = lambda _: None
    ) -> None:
        self.folder = folder
        self.etcd = EmbeddedEtcd(folder / "etcd")
        self.timings: dict[str, float] = {}
        self.server = ""
        self._tell = tell
        ports, cores = _free_ports(2 * len(machines)), sorted(os.sched_getaffinity(0))
        self.hosts = {
            name: Host(name, machine, images, folder / name, ports=_pair(ports), core=cores[number % len(cores)])
            for number, (name, machine) in enumerate(sorted(machines.items()))
        }
        announce = folder / "scheduler.address"
        self._announce = announce
        self._scheduler: Daemon | None = None

    async def __aenter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        await self.etcd.start()
        arguments = ["--name", "s1", "--etcd", self.etcd.endpoint, "--listen", f"{LOOPBACK}:0"]
        arguments += ["--announce", str(self._announce)]
        self._scheduler = Daemon("scheduler", arguments, self.folder / "scheduler.log")
        self._announce.unlink(missing_ok=True)
        self._scheduler.start()
        while not (self._announce.exists() and (address := self._announce.read_text())):
            self._scheduler.check()
            await asyncio.sleep(0.05)
        self.server = address
        self._tell(f"lab: etcd serves at {self.etcd.endpoint}, the scheduler at {self.server}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(host.power_cut() for host in self.hosts.values()))
        if self._scheduler is not None:
            await self._scheduler.stop()
        await self.etcd.stop()

    def client(self) -> AsyncClient:
        """A client of the scheduler."""
        return AsyncClient(self.server, timeout_s=READY_S)

    async def rise(self, *names: str) -> None:
        """Switch these hosts on, or all, with agents, and return when they are READY and every unit is proven.

        Tried again where the emulator broke one. Raises HostError, or TimeoutError.
        """
        await asyncio.gather(*(self._rise(name) for name in names or self.hosts))

    async def _rise(self, name: str) -> None:
        for attempt in range(BOOT_TRIES):
            try:
                await self.boot(name)
                await self.start_agent(name)
                await self.ready((name,))
            except (HostError, TimeoutError, ShellError):
                if attempt == BOOT_TRIES - 1 or not self.hosts[name].broken:
                    raise
                self._tell(f"lab: the emulator broke {name}; booting anew")
            else:
                return

    def broken(self) -> dict[str, str]:
        """Hosts that the emulator broke, and how."""
        return {name: host.broken for name, host in self.hosts.items() if host.broken}

    async def heal(self) -> None:
        """No job, no cordon, and no host that the emulator broke or a test left off: for a test to start from."""
        async with self.client() as client:
            unfinished = [job.id async for job in client.list() if not job.status.finished_s]
            for job in unfinished:
                await client.cancel(job, "a test before left it")
            if broken := self.broken():
                self._tell(f"lab: the emulator broke {', '.join(broken)}; booting anew")
            if down := [name for name, host in self.hosts.items() if name in broken or not host.running]:
                await self.rise(*down)
            for host in await client.hosts():
                if host.intent.cordoned or host.record.held_out:  # a host that was lost thrice is taken for flapping
                    await client.uncordon(host.name, by="lab")
            for job in unfinished:
                await client.wait(job, timeout_s=READY_S)
        await self.ready()

    async def boot(self, *names: str) -> None:
        """Switch these hosts on, or all, and return when they are ready. Raises HostError."""
        await asyncio.gather(*(self._boot(self.hosts[name]) for name in names or self.hosts))

    async def _boot(self, host: Host) -> None:
        for attempt in range(BOOT_TRIES):
            await host.power_cut()
            host.start()
            try:
                await host.booted()
                await host.switch_on_virtual_functions()
                break
            except Exception:
                if attempt == BOOT_TRIES - 1:
                    raise
        for word, took_s in host.timings.items():
            self.timings[f"{host.name} boot: {word}"] = took_s
        self._tell(f"lab: {host.name} is up after {host.timings['ready']:g} s")

    async def start_agent(self, name: str, *, prelude: str = "", **options: str) -> None:
        """Start the agent of a host; `options` are further ones, such as ttl_s="30".

        `prelude` is shell that runs before it in the same process, such as "ulimit -l 64".
        """
        host = self.hosts[name]
        chosen = {
            "--name": name,
            "--etcd": f"{GATEWAY}:{self.etcd.endpoint.rpartition(':')[2]}",
            "--listen": f"0.0.0.0:{AGENT_PORT}",
            "--advertise": f"{LOOPBACK}:{host.ports.agent}",
            **AGENT_OPTIONS,
            **{f"--{option.replace('_', '-')}": value for option, value in options.items()},
        }
        pooled = [name for name, device in host.machine.devices().items() if device.vfs]
        nics = [f"--nic={address}" for name in pooled for address in await host.virtual_functions(name)]
        command = shlex.join(["gpupool-agent", *(word for pair in chosen.items() for word in pair), *nics])
        start = f"{prelude or ':'}; echo $$ > {AGENT_PID}; exec {command} >> {AGENT_LOG} 2>&1"
        await host.run(f"setsid bash -c {shlex.quote(start)} < /dev/null > /dev/null 2>&1 &")

    async def end_agent(self, name: str, signal: str = "TERM") -> None:
        """Send the agent a signal and return when it has ended. Its guard and VMs stay. Raises ShellError."""
        wait = f"kill -{signal} $(cat {AGENT_PID}) && while kill -0 $(cat {AGENT_PID}) 2> /dev/null; do sleep 0.1; done"
        await self.hosts[name].run(wait)

    async def agent_log(self, name: str) -> str:
        """What the agent logged on this boot."""
        return (await self.hosts[name].run(f"cat {AGENT_LOG}", check=False)).text

    async def ready(self, names: Collection[str] = (), within_s: float = READY_S) -> None:
        """Return when these hosts, or all, are READY and none of their units is left to prove.

        Raises HostError if one ends or is broken by the emulator, or TimeoutError.
        """
        began = time.monotonic()
        left = set(names or self.hosts)
        try:
            async with asyncio.timeout(within_s), self.client() as client:
                while left:
                    self.check(left)
                    if broken := sorted(left & self.broken().keys()):
                        raise HostError(f"the emulator broke {', '.join(broken)}")
                    for found in await client.hosts():
                        if found.name in left and await self._settled(client, found):
                            left.remove(found.name)
                            self.timings[f"{found.name} agent: READY, units proven"] = round(
                                time.monotonic() - began, 1
                            )
                            self._tell(f"lab: {found.name} is READY, {found.units_free} units proven clean")
                    await asyncio.sleep(0.2)
        except TimeoutError:
            logs = [f"--- {name}\n{(await self.agent_log(name))[-3000:]}" for name in sorted(left)]
            raise TimeoutError("not READY with proven units:\n" + "\n".join(logs)) from None

    async def _settled(self, client: AsyncClient, host: scheduler_pb2.Host) -> bool:
        if host.record.state != records_pb2.HOST_STATE_READY:
            return False
        units = [view for view in await client.units(host.name) if not view.unit.unfit]
        return bool(units) and all(view.state in SETTLED and view.current for view in units)

    def check(self, names: Collection[str] = ()) -> None:
        """Raise DaemonError or HostError if the scheduler or one of these hosts has ended."""
        if self._scheduler is None:
            raise DaemonError("the cluster was not started")
        self._scheduler.check()
        for name in names:
            self.hosts[name].check()


def _pair(ports: list[int]) -> Ports:
    return Ports(control=ports.pop(), agent=ports.pop())


def _free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on now, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
