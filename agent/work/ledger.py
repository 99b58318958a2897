"""The host's own account of its VMs and units: every change goes through the tables and is durable when it returns.

(But for what the next agent concludes anyway: that the units of a VM that ended are dirty, and that a reset was begun.)
The reports to the scheduler are computed from it, never sent on an event, so none can be lost. It does no other I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar

from google.protobuf.message import Message

from gpupool.store import keys
from gpupool.v1 import job_pb2, records_pb2
from gpupool.v1.job_pb2 import Outcome
from gpupool.v1.records_pb2 import Allocation, UnitHistory, UnitReport, VmReport

from ..devices.identity import follow, is_other
from ..ports import Clock
from .reconcile import UnitRecord, VmRecord
from .records import Records
from .tables import UNITS, VMS, UnitEvent, UnitIs, VmHappened, VmIs, change

R = TypeVar("R", VmRecord, UnitRecord)
_MOMENT_S = 0.001  # as the scheduler dates a word that answers a report
_IN_HAND = (UnitIs.HELD, UnitIs.RESETTING)  # a VM or a reclaim has it: whatever turns up there waits


class Ledger:
    """Records of VMs by allocation and of units by id, as found in `records`. `on_end` is told of each VM's end.

    `history` knows what became of a unit's reclaims, by its id and identity.
    """

    def __init__(
        self,
        records: Records,
        clock: Clock,
        on_end: Callable[[VmRecord], None] = lambda _: None,
        history: Callable[[str, str], UnitHistory] = lambda _unit, _identity: UnitHistory(),
    ) -> None:
        self._records = records
        self._clock = clock
        self._on_end = on_end
        self._history = history
        self._encoded: dict[str, tuple[object, bytes]] = {}  # by key: all that a report is made of, and its bytes
        self.vms = {name: _load(VmRecord, data) for name, data in records.load("vms").items()}
        self.units = {name: _load(UnitRecord, data) for name, data in records.load("units").items()}

    def no_room(self) -> str:
        """Why no VM may begin here, as nothing new can be put on record; "": it may."""
        return self._records.no_room()

    # VMs

    def prepare(self, want: Allocation, deadline: float) -> None:
        """The allocation is about to start: its units are its own from here on."""
        self._hold(want)
        self._save_vm(VmRecord(want.id, want.session, tuple(want.units), VmIs.PREPARING, deadline))

    def adopt(self, want: Allocation, deadline: float) -> None:
        """A VM of it runs, and no record says so."""
        self._hold(want)
        record = VmRecord(want.id, want.session, tuple(want.units), VmIs.PREPARING, deadline)
        record.vm_started_s = self._clock.wall()
        self._save_vm(record)
        self.touches(want.id)

    def end_unstarted(self, want: Allocation, outcome: Outcome.ValueType, message: str) -> None:
        """The allocation ends without ever having had a VM or a unit here."""
        now = self._clock.wall()
        record = VmRecord(want.id, want.session, (), VmIs.ENDED, outcome=outcome, message=message, ended_s=now)
        self._save_vm(record)
        self._on_end(record)

    def touches(self, allocation: str) -> None:
        """Its VM is about to be made: from now on the units need a reset."""
        for name in self.vms[allocation].units:
            self.units[name].used = True
            self._save_unit(self.units[name])

    def vm_started(self, allocation: str) -> None:
        """The VM's CPUs run."""
        record = self.vms[allocation]
        record.vm_started_s = record.vm_started_s or self._clock.wall()
        self._save_vm(record)

    def guest_started(self, allocation: str, gpus: Iterable[str]) -> None:
        """The guest runs the command. Said again after a reconnection, it changes nothing."""
        record = self.vms.get(allocation)
        if record is None or record.state in (VmIs.RUNNING, VmIs.ENDED):
            return
        self._vm_change(record, VmHappened.GUEST_STARTED, "the guest started its command")
        record.started_s = self._clock.wall()
        record.vm_started_s = record.vm_started_s or record.started_s
        record.guest_gpus = tuple(gpus)
        self._save_vm(record)

    def exited(self, allocation: str, exit_code: int) -> None:
        """The command ended; the VM is not gone yet."""
        record = self.vms.get(allocation)
        if record is not None and record.state != VmIs.ENDED and record.exit_code is None:
            record.exit_code = exit_code
            record.exited_by_itself = record.state != VmIs.STOPPING
            self._save_vm(record)

    def stop_asked(self, allocation: str, deadline: float, reason: str) -> None:
        """The guest is being asked to end, until `deadline` on the boot clock."""
        record = self.vms[allocation]
        self._vm_change(record, VmHappened.STOP_ASKED, reason or "stop requested")
        record.deadline = deadline
        record.message = record.message or reason
        self._save_vm(record)

    def explain(self, allocation: str, message: str) -> None:
        """Why the VM is about to end; the first reason stands. No more time is given to a start."""
        record = self.vms[allocation]
        record.message = record.message or message
        record.deadline = 0.0
        self._save_vm(record)

    def gone(self, allocation: str, reason: str) -> None:
        """No process of the VM exists any more: it has ended, and its units are dirty."""
        record = self.vms.get(allocation)
        if record is None or record.state == VmIs.ENDED:
            return
        record.outcome, record.message = outcome_of(record, reason)
        self._vm_change(record, VmHappened.GONE, f"{Outcome.Name(record.outcome)}: {record.message or reason}")
        record.ended_s = self._clock.wall()
        self._save_vm(record)
        for unit in record.units:
            if (held := self.units.get(unit)) and held.allocation == allocation and held.state == UnitIs.HELD:
                # Not put on record: a unit whose holder has ended is DIRTY to the next agent (doubt_units).
                self._unit_change(held, UnitEvent.RELEASED, f"{allocation} ended", durable=False)
        self._on_end(record)

    def warn(self, allocation: str, text: str) -> None:
        """Something for the VM's owner to know; said once."""
        record = self.vms.get(allocation)
        if record is not None and record.state != VmIs.ENDED and text not in record.warnings:
            record.warnings = (*record.warnings, text)
            self._save_vm(record)

    def forget(self, allocation: str) -> None:
        """Drop the record of an ended VM."""
        del self.vms[allocation]
        self._records.remove("vms", allocation)

    # Units

    def meet_units(self, present: Mapping[str, str], reported: Mapping[str, UnitReport]) -> None:
        """Get to know the units that are `present`, by id and identity. `reported` is what the store has of us.

        Units without a record of this boot are dirty, and so are those that are not quite what was proven clean. A
        quarantine goes where the card goes, and stands while it is away, since only an operator may lift it. A unit
        that was sick when its host went down is quarantined. What turns up where a unit is in hand waits.
        """
        if not reported and self._all_as_known(present):
            return
        own = {name: unit_report(record, 0) for name, record in self.units.items()}
        told = {name: _quarantined_if_sick(report) for name, report in reported.items()}
        in_hand = {name for name, record in self.units.items() if record.state in _IN_HAND}
        followed = follow({name: present[name] for name in present.keys() - in_hand}, {**told, **own})
        # Quarantines first: were the agent to die in between, none must have been overwritten by whoever is there now.
        for name, report in sorted(followed.items(), key=lambda item: (not _is_quarantine(item[1]), item[0])):
            have = self.units.get(name)
            if have is None or is_other(have.identity, report.identity):
                self._meet(name, report)
            elif have.state != UnitIs.QUARANTINED and _is_quarantine(report):
                self._meet(name, report)  # it has a device in common with one that was quarantined
            elif have.identity != report.identity:
                have.identity = report.identity
                self.suspect(name)
                if have.state == UnitIs.FREE:
                    self._unit_change(have, UnitEvent.DOUBTED, "it is not quite what was proven clean")
        for name in self.units.keys() - followed.keys():
            if self.units[name].state == UnitIs.QUARANTINED:  # it is known by its new address now
                self._forget_unit(name)

    def _all_as_known(self, present: Mapping[str, str]) -> bool:
        """Whether `present` tells nothing: no quarantine that a card could take along, and each unit that is not in
        hand is the very one on record under its id. The worker asks at every turn, and it nearly always is so.
        """
        if any(record.state == UnitIs.QUARANTINED for record in self.units.values()):
            return False
        known = ((self.units.get(name), identity) for name, identity in present.items())
        return all(
            record is not None and (record.state in _IN_HAND or (identity and record.identity == identity))
            for record, identity in known
        )

    def doubt_units(self) -> None:
        """At the start of a session, with no action under way: what nothing vouches for is dirty.

        A unit stays free only if this boot's record says so: it is taken on record before it is touched.
        """
        for unit in self.units.values():
            if unit.state == UnitIs.RESETTING or (unit.state == UnitIs.HELD and not self._lives(unit.allocation)):
                self._unit_change(unit, UnitEvent.DOUBTED, "its holder is gone, or its reset was cut short")

    def resetting(self, unit: str) -> None:
        """Its reclaim begins. Not put on record: a reclaim that was cut short makes the unit DIRTY, as it is there."""
        self._unit_change(self.units[unit], UnitEvent.RESET, "reclaim", durable=False)

    def proven(self, unit: str, proof: str) -> None:
        """It is clean after the allocation that it names."""
        self.units[unit].proof = proof
        self.units[unit].used = False
        self._unit_change(self.units[unit], UnitEvent.PROVEN, proof)

    def failed(self, unit: str, reason: str) -> None:
        """It could not be proven clean. Whatever comes after that, it has to be reset."""
        self.units[unit].reason, self.units[unit].used = reason, True
        self._unit_change(self.units[unit], UnitEvent.FAILED, reason)

    def retried(self, unit: str, why: str) -> None:
        """An operator asks for another try."""
        self.units[unit].reason = self.units[unit].sick = ""
        self._unit_change(self.units[unit], UnitEvent.RETRIED, why)

    def suspect(self, unit: str) -> None:
        """Somebody else may have used it since its proof: it needs a reset."""
        self.units[unit].used = True
        self._save_unit(self.units[unit])

    def doubt(self, unit: str, why: str) -> None:
        """Something is wrong with a unit that nobody has: it is proven anew, after a reset, before anybody gets it."""
        record = self.units.get(unit)
        if record is not None and record.state == UnitIs.FREE:
            self.suspect(unit)
            self._unit_change(record, UnitEvent.DOUBTED, why)

    def sicken(self, unit: str, why: str) -> None:
        """Something is wrong with a unit that a VM has or had; the first word stands. A VM's owner is told too."""
        record = self.units[unit]
        if record.state not in _IN_HAND or record.sick:
            return
        record.sick = why
        self._save_unit(record)
        if self._lives(record.allocation):
            vm = self.vms[record.allocation]
            vm.warnings = (*vm.warnings, f"unit {unit}: {why}")
            self._save_vm(vm)

    def vouch(self, unit: str, allocation: str) -> None:
        """The free unit is clean after `allocation` too."""
        self.units[unit].allocation = allocation
        self._save_unit(self.units[unit])

    def drop_units(self, present: Iterable[str]) -> None:
        """Forget units that are no longer on the host and that nothing holds. A quarantine outlasts that.

        So does a sickness, which is a quarantine as soon as the unit's reclaim fails.
        """
        for name in sorted(self.units.keys() - set(present)):
            if self.units[name].state in (UnitIs.FREE, UnitIs.DIRTY) and not self.units[name].sick:
                self._forget_unit(name)

    # Reports

    def reports(self, host: str, session: int) -> dict[str, bytes]:
        """What the scheduler should read of this host's VMs and units, by key."""
        before, self._encoded = self._encoded, {}
        for name, vm in self.vms.items():
            self._encode(before, keys.vm(host, name), (_values(vm), session), partial(vm_report, vm, session))
        for name, unit in self.units.items():
            history = self._history(name, unit.identity)
            report = partial(_with_history, unit, session, history)
            self._encode(before, keys.unit(host, name), (_values(unit), session, history), report)
        return {key: value for key, (_, value) in self._encoded.items()}

    def _encode(
        self, before: Mapping[str, tuple[object, bytes]], key: str, made_of: object, report: Callable[[], Message]
    ) -> None:
        """Most reports are as at the last flush. What they are made of is compared whole, so none can be stale."""
        known = before.get(key)
        if known is None or known[0] != made_of:
            known = made_of, report().SerializeToString(deterministic=True)
        self._encoded[key] = known

    def vm_reports(self, session: int) -> dict[str, VmReport]:
        """Of every VM, by allocation, vouched for by `session`."""
        return {name: vm_report(record, session) for name, record in self.vms.items()}

    def unit_reports(self, session: int) -> dict[str, UnitReport]:
        """Of every unit, by id, vouched for by `session`."""
        return {
            name: _with_history(record, session, self._history(name, record.identity))
            for name, record in self.units.items()
        }

    def _hold(self, want: Allocation) -> None:
        for name in want.units:
            unit = self.units[name]
            if unit.state == UnitIs.HELD and unit.allocation == want.id:
                continue
            unit.allocation, unit.proof, unit.used = want.id, "", False
            self._unit_change(unit, UnitEvent.TAKEN, want.id)

    def _lives(self, allocation: str) -> bool:
        return allocation in self.vms and self.vms[allocation].state != VmIs.ENDED

    def _forget_unit(self, name: str) -> None:
        del self.units[name]
        self._records.remove("units", name)

    def _meet(self, name: str, report: UnitReport) -> None:
        known = UnitRecord(
            name, UnitIs.DIRTY, self._clock.wall(), allocation=report.allocation, identity=report.identity
        )
        if report.state == records_pb2.UNIT_STATE_QUARANTINED:
            known.state, known.reason, known.since_s = UnitIs.QUARANTINED, report.reason, report.since_s
            known.sick = report.sick
        self.units[name] = known
        self._save_unit(known)

    def _unit_change(self, unit: UnitRecord, event: UnitEvent, reason: str, *, durable: bool = True) -> None:
        unit.state = change(UNITS, f"unit {unit.unit}", unit.state, event, reason)
        unit.since_s = max(self._clock.wall(), unit.since_s + _MOMENT_S)  # a retry is of what is older than its date
        if durable:
            self._save_unit(unit)

    def _save_unit(self, unit: UnitRecord) -> None:
        self._records.save("units", unit.unit, _dict(unit))

    def _vm_change(self, record: VmRecord, event: VmHappened, reason: str) -> None:
        record.state = change(VMS, f"vm {record.allocation}", record.state, event, reason)

    def _save_vm(self, record: VmRecord) -> None:
        self.vms[record.allocation] = record
        self._records.save("vms", record.allocation, _dict(record))


def outcome_of(record: VmRecord, reason: str) -> tuple[Outcome.ValueType, str]:
    """How a VM that is gone ended, and why.

    A command that ended after a stop was asked for counts as stopped whatever its exit code: a job that saves its state
    and exits with 0 when preempted has not succeeded.
    """
    if record.exit_code is not None and record.exited_by_itself:
        return job_pb2.OUTCOME_EXITED, record.message
    if record.state == VmIs.STOPPING:
        code = "" if record.exit_code is None else f"the command ended with {record.exit_code}"
        return job_pb2.OUTCOME_STOPPED, "; ".join(filter(None, (record.message, code)))
    if not record.started_s:
        return job_pb2.OUTCOME_START_FAILED, record.message or f"the VM ended before its guest started: {reason}"
    return job_pb2.OUTCOME_CRASHED, record.message or f"the VM ended without an exit code: {reason}"


def vm_report(record: VmRecord, session: int) -> VmReport:
    """The record as the scheduler reads it, vouched for by `session`."""
    return VmReport(
        state=records_pb2.AllocationState.Value(f"ALLOCATION_STATE_{record.state}"),
        session=session,
        outcome=record.outcome,
        exit_code=record.exit_code if record.outcome == job_pb2.OUTCOME_EXITED else None,
        message=record.message,
        started_s=record.started_s,
        ended_s=record.ended_s,
        guest_gpus=record.guest_gpus,
        vm_started_s=record.vm_started_s,
        warnings=record.warnings,
    )


def unit_report(record: UnitRecord, session: int) -> UnitReport:
    """The record as the scheduler reads it, vouched for by `session`."""
    return UnitReport(
        state=records_pb2.UnitState.Value(f"UNIT_STATE_{record.state}"),
        session=session,
        allocation=record.allocation,
        reason=record.reason,
        since_s=record.since_s,
        proof=record.proof if record.state == UnitIs.FREE else "",
        identity=record.identity,
        sick=record.sick,
    )


def _with_history(record: UnitRecord, session: int, history: UnitHistory) -> UnitReport:
    report = unit_report(record, session)
    report.history.CopyFrom(history)
    return report


def _is_quarantine(report: UnitReport) -> bool:
    return report.state == records_pb2.UNIT_STATE_QUARANTINED


def _quarantined_if_sick(report: UnitReport) -> UnitReport:
    """The report of an agent that can say no more: what was sick in use then was to be quarantined after it."""
    if not report.sick or _is_quarantine(report):
        return report
    known = UnitReport()
    known.CopyFrom(report)
    known.state, known.reason = records_pb2.UNIT_STATE_QUARANTINED, sick_reason(report.sick)
    return known


def sick_reason(sick: str) -> str:
    """Why a unit is quarantined that was sick while in use."""
    return f"it was sick while in use: {sick}"


def _dict(record: VmRecord | UnitRecord) -> dict[str, Any]:
    """Its fields, for JSON: none of them holds a record, so nothing is copied."""
    return {name: getattr(record, name) for name in _FIELDS[type(record)]}


def _values(record: VmRecord | UnitRecord) -> tuple[Any, ...]:
    """Its fields as they are now."""
    values: tuple[Any, ...] = _GETTERS[type(record)](record)
    return values


_FIELDS = {kind: tuple(field.name for field in fields(kind)) for kind in (VmRecord, UnitRecord)}
_GETTERS = {kind: attrgetter(*names) for kind, names in _FIELDS.items()}


def _load(kind: type[R], data: dict[str, Any]) -> R:
    """A record as JSON gave it back; fields that a later version wrote are dropped."""
    known: dict[str, Any] = {field.name: data[field.name] for field in fields(kind) if field.name in data}
    known |= {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
    known["state"] = (VmIs if kind is VmRecord else UnitIs)(known["state"])
    return kind(**known)
