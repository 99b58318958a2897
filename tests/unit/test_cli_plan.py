"""`failover plan` and `failover simulate`: what they print, as in tests/golden_cli, and the exit code for scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpupool.cli.planned_views import room
from gpupool.v1 import job_pb2, scheduler_pb2
from tests.fakes.cli import Run
from tests.fakes.server import FakeScheduler

GOLDEN = Path(__file__).resolve().parents[1] / "golden_cli"


def restart(job: str, to: str = "gpu08", *, host: str = "gpu07", **more: Any) -> scheduler_pb2.PlannedRestart:
    units = ["0000:21:00.0", "0000:22:00.0"] if to else []
    fields: dict[str, Any] = {"from": host, "to": to, "units": units, "restartable": True, **more}
    return scheduler_pb2.PlannedRestart(job=job, name=f"train-{job}", allocation=f"{job}.1", **fields)


def of_one_host() -> scheduler_pb2.FailoverPlan:
    proof = scheduler_pb2.PlannedEvidence(
        host="gpu07", evidence=job_pb2.EVIDENCE_POWER_OFF, after_s=13, detail="redfish saw its power off"
    )
    nowhere = restart("jb", "", reason="fits on none of 2 hosts: 1 HOST_NOT_READY, 1 UNITS_BUSY")
    once = restart("jc", "", reason="FAILED: no restarts left (0)", restartable=False)
    return scheduler_pb2.FailoverPlan(
        hosts=["gpu07"], vms=[restart("ja", after_s=44.2), nowhere, once], evidence=[proof]
    )


def of_two_hosts() -> scheduler_pb2.FailoverPlan:
    soft = scheduler_pb2.PlannedEvidence(host="gpu07", detail="a soft guard: an operator must confirm it")
    none = scheduler_pb2.PlannedEvidence(
        host="gpu09", evidence=job_pb2.EVIDENCE_NOTHING_RAN, after_s=8, detail="no VM was allocated there"
    )
    waits = restart("ja", reason="only once an operator confirms that gpu07 is dead")
    brake = "2 of 3 hosts were lost within 120 s"
    return scheduler_pb2.FailoverPlan(hosts=["gpu07", "gpu09"], vms=[waits], evidence=[soft, none], brake=brake)


CASES = {
    "failover_plan": (["plan", "gpu07"], of_one_host()),
    "failover_plan_wide": (["plan", "gpu07", "-o", "wide"], of_one_host()),
    "failover_simulate": (["simulate", "gpu07", "gpu09"], of_two_hosts()),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_printed(name: str, fake: FakeScheduler, gpupool: Run, request: pytest.FixtureRequest) -> None:
    command, fake.plan = CASES[name]
    code, out, err = gpupool("failover", *command)
    expected = GOLDEN / f"{name}.txt"
    if request.config.getoption("--rewrite"):
        expected.write_text(out)
    assert (code, err) == (1, "")
    assert out == expected.read_text()
    assert list(fake.asked[-1].hosts) == list(fake.plan.hosts)


def test_the_exit_code_is_0_if_all_would_restart_by_themselves(fake: FakeScheduler, gpupool: Run) -> None:
    fake.plan = of_one_host()
    del fake.plan.vms[1]  # what is left beside the first has no restart left: it is none that should find a place
    code, out, _ = gpupool("failover", "plan", "gpu07", "-o", "json")
    assert code == 0
    assert json.loads(out)["vms"][0]["to"] == "gpu08"


def test_a_host_without_vms(fake: FakeScheduler, gpupool: Run) -> None:
    fake.plan = scheduler_pb2.FailoverPlan(hosts=["gpu07"])
    assert gpupool("failover", "plan", "gpu07")[::2] == (0, "no VM runs on gpu07\n")


def test_status_tells_of_the_reservation() -> None:
    cluster = scheduler_pb2.Cluster()
    assert room(cluster) == ""
    cluster.reservation.hosts = 1
    assert room(cluster) == "kept for the loss of any one host"
    for n in range(4):
        cluster.reservation.uncovered.add(domain=f"rack=r{n}", jobs=["a", "b"])
    assert room(cluster) == "NOT for the loss of rack=r0, rack=r1, rack=r2, ...: 4 in all, 8 jobs would find no place"
