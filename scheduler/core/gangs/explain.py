"""Why a gang waits: how many of its members have room, and what each host lacks for the next.

Hosts are judged as they would be once those members had their seats that have room, on copies. It decides nothing. Like
a search for victims it says what it costs (`core/work.py`), as nobody need wait for 10,000 verdicts in one go.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..fitting.fit import Fit, fit
from ..fitting.own import failed_on
from ..fitting.scratch import join, without
from ..queueing import claims
from ..reservation.domains import ran_before
from ..state.cluster import Cluster
from ..state.hosts import Host
from ..state.jobs import Job
from ..state.reasons import Reason, Refusal
from ..work import Work
from .arrange import PCIE_ROOT, Ask, Seat, cell_of, hosts_of, seats, shuns
from .ask import ask_of
from .place import find

FITS = 2  # hosts that are asked in the time of a try
_GLANCES = 50


@dataclass(frozen=True, slots=True)
class Judged:
    """`hosts` are as they would be; `verdicts` are for the job `missing`, "": all have room."""

    hosts: dict[str, Host]
    verdicts: list[tuple[str, Refusal | None]]
    words: str
    missing: str = ""


def judging(cluster: Cluster, job: Job, now: float) -> Work[Judged]:
    """The gang of a job that could start now, if there were room."""
    members = [cluster.jobs[job_id] for job_id in cluster.books.gangs.party(job)]
    ask, at_once = ask_of(cluster, members), cluster.policy.starts_at_once
    found: dict[str, Fit | Refusal] = {}
    for number, (name, host) in enumerate(sorted(cluster.hosts.items())):
        found[name] = fit(host, ask.request, at_once)
        yield int(number % FITS == 0)
    firsts = {name: fits for name, fits in found.items() if isinstance(fits, Fit)}
    kept = claims.told(cluster, job, firsts, now)
    yield 1 + len(found) // _GLANCES
    order = sorted(firsts.keys() - kept.keys(), key=lambda name: (*firsts[name].order, name))
    taken = find(cluster, members, ask, [(name, firsts[name]) for name in order])
    yield 1 + len(order) // FITS
    missing = next((member for member in members if member.id not in taken), None)
    if missing is None:
        verdicts = [(n, f if isinstance(f, Refusal) else kept.get(n)) for n, f in found.items()]
        leave = cluster.policy.reservation.hosts and not any(ran_before(member) for member in members)
        words = f"all {len(members)} of its gang have room, on {_where(taken)}"
        words += ", if that leaves the room that is kept for restarts" if leave else ""
        return Judged(cluster.hosts, verdicts, words)
    hosts = _seated(cluster, ask, taken)
    verdicts = []
    for number, name in enumerate(sorted(hosts)):
        verdicts.append((name, kept.get(name) or _verdict(hosts[name], ask, taken, missing, at_once)))
        yield int(number % FITS == 0)
    room = f"{len(taken)} have room ({_where(taken)})" if taken else "none has room"
    words = f"its gang starts together: of {len(members)} members {room}, {missing.id} " if len(members) > 1 else ""
    return Judged(hosts, verdicts, words, missing.id)


def _where(taken: dict[str, Seat]) -> str:
    return hosts_of(taken.values())


def _seated(cluster: Cluster, ask: Ask, taken: dict[str, Seat]) -> dict[str, Host]:
    hosts = dict(cluster.hosts)
    for member, seat in taken.items():
        if hosts[seat.host] is cluster.hosts[seat.host]:
            hosts[seat.host] = without(hosts[seat.host], ())
        join(hosts[seat.host], seat.found, member, ask.request, ask.labels)
    return hosts


def _verdict(host: Host, ask: Ask, taken: dict[str, Seat], missing: Job, at_once: int) -> Refusal | None:
    found = fit(host, ask.request, at_once)
    if isinstance(found, Refusal):
        return found
    if shuns(ask, host):
        return Refusal(Reason.APART_FROM_JOBS, "a job there is to be apart from jobs like it")
    if host.name in failed_on(missing):
        return Refusal(Reason.FAILED_BEFORE, "as many attempts of this job failed there as may")
    return _packed(host, ask, taken) or _spread(host, ask, taken)


def _packed(host: Host, ask: Ask, taken: dict[str, Seat]) -> Refusal | None:
    if not ask.pack:
        return None
    kind = ask.pack if ask.pack != PCIE_ROOT else "host"
    mine, there = cell_of(host, kind), sorted({seat.host for seat in taken.values()})
    if not mine:
        return Refusal(Reason.GANG_PACK, f"it has no label {kind}, by which its gang is to be together")
    where = "on one PCIe root" if ask.pack == PCIE_ROOT else f"on one {kind}"
    told = f"its gang is to be {where}, and comes nearest to that with {', '.join(there) or 'nobody'}"
    return Refusal(Reason.GANG_PACK, told)


def _spread(host: Host, ask: Ask, taken: dict[str, Seat]) -> Refusal | None:
    used = ask.used | {seat.cell for seat in taken.values()}
    if ask.spread == PCIE_ROOT:
        return None if seats(ask, without(host, ()), 1) else Refusal(Reason.GANG_SPREAD, "no PCIe root is left there")
    cell = cell_of(host, ask.spread) if ask.spread else ""
    if ask.spread and not cell:
        return Refusal(Reason.GANG_SPREAD, f"it has no label {ask.spread}, over which its gang is to be spread")
    if ask.spread and cell in used:
        return Refusal(Reason.GANG_SPREAD, f"another of its gang is on {ask.spread} {cell}")
    return None
