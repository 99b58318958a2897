"""The commands of a scenario that are about the queue: what a job asks of it, holds, requeues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import isinf
from typing import Any

from gpupool.v1 import job_pb2, records_pb2
from scheduler.core.state import events
from scheduler.core.state.amounts import Amounts
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.facts import JobIntent, QueueIntent
from scheduler.core.state.skew import no_earlier
from scheduler.core.state.terms import Dependency, Element, Member, OnLoss, Terms, When


def wire_terms(terms: Terms) -> dict[str, Any]:
    """The fields of a spec that say the same."""
    return {
        "dependencies": [job_pb2.Dependency(job=d.job, when=_when(d.when)) for d in terms.dependencies],
        "time_limit_s": terms.time_limit_s,
        "start_within_s": terms.start_within_s,
        "end_within_s": terms.end_within_s,
        "keep_s": terms.keep_s,
        "stop_grace_s": terms.stop_grace_s,
        "queue": terms.queue,
        "user": terms.user,
        "preemptible": terms.preemptible,
        "array": job_pb2.Array(id=e.array, index=e.index, parallel=e.parallel, count=9)
        if (e := terms.element)
        else None,
        "gang": _wire_member(terms.member) if terms.member else None,
    }


def _when(when: When) -> job_pb2.Dependency.When.ValueType:
    return job_pb2.Dependency.When.Value(when.name)


def _element(text: str) -> Element | None:
    """`name.index.parallel`."""
    if not text:
        return None
    name, index, parallel = text.split(".")
    return Element(name, int(index), int(parallel))


def _member(text: str) -> Member | None:
    """`name.index.count`, then `alone`, `spread:rack`, `pack:host`, with dots."""
    if not text:
        return None
    name, index, count, *how = text.split(".")
    said = dict(word.partition(":")[::2] for word in how)
    on_loss = OnLoss.RESTART_MEMBER if "alone" in said else OnLoss.RESTART_ALL
    return Member(name, int(index), int(count), on_loss, said.get("spread", ""), said.get("pack", ""))


def _wire_member(member: Member) -> job_pb2.Gang:
    return job_pb2.Gang(
        id=member.gang, index=member.index, count=member.count, spread_over=member.spread, pack_into=member.pack,
        on_member_loss=job_pb2.Gang.OnLoss.Value(member.on_loss.name),
    )  # fmt: skip


def wire_queue(intent: QueueIntent) -> records_pb2.QueueIntent:
    """As the API writes it."""
    wire = records_pb2.QueueIntent(tenant=intent.tenant, weight=intent.weight, guaranteed=_amounts(intent.guaranteed))
    wire.limit.CopyFrom(_amounts(intent.limit))
    wire.user_limit.CopyFrom(_amounts(intent.user_limit))
    if not isinf(intent.user_jobs):
        wire.user_jobs = int(intent.user_jobs)
    if intent.suspended:
        by, _, reason = intent.suspended.removeprefix("by ").partition(": ")
        wire.suspended, wire.suspended_by, wire.suspended_reason = True, by, reason
    return wire


def _amounts(amounts: Amounts) -> records_pb2.Amounts:
    return records_pb2.Amounts(**{n: int(v) for n, v in zip(Amounts._fields, amounts, strict=True) if not isinf(v)})


class Queued:
    """Mixed into the player of scenarios."""

    cluster: Cluster
    now: float
    log: list[str]
    tell: Callable[[events.Event], None]

    def queued(
        self, *, ok: str = "", any: str = "", not_ok: str = "", held: str = "", limit: str = "0",  # noqa: A002
        start: str = "0", end: str = "0", keep: str = "0", grace: str = "15", array: str = "",
        queue: str = "default", user: str = "", preemptible: str = "", gang: str = "",
    ) -> dict[str, Any]:  # fmt: skip
        """Fields of a job: `ok=a,b` waits for jobs to succeed, `held=yes` is submitted on hold; times in seconds."""
        pairs = ((ok, When.OK), (any, When.ANY), (not_ok, When.NOT_OK))
        dependencies = tuple(Dependency(job, when) for jobs, when in pairs for job in jobs.split(",") if job)
        fields: dict[str, Any] = {
            "terms": Terms(
                dependencies,
                int(limit),
                int(start),
                int(end),
                int(keep),
                int(grace),
                _element(array),
                queue,
                user,
                bool(preemptible),
                _member(gang),
            )
        }
        if held:
            fields |= {"hold": "it was submitted on hold", "held_s": self.now}
        return fields

    def wish(self, job: str, **wanted: object) -> JobIntent:
        """What is wanted of the job now, changed."""
        return replace(self.cluster.jobs[job].intent, **wanted)  # type: ignore[arg-type]

    def do_queue(self, name: str, **wanted: str) -> None:
        """`queue q limit=4 guaranteed=2 user=1 jobs=1 weight=2 tenant=t suspended=why`; GPUs. `gone=yes`: deleted.

        `cpus=8 mib=4096`: what jobs of it may use; `user_cpus`, `user_mib`: those of one user.
        """

        def most(gpus: str, rest: str = "") -> Amounts:
            return Amounts(*(float(wanted.get(name, "inf")) for name in (gpus, f"{rest}cpus", f"{rest}mib")))

        intent = QueueIntent(
            tenant=wanted.get("tenant", name),
            weight=int(wanted.get("weight", "1")),
            guaranteed=Amounts(float(wanted.get("guaranteed", "0"))),
            limit=most("limit"),
            user_limit=most("user", "user_"),
            user_jobs=float(wanted.get("jobs", "inf")),
            suspended=f"by ann: {wanted['suspended']}" if "suspended" in wanted else "",
        )
        self.tell(events.QueueChanged(name, None if "gone" in wanted else intent))

    def do_shares(self) -> None:
        books = self.cluster.books
        for queue in sorted(books.queues.known):
            self.log.append(f"  {queue}: {books.shares.of(books.queues.tenant(queue)):.6f}")

    def do_hold(self, job: str, why: str = "") -> None:
        held_s = no_earlier(self.now, self.cluster.jobs[job].intent.released_s)
        self._wish(job, held_s=held_s, held_by="ann", held_reason=why.replace("_", " "))

    def do_requeue(self, job: str, why: str = "", hold: str = "no") -> None:
        wanted: dict[str, object] = {"requeue_attempt": self.cluster.jobs[job].attempt_count, "requeue_by": "ann"}
        if hold == "yes":
            wanted |= {"held_s": no_earlier(self.now, self.cluster.jobs[job].intent.released_s), "held_by": "ann"}
        self._wish(job, **wanted, requeue_reason=why.replace("_", " "))
        allocation = self.cluster.allocations.get(self.cluster.jobs[job].allocation_id or "")
        if allocation is not None and allocation.stop_reason:
            self.log.append(f"  {allocation.id} shall stop: {allocation.stop_reason}")

    def _wish(self, job: str, **wanted: object) -> None:
        self.tell(events.JobIntentChanged(job, self.wish(job, **wanted)))

    def do_end(self, job: str, code: str = "0") -> None:
        """The job's VM ends by itself, and its units are clean."""
        self._ended(job, outcome="EXITED", code=code)

    def do_stopped(self, job: str) -> None:
        """The job's VM ends as it was asked to, and its units are clean."""
        self._ended(job, outcome="STOPPED")

    def _ended(self, job: str, **how: str) -> None:
        allocation = f"{job}.{self.cluster.jobs[job].attempt_count}"
        self.do_report(allocation, "ENDED", **how)
        if allocation in self.cluster.allocations:
            self.do_clean(allocation)

    def do_gang(self, name: str, count: str, how: str = "", **more: str) -> None:
        """Submit a gang of so many: `gang g 3 spread:rack.alone gpus=2`; the first member comes last."""
        for index in reversed(range(int(count))):
            member = ".".join(filter(None, (name, str(index), count, how)))
            self.do_submit(f"{name}-{index}", gang=member, **more)

    do_submit: Callable[..., None]
    do_report: Callable[..., None]
    do_clean: Callable[..., None]

    def do_states(self) -> None:
        for job_id in sorted(self.cluster.jobs):
            job = self.cluster.jobs[job_id]
            self.log.append(f"  {job_id}: {job.state.value} {job.message}")
