"""Which message the value of a key is, by the key's kind: the one table of it for whoever reads what is stored."""

from __future__ import annotations

from google.protobuf.message import Message

from gpupool.v1 import inventory_pb2, job_pb2, records_pb2

from .keys import Kind

TYPES: dict[Kind, type[Message]] = {
    Kind.SESSION: records_pb2.Session,
    Kind.GUARD: records_pb2.GuardRecord,
    Kind.INVENTORY: inventory_pb2.Inventory,
    Kind.VM: records_pb2.VmReport,
    Kind.UNIT: records_pb2.UnitReport,
    Kind.JOB_SPEC: records_pb2.JobRecord,
    Kind.JOB_CANCEL: records_pb2.CancelRecord,
    Kind.JOB_STATUS: job_pb2.JobStatus,
    Kind.ALLOCATION: records_pb2.Allocation,
    Kind.HOST: records_pb2.HostRecord,
    Kind.HOST_INTENT: records_pb2.HostIntent,
    Kind.JOB_INTENT: records_pb2.JobIntent,
    Kind.CLUSTER_INTENT: records_pb2.ClusterIntent,
    Kind.CLUSTER: records_pb2.ClusterRecord,
    Kind.FAILOVER: records_pb2.FailoverRecord,
    Kind.LEADER: records_pb2.Leader,
    Kind.QUEUE: records_pb2.QueueIntent,
    Kind.SHARES: records_pb2.Shares,
}
