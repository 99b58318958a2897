"""What keeps a job itself is told through the API by the same name, and what the brake needs is on record first."""

from __future__ import annotations

from gpupool.v1 import records_pb2, scheduler_pb2
from scheduler.codec import encode
from scheduler.codec.decode import restore_cluster
from scheduler.core.queueing.wait import JobWait
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.losses import Brake


def test_each_wait_has_its_name_on_the_wire() -> None:
    names = {name.removeprefix("JOB_WAIT_") for name in scheduler_pb2.JobWait.keys()}  # noqa: SIM118 - no dict
    assert names == {"UNSPECIFIED", *(wait.name for wait in JobWait)}


def test_the_brake_comes_back_as_it_was_recorded() -> None:
    before = Cluster(brake=Brake(5.0, 9.0, "3 of 4 hosts", ("h1", "h2")), settled_s=2.0, noted_s=3.0)
    wire = records_pb2.ClusterRecord.FromString(encode.cluster_record(before).SerializeToString())
    after = Cluster()
    restore_cluster(after, wire)
    assert (after.brake, after.settled_s, after.noted_s) == (before.brake, before.settled_s, before.noted_s)
