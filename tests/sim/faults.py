"""A plan of faults, made from a seed: what breaks, when, for how long. The plan is written into the trace first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random

from tests.sim.link import Impairment
from tests.sim.world import World


class Kind(StrEnum):
    """What can go wrong. Targets: a node, a machine (POWER_CUT, FREEZE), or nothing (STORE_OUTAGE)."""

    CRASH = "crash"
    PAUSE = "pause"
    PARTITION = "partition"
    RESET = "reset"  # open connections break, nothing else
    SLOW = "slow"
    REQUEST_LOSS = "request-loss"
    REPLY_LOSS = "reply-loss"
    POWER_CUT = "power-cut"
    FREEZE = "freeze"  # all processes of a machine stand still and go on
    STORE_OUTAGE = "store-outage"


ON_NODES = (Kind.CRASH, Kind.PAUSE, Kind.PARTITION, Kind.RESET, Kind.SLOW, Kind.REQUEST_LOSS, Kind.REPLY_LOSS)

WEIGHTS: Mapping[Kind, float] = {
    Kind.CRASH: 3,
    Kind.PAUSE: 3,
    Kind.PARTITION: 3,
    Kind.RESET: 1,
    Kind.SLOW: 1,
    Kind.REQUEST_LOSS: 1,
    Kind.REPLY_LOSS: 2,
    Kind.POWER_CUT: 2,
    Kind.FREEZE: 1,
    Kind.STORE_OUTAGE: 0.5,
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


@dataclass(frozen=True)
class Mix:
    """What a plan is drawn from. Durations spread evenly on a logarithmic scale: short and long ones both matter.

    Faults begin from `start_s` on, and all that end have ended `quiet_s` before the run does, so that liveness can be
    judged; at most `most_lost` machines stay off.
    """

    most: int = 12
    weights: Mapping[Kind, float] = field(default_factory=lambda: dict(WEIGHTS))
    duration_s: tuple[float, float] = (0.05, 60.0)
    start_s: float = 5.0
    quiet_s: float = 120.0
    most_lost: int = 1
    loss: tuple[float, float] = (0.05, 1.0)
    slow: tuple[float, float] = (5.0, 500.0)


def make_plan(
    rng: Random, *, until_s: float, nodes: Sequence[str], machines: Sequence[str], mix: Mix | None = None
) -> list[Fault]:
    """Between 0 and `mix.most` faults, in order of time. `nodes` are processes, `machines` what shares power."""
    mix = mix or Mix()
    last_s = until_s - mix.quiet_s
    targets: dict[Kind, Sequence[str]] = dict.fromkeys(ON_NODES, nodes)
    targets |= {Kind.POWER_CUT: machines, Kind.FREEZE: machines, Kind.STORE_OUTAGE: [""]}
    weights = {kind: mix.weights.get(kind, 0) for kind in Kind if targets[kind]}
    if last_s <= mix.start_s or not any(weights.values()):
        return []
    plan: list[Fault] = []
    lost = 0
    for _ in range(rng.randint(0, mix.most)):
        kind = rng.choices(list(weights), list(weights.values()))[0]
        at_s = rng.uniform(mix.start_s, last_s)
        low, high = mix.duration_s
        duration_s: float | None = min(low * (high / low) ** rng.random(), last_s - at_s)
        for_good = rng.random() < 0.3
        if kind is Kind.POWER_CUT and for_good and lost < mix.most_lost:
            lost += 1
            duration_s = None
        amount = rng.uniform(*(mix.slow if kind is Kind.SLOW else mix.loss))
        has_amount = kind in (Kind.SLOW, Kind.REQUEST_LOSS, Kind.REPLY_LOSS)
        plan.append(Fault(at_s, kind, rng.choice(targets[kind]), duration_s, amount if has_amount else 0.0))
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
    target, amount = fault.target, fault.amount
    match fault.kind:
        case Kind.CRASH:
            world.crash(target)
            return lambda: world.start(target)
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
        case Kind.STORE_OUTAGE:
            world.store_outage(True)
            return lambda: world.store_outage(False)
        case Kind.RESET:
            world.link(target).reset()
            return lambda: None
        case Kind.PARTITION:
            impairment = Impairment(cut_out=True, cut_in=True)
        case Kind.SLOW:
            impairment = Impairment(slow=amount)
        case Kind.REQUEST_LOSS:
            impairment = Impairment(request_loss=amount)
        case Kind.REPLY_LOSS:
            impairment = Impairment(reply_loss=amount)
    return _impair(world, target, impairment)


def _impair(world: World, target: str, impairment: Impairment) -> Callable[[], None]:
    def mend() -> None:
        world.trace("mended", node=target)
        world.link(target).mend(impairment)

    world.link(target).impair(impairment)
    return mend


def _each(action: Callable[[str], None], nodes: Sequence[str]) -> None:
    for node in nodes:
        action(node)
