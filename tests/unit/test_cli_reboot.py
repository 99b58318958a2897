"""A rolling reboot: one host after the other, none with a VM, and nothing behind a host that is not back as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from gpupool.cli import draining
from gpupool.cli.app import run
from gpupool.v1 import inventory_pb2, records_pb2, scheduler_pb2
from tests.fakes.server import FakeScheduler

READY, FENCED = records_pb2.HOST_STATE_READY, records_pb2.HOST_STATE_FENCED
FREE, DIRTY = records_pb2.UNIT_STATE_FREE, records_pb2.UNIT_STATE_DIRTY
SINCE = "2026-01-02T03:04:05Z"
SINCE_S = 1767323045.0
MARK = f"rolling reboot since {SINCE}"


class Done(NamedTuple):
    code: int
    err: list[str]


Run = Callable[..., Done]


class Site(FakeScheduler):
    """Hosts without VMs whose next boot comes a few looks after somebody asked for it by touching a file."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.hosts = [
            scheduler_pb2.Host(name=name, record=records_pb2.HostRecord(state=READY, boot_id="b1", boot_s=1.0))
            for name in ("h1", "h2", "h3")
        ]
        self.units = [unit(host, address) for host in ("h1", "h2", "h3") for address in ("u0", "u1")]
        self.broken = ""  # the unit that does not survive a boot, as host/unit
        self.dead = ""  # the host that does not come back
        self.looks = [self.goes_on] * 1000

    def goes_on(self) -> None:
        for host in self.hosts:
            flag = self.folder / host.name
            mine = [view for view in self.units if view.host == host.name]
            if host.record.state == FENCED and host.name != self.dead:
                host.record.state, host.record.boot_id, host.record.boot_s = READY, "b2", SINCE_S + 9
            elif flag.exists() and host.record.boot_id == "b1":
                assert not host.vms, "a host with VMs was rebooted"
                assert host.intent.maintenance
                host.record.state = FENCED
                for view in mine:
                    view.state = DIRTY
            else:
                for view in mine:
                    name = f"{view.host}/{view.unit.id}"
                    view.state = records_pb2.UNIT_STATE_QUARANTINED if name == self.broken and flag.exists() else FREE


def unit(host: str, address: str) -> scheduler_pb2.UnitView:
    return scheduler_pb2.UnitView(host=host, unit=inventory_pb2.Unit(id=address), state=FREE)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    monkeypatch.setattr(draining, "POLL_S", 0.02)
    with Site(tmp_path) as server:
        monkeypatch.setenv("GPUPOOL_SERVER", server.address)
        yield server


@pytest.fixture
def reboot(site: Site, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> Done:
        code = run(["reboot", "--command", f"touch {site.folder}/{{host}}", "--since", SINCE, *arguments])
        return Done(code, capsys.readouterr().err.splitlines())

    return call


def asked(site: Site) -> list[str]:
    """What changed hosts, in order, e.g. "drain h1"."""
    words = {"DrainHostRequest": "drain", "UndrainHostRequest": "undrain", "SetMaintenanceRequest": "maintenance"}
    found = [(words.get(type(each).__name__), each) for each in site.asked if each is not None]
    return [f"{word} {each.host}{f' {each.on}' if word == 'maintenance' else ''}" for word, each in found if word]


def test_hosts_are_rebooted_one_after_the_other(site: Site, reboot: Run) -> None:
    done = reboot("h1", "h2")
    assert done.code == 0
    assert asked(site) == [
        f"{what} {host}{how}"
        for host in ("h1", "h2")
        for what, how in (("drain", ""), ("maintenance", " True"), ("undrain", ""), ("maintenance", " False"))
    ]
    assert [host.record.boot_id for host in site.hosts] == ["b2", "b2", "b1"]
    assert not any(host.intent.maintenance or host.intent.HasField("drain") for host in site.hosts)
    told = [line for line in done.err if line.startswith("h1: ")]
    assert told[:2] == ["h1: drained", f"h1: touch {site.folder}/h1"]
    assert told[-1] == "h1: takes jobs again"
    assert "h1: is READY, 2 of 2 units are not proven clean yet" in told


def test_it_stops_at_a_host_that_comes_back_with_less(site: Site, reboot: Run) -> None:
    site.broken = "h1/u1"
    done = reboot("h1", "h2")
    assert done.code == 5
    assert done.err[-1].startswith("error: h1 is back with less than before: u1 QUARANTINED")
    assert f"--since {SINCE}" in done.err[-1]
    assert "gpupool maintenance off h1" in done.err[-1]
    assert site.hosts[0].intent.maintenance, "nobody is placed on a host that is not as it was"
    assert site.hosts[1].record.boot_id == "b1", "the next one was left alone"


def test_it_stops_at_a_host_that_does_not_come_back(site: Site, reboot: Run) -> None:
    site.dead = "h1"
    done = reboot("h1", "h2", "--back-within-s", "0.3")
    assert done.code == 124
    assert "h1 is not back within 0.3 s (is FENCED, not rebooted yet); it stays in maintenance" in done.err[-1]
    assert site.hosts[1].record.boot_id == "b1"


def test_run_again_it_skips_who_was_booted_and_takes_up_who_was_not_seen_back(site: Site, reboot: Run) -> None:
    for host in site.hosts[:2]:
        host.record.boot_id, host.record.boot_s = "b2", SINCE_S + 5
    site.hosts[1].intent.maintenance, site.hosts[1].intent.maintenance_reason = True, MARK
    done = reboot("h1", "h2", "h3")
    assert done.code == 0
    assert "h1: booted since, nothing to do" in done.err
    assert asked(site)[0] == "maintenance h2 False"
    assert sorted(path.name for path in site.folder.iterdir()) == ["h3"]


def test_interrupted_between_maintenance_and_boot_it_boots(site: Site, reboot: Run) -> None:
    site.hosts[0].intent.maintenance, site.hosts[0].intent.maintenance_reason = True, MARK
    assert reboot("h1").code == 0
    assert (site.hosts[0].record.boot_id, asked(site)) == ("b2", ["maintenance h1 False"])


def test_a_host_that_is_not_empty_in_time_is_not_rebooted(site: Site, reboot: Run) -> None:
    site.hosts[0].vms = 1
    done = reboot("h1", "h2", "--timeout-s", "0.2", "--grace-s", "9")
    assert done.code == 124
    assert "h1 is not drained in time (1 VM left, 0 stopping)" in done.err[-1]
    assert f"--since {SINCE} --grace-s 9 --timeout-s 0.2" in done.err[-1]
    assert not list(site.folder.iterdir())


def test_several_at_once(site: Site, reboot: Run) -> None:
    assert reboot("h1", "h2", "h3", "--at-once", "3").code == 0
    assert sorted(asked(site)[:3]) == ["drain h1", "drain h2", "drain h3"]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("maintenance", "new board", "h2 is in maintenance: new board (ann)"),
        ("drain", "fans", "h2 is being drained: fans (ann)"),
        ("state", "FENCING", "h2 is FENCING; mend it first"),
    ],
)
def test_other_peoples_work_is_left_alone(site: Site, reboot: Run, field: str, value: str, said: str) -> None:
    host = site.hosts[1]
    if field == "maintenance":
        host.intent.maintenance, host.intent.maintenance_reason, host.intent.maintenance_by = True, value, "ann"
    elif field == "drain":
        host.intent.drain.reason, host.intent.drain.by = value, "ann"
    else:
        host.record.state = records_pb2.HostState.Value(f"HOST_STATE_{value}")
    done = reboot("h1", "h2")
    assert done.code == 5
    assert said in done.err[-1]
    assert not asked(site), "not even the first host was touched"


def test_a_command_that_fails_may_still_have_rebooted(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"sh -c 'touch {site.folder}/{{host}}; echo connection lost; exit 255'"
    assert run(["reboot", "h1", "--command", line]) == 0
    err = capsys.readouterr().err
    assert "h1: connection lost\nh1: the command ended with 255\n" in err


def test_a_command_that_does_not_exist_reboots_nothing(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reboot", "h1", "--command", "no-such-program {host}"]) == 2
    assert "cannot run 'no-such-program'" in capsys.readouterr().err
    assert not asked(site), "nobody was drained for it"
    assert run(["reboot", "h1", "--command", "ssh 'h1"]) == 2
    assert run(["reboot", "h1", "--command", "true", "--since", "yesterday"]) == 2
