"""A guest of shapes that no other job of the lab has: UEFI, a hidden hypervisor, a vendor id of its own, a seed disk.

Its disk has nothing to boot, so it costs no guest's boot: what counts is that libvirt and QEMU take the domain with a
real device in it, and that the firmware finds its way through the PCI tree.
"""

from __future__ import annotations

import asyncio
import json

from agent.domain.fat import fat_image
from gpupool.client import AsyncClient
from gpupool.v1 import job_pb2
from lab.host import Host
from tests.lab.jobs import ends, job, only

IMAGES = "/var/lib/gpupool/images"
UEFI = "uefi"
VENDOR = "gpupool-lab"
FIRMWARE_S = 150.0  # for the VM to be made and its firmware to speak; the start time-out of the agents
KNOWN_S = 60.0  # until the scheduler knows of a new image
# In the domain as libvirt has it. TCG knows no hypervisor to hide.
MARKS = ("pflash", "iothread=", "<hostdev ", "gpupool-seed")
KVM_MARKS = ("<hidden state='on'/>", VENDOR)


async def bring_uefi_image(host: Host, client: AsyncClient) -> None:
    """Put an image that boots by UEFI beside those that the host has, in a layer above their read-only disk."""
    layer = "/run/more-images"
    mount = f"mount -t overlay more -o lowerdir={IMAGES},upperdir={layer}/up,workdir={layer}/work {IMAGES}"
    # A test that is run again finds it mounted, if its host was not booted anew.
    await host.run(f"mkdir -p {layer}/up {layer}/work; findmnt -t overlay {IMAGES} || {mount}")
    await host.put(f"{IMAGES}/{UEFI}/disk.img", fat_image("LAB", {"startup.nsh": b"reset -s\r\n"}))
    manifest = {"boot": "uefi", "disk": {"file": "disk.img", "format": "raw"}}
    await host.put(f"{IMAGES}/{UEFI}/manifest.json", json.dumps(manifest).encode())
    async with asyncio.timeout(KNOWN_S):
        while UEFI not in {
            i for found in await client.hosts() if found.name == host.name for i in found.inventory.images
        }:
            await asyncio.sleep(0.5)


async def start_odd_guest(host: Host, client: AsyncClient) -> str:
    """Start one until its firmware speaks, and end it; the unit that it had."""
    options = job_pb2.VmOptions(hide_hypervisor=True, hypervisor_vendor_id=VENDOR, user_data="#cloud-config\n")
    async with only(client, host.name):
        job_id = (await client.submit(job("true", image=UEFI, memory_mib=256, vm=options))).id
        guest = f"{job_id}.1"
        spoken = f"grep -q BdsDxe /run/gpupool/guests/{guest}/console"
        try:
            async with asyncio.timeout(FIRMWARE_S):
                while (await host.run(spoken, check=False)).code != 0:
                    await asyncio.sleep(1.0)
        except TimeoutError:
            raise AssertionError(f"its firmware does not speak: {(await client.get(job_id)).status}") from None
        domain = await host.text(f"virsh dumpxml gpupool-{guest}")
        marks = (*MARKS, *(KVM_MARKS if "type='kvm'" in domain else ()))
        assert not [mark for mark in marks if mark not in domain], domain
        await client.cancel(job_id)
        ended = await ends(client, job_id)
    return ended.status.attempts[-1].units[0]
