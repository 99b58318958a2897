"""How a VM reaches a network. Pure."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from .element import add

KINDS = ("", "user", "bridge", "macvtap")


def check_network(kind: str, source: str) -> None:
    """Raises ValueError for what no interface can be made of."""
    if kind not in KINDS:
        raise ValueError(f"network {kind!r}; there are {', '.join(filter(None, KINDS))}")
    if kind in ("bridge", "macvtap") and not source:
        raise ValueError(f"network {kind} needs a source: the host's {'bridge' if kind == 'bridge' else 'interface'}")


def network_xml(devices: ET.Element, kind: str, source: str) -> None:
    """One virtio interface, or none for the kind ""."""
    match kind:
        case "user":
            interface = add(devices, "interface", type="user")
        case "bridge":
            interface = add(devices, "interface", type="bridge")
            add(interface, "source", bridge=source)
        case "macvtap":
            interface = add(devices, "interface", type="direct")
            add(interface, "source", dev=source, mode="bridge")
        case _:
            return
    add(interface, "model", type="virtio")
