"""Whose fence device it is: what an older record, a lost session or another file may not teach, and what is shown."""

from __future__ import annotations

import pytest

from gpupool.cli import failover_views
from gpupool.store import keys
from gpupool.store.port import KeyValue
from gpupool.v1 import records_pb2, scheduler_pb2
from scheduler.api.cluster_dump import ClusterDump
from scheduler.api.provable import not_its_own as told_of_record
from scheduler.codec import encode
from scheduler.codec.decode import restore_host
from scheduler.core.failover.devices import not_its_own
from scheduler.core.failover.fence import lost_unseen
from scheduler.core.failover.power import power_owed, seen_off
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.events import SessionChanged
from scheduler.core.state.facts import GuardKind, SessionFact
from scheduler.core.state.hosts import Host
from scheduler.core.state.losses import DeviceOf, PowerFencing
from scheduler.core.state.policy import Device, Policy
from scheduler.core.state.tables import HostState
from scheduler.core.step import step
from scheduler.fencing.agents import FenceProgram
from scheduler.fencing.redfish import Redfish
from scheduler.fencing.secret import Secret
from scheduler.policy_told import differences, told

BMC = Policy(powered={"h1": Device("bmc1")})


def session(number: int, machine: str, boot: str = "") -> SessionFact:
    return SessionFact(number, boot or f"boot {number}", GuardKind.NONE, False, True, machine=machine)


def seen(cluster: Cluster, *facts: SessionFact | None) -> Host:
    for at_s, fact in enumerate(facts):
        step(cluster, SessionChanged("h1", fact), float(at_s))
    return cluster.hosts["h1"]


def older(cluster: Cluster, state: HostState, machine: str, number: int = 1) -> Host:
    """A host whose record a version wrote that knew nothing of whose a device is."""
    host = cluster.host("h1")
    host.state, host.session, host.boot_id, host.machine = state, number, f"boot {number}", machine
    cluster.note_alive(host)
    return host


def test_it_is_of_the_first_machine_that_lives_there() -> None:
    cluster = Cluster(policy=BMC)
    assert seen(cluster, session(1, "m1")).devices == (DeviceOf("bmc1", "m1"),)
    assert not not_its_own(cluster, cluster.hosts["h1"])
    host = seen(cluster, None, session(2, "m2"))  # nothing ran
    assert (host.machine, host.devices) == ("m2", (DeviceOf("bmc1", "m1"),))
    assert not_its_own(cluster, host) == (
        "the fence device of h1 is of machine m1 (the first that was seen), session 2 is of machine m2: if it is "
        'of m2, write machine: "m2" at h1 in the power file, restart the schedulers'
    )


def test_an_older_record_of_a_host_that_lives_teaches_whose_it_is() -> None:
    cluster = Cluster(policy=BMC)
    older(cluster, HostState.READY, "m1")
    assert seen(cluster, session(1, "m1")).devices == (DeviceOf("bmc1", "m1"),)
    assert cluster.dirty.hosts == {"h1"}


def test_an_older_record_of_a_lost_host_teaches_nothing() -> None:
    cluster = Cluster(policy=BMC)
    host = older(cluster, HostState.FENCING, "m1")
    host.allocations.add("j1.1")
    step(cluster, SessionChanged("h2", session(9, "m9")), 0.0)
    seen(cluster, session(1, "m1"), None)
    assert host.devices == ()
    assert not power_owed(cluster, 100.0)
    assert not_its_own(cluster, host).startswith("nobody knows of which machine the fence device of h1 is, session 1")
    cluster.policy = Policy(powered={"h1": Device("bmc1", "m1")})  # the operator's word is enough
    host.fact = None
    assert [effect.host for effect in power_owed(cluster, 100.0)] == ["h1"]


def test_an_older_record_of_a_host_that_died_unseen_teaches_nothing() -> None:
    cluster = Cluster(policy=BMC)
    host = older(cluster, HostState.READY, "m1")
    host.allocations.add("j1.1")
    lost_unseen(cluster, host, None, 1.0)
    assert (host.state, host.devices) == (HostState.FENCING, ())


def test_where_an_older_version_led_it_is_of_the_predecessor() -> None:
    cluster = Cluster(policy=BMC)
    older(cluster, HostState.READY, "m1")
    host = seen(cluster, session(2, "m2"))  # followed by another while no leader of this version looked
    assert (host.state, host.machine) == (HostState.JOINING, "m2")
    assert host.devices == (DeviceOf("bmc1", "m1"),)
    assert not_its_own(cluster, host)


def test_a_new_device_is_learnt_and_no_other_forgotten() -> None:
    cluster = Cluster(policy=BMC)
    seen(cluster, session(1, "m1"), None, session(2, "m2"))
    cluster.policy = Policy(powered={"h1": Device("bmc2")})
    host = seen(cluster, session(2, "m2", boot="boot 2"), None, session(3, "m2"))
    assert host.devices == (DeviceOf("bmc1", "m1"), DeviceOf("bmc2", "m2"))
    for number in range(20):  # somebody's files differ again and again
        cluster.policy = Policy(powered={"h1": Device(f"x{number}")})
        seen(cluster, None, session(10 + number, "m2"))
    assert len(host.devices) == 8


def test_what_the_file_says_goes_before_what_was_learnt() -> None:
    cluster = Cluster(policy=BMC)
    seen(cluster, session(1, "m1"))
    cluster.policy = Policy(powered={"h1": Device("bmc1", "m2")})
    host = cluster.hosts["h1"]
    assert "of machine m2 (the power file says so), session 1 is of machine m1" in not_its_own(cluster, host)
    seen(cluster, None, session(2, "m2"))
    cluster.policy = BMC
    assert (host.devices, not_its_own(cluster, host)) == ((DeviceOf("bmc1", "m2"),), "")


@pytest.mark.parametrize(("first", "then", "its_own"), [("", "", True), ("", "m1", False), ("m1", "", False)])
def test_machines_without_an_id(first: str, then: str, its_own: bool) -> None:
    cluster = Cluster(policy=BMC)
    host = seen(cluster, session(1, first), None, session(2, then))
    assert (not not_its_own(cluster, host)) == its_own


def test_a_session_that_tells_its_machine_later_takes_the_device_along() -> None:
    cluster = Cluster(policy=BMC)
    host = seen(cluster, session(1, ""), session(1, "m1"))
    assert host.devices == (DeviceOf("bmc1", "m1"),)


def test_it_stays_on_record() -> None:
    before, host = Host("h1", devices=(DeviceOf("a", "m1"), DeviceOf("b", ""))), Host("h1")
    before.power = PowerFencing("sim", 3, 1, 5.0, 10.0, machine="m1")
    restore_host(host, encode.host_record(before))
    assert (host.devices, host.power) == (before.devices, before.power)


def test_a_power_off_that_an_older_version_saw_is_seen_again() -> None:
    host = Host("h1", state=HostState.FENCING, session=3, machine="m1")
    host.power = PowerFencing("sim", 3, 1, 5.0, 10.0)  # it did not say of which machine
    assert not seen_off(host)
    host.power = PowerFencing("sim", 3, 1, 5.0, 10.0, machine="m1")
    assert seen_off(host)


def test_replicas_whose_files_have_other_devices_say_so() -> None:
    leader = records_pb2.Leader(id="s1", policy=told(BMC))
    for other in (Device("bmc2"), Device("bmc1", "m1")):
        (line,) = differences(Policy(powered={"h1": other}), "s2", leader)
        assert line.startswith("devices and machines in the power file is ")
    assert not differences(BMC, "s2", leader)


def test_what_status_and_the_host_say() -> None:
    live, lost = records_pb2.HOST_STATE_READY, records_pb2.HOST_STATE_FENCING
    record = records_pb2.HostRecord(state=live, session=4, machine="m2")
    assert told_of_record("h1", record, BMC) == ""  # a leader will soon have learnt it
    record.state = lost
    assert told_of_record("h1", record, BMC).startswith("nobody knows")
    record.fence_devices.add(mark="bmc1", machine="m1")
    for record.state in (live, lost):
        assert "of machine m1 (the first that was seen)" in told_of_record("h1", record, BMC)
    assert told_of_record("h2", record, BMC) == ""
    shown = scheduler_pb2.Host(name="h1", record=record, power_not_its_own="it is of another machine")
    assert failover_views.power(shown, 0.0) == "not used, as it is of another machine"


class _Stored:
    revision = 1

    def __init__(self, record: records_pb2.HostRecord) -> None:
        self._record = record

    def stored(self) -> dict[str, KeyValue]:
        key = keys.host("h1")
        return {key: KeyValue(key, self._record.SerializeToString(), 1, 1)}


async def test_a_dump_has_no_marks() -> None:
    """From a mark of 12 digits an address could be guessed: there are not many."""
    record = records_pb2.HostRecord(session=4, machine="m2")
    record.fence_devices.add(mark="bmc0", machine="m0")
    record.fence_devices.add(mark="bmc1", machine="m1")
    policy = Policy(powered={"h1": Device("bmc1", "m3"), "h2": Device("bmc9")})
    parts = [part async for part in ClusterDump(_Stored(record), policy, "1", lambda: 1.0).parts()]
    assert (list(parts[0].head.powered), dict(parts[0].head.machines)) == (["h1", "h2"], {"h1": "m3"})
    (found,) = [stored for part in parts for stored in part.records]
    kept = records_pb2.HostRecord.FromString(found.value).fence_devices
    assert [(each.mark, each.machine) for each in kept] == [("", "m1")]


def redfish(address: str, **more: str) -> str:
    return Redfish(address=address, username=more.pop("username", "u"), secret=Secret(), **more).mark  # type: ignore[arg-type]


def program(**parameters: str) -> str:
    return FenceProgram("fence_x", "/x", parameters).mark


def test_another_address_is_another_device_and_another_user_is_not() -> None:
    one = redfish("https://Gpu1-BMC.example.net/")
    assert one == redfish("https://gpu1-bmc.example.net", username="v")
    assert len({one, redfish("https://gpu2-bmc.example.net"), redfish("https://gpu1-bmc.example.net:444")}) == 3
    assert redfish("https://a", system="/redfish/v1/Systems/1") != redfish("https://a", system="/redfish/v1/Systems/2")
    assert program(ip="a", username="u", lanplus="1") == program(ip="a", username="v")
    assert len({program(ip="a"), program(ip="b"), program(ip="a", plug="1"), program(ip="a", plug="2")}) == 4
    assert program(**{"systems-uri": "x"}) == program(systems_uri="x")
