"""What to do about the difference between what should run here and what does. Pure: no I/O, no clock, nothing changed.

`plan` compares the allocations with this host's own records, `audit` the records with the VM processes that exist.
Both may be asked again at any time with the same result until something was done: nothing here is queued.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gpupool.v1 import job_pb2, records_pb2
from gpupool.v1.records_pb2 import Allocation, UnitIntent

from .tables import UnitIs, VmIs


@dataclass(slots=True)
class VmRecord:
    """What this host knows of one allocation's VM. Times ending in `_s` are Unix; `deadline` is on the boot clock."""

    allocation: str
    session: int
    units: tuple[str, ...]
    state: VmIs
    deadline: float = 0.0  # of the start while PREPARING, of the grace while STOPPING
    outcome: job_pb2.Outcome.ValueType = job_pb2.OUTCOME_UNSPECIFIED
    exit_code: int | None = None
    exited_by_itself: bool = False  # the command ended before any stop was asked for
    message: str = ""
    vm_started_s: float = 0.0  # 0: its start has not returned
    started_s: float = 0.0
    ended_s: float = 0.0
    guest_gpus: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()  # what befell its devices while it ran


@dataclass(slots=True)
class UnitRecord:
    """What this host knows of one unit. `allocation` holds it, or is the last one that it is clean after."""

    unit: str
    state: UnitIs
    since_s: float
    allocation: str = ""
    reason: str = ""
    proof: str = ""
    identity: str = ""  # what sits there, see devices/identity.py
    used: bool = True  # a VM may have had it since the last proof
    sick: str = ""  # what is wrong with it, seen while a VM had it


@dataclass(frozen=True, slots=True)
class View:
    """All that a decision rests on. `busy` names allocations and units that an action is working on."""

    session: int
    desired: Mapping[str, Allocation]
    vms: Mapping[str, VmRecord]
    units: Mapping[str, UnitRecord]
    boot_s: float
    may_start: bool
    intents: Mapping[str, UnitIntent] = field(default_factory=dict)
    busy: Collection[str] = ()
    nonce: str = ""

    def wants(self, allocation: str) -> Allocation | None:
        """The allocation, if it is one of this session: its id alone could come again in a store that was restored."""
        want = self.desired.get(allocation)
        ours = want is not None and want.session == self.session and want.session_nonce == self.nonce
        return want if ours else None

    def unnamed(self, allocation: str) -> Allocation | None:
        """The allocation, if it may be of this session but does not say so: its scheduler is older than nonces."""
        want = self.desired.get(allocation)
        ours = want is not None and want.session == self.session and self.nonce and not want.session_nonce
        return want if ours else None


@dataclass(frozen=True, slots=True)
class Start:
    """Bind the units and start the VM."""

    allocation: str


@dataclass(frozen=True, slots=True)
class End:
    """Report the end of an allocation that never started here."""

    allocation: str
    outcome: job_pb2.Outcome.ValueType
    message: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask the guest for a checkpoint, then for its end."""

    allocation: str
    grace_s: int
    reason: str


@dataclass(frozen=True, slots=True)
class Destroy:
    """End the VM by force."""

    allocation: str
    reason: str


@dataclass(frozen=True, slots=True)
class Adopt:
    """A VM of this session runs that no record knows: make one."""

    allocation: str


@dataclass(frozen=True, slots=True)
class Forget:
    """The allocation's key is gone and so is its VM: drop record and report."""

    allocation: str


@dataclass(frozen=True, slots=True)
class Reclaim:
    """Reset the unit and prove that it is clean."""

    unit: str


@dataclass(frozen=True, slots=True)
class Retry:
    """An operator asks to try a quarantined unit again."""

    unit: str


@dataclass(frozen=True, slots=True)
class Vouch:
    """The unit is clean after this allocation too, since nothing of it ever ran here or will."""

    unit: str
    allocation: str


Action = Start | End | Stop | Destroy | Adopt | Forget | Reclaim | Retry | Vouch

DEFAULT_GRACE_S = 15
"""JobSpec.stop_grace_s where the user gave none (proto/gpupool/v1/job.proto)."""


def plan(view: View) -> list[Action]:
    """What to do now, in the order of names; units first, as a start may wait for one."""
    return [*_unit_actions(view), *_vm_actions(view)]


def may_start(view: View, allocation: str) -> bool:
    """Whether `plan` has the start of this allocation."""
    return _vm_action(view, allocation) == Start(allocation)


def next_deadline(view: View) -> float | None:
    """The boot-clock time at which `plan` will say more without anything else having happened; None: never."""
    alive = (vm for name, vm in view.vms.items() if name not in view.busy)
    return min((vm.deadline for vm in alive if vm.state in (VmIs.PREPARING, VmIs.STOPPING)), default=None)


def audit(view: View, running: Collection[str], *, agent_is_new: bool) -> list[Action]:
    """What to do about VMs without a record and records without a VM. `view` must be older than `running`.

    A record without a VM is destroyed too: that costs nothing, and makes certain that no process is left.
    """
    strays: Iterator[Action | None] = (_stray(view, name, agent_is_new=agent_is_new) for name in sorted(running))
    lost = (
        Destroy(name, "no process of it was found")
        for name, vm in sorted(view.vms.items())
        if vm.state != VmIs.ENDED and name not in running and name not in view.busy
    )
    return [*(action for action in strays if action), *lost]


def _stray(view: View, name: str, *, agent_is_new: bool) -> Action | None:
    if name in view.busy:
        return None
    have = view.vms.get(name)
    if have is None:
        return Adopt(name) if view.wants(name) else Destroy(name, "it is no VM of this session")
    if have.state == VmIs.ENDED or have.session != view.session:
        return Destroy(name, "it is no VM of this session")
    if agent_is_new and not have.vm_started_s:
        return Destroy(name, "the agent was restarted while the VM was being started")
    return None


def _unit_actions(view: View) -> Iterator[Action]:
    claims = _claims(view)
    for name, unit in sorted(view.units.items()):
        if name in view.busy:
            continue
        if unit.state == UnitIs.DIRTY:
            yield Reclaim(name)
        elif unit.state == UnitIs.QUARANTINED and _retry_wanted(view.intents.get(name), unit):
            yield Retry(name)
        elif unit.state == UnitIs.FREE and (last := _never_here(view, unit, claims.get(name, ()))):
            yield Vouch(name, last)


def _retry_wanted(intent: UnitIntent | None, unit: UnitRecord) -> bool:
    return intent is not None and intent.retry_requested_s > unit.since_s


def _claims(view: View) -> Mapping[str, Sequence[str]]:
    """Which allocations name each unit, sorted."""
    found: dict[str, list[str]] = {}
    for name, want in sorted(view.desired.items()):
        for unit in want.units:
            found.setdefault(unit, []).append(name)
    return found


def _never_here(view: View, unit: UnitRecord, claims: Sequence[str]) -> str:
    """The allocation that names this free unit and cannot run any more: it ended unstarted, or its session is over."""
    for name in claims:
        if name != unit.allocation and name not in view.busy:
            have = view.vms.get(name)
            if have.state == VmIs.ENDED if have else view.wants(name) is None:
                return name
    return ""


def _vm_actions(view: View) -> Iterator[Action]:
    for name in sorted({*view.desired, *view.vms}):
        if action := _vm_action(view, name):
            yield action


def _vm_action(view: View, name: str) -> Action | None:
    if name in view.busy:
        return None
    have, want = view.vms.get(name), view.wants(name)
    return _existing(view, have, want) if have else _missing(view, want) if want else _unnamed(view, name)


def _unnamed(view: View, name: str) -> Action | None:
    """Refuse what an old scheduler decided. Nothing of it ever ran here, as all that ran before this session ended."""
    if view.unnamed(name) is None:
        return None
    message = "it does not name the session's nonce: its scheduler is older than this agent; upgrade schedulers first"
    return End(name, job_pb2.OUTCOME_START_FAILED, message)


def _missing(view: View, want: Allocation) -> Action | None:
    """For an allocation of this session that has no record."""
    if want.desired == records_pb2.DESIRED_STOP:
        return End(want.id, job_pb2.OUTCOME_STOPPED, want.stop_reason or "stopped before it started")
    for unit in want.units:
        have = view.units.get(unit)
        if have is None:
            return End(want.id, job_pb2.OUTCOME_START_FAILED, f"unit {unit} is not on this host")
        if have.state == UnitIs.QUARANTINED:
            return End(want.id, job_pb2.OUTCOME_START_FAILED, f"unit {unit} is quarantined: {have.reason}")
        if have.state == UnitIs.HELD and have.allocation != want.id and view.wants(have.allocation):
            # Two claims for one unit. The first stands; the other could wait for ever, and fits somewhere else.
            return End(want.id, job_pb2.OUTCOME_START_FAILED, f"unit {unit} is held by {have.allocation}")
    free = all(view.units[unit].state == UnitIs.FREE and unit not in view.busy for unit in want.units)
    return Start(want.id) if free and view.may_start else None


def _existing(view: View, have: VmRecord, want: Allocation | None) -> Action | None:
    """For a record; `want` is None if its allocation is gone or of another session."""
    if have.state == VmIs.ENDED:
        return None if have.allocation in view.desired else Forget(have.allocation)
    if want is None:
        return Destroy(have.allocation, "its allocation is gone")
    if have.state == VmIs.STOPPING:
        return Destroy(have.allocation, "its grace is over") if view.boot_s >= have.deadline else None
    if want.desired == records_pb2.DESIRED_STOP:
        return Stop(have.allocation, want.stop_grace_s or want.spec.stop_grace_s or DEFAULT_GRACE_S, want.stop_reason)
    if have.state == VmIs.PREPARING and view.boot_s >= have.deadline:
        return Destroy(have.allocation, "the guest did not report in time that it had started")
    return None
