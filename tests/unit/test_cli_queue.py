"""What the commands about the queue ask for."""

from __future__ import annotations

import json

import pytest

from gpupool.v1 import job_pb2, records_pb2, scheduler_pb2
from tests.fakes.cli import Run
from tests.fakes.server import FakeScheduler, Status, job


@pytest.fixture
def fake(fake: FakeScheduler) -> FakeScheduler:
    fake.jobs["j1"] = job("j1")
    return fake


def test_a_submission_that_waits(fake: FakeScheduler, gpupool: Run, file: str) -> None:
    code, _, err = gpupool("submit", file, "--after-ok", "j1", "--after-not-ok", "j1", "--hold")
    assert (code, err) == (0, "")
    spec = fake.asked[-1].spec
    assert [(d.job, d.when) for d in spec.dependencies] == [
        ("j1", job_pb2.Dependency.OK),
        ("j1", job_pb2.Dependency.NOT_OK),
    ]
    assert spec.hold


def test_a_dry_run_asks_for_the_same(fake: FakeScheduler, gpupool: Run, file: str) -> None:
    words = ("submit", file, "--gang", "4", "--queue", "q", "--after-ok", "j1", "--time-limit", "2h")
    gpupool(*words, "--dry-run")
    asked = fake.asked[-1].spec
    gpupool(*words)
    assert asked == fake.asked[-1].spec
    assert (asked.gang.count, asked.queue, asked.time_limit_s) == (4, "q", 7200)


def test_a_submission_after_nobody(fake: FakeScheduler, gpupool: Run, file: str) -> None:
    code, _, err = gpupool("submit", file, "--after-any", "jx")
    assert (code, fake.calls["Submit"]) == (3, 0)
    assert "no job has an id that begins with 'jx'" in err


@pytest.mark.parametrize(("command", "says"), [("hold", "is held"), ("requeue", "is asked to stop, and starts again")])
def test_hold_and_requeue(fake: FakeScheduler, gpupool: Run, command: str, says: str) -> None:
    code, out, _ = gpupool(command, "j1", "--reason", "new data")
    assert (code, fake.asked[-1].reason) == (0, "new data")
    assert f"j1 {says}" in out
    assert "@" in fake.asked[-1].by or fake.asked[-1].by.startswith("uid-")
    code, out, _ = gpupool(command, "j1", "-o", "json")
    assert json.loads(out)[0]["id"] == "j1"


def test_requeue_on_hold(fake: FakeScheduler, gpupool: Run) -> None:
    assert gpupool("requeue", "j1", "--hold")[0] == 0
    assert fake.asked[-1].hold


@pytest.mark.parametrize("command", ["hold", "requeue", "submit"])
def test_help_teaches(gpupool: Run, command: str) -> None:
    code, out, _ = gpupool(command, "--help")
    assert code == 0
    assert f"gpupool {command}" in out


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("1h30m", 5400), ("2d", 172800)])
def test_times_are_written_as_people_do(fake: FakeScheduler, gpupool: Run, file: str, text: str, seconds: int) -> None:
    assert gpupool("submit", file, "--time-limit", text, "--end-within", text, "--keep", text)[0] == 0
    spec = fake.asked[-1].spec
    assert (spec.time_limit_s, spec.end_within_s, spec.keep_s, spec.start_within_s) == (seconds, seconds, seconds, 0)


@pytest.mark.parametrize("text", ["", "h", "1x", "1h 30m", "-5"])
def test_what_is_no_time(fake: FakeScheduler, gpupool: Run, file: str, text: str) -> None:
    code, _, err = gpupool("submit", file, "--time-limit", text)
    assert (code, fake.calls["Submit"]) == (2, 0)
    assert "no duration; write 90s" in err


def test_an_array_is_one_line_and_takes_commands_as_one(fake: FakeScheduler, gpupool: Run, file: str) -> None:
    assert gpupool("submit", file, "--array", "100%8")[0] == 0
    assert (fake.asked[-1].spec.array.count, fake.asked[-1].spec.array.parallel) == (100, 8)
    for index in range(3):
        element = job(f"a-{index}")
        element.spec.array.CopyFrom(job_pb2.Array(id="a", index=index, count=3, parallel=2))
        element.status.state = job_pb2.JOB_STATE_RUNNING if index < 2 else job_pb2.JOB_STATE_PENDING
        fake.jobs[f"a-{index}"] = element
    _, out, _ = gpupool("jobs")
    assert [line.split()[0] for line in out.splitlines()][1:] == ["j1", "job-0", "a"]
    assert "1 PENDING, 2 RUNNING" in out
    assert "array of 3, 2 at once" in out
    assert "a-1" in gpupool("jobs", "--elements")[1]
    _, out, err = gpupool("hold", "a-")
    assert "is the beginning of 3 job ids" in err
    code, out, _ = gpupool("hold", "a")
    assert (code, out.count("is held")) == (0, 3)
    fake.fail("HoldJob", Status.FAILED_PRECONDITION, Status.FAILED_PRECONDITION, details="a-0 is RUNNING")
    code, out, err = gpupool("hold", "a")
    assert (code, out.count("is held"), err) == (0, 1, "2 of 3 are passed over, such as: a-0 is RUNNING\n")
    fake.fail("ReleaseJob", *[Status.FAILED_PRECONDITION] * 3, details="a-0 is not held")
    assert gpupool("release", "a") == (5, "", "error: a-0 is not held\n")
    assert "no such" not in gpupool("submit", file, "--array", "x")[2]


def test_a_gang_is_one_line_and_takes_commands_as_one(fake: FakeScheduler, gpupool: Run, file: str) -> None:
    options = ("--gang", "4", "--spread-over", "pcie-root", "--pack-into", "rack")
    assert gpupool("submit", file, *options)[0] == 0
    asked = fake.asked[-1].spec.gang
    assert (asked.count, asked.spread_over, asked.pack_into) == (4, "pcie_root", "rack")
    for index in range(3):
        member = job(f"g-{index}")
        member.spec.gang.CopyFrom(job_pb2.Gang(id="g", index=index, count=3, spread_over="host"))
        member.status.state = job_pb2.JOB_STATE_PENDING
        fake.jobs[f"g-{index}"] = member
    _, out, _ = gpupool("jobs")
    assert "3 PENDING" in out
    assert "gang of 3" in out
    assert "g-1" in gpupool("jobs", "--elements")[1]
    assert "g, member 1 of 3; spread over host" in gpupool("show", "g-1")[1]
    code, out, _ = gpupool("hold", "g")
    assert (code, out.count("is held")) == (0, 3)


def test_a_queue_is_made_and_changed(fake: FakeScheduler, gpupool: Run) -> None:
    code, out, _ = gpupool(
        "queue", "create", "vision", "--guaranteed-gpus", "8", "--max-gpus", "16", "--max-memory-gib", "64",
        "--user-jobs", "3", "--min-priority", "-5", "--weight", "2",
    )  # fmt: skip
    asked = fake.asked[-1]
    assert (code, asked.name, asked.create) == (0, "vision", True)
    assert list(asked.fields) == ["guaranteed", "limit", "priority_min", "user_jobs", "weight"]
    assert (asked.settings.limit.gpus, asked.settings.limit.memory_mib, asked.settings.user_jobs) == (16, 65536, 3)
    assert "16 GPUs, 64GiB" in out
    fake.queues = [scheduler_pb2.Queue(name="vision", settings=asked.settings, running=3, share=0.25)]
    assert gpupool("queue", "set", "vision", "--max-gpus", "-1", "--user-gpus", "0")[0] == 0
    asked = fake.asked[-1]
    assert list(asked.fields) == ["limit", "user_limit"]
    assert not asked.settings.limit.HasField("gpus")
    assert (asked.settings.limit.memory_mib, asked.settings.user_limit.gpus) == (65536, 0)
    assert asked.settings.user_limit.HasField("gpus")
    assert gpupool("queue", "set", "vision")[0] == 2
    assert gpupool("queue", "set", "nope", "--weight", "1")[0] == 3


def test_queues_are_listed_suspended_and_deleted(fake: FakeScheduler, gpupool: Run) -> None:
    settings = records_pb2.QueueIntent(limit=records_pb2.Amounts(gpus=4), suspended=True, suspended_by="ann")
    fake.queues = [scheduler_pb2.Queue(name="q", settings=settings, used=records_pb2.Amounts(gpus=2), pending=7)]
    _, out, _ = gpupool("queue", "list", "-o", "wide")
    assert out.splitlines()[1].split()[:6] == ["q", "q", "suspended", "2", "-", "4"]
    assert json.loads(gpupool("queue", "list", "-o", "json")[1])[0]["pending"] == 7
    assert "by ann" in gpupool("queue", "show", "q")[1]
    assert gpupool("queue", "suspend", "q", "--reason", "moves")[0] == 0
    assert (fake.asked[-1].settings.suspended, list(fake.asked[-1].fields)) == (True, ["suspended", "suspended_reason"])
    assert gpupool("queue", "resume", "q")[0] == 0
    assert (fake.asked[-1].settings.suspended, list(fake.asked[-1].fields)) == (False, ["suspended"])
    assert gpupool("queue", "delete", "q")[0] == 0
    assert fake.asked[-1].name == "q"


@pytest.mark.parametrize("command", ["create", "set", "list", "show", "suspend", "resume", "delete"])
def test_help_of_queues_teaches(gpupool: Run, command: str) -> None:
    code, out, _ = gpupool("queue", command, "--help")
    assert code == 0
    assert f"gpupool queue {command}" in out


def test_a_job_says_its_queue_and_user(fake: FakeScheduler, gpupool: Run, file: str) -> None:
    assert gpupool("submit", file, "--queue", "vision")[0] == 0
    assert fake.asked[-1].spec.queue == "vision"
    assert fake.asked[-1].spec.user
