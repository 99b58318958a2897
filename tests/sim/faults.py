"""A plan of faults, made from a seed: what breaks, when, for how long. The plan is written into the trace first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random

from tests.sim.link import Impairment
from tests.sim.world import World


class Kind(StrEnum):
    """What can go wrong. Targets: a node, a machine, a replica, or nothing (what happens at the store)."""

    CRASH = "crash"
    CRASH_AT_COMMIT = "crash-at-commit"  # just before its next commit is applied, or just after
    PAUSE = "pause"
    PARTITION = "partition"
    CUT_OUT = "cut-out"  # nothing that the node says gets through
    CUT_IN = "cut-in"  # nothing that is said to it does
    RESET = "reset"  # open connections break, nothing else
    SLOW = "slow"
    WATCH_LAG = "watch-lag"  # its watches tell late, and only they: a member that is behind
    REQUEST_LOSS = "request-loss"
    REPLY_LOSS = "reply-loss"
    POWER_CUT = "power-cut"
    FREEZE = "freeze"  # all processes of a machine stand still, its guard too, and go on
    GUARD_PAUSE = "guard-pause"
    GUARD_KILL = "guard-kill"
    GUARD_LOST = "guard-lost"  # it dies and cannot be had again, says so, and is cut off; perhaps nobody leads then
    TWIN = "twin"  # another machine goes by the same name and address; perhaps for good, and then it is lost
    BMC = "bmc"  # its fence device fails or does not answer
    CLOCK_JUMP = "clock-jump"  # a replica's date is wrong for a while
    STORE_OUTAGE = "store-outage"
    STORE_LEADER = "store-leader"  # another member leads: leases start afresh, and some clients stay with the old one
    STORE_SLOW = "store-slow"  # its disk is: commits take long, some longer than anybody waits
    COMPACT = "compact"  # watches that are behind must list anew


ON_NODES = (
    *(Kind.CRASH, Kind.CRASH_AT_COMMIT, Kind.PAUSE, Kind.PARTITION, Kind.CUT_OUT, Kind.CUT_IN, Kind.RESET),
    *(Kind.SLOW, Kind.WATCH_LAG, Kind.REQUEST_LOSS, Kind.REPLY_LOSS),
)
ON_MACHINES = (*(Kind.POWER_CUT, Kind.FREEZE, Kind.GUARD_PAUSE, Kind.GUARD_KILL, Kind.GUARD_LOST, Kind.TWIN, Kind.BMC),)
ON_STORE = (Kind.STORE_OUTAGE, Kind.STORE_LEADER, Kind.STORE_SLOW, Kind.COMPACT)
AMOUNTS: Mapping[Kind, tuple[float, float]] = {
    Kind.STORE_OUTAGE: (0.0, 1.0),  # above 0.6 the leader is only cut off, below 0.3 a member is down
    Kind.SLOW: (5.0, 500.0),  # times the latency
    Kind.WATCH_LAG: (0.1, 10.0),  # s
    Kind.REQUEST_LOSS: (0.05, 1.0),
    Kind.REPLY_LOSS: (0.05, 1.0),
    Kind.CRASH_AT_COMMIT: (0.0, 1.0),  # below one half: before
    Kind.CLOCK_JUMP: (-300.0, 300.0),  # s
    Kind.STORE_LEADER: (0.0, 1.0),  # share of clients that stay with the old one
    Kind.STORE_SLOW: (0.1, 6.0),  # s
    Kind.BMC: (0.0, 1.0),  # which fault
    Kind.GUARD_LOST: (0.0, 1.0),  # what else: see twins.py
    Kind.TWIN: (0.0, 1.0),  # whether for good: see twins.py
}
DURATION_S: Mapping[Kind, tuple[float, float]] = {Kind.GUARD_LOST: (20.0, 60.0), Kind.TWIN: (20.0, 90.0)}
"""Of what shows only once a lease has ended."""

WEIGHTS: Mapping[Kind, float] = {
    Kind.CRASH: 3,
    Kind.CRASH_AT_COMMIT: 2,
    Kind.PAUSE: 3,
    Kind.PARTITION: 3,
    Kind.CUT_OUT: 1,
    Kind.CUT_IN: 1,
    Kind.RESET: 1,
    Kind.SLOW: 1,
    Kind.WATCH_LAG: 1,
    Kind.REQUEST_LOSS: 1,
    Kind.REPLY_LOSS: 2,
    Kind.POWER_CUT: 2,
    Kind.FREEZE: 1,
    Kind.GUARD_PAUSE: 1,
    Kind.GUARD_KILL: 0.5,
    Kind.GUARD_LOST: 1,
    Kind.TWIN: 0.5,
    Kind.BMC: 1,
    Kind.CLOCK_JUMP: 0.5,
    Kind.STORE_OUTAGE: 0.5,
    Kind.STORE_LEADER: 1,
    Kind.STORE_SLOW: 1,
    Kind.COMPACT: 0.5,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault; a `duration_s` of None means that nobody undoes it (a machine that stays off)."""

    at_s: float
    kind: Kind
    target: str
    duration_s: float | None
    amount: float = 0.0

    def __str__(self) -> str:
        end = "for good" if self.duration_s is None else f"for {self.duration_s:.3f}"
        amount = f" {self.amount:.2f}" if self.amount else ""
        return f"{self.at_s:.3f} {self.kind}{amount} {self.target} {end}".replace("  ", " ")

    @property
    def machine(self) -> str:
        """The machine that it befalls, or the node where that is a replica; "" for the store."""
        return self.target.partition("/")[0]

    def overlaps(self, other: Fault, margin_s: float) -> bool:
        """Whether the two are in force at once, or within a margin of each other."""
        ends = [float("inf") if f.duration_s is None else f.at_s + f.duration_s + margin_s for f in (self, other)]
        return self.at_s < ends[1] and other.at_s < ends[0]


@dataclass(frozen=True)
class Mix:
    """What a plan is drawn from. Durations spread evenly on a logarithmic scale: short and long ones both matter.

    Faults begin from `start_s` on, and all that end have ended `quiet_s` before the run does, so that liveness can be
    judged; at most `most_lost` machines stay off. Each fault comes with a chance of `burst` right after the one before.
    """

    least: int = 0
    most: int = 12
    weights: Mapping[Kind, float] = field(default_factory=lambda: dict(WEIGHTS))
    duration_s: tuple[float, float] = (0.05, 60.0)
    start_s: float = 5.0
    quiet_s: float = 120.0
    most_lost: int = 1
    burst: float = 0.2


def make_plan(
    rng: Random,
    *,
    until_s: float,
    nodes: Sequence[str],
    machines: Sequence[str],
    replicas: Sequence[str] = (),
    mix: Mix | None = None,
) -> list[Fault]:
    """From `mix.least` to `mix.most` faults, in order of time. `nodes` are processes, `machines` what shares power."""
    mix = mix or Mix()
    last_s = until_s - mix.quiet_s
    targets: dict[Kind, Sequence[str]] = dict.fromkeys(ON_NODES, nodes) | dict.fromkeys(ON_MACHINES, machines)
    targets |= dict.fromkeys(ON_STORE, ("",)) | {Kind.CLOCK_JUMP: replicas}
    weights = {kind: mix.weights.get(kind, 0) for kind in Kind if targets[kind]}
    if last_s <= mix.start_s or not any(weights.values()):
        return []
    plan: list[Fault] = []
    lost = 0
    at_s = mix.start_s
    for _ in range(rng.randint(mix.least, mix.most)):
        kind = rng.choices(list(weights), list(weights.values()))[0]
        again = plan and rng.random() < mix.burst
        at_s = min(at_s + rng.uniform(0, 3.0), last_s) if again else rng.uniform(mix.start_s, last_s)
        low, high = DURATION_S.get(kind, mix.duration_s)
        duration_s: float | None = min(low * (high / low) ** rng.random(), last_s - at_s)
        for_good = rng.random() < 0.3
        if kind is Kind.POWER_CUT and for_good and lost < mix.most_lost:
            lost += 1
            duration_s = None
        amount = rng.uniform(*AMOUNTS[kind]) if kind in AMOUNTS else 0.0
        plan.append(Fault(at_s, kind, rng.choice(targets[kind]), duration_s, amount))
    return sorted(plan, key=lambda fault: (fault.at_s, fault.kind, fault.target))


def apply_plan(world: World, plan: Sequence[Fault]) -> None:
    """Write the plan into the trace and set its timers."""
    world.trace(f"plan: {len(plan)} faults")
    for fault in plan:
        world.trace(f"plan: {fault}")
        world.at(fault.at_s, _begin(world, fault))


def _begin(world: World, fault: Fault) -> Callable[[], None]:
    def begin() -> None:
        world.trace(f"fault {fault.kind} {fault.target}".rstrip())
        end = _inflict(world, fault)
        if fault.duration_s is not None:
            world.after(fault.duration_s, end)

    return begin


def _inflict(world: World, fault: Fault) -> Callable[[], None]:
    """Begin the fault; the result ends it."""
    if fault.kind in world.afflictions:  # what only the scenario knows how to break
        return world.afflictions[fault.kind](fault.target, fault.amount)
    return _on_store(world, fault) or _on_processes(world, fault) or _on_link(world, fault)


def _on_processes(world: World, fault: Fault) -> Callable[[], None] | None:
    target = fault.target
    match fault.kind:
        case Kind.CRASH:
            world.crash(target)
            return lambda: world.start(target)
        case Kind.CRASH_AT_COMMIT:
            after = fault.amount >= 0.5
            world.link(target).at_commit = lambda applied: world.crash_at_commit(target, applied, after=after)
            return lambda: world.crashed_at_commit(target)
        case Kind.POWER_CUT:
            world.power_cut(target)
            return lambda: world.power_on(target)
        case Kind.PAUSE:
            world.pause(target)
            return lambda: world.resume(target)
        case Kind.FREEZE:
            members = world.members(target)
            _each(world.pause, members)
            return lambda: _each(world.resume, members)
        case _:
            return None


def _on_store(world: World, fault: Fault) -> Callable[[], None] | None:
    match fault.kind:
        case Kind.STORE_OUTAGE:
            world.store_outage(True, cut_off=fault.amount > 0.6, down=fault.amount < 0.3)
            return lambda: world.store_outage(False)
        case Kind.STORE_LEADER:
            return world.store_leader_changes(fault.amount)
        case Kind.STORE_SLOW:
            world.backend.commit_s = fault.amount
            return lambda: setattr(world.backend, "commit_s", 0.0)
        case Kind.COMPACT:
            world.compact()
            return lambda: None
        case _:
            return None


def _on_link(world: World, fault: Fault) -> Callable[[], None]:
    target, amount = fault.target, fault.amount
    match fault.kind:
        case Kind.RESET:
            world.link(target).reset()
            return lambda: None
        case Kind.PARTITION:
            impairment = Impairment(cut_out=True, cut_in=True)
        case Kind.CUT_OUT:
            impairment = Impairment(cut_out=True)
        case Kind.CUT_IN:
            impairment = Impairment(cut_in=True)
        case Kind.SLOW:
            impairment = Impairment(slow=amount)
        case Kind.WATCH_LAG:
            impairment = Impairment(lag_s=amount)
        case Kind.REQUEST_LOSS:
            impairment = Impairment(request_loss=amount)
        case Kind.REPLY_LOSS:
            impairment = Impairment(reply_loss=amount)
        case _:  # of a part that this scenario does not have
            return lambda: None
    return impair(world, target, impairment)


def impair(world: World, target: str, impairment: Impairment) -> Callable[[], None]:
    """Put the impairment in force; the result mends it."""

    def mend() -> None:
        world.trace("mended", node=target)
        world.link(target).mend(impairment)

    world.link(target).impair(impairment)
    return mend


def _each(action: Callable[[str], None], nodes: Sequence[str]) -> None:
    for node in nodes:
        action(node)
