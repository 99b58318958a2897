"""What operators decide about failures and planned work, for the blocking client: drain, maintenance, brake, arms."""

from __future__ import annotations

from collections.abc import Sequence

from gpupool.v1 import job_pb2, records_pb2, scheduler_pb2

from .sync_transport import SyncTransport


class Operations(SyncTransport):
    """Mixed into the client."""

    def release(self, job: str, reason: str = "", *, by: str = "") -> job_pb2.Job:
        """Let a held job start again. Never repeated by itself. Raises NotFound, Conflict when it is not held."""
        request = scheduler_pb2.ReleaseJobRequest(id=job, reason=reason, by=by)
        return self._call_once(lambda stubs: stubs.jobs.ReleaseJob, request)

    def hold(self, job: str, reason: str = "", *, by: str = "") -> job_pb2.Job:
        """Keep a pending job from starting until it is released. Raises NotFound, Conflict when it is not pending."""
        request = scheduler_pb2.HoldJobRequest(id=job, reason=reason, by=by)
        return self._call(lambda stubs: stubs.jobs.HoldJob, request)

    def requeue(self, job: str, reason: str = "", *, hold: bool = False, by: str = "") -> job_pb2.Job:
        """Stop the job's VM and put the job back into the queue, at no cost; with `hold` it waits there for a release.

        Never repeated by itself. Raises NotFound, Conflict when it has no VM.
        """
        request = scheduler_pb2.RequeueJobRequest(id=job, reason=reason, hold=hold, by=by)
        return self._call_once(lambda stubs: stubs.jobs.RequeueJob, request)

    def queues(self) -> Sequence[scheduler_pb2.Queue]:
        """All queues, by name, with what they use."""
        return (self._call(lambda stubs: stubs.operations.ListQueues, scheduler_pb2.ListQueuesRequest())).queues

    def set_queue(
        self, name: str, settings: records_pb2.QueueIntent, fields: Sequence[str], *, create: bool = False, by: str = ""
    ) -> scheduler_pb2.Queue:
        """Change the settings that `fields` names, or with `create` make a queue. Raises NotFound, Conflict."""
        request = scheduler_pb2.SetQueueRequest(name=name, settings=settings, fields=fields, create=create, by=by)
        call = self._call_once if create else self._call
        return call(lambda stubs: stubs.operations.SetQueue, request)

    def delete_queue(self, name: str, *, by: str = "") -> None:
        """Delete a queue. Raises NotFound, Conflict while it has jobs that are not finished."""
        request = scheduler_pb2.DeleteQueueRequest(name=name, by=by)
        self._call_once(lambda stubs: stubs.operations.DeleteQueue, request)

    def drain(
        self,
        host: str,
        reason: str = "",
        *,
        grace_s: int = 0,
        at_once: int = 0,
        wait: bool = False,
        paused: bool = False,
        by: str = "",
    ) -> scheduler_pb2.Host:
        """Have the host's VMs stop and their jobs start elsewhere; nothing new is placed there. Raises NotFound.

        It is done once the host's `vms` is 0, and still is some seconds later. `grace_s` is the time from the request
        to a VM's end (0: as each job says), `at_once` how many may be stopping at once (0: all). With `wait` a VM is
        stopped only once another host could take its job now; `paused` stops nothing yet. Asked again: changes these.
        """
        wanted = records_pb2.Drain(reason=reason, grace_s=grace_s, at_once=at_once, wait=wait, paused=paused, by=by)
        request = scheduler_pb2.DrainHostRequest(host=host, drain=wanted)
        return self._call(lambda stubs: stubs.operations.DrainHost, request)

    def undrain(self, host: str, *, by: str = "") -> scheduler_pb2.Host:
        """End a drain; what was asked to stop stops all the same. Raises NotFound."""
        request = scheduler_pb2.UndrainHostRequest(host=host, by=by)
        return self._call(lambda stubs: stubs.operations.UndrainHost, request)

    def maintenance(self, host: str, *, on: bool, reason: str = "", by: str = "") -> scheduler_pb2.Host:
        """Keep a host out, over reboots, or let it in again. What runs there goes on. Raises NotFound."""
        request = scheduler_pb2.SetMaintenanceRequest(host=host, on=on, reason=reason, by=by)
        return self._call(lambda stubs: stubs.operations.SetMaintenance, request)

    def release_brake(self, reason: str, *, by: str = "") -> scheduler_pb2.Cluster:
        """End the mass failure brake. Never repeated by itself. Raises Conflict when it is not on."""
        request = scheduler_pb2.ReleaseBrakeRequest(reason=reason, by=by)
        return self._call_once(lambda stubs: stubs.operations.ReleaseBrake, request)

    def disarm(self, reason: str, *, by: str = "") -> scheduler_pb2.Cluster:
        """Stop fencing, and restarts of what is lost, for planned work on etcd or the network, until `arm`."""
        request = scheduler_pb2.SetArmedRequest(armed=False, reason=reason, by=by)
        return self._call(lambda stubs: stubs.operations.SetArmed, request)

    def arm(self, *, by: str = "") -> scheduler_pb2.Cluster:
        """Take up fencing, and restarts of what is lost, again."""
        request = scheduler_pb2.SetArmedRequest(armed=True, by=by)
        return self._call(lambda stubs: stubs.operations.SetArmed, request)

    def plan_failover(self, hosts: Sequence[str]) -> scheduler_pb2.FailoverPlan:
        """Where every VM of these hosts would restart if they all died now. Changes nothing. Raises NotFound."""
        request = scheduler_pb2.PlanFailoverRequest(hosts=hosts)
        return self._call(lambda stubs: stubs.operations.PlanFailover, request)

    def failovers(self, host: str = "", *, last: int = 0) -> Sequence[records_pb2.FailoverRecord]:
        """Past losses of hosts, or of one, newest first; `last` limits how many. Raises NotFound."""
        request = scheduler_pb2.ListFailoversRequest(host=host, last=last)
        return (self._call(lambda stubs: stubs.operations.ListFailovers, request)).failovers
