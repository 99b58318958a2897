"""The units themselves: what is offered, resets, the boot display, NUMA locality."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gpupool.v1 import inventory_pb2

from .facts import Facts, gpus_of
from .model import NOTE, PROBLEM, WARNING, Advice, Found, ok

UNITS, RESET, BOOT_VGA, NUMA = "units", "reset", "boot-vga", "numa"
BUS_METHODS = frozenset({"bus", "cxl_bus"})
# Names under which the kernel's early framebuffers hold a window (drivers/firmware/sysfb.c, drivers/video/fbdev).
_FRAMEBUFFER = re.compile(r"^\s+[0-9a-f]+-[0-9a-f]+ : (BOOTFB|efifb|vesafb|simplefb|simple-framebuffer)$", re.MULTILINE)
_RESOURCE = re.compile(r"^(\s+)[0-9a-f]+-[0-9a-f]+ : (.+)$")


def offered(facts: Facts) -> Iterator[Found]:
    """How many units there are, and which the inventory keeps out."""
    if not facts.units:
        yield Found(
            UNITS,
            WARNING,
            "no GPU was found on this host",
            "The host offers nothing, and only jobs without GPUs run here.",
            Advice(
                any="`lspci -nn` must list the cards. If it does not: seat, power, and the slot's setting in the "
                "firmware."
            ),
        )
        return
    yield ok(UNITS, f"{len(facts.units)}: {', '.join(sorted({unit.model for unit in facts.units}))}")
    for unit in facts.units:
        if unit.unfit:
            yield Found(
                UNITS,
                NOTE,
                f"{unit.id} is not offered: {unit.unfit}",
                "Jobs wait although the GPU is there.",
                units=(unit.id,),
            )


def resets(facts: Facts) -> Iterator[Found]:
    """Whether each GPU can be reset between tenants, and without its neighbours."""
    shared = []
    bare = []
    for unit in facts.units:
        for function in gpus_of(unit):
            own = set(function.reset_methods) - BUS_METHODS
            if not own and (function.reset_methods or _bridge_resets(facts, function)):
                shared.append(unit.id)
            elif not own:
                bare.append(unit.id)
    if bare:
        yield Found(
            RESET,
            PROBLEM,
            f"no way to reset {', '.join(_unique(bare))}",
            "What a job left in the GPU, data and faults, would meet the next one.",
            Advice(
                any="Update the card's firmware and the kernel (some models have resets of their own there); behind a "
                "slot\n"
                "of its own a bus reset may serve. `cat /sys/bus/pci/devices/ADDRESS/reset_method` lists what there "
                "is."
            ),
            units=_unique(bare),
        )
    if shared:
        yield Found(
            RESET,
            NOTE,
            f"only a bus reset cleans {', '.join(_unique(shared))}",
            "All functions behind the same bridge are reset together; the units are made so that they belong together.",
            units=_unique(shared),
        )
    if not bare and not shared:
        yield ok(RESET, "each GPU has a reset of its own" if facts.units else "no units")


def boot_vga(facts: Facts) -> Iterator[Found]:
    """Units that show the host's own console."""
    found = False
    framebuffers = framebuffer_holders(facts.long("proc/iomem"))
    for unit in facts.units:
        vga = [f.address for f in unit.functions if f.boot_vga]
        held = [(f.address, framebuffers[f.address]) for f in unit.functions if f.address in framebuffers]
        if vga or held:
            found = True
            seen = [f"{address} is the boot VGA" for address in vga]
            seen += [f"the early console ({name}) draws on {address}" for address, name in held]
            yield Found(
                BOOT_VGA,
                WARNING,
                "; ".join(seen),
                "The host's console goes dark when the GPU is handed out, and the kernel may hold its memory (\"BAR "
                "can't be "
                'reserved"), so that the VM does not start. A boot VGA is not offered.',
                Advice(
                    any="Choose another primary display (the server's management display) in the firmware's set-up, "
                    "or start the\n"
                    "kernel with video=efifb:off (older ones) or initcall_blacklist=sysfb_init (newer ones)."
                ),
                units=(unit.id,),
                reboot=True,
            )
    if not found:
        yield ok(BOOT_VGA, "no unit shows the host's console" if facts.units else "no units")


def numa(facts: Facts) -> Iterator[Found]:
    """Whether it is known which CPUs and memory are near each GPU."""
    lost = [unit.id for unit in facts.units if unit.numa_node < 0]
    nodes = len(facts.inventory.numa_nodes)
    if lost and nodes > 1:
        yield Found(
            NUMA,
            WARNING,
            f"the NUMA node of {', '.join(lost)} is not known; the host has {nodes}",
            "Jobs that require locality never get them; others may run with CPUs and memory of the far socket, with "
            "every transfer over the link between sockets.",
            Advice(
                any="Update the firmware: it has to name the node of each PCI root (ACPI _PXM). Sub-NUMA clustering "
                "(SNC, NPS)\n"
                "off may help too."
            ),
            units=tuple(lost),
            reboot=True,
        )
    else:
        yield ok(NUMA, f"{nodes} NUMA nodes, every unit's is known" if nodes > 1 else "one NUMA node")


def framebuffer_holders(iomem: str) -> dict[str, str]:
    """PCI functions, as /proc/iomem names them, inside whose windows an early framebuffer sits; with its name."""
    if not _FRAMEBUFFER.search(iomem):
        return {}
    holders = {}
    above: list[tuple[int, str]] = []
    for line in iomem.splitlines():
        match = _RESOURCE.match(line)
        if match is None:
            above = []
            continue
        depth, name = len(match[1]), match[2]
        above = [(d, n) for d, n in above if d < depth]
        if _FRAMEBUFFER.match(line) and above:
            holders[above[-1][1]] = name
        above.append((depth, name))
    return holders


def _bridge_resets(facts: Facts, function: inventory_pb2.PciFunction) -> bool:
    """Whether the bridge right above can reset what is behind it (Linux 6.13: reset_subordinate)."""
    if not function.path:
        return False
    return "reset_subordinate" in facts.root.list(f"sys/bus/pci/devices/{function.path[-1]}")


def _unique(ids: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(ids))
