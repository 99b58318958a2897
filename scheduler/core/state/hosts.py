"""Hosts as the scheduler records them, and allocations: what is reserved on each, by NUMA node."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from .company import Company
from .facts import (
    Drain,
    GuardKind,
    HostIntent,
    InventoryFact,
    SessionFact,
    UnitFact,
    UnitReport,
    UnitState,
)
from .hugepages import Pool
from .losses import DeviceOf, FenceRecord, PowerFencing
from .rules import Labels
from .tables import (
    AllocationState,
    HostState,
)

_NO_WISH = HostIntent()  # of most: one object for all of them


@dataclass(slots=True)
class Allocation:
    """One VM of one attempt on one host, with everything decided. While it exists its resources are taken."""

    id: str
    job: str
    attempt: int
    host: str
    session: int
    units: tuple[str, ...]
    nodes: tuple[int, ...]
    cores: tuple[tuple[int, ...], ...]  # physical cores, each as its logical CPUs
    memory_mib: tuple[int, ...]  # from each of `nodes`
    created_s: float
    hugepage_size_kib: int = 0  # the memory is of such pages; 0: ordinary
    unit_identities: tuple[str, ...] = ()  # of `units`, as the decision saw them
    stop_reason: str = ""  # not empty: it shall stop
    stop_requested_s: float = 0.0
    state: AllocationState = AllocationState.BOUND
    pages_seen: bool = False  # its hugepages were out of what the host last counted as free
    session_nonce: str = ""
    stop_grace_s: int = 0  # 0: as the job's spec says
    labels: Labels = ()  # of its job
    apart: Labels = ()  # keeps jobs with such labels off its host
    whole_host: bool = False  # keeps everybody off its host
    preempted_for: str = ""  # the job that it stops for


@dataclass(slots=True)
class Node:
    """A NUMA node: physical cores (each as its logical CPUs, sorted) and memory, total and free."""

    id: int
    cores: tuple[tuple[int, ...], ...]
    memory_mib: int
    free_cores: set[tuple[int, ...]]
    free_memory_mib: int
    hugepages: dict[int, Pool] = field(default_factory=dict)  # by size in KiB
    _even: int = field(default=-1, init=False, compare=False, repr=False)  # CPUs of each core; 0: not all have as many

    @property
    def threads(self) -> int:
        """Logical CPUs of one physical core."""
        return len(self.cores[0]) if self.cores else 1

    @property
    def free_cpus(self) -> int:
        """Logical CPUs of the free cores."""
        return self.cpus_of(self.free_cores)

    def cpus_of(self, cores: Collection[tuple[int, ...]]) -> int:
        """Logical CPUs of some of its cores, which mostly have as many each."""
        if self._even < 0:
            kinds = set(map(len, self.cores))
            self._even = kinds.pop() if len(kinds) == 1 else 0
        return self._even * len(cores) if self._even else sum(map(len, cores))

    def free_mib(self, hugepage_size_kib: int) -> int:
        """Free memory of a kind; none where more is lent than an inventory now says there is."""
        if not hugepage_size_kib:
            return max(0, self.free_memory_mib)
        pool = self.hugepages.get(hugepage_size_kib)
        return max(0, pool.free_mib) if pool is not None else 0


@dataclass(slots=True)
class Host:
    """A host: the record that the leader keeps (`state` .. `last_fence`), the facts, and what is reserved on it."""

    name: str
    state: HostState = HostState.JOINING
    session: int = 0
    boot_id: str = ""
    guard: GuardKind = GuardKind.NONE
    simulated: bool = False
    since_s: float = 0.0
    last_fence: FenceRecord | None = None
    lost_s: tuple[float, ...] = ()  # times of its last losses, oldest first
    held_out: str = ""  # why the leader itself keeps it out
    held_out_s: float = 0.0
    power: PowerFencing | None = None
    boot_s: float = 0.0  # when `boot_id` was first seen
    machine: str = ""  # that `session` is of; "": unknown
    devices: tuple[DeviceOf, ...] = ()  # which machine each fence device of its name is of; that of the file comes last
    fact: SessionFact | None = None
    inventory: InventoryFact | None = None
    intent: HostIntent = _NO_WISH
    ordered: Drain | None = None  # a drain that the site's policy wants, see failover/quarantine.py
    units: dict[str, UnitFact] = field(default_factory=dict)
    reports: dict[str, UnitReport] = field(default_factory=dict)
    sick: set[str] = field(default_factory=set)  # units that a report calls so, and that are not quarantined for it yet
    held: dict[str, str] = field(default_factory=dict)  # unit -> allocation
    nodes: dict[int, Node] = field(default_factory=dict)
    allocations: set[str] = field(default_factory=set)
    starting: set[str] = field(default_factory=set)  # those of them whose VM does not run yet
    company: Company = field(default_factory=Company)  # who is there, as far as it matters to others
    version: int = 0  # grows with every change that placement can see

    @property
    def drain(self) -> Drain | None:
        """The drain that goes on, an operator's or the policy's."""
        return self.intent.drain or self.ordered

    def unfit(self, unit: UnitFact) -> str:
        """Why the unit must not be handed out, whatever its state; "": it may."""
        if unit.unfit or unit.id not in self.sick:
            return unit.unfit
        return f"sick: {self.reports[unit.id].sick}"

    def taken_by(self) -> SessionFact | None:
        """The later session under its name, if nothing says that it is of the same machine; None: there is none such.

        Two unknown machines pass for one, as before machines were known; one that is known and one that is not do not.
        The same boot is the same machine.
        """
        fact = self.fact
        if fact is None or fact.session == self.session or fact.boot_id == self.boot_id:
            return None
        return fact if fact.machine != self.machine else None

    def unit_state(self, unit: str) -> UnitState:
        """As the scheduler must see it: held from the decision on, and dirty unless this session says otherwise."""
        report = self.reports.get(unit)
        current = report is not None and report.session == self.session
        if report is not None and current and report.state is UnitState.QUARANTINED:
            return UnitState.QUARANTINED
        if unit in self.held:
            return UnitState.HELD
        return report.state if report is not None and current else UnitState.DIRTY
