"""What operators see of failures and planned work, as in tests/golden_cli; and what the commands ask for.

`--rewrite` writes the texts anew: read the diff.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpupool.cli import details, failover_views, host_views, planned_views, views
from gpupool.cli.output import pairs, table
from gpupool.v1 import job_pb2, records_pb2, scheduler_pb2
from tests.fakes.cli import Run
from tests.fakes.server import FakeScheduler, job

GOLDEN = Path(__file__).resolve().parents[1] / "golden_cli"
NOW = 1_767_323_045.0  # 2026-01-02 03:04:05 UTC
READY, FENCING = records_pb2.HOST_STATE_READY, records_pb2.HOST_STATE_FENCING


@pytest.fixture
def shows(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], None]]:
    """Whether what was printed is the text of this name. Times are in UTC."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()

    def compare(name: str) -> None:
        out, file = capsys.readouterr().out, GOLDEN / f"{name}.txt"
        if request.config.getoption("--rewrite"):
            file.write_text(out)
        assert out == file.read_text()

    yield compare
    monkeypatch.undo()
    time.tzset()


def host(name: str, state: records_pb2.HostState.ValueType = READY, **fields: object) -> scheduler_pb2.Host:
    record = records_pb2.HostRecord(state=state, session=7, boot_id="9f31aa02-77", since_s=NOW - 300)
    record.guard = records_pb2.GUARD_KIND_HARDWARE
    return scheduler_pb2.Host(name=name, record=record, units_total=8, **fields)  # type: ignore[arg-type]


def draining(**fields: object) -> records_pb2.Drain:
    return records_pb2.Drain(by="ann@ops", reason="new fans", at_s=NOW - 90, **fields)  # type: ignore[arg-type]


def failover() -> records_pb2.FailoverRecord:
    fence = records_pb2.FenceRecord(
        session=17,
        evidence=job_pb2.EVIDENCE_POWER_OFF,
        detail="redfish says that it is off",
        lost_s=NOW - 100,
        fenced_s=NOW - 93,
        allocations=["j1.1", "j2.4", "j3.1"],
    )
    lost = [
        records_pb2.LostVm(allocation="j1.1", job="j1", host="h2", placed_s=NOW - 92.8, started_s=NOW - 81.5,
                           outcome="runs on h2"),
        records_pb2.LostVm(allocation="j2.4", job="j2", outcome="held: 3 hosts in a row died with it"),
        records_pb2.LostVm(allocation="j3.1", job="j3"),
    ]  # fmt: skip
    return records_pb2.FailoverRecord(host="h1", fence=fence, vms=lost, brake="5 of 12 hosts were lost within 60 s")


def test_a_report_of_a_failover(shows: Callable[[str], None]) -> None:
    pairs(failover_views.facts(failover(), NOW))
    table(*failover_views.vms(failover()))
    done = failover()
    done.done_s, done.brake = NOW - 50, ""
    for vm in done.vms:
        vm.outcome = vm.outcome or "runs on h3"
    pairs(failover_views.facts(done, NOW))
    quiet = records_pb2.FailoverRecord(host="h9", fence=records_pb2.FenceRecord(session=3, lost_s=NOW, fenced_s=NOW))
    pairs(failover_views.facts(quiet, NOW))
    lost = host("h4", FENCING, vms=3)
    lost.record.power.CopyFrom(
        records_pb2.PowerFencing(
            device="redfish", session=7, tries=4, last_s=NOW - 9, next_s=NOW + 51, error="no route"
        )
    )
    pairs(failover_views.unproven(lost, NOW))
    shows("failover_report")


def test_hosts_under_work(shows: Callable[[str], None]) -> None:
    held = host("h5")
    held.record.held_out = "lost 3 times within 1h"
    both = records_pb2.HostIntent(cordoned=True, maintenance=True)
    found = [
        host("h1", vms=3, vms_stopping=1, intent=records_pb2.HostIntent(drain=draining())),
        host("h2", intent=records_pb2.HostIntent(drain=draining())),
        host("h3", vms=3, intent=records_pb2.HostIntent(drain=draining(paused=True))),
        host("h4", intent=both),
        held,
    ]
    table(*host_views.hosts(found, NOW))
    table(*host_views.hosts(found[:1], NOW, wide=True))
    shows("hosts_planned")


def test_a_host_under_work_in_detail(shows: Callable[[str], None]) -> None:
    intent = records_pb2.HostIntent(
        cordoned=True, reason="loud", by="bob@ops", drain=draining(wait=True), maintenance=True,
        maintenance_reason="new board", maintenance_by="cid@ops",
    )  # fmt: skip
    shown = host(
        "h1",
        vms=3,
        vms_stopping=1,
        intent=intent,
        session=records_pb2.Session(watchdog_s=10, guard_refused="real-time priority"),
    )
    shown.record.held_out, shown.record.held_out_s = "lost 3 times within 1h", NOW - 3600
    shown.record.boot_s = NOW - 7200
    shown.record.last_fence.CopyFrom(failover().fence)
    shown.record.power.CopyFrom(records_pb2.PowerFencing(device="fence_ipmilan", session=7, tries=1, last_s=NOW - 9))
    pairs(details.host_facts(shown, NOW))
    bare = host("h2", session=records_pb2.Session(unguarded="the site keeps VMs over a loss of the store"))
    bare.record.guard = records_pb2.GUARD_KIND_UNSPECIFIED
    pairs(details.host_facts(bare, NOW))
    shows("host_planned")


def test_what_holds_failures_up(shows: Callable[[str], None]) -> None:
    calm = scheduler_pb2.Cluster()
    settled = scheduler_pb2.Cluster(record=records_pb2.ClusterRecord(settled_s=NOW - 600))
    brake = records_pb2.Brake(since_s=NOW - 40, until_s=NOW + 260, reason="5 of 12 hosts were lost within 60 s")
    brake.hosts.extend(["h1", "h2"])
    disarmed = records_pb2.ClusterIntent(disarmed=True, by="ann@ops", reason="etcd gets new disks", at_s=NOW - 70)
    on = scheduler_pb2.Cluster(record=records_pb2.ClusterRecord(brake=brake), intent=disarmed)
    brake.until_s = 0
    manual = scheduler_pb2.Cluster(record=records_pb2.ClusterRecord(brake=brake))
    released = records_pb2.ClusterIntent(brake_released_s=NOW, brake_by="ann@ops", brake_reason="a switch")
    ending = scheduler_pb2.Cluster(record=records_pb2.ClusterRecord(brake=brake), intent=released)
    weak = [scheduler_pb2.Unprovable(host=f"h{n}", why="a soft guard only, and no fence device") for n in range(1, 8)]
    unproven = scheduler_pb2.Cluster(unprovable=weak, powered_unknown=["gpu-17"])
    meant = scheduler_pb2.Cluster(unprovable=weak, intent=disarmed)
    assert not planned_views.unproven(meant), "disarmed, no host has a guard"
    for each in (calm, settled, on, manual, ending, unproven, scheduler_pb2.Cluster(unprovable=weak[:1])):
        pairs(planned_views.safety(each, NOW))
    held = job("j1", hold="3 hosts in a row died with it", held_s=NOW - 60)
    pairs(fact for fact in views.job_facts(held, NOW) if fact[0] in ("id", "held"))
    shows("safety")


def test_disarm_and_arm(fake: FakeScheduler, gpupool: Run) -> None:
    assert gpupool("disarm").code == 2
    done = gpupool("disarm", "--reason", "new disks")
    assert done.code == 0
    assert "fencing: DISARMED for a while (" in done.out
    assert "`gpupool arm` ends it" in gpupool("status").out
    assert gpupool("arm").out.splitlines()[0] == "fencing: armed"


def test_brake(fake: FakeScheduler, gpupool: Run) -> None:
    assert gpupool("brake").out == "fencing: armed\nbrake:   not on\n"
    fake.record.brake.reason = "5 of 12 hosts"
    assert "ON for" in gpupool("brake").out
    assert "brake" in json.loads(gpupool("brake", "-o", "json").out)["record"]
    assert gpupool("brake", "release").code == 2
    assert gpupool("brake", "release", "--reason", "a switch").out.endswith("brake:   not on\n")


def test_release(fake: FakeScheduler, gpupool: Run) -> None:
    fake.jobs = {"j1": job("j1", hold="3 hosts died with it")}
    done = gpupool("release", "j1", "--reason", "bad RAM")
    assert (done.code, done.out) == (0, "j1 is let go; `gpupool explain j1` says what it waits for\n")
    assert gpupool("release", "j9").code == 3


def test_report(fake: FakeScheduler, gpupool: Run) -> None:
    assert gpupool("failover", "report") == (0, "", "no host was ever lost\n")
    assert gpupool("failover", "report", "-o", "json").out == "[]\n"
    fake.hosts = [host("h4", FENCING, vms=2), host("h1")]
    fake.failovers = [failover()]
    blocks = gpupool("failover", "report").out.split("\n\n")
    assert [block.split()[1] for block in (blocks[0], blocks[1])] == ["h4,", "h1,"]
    assert len(blocks) == 3, "the VMs of the loss that is proven"
    assert gpupool("failover", "report", "h1").out.startswith("host:     h1, session 17\n")
    assert json.loads(gpupool("failover", "report", "h1", "-o", "json").out)[0]["fence"]["evidence"] == (
        "EVIDENCE_POWER_OFF"
    )


@pytest.mark.parametrize(
    "command",
    ["drain", "undrain", "maintenance", "maintenance on", "maintenance off", "reboot", "disarm", "arm", "brake",
     "brake release", "release", "failover report"],
)  # fmt: skip
def test_help_teaches(gpupool: Run, command: str) -> None:
    done = gpupool(*command.split(), "--help")
    assert done.code == 0
    assert f"gpupool {command.split(maxsplit=1)[0]}" in done.out.partition("Examples:")[2]
