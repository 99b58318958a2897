"""Why a job waits: every host's verdict, and the reasons counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from .failover.power import told
from .fitting.fit import Fit, fit
from .fitting.nearest import Miss, least, misses
from .fitting.own import asked, barred, case
from .gangs import explain as gang_explain
from .queueing import claims, forecast
from .queueing.deadlines import lost
from .queueing.wait import JobWait, ignored, wait
from .reservation.admission import kept_out
from .reservation.reserve import Reserve
from .state import limits
from .state.cluster import Cluster
from .state.jobs import Job
from .state.reasons import Reason, Refusal
from .state.tables import HostState, JobState
from .work import PAUSE, Work, done


@dataclass(frozen=True, slots=True)
class Explanation:
    """`verdicts` has one entry a host, by name; None means that the job would fit there now."""

    summary: str
    position: int
    counts: tuple[tuple[Reason, int], ...]
    verdicts: tuple[tuple[str, Refusal | None], ...]
    wait: JobWait | None = None  # what keeps the job itself
    nearest: Miss | None = None  # the host that lacks least; None: one fits, or there is none
    start_s: float = 0.0  # when it may start, by declared limits of time (forecast.py); 0: nobody knows


def explain(
    cluster: Cluster, job: Job, now: float, reserve: Callable[[], Reserve] | None = None, *, ahead: bool = True
) -> Explanation:
    """Explain the job's state at `now`; hosts are judged only while it is pending.

    `reserve` gives the reservation of this very cluster, as it is now, where somebody has it; else it is computed.
    `ahead`: reckon when it may start, those ahead of it counted, which may take half a second.
    """
    return done(explaining(cluster, job, now, reserve, ahead=ahead))


def explaining(
    cluster: Cluster, job: Job, now: float, reserve: Callable[[], Reserve] | None = None, *, ahead: bool = True
) -> Work[Explanation]:
    """As `explain`, with pauses, in which nothing may change the cluster."""
    if job.state is not JobState.PENDING:
        left = limits.in_words(job, now, lost=lost(cluster, job))
        told = f"{job.message or 'nothing to add'}{left}{_lost(cluster, job, now)}"
        return Explanation(f"{job.state.value}: {told}", 0, (), ())
    waits = wait(cluster, job, now)
    request, hosts, words = asked(cluster, job), cluster.hosts, ""
    if job.terms.member is not None and cluster.books.gangs.lead(job):
        judged = yield from gang_explain.judging(cluster, job, now)
        verdicts, hosts, words = judged.verdicts, judged.hosts, judged.words
    else:
        verdicts = yield from _verdicts(cluster, job, now, reserve)
    yield PAUSE
    counts = Counter(refusal.reason for _, refusal in verdicts if refusal is not None)
    ranked = tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0].value)))
    summary = waits[1] if waits else _summary(cluster, job, ranked, verdicts, words)
    if waits and job.message and waits[0] is not JobWait.HELD:
        summary += f" ({job.message})"
    start = None if waits or not ahead else (yield from forecast.forecast(cluster, job, now))
    summary += (
        forecast.in_words(start, now)
        + claims.in_words(cluster, job)
        + ignored(cluster, job)
        + limits.in_words(job, now)
    )
    position = cluster.pending.position(job.id, cluster.share)
    yield PAUSE
    near: list[Miss] = []
    for miss in misses([(hosts[name], refusal) for name, refusal in verdicts], request, cluster.policy.starts_at_once):
        near.append(miss)
        yield 1
    start_s = start.at_s if start else 0.0
    return Explanation(summary, position, ranked, tuple(verdicts), waits[0] if waits else None, least(near), start_s)


def _verdicts(
    cluster: Cluster, job: Job, now: float, reserve: Callable[[], Reserve] | None
) -> Work[list[tuple[str, Refusal | None]]]:
    """Each host's answer to the job."""
    request, mine, at_once = asked(cluster, job), case(cluster, job), cluster.policy.starts_at_once
    outcomes: list[tuple[str, Fit | Refusal]] = []
    for number, name in enumerate(sorted(cluster.hosts)):
        outcomes.append((name, fit(cluster.hosts[name], request, at_once)))
        yield int(number % gang_explain.FITS == 0)
    if mine is not None:
        outcomes = [
            (name, (isinstance(found, Fit) and barred(cluster.hosts[name], mine)) or found) for name, found in outcomes
        ]
    yield PAUSE
    kept = kept_out(cluster, job, [(name, found) for name, found in outcomes if isinstance(found, Fit)], reserve)
    kept |= claims.told(cluster, job, [name for name, found in outcomes if isinstance(found, Fit)], now)
    return [(name, found if isinstance(found, Refusal) else kept.get(name)) for name, found in outcomes]


def _lost(cluster: Cluster, job: Job, now: float) -> str:
    """What is known of the job's host, if it is lost; "": it is not."""
    allocation = cluster.allocations.get(job.allocation_id or "")
    host = cluster.hosts.get(allocation.host) if allocation is not None else None
    if host is None or host.state not in (HostState.SUSPECT, HostState.FENCING):
        return ""
    power = told(cluster, host, now)
    doing = f"; power fencing: {power}" if power else ""
    if cluster.intent.disarmed:
        doing += "; fencing is disarmed" if not power else ""
    return f"; {host.name} is lost, and nothing proves yet that its VMs are dead{doing}"


def _summary(
    cluster: Cluster,
    job: Job,
    counts: tuple[tuple[Reason, int], ...],
    verdicts: list[tuple[str, Refusal | None]],
    words: str,
) -> str:
    if not verdicts:
        return "no host has ever joined"
    before = f" (attempt {job.attempt_count}: {job.message})" if job.attempts else ""
    fitting = [name for name, refusal in verdicts if refusal is None]
    if fitting:
        place = f"{cluster.pending.position(job.id, cluster.share)} of {len(cluster.pending)}"
        return f"{words or f'fits on {fitting[0]}'}; waits for its turn, {place}{before}"
    why = ", ".join(f"{count} {reason.name}" for reason, count in counts)
    return f"{words}fits on none of {len(verdicts)} hosts: {why}{before}"
