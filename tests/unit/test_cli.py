"""The command line against a fake scheduler: exit codes, one line for an error, shapes of JSON. No stack traces."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpupool.cli import settings
from gpupool.cli.output import plain_table, safe
from gpupool.cli.views import duration, link, page_size, size, unit_state
from gpupool.spec import load_spec
from gpupool.v1 import inventory_pb2, job_pb2, records_pb2, scheduler_pb2
from tests.fakes.cli import Run
from tests.fakes.server import BREAK, FakeScheduler, Status, job

RUNNING, FAILED = job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_FAILED


GOLDEN = Path(__file__).resolve().parents[1] / "golden_cli"


@pytest.fixture
def spec(tmp_path: Path) -> str:
    file = tmp_path / "job.yaml"
    file.write_text("image: debian-numpy\ncommand: [echo, hello]\ngpus: {count: 1}\n")
    return str(file)


def attempt(number: int = 1, **fields: float) -> job_pb2.Attempt:
    return job_pb2.Attempt(number=number, host="h1", units=["0000:21:00.0"], **fields)  # type: ignore[arg-type]


def test_submit_prints_the_id_alone(fake: FakeScheduler, gpupool: Run, spec: str) -> None:
    assert gpupool("submit", spec, "--name", "n") == (0, "job-0\n", "")
    assert fake.asked[0].spec.name == "n"
    assert gpupool("submit", spec, "--key", "k").out == gpupool("submit", spec, "--key", "k").out
    assert json.loads(gpupool("submit", spec, spec, "-o", "json").out)[1] == {"id": "job-3", "created": True}


def test_submit_reads_standard_input(fake: FakeScheduler, gpupool: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"image: a\n---\nimage: b")))
    assert gpupool("submit", "-").out == "job-0\njob-1\n"


def test_check_submits_nothing(fake: FakeScheduler, gpupool: Run, spec: str) -> None:
    done = gpupool("submit", "--check", spec)
    assert (done.code, done.out) == (0, "")
    assert done.err == f"warning: {spec}: no host has this GPU model now\n{spec}: correct\n"
    assert not fake.jobs


def test_faults_of_a_file_name_it_and_nothing_is_submitted(
    fake: FakeScheduler, gpupool: Run, spec: str, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("gpu: 1\ncpus: x")
    done = gpupool("submit", spec, str(wrong), str(tmp_path / "absent.yaml"))
    assert done.code == 2
    assert [line.split(": ")[:2] for line in done.err.splitlines()] == [
        ["error", str(wrong)], ["error", str(wrong)], ["error", str(tmp_path / "absent.yaml")],
    ]  # fmt: skip
    assert not fake.asked


def test_the_schedulers_faults_are_one_line_each(fake: FakeScheduler, gpupool: Run, spec: str, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("cpus: 0")
    done = gpupool("submit", str(wrong), spec)
    assert (done.code, done.out) == (2, "job-0\n"), "a refused job does not stop the others"
    assert done.err.splitlines() == [
        f"error: {wrong}: image: must not be empty", f"error: {wrong}: cpus: must be at least 1",
    ]  # fmt: skip


@pytest.mark.parametrize(("code", "ends"), [(0, 0), (3, 3), (None, 1), (256, 1)])
def test_wait_ends_with_the_guests_code(
    fake: FakeScheduler, gpupool: Run, spec: str, code: int | None, ends: int
) -> None:
    state = job_pb2.JOB_STATE_SUCCEEDED if code == 0 else FAILED
    started = job("job-0", RUNNING, attempts=[attempt(started_s=2.0)])
    fake.scripts["WatchJobs"] = [[job("job-0"), BREAK], [started, job("job-0", state, exit_code=code, finished_s=3.0)]]
    done = gpupool("submit", "--wait", spec)
    assert (done.code, done.out) == (ends, "job-0\n")
    told = done.err.splitlines()
    assert told[:2] == ["job-0 job-0-name: PENDING", "job-0 job-0-name: RUNNING on h1, attempt 1"]
    assert len(told) == 3


def test_logs_while_waiting(fake: FakeScheduler, gpupool: Run, spec: str) -> None:
    line = scheduler_pb2.LogLine(at_s=1.0, stream="stdout", text="hello")
    fake.scripts["JobLogs"] = [[scheduler_pb2.LogChunk(attempt=1, lines=[line])]]
    ended = job("job-0", job_pb2.JOB_STATE_SUCCEEDED, exit_code=0, attempts=[attempt(started_s=2.0, ended_s=3.0)])
    fake.scripts["WatchJobs"] = [[ended]]
    assert gpupool("submit", "--logs", spec)[:2] == (0, "job-0\nhello\n")


def test_jobs(fake: FakeScheduler, gpupool: Run) -> None:
    assert gpupool("jobs") == (0, "", "no jobs; submit one with `gpupool submit`\n")
    assert gpupool("jobs", "-o", "json").out == "[]\n"
    fake.jobs = {"a1": job("a1"), "b2": job("b2", RUNNING, attempts=[attempt()], attempt_count=1, message="\x1b[31m")}
    header, first, second = gpupool("jobs").out.splitlines()
    assert header.split() == ["ID", "NAME", "STATE", "GPUS", "HOST", "ATTEMPT", "AGE", "MESSAGE"]
    assert first.split()[:6] == ["a1", "a1-name", "PENDING", "1", "-", "-"]
    assert second.split()[2:6] + second.split()[-1:] == ["RUNNING", "1", "h1", "1", "?[31m"]
    assert "256MiB" in gpupool("jobs", "-o", "wide").out
    shown = json.loads(gpupool("jobs", "--state", "RUNNING", "-o", "json").out)
    assert [(found["id"], found["spec"]["memory_mib"]) for found in shown] == [("b2", 256)]
    assert yaml.safe_load(gpupool("jobs", "-o", "yaml").out)[0]["id"] == "a1"


def test_filters_reach_the_scheduler(fake: FakeScheduler, gpupool: Run) -> None:
    gpupool("jobs", "--name", "t-*", "--host", "h1", "-l", "a=b=c", "--label", "d=")
    chosen = fake.asked[0].filter
    assert (chosen.name, chosen.host, dict(chosen.labels)) == ("t-*", "h1", {"a": "b=c", "d": ""})
    assert gpupool("jobs", "-l", "ab").code == 2


def test_ids_may_be_shortened(fake: FakeScheduler, gpupool: Run) -> None:
    fake.jobs = {name: job(name) for name in ("ab1", "ab2", "c3")}
    assert gpupool("show", "c").out.startswith("id:        c3\n")
    done = gpupool("show", "ab")
    assert done == (2, "", "error: 'ab' is the beginning of 2 job ids: ab1, ab2; write more of it\n")
    done = gpupool("show", "x")
    assert (done.code, done.err) == (3, "error: no job has an id that begins with 'x'; `gpupool jobs` lists them\n")
    assert gpupool("cancel", "c", "x").code == 3
    assert fake.calls["CancelJob"] == 0, "a misspelt id cancels nothing"
    assert gpupool("cancel", "c", "ab1", "--reason", "r") == (0, "c3 is asked to end\nab1 is asked to end\n", "")


def test_explain(fake: FakeScheduler, gpupool: Run) -> None:
    fake.jobs = {"j1": job()}
    assert "waits for 1 GPU" in gpupool("explain", "j1").out
    assert gpupool("explain", "j1", "-o", "wide").out.endswith("h1    units busy  needs 1 unit, 0 of 4 free\n")
    assert json.loads(gpupool("explain", "j1", "-o", "json").out)["reasons"] == [
        {"reason": "REASON_UNITS_BUSY", "hosts": 1}
    ]


def test_watch(fake: FakeScheduler, gpupool: Run) -> None:
    fake.jobs = {"j1": job()}
    fake.scripts["WatchJobs"] = [[job(), job(state=FAILED, exit_code=3, finished_s=2.0)]] * 2
    assert gpupool("watch", "j1").out == "j1 j1-name: PENDING\nj1 j1-name: FAILED with exit code 3\n"
    fake.jobs = {"j1": job()}
    lines = gpupool("watch", "j1", "-o", "json").out.splitlines()
    assert [json.loads(line)["status"]["state"] for line in lines] == ["JOB_STATE_PENDING", "JOB_STATE_FAILED"]


def test_status_tells_of_another_policy(fake: FakeScheduler, gpupool: Run) -> None:
    assert "POLICY" not in gpupool("status").out
    fake.policy_differs = ["brake.share is 0.34 at s2, and 0.5 at s1, which leads"]
    assert f"POLICY DIFFERS: {fake.policy_differs[0]}\n" in gpupool("status").out


def test_logs(fake: FakeScheduler, gpupool: Run) -> None:
    fake.jobs = {"j1": job()}
    lines = [scheduler_pb2.LogLine(at_s=1.0, stream=name, text=f"to {name}") for name in ("stdout", "stderr", "system")]
    fake.scripts["JobLogs"] = [[scheduler_pb2.LogChunk(attempt=2, lines=lines)]]
    assert gpupool("logs", "--tail", "5", "--attempt", "2", "j") == (0, "to stdout\n", "to stderr\nto system\n")
    assert (fake.asked[-1].tail_lines, fake.asked[-1].attempt, fake.asked[-1].follow) == (5, 2, False)


@pytest.fixture
def inventory(fake: FakeScheduler) -> FakeScheduler:
    record = records_pb2.HostRecord(state=records_pb2.HOST_STATE_READY, session=7, guard=records_pb2.GUARD_KIND_SOFT)
    fake.hosts = [scheduler_pb2.Host(name="h1", record=record, units_total=4, units_free=3, vms=1)]
    unit = inventory_pb2.Unit(id="0000:21:00.0", model="nvidia-a100-80gb", numa_node=1, gpu_memory_mib=81920)
    fake.units = [scheduler_pb2.UnitView(host="h1", unit=unit, state=records_pb2.UNIT_STATE_QUARANTINED)]
    return fake


def test_hosts_and_units(inventory: FakeScheduler, gpupool: Run) -> None:
    assert gpupool("hosts").out.splitlines()[1].split() == ["h1", "READY", "3/4", "1", "7", "-"]
    assert "soft" in gpupool("hosts", "-o", "wide").out
    inventory.hosts[0].session.guard_refused = "real-time priority"
    assert "soft, refused real-time priority" in gpupool("hosts", "-o", "wide").out
    assert gpupool("units", "h1").out.splitlines()[1].split() == [
        "h1", "0000:21:00.0", "nvidia-a100-80gb", "1", "QUARANTINED", "-",
    ]  # fmt: skip
    unknown = gpupool("units", "h9")
    assert (unknown.code, unknown.err) == (3, "error: no host 'h9'; known hosts: h1\n")
    assert gpupool("retry-unit", "h1", "0000:21:00.0").code == 0


def a_function(**fields: Any) -> inventory_pb2.PciFunction:
    known = {
        "address": "0000:21:00.0", "vendor_id": 0x10DE, "device_id": 0x20B5, "class_code": 0x030200, "iommu_group": 7,
        "driver": "vfio-pci", "reset_methods": ["flr", "bus"], "link_speed_mts": 16000, "link_width": 16,
        "link_speed_max_mts": 32000, "link_width_max": 16, "path": ["0000:20:01.0", "0000:21:00.0"],
        "vendor_name": "NVIDIA Corporation", "device_name": "GA100", "numa_node": 1,
    }  # fmt: skip
    return inventory_pb2.PciFunction(**{**known, **fields})


@pytest.fixture
def detailed(inventory: FakeScheduler) -> FakeScheduler:
    """What real hosts have: a sick unit in use, an unfit one, NICs, hugepages and findings."""
    sick, unfit = inventory.units[0], scheduler_pb2.UnitView(host="h1")
    sick.state, sick.allocation = records_pb2.UNIT_STATE_HELD, "j1.1"
    sick.unit.identity, sick.unit.memory_source = "sn 0123456789abcdef", "table"
    sick.unit.functions.append(a_function())
    sick.report.sick, sick.report.proof = "AER fatal errors", "flr; 14 registers equal"
    sick.report.history.CopyFrom(
        records_pb2.UnitHistory(
            reclaims=12, failures=1, last_method="flr", last_duration_s=2.34, last_failure="BAR 0 differs"
        )
    )
    unfit.unit.CopyFrom(inventory_pb2.Unit(id="0000:41:00.0", model="tesla-t4", numa_node=-1, unfit="no IOMMU group"))
    inventory.units.append(unfit)
    inventory.hosts[0].inventory.CopyFrom(
        inventory_pb2.Inventory(
            units=[sick.unit, unfit.unit],
            notes=["0000:41:00.0: cannot read config: truncated"],
            numa_nodes=[
                inventory_pb2.NumaNode(
                    id=1, cores=[inventory_pb2.CpuCore(threads=[2, 3])], memory_mib=65536, distances=[21, 10],
                    hugepages=[
                        inventory_pb2.Hugepages(size_kib=2048, total=4096, free=1024),
                        inventory_pb2.Hugepages(size_kib=1048576, total=8, free=8),
                    ],
                )
            ],
            nics=[
                a_function(
                    address="0000:22:00.0", driver="mlx5_core", path=["0000:20:01.0", "0000:21:01.0"], sriov_total=8,
                    sriov_present=["0000:22:00.1"], vendor_name="Mellanox", device_name="MT2892",
                    link_speed_mts=32000,
                ),
                a_function(
                    address="0000:81:00.0", driver="igb", numa_node=-1, path=["0000:80:01.0"], link_width=0,
                    vendor_name="", device_name="",
                ),
            ],
            findings=[
                inventory_pb2.Finding(check="clock", level=inventory_pb2.FINDING_LEVEL_NOTE, seen="no NTP"),
                inventory_pb2.Finding(
                    check="iommu", level=inventory_pb2.FINDING_LEVEL_PROBLEM, seen="0000:41:00.0 is in no group",
                    risk="it could write to any memory", units=["0000:41:00.0"],
                ),
                inventory_pb2.Finding(check="memlock", level=inventory_pb2.FINDING_LEVEL_WARNING, seen="64 KiB"),
            ],
        )
    )  # fmt: skip
    return inventory


def test_hosts_wide_counts_findings(detailed: FakeScheduler, gpupool: Run) -> None:
    header, row = gpupool("hosts", "-o", "wide").out.splitlines()
    shown = dict(zip(header.split(), row.split(), strict=True))
    assert (shown["PROBLEMS"], shown["WARNINGS"]) == ("1", "1")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("host", ("hosts", "h1")),
        ("host", ("hosts", "h1", "-o", "wide")),
        ("unit", ("units", "h1", "0000:21:00.0")),
        ("units_wide", ("units", "-o", "wide")),
    ],
)
def test_what_people_see(
    detailed: FakeScheduler, gpupool: Run, name: str, command: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    """As in tests/golden_cli. `--rewrite` writes these anew: read the diff."""
    done = gpupool(*command)
    expected = GOLDEN / f"{name}.txt"
    if request.config.getoption("--rewrite"):
        expected.write_text(done.out)
    assert (done.code, done.err) == (0, "")
    assert done.out == expected.read_text()


def test_a_host_in_detail(detailed: FakeScheduler, gpupool: Run) -> None:
    shown = json.loads(gpupool("hosts", "h1", "-o", "json").out)
    assert shown["inventory"]["nics"][0]["path"][0] == shown["inventory"]["units"][0]["functions"][0]["path"][0]
    assert gpupool("hosts", "h9") == (3, "", "error: no host 'h9'; known hosts: h1\n")


def test_a_unit_in_detail(detailed: FakeScheduler, gpupool: Run) -> None:
    assert json.loads(gpupool("units", "h1", "0000:21:00.0", "-o", "json").out)["report"]["history"]["reclaims"] == 12
    absent = gpupool("units", "h1", "0000:99:00.0")
    have = "0000:21:00.0, 0000:41:00.0"
    assert absent == (3, "", f"error: host h1 has no unit '0000:99:00.0'; its units: {have}\n")


@pytest.mark.parametrize(
    ("state", "unfit", "sick", "shown"),
    [
        ("FREE", "", "", "FREE"),
        ("UNSPECIFIED", "boot VGA", "", "UNFIT"),
        ("UNSPECIFIED", "", "AER", "SICK"),
        ("DIRTY", "boot VGA", "", "UNFIT"),
        ("DIRTY", "", "AER", "SICK"),
        ("HELD", "", "AER", "HELD,SICK"),
        ("RESETTING", "boot VGA", "AER", "RESETTING,UNFIT"),
        ("QUARANTINED", "", "AER", "QUARANTINED"),
    ],
)
def test_the_state_of_a_unit_promises_nothing(state: str, unfit: str, sick: str, shown: str) -> None:
    view = scheduler_pb2.UnitView(
        state=records_pb2.UnitState.Value(f"UNIT_STATE_{state}"),
        unit=inventory_pb2.Unit(unfit=unfit),
        report=records_pb2.UnitReport(sick=sick),
    )
    assert unit_state(view) == shown


def test_links_and_sizes_of_pages() -> None:
    assert link(a_function()) == "x16 16 GT/s of x16 32 GT/s"
    assert link(a_function(link_speed_mts=32000)) == "x16 32 GT/s"
    assert link(a_function(link_speed_max_mts=0, link_speed_mts=2500)) == "x16 2.5 GT/s"
    assert link(a_function(link_width=0)) == ""
    assert [page_size(kib) for kib in (64, 2048, 1048576)] == ["64KiB", "2MiB", "1GiB"]


def test_a_job_shows_what_its_vm_is_like_and_what_befell_it(fake: FakeScheduler, gpupool: Run) -> None:
    told = attempt()
    told.warnings[:] = ["0000:21:00.0: AER fatal errors", "0000:21:00.0: link x8"]
    fake.jobs = {"j1": job("j1", RUNNING, attempts=[told])}
    options = job_pb2.VmOptions(hugepage_size_kib=2048, user_data="#!", hide_hypervisor=True, hypervisor_vendor_id="x")
    options.network.kind, options.network.source = job_pb2.Network.BRIDGE, "br0"
    fake.jobs["j1"].spec.vm.CopyFrom(options)
    lines = dict(line.split(":", 1) for line in gpupool("show", "j1").out.split("\n\n")[0].splitlines())
    assert [lines[name].strip() for name in ("hugepages", "network", "user data", "hypervisor")] == [
        "2MiB", "bridge br0", "2 bytes", "hidden, x",
    ]  # fmt: skip
    shown = [line.split(None, 1)[1] for line in gpupool("show", "j1").out.splitlines() if line.startswith("warning:")]
    assert shown == list(told.warnings)


def test_submit_says_what_the_vm_is_like(fake: FakeScheduler, gpupool: Run, spec: str, tmp_path: Path) -> None:
    seed = tmp_path / "seed"
    seed.write_text("#cloud-config\n")
    chosen = ("--hugepages", "1G", "--network", "macvtap:eth0", "--user-data", str(seed))
    assert gpupool("submit", spec, *chosen).code == 0
    vm = fake.asked[-1].spec.vm
    assert (vm.hugepage_size_kib, vm.user_data) == (1048576, "#cloud-config\n")
    assert (vm.network.kind, vm.network.source) == (job_pb2.Network.MACVTAP, "eth0")
    assert gpupool("submit", spec, "--network", "none").code == 0
    assert fake.asked[-1].spec.vm.network == job_pb2.Network()
    wrong = gpupool("submit", spec, "--network", "nat")
    assert wrong.code == 2
    assert "'nat': write one of user, bridge, macvtap, none" in wrong.err
    assert gpupool("submit", spec, "--hugepages", "4K").code == 2
    absent = gpupool("submit", spec, "--user-data", str(tmp_path / "no"))
    assert (absent.code, absent.err) == (2, f"error: {tmp_path / 'no'}: No such file or directory\n")
    seed.write_bytes(b"\x1f\x8b\xff")
    assert "not text in UTF-8" in gpupool("submit", spec, "--user-data", str(seed)).err


def test_cordon(inventory: FakeScheduler, gpupool: Run) -> None:
    assert "READY,CORDONED" in gpupool("cordon", "h1", "--reason", "fan").out
    assert inventory.asked[-1].by == settings.me()
    assert json.loads(gpupool("uncordon", "h1", "-o", "json").out)["name"] == "h1"
    assert gpupool("cordon", "h1").code == 2, "a reason is owed to whoever finds it"
    assert gpupool("cordon", "h9", "--reason", "fan") == (3, "", "error: no host 'h9'\n")


def test_confirm_dead_asks(inventory: FakeScheduler, gpupool: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert gpupool("confirm-dead", "h1", "--reason", "unplugged").code == 130
    assert inventory.calls["ConfirmHostDead"] == 0
    assert gpupool("confirm-dead", "h1", "--reason", "unplugged", "--yes").code == 0
    inventory.fail("ConfirmHostDead", Status.FAILED_PRECONDITION, details="host h1 is READY")
    assert gpupool("confirm-dead", "h1", "--reason", "r", "-y") == (5, "", "error: host h1 is READY\n")


def test_events(fake: FakeScheduler, gpupool: Run) -> None:
    event = scheduler_pb2.Event(at_s=1.0, kind="host", subject="h1", to="JOINING", reason="session", revision=1)
    fake.scripts["WatchEvents"] = [[event], [event]]
    assert gpupool("events").out.endswith(" host h1: new -> JOINING (session)\n")
    assert json.loads(gpupool("events", "-o", "json").out)[0]["subject"] == "h1"
    assert gpupool("events", "-f", "-o", "yaml").code == 2


def test_status(fake: FakeScheduler, gpupool: Run) -> None:
    assert "hosts:       1 of 2 ready" in gpupool("status").out
    assert json.loads(gpupool("status", "-o", "json").out)["leader"]["id"] == "s1"


@pytest.mark.parametrize(
    "arguments", [("jobs",), ("watch",), ("events", "-f"), ("status", "-o", "json"), ("cancel", "x"), ("hosts",)]
)
def test_unreachable_is_one_line(gpupool: Run, arguments: tuple[str, ...]) -> None:
    done = gpupool("--server", "127.0.0.1:1", *arguments, "--timeout", "0.2")
    assert (done.code, done.out) == (4, "")
    assert done.err.startswith("error: cannot reach the scheduler at 127.0.0.1:1: Connection refused; ")
    assert done.err.count("\n") == 1


def test_silence_is_a_timeout(fake: FakeScheduler, gpupool: Run) -> None:
    fake.jobs = {"j1": job()}
    done = gpupool("logs", "j1", "--timeout", "0.3")
    assert (done.code, done.err.count("\n")) == (124, 1)


@pytest.mark.parametrize(
    ("status", "code"), [(Status.INTERNAL, 1), (Status.PERMISSION_DENIED, 1), (Status.ALREADY_EXISTS, 5)]
)
def test_statuses(fake: FakeScheduler, gpupool: Run, status: Status, code: int) -> None:
    fake.fail("ListHosts", status, details="first\nsecond")
    assert gpupool("hosts") == (code, "", "error: first second\n")


def test_usage(gpupool: Run) -> None:
    done = gpupool("jobs", "--stat", "x")
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.endswith("(see `gpupool jobs --help`)\n")
    assert done.err.count("\n") == 1
    assert gpupool("frobnicate").code == 2
    assert "Exit codes:" in gpupool("--help").out
    assert gpupool("-s", "h:p", "jobs") == (2, "", "error: 'h:p' is no address; write \"host:port\"\n")


@pytest.mark.parametrize("command", ["submit", "jobs", "show", "watch", "logs", "cancel", "explain", "hosts", "units"])
def test_help_has_examples(gpupool: Run, command: str) -> None:
    assert "Examples:\n    gpupool " in gpupool(command, "--help").out


def test_where_the_scheduler_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GPUPOOL_SERVER", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert settings.Settings().address == "127.0.0.1:50151"
    file = settings.server_file()
    file.parent.mkdir()
    file.write_text("127.0.0.1:7\n")
    assert settings.Settings().address == "127.0.0.1:7"
    monkeypatch.setenv("GPUPOOL_SERVER", "b:1")
    assert settings.Settings().address == "b:1"
    assert settings.Settings(server="c:1").address == "c:1"


def _shell(**variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "gpupool"], capture_output=True, text=True, env={**os.environ, **variables}, check=False
    )
    assert "Traceback" not in done.stderr
    return done.stdout


def test_completion(fake: FakeScheduler, gpupool: Run) -> None:
    assert "_GPUPOOL_COMPLETE=bash_complete" in gpupool("completion", "bash").out
    assert "#compdef gpupool" in gpupool("completion", "zsh").out
    fake.jobs = {"ab1": job("ab1"), "c3": job("c3")}
    asked = {"_GPUPOOL_COMPLETE": "bash_complete", "COMP_WORDS": "gpupool show a", "COMP_CWORD": "2"}
    assert _shell(**asked) == "plain,ab1\n"
    assert _shell(**asked, GPUPOOL_SERVER="127.0.0.1:1").strip() == ""


def test_an_output_that_is_full_is_said_in_a_line() -> None:
    for arguments in (["completion", "bash"], ["simulate", "load", "--synthetic", "--hosts", "1", "--jobs", "1"]):
        with Path("/dev/full").open("w") as full:
            command = [sys.executable, "-m", "gpupool", *arguments]
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert (done.returncode, done.stderr) == (1, "error: [Errno 28] No space left on device\n")


def test_without_the_extra() -> None:
    code = "import sys; sys.modules['click'] = None; from gpupool.cli.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "pip install 'gpupool[cli]'" in done.stderr


def test_texts() -> None:
    assert [duration(s) for s in (0, 59.9, 60, 192, 3600, 18180, 187200)] == [
        "0s", "59s", "1m", "3m12s", "1h", "5h3m", "2d4h",
    ]  # fmt: skip
    assert [size(mib) for mib in (0, 512, 1536, 8192)] == ["", "512MiB", "1536MiB", "8GiB"]
    assert plain_table(("A", "LONG"), [("", "x"), ("abc", "")]) == "A    LONG\n-    x\nabc  -\n"
    assert safe("a\n\x1b[2Jb") == "a ?[2Jb"


def test_where_a_job_may_go(fake: FakeScheduler, gpupool: Run, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("{image: a, cpus: 1, gpus: {count: 2, model: t4, vendor: amd}, placement: {hosts: {zone: a}}}")
    words = (
        "--model h100 --model a100 --gpu-memory-mib 80000 --driver 550.* --within pcie-root --nic switch --whole-host"
    )
    labels = "--require rack=r* --forbid zone=b --near app=db --apart app=web --max-failures-per-host 2"
    assert gpupool("submit", str(file), *words.split(), *labels.split()).code == 0
    gpus, placement = fake.asked[0].spec.gpus, fake.asked[0].spec.placement
    assert (gpus.count, gpus.model, list(gpus.models), gpus.vendor) == (2, "", ["h100", "a100"], "amd")
    assert (gpus.memory_mib, gpus.driver, gpus.within) == (80000, "550.*", job_pb2.GPU_LOCALITY_PCIE_ROOT)
    assert gpus.nic == job_pb2.NIC_LOCALITY_SWITCH
    assert (dict(placement.hosts), dict(placement.not_hosts)) == ({"zone": "a", "rack": "r*"}, {"zone": "b"})
    assert (dict(placement.near), dict(placement.apart)) == ({"app": "db"}, {"app": "web"})
    assert (placement.whole_host, placement.max_failures_per_host) == (True, 2)
    gpupool("submit", str(file))
    written = load_spec(file.read_text())
    written.user = fake.asked[1].spec.user  # whoever runs the tests
    assert fake.asked[1].spec == written
    assert gpupool("submit", str(file), "--near", "x").code == 2


def test_dry_run(fake: FakeScheduler, gpupool: Run, spec: str) -> None:
    done = gpupool("submit", "--dry-run", spec, "--vendor", "amd")
    assert done == (0, "state:          PENDING\nsummary:        fits on h1\nqueue position: 1\n", f"{spec}:\n")
    assert fake.asked[0].spec.gpus.vendor == "amd"
    assert not fake.jobs
    fake.explained.nearest.CopyFrom(scheduler_pb2.NearestMiss(host="h2", summary="h2 lacks 1 unit"))
    assert "nearest miss:   h2 lacks 1 unit\n" in gpupool("submit", "--dry-run", spec).out
    shown = json.loads(gpupool("submit", "--dry-run", spec, "-o", "json").out)
    assert (shown[0]["queue_position"], shown[0]["nearest"]["host"]) == (1, "h2")
    assert gpupool("submit", "--dry-run", "--wait", spec).code == 2


def test_dry_run_of_what_would_be_refused(fake: FakeScheduler, gpupool: Run, spec: str) -> None:
    fake.explained.impossible.append("no known host could ever take it")
    done = gpupool("submit", "--dry-run", spec)
    assert (done.code, done.err) == (2, f"error: {spec}: no known host could ever take it\n{spec}:\n")
    assert "impossible:     no known host could ever take it\n" in done.out
    done = gpupool("submit", "--dry-run", spec, "--wait-for-hosts", "-o", "json")
    assert (done.code, done.err) == (0, f"warning: {spec}: no known host could ever take it\n")
    fake.fail("ExplainSpec", Status.INVALID_ARGUMENT, details="cpus is 0\ngpus.count is 65")
    done = gpupool("submit", "--dry-run", spec)
    assert (done.code, done.err) == (2, f"error: {spec}: cpus is 0\nerror: {spec}: gpus.count is 65\n")


def test_wait_for_hosts(fake: FakeScheduler, gpupool: Run, spec: str) -> None:
    gpupool("submit", spec, "--wait-for-hosts")
    gpupool("submit", spec)
    assert [asked.allow_unavailable for asked in fake.asked] == [True, False]


def test_show_says_what_a_job_demands(fake: FakeScheduler, gpupool: Run) -> None:
    fake.jobs = {"j1": job("j1")}
    assert "gpus:      1 of any model\n" in gpupool("show", "j1").out
    wanted = fake.jobs["j1"].spec
    wanted.gpus.models.extend(["h100", "a100"])
    wanted.gpus.within, wanted.gpus.vendor = job_pb2.GPU_LOCALITY_PCIE_ROOT, "nvidia"
    wanted.placement.hosts.update(zone="a", rack="r*")
    wanted.placement.apart.update(app="web")
    out = gpupool("show", "j1").out
    assert "1 a100 or h100, by nvidia, below one PCIe root\n" in out
    assert "hosts with:      rack=r*, zone=a\n" in out
    assert "apart from jobs: app=web\n" in out
    assert "whole host" not in out
