"""Which machine this is; and that another one under its name proves nothing of it, nor takes its session away."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.declare import KEPT
from agent.machine import DMI, INSTALLED, machine_id
from agent.timing import Identity, why_not_replace
from gpupool.cli import planned_views
from gpupool.store import keys
from gpupool.v1 import records_pb2, scheduler_pb2
from scheduler.codec import encode
from scheduler.codec.decode import restore_host
from scheduler.core.failover.power import told
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.hosts import Host
from scheduler.core.state.losses import Evidence
from scheduler.core.state.tables import HostState
from scheduler.load import load
from tests.fakes.agent_rig import HOST, Rig
from tests.fakes.virtual_time import until, virtual_time
from tests.fakes.vms import Guest

UUID, INSTALLATION = "4c4c4544-0042-3510-8051-b7c04f4d3532", "3d1219c7c4c5404aaa1f6d2a48adfda4"


def write(root: Path, file: Path, text: str) -> None:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(text)


def test_the_firmware_tells_first_and_the_installation_next(tmp_path: Path) -> None:
    assert machine_id(tmp_path) == ""
    write(tmp_path, INSTALLED, f"{INSTALLATION}\n")
    installed = machine_id(tmp_path)
    write(tmp_path, DMI, f"{UUID.upper()}\n")
    firmware = machine_id(tmp_path)
    assert len({installed, firmware, ""}) == 3
    write(tmp_path, INSTALLED, "installed anew")
    assert machine_id(tmp_path) == firmware
    assert UUID not in firmware


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Not Settable",
        "uninitialized",
        "00000000-0000-0000-0000-000000000000",
        "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
        "03000200-0400-0500-0006-000700080009",
        "4c4c4544-0042-3510-8051",
        "\x00",
    ],
)
def test_what_cannot_tell_machines_apart_is_unknown(tmp_path: Path, text: str) -> None:
    write(tmp_path, DMI, text)
    write(tmp_path, INSTALLED, text)
    assert machine_id(tmp_path) == ""


def test_simulated_hosts_have_ids_of_their_own_that_stay(tmp_path: Path) -> None:
    assert machine_id(tmp_path, tmp_path / "sim1") == ""  # of an unknown machine
    write(tmp_path, INSTALLED, INSTALLATION)
    one, other = machine_id(tmp_path, tmp_path / "sim1"), machine_id(tmp_path, tmp_path / "sim2")
    assert len({one, other, machine_id(tmp_path), ""}) == 4
    (tmp_path / "sim1").mkdir()
    assert machine_id(tmp_path, tmp_path / "sim2" / ".." / "sim1") == one


@pytest.mark.parametrize(
    ("old", "mine", "expected"),
    [("m1", "m1", ""), ("", "", ""), ("m2", "m1", "is of machine m2"), ("", "m1", "(unknown"), ("m1", "", "(unknown")],
)
def test_who_may_be_replaced(old: str, mine: str, expected: str) -> None:
    me = Identity(HOST, "boot-2", "10.0.0.1:50152", "test", machine=mine)
    session = records_pb2.Session(boot_id="boot-1", address="10.0.0.1:40000", machine=old)
    reason = why_not_replace(session, me, had_session=False)
    assert (expected in reason) if expected else not reason


@virtual_time
async def test_another_machine_at_the_same_address_ends_no_live_session(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    first = await rig.ready()
    rig.vms.default = Guest(run_s=None)
    rig.allocate()
    await rig.running()
    other = Rig(backend=rig.backend, boot_id="boot-x", machine="m2")
    waiting = asyncio.create_task(other.boot())
    await asyncio.sleep(40)
    assert (rig.session, waiting.done()) == (first, False)
    assert rig.vms.vms["j1.1"].alive
    assert len([text for text in caplog.messages if "is of machine m1, and this is machine m2" in text]) == 1
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await other.kill_agent()
    await rig.close()


def led(rig: Rig) -> Host:
    """The host as a new leader sees it; what it commits is stored."""
    cluster = Cluster()
    load(cluster, rig.backend.list("/").items, 100.0)
    host = cluster.hosts[HOST]
    rig.put(keys.host(HOST), encode.host_record(host))
    return host


async def followed(machine: str, boot_id: str = "boot-x") -> tuple[Rig, Host]:
    """A VM is kept alive on a host that is cut off; then an agent of that machine gets a session of its name."""
    rig = Rig(unguarded=KEPT)
    await rig.ready()
    rig.vms.default = Guest(run_s=None)
    rig.allocate()
    await rig.running()
    assert led(rig).state is HostState.READY
    rig.store.away = True
    other = Rig(backend=rig.backend, boot_id=boot_id, address="10.0.0.9:50152", machine=machine)
    await other.ready()
    assert rig.vms.vms["j1.1"].alive
    host = led(rig)
    await other.kill_agent()
    await rig.kill_agent()
    return rig, host


@virtual_time
async def test_another_machine_with_a_session_proves_nothing_of_the_first(caplog: pytest.LogCaptureFixture) -> None:
    """From two agents to a leader, through what they write: what one runs that was cut off is not run again."""
    rig, host = await followed("m2")
    assert (host.state, host.last_fence, host.allocations) == (HostState.FENCING, None, {"j1.1"})
    (said,) = {text for text in caplog.messages if "the last session of host 'h1'" in text}
    assert "machine m1 at 10.0.0.1:50152, and this is machine m2" in said
    assert "confirm-dead h1" in said
    why = told(Cluster(), host, 100.0)
    assert "of machine m1 (boot boot-1)" in why
    assert "of machine m2 (boot boot-x)" in why
    rig.backend.revoke(_lease(rig))  # the second one goes; that says no more of the first
    assert led(rig).state is HostState.FENCING


@virtual_time
async def test_the_same_machine_on_another_boot_proves_it(caplog: pytest.LogCaptureFixture) -> None:
    _, host = await followed("m1")
    assert host.last_fence is not None
    assert host.last_fence.evidence is Evidence.OTHER_BOOT
    assert "the last session of host" not in caplog.text


@virtual_time
async def test_an_agent_that_does_not_know_its_machine_proves_nothing_of_one_that_did() -> None:
    _, host = await followed("")
    assert host.state is HostState.FENCING


def _lease(rig: Rig) -> int:
    kv = rig.backend.get(keys.session(HOST))
    assert kv is not None
    return kv.lease


@virtual_time
async def test_an_agent_that_is_upgraded_in_place_tells_its_machine_of_its_old_session() -> None:
    """Restarted on the same boot it resumes: so the next boot is known to be of the same machine."""
    rig = Rig(machine="")
    session = await rig.ready()
    assert led(rig).machine == ""
    await rig.kill_agent()
    rig.machine = "m1"
    assert await rig.boot() == session
    await until(lambda: rig.session_record().machine == "m1")
    assert led(rig).machine == "m1"
    await rig.close()


def test_the_host_shows_both_machines_while_another_holds_its_name() -> None:
    record, session = records_pb2.HostRecord(session=7, machine="m1"), records_pb2.Session(machine="m2", address="a:1")
    assert (
        planned_views.machine(scheduler_pb2.Host(record=record, session=session)) == "m1; its name is held by m2 at a:1"
    )
    session.machine = "m1"
    assert planned_views.machine(scheduler_pb2.Host(record=record, session=session)) == "m1"
    assert planned_views.machine(scheduler_pb2.Host(record=record)) == "m1"


def test_the_machine_stays_on_record() -> None:
    host = Host("h1")
    restore_host(host, encode.host_record(Host("h1", machine="m1")))
    assert host.machine == "m1"
