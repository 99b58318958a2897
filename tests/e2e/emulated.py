"""libvirt on a machine without the devices, NUMA nodes and rights that a real domain asks for.

The domain is started as the agent made it, but for this: each passed function is an emulated one in the same place,
host nodes and CPUs are the ones that any machine has, and memory is not locked.
"""

from __future__ import annotations

from xml.etree import ElementTree as ET

from agent.vms.hypervisor import Libvirt


class EmulatedDevices(Libvirt):
    """A hypervisor that has every device."""

    def create_paused(self, xml: str) -> None:
        super().create_paused(emulated(xml))


def emulated(xml: str) -> str:
    domain = ET.fromstring(xml)
    devices = domain.find("devices")
    assert devices is not None
    for hostdev in devices.findall("hostdev"):
        place = hostdev.find("address")
        assert place is not None
        device = ET.SubElement(devices, "rng", model="virtio")
        ET.SubElement(device, "backend", model="random").text = "/dev/urandom"
        device.append(place)
        devices.remove(hostdev)
    for element in domain.iter():
        for attribute in {"nodeset", "cpuset"} & set(element.attrib):
            element.set(attribute, "0")
    for parent, tag in (("memoryBacking", "locked"), (".", "memtune")):
        above = domain.find(parent)
        below = None if above is None else above.find(tag)
        if above is not None and below is not None:
            above.remove(below)
    return ET.tostring(domain, encoding="unicode")
