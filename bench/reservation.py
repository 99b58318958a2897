"""Room for restarts after one placement: 10,000 hosts of 8 GPUs, nearly full of mixed shapes, re-checked incrementally.

The ceiling is the same question asked from scratch, in the same run. No store, no network: the core alone. The fleets:
some shapes that many jobs have in common; each job with a shape of its own; and hardly an empty host left, so that the
room for all lies on few hosts, and each placement is made on one of these.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from scheduler.core.fitting.fit import Fit, fit
from scheduler.core.reservation.reserve import Reserve
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.events import InventoryChanged, JobSubmitted, SessionChanged, UnitReported
from scheduler.core.state.facts import GuardKind, InventoryFact, SessionFact, UnitFact, UnitReport, UnitState
from scheduler.core.state.hosts import Allocation, Host
from scheduler.core.state.jobs import Attempt, Job, Request
from scheduler.core.state.policy import Policy, ReservationPolicy
from scheduler.core.state.tables import JobState
from scheduler.core.step import step

from .row import Row

HOSTS, GPUS, PLACEMENTS, SCRATCH = 10_000, 8, 300, 3
NODE_CORES, NODE_MIB = 32, 512 * 1024
SHAPES = [Request("img", n, "a100", 0, n * 12, n * 110_000) for n in (1, 1, 1, 1, 2, 2, 4, 8)]
TARGET = "< 5 ms"


async def run(tell: Callable[[str], None]) -> list[Row]:
    """See the module docstring."""
    fleets = (
        _Fleet("common shapes", 0.80),
        _Fleet("common shapes", 0.95),
        _Fleet("each job its own shape", 0.95, own=True),
        _Fleet("on the hosts kept free", 1.0, spare=6),
    )
    return [row for fleet in fleets for row in _measured(fleet, tell)]


@dataclass(frozen=True, slots=True)
class _Fleet:
    """`use`: share of full hosts. `own`: each job has its own memory. `spare`: so many hosts are empty, and are hit."""

    name: str
    use: float
    own: bool = False
    spare: int = 0


def _measured(fleet: _Fleet, tell: Callable[[str], None]) -> list[Row]:
    rng = random.Random(7)  # the same fleet in each run
    cluster = _cluster()
    _fill(cluster, fleet, rng)
    held = sum(len(host.held) for host in cluster.hosts.values()) / (HOSTS * GPUS)
    tell(f"{HOSTS} hosts at {held:.0%}, {len(cluster.jobs)} VMs")
    scratch = []
    for _ in range(1 if fleet.own else SCRATCH):
        begun = time.perf_counter()
        reserve = Reserve(cluster)
        scratch.append((time.perf_counter() - begun) * 1000)
    covered = list(reserve.covered().values())
    tell(f"{sum(covered)} of {len(covered)} hosts covered, {len(reserve.shapes())} sets of shapes")
    checks: list[float] = []
    busies: list[float] = []  # CPU time: on a machine that is shared, the worst by the clock is others' doing
    refused = 0
    names = sorted(cluster.hosts)[-fleet.spare :]
    while len(checks) < PLACEMENTS:
        host, request = cluster.hosts[rng.choice(names)], _shape(fleet, rng)
        found = fit(host, request)
        if not isinstance(found, Fit):
            continue
        job = _job(cluster, request)
        begun, cpu = time.perf_counter(), time.process_time()
        verdict = reserve.judge(job, host, found)
        spent, busy = time.perf_counter() - begun, time.process_time() - cpu
        if verdict.broken is None and not fleet.spare:  # or else the few would soon be full
            _put(cluster, job, host, found)
            begun, cpu = time.perf_counter(), time.process_time()
            reserve.placed(job, host, verdict)
            spent, busy = spent + time.perf_counter() - begun, busy + time.process_time() - cpu
        refused += verdict.broken is not None
        checks.append(spent * 1000)
        busies.append(busy * 1000)
    tell(f"{refused} of {PLACEMENTS} placements would have broken it")
    assert reserve.covered() == Reserve(cluster, once=True).covered()
    what = f"re-check after one placement: {fleet.name}, {held:.0%} in use"
    return [
        Row(what, "ms", checks, sorted(scratch)[len(scratch) // 2], "from scratch", TARGET),
        Row(f"the same, CPU time; {refused} of {PLACEMENTS} refused", "ms", busies),
    ]


def _cluster() -> Cluster:
    cluster = Cluster(policy=Policy(reservation=ReservationPolicy(hosts=1)))
    nodes = tuple(
        (node, tuple((2 * c, 2 * c + 1) for c in range(node * NODE_CORES, (node + 1) * NODE_CORES)), NODE_MIB)
        for node in (0, 1)
    )
    units = tuple(UnitFact(f"u{n}", "a100", 81920, n * 2 // GPUS, (f"u{n}",)) for n in range(GPUS))
    for session in range(1, HOSTS + 1):
        name = f"h{session:05}"
        step(cluster, SessionChanged(name, SessionFact(session, "b", GuardKind.SOFT, True, True)), 1.0)
        step(cluster, InventoryChanged(name, InventoryFact(session, units, nodes, frozenset({"img"}))), 1.0)
        for unit in units:
            step(cluster, UnitReported(name, unit.id, UnitReport(UnitState.FREE, session, "")), 1.0)
    cluster.take_dirty()
    return cluster


def _fill(cluster: Cluster, fleet: _Fleet, rng: random.Random) -> None:
    """Each host gets random shapes: as many as fit, or, for some hosts, up to a random share of its GPUs."""
    names = sorted(cluster.hosts)
    for name in names[: len(names) - fleet.spare]:
        host = cluster.hosts[name]
        want = GPUS if rng.random() < fleet.use else rng.randrange(GPUS)
        for _ in range(12):
            request = _shape(fleet, rng)
            if len(host.held) + request.gpus <= want and isinstance(found := fit(host, request), Fit):
                _put(cluster, _job(cluster, request), host, found)
    cluster.take_dirty()


def _shape(fleet: _Fleet, rng: random.Random) -> Request:
    request = rng.choice(SHAPES)
    return replace(request, memory_mib=request.memory_mib - rng.randrange(50_000)) if fleet.own else request


def _job(cluster: Cluster, request: Request) -> Job:
    number = len(cluster.jobs)
    job = Job(f"j{number:06}", request, number, 1.0)
    step(cluster, JobSubmitted(job), 1.0)
    return job


def _put(cluster: Cluster, job: Job, host: Host, found: Fit) -> None:
    """As placement would, in the state that the core is in then."""
    job.attempt_count, job.state = 1, JobState.RUNNING
    cluster.pending.discard(job.id)
    job.attempts.append(Attempt(1, host.name, found.units, 1.0, 1.0))
    cluster.reserve(
        Allocation(f"{job.id}.1", job.id, 1, host.name, host.session, found.units, found.nodes, found.cores,
                   found.memory_mib, 1.0)
    )  # fmt: skip
