"""Records in brief are the records: the same numbers, names and types, and no less said of what the core minds."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from gpupool.store import keys
from gpupool.store.port import KeyValue
from gpupool.store.types import TYPES
from gpupool.v1 import brief_pb2, inventory_pb2, job_pb2, records_pb2
from scheduler.codec import decode
from scheduler.codec.decode_hosts import read_allocation
from scheduler.codec.decode_jobs import read_job
from scheduler.core.state.cluster import Cluster
from scheduler.load import load

BRIEF = "Brief"
_BYTES, _MESSAGE = FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_MESSAGE


def _whole(brief: Descriptor) -> Descriptor:
    name = brief.name.removesuffix(BRIEF)
    known = (pb2.DESCRIPTOR.message_types_by_name.get(name) for pb2 in (job_pb2, inventory_pb2, records_pb2))
    found: list[Descriptor] = [whole for whole in known if whole is not None]
    (whole,) = found
    return whole


def _differs(brief: FieldDescriptor, whole: FieldDescriptor | None) -> str:
    """What is not alike; "": nothing."""
    if whole is None:
        return "there is no such number"
    if brief.name != whole.name:
        return f"that is {whole.name}"
    if brief.type == _BYTES and not brief.is_repeated and whole.is_packed:
        return ""
    if brief.is_repeated != whole.is_repeated:
        return "one of them is repeated"
    if (brief.type, whole.type) == (_BYTES, _MESSAGE):
        return ""
    if brief.type != whole.type:
        return "of another type"
    if brief.type == _MESSAGE:
        assert brief.message_type is not None
        return "" if _whole(brief.message_type) is whole.message_type else "of another message"
    return "" if brief.enum_type is whole.enum_type else "of another enum"


@pytest.mark.parametrize("name", sorted(brief_pb2.DESCRIPTOR.message_types_by_name))
def test_a_field_has_the_number_and_the_name_of_the_record(name: str) -> None:
    brief = brief_pb2.DESCRIPTOR.message_types_by_name[name]
    whole = _whole(brief)
    found = {field.name: _differs(field, whole.fields_by_number.get(field.number)) for field in brief.fields}
    assert not {name: why for name, why in found.items() if why}


def test_what_is_not_stored_is_not_read_in_brief() -> None:
    stored = {_type.DESCRIPTOR.name for _type in TYPES.values()}
    parts = {f.message_type.name for m in brief_pb2.DESCRIPTOR.message_types_by_name.values() for f in m.fields
             if f.message_type is not None}  # fmt: skip
    assert {name for name in brief_pb2.DESCRIPTOR.message_types_by_name if name not in parts} <= {
        f"{name}{BRIEF}" for name in stored
    }


def test_labels_that_rules_mean_are_part_of_the_shape() -> None:
    """Two jobs with equal bytes but for their labels are two shapes where they shun their like, and one where not."""
    specs = [job_pb2.JobSpec(name="j", image="i", labels={"team": team}) for team in ("a", "b")]
    plain = [read_job("j", records_pb2.JobRecord(spec=one).SerializeToString(), 1).request for one in specs]
    assert plain[0] == plain[1]
    for one in specs:
        one.placement.apart["team"] = "*"
    shy = [read_job("j", records_pb2.JobRecord(spec=one).SerializeToString(), 1).request for one in specs]
    assert shy[0] != shy[1]


def test_an_allocation_has_of_its_job_what_the_repeated_spec_says() -> None:
    spec = job_pb2.JobSpec(image="i", labels={"team": "a"}, vm=job_pb2.VmOptions(hugepage_size_kib=2048))
    spec.placement.apart["team"], spec.placement.whole_host = "*", True
    job = read_job("j1", records_pb2.JobRecord(spec=spec).SerializeToString(), 1)
    wire = records_pb2.Allocation(id="j1.1", job="j1", attempt=1, host="h1", session=3, spec=spec, numa_nodes=[0])
    wire.memory_mib_per_node.append(64)
    wire.cores.add(threads=[0, 1])
    brief = brief_pb2.AllocationBrief.FromString(wire.SerializeToString())
    found = read_allocation(brief, job)
    assert found == read_allocation(brief, None)
    assert (found.hugepage_size_kib, found.whole_host, found.cores) == (2048, True, ((0, 1),))


@pytest.mark.parametrize("state", [None, job_pb2.JOB_STATE_PENDING])
def test_a_job_that_no_agent_could_read_is_left_alone(state: job_pb2.JobState.ValueType | None) -> None:
    """Though what is damaged is nothing that the core minds."""
    value = records_pb2.JobRecord(spec=job_pb2.JobSpec(image="i", env={"A": "xyz"})).SerializeToString()
    value = value.replace(b"xyz", b"x\xffz")
    read_job("j1", value, 1)
    stored = [KeyValue(keys.job_spec("j1"), value, 2, 2)]
    if state is not None:
        stored.append(KeyValue(keys.job_status("j1"), job_pb2.JobStatus(state=state).SerializeToString(), 3, 3))
    assert decode.fact(stored[0].key, stored[0]) is None
    cluster = Cluster()
    load(cluster, stored, 9.0)
    assert not cluster.jobs
