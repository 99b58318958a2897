"""Both clients against a fake scheduler over real gRPC: what is repeated, what is resumed, what an error becomes."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest

from gpupool.client import AsyncClient, Client, KeyedSpec, select
from gpupool.client.policy import Deadline, Policy, Resumption
from gpupool.client.replicas import addresses
from gpupool.client.streams import Cursor
from gpupool.errors import (
    Conflict,
    DeadlineExceeded,
    GpupoolError,
    InvalidSpec,
    NotFound,
    Refused,
    Unreachable,
    from_status,
)
from gpupool.v1 import job_pb2, scheduler_pb2
from tests.fakes.server import BREAK, ENDED, FakeScheduler, Status, job

SPEC = job_pb2.JobSpec(image="debian-numpy", command=["true"])
RUNNING = job_pb2.JOB_STATE_RUNNING
DEAD = "127.0.0.1:1"  # nobody listens on port 1


@pytest.fixture
def fake() -> Iterator[FakeScheduler]:
    with FakeScheduler() as server:
        yield server


@pytest.fixture
def client(fake: FakeScheduler) -> Iterator[Client]:
    with Client(fake.address, timeout_s=5.0) as client:
        yield client


@pytest.fixture
async def aclient(fake: FakeScheduler) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(fake.address, timeout_s=5.0) as client:
        yield client


def test_submission_survives_two_failures_with_one_key(fake: FakeScheduler, client: Client) -> None:
    fake.fail("Submit", Status.UNAVAILABLE, Status.UNAVAILABLE)
    assert client.submit(SPEC).created
    assert len({request.idempotency_key for request in fake.asked}) == 1
    assert fake.calls["Submit"] == 3
    assert client.submit(SPEC).created, "another call has another key"


def test_what_must_not_be_repeated_is_sent_once(fake: FakeScheduler, client: Client) -> None:
    fake.fail("ConfirmHostDead", Status.UNAVAILABLE)
    with pytest.raises(Unreachable):
        client.confirm_dead("h1", "burnt down")
    assert fake.calls["ConfirmHostDead"] == 1


def test_what_must_not_be_repeated_finds_the_living_replica_first(fake: FakeScheduler) -> None:
    fake.hosts = [scheduler_pb2.Host(name="h1")]
    with Client(f"{DEAD},{fake.address}", timeout_s=5.0) as client:
        assert client.confirm_dead("h1", "burnt down").name == "h1"
    assert fake.calls == {"GetCluster": 1, "ConfirmHostDead": 1}


def test_faults_are_not_repeated(fake: FakeScheduler, client: Client) -> None:
    with pytest.raises(InvalidSpec) as caught:
        client.submit(job_pb2.JobSpec())
    assert caught.value.violations == ("image: must not be empty", "cpus: must be at least 1")
    with pytest.raises(NotFound, match="no job 'x'"):
        client.get("x")
    assert fake.calls == {"Submit": 1, "GetJob": 1}


async def test_doctor_may_take_longer_than_other_answers(fake: FakeScheduler) -> None:
    fake.hosts = [scheduler_pb2.Host(name="h1")]
    fake.doctor_s = 0.6
    for address in (fake.address, f"{DEAD},{fake.address}"):
        async with AsyncClient(address, timeout_s=0.5) as aclient:
            assert (await aclient.doctor("h1")).findings[0].check == "iommu"
        with Client(address, timeout_s=0.5) as client:
            assert client.doctor("h1").host == "h1"
            with pytest.raises(DeadlineExceeded):
                client.doctor("h1", timeout_s=0.1)
            with pytest.raises(NotFound, match="no host 'h9'"):
                client.doctor("h9")


async def test_next_replica_is_asked(fake: FakeScheduler) -> None:
    fake.jobs = {"j1": job()}
    async with AsyncClient(f"{DEAD},{fake.address}", timeout_s=5.0, retry_s=0.0) as client:
        assert (await client.get("j1")).id == "j1"
        assert [found.id async for found in client.list()] == ["j1"]


async def test_silent_address_is_left_for_the_next(fake: FakeScheduler) -> None:
    fake.jobs = {"j1": job()}
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, then says nothing
        mute = f"127.0.0.1:{silent.getsockname()[1]}"
        async with AsyncClient(f"{mute},{fake.address}", timeout_s=4.0) as client:
            assert (await client.get("j1")).id == "j1"


def test_nobody_there(fake: FakeScheduler) -> None:
    began = time.monotonic()
    with Client(DEAD, timeout_s=5.0, retry_s=0.3) as client, pytest.raises(Unreachable) as caught:
        client.get("j1")
    assert str(caught.value).startswith(f"cannot reach the scheduler at {DEAD}: Connection refused")
    assert time.monotonic() - began < 3
    with Client(DEAD, retry_s=0.0) as client, pytest.raises(Unreachable):
        list(client.watch())


def test_list_turns_pages(fake: FakeScheduler, client: Client) -> None:
    fake.jobs = {name: job(name) for name in ("j1", "j2", "j3")}
    assert [found.id for found in client.list()] == ["j1", "j2", "j3"]
    assert fake.calls["ListJobs"] == 2
    assert list(client.list(select(states=["running"]))) == []


async def test_watch_resumes_and_repeats_nothing(fake: FakeScheduler, aclient: AsyncClient) -> None:
    fake.scripts["WatchJobs"] = [
        [job("j1"), job("j2"), BREAK],
        [job("j1"), job("j2", RUNNING)],  # ends in good order, which a watch takes for a break too
        [job("j1", ENDED), job("j2", RUNNING)],
    ]
    seen = []
    async for changed in aclient.watch():
        seen.append((changed.id, changed.status.state))
        if changed.status.state == ENDED:
            break
    assert seen == [("j1", 1), ("j2", 1), ("j2", RUNNING), ("j1", ENDED)]


def test_wait(fake: FakeScheduler, client: Client) -> None:
    fake.jobs = {"j1": job()}
    fake.scripts["WatchJobs"] = [[job(), job(state=RUNNING), BREAK], [job(state=ENDED, exit_code=0)]]
    assert client.wait("j1", timeout_s=20).status.state == ENDED
    assert client.wait("j1").status.exit_code == 0, "a finished job is not watched"
    assert fake.calls["WatchJobs"] == 2


async def test_wait_is_over_in_time(fake: FakeScheduler, aclient: AsyncClient, client: Client) -> None:
    fake.jobs = {"j1": job()}
    with pytest.raises(DeadlineExceeded, match=r"j1 is still PENDING after 0\.3 s"):
        await aclient.wait("j1", timeout_s=0.3)
    with pytest.raises(DeadlineExceeded):
        client.wait("j1", timeout_s=0.3)


def test_submit_many_goes_on_after_a_lost_answer(fake: FakeScheduler, client: Client) -> None:
    fake.scripts["SubmitBatch"] = [["b"]]
    specs: list[KeyedSpec] = [job_pb2.JobSpec(name=name, image="i") for name in "ab"]
    specs += [job_pb2.JobSpec(), (SPEC, "my-key")]
    results = list(client.submit_many(specs))
    assert [result.ok.id for result in results] == ["job-0", "job-1", "", "job-2"]
    assert from_status(results[2].refused.code, results[2].refused.message).exit_code == 2
    assert "my-key" in fake.keys
    assert len(fake.jobs) == 3, "the job whose answer was lost was not made twice"


async def test_submit_many_takes_async_sources(fake: FakeScheduler, aclient: AsyncClient) -> None:
    async def source() -> AsyncIterator[job_pb2.JobSpec]:
        for _ in range(510):
            yield SPEC

    assert len([result async for result in aclient.submit_many(source())]) == 510
    assert fake.calls["SubmitBatch"] == 2


def _chunk(*lines: tuple[float, str]) -> scheduler_pb2.LogChunk:
    return scheduler_pb2.LogChunk(
        attempt=1, lines=[scheduler_pb2.LogLine(at_s=at_s, stream="stdout", text=text) for at_s, text in lines]
    )


def test_logs_resume_between_lines_of_one_moment(fake: FakeScheduler, client: Client) -> None:
    fake.scripts["JobLogs"] = [
        [_chunk((2.0, "b"), (2.0, "c")), BREAK],
        [_chunk((1.0, "a"), (2.0, "b")), _chunk((2.0, "c"), (2.0, "d"), (3.0, "e"))],
    ]
    texts = [line.text for chunk in client.logs("j1", tail=2) for line in chunk.lines]
    assert texts == ["b", "c", "d", "e"]
    assert [request.tail_lines for request in fake.asked] == [2, 0]


async def test_events_resume(fake: FakeScheduler, aclient: AsyncClient) -> None:
    events = [scheduler_pb2.Event(revision=revision, subject=name) for revision, name in ((1, "a"), (1, "b"), (2, "c"))]
    fake.scripts["WatchEvents"] = [[events[0], BREAK], events]
    assert [event.subject async for event in aclient.events()] == ["a", "b", "c"]


def test_operations(fake: FakeScheduler, client: Client) -> None:
    fake.hosts = [scheduler_pb2.Host(name="h1")]
    fake.units = [scheduler_pb2.UnitView(host="h1"), scheduler_pb2.UnitView(host="h2")]
    assert client.cordon("h1", "new fan", by="ann").intent.by == "ann"
    assert not client.uncordon("h1").intent.cordoned
    assert [host.name for host in client.hosts()] == ["h1"]
    assert [unit.host for unit in client.units("h2")] == ["h2"]
    assert client.cluster().leader.id == "s1"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Status.ALREADY_EXISTS, Conflict),
        (Status.FAILED_PRECONDITION, Conflict),
        (Status.PERMISSION_DENIED, Refused),
        (Status.UNIMPLEMENTED, Refused),
        (Status.DEADLINE_EXCEEDED, DeadlineExceeded),
        (Status.UNAVAILABLE, Unreachable),
    ],
)
def test_statuses(code: grpc.StatusCode, kind: type[GpupoolError]) -> None:
    error = from_status(code.value[0], "first\nsecond")
    assert type(error) is kind
    assert "\n" not in str(error)


def test_addresses() -> None:
    assert addresses("a, b:1 ,[::1]:2,[::1],fe80::1,unix:/run/s") == [
        "a:50151", "b:1", "[::1]:2", "[::1]:50151", "[fe80::1]:50151", "unix:/run/s",
    ]  # fmt: skip
    for wrong in ("", " , ", "h:port", ":1", "h:70000"):
        with pytest.raises(InvalidSpec):
            addresses(wrong)


def test_selection_names_the_states() -> None:
    assert list(select(states=["running", "JOB_STATE_FAILED", 1]).states) == [RUNNING, 5, 1]
    with pytest.raises(InvalidSpec, match="'runing' is no job state; the states are pending, "):
        select(states=["runing"])


def test_resumption_gives_a_stream_that_worked_more_time() -> None:
    now = 0.0
    policy = Policy(timeout_s=10.0, retry_s=1.0, patience_s=60.0)
    resumption = Resumption(policy, Deadline(None), clock=lambda: now)
    error = Unreachable("gone")
    resumption.opened()
    resumption.broke(error)
    now = 2.0
    with pytest.raises(Unreachable):
        resumption.broke(error)
    resumption.opened()
    now = 3600.0  # silent for an hour, but it stood
    assert resumption.broke(error) <= 0.1
    resumption.opened()
    now = 3655.0 - 3.0
    resumption.opened()
    resumption.broke(error)
    now = 3661.0
    resumption.opened()
    with pytest.raises(Unreachable):
        resumption.broke(error)


def test_cursor_on_a_stream_that_was_never_resumed_drops_nothing() -> None:
    cursor = Cursor()
    assert not cursor.resumed()
    assert all(cursor.fresh(position) for position in (2, 1, 1, 3)), "clocks may step back"


def test_import_is_light() -> None:
    code = "import sys, gpupool.client; print(sorted({'click', 'rich', 'yaml', 'aetcd'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_wishes_of_operators_are_repeated_but_a_release_is_not(fake: FakeScheduler, client: Client) -> None:
    fake.hosts = [scheduler_pb2.Host(name="h1")]
    fake.jobs = {"j1": job("j1", hold="3 hosts died with it")}
    for method in ("DrainHost", "UndrainHost", "SetMaintenance", "SetArmed", "ListFailovers", "PlanFailover"):
        fake.fail(method, Status.UNAVAILABLE)
    drained = client.drain("h1", "fans", grace_s=60, at_once=2, wait=True, by="ann").intent.drain
    assert (drained.reason, drained.grace_s, drained.at_once, drained.wait) == ("fans", 60, 2, True)
    assert not client.undrain("h1").intent.HasField("drain")
    assert client.maintenance("h1", on=True, reason="board").intent.maintenance
    assert client.disarm("etcd", by="ann").intent.disarmed
    assert not client.arm().intent.disarmed
    assert list(client.failovers("h1", last=3)) == []
    assert list(client.plan_failover(["h1"]).vms) == []
    for method, call in (
        ("ReleaseJob", lambda: client.release("j1")),
        ("ReleaseBrake", lambda: client.release_brake("a switch")),
    ):
        fake.fail(method, Status.UNAVAILABLE)
        with pytest.raises(Unreachable):
            call()
        assert fake.calls[method] == 1


def test_both_clients_have_the_same_methods() -> None:
    def methods(of: type) -> set[str]:
        return {name for name in dir(of) if not name.startswith("_")} - {"close", "aclose"}

    assert methods(Client) == methods(AsyncClient)
