"""Room for restarts: whether every restartable job of any one failure domain could start elsewhere, kept up to date.

For each domain there is a witness: exact resources on other hosts, free now, for all that the domain would lose. One
domain dies at a time, so witnesses may share what is free. Domains that would lose the same shapes share a witness,
save those that it uses hosts of. A change on a host asks anew only the witnesses that use it, and its own domain's.

What waits for a restart after a loss is a domain of its own, so that nobody new takes the room that was kept for it.

It must never say that a domain is covered without a witness that holds. A search that reached its bound counts as none
found, and says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .fit import Fit, closed
from .model import Cluster, Host, Job, Outcome, Request
from .room import Rooms, Take, standing, trial
from .tables import HostState, JobState
from .witness import find, in_order, most, size

Shapes = tuple[Request, ...]  # in the order of `in_order`
Takes = tuple[Take, ...]
RAN = frozenset({Outcome.HOST_LOST, Outcome.CRASHED, Outcome.STOPPED})
_LOST = frozenset({HostState.SUSPECT, HostState.FENCING})


class Domain(NamedTuple):
    """What dies together: `kind` is "host" or "label", or "lost": of lost hosts, and without a new place yet."""

    kind: str
    name: str

    def __str__(self) -> str:
        """As people say it."""
        if self.kind == "lost":
            return f"what was lost with {self.name.partition(':')[2]}"
        return f"host {self.name}" if self.kind == "host" else self.name


@dataclass(frozen=True, slots=True)
class Gap:
    """A domain that is not covered. `jobs` found no place; `complete`: as there is none, not as the search gave up."""

    domain: Domain
    jobs: tuple[str, ...]
    complete: bool


@dataclass(slots=True)
class _Entry:
    """Domains that would lose the same. `main` serves all but those that it uses hosts of; `others` are for these."""

    domains: set[Domain]
    main: Takes | None = None
    others: dict[Domain, Takes | None] = field(default_factory=dict)
    complete: bool = True
    sought: frozenset[Domain] | None = None  # on whose hosts `main` was not sought; None: it was not sought yet

    def gaps(self) -> Collection[Domain]:
        if self.main is None:
            return self.domains
        return [domain for domain, takes in self.others.items() if takes is None]

    def witness(self, domain: Domain) -> Takes | None:
        return self.others.get(domain, self.main)

    def takes(self) -> Iterable[Take]:
        yield from self.main or ()
        for takes in self.others.values():
            yield from takes or ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What placing a job would mean. `broken`: the domain that would no longer be covered; None: it may be placed."""

    domain: Domain
    shapes: Shapes
    broken: Domain | None = None
    complete: bool = True
    entries: Mapping[Shapes, _Entry] = field(default_factory=dict)


def restartable(job: Job) -> bool:
    """Whether it would be started again if its host died."""
    return job.max_restarts > job.restarts and job.cancel_reason is None and not job.final


def ran_before(job: Job) -> bool:
    """Whether it was admitted long ago, and lost its place since."""
    return any(attempt.outcome in RAN for attempt in job.attempts)


class Reserve:
    """See the module docstring. Belongs to one cluster, whose `stale_hosts` and `stale_jobs` it uses up.

    Unless it is only to look at the cluster as it is now: then it leaves these to the one that keeps up.
    """

    def __init__(self, cluster: Cluster, *, once: bool = False) -> None:
        self._cluster = cluster
        self._once = once
        self._rooms = Rooms(cluster)
        self._domain_of: dict[str, Domain] = {}
        self._members: dict[Domain, set[str]] = {}
        self._waiting: dict[str, Domain] = {}  # by job: the domain of its last host
        self._lost: dict[Domain, set[str]] = {}  # the same, by domain
        self._needs: dict[Domain, Shapes] = {}
        self._entries: dict[Shapes, _Entry] = {}
        self._users: dict[str, set[Shapes]] = {}  # by host: whose witnesses use it
        self._lacking: set[Shapes] = set()
        if not once:
            cluster.stale_hosts, cluster.stale_jobs = set(), set()
        self._look(set(cluster.hosts), {*cluster.pending})

    def refresh(self) -> None:
        """Take in what has changed."""
        hosts, jobs = self._cluster.stale_hosts, self._cluster.stale_jobs
        if not self._once and (hosts or jobs):
            self._cluster.stale_hosts, self._cluster.stale_jobs = set(), set()
            self._look(hosts, jobs)

    # What placement asks

    def judge(self, job: Job, host: Host, found: Fit) -> Verdict:
        """What placing the job there would mean. A gap that is there already is nobody's fault: it blocks nothing, save
        that no restartable job is added to a domain that is not covered with it.
        """
        self.refresh()
        self._rooms.overlay = trial(host, [Take(job.request, host.name, found)])
        try:
            return self._judged(job, host)
        finally:
            self._rooms.overlay = None

    def placed(self, job: Job, host: Host, verdict: Verdict) -> None:
        """The job was placed as judged, and nothing else has changed since."""
        self._rooms.update(host)
        self._move(verdict.domain, verdict.shapes)
        for shapes, entry in verdict.entries.items():
            self._install(shapes, entry)
        self._cluster.stale_hosts.discard(host.name)
        self._cluster.stale_jobs.discard(job.id)

    def promised(self, job: Job) -> tuple[Host, Fit] | None:
        """Where room was kept for a job that waits for its restart, if that is so."""
        self.refresh()
        if job.id not in self._waiting:
            return None
        domain = _lost(self._waiting[job.id])
        entry = self._entries.get(self._needs.get(domain, ()))
        takes = entry.witness(domain) if entry is not None else None
        for take in takes or ():
            if take.request == job.request and standing(self._cluster.hosts[take.host], [take]):
                return self._cluster.hosts[take.host], take.fit
        return None

    def spares(self, job: Job, host: Host, found: Fit) -> bool:
        """Whether all that waits beside the job still has its room if the job takes this place."""
        self.refresh()
        if job.id not in self._waiting:
            return True
        domain = _lost(self._waiting[job.id])
        shapes = self._needs.get(domain, ())
        entry = self._entries.get(shapes)
        if entry is None or domain in entry.gaps():
            return True
        self._rooms.overlay = trial(host, [Take(job.request, host.name, found)])
        rest = in_order((Counter(shapes) - Counter([job.request])).elements())
        try:
            return not rest or not self._settled(rest, {domain}, None, seed=entry.witness(domain)).gaps()
        finally:
            self._rooms.overlay = None

    def covered(self) -> dict[Domain, bool]:
        """Each domain that would lose something, and whether all that has room."""
        self.refresh()
        return {d: d not in self._entries[shapes].gaps() for d, shapes in sorted(self._needs.items())}

    def witness(self, domain: Domain) -> Takes | None:
        """Where all that the domain would lose has room."""
        self.refresh()
        return self._entries[self._needs[domain]].witness(domain)

    def shapes(self) -> list[Shapes]:
        """The different sets of shapes that domains would lose."""
        return sorted(self._entries, key=_key)

    def gaps(self) -> list[Gap]:
        """Domains that are not covered, by name."""
        self.refresh()
        found = []
        for shapes in self._lacking:
            entry = self._entries[shapes]
            found += [Gap(domain, self._homeless(domain, shapes), entry.complete) for domain in entry.gaps()]
        return sorted(found, key=lambda gap: gap.domain)

    def _homeless(self, domain: Domain, shapes: Shapes) -> tuple[str, ...]:
        takes = most(self._rooms, shapes, self._members.get(domain, ()))
        placed = Counter(take.request for take in takes)
        left = []
        for job in sorted(self._jobs(domain), key=lambda job: (-job.priority, job.arrival, job.id)):
            if placed[job.request]:
                placed[job.request] -= 1
            else:
                left.append(job.id)
        return tuple(left)

    # What changes

    def _look(self, hosts: Collection[str], jobs: Collection[str]) -> None:
        touched: set[Domain] = set()
        asked: set[Shapes] = set()
        moved: set[str] = set()
        for name in sorted(hosts):
            host = self._cluster.hosts[name]
            self._rooms.update(host)
            before, after = self._domain_of.get(name), self._domain(host)
            if before not in (None, after):
                moved.add(name)
            touched |= self._change_domain(name, before, after)
            asked |= self._users.get(name, set())
        followed = [job_id for job_id in self._waiting if moved and self._last_host(job_id) in moved]
        for job_id in (*jobs, *followed):
            touched |= self._look_at_job(job_id)
        touched |= {_lost(domain) for domain in touched}
        seeds: dict[Shapes, Takes | None] = {}
        for domain in sorted(touched):
            before_shapes, shapes = self._needs.get(domain, ()), self._shapes(domain)
            if before_shapes != shapes or moved:
                known = self._entries.get(before_shapes)
                seeds.setdefault(shapes, known.witness(domain) if known is not None else None)
                self._move(domain, shapes)
                asked |= {before_shapes, shapes}
        again = {shapes for shapes in self._lacking if moved or self._may_help(hosts, shapes)}
        for shapes in sorted((asked | again) & self._entries.keys(), key=_key):
            entry = self._entries[shapes]
            made = self._settled(shapes, entry.domains, entry, retry=shapes in again, seed=seeds.get(shapes))
            self._install(shapes, made)

    def _look_at_job(self, job_id: str) -> set[Domain]:
        """Keep up what waits; returns the domains that may need more or less room."""
        touched = set()
        if (before := self._waiting.pop(job_id, None)) is not None:
            touched.add(before)
            self._lost[before].discard(job_id)
        job, last = self._cluster.jobs[job_id], self._last_host(job_id)
        if not last:
            return touched
        domain = self._domain_of.get(last, Domain("host", last))
        waits = job.state is JobState.PENDING and not job.hold and job.cancel_reason is None
        if waits and ran_before(job):
            self._waiting[job_id] = domain
            self._lost.setdefault(domain, set()).add(job_id)
        return {*touched, domain}

    def _last_host(self, job_id: str) -> str:
        attempts = self._cluster.jobs[job_id].attempts
        return attempts[-1].host if attempts else ""

    def _domain(self, host: Host) -> Domain:
        label = self._cluster.policy.reservation.domain_label
        labels = dict(host.inventory.labels) if label and host.inventory is not None else {}
        return Domain("label", f"{label}={labels[label]}") if label in labels else Domain("host", host.name)

    def _change_domain(self, name: str, before: Domain | None, after: Domain) -> set[Domain]:
        """Returns the domains that the host touches."""
        if before == after:
            return {after}
        if before is not None:
            self._members[before].discard(name)
        self._domain_of[name] = after
        self._members.setdefault(after, set()).add(name)
        return {after} if before is None else {before, after}

    def _shapes(self, domain: Domain) -> Shapes:
        return in_order(job.request for job in self._jobs(domain))

    def _jobs(self, domain: Domain) -> Iterable[Job]:
        """What would have to be restarted; of "lost": what has to be, as its host is lost. In no order."""
        cluster, lost = self._cluster, domain.kind == "lost"
        hosts = Domain(*domain.name.split(":", 1)) if lost else domain
        if lost:
            yield from (cluster.jobs[job_id] for job_id in self._lost.get(hosts, ()))
        for name in self._members.get(hosts, ()):
            if lost != (cluster.hosts[name].state in _LOST):
                continue
            for allocation_id in cluster.hosts[name].allocations:
                job = cluster.jobs.get(cluster.allocations[allocation_id].job)
                if job is not None and job.allocation_id == allocation_id and restartable(job):
                    yield job

    def _may_help(self, hosts: Collection[str], shapes: Shapes) -> bool:
        """Whether one of these hosts has room for any of it."""
        kinds = dict.fromkeys(shapes)
        here = [name for name in hosts if closed(self._cluster.hosts[name]) is None]
        return any(self._rooms.fit(name, request) is not None for name in here for request in kinds)

    # Witnesses

    def _judged(self, job: Job, host: Host) -> Verdict:
        domain = self._domain_of[host.name]
        old = self._needs.get(domain, ())
        new = in_order((*old, job.request)) if restartable(job) else old
        made: dict[Shapes, _Entry] = {}
        for shapes in sorted({*self._users.get(host.name, ()), new} - {()}, key=_key):
            entry = self._entries.get(shapes)
            domains = set(entry.domains) if entry is not None else set()
            if old != new:
                domains.discard(domain)
            if shapes == new:
                domains.add(domain)
            if not domains:
                continue
            seed = self._entries[old].witness(domain) if old in self._entries else None
            made[shapes] = after = self._settled(shapes, domains, entry, seed=seed)
            before = set(entry.gaps()) if entry is not None else set()
            before -= {domain} if old != new else set()
            if broken := set(after.gaps()) - before:
                return Verdict(domain, new, min(broken), after.complete)
        return Verdict(domain, new, entries=made)

    def _settled(
        self,
        shapes: Shapes,
        domains: set[Domain],
        entry: _Entry | None,
        *,
        retry: bool = False,
        seed: Takes | None = None,
    ) -> _Entry:
        """The entry for these domains, from one for nearly the same; what was not found is sought again if `retry`."""
        sought = frozenset(domains) if len(domains) == 1 else frozenset()
        made = _Entry(set(domains), sought=sought)
        if entry is not None and entry.main is None and entry.sought in (frozenset(), sought) and not retry:
            made.complete, made.sought = entry.complete, entry.sought  # there was none, and nothing was set free
            return made
        main = entry.main if entry is not None and entry.main is not None else seed
        avoid = self._members.get(min(domains), ()) if sought and (entry is None or entry.main is None) else ()
        made.main = self._mended(made, shapes, main, avoid)
        if made.main is None:
            return made
        known = entry.others if entry is not None else {}
        for domain in sorted({self._domain_of[take.host] for take in made.main} & domains):
            if domain in known and known[domain] is None and not retry:
                made.others[domain] = None
            else:
                made.others[domain] = self._mended(made, shapes, known.get(domain), self._members[domain])
        return made

    def _mended(self, made: _Entry, shapes: Shapes, takes: Takes | None, avoid: Collection[str]) -> Takes | None:
        """A witness that holds, with as much as possible of the one before."""
        kept = self._standing(takes or (), avoid)
        wanted = Counter(shapes)
        still = []
        for take in kept:
            if wanted[take.request] > 0:
                wanted[take.request] -= 1
                still.append(take)
        if takes is not None and len(still) == len(takes) == len(shapes):
            return takes
        found = find(self._rooms, shapes, avoid, still)
        made.complete = made.complete and found.complete
        return found.takes

    def _standing(self, takes: Takes, avoid: Collection[str]) -> list[Take]:
        by_host: dict[str, list[Take]] = {}
        for take in takes:
            if take.host not in avoid:
                by_host.setdefault(take.host, []).append(take)
        return [take for name, mine in sorted(by_host.items()) for take in standing(self._rooms.host(name), mine)]

    def _move(self, domain: Domain, shapes: Shapes) -> None:
        """The domain now needs room for these; no witness is sought yet."""
        before = self._needs.pop(domain, ())
        if (entry := self._entries.get(before)) is not None:
            self._install(before, None)
            entry.domains.discard(domain)
            entry.others.pop(domain, None)
            if entry.domains:
                self._install(before, entry)
        if shapes:
            self._needs[domain] = shapes
            self._entries.setdefault(shapes, _Entry(set())).domains.add(domain)

    def _install(self, shapes: Shapes, entry: _Entry | None) -> None:
        known = self._entries.pop(shapes, None)
        for take in known.takes() if known is not None else ():
            self._users.get(take.host, set()).discard(shapes)
        self._lacking.discard(shapes)
        if entry is None:
            return
        self._entries[shapes] = entry
        for take in entry.takes():
            self._users.setdefault(take.host, set()).add(shapes)
        if entry.gaps():
            self._lacking.add(shapes)


def _lost(domain: Domain) -> Domain:
    return domain if domain.kind == "lost" else Domain("lost", ":".join(domain))


def _key(shapes: Shapes) -> tuple[object, ...]:
    return tuple(size(request) for request in shapes)
