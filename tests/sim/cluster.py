"""The real scheduler and the real agents, on simulated machines, under faults: the scenario that seeds explore."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from time import process_time
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from agent.agent import Agent, Parts
from agent.ports import GuardError
from agent.timing import Identity, Limits, Timing
from gpupool.store import keys
from gpupool.store.port import Put, Store, StoreError
from gpupool.v1 import job_pb2, records_pb2, scheduler_pb2
from scheduler.api.intents import ApiError
from scheduler.api.jobs_api import JobsApi
from scheduler.core.state.cluster import Cluster as CoreCluster
from scheduler.core.state.policy import Device, Policy, PreemptionPolicy, ReservationPolicy
from scheduler.deathwatch import never
from scheduler.mirror.mirror import Mirror
from scheduler.replica import Replica
from tests.fakes.agent_rig import inline
from tests.fakes.vms import Guest
from tests.sim import operator
from tests.sim.faults import WEIGHTS, Fault, Kind, Mix, apply_plan, make_plan
from tests.sim.hardware import MODEL, Machine
from tests.sim.kept_room import KeptRoom
from tests.sim.never import FINAL, Never
from tests.sim.operator import Operator
from tests.sim.sealed import WALL_EPOCH_S
from tests.sim.twins import SUCCEEDS, GuardLost, Twins
from tests.sim.wires import Wires
from tests.sim.world import World

M = TypeVar("M", bound=Message)

FAULTS_S, SETTLE_S, END_S = 240.0, 40.0, 4240.0
REPLICAS = ("s1", "s2")

# A guard without a hardware watchdog that stands still cannot kill. Alone that harms nothing: the agent puts another in
# its place. Together with anything that may end the session it is what ARCHITECTURE.md calls "What a soft guard cannot
# do", so nothing else befalls such a machine, or the store, within this time; and a whole machine never freezes.
SOFT_GUARD_ALONE_S = 12.0
QUEUE = records_pb2.QueueIntent(limit=records_pb2.Amounts(gpus=2), guaranteed=records_pb2.Amounts(gpus=1), user_jobs=1)
SITES = ("simulated", "trusting", "powered")
KEEPS_ROOM, WATCHES_DEATHS = 0.35, 0.5  # shares of the seeds whose site does so


@dataclass(frozen=True, slots=True)
class Pace:
    """How soon things happen: jobs arrive until `arrive_s`, run for up to `run_s`, and all is calm from `calm_s` on."""

    arrive_s: float = 120.0
    run_s: float = 60.0
    calm_s: float = FAULTS_S


class Cluster:
    """Machines, replicas and a client, in one world."""

    def __init__(self, world: World, pace: Pace = Pace()) -> None:
        self.world = world
        self.pace = pace
        self.rng = world.rng("cluster")
        self.apis: dict[str, JobsApi] = {}
        self.jobs: dict[str, str] = {}  # key -> id, of acknowledged submissions
        self.wanted = self.rng.randint(3, 12)
        self.site = self.rng.choices(SITES, [5, 2, 3])[0]
        self.dates = dict.fromkeys(REPLICAS, 0.0)  # how wrong each is
        shape = self.rng.choice([(3, 2), (4, 2), (2, 4), (5, 1)])
        self.machines = {f"h{n}": Machine(world, f"h{n}", shape[1], self.guest) for n in range(1, shape[0] + 1)}
        names = list(self.machines) if self.site == "powered" else []
        habits = world.rng("habits")
        self.keeps_room = habits.random() < KEEPS_ROOM
        self.watches_deaths = habits.random() < WATCHES_DEATHS
        self.policy = Policy(
            soft_guard_is_enough=self.site == "trusting",
            powered={name: Device() for name in names},
            reservation=ReservationPolicy(hosts=1 if self.keeps_room else 0),
            preemption=PreemptionPolicy(Random(f"{world.seed}/preempt").random() < 0.3),
        )
        self.replicas: dict[str, Replica] = {}
        if self.keeps_room:
            world.change_checks.append(KeptRoom(self._leaders).changed)
        self.twins = Twins(world, self.machines, self.guest, self.run_agent)
        self.operator = Operator(world, self.machines, pace.calm_s, self.twins.alive)
        world.on_power.append(self._power)
        world.afflictions |= {
            Kind.GUARD_PAUSE: self._guard_pauses,
            Kind.GUARD_KILL: self._guard_dies,
            Kind.FREEZE: self._machine_freezes,
            Kind.BMC: self._bmc_fails,
            Kind.CLOCK_JUMP: self._date_jumps,
            Kind.TWIN: self.twins.begin,
            Kind.GUARD_LOST: GuardLost(world, self.machines, self.twins, REPLICAS).begin,
        }
        self.never = Never(world, self.twins.everybody, lambda: not any(self.dates.values()))

    def guest(self, allocation: str) -> Guest:
        """What a VM will do: mostly run and exit; some fail to start, hang, crash or disobey."""
        rng = Random(f"{self.world.seed}/{allocation}")
        boot_s = None if rng.random() < 0.03 else rng.uniform(0.5, 8.0)
        return Guest(
            refuses="no memory" if rng.random() < 0.05 else "",
            start_takes_s=rng.uniform(0.05, 1.5),
            boot_s=boot_s,
            run_s=rng.uniform(1.0, self.pace.run_s),
            exit_code=rng.choices([0, 1, None], [8, 1, 1])[0],
            obeys_stop=rng.random() < 0.8,
            checkpoint_takes_s=rng.choice([None, 0.5]),
        )

    # Processes

    async def agent_main(self, machine: Machine) -> None:
        node = f"{machine.name}/agent"
        simulated = self.site == "simulated"
        me = Identity(machine.host, machine.boot_id, f"{machine.host}:1", "sim", simulated, machine.board)
        parts = Parts(
            self.world.store(node), machine.vms, machine.guard, machine.clock, machine.devices, machine.records,
            machine.logs, machine.volumes, lambda: ["img"], run_blocking=inline,
        )  # fmt: skip
        await Agent(
            me,
            Timing(ttl_s=8, renew_s=2.0, kill_margin_s=2.0, watchdog_s=machine.watchdog_s),
            Limits(start_timeout_s=30),
            parts,
        ).run()

    async def replica_main(self, name: str) -> None:
        store = self.world.store(name)

        def wall() -> float:
            return WALL_EPOCH_S + self.world.loop.time() + self.dates[name]

        mirror = Mirror(store, wall)
        token = self.world.rng(f"token {name} {self.world.loop.time()}")
        self.apis[name] = JobsApi(store, mirror, policy=self.policy, wall=wall, token=partial(token.randbytes, 16))
        power = {host: machine.fence for host, machine in self.machines.items() if host in self.policy.powered}
        gone = Wires(self.world, name).gone if self.watches_deaths else never
        self.replicas[name] = Replica(name, f"{name}:1", store, mirror, self.policy, wall, power=power, gone=gone)
        await self.replicas[name].run()

    def _leaders(self) -> Iterator[CoreCluster]:
        for replica in self.replicas.values():
            if replica.leader is not None:
                yield replica.leader.cluster

    def run_agent(self, machine: Machine) -> None:
        """Declare the machine's agent: it starts with its power."""
        main, name = partial(self.agent_main, machine), machine.name
        self.world.add(f"{name}/agent", main, domain=name, restart_s=1.0, expected=(GuardError,))

    def start(self) -> None:
        for machine in self.machines.values():
            self.run_agent(machine)
        for name in REPLICAS:
            self.world.add(name, partial(self.replica_main, name), restart_s=1.0)
        for node in (*REPLICAS, *(f"{name}/agent" for name in self.machines)):
            self.world.start(node)
        for name, main in (("client", self.client_main), (operator.NAME, self.operator.main)):
            self.world.add(name, main)
            self.world.start(name)

    def _power(self, domain: str, on: bool) -> None:
        if machine := self.twins.everybody.get(domain):
            machine.boot() if on else machine.cut()

    # What only this scenario can break

    def _guard_pauses(self, name: str, _: float) -> Callable[[], None]:
        guard = self.machines[name].guard
        guard.stop()
        return guard.go_on

    def _guard_dies(self, name: str, _: float) -> Callable[[], None]:
        self.machines[name].guard.kill()
        return lambda: None  # its agent starts another

    def _machine_freezes(self, name: str, _: float) -> Callable[[], None]:
        guard, members = self.machines[name].guard, self.world.members(name)
        guard.stop()
        for node in members:
            self.world.pause(node)

        def thaw() -> None:
            for node in members:
                self.world.resume(node)
            guard.go_on()

        return thaw

    def _bmc_fails(self, name: str, how: float) -> Callable[[], None]:
        fence = self.machines[name].fence
        fence.fault = how
        return lambda: setattr(fence, "fault", None)

    def _date_jumps(self, name: str, by_s: float) -> Callable[[], None]:
        self.dates[name] = by_s
        return lambda: self.dates.update({name: 0.0})

    # The client: submits, doubts, repeats, cancels

    async def client_main(self) -> None:
        await self._make_queue(self.world.store("client"))
        async with asyncio.TaskGroup() as group:
            for n in range(self.wanted):
                group.create_task(self._one_job(f"k{n}"))

    async def _make_queue(self, store: Store) -> None:
        """As an operator would, before anybody submits to it."""
        while True:
            try:
                await store.commit([], [Put(keys.queue("q"), QUEUE.SerializeToString())])
            except StoreError:
                await asyncio.sleep(0.1)
            else:
                return

    async def _one_job(self, key: str) -> None:
        rng = Random(f"{self.world.seed}/{key}")
        await asyncio.sleep(rng.uniform(1.0, self.pace.arrive_s))
        spec = job_pb2.JobSpec(
            name=key, image="img", command=["x"], cpus=rng.randint(1, 4), memory_mib=1024, stop_grace_s=5,
            gpus=job_pb2.GpuRequest(count=1, model=MODEL), priority=rng.randint(0, 2),
            restart=job_pb2.RestartPolicy(max_host_deaths=0),
        )  # fmt: skip
        queued(Random(f"{self.world.seed}/{key}/queue"), spec, sorted(self.jobs.values()))
        if self.keeps_room:
            spec.preemptible = Random(f"{self.world.seed}/{key}/lent").random() < 0.3
        ganged(Random(f"{self.world.seed}/{key}/gang"), spec, {len(m.units) for m in self.machines.values()})
        request = scheduler_pb2.SubmitRequest(spec=spec, idempotency_key=key, allow_unavailable=True)
        answer = await self._insist(lambda api: api.submit(request))
        self.jobs[key] = answer.id
        if count := spec.array.count or spec.gang.count:
            self.wanted += count - 1
            self.jobs |= {f"{key}-{n}": f"{answer.id}-{n}" for n in range(count)}
            del self.jobs[key]
        self.world.trace(f"acknowledged {key} as {answer.id}")
        await self._wishes(Random(f"{self.world.seed}/{key}/wishes"), self.jobs.get(key, f"{answer.id}-0"))
        if rng.random() < 0.2:
            await asyncio.sleep(rng.uniform(0.0, 60.0))
            job = self.jobs.get(key, f"{answer.id}-0")
            await self._ask(lambda api: api.cancel(scheduler_pb2.CancelJobRequest(id=job)))

    async def _wishes(self, rng: Random, job: str) -> None:
        """Now and then somebody requeues a job, or holds it and thinks better of it."""
        if rng.random() < 0.15:
            await asyncio.sleep(rng.uniform(0.0, 40.0))
            wish = scheduler_pb2.RequeueJobRequest(id=job, by="ann", hold=rng.random() < 0.3)
            await self._ask(lambda api: api.wishes.requeue(wish))
        elif rng.random() < 0.1:
            await self._ask(lambda api: api.wishes.hold(scheduler_pb2.HoldJobRequest(id=job, by="ann")))
        else:
            return
        await asyncio.sleep(rng.uniform(0.0, 40.0))
        await self._ask(lambda api: api.release(scheduler_pb2.ReleaseJobRequest(id=job, by="ann")))

    async def _ask(self, request: Callable[[JobsApi], Coroutine[Any, Any, Any]]) -> None:
        """Ask until there is an answer; that a job is in no state for it is one."""

        async def once(api: JobsApi) -> None:
            try:
                await request(api)
            except ApiError as exc:
                if exc.code not in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND):
                    raise

        await self._insist(once)

    async def _insist(self, request: Callable[[JobsApi], Coroutine[Any, Any, Any]]) -> Any:
        """Ask one replica after the other until there is an answer."""
        for attempt in range(1000):
            name = REPLICAS[attempt % len(REPLICAS)]

            async def ask(name: str = name) -> Any:
                return await request(self.apis[name])

            try:
                return await self.world.call("client", name, ask)
            except (ConnectionError, StoreError, ApiError, KeyError) as exc:
                self.world.trace(f"{name} did not answer: {type(exc).__name__}")
                await asyncio.sleep(1.0)
        raise AssertionError("no replica ever answered")

    # What must be in the end

    def settled(self) -> Iterator[str]:
        specs = len([kv for kv in self.world.backend.list(keys.JOBS).items if kv.key.endswith("/spec")])
        if specs > self.wanted:
            yield f"{self.wanted} jobs were submitted, and there are {specs}"
        for key, job in sorted(self.jobs.items()):
            kv = self.world.backend.get(keys.job_status(job))
            if kv is None and keys.job_status(job) in self.never.finished:
                continue  # it was finished, and its time to be kept is over
            state = job_pb2.JobStatus.FromString(kv.value).state if kv is not None else None
            if state not in FINAL:
                yield f"job {job} ({key}) is lost: {state}"
        yield from (
            f"allocation {a.id} was never released" for a in self.stored(keys.ALLOCATIONS, records_pb2.Allocation)
        )
        for name, machine in self.machines.items():
            if not self.world.powered(name):
                continue
            session = self.world.backend.get(keys.session(name))
            for unit in machine.units:
                kv = self.world.backend.get(keys.unit(name, unit))
                report = records_pb2.UnitReport.FromString(kv.value) if kv is not None else records_pb2.UnitReport()
                if session is None or report.session != session.create_revision:
                    yield f"unit {name}/{unit}: its report is of no living session"
                elif report.state != records_pb2.UNIT_STATE_FREE:
                    yield f"unit {name}/{unit} never came back: {report}"

    def stored(self, prefix: str, kind: type[M]) -> list[M]:
        return [message for _, message in self.stored_items(prefix, "", kind)]

    def stored_items(self, prefix: str, suffix: str, kind: type[M]) -> list[tuple[str, M]]:
        items = self.world.backend.list(prefix).items
        return [(kv.key, kind.FromString(kv.value)) for kv in items if kv.key.endswith(suffix)]


def queued(rng: Random, spec: job_pb2.JobSpec, others: Sequence[str]) -> None:
    """What some jobs ask of the queue."""
    if rng.random() < 0.4:
        spec.queue, spec.user = "q", rng.choice(["ann", "bob"])
    if rng.random() < 0.15:
        spec.array.count, spec.array.parallel = rng.randint(2, 5), rng.randint(0, 2)
    if others and rng.random() < 0.3:
        when = rng.choice([job_pb2.Dependency.OK, job_pb2.Dependency.ANY, job_pb2.Dependency.NOT_OK])
        spec.dependencies.add(job=rng.choice(others), when=when)
    if rng.random() < 0.3:
        spec.time_limit_s = rng.randint(10, 60)
    if rng.random() < 0.1:
        spec.end_within_s = rng.randint(30, 300)
    if rng.random() < 0.1:
        spec.start_within_s = rng.randint(10, 100)
    if rng.random() < 0.3:
        spec.keep_s = rng.randint(1, 300)


def ganged(rng: Random, spec: job_pb2.JobSpec, gpus: set[int]) -> None:
    """Some are gangs; the queue with limits takes none. Those that need two machines, of which all but one may be lost
    for good, have a deadline.
    """
    if spec.array.count or rng.random() >= 0.2:
        return
    spec.queue = spec.user = ""
    spec.gang.count = rng.randint(2, 3)
    where = rng.choice(["", "spread", "pack"])
    if where == "spread":
        spec.gang.count, spec.gang.spread_over = 2, "host"
    elif where == "pack" and min(gpus) > 1:
        spec.gang.count, spec.gang.pack_into = 2, "host"
    if spec.gang.spread_over or spec.gang.count > min(gpus):
        spec.end_within_s = spec.end_within_s or rng.randint(300, 900)
    if rng.random() < 0.25:
        spec.gang.on_member_loss = job_pb2.Gang.RESTART_MEMBER


def possible(cluster: Cluster, plan: Sequence[Fault]) -> list[Fault]:
    """The plan without what a soft guard cannot do, and without faults of what the site does not have."""
    soft = {name for name, machine in cluster.machines.items() if not machine.watchdog_s}
    return [
        fault
        for fault in plan
        if not (fault.kind is Kind.BMC and cluster.site != "powered")
        and not (fault.kind is Kind.FREEZE and fault.target in soft)
        and not (
            fault.kind in (Kind.GUARD_PAUSE, Kind.GUARD_KILL) and fault.target in soft and _in_company(fault, plan)
        )
        and not (fault.kind is Kind.GUARD_LOST and _in_company(fault, plan))
        and not (_succeeds(fault) and _in_company(fault, [other for other in plan if other.kind is not Kind.TWIN]))
    ]


def _succeeds(fault: Fault) -> bool:
    return fault.kind is Kind.TWIN and fault.amount > SUCCEEDS


def _in_company(fault: Fault, plan: Sequence[Fault]) -> bool:
    others = [other for other in plan if other is not fault and other.machine in ("", fault.machine)]
    return any(fault.overlaps(other, SOFT_GUARD_ALONE_S) for other in others)


def scenario(world: World, weights: Mapping[Kind, float] = WEIGHTS, *, settle: bool = True, harsh: bool = False) -> int:
    """One seed: a small cluster, some jobs, some faults; then quiet, and everything must have come to its end.

    Returns how many machines there were. Without `settle` it ends with the faults, which is enough for what must never
    be. `harsh`: many faults, all of them long, for bugs of which it is known that they are there.
    """
    cluster = Cluster(world)
    cluster.start()
    nodes = [*REPLICAS, *(f"{name}/agent" for name in cluster.machines)]
    machines = list(cluster.machines)
    # Of a single host nothing can restart elsewhere: where room is kept, nothing more would be admitted.
    mix = Mix(weights=weights, quiet_s=20.0, most_lost=len(machines) - (2 if cluster.keeps_room else 1))
    if harsh:
        mix = replace(mix, least=10, most=20, duration_s=(8.0, 30.0), start_s=15.0)
    plan = make_plan(
        world.rng("faults"), until_s=FAULTS_S, nodes=nodes, machines=machines, replicas=REPLICAS, mix=mix
    )  # fmt: skip
    apply_plan(world, possible(cluster, plan))
    habits = ", keeps room" * cluster.keeps_room + ", watches deaths" * cluster.watches_deaths
    world.trace(f"site {cluster.site}, {len(machines)} machines{habits}")
    world.run(FAULTS_S)
    if not settle:
        return len(machines)
    to_the_end(cluster)
    return len(machines)


def to_the_end(cluster: Cluster, step_s: float = SETTLE_S) -> None:
    """Quiet: every job gets its end, sooner or later. Looks every so often."""
    world = cluster.world
    while world.loop.time() < END_S:
        world.run(world.loop.time() + step_s)
        problems = list(cluster.settled())
        if not problems:
            return
    raise AssertionError("\n".join([f"seed {world.seed} did not settle:", *problems, *world.lines[-40:]]))


@dataclass(frozen=True, slots=True)
class Run:
    """What became of a seed. `failure` is empty if it went well, else what went wrong and how to see it again."""

    seed: int
    failure: str
    host_s: float  # of virtual time, times the machines
    cpu_s: float


def run_seed(seed: int) -> Run:
    """One seed, in a world of its own."""
    with World(seed) as world:
        failure, machines, began_s = "", 0, process_time()
        try:
            machines = scenario(world)
        except AssertionError as exc:
            failure = f"{exc}\nreplay: python -m tests.sim --seed {seed} --trace"
        return Run(seed, failure, world.loop.time() * machines, process_time() - began_s)
