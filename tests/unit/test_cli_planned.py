"""Planned work from the command line: what is asked of the scheduler, what is told meanwhile, and how it ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gpupool.cli import draining
from gpupool.v1 import records_pb2, scheduler_pb2
from tests.fakes.cli import Run
from tests.fakes.server import FakeScheduler

READY = records_pb2.HOST_STATE_READY


@pytest.fixture
def fake(fake: FakeScheduler, monkeypatch: pytest.MonkeyPatch) -> FakeScheduler:
    monkeypatch.setattr(draining, "POLL_S", 0.02)
    fake.hosts = [host(f"h{n}", vms=n) for n in range(4)]
    return fake


def host(name: str, *, vms: int = 0) -> scheduler_pb2.Host:
    return scheduler_pb2.Host(name=name, vms=vms, record=records_pb2.HostRecord(state=READY, session=7, boot_id="b1"))


def test_a_drain_that_the_policy_ordered_is_shown_as_one(fake: FakeScheduler, gpupool: Run) -> None:
    why = "unit 0000:16:00.0 quarantined (drain_on_quarantine); retry-unit once it is mended"
    for name in (1, 0):
        fake.hosts[name].ordered_drain = why
    listed = [line.split()[:2] for line in gpupool("hosts").out.splitlines()[1:3]]
    assert listed == [["h0", "READY,DRAINED"], ["h1", "READY,DRAINING"]]
    assert f"1 VM left, 0 stopping, the others once there is a place: {why}" in gpupool("hosts", "h1").out
    assert f"drained: {why}" in gpupool("hosts", "h0").out


def becomes(fake: FakeScheduler, name: str, **fields: int) -> Callable[[], None]:
    """At the next look at the hosts, this one has these counts."""

    def change() -> None:
        found = next(each for each in fake.hosts if each.name == name)
        for field, value in fields.items():
            setattr(found, field, value)

    return change


def nothing() -> None:
    """Nothing has changed at this look."""


def drains(fake: FakeScheduler) -> list[tuple[str, bool]]:
    return [(each.host, each.drain.paused) for each in fake.asked if isinstance(each, scheduler_pb2.DrainHostRequest)]


def test_drain_tells_how_far_it_is_and_ends_when_no_vm_is_left(fake: FakeScheduler, gpupool: Run) -> None:
    fake.looks = [
        nothing,
        becomes(fake, "h2", vms_stopping=1),
        becomes(fake, "h2", vms=1, vms_stopping=0),
        becomes(fake, "h2", vms_stopping=1),
        becomes(fake, "h2", vms=0, vms_stopping=0),
    ]
    done = gpupool("drain", "h2", "--reason", "fans", "--grace-s", "60", "--at-once", "1", "--wait-for-place")
    assert done.err.splitlines() == [
        "h2: 2 VMs left, 1 stopping, the others once there is a place",
        "h2: 1 VM left, 0 stopping, the others once there is a place",
        "h2: 1 VM left, 1 stopping",
        "h2: drained",
    ]
    assert done.code == 0
    assert done.out.split()[6:8] == ["h2", "READY,DRAINED"]
    wish = next(each.drain for each in fake.asked if isinstance(each, scheduler_pb2.DrainHostRequest))
    assert (wish.reason, wish.grace_s, wish.at_once, wish.wait) == ("fans", 60, 1, True)
    assert "@" in wish.by


def test_a_host_is_drained_only_if_it_has_no_vm_at_two_looks(fake: FakeScheduler, gpupool: Run) -> None:
    late = becomes(fake, "h0", vms=1)  # it was placed before anyone knew of the drain
    fake.looks = [nothing, nothing, late, becomes(fake, "h0", vms=0)]
    assert gpupool("drain", "h0").err.splitlines() == ["h0: 1 VM left, 0 stopping", "h0: drained"]


def test_hosts_wait_for_their_turn_and_take_nothing_new_meanwhile(fake: FakeScheduler, gpupool: Run) -> None:
    fake.looks = [nothing, becomes(fake, "h1", vms=0), nothing, nothing, becomes(fake, "h2", vms=0)]
    fake.looks += [nothing, nothing, becomes(fake, "h3", vms=0)]
    assert gpupool("drain", "h1", "h2", "h3", "--hosts-at-once", "1").code == 0
    assert drains(fake) == [("h2", True), ("h3", True), ("h1", False), ("h2", False), ("h3", False)]


def test_run_again_it_goes_on_with_what_is_under_way(fake: FakeScheduler, gpupool: Run) -> None:
    fake.hosts[3].intent.drain.at_s = 1.0
    fake.looks = [nothing, becomes(fake, "h3", vms=0), nothing, nothing, becomes(fake, "h1", vms=0)]
    assert gpupool("drain", "h1", "h3", "--hosts-at-once", "1").code == 0
    assert drains(fake) == [("h1", True), ("h3", False), ("h1", False)]


def test_a_deadline_ends_the_wait_not_the_drain(fake: FakeScheduler, gpupool: Run) -> None:
    done = gpupool("drain", "h1", "--timeout-s", "0.1")
    assert done.code == 124
    assert done.err.splitlines()[-1] == (
        "error: h1 is not drained in time (1 VM left, 0 stopping); the drain goes on; wait again with `gpupool drain "
        "h1`, or end it: `gpupool undrain h1`"
    )
    assert not fake.calls["UndrainHost"]


def test_a_drain_that_is_called_off_is_no_success(fake: FakeScheduler, gpupool: Run) -> None:
    fake.looks = [nothing, nothing, lambda: fake.hosts[1].intent.ClearField("drain")]
    done = gpupool("drain", "h1")
    assert done.code == 5
    assert "error: the drain of h1 was called off" in done.err


def test_a_host_that_dies_while_it_drains_is_told(fake: FakeScheduler, gpupool: Run) -> None:
    def dies() -> None:
        fake.hosts[1].record.state = records_pb2.HOST_STATE_FENCING

    fake.looks = [nothing, dies, becomes(fake, "h1", vms=0)]
    assert gpupool("drain", "h1").err.splitlines() == ["h1: 1 VM left, but it is FENCING", "h1: drained"]


def test_no_wait(fake: FakeScheduler, gpupool: Run) -> None:
    done = gpupool("drain", "h1", "h2", "--no-wait", "-o", "json")
    assert done.code == 0
    assert drains(fake) == [("h1", False), ("h2", False)]
    assert "`gpupool undrain h1 h2`" in done.err
    assert gpupool("drain", "h1", "--no-wait", "--hosts-at-once", "1").code == 2
    assert gpupool("undrain", "h1", "h2").out.split()[7] == "READY"


def test_a_misspelt_host_drains_nothing(fake: FakeScheduler, gpupool: Run) -> None:
    done = gpupool("drain", "h1", "h9")
    assert (done.code, done.err) == (3, "error: no host h9; known hosts: h0, h1, h2, h3\n")
    assert not drains(fake)
    for command in (["undrain"], ["maintenance", "off"], ["maintenance", "on", "--reason", "board"]):
        assert gpupool(*command, "h1", "h9").code == 3
    assert not fake.calls["UndrainHost"] + fake.calls["SetMaintenance"]


def test_maintenance_warns_of_vms_and_of_what_else_keeps_the_host_out(fake: FakeScheduler, gpupool: Run) -> None:
    done = gpupool("maintenance", "on", "h0", "h1", "--reason", "new board")
    assert done.err == "h1 has 1 VMs, which run on; to have them start elsewhere: gpupool drain h1\n"
    assert done.out.split()[7] == "READY,MAINTENANCE"
    fake.hosts[1].intent.cordoned = True
    done = gpupool("maintenance", "off", "h0", "h1")
    assert (done.code, done.err) == (0, "h1 takes no jobs yet: CORDONED\n")
    assert gpupool("maintenance", "on", "h1").code == 2
