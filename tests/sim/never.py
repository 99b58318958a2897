"""What must never be, whatever fails: looked at after each change of the store and each event of a VM."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from gpupool.store import keys
from gpupool.store.keys import Kind
from gpupool.store.port import Change
from gpupool.v1 import job_pb2, records_pb2
from tests.sim.hardware import Machine
from tests.sim.sealed import WALL_EPOCH_S
from tests.sim.world import World

FINAL = (job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED)


HEARD_S = 15.0
"""By then a leader has heard of an operator's wish, or leads no more."""

MANY = 60
"""Attempts of one job, that nothing here can cost it: others would stop it again and again."""


class Never:
    """The checks. `clocks_right`: no replica's date is wrong now, or times that are stored mean little."""

    def __init__(self, world: World, machines: Mapping[str, Machine], clocks_right: Callable[[], bool]) -> None:
        self._world = world
        self._machines = machines
        self._clocks_right = clocks_right
        self.finished: dict[str, int] = {}
        self._session_of: dict[str, tuple[str, int]] = {}  # allocation -> host and session, of all that ever were
        self._fenced: set[tuple[str, int]] = set()
        self._held: dict[tuple[str, str], str] = {}  # host and unit -> allocation
        self._brake = records_pb2.Brake()
        self._released_s = 0.0
        self._disarmed_s = 0.0
        world.checks += [self.no_double_run, self.no_shared_unit, self.fenced_is_dead]
        world.change_checks.append(self.changed)

    def no_double_run(self) -> Iterator[str]:
        """One incarnation of a job at any instant."""
        running = Counter(spec.allocation.rpartition(".")[0] for m in self._machines.values() for spec in m.alive())
        for job, count in sorted(running.items()):
            if count > 1:
                where = [(m.name, s.allocation) for m in self._machines.values() for s in m.alive()]
                yield f"job {job} runs {count} times: {where}"

    def no_shared_unit(self) -> Iterator[str]:
        """One VM to a PCI function."""
        for machine in self._machines.values():
            used = Counter(f.address for spec in machine.alive() for f in spec.functions)
            for function, count in sorted(used.items()):
                if count > 1:
                    yield f"{machine.name}/{function} is in {count} VMs"

    def fenced_is_dead(self) -> Iterator[str]:
        """No VM of a session lives that the leader has called dead, though nothing else runs yet in its place."""
        for machine in self._machines.values():
            for spec in machine.alive():
                if self._session_of.get(spec.allocation) in self._fenced:
                    yield f"{spec.allocation} lives on {machine.name}, which is fenced"

    def changed(self, changes: Sequence[Change]) -> Iterator[str]:
        """What one revision may not bring."""
        parsed = [(keys.parse(change.key), change) for change in changes]
        for found, change in sorted(((f, c) for f, c in parsed if f), key=lambda pair: pair[1].kv is not None):
            yield from self._changed(found[0], found[1], change)

    def _changed(self, kind: Kind, ids: tuple[str, ...], change: Change) -> Iterable[str]:
        if kind is Kind.ALLOCATION:
            return self._allocation(ids, change)
        if change.kv is None:
            return self._retired(ids[0]) if kind is Kind.JOB_SPEC else ()
        if kind is Kind.JOB_STATUS:
            return self._status(change.key, job_pb2.JobStatus.FromString(change.kv.value))
        if kind is Kind.HOST:
            fence = records_pb2.HostRecord.FromString(change.kv.value).last_fence
            self._fenced.add((ids[0], fence.session))
        elif kind is Kind.CLUSTER:
            self._brake = records_pb2.ClusterRecord.FromString(change.kv.value).brake
        elif kind is Kind.CLUSTER_INTENT:
            intent = records_pb2.ClusterIntent.FromString(change.kv.value)
            self._released_s, self._disarmed_s = intent.brake_released_s, intent.at_s if intent.disarmed else 0.0
        return ()

    def _status(self, key: str, status: job_pb2.JobStatus) -> Iterator[str]:
        before = self.finished.get(key)
        if status.state in FINAL:
            self.finished[key] = status.state
        if status.attempt_count > MANY:
            yield f"{key} is in attempt {status.attempt_count}: {status.message}"
        if before is not None and before != status.state:
            yield f"{key} was {before} and is {status.state}"

    def _allocation(self, ids: tuple[str, ...], change: Change) -> Iterator[str]:
        host, name = ids
        if change.kv is None:
            self._held = {unit: holder for unit, holder in self._held.items() if holder != name}
            return
        wanted = records_pb2.Allocation.FromString(change.kv.value)
        for unit in wanted.units:
            other = self._held.setdefault((host, unit), name)
            if other != name:
                yield f"{host}/{unit} is reserved for {other} and {name}"
        if change.kv.create_revision == change.kv.mod_revision:
            yield from self._made(host, wanted)

    def _made(self, host: str, wanted: records_pb2.Allocation) -> Iterator[str]:
        self._session_of[wanted.id] = host, wanted.session
        session = self._world.backend.get(keys.session(host))
        if session is None or session.create_revision != wanted.session:
            yield f"{wanted.id} is made for session {wanted.session} of {host}, which is over"
        if self._braked() and self._lost_before(wanted.job):
            yield f"{wanted.id} restarts although the brake is on: {self._brake.reason}"

        if 0 < self._disarmed_s < WALL_EPOCH_S + self._world.loop.time() - HEARD_S and self._lost_before(wanted.job):
            yield f"{wanted.id} restarts although fencing is disarmed"

        yield from self._queued(wanted)
        if wanted.spec.gang.id:
            yield from self._ganged(wanted)

    def _queued(self, wanted: records_pb2.Allocation) -> Iterator[str]:
        """What the queue may not let start."""
        kv = self._world.backend.get(keys.job_status(wanted.job))
        status = job_pb2.JobStatus.FromString(kv.value) if kv is not None else job_pb2.JobStatus()
        if status.ending:
            yield f"{wanted.id} starts although the job's time is up: {status.ending}"
        if status.hold:
            yield f"{wanted.id} starts although the job is held: {status.hold}"
        array = wanted.spec.array
        live = (
            {a.job for a in self._allocations() if a.spec.array.id == array.id and self._lives(a.job)}
            if array.id
            else ()
        )
        if 0 < array.parallel < len(live):
            yield f"{wanted.id} starts, and of its array {sorted(live)} run"
        if wanted.spec.queue:
            mine = [a for a in self._allocations() if a.spec.queue == wanted.spec.queue]
            if sum(a.spec.gpus.count for a in mine) > 2 or sum(a.spec.user == wanted.spec.user for a in mine) > 1:
                yield f"{wanted.id} starts, and in its queue there are {sorted(a.id for a in mine)}"
        for dependency in wanted.spec.dependencies:
            state = self._state(dependency.job)
            met = {
                job_pb2.Dependency.OK: state == job_pb2.JOB_STATE_SUCCEEDED,
                job_pb2.Dependency.ANY: state in FINAL,
                job_pb2.Dependency.NOT_OK: state in (job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED),
            }
            if not met[dependency.when or job_pb2.Dependency.OK]:
                yield f"{wanted.id} starts although {dependency.job} is {state}"

    def _ganged(self, wanted: records_pb2.Allocation) -> Iterator[str]:
        """A gang starts as a whole, in one revision, and not while any VM of it lives."""
        gang = wanted.spec.gang
        if wanted.attempt > 1 and gang.on_member_loss == job_pb2.Gang.RESTART_MEMBER:
            return
        made = {
            kv.key.rpartition("/")[2]: kv.create_revision for kv in self._world.backend.list(keys.ALLOCATIONS).items
        }
        for job in (f"{gang.id}-{n}" for n in range(gang.count)):
            status = self._world.backend.get(keys.job_status(job))
            found = job_pb2.JobStatus.FromString(status.value) if status is not None else job_pb2.JobStatus()
            if found.state not in FINAL and made.get(f"{job}.{found.attempt_count}") != made[wanted.id]:
                yield f"{wanted.id} starts without {job} of its gang"
        alive = sorted(spec.allocation for m in self._machines.values() for spec in m.alive())
        mine = [name for name in alive if name.rpartition(".")[0].rpartition("-")[0] == gang.id]
        if mine:
            yield f"{wanted.id} starts while {mine} of its gang live"

    def _retired(self, job: str) -> Iterator[str]:
        if keys.job_status(job) not in self.finished:
            yield f"{job} is forgotten and was never finished"
        yield from (f"{job} is forgotten while {a.id} holds units" for a in self._allocations() if a.job == job)

    def _allocations(self) -> list[records_pb2.Allocation]:
        found = self._world.backend.list(keys.ALLOCATIONS).items
        return [records_pb2.Allocation.FromString(kv.value) for kv in found]

    def _lives(self, job: str) -> bool:
        return self._state(job) in (job_pb2.JOB_STATE_STARTING, job_pb2.JOB_STATE_RUNNING)

    def _state(self, job: str) -> int:
        """As of this revision."""
        kv = self._world.backend.get(keys.job_status(job))
        return job_pb2.JobStatus.FromString(kv.value).state if kv is not None else 0

    def _braked(self) -> bool:
        brake, now = self._brake, WALL_EPOCH_S + self._world.loop.time()
        on = brake.since_s > max(0.0, self._released_s) and (not brake.until_s or now < brake.until_s)
        return on and self._clocks_right()

    def _lost_before(self, job: str) -> bool:
        """Whether the attempt before the newest was lost with its host: told by the status of the same revision."""
        kv = self._world.backend.get(keys.job_status(job))
        attempts = job_pb2.JobStatus.FromString(kv.value).attempts if kv is not None else []
        return len(attempts) > 1 and attempts[-2].outcome == job_pb2.OUTCOME_HOST_LOST
