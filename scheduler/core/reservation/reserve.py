"""Room for restarts: whether every restartable job of any one failure domain could start elsewhere, kept up to date.

For each domain there is a witness: exact resources on other hosts, free now, for all that the domain would lose. One
domain dies at a time, so witnesses may share what is free. Domains that would lose the same shapes share a witness,
save those that it uses hosts of. A change on a host asks anew only the witnesses that use it, and its own domain's.

What waits for a restart after a loss is a domain of its own (domains.py), so that nobody new takes the room that was
kept for it.

It must never say that a domain is covered without a witness that holds. A search that reached its bound counts as none
found, and says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from ..fitting.fit import Fit, closed
from ..state.cluster import Cluster
from ..state.hosts import Host
from ..state.jobs import Job
from .domains import Domain, Domains, Shapes, lost, restartable
from .room import Rooms, Take, standing, trial
from .witness import find, in_order, most, size

Takes = tuple[Take, ...]


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


class Reserve:
    """See the module docstring. Belongs to one cluster, whose `stale_hosts` and `stale_jobs` it uses up.

    Unless it is only to look at the cluster as it is now: then it leaves these to the one that keeps up.
    """

    def __init__(self, cluster: Cluster, *, once: bool = False) -> None:
        self._cluster = cluster
        self._once = once
        self._rooms = Rooms(cluster)
        self._domains = Domains(cluster)
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
        if job.terms.preemptible:
            return self._judged_on_loan(job, host, found)
        self._rooms.overlay = trial(self._rooms.seen(host), [Take(job.request, host.name, found)])
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
        domain = self._domains.waits(job)
        if domain is None:
            return None
        entry = self._entries.get(self._needs.get(domain, ()))
        takes = entry.witness(domain) if entry is not None else None
        for take in takes or ():
            if take.request == job.request and standing(self._cluster.hosts[take.host], [take]):
                return self._cluster.hosts[take.host], take.fit
        return None

    def owed(self) -> list[Job]:
        """What ran and waits for its restart (lent.py)."""
        self.refresh()
        return [self._cluster.jobs[job_id] for job_id in self._domains.waiting()]

    def meant_for(self, job: Job) -> list[Take]:
        """Where all that was lost with a job that waits has room, be it lent (lent.py)."""
        self.refresh()
        domain = self._domains.waits(job)
        entry = self._entries.get(self._needs.get(domain, ())) if domain is not None else None
        return list((entry.witness(domain) if entry is not None and domain is not None else None) or ())

    def anywhere(self, job: Job, avoid: Collection[str]) -> Take | None:
        """Room for the job alone, be it lent, on no host of `avoid`."""
        self.refresh()
        return next(iter(find(self._rooms, (job.request,), avoid).takes or ()), None)

    def spares(self, job: Job, host: Host, found: Fit) -> bool:
        """Whether all that waits beside the job still has its room if the job takes this place."""
        self.refresh()
        domain = self._domains.waits(job)
        if domain is None:
            return True
        shapes = self._needs.get(domain, ())
        entry = self._entries.get(shapes)
        if entry is None or domain in entry.gaps():
            return True
        self._rooms.overlay = trial(self._rooms.seen(host), [Take(job.request, host.name, found)])
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
        takes = most(self._rooms, shapes, self._domains.members(domain))
        placed = Counter(take.request for take in takes)
        left = []
        for job in sorted(self._domains.jobs(domain), key=lambda job: (-job.priority, job.arrival, job.id)):
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
            self._rooms.update(self._cluster.hosts[name])
            near, left = self._domains.look_at_host(name)
            touched |= near
            moved |= {name} if left else set()
            asked |= self._users.get(name, set())
        for job_id in (*jobs, *self._domains.last_on(moved)):
            touched |= self._domains.look_at_job(job_id)
        touched |= {lost(domain) for domain in touched}
        seeds: dict[Shapes, Takes | None] = {}
        for domain in sorted(touched):
            before_shapes, shapes = self._needs.get(domain, ()), self._domains.shapes(domain)
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

    def _may_help(self, hosts: Collection[str], shapes: Shapes) -> bool:
        """Whether one of these hosts has room for any of it."""
        kinds = dict.fromkeys(shapes)
        here = [name for name in hosts if closed(self._cluster.hosts[name]) is None]
        return any(self._rooms.fit(name, request) is not None for name in here for request in kinds)

    # Witnesses

    def _judged_on_loan(self, job: Job, host: Host, found: Fit) -> Verdict:
        """Whoever leaves when a restart comes may have any room, save what somebody waits for now."""
        domain, taken = self._domains.of[host.name], trial(host, [Take(job.request, host.name, found)])
        for shapes in sorted(self._users.get(host.name, ()), key=_key):
            for waits in sorted(d for d in self._entries[shapes].domains if d.kind == "lost"):
                takes = [take for take in self._entries[shapes].witness(waits) or () if take.host == host.name]
                if len(standing(taken, takes)) < len(standing(host, takes)):
                    return Verdict(domain, (), waits)
        return Verdict(domain, ())

    def _judged(self, job: Job, host: Host) -> Verdict:
        domain = self._domains.of[host.name]
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
        avoid = self._domains.members(min(domains)) if sought and (entry is None or entry.main is None) else ()
        made.main = self._mended(made, shapes, main, avoid)
        if made.main is None:
            return made
        known = entry.others if entry is not None else {}
        for domain in sorted({self._domains.of[take.host] for take in made.main} & domains):
            if domain in known and known[domain] is None and not retry:
                made.others[domain] = None
            else:
                made.others[domain] = self._mended(made, shapes, known.get(domain), self._domains.members(domain))
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


def _key(shapes: Shapes) -> tuple[object, ...]:
    return tuple(size(request) for request in shapes)
