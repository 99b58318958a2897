"""Records survive the wire, and a value that nobody can read is passed over, told and harmless."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupool.store import keys
from gpupool.store.port import KeyValue
from gpupool.v1 import inventory_pb2, job_pb2, records_pb2
from scheduler.codec import decode, decode_hosts, decode_jobs, encode
from scheduler.core.state import facts, losses
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.hosts import Allocation, Host
from scheduler.core.state.hugepages import HugepagesFact
from scheduler.core.state.jobs import Attempt, Job, Outcome
from scheduler.core.state.tables import HostState, JobState
from scheduler.load import UnreadableDecisionError, load
from tests.fakes.pool import spec

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
SECONDS = st.floats(0, 2e9)
ATTEMPTS = st.builds(
    Attempt,
    number=st.integers(1, 99),
    host=TEXT,
    units=st.tuples(TEXT),
    created_s=SECONDS,
    started_s=SECONDS,
    ended_s=SECONDS,
    outcome=st.none() | st.sampled_from(Outcome),
    exit_code=st.none() | st.integers(-1, 255),
    message=TEXT,
    evidence=st.none() | st.sampled_from(losses.Evidence),
    warnings=st.tuples(TEXT),
)
JOBS = st.builds(
    Job,
    id=st.just("j1"),
    request=st.just(decode_jobs.request_of(spec())),
    arrival=st.just(7),
    submitted_s=st.just(5.0),
    state=st.sampled_from(JobState),
    attempts=st.lists(ATTEMPTS, max_size=3),
    attempt_count=st.integers(0, 99),
    restarts=st.integers(0, 99),
    start_failures=st.integers(0, 9),
    finished_s=SECONDS,
    not_before_s=SECONDS,
    exit_code=st.none() | st.integers(-1, 255),
    message=TEXT.filter(bool),
)
HOSTS = st.builds(
    Host,
    name=st.just("h1"),
    state=st.sampled_from(HostState),
    session=st.integers(0, 2**62),
    boot_id=TEXT,
    guard=st.sampled_from(facts.GuardKind),
    simulated=st.booleans(),
    since_s=SECONDS,
    last_fence=st.none()
    | st.builds(
        losses.FenceRecord,
        session=st.integers(0, 2**62),
        evidence=st.sampled_from(losses.Evidence),
        detail=TEXT,
        lost_s=SECONDS,
        fenced_s=SECONDS,
        allocations=st.tuples(TEXT),
    ),
)
ALLOCATIONS = st.builds(
    Allocation,
    id=st.just("j1.1"),
    job=st.just("j1"),
    attempt=st.integers(1, 9),
    host=st.just("h1"),
    session=st.integers(1, 2**62),
    units=st.tuples(TEXT),
    nodes=st.just((0, 1)),
    cores=st.just(((0, 1), (2, 3))),
    memory_mib=st.tuples(st.integers(0, 9999), st.integers(0, 9999)),
    created_s=SECONDS,
    stop_reason=TEXT,
    stop_requested_s=SECONDS,
    hugepage_size_kib=st.sampled_from([0, 2048]),
    unit_identities=st.tuples(TEXT),
    labels=st.just(()) | st.tuples(st.tuples(TEXT, TEXT)),
    apart=st.just(()) | st.tuples(st.tuples(TEXT, TEXT)),
    whole_host=st.booleans(),
)


@given(JOBS, st.booleans())
def test_status(job: Job, cancelled: bool) -> None:
    job.cancel_reason = job.message if cancelled else None
    wire = job_pb2.JobStatus.FromString(encode.status(job).SerializeToString())
    restored = decode_jobs.job_of("j1", records_pb2.JobRecord(spec=spec(), submitted_s=5.0), 7)
    decode_jobs.restore_status(restored, wire)
    assert restored == job


@given(HOSTS)
def test_host(host: Host) -> None:
    restored = Host("h1")
    decode.restore_host(restored, records_pb2.HostRecord.FromString(encode.host_record(host).SerializeToString()))
    assert restored == host


@given(ALLOCATIONS)
def test_allocation(allocation: Allocation) -> None:
    wanted = spec()
    wanted.vm.hugepage_size_kib = allocation.hugepage_size_kib
    wanted.labels.update(dict(allocation.labels))
    wanted.placement.apart.update(dict(allocation.apart))
    wanted.placement.whole_host = allocation.whole_host
    record = records_pb2.JobRecord(spec=wanted, submitted_s=1.0)
    wire = records_pb2.Allocation.FromString(encode.allocation(allocation, Host("h1"), record.SerializeToString()))
    assert wire.spec == wanted
    assert decode_hosts.allocation_of(wire) == allocation


@given(st.integers(0, 20_000), st.booleans(), st.booleans())
def test_a_spec_is_passed_on_as_it_is_stored(size: int, later_version: bool, spec_first: bool) -> None:
    record = records_pb2.JobRecord(submitted_s=2.0, idempotency_key="k")
    if size:
        record.spec.CopyFrom(job_pb2.JobSpec(command=["x" * (size - 1)]))
    spec, rest = records_pb2.JobRecord(spec=record.spec), records_pb2.JobRecord(submitted_s=2.0)
    parts = [spec.SerializeToString() if size else b"", rest.SerializeToString()]
    value = b"".join(parts if spec_first else reversed(parts))
    held = Allocation("j1.1", "j1", 1, "h1", 3, (), (), (), (), 1.0)
    found = records_pb2.Allocation.FromString(encode.allocation(held, Host("h1"), value))
    assert found.spec == record.spec
    assert found.id == "j1.1"
    if later_version and spec_first and size:  # a field that this version does not know is the agent's to judge
        spec_bytes = record.spec.SerializeToString() + b"\xf8\x3f\x01"
        value = b"\x0a" + _varint(len(spec_bytes)) + spec_bytes
        found = records_pb2.Allocation.FromString(encode.allocation(held, Host("h1"), value))
        assert found.spec.SerializeToString().endswith(b"\xf8\x3f\x01")


def _varint(number: int) -> bytes:
    found = b""
    while number >= 0x80:
        found += bytes([number & 0x7F | 0x80])
        number >>= 7
    return found + bytes([number])


def test_what_a_host_says_of_its_memory_and_units() -> None:
    pages = [inventory_pb2.Hugepages(size_kib=1048576, total=4, free=1), inventory_pb2.Hugepages(size_kib=2048)]
    wire = inventory_pb2.Inventory(
        numa_nodes=[inventory_pb2.NumaNode(id=1, hugepages=pages), inventory_pb2.NumaNode(id=0)],
        units=[inventory_pb2.Unit(id="u0", identity="sn 7")],
    )
    found = decode_hosts.inventory_of(wire)
    assert found.hugepages == (HugepagesFact(1, 2048, 0, 0), HugepagesFact(1, 1048576, 4, 1))
    assert found.units[0].identity == "sn 7"
    report = records_pb2.UnitReport(state=records_pb2.UNIT_STATE_HELD, session=3, allocation="j1.1", sick="AER")
    assert decode_hosts.unit_report_of(report) == facts.UnitReport(facts.UnitState.HELD, 3, "j1.1", sick="AER")


def test_a_long_warning_is_cut() -> None:
    report = records_pb2.VmReport(state=records_pb2.ALLOCATION_STATE_RUNNING, warnings=["x" * 10_000])
    (warning,) = decode_hosts.vm_reported("h1", "j1.1", report).warnings
    assert len(warning) == decode_hosts.WARNING_CHARS


FACTS = [
    keys.session("h1"), keys.inventory("h1"), keys.unit("h1", "u0"), keys.vm("h1", "j1.1"), keys.job_spec("j1"),
    keys.job_cancel("j1"), keys.host_intent("h1"),
]  # fmt: skip


@pytest.mark.parametrize("key", FACTS)
def test_an_unreadable_fact_is_passed_over_and_told(key: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert decode.fact(key, KeyValue(key, b"\xff", 2, 2)) is None
    assert key in caplog.text


def test_a_state_of_a_later_version_is_passed_over() -> None:
    report = records_pb2.VmReport(state=99, session=1)  # type: ignore[arg-type]
    assert decode.fact(keys.vm("h1", "j1.1"), KeyValue("", report.SerializeToString(), 2, 2)) is None


@pytest.mark.parametrize("key", [keys.host("h1"), keys.allocation("h1", "j1.1")])
def test_without_a_decision_nobody_decides(key: str) -> None:
    with pytest.raises(UnreadableDecisionError, match=key):
        load(Cluster(), [KeyValue(key, b"\xff", 2, 2)], 1.0)


def test_a_reason_to_stop_outlives_the_leader() -> None:
    job = Job("j1", decode_jobs.request_of(spec()), 7, 5.0, state=JobState.RUNNING, attempt_count=1, message="runs")
    job.attempts = [Attempt(1, "h1", (), 1.0)]
    job.cancel_reason = "no longer needed"
    held = Allocation("j1.1", "j1", 1, "h1", 3, (), (), (), (), 1.0, stop_reason="no longer needed")
    stored = {
        keys.job_spec("j1"): records_pb2.JobRecord(spec=spec()).SerializeToString(),
        keys.job_status("j1"): encode.status(job).SerializeToString(),
        keys.allocation("h1", "j1.1"): encode.allocation(
            held, Host("h1"), records_pb2.JobRecord(spec=spec()).SerializeToString()
        ),
    }
    cluster = Cluster()
    load(cluster, [KeyValue(key, value, 2, 2) for key, value in stored.items()], 9.0)
    assert cluster.jobs["j1"].cancel_reason == "no longer needed"
