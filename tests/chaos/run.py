"""One run: bring it all up, submit jobs all the time, break things as planned, mend everything, judge.

It must leave nothing behind, and never report less than what it saw: the plan, each fault with its time, the findings.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from gpupool.client import AsyncClient
from gpupool.embedded.daemons import remove_tree
from gpupool.errors import GpupoolError
from gpupool.store import keys
from gpupool.store.etcd import EtcdStore
from gpupool.store.port import Put, StoreError
from gpupool.v1 import job_pb2, records_pb2
from tests.chaos import epochs
from tests.chaos.checker import FINAL, History, Sighting, findings, longest_gap_s
from tests.chaos.net import Network
from tests.chaos.nodes import API_PORT, ETCD_PORT, MODEL, Etcd, Host, Node, Scheduler
from tests.chaos.operator import Operator
from tests.chaos.plan import ETCD, HOSTS, NODES, SCHEDULERS, Fault, Kind, make_plan
from tests.e2e.fleet import processes

READY_S, SETTLE_S, LOOK_S = 120.0, 300.0, 0.05
AT_ONCE = 3  # jobs that are not finished
BEATS = (20, 120)
WEIGHTS, WEIGHT = 30, 32 << 10  # writes, and bytes of each, while a member's disk is full
Tell = Callable[[str], None]


@dataclass(slots=True)
class Report:
    """What a run came to."""

    seed: int
    seconds: float
    faults: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    finished: int = 0
    restarts: int = 0
    start_failures: int = 0
    incarnations: int = 0
    beats: int = 0
    longest_gap_s: float = 0.0
    settled_s: float = 0.0
    load: float = 0.0
    operator: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> str:
        return json.dumps({name: getattr(self, name) for name in self.__slots__}, indent=2, default=dict)


class Chaos:
    """See the module docstring."""

    def __init__(self, seed: int, seconds: float, images: Path, tell: Tell) -> None:
        self.report = Report(seed, seconds, load=round(os.getloadavg()[0], 1))
        self.plan = make_plan(seed, seconds)
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
        self._tell = tell
        self._rng = Random(f"{seed}/jobs")
        self._net = Network(NODES)
        self._volumes = self.folder / "volumes"
        self._volumes.mkdir()
        self._endpoints = [f"{self._net.address(name)}:{ETCD_PORT}" for name in ETCD]
        endpoints = ",".join(self._endpoints)
        self.etcd = {name: Etcd(name, self._net, self.folder, ETCD) for name in ETCD}
        self.schedulers = {name: Scheduler(name, self._net, self.folder, endpoints) for name in SCHEDULERS}
        self.hosts = {name: Host(name, self._net, self.folder, endpoints, images.absolute()) for name in HOSTS}
        self.nodes: dict[str, Node] = {**self.etcd, **self.schedulers, **self.hosts}
        self._reader = epochs.Reader(self._volumes)
        self._sightings: list[Sighting] = []
        self._acknowledged: list[str] = []
        self._server = ",".join(f"{self._net.address(name)}:{API_PORT}" for name in SCHEDULERS)

    async def run(self) -> Report:
        """All of it. Nothing is left when it returns or raises, but the folder with the logs if something was found."""
        try:
            self._net.up()
            await self._start()
            async with AsyncClient(self._server, timeout_s=20) as client:
                await self._ready(client)
                self._tell(f"all is up in {self.folder}")
                watching = [asyncio.create_task(work) for work in (self._tend(), self._look(), self._sight())]
                try:
                    await self._break_things(client)
                    history = await self._settle(client)
                finally:
                    for task in watching:
                        task.cancel()
                    for result in await asyncio.gather(*watching, return_exceptions=True):
                        if isinstance(result, Exception):
                            raise result
            self._judge(history)
        finally:
            await self._end()
        return self.report

    # Up and down

    async def _start(self) -> None:
        for member in self.etcd.values():
            member.mount()
            member.start()
        for scheduler in self.schedulers.values():
            scheduler.start()
        for host in self.hosts.values():
            host.boot()

    async def _ready(self, client: AsyncClient) -> None:
        async with asyncio.timeout(READY_S):
            while not await self._all_ready(client):
                await asyncio.sleep(0.5)

    async def _all_ready(self, client: AsyncClient) -> bool:
        """Whether every host is READY with every unit free and clean."""
        try:
            hosts, units = await client.hosts(), await client.units()
        except GpupoolError:
            return False
        ready = [host for host in hosts if host.record.state == records_pb2.HOST_STATE_READY]
        free = [view for view in units if view.state == records_pb2.UNIT_STATE_FREE and view.current]
        return len(ready) == len(HOSTS) and len(free) == len(units) == 2 * len(HOSTS)

    async def _end(self) -> None:
        await asyncio.gather(*(node.stop() for node in self.nodes.values()), return_exceptions=True)
        self._net.down()
        keep = Path("var/chaos") / f"seed-{self.report.seed}"
        shutil.rmtree(keep, ignore_errors=True)
        keep.mkdir(parents=True)
        for log in self.folder.glob("*.log"):
            shutil.copy(log, keep)
        (keep / "report.json").write_text(self.report.as_json() + "\n")
        remove_tree(self.folder)

    # What goes on all the time

    async def _tend(self) -> None:
        while True:
            for node in self.nodes.values():
                node.tend()
            await asyncio.sleep(0.2)

    async def _look(self) -> None:
        while True:
            await asyncio.to_thread(self._reader.look)
            await asyncio.sleep(LOOK_S)

    async def _sight(self) -> None:
        """Processes say the same as volumes do, and also see VMs that have not begun to beat."""
        while True:
            alive = [name for host in self.hosts.values() for name in await asyncio.to_thread(host.vms)]
            for job, names in itertools.groupby(sorted(alive), key=lambda name: name.rpartition(".")[0]):
                together = tuple(names)
                if len(together) > 1:
                    self._sightings.append(Sighting(time.clock_gettime(time.CLOCK_BOOTTIME), job, together))
            await asyncio.sleep(0.1)

    # The run

    async def _break_things(self, client: AsyncClient) -> None:
        begun = time.monotonic()
        submitting = asyncio.create_task(self._submit(client))
        operator = Operator(client, self.report.operator)
        operating = asyncio.create_task(operator.run())
        try:
            async with asyncio.TaskGroup() as group:
                for fault in self.plan:
                    await asyncio.sleep(max(0.0, begun + fault.at_s - time.monotonic()))
                    group.create_task(self._one(fault, begun))
            await asyncio.sleep(max(0.0, begun + self.report.seconds - time.monotonic()))
        finally:
            for task in (submitting, operating):
                task.cancel()
            await asyncio.gather(submitting, operating, return_exceptions=True)

    async def _submit(self, client: AsyncClient) -> None:
        """Keeps some jobs going; each is insisted on until it is acknowledged, with one key."""
        for number in itertools.count(1):
            spec = epochs.job(self._rng.randint(*BEATS), f"chaos-{number}", MODEL)
            while True:
                try:
                    while await self._unfinished(client) >= AT_ONCE:
                        await asyncio.sleep(1.0)
                    answer = await client.submit(spec, f"chaos-{number}", allow_unavailable=True)
                    break
                except GpupoolError:
                    await asyncio.sleep(0.5)
            self._acknowledged.append(answer.id)

    async def _unfinished(self, client: AsyncClient) -> int:
        return sum(state not in FINAL for state in (await _states(client)).values())

    async def _one(self, fault: Fault, begun: float) -> None:
        self.report.faults[fault.kind] += 1
        self._tell(str(fault))
        async with self._broken(fault):
            await asyncio.sleep(fault.for_s)
        self._tell(f"{time.monotonic() - begun:7.1f} s  {fault.kind} {fault.node} is over")

    @contextlib.asynccontextmanager
    async def _broken(self, fault: Fault) -> AsyncIterator[None]:
        node = self.nodes[fault.node]
        match fault.kind:
            case Kind.PAUSE:
                node.signal(signal.SIGSTOP)
                yield
                node.signal(signal.SIGCONT)
            case Kind.KILL:
                await node.kill()
                yield
                node.wanted = True
            case Kind.GUARD:
                self.hosts[fault.node].kill_guard()
                yield
            case Kind.POWER:
                await self.hosts[fault.node].power_cut()
                yield
                self.hosts[fault.node].boot()
            case Kind.FULL:
                await asyncio.to_thread(self.etcd[fault.node].fill)
                await self._weight()
                yield
                self.etcd[fault.node].free()
            case _:
                self._net.cut(fault.edges)
                yield
                self._net.heal(fault.edges)

    async def _weight(self) -> None:
        """Some large writes: the state of a small cluster fits into what a member's files have already."""
        store = EtcdStore(self._endpoints)
        with contextlib.suppress(StoreError):
            for _ in range(WEIGHTS):
                await store.commit([], [Put("/chaos/weight", os.urandom(WEIGHT))])
        await store.close()

    # The end

    async def _settle(self, client: AsyncClient) -> History:
        """All is whole: every job must end, and everything come back."""
        begun = time.monotonic()
        operating = asyncio.create_task(Operator(client, self.report.operator).run())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                while not (await self._all_over(client) and await self._all_ready(client)):
                    await asyncio.sleep(1.0)
        operating.cancel()
        self.report.settled_s = round(time.monotonic() - begun, 1)
        await asyncio.sleep(2.0)
        leaks = await self._leaks(client)
        jobs = [found async for found in client.list()]
        self._count(jobs)
        refused = [
            f"{found.id}.{attempt.number}: {attempt.message}"
            for found in jobs
            for attempt in found.status.attempts
            if "lock" in attempt.message
        ]
        states = {found.id: _name(found) for found in jobs}
        return History(self._reader.beats, self._sightings, refused, self._acknowledged, states, leaks)

    async def _all_over(self, client: AsyncClient) -> bool:
        try:
            return await self._unfinished(client) == 0
        except GpupoolError:
            return False

    async def _leaks(self, client: AsyncClient) -> list[str]:
        leaks = [f"unit {view.host}/{view.unit.id}: {records_pb2.UnitState.Name(view.state)} {view.allocation}"
                 for view in await client.units()
                 if view.state != records_pb2.UNIT_STATE_FREE or view.allocation or not view.current]  # fmt: skip
        store = EtcdStore(self._endpoints)
        with contextlib.suppress(StoreError):
            leaks += [f"allocation {kv.key}" for kv in (await store.list(keys.ALLOCATIONS)).items]
            reports = (await store.list(keys.AGENTS)).items
            leaks += [f"report {kv.key}" for kv in reports if keys.parse(kv.key) and "/vms/" in kv.key]
        await store.close()
        for host in self.hosts.values():
            leaks += [f"QEMU of {name} on {host.name}" for name in host.vms()]
            leaks += [f"process {pid} in the cgroup of {host.name}" for pid in host.in_cgroup()]
            guards = [pid for pid in processes(f"{host.home}/state/guard.state") if _is_guard(pid)]
            leaks += [f"{len(guards)} guards on {host.name}"] if len(guards) > 1 else []
        return leaks

    def _count(self, jobs: list[job_pb2.Job]) -> None:
        self.report.finished = sum(_name(found) in FINAL for found in jobs)
        self.report.restarts = sum(found.status.restarts for found in jobs)
        self.report.start_failures = sum(
            attempt.outcome == job_pb2.OUTCOME_START_FAILED for found in jobs for attempt in found.status.attempts
        )

    def _judge(self, history: History) -> None:
        self.report.findings = findings(history)
        self.report.beats = len(history.beats)
        self.report.incarnations = len({(beat.job, beat.incarnation) for beat in history.beats})
        self.report.longest_gap_s = round(longest_gap_s(beat.at_s for beat in history.beats), 1)


def _is_guard(pid: int) -> bool:
    try:
        return b"agent.guard" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


async def _states(client: AsyncClient) -> dict[str, str]:
    return {found.id: _name(found) async for found in client.list()}


def _name(found: job_pb2.Job) -> str:
    return job_pb2.JobState.Name(found.status.state).removeprefix("JOB_STATE_")
