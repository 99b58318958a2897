"""Doctor finds what was planted: on hosts that are booted with a fault, and on those that run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from gpupool.client import AsyncClient
from gpupool.embedded.daemons import remove_tree
from gpupool.v1 import inventory_pb2
from lab.cluster import Cluster
from lab.host import Host
from lab.images import LAB, Images
from lab.machine import Machine, Slot, Switch, gpu, vga

TWINS = Machine(
    topology=(Slot(0, ((vga("vga0"),),)), Switch(1, ((gpu("gpu-switch0"),), (gpu("gpu-switch1"),)))),
    memory_mib=1536,
)
NOTE, WARNING, PROBLEM = "NOTE", "WARNING", "PROBLEM"
HAS_PROBLEMS = 11  # docs/doctor.md


@asynccontextmanager
async def booted(images: Images, **machines: Machine) -> AsyncIterator[Mapping[str, Host]]:
    """Hosts of their own, without agents, all at once."""
    folder = LAB / "run" / "doctor"
    remove_tree(folder)
    cluster = Cluster(folder, machines, images, print)
    try:
        await cluster.boot()
        yield cluster.hosts
    finally:
        await asyncio.gather(*(host.power_cut() for host in cluster.hosts.values()))


async def examine(host: Host, prelude: str = "") -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Exit code and findings by check of `gpupool doctor` in the host."""
    result = await host.run(f"{prelude} gpupool doctor --all -o json", check=False)
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(result.output)["findings"]:
        found.setdefault(finding["check"], []).append(finding)
    return result.code, found


def level(findings: list[dict[str, Any]]) -> str:
    """The only one's, without its prefix."""
    (finding,) = findings
    return str(finding["level"]).removeprefix("FINDING_LEVEL_")


async def test_what_a_host_was_booted_without(images: Images) -> None:
    async with booted(images, h3=TWINS.but(iommu="off"), h4=TWINS.but(acs=False)) as hosts:
        await asyncio.gather(nothing_is_handed_out(hosts["h3"]), groups_cannot_be_separated(hosts["h4"]))


async def nothing_is_handed_out(host: Host) -> None:
    """It has no IOMMU, and no hugepages."""
    code, found = await examine(host)
    assert code == HAS_PROBLEMS
    assert level(found["iommu"]) == PROBLEM
    assert "intel_iommu=off" in found["iommu"][0]["seen"]
    assert level(found["hugepages"]) == NOTE
    assert "none are set aside" in found["hugepages"][0]["seen"]
    assert "wait" in found["hugepages"][0]["risk"], "what it costs: who asks for hugepages does not start"
    assert any("doctor --fix --hugepages" in fix["steps"] for fix in found["hugepages"][0]["fixes"])
    assert any("grub" in fix["steps"] for fix in found["iommu"][0]["fixes"])


async def groups_cannot_be_separated(host: Host) -> None:
    """It has no ACS; then it has no locked memory for libvirt either."""
    _, found = await examine(host)
    assert level(found["iommu"]) == "OK"
    (finding,) = (one for one in found["iommu-groups"] if one["level"] != "FINDING_LEVEL_OK")
    address = await host.addresses()
    assert "ACS" in finding["seen"] + finding["risk"]
    assert {address["gpu-switch0"], address["gpu-switch1"]} & set(finding["units"])
    await host.run("pkill libvirtd; while pgrep -x libvirtd > /dev/null; do sleep 0.2; done")
    await host.run("prlimit --memlock=65536:65536 setpriv --bounding-set -sys_resource libvirtd -d")
    _, found = await examine(host)
    assert level(found["memlock"]) in (WARNING, PROBLEM), found["memlock"]


async def test_the_hosts_that_run(cluster: Cluster, client: AsyncClient) -> None:
    """Through the API. One has hugepages on one node, one has none; the watchdog is there; nothing keeps a unit out."""
    report = await client.doctor("h1")
    found = {finding.check: finding for finding in report.findings}
    assert found["iommu"].level == inventory_pb2.FINDING_LEVEL_OK
    assert found["interrupt-remapping"].level == inventory_pb2.FINDING_LEVEL_OK
    assert found["hugepages"].level == inventory_pb2.FINDING_LEVEL_WARNING, found["hugepages"]
    assert "i6300ESB" in found["watchdog"].seen
    assert not [finding for finding in report.findings if finding.level == inventory_pb2.FINDING_LEVEL_PROBLEM]
    (pages,) = [finding for finding in (await client.doctor("h2")).findings if finding.check == "hugepages"]
    assert (pages.level, pages.seen) == (inventory_pb2.FINDING_LEVEL_NOTE, "none are set aside")
