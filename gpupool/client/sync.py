"""The client for programs without an event loop: the methods of `AsyncClient`, without `await`."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence

from gpupool.errors import DeadlineExceeded
from gpupool.v1 import job_pb2, scheduler_pb2

from . import requests
from .policy import Deadline
from .requests import KeyedSpec
from .streams import Dump, Events, JobChanges, LogLines
from .sync_operations import Operations


class Client(Operations):
    """Talks to a scheduler; threads may share it.

    `address` is "host:port"; several, with commas, are replicas of one scheduler: the next is asked when one is down.
    `timeout_s` bounds a call with all its repetitions (an iterator has it for each page or batch), `retry_s` how long
    an unreachable scheduler is asked again (default: timeout_s), and `patience_s` how long a stream that worked may
    stay broken before it ends with Unreachable. `credentials` are for TLS; without them nothing is encrypted.

    Every method raises a `gpupool.errors.GpupoolError`, most often Unreachable, DeadlineExceeded or NotFound.

        with Client("127.0.0.1:50151") as client:
            answer = client.submit(spec)
            job = client.wait(answer.id, timeout_s=3600)
    """

    def submit(
        self,
        spec: job_pb2.JobSpec,
        idempotency_key: str | None = None,
        *,
        validate_only: bool = False,
        allow_unavailable: bool = False,
    ) -> scheduler_pb2.SubmitResponse:
        """Submit a job; with `validate_only` it is checked, not submitted.

        What no known host could ever take, even if it were empty, is a fault, unless `allow_unavailable`: then it is a
        warning, and the job waits for such a host.

        Repeating is safe: without a key, one is made for this call. To repeat it in another process, give your own.
        Raises InvalidSpec with every fault, Conflict when the key was used for another spec.
        """
        request = requests.submission(
            spec, idempotency_key, validate_only=validate_only, allow_unavailable=allow_unavailable
        )
        return self._call(lambda stubs: stubs.jobs.Submit, request)

    def submit_many(self, specs: Iterable[KeyedSpec]) -> Iterator[scheduler_pb2.SubmitResult]:
        """Submit many jobs, each a spec or a (spec, key); yields one result for each, in order.

        A result has `ok` or `refused`: a bad spec spoils only its own. Specs are drawn and sent in batches of 500, so
        a slow source is better served by `submit`.
        """
        for batch in requests.batches(specs):
            yield from self._submit_batch([requests.keyed(item) for item in batch])

    def get(self, job: str) -> job_pb2.Job:
        """The job with this id, as it is now. Raises NotFound."""
        return self._call(lambda stubs: stubs.jobs.GetJob, scheduler_pb2.GetJobRequest(id=job))

    def list(self, selection: scheduler_pb2.JobFilter | None = None) -> Iterator[job_pb2.Job]:
        """All jobs of the selection (see `select`) by order of arrival, fetched page by page."""
        request = scheduler_pb2.ListJobsRequest(filter=selection, page_size=requests.PAGE)
        while True:
            page = self._call(lambda stubs: stubs.jobs.ListJobs, request)
            yield from page.jobs
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    def watch(
        self, selection: scheduler_pb2.JobFilter | None = None, *, timeout_s: float | None = None
    ) -> Generator[job_pb2.Job, None, None]:
        """Each job of the selection as it is now, then again at each change, until `timeout_s` (DeadlineExceeded).

        Goes on after the loss of a replica, without telling anything twice; changes that followed each other during
        the loss arrive as one.
        """
        return self._stream(lambda stubs: stubs.jobs.WatchJobs, JobChanges(selection), Deadline(timeout_s))

    def wait(self, job: str, timeout_s: float | None = None) -> job_pb2.Job:
        """The job, once it has SUCCEEDED, FAILED or been CANCELLED. Raises NotFound, DeadlineExceeded."""
        seen = self.get(job)
        try:
            with contextlib.closing(self.watch(requests.select(ids=[job]), timeout_s=timeout_s)) as changes:
                while not requests.finished(seen):
                    seen = next(changes)
        except DeadlineExceeded as error:
            raise DeadlineExceeded(requests.unfinished(seen, timeout_s)) from error
        return seen

    def cancel(self, job: str, reason: str = "") -> job_pb2.Job:
        """Ask for the end of a job, which it reaches later; a finished job stays as it is. Raises NotFound."""
        return self._call(lambda stubs: stubs.jobs.CancelJob, scheduler_pb2.CancelJobRequest(id=job, reason=reason))

    def explain(self, job: str) -> scheduler_pb2.Explanation:
        """Why a job waits, host by host. Raises NotFound."""
        return self._call(lambda stubs: stubs.jobs.ExplainJob, scheduler_pb2.ExplainJobRequest(id=job))

    def explain_spec(self, spec: job_pb2.JobSpec) -> scheduler_pb2.Explanation:
        """How a job of this spec would fare if it were submitted now: would it start, or why would it wait.

        Changes nothing. `impossible` says why it would be refused, if no known host could ever take it. Raises
        InvalidSpec with every fault.
        """
        return self._call(lambda stubs: stubs.jobs.ExplainSpec, scheduler_pb2.ExplainSpecRequest(spec=spec))

    def logs(
        self, job: str, attempt: int = 0, *, follow: bool = False, tail: int = 0
    ) -> Generator[scheduler_pb2.LogChunk, None, None]:
        """The output of one attempt (0: the newest) in chunks of lines.

        `tail` begins that many lines before the end (0: at the start); `follow` goes on until the attempt ends.
        """
        lines = LogLines(job, attempt, follow=follow, tail=tail)
        return self._stream(lambda stubs: stubs.jobs.JobLogs, lines, Deadline(self._stream_s(follow=follow)))

    def hosts(self) -> Sequence[scheduler_pb2.Host]:
        """All hosts, by name."""
        return (self._call(lambda stubs: stubs.operations.ListHosts, scheduler_pb2.ListHostsRequest())).hosts

    def units(self, host: str = "") -> Sequence[scheduler_pb2.UnitView]:
        """All device units, or those of one host, by host and id."""
        request = scheduler_pb2.ListUnitsRequest(host=host)
        return (self._call(lambda stubs: stubs.operations.ListUnits, request)).units

    def cordon(self, host: str, reason: str = "", *, by: str = "") -> scheduler_pb2.Host:
        """Place nothing new on a host; what runs there goes on. Raises NotFound."""
        request = scheduler_pb2.CordonHostRequest(host=host, reason=reason, by=by)
        return self._call(lambda stubs: stubs.operations.CordonHost, request)

    def uncordon(self, host: str, *, by: str = "") -> scheduler_pb2.Host:
        """Let jobs be placed on a host again. Raises NotFound."""
        request = scheduler_pb2.UncordonHostRequest(host=host, by=by)
        return self._call(lambda stubs: stubs.operations.UncordonHost, request)

    def confirm_dead(self, host: str, reason: str, *, by: str = "") -> scheduler_pb2.Host:
        """Vouch that no VM of the host's lost session is alive, so that its jobs restart elsewhere.

        A wrong word can run a job twice. Never repeated by itself: later it could speak of another session. Raises
        NotFound, Conflict when the host is not lost.
        """
        request = scheduler_pb2.ConfirmHostDeadRequest(host=host, reason=reason, by=by)
        return self._call_once(lambda stubs: stubs.operations.ConfirmHostDead, request)

    def retry_unit(self, host: str, unit: str, reason: str = "", *, by: str = "") -> scheduler_pb2.UnitView:
        """Have a quarantined unit reset and proven once more. Never repeated by itself. Raises NotFound, Conflict."""
        request = scheduler_pb2.RetryUnitRequest(host=host, unit=unit, reason=reason, by=by)
        return self._call_once(lambda stubs: stubs.operations.RetryUnit, request)

    def doctor(self, host: str, *, timeout_s: float = requests.DOCTOR_S) -> scheduler_pb2.DoctorReport:
        """Have the agent of `host` judge its host anew: what keeps its units from jobs, or costs safety or speed.

        Takes seconds. Raises NotFound, and Unreachable when the agent does not answer.
        """
        request = scheduler_pb2.DoctorRequest(host=host)
        return self._call_once(lambda stubs: stubs.operations.Doctor, request, timeout_s)

    def events(self, *, follow: bool = False, last: int = 0) -> Generator[scheduler_pb2.Event, None, None]:
        """The last transitions (0: all that are kept); with `follow` also those from now on."""
        changes = Events(follow=follow, last=last)
        return self._stream(
            lambda stubs: stubs.operations.WatchEvents, changes, Deadline(self._stream_s(follow=follow))
        )

    def dump(self) -> Generator[scheduler_pb2.DumpPart, None]:
        """All that the scheduler knows, of one moment and without secrets, in parts; `gpupool.dumpfile` writes it.

        Raises Unreachable if the scheduler breaks off.
        """
        return self._stream(lambda stubs: stubs.operations.DumpCluster, Dump(), Deadline(requests.DUMP_S))

    def cluster(self) -> scheduler_pb2.Cluster:
        """The leader, and how many hosts, units and jobs there are in which state."""
        return self._call(lambda stubs: stubs.operations.GetCluster, scheduler_pb2.GetClusterRequest())

    def _stream_s(self, *, follow: bool) -> float | None:
        return None if follow else self._policy.timeout_s
