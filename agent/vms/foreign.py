"""PCI functions that a domain owns, read from its XML. Pure."""

from __future__ import annotations

from xml.etree import ElementTree as ET

_PLACES = ("./devices/hostdev[@type='pci']/source/address", "./devices/interface[@type='hostdev']/source/address")
_NVME = "./devices/disk[@type='nvme']/source/address"


def passed_addresses(xml: str) -> list[str]:
    """Canonical addresses, sorted; empty for text that is no domain."""
    try:
        domain = ET.fromstring(xml)  # noqa: S314 - libvirt's own, and it never has entities
    except ET.ParseError:
        return []
    found = (_address(element) for place in (*_PLACES, _NVME) for element in domain.findall(place))
    return sorted({address for address in found if address})


def _address(element: ET.Element) -> str:
    try:
        domain, bus, slot, function = (int(element.get(part, "0"), 0) for part in ("domain", "bus", "slot", "function"))
    except ValueError:
        return ""
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"
