"""Devices that do not come back, go, or belong to somebody else: kept away from everybody, with the reason."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from gpupool.client import AsyncClient
from gpupool.v1 import job_pb2, records_pb2, scheduler_pb2
from lab.cluster import Cluster
from lab.host import Host
from lab.machine import plug
from tests.lab.jobs import ends, job, only, reaches, unit_is, units

FREE, QUARANTINED = records_pb2.UNIT_STATE_FREE, records_pb2.UNIT_STATE_QUARANTINED
VM_S = 120.0  # until QEMU runs
HANG_S = 200.0  # above the agents' --reset-timeout-s
PULLED = "gpu-pulled"
USERS_S = 120.0  # until the agent has looked for users of its devices again
FOREIGN = """<domain type='qemu'><name>somebody-else</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><hostdev mode='subsystem' type='pci' managed='no'>
<driver name='vfio'/><source><address domain='0x0000' bus='0x{0}' slot='0x{1}' function='0x{2}'/></source></hostdev>
<controller type='usb' model='none'/><memballoon model='none'/></devices></domain>"""


@asynccontextmanager
async def covered(host: Host, file: str, make: str) -> AsyncIterator[None]:
    """While this lasts, whoever opens `file` gets /run/lab-cover, as the shell command `make` makes it."""
    await host.run(f"rm -f /run/lab-cover; {make}; mount --bind /run/lab-cover {file}")
    try:
        yield
    finally:
        await host.run(f"umount {file}")


@asynccontextmanager
async def used_for_a_moment(cluster: Cluster, client: AsyncClient, host: str) -> AsyncIterator[str]:
    """A unit that a VM has now; that ends with the block, so that it is to be reclaimed."""
    async with only(client, host):
        job_id = (await client.submit(job("sleep 1000"))).id
        async with asyncio.timeout(VM_S):
            while (await cluster.hosts[host].run("pgrep -f guest=gpupool-", check=False)).code != 0:
                await asyncio.sleep(0.5)
        found = await client.get(job_id)
        yield found.status.attempts[-1].units[0]
        await client.cancel(job_id)
        await ends(client, job_id)


async def test_a_reset_that_hangs_is_quarantine_and_holds_up_nothing_else(
    cluster: Cluster, client: AsyncClient
) -> None:
    """A FIFO in place of the `reset` file: whoever opens it for writing waits for ever."""
    host = cluster.hosts["h1"]
    async with used_for_a_moment(cluster, client, "h1") as unit:
        cover = covered(host, f"/sys/bus/pci/devices/{unit}/reset", "mkfifo /run/lab-cover")
        await cover.__aenter__()
    try:
        await unit_is(client, "h1", unit, records_pb2.UNIT_STATE_RESETTING, within_s=60, held=True)
        async with used_for_a_moment(cluster, client, "h1") as other:
            assert other != unit
        await unit_is(client, "h1", other, FREE)
        view = await unit_is(client, "h1", unit, QUARANTINED, within_s=HANG_S)
        assert "hangs" in view.report.reason or "not done after" in view.report.reason, view.report.reason
        assert view.report.history.failures == 1
    finally:
        await host.run(f"timeout 5 cat /sys/bus/pci/devices/{unit}/reset", check=False)  # lets the hung write end
        await cover.__aexit__(None, None, None)
    await client.retry_unit("h1", unit, "the cover is off", by="lab")
    assert (await unit_is(client, "h1", unit, FREE)).report.proof.startswith("flr")


async def test_a_reset_that_is_refused_is_escalated_and_by_every_means_is_quarantine(
    cluster: Cluster, client: AsyncClient
) -> None:
    """/dev/full in place of all that resets the device or removes it: each write and call fails. Another unit serves.

    Then its own reset alone is refused: the next means is vfio-pci's reset of the bus.
    """
    host = cluster.hosts["h2"]
    async with AsyncExitStack() as own, AsyncExitStack() as others:
        async with used_for_a_moment(cluster, client, "h2") as unit:
            reset, *means = await ways_to_reset(host, unit)
            await own.enter_async_context(covered(host, reset, "mknod /run/lab-cover c 1 7"))
            for file in means:
                await others.enter_async_context(covered(host, file, "mknod /run/lab-cover c 1 7"))
            await others.enter_async_context(full_in_place_of_its_group(host, unit))
        view = await unit_is(client, "h2", unit, QUARANTINED)
        for failed in ("reset is refused", "vfio-hot-reset", "remove and rescan is refused"):
            assert failed in view.report.reason, view.report.reason
        assert view.report.history.last_failure == view.report.reason
        async with used_for_a_moment(cluster, client, "h2") as other:
            assert other != unit
        await unit_is(client, "h2", other, FREE)

        await others.aclose()
        await client.retry_unit("h2", unit, "its own reset alone is refused now", by="lab")
        view = await unit_is(client, "h2", unit, FREE)
        assert view.report.proof.startswith("vfio-hot-reset"), view.report.proof


async def ways_to_reset(host: Host, unit: str) -> list[str]:
    """Files of a unit of one function: its own reset, its removal, the bridge's reset."""
    device = await host.text(f"readlink -f /sys/bus/pci/devices/{unit}")
    bridge = f"{device.rpartition('/')[0]}/reset_subordinate"
    has_bridge = (await host.run(f"test -e {bridge}", check=False)).code == 0  # not before Linux 6.13
    return [f"{device}/reset", f"{device}/remove", *([bridge] if has_bridge else [])]


@asynccontextmanager
async def full_in_place_of_its_group(host: Host, unit: str) -> AsyncIterator[None]:
    """/dev/full under the name of its VFIO group, for the hot reset. Not mounted: libvirt moves mounts of /dev/vfio."""
    group = (await host.text(f"readlink /sys/bus/pci/devices/{unit}/iommu_group")).rpartition("/")[2]
    node = f"/dev/vfio/{group}"
    await host.run(f"mv {node} /dev/lab-away && mknod {node} c 1 7")
    try:
        yield
    finally:
        await host.run(f"mv /dev/lab-away {node}")


async def test_a_bar_that_was_moved_in_use_is_back(cluster: Cluster, client: AsyncClient) -> None:
    """vfio-pci restores what was there before the VM, and the proof compares it with first sight."""
    host = cluster.hosts["h2"]
    async with used_for_a_moment(cluster, client, "h2") as unit:
        before = await host.text(f"setpci -s {unit} BASE_ADDRESS_1")
        await host.run(f"setpci -s {unit} BASE_ADDRESS_1={int(before, 16) ^ 0x01000000:08x}")
    view = await unit_is(client, "h2", unit, FREE, within_s=HANG_S)
    assert "BARs" in view.report.proof
    assert await host.text(f"setpci -s {unit} BASE_ADDRESS_1") == before


async def test_a_device_that_another_vm_has_is_left_alone(cluster: Cluster, client: AsyncClient) -> None:
    """Somebody starts a VM of their own with a pooled GPU: it is offered to nobody, and proven before it is again."""
    host = cluster.hosts["h2"]
    unit = (await host.addresses())["gpu-far"]
    _, bus, rest = unit.split(":")
    await host.run(f"echo vfio-pci > /sys/bus/pci/devices/{unit}/driver_override")
    await host.put("/run/foreign.xml", FOREIGN.format(bus, *rest.split(".")).encode())
    await host.run("virsh create --paused /run/foreign.xml")
    try:
        view = await _view(client, "h2", unit, lambda view: bool(view.unit.unfit), USERS_S)
        assert "somebody-else" in view.unit.unfit
        async with only(client, "h2"):
            job_id = (await client.submit(job("true", gpus=2))).id
            explained = await client.explain(job_id)
            await client.cancel(job_id)
        told = {verdict.host: verdict for verdict in explained.hosts}["h2"]
        assert told.reason == scheduler_pb2.REASON_UNITS_UNFIT
        assert "somebody-else" in told.detail
        assert "somebody-else" in await host.text("virsh list --name"), "nobody touched it"
    finally:
        await host.run("virsh destroy somebody-else")
    view = await _view(client, "h2", unit, lambda view: not view.unit.unfit and view.state == FREE, USERS_S)
    assert view.report.proof


async def test_a_device_pulled_while_a_guest_has_it(cluster: Cluster, client: AsyncClient) -> None:
    """The slot's button is pressed. The job is told; the device is offered to nobody until it is back and proven."""
    host = cluster.hosts["h2"]
    pulled = (await host.addresses())[PULLED]
    model = host.machine.devices()[PULLED].model
    async with only(client, "h2"):
        job_id = (await client.submit(job("sleep 1000", model=model))).id
        await reaches(client, job_id, job_pb2.JOB_STATE_RUNNING)
    await host.unplug(PULLED)
    async with asyncio.timeout(USERS_S):
        while not (found := await client.get(job_id)).status.attempts[-1].warnings:
            await asyncio.sleep(0.5)
    assert any(pulled in warning for warning in found.status.attempts[-1].warnings)
    await client.cancel(job_id)
    await ends(client, job_id)
    await _view(client, "h2", pulled, lambda view: "not on this host" in view.unit.unfit, USERS_S)
    await host.qmp("device_add", **plug(host.machine, PULLED))
    view = await _view(client, "h2", pulled, lambda view: not view.unit.unfit, USERS_S)
    assert view.state == QUARANTINED, "it fell sick in use: an operator must have a look first"
    await client.retry_unit("h2", pulled, "plugged in again", by="lab")
    await unit_is(client, "h2", pulled, FREE)


async def _view(client: AsyncClient, host: str, unit: str, wanted: object, within_s: float) -> scheduler_pb2.UnitView:
    """The unit's view, once it is as wanted."""
    assert callable(wanted)
    async with asyncio.timeout(within_s):
        while True:
            view = (await units(client, host)).get(unit)
            if view is not None and wanted(view):
                return view
            await asyncio.sleep(0.5)
