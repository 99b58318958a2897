"""Demands of a job: what a spec means to placement, which are wrong, and what they do to the room kept for restarts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpupool.spec import load_spec
from gpupool.v1 import inventory_pb2, job_pb2, records_pb2
from scheduler.codec.decode_hosts import inventory_of
from scheduler.codec.decode_jobs import job_of, request_of
from scheduler.codec.decode_rules import rules_of
from scheduler.core.fitting.fit import Fit, fit
from scheduler.core.invariants import violations
from scheduler.core.place import Placer
from scheduler.core.reservation.domains import restartable
from scheduler.core.reservation.room import Take, occupy, standing, trial
from scheduler.core.state.company import Company
from scheduler.core.state.events import HostIntentChanged, InventoryChanged, JobSubmitted
from scheduler.core.state.facts import HostIntent
from scheduler.core.state.jobs import Attempt, Job, Outcome, Request
from scheduler.core.state.policy import Policy, ReservationPolicy
from scheduler.core.state.reasons import Reason, Refusal
from scheduler.core.state.rules import Rules, Within
from scheduler.core.step import step
from scheduler.submitting.validate import faults
from tests.fakes.pool import spec
from tests.unit.test_fit import cluster_of

TEXT = """
image: img
command: [x]
cpus: 1
memory_mib: 64
labels: {app: web, run: "7"}
gpus: {count: 2, models: [b, a], vendor: NVIDIA, driver: "550.*", within: pcie_root}
placement:
  hosts: {zone: a}
  not_hosts: {rack: "r*"}
  near: {app: db}
  apart: {app: web}
  whole_host: false
  max_failures_per_host: 2
"""


def test_what_a_file_says() -> None:
    asked = load_spec(TEXT)
    assert faults(asked) == []
    request = request_of(asked)
    assert request.model == ""
    assert request.rules == Rules(
        models=("a", "b"), vendor="nvidia", driver="550.*", within=Within.PCIE_ROOT, hosts=(("zone", "a"),),
        not_hosts=(("rack", "r*"),), near=(("app", "db"),), apart=(("app", "web"),), own=(("app", "web"),),
    )  # fmt: skip
    job = job_of("j", records_pb2.JobRecord(spec=asked), 1)
    assert (job.labels, job.max_failures_per_host) == ((("app", "web"), ("run", "7")), 2)


def test_labels_that_nobody_minds_make_no_shape_of_their_own() -> None:
    one, other = spec(), spec()
    one.labels["run"], other.labels["run"] = "1", "2"
    assert request_of(one) == request_of(other)
    assert rules_of(one) is None


def test_a_single_model_may_be_named_either_way() -> None:
    listed, named = spec(), spec()
    listed.gpus.models.append("a100")
    named.gpus.model = "a100"
    assert request_of(listed) == request_of(named)
    named.gpus.models.append("h100")
    assert request_of(named).rules == Rules(models=("a100", "h100"))


def test_whose_units_are_and_where_they_sit() -> None:
    gpu = inventory_pb2.PciFunction(address="u0", vendor_id=0x10DE, root_bus="0000:80")
    sound = inventory_pb2.PciFunction(address="u0.1", vendor_id=0x8086, root_bus="0000:00")
    odd = inventory_pb2.PciFunction(address="u1", vendor_id=0x1234)
    units = [inventory_pb2.Unit(id="u0", functions=[sound, gpu]), inventory_pb2.Unit(id="u1", functions=[odd])]
    found = inventory_of(inventory_pb2.Inventory(units=[*units, inventory_pb2.Unit(id="u2")])).units
    assert [(u.vendor, u.root) for u in found] == [("nvidia", "0000:80"), ("1234", ""), ("", "")]


def demanding(gpus: dict[str, Any] | None = None, numa: int = 0, **placement: Any) -> job_pb2.JobSpec:
    wrong = spec(gpus=1)
    wrong.gpus.MergeFrom(job_pb2.GpuRequest(**(gpus or {})))
    wrong.numa = numa  # type: ignore[assignment]
    wrong.placement.CopyFrom(job_pb2.Placement(**placement))
    return wrong


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (demanding({"models": [""]}), "gpus.models[0] ''"),
        (demanding({"models": ["x"] * 17}), "gpus.models has 17 names: at most 16"),
        (demanding({"vendor": "nvidea"}), "gpus.vendor 'nvidea': amd, intel, nvidia, or a PCI vendor id"),
        (demanding({"driver": "x\n"}), "gpus.driver 'x\\n'"),
        (demanding({"within": 9}), "gpus.within is 9"),
        (demanding({"within": 1}, numa=1), "gpus.within is any, but numa is required"),
        (demanding(hosts={"": "x"}), "placement.hosts '=x': a name and a value"),
        (demanding(near={"a": "x" * 200}), "placement.near 'a=xxx"),
        (demanding(apart={str(n): "" for n in range(17)}), "placement.apart has 17 labels: at most 16"),
        (demanding(hosts={"a": "b"}, not_hosts={"a": "b"}), "no host can have it both ways"),
        (demanding(near={"a": "b"}, apart={"a": "*"}), "placement.apart.a: placement.near wants such a job"),
        (demanding(near={"a": "b"}, whole_host=True), "placement.whole_host lets no other VM onto the host"),
        (demanding(max_failures_per_host=17), "placement.max_failures_per_host is 17"),
        (job_pb2.JobSpec(gpus=job_pb2.GpuRequest(vendor="amd")), "gpus.count is 0 but gpus has models, vendor"),
    ],
)
def test_what_is_wrong(wrong: job_pb2.JobSpec, fault: str) -> None:
    assert [found for found in faults(wrong) if fault in found]


def test_a_vendor_may_be_an_id() -> None:
    asked = demanding({"vendor": "0x10DE"})
    assert faults(asked) == []
    assert request_of(asked).rules == Rules(vendor="10de")


def test_room_for_restarts_minds_demands() -> None:
    host = cluster_of([(8, 1, 4096)], [("a", 0, True)] * 4).hosts["h1"]
    web = (("app", "web"),)
    apart = Request("img", 1, memory_mib=64, rules=Rules(apart=web, own=web))
    whole = Request("img", 1, memory_mib=64, rules=Rules(whole_host=True))
    plain = Request("img", 1, memory_mib=64)
    made = trial(host)
    takes = []
    for request in (apart, plain):
        found = fit(made, request)
        assert isinstance(found, Fit)
        takes.append(Take(request, "h1", found))
        occupy(made, takes[-1])
    assert not isinstance(fit(made, apart), Fit)
    assert not isinstance(fit(made, whole), Fit)
    assert standing(host, takes) == takes
    found = fit(host, whole)
    assert isinstance(found, Fit)
    alone = Take(whole, "h1", found)
    assert standing(host, [alone]) == [alone]
    other = Take(plain, "h1", takes[1].fit)
    assert standing(host, [other, alone]) != [other, alone], "not both"
    assert not host.allocations, "the host itself is as it was"
    assert not host.company.whole


def test_no_room_is_promised_to_who_must_be_near_others() -> None:
    assert restartable(Job("j", Request("img"), 1, 1.0))
    assert not restartable(Job("j", Request("img", rules=Rules(near=(("a", "b"),))), 1, 1.0))


def test_neighbours_that_must_not_be_are_an_invariant() -> None:
    cluster = cluster_of([(8, 1, 4096)], [("a", 0, True)] * 4)
    for n in range(2):
        step(cluster, JobSubmitted(Job(f"j{n}", Request("img", 1, memory_mib=64), n, 1.0)), 1.0)
    Placer().place(cluster, 2.0)
    assert not violations(cluster)
    cluster.allocations["j0.1"].whole_host = True
    assert violations(cluster) == ["host h1: j0.1 and j1.1 must not be there together"]


def test_a_host_counts_its_company_once_whatever_it_tells_again() -> None:
    cluster = cluster_of([(8, 1, 4096)], [("a", 0, True)] * 4)
    web = (("app", "web"),)
    apart = Request("img", 1, memory_mib=64, rules=Rules(apart=web, own=web))
    step(cluster, JobSubmitted(Job("j", apart, 1, 1.0, labels=web)), 1.0)
    Placer().place(cluster, 2.0)
    host = cluster.hosts["h1"]
    assert host.inventory is not None
    step(cluster, InventoryChanged("h1", replace(host.inventory, labels=(("zone", "a"),))), 3.0)
    assert (dict(host.company.labels), dict(host.company.shunned)) == ({web[0]: 1}, {web[0]: 1})
    cluster.release(cluster.allocations["j.1"])
    assert (host.company, cluster.company) == (Company(), Company())


def test_others_of_a_shape_do_not_wait_for_one_with_a_history() -> None:
    cluster, placer = cluster_of([(8, 1, 4096)], [("a", 0, True)] * 4), Placer()
    shape = Request("img", 1, memory_mib=64)
    failed = Job("a", shape, 1, 1.0, max_failures_per_host=1, attempt_count=1)
    failed.attempts.append(Attempt(1, "h1", (), 1.0, outcome=Outcome.CRASHED))
    for job in (failed, Job("b", shape, 2, 1.0)):
        step(cluster, JobSubmitted(job), 1.0)
    placer.place(cluster, 2.0)
    assert sorted(cluster.allocations) == ["b.1"]
    assert list(cluster.pending) == ["a"]


@pytest.mark.parametrize("within", [Within.PCIE_ROOT, Within.NUMA_NODE])
def test_units_of_which_nobody_knows_where_they_sit_are_not_near(within: Within) -> None:
    cluster = cluster_of([(8, 1, 4096), (8, 1, 4096)], [("a", -1, True), ("a", -1, True)])
    found = fit(cluster.hosts["h1"], Request("img", 2, memory_mib=64, rules=Rules(within=within)))
    assert isinstance(found, Refusal)
    assert found.reason is Reason.UNITS_SCATTERED
    assert "it has 0 there at most; of 2 nobody knows where they sit" in found.detail


def test_room_that_is_kept_from_one_with_a_history_is_not_kept_from_others_elsewhere() -> None:
    cluster = cluster_of([(8, 1, 4096)], [("a", 0, True)] * 5, ("h1", "h2"))
    shape = Request("img", 1, memory_mib=64)
    for name, count, other in (("h1", 3, "h2"), ("h2", 1, "h1"), ("h2", 1, "h1")):
        step(cluster, HostIntentChanged(other, HostIntent(cordoned=True)), 1.0)
        for n in range(count):
            restarts = 0 if len(cluster.jobs) == 4 else 10
            step(cluster, JobSubmitted(Job(f"{name}-{len(cluster.jobs)}", shape, n, 1.0, max_restarts=restarts)), 1.0)
        Placer().place(cluster, 2.0)
        step(cluster, HostIntentChanged(other, HostIntent()), 1.0)
    assert len(cluster.allocations) == 5
    cluster.take_dirty()
    cluster.policy = Policy(reservation=ReservationPolicy(hosts=1))
    failed = Job("a", shape, 1, 1.0, max_restarts=0, max_failures_per_host=1, attempt_count=1)
    failed.attempts.append(Attempt(1, "h1", (), 1.0, outcome=Outcome.START_FAILED))
    for job in (failed, Job("b", shape, 2, 1.0, max_restarts=0)):
        step(cluster, JobSubmitted(job), 3.0)
    Placer().place(cluster, 4.0)
    assert [a for a in sorted(cluster.allocations) if "-" not in a] == ["b.1"]
    assert cluster.allocations["b.1"].host == "h1"
