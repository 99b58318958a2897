"""The host around the VMs: cgroups, watchdog, panic, clock, confinement, CPUs kept back."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..inventory.topology import cpu_list
from .facts import Facts
from .model import NOTE, WARNING, Advice, Found, Sysctl, ok, unknown

CGROUP, WATCHDOG, PANIC, CLOCK = "cgroup-v2", "watchdog", "panic", "clock"
CONFINEMENT, RESERVED = "confinement", "reserved-cpus"
SOFTDOG = "Software Watchdog"  # drivers/watchdog/softdog.c
PANIC_S = "10"
GOOD_CLOCKS = frozenset({"tsc", "kvm-clock", "arch_sys_counter", "timebase", "hyperv_clocksource_tsc_page"})


_SECONDS = re.compile(r"-?[0-9]{1,10}")  # negative: at once
_CLOCK = re.compile(r"[\w-]+", re.ASCII)


def _odd(text: str | None) -> str:
    return f"says {text!r}" if text else "cannot be read" if text is None else "is empty"


def cgroup(facts: Facts) -> Iterator[Found]:
    """Whether the guard can kill all VMs with one write."""
    for root in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
        names = facts.root.list(root)
        if "cgroup.controllers" not in names:
            continue
        can_kill = any("cgroup.kill" in facts.root.list(f"{root}/{name}") for name in names)
        if facts.machine.writable(f"/{root}") is False:
            yield Found(
                CGROUP,
                WARNING,
                f"/{root} is not writable here",
                _BY_PID,
                Advice(any="Run the agent as root, outside of a container."),
            )
        elif not can_kill:
            yield Found(
                CGROUP,
                WARNING,
                f"cgroup v2 at /{root} without cgroup.kill, which Linux has since 5.14",
                _BY_PID,
                Advice(any="Use a newer kernel."),
                reboot=True,
            )
        else:
            yield ok(CGROUP, f"cgroup v2 with cgroup.kill at /{root}")
        return
    yield Found(
        CGROUP,
        WARNING,
        "no cgroup v2 is mounted",
        _BY_PID,
        Advice(
            debian="add systemd.unified_cgroup_hierarchy=1 to GRUB_CMDLINE_LINUX in /etc/default/grub\n"
            "update-grub\n"
            "reboot",
            rhel="grubby --update-kernel=ALL --args=systemd.unified_cgroup_hierarchy=1\nreboot",
        ),
        reboot=True,
    )


_BY_PID = (
    "The guard goes by pid files alone when it kills a lost host's VMs: slower, and a helper process that QEMU "
    "started may be left with an open device."
)


def watchdog(facts: Facts) -> Iterator[Found]:
    """Whether a hardware timer resets this host when it hangs."""
    base = "sys/class/watchdog"
    dogs = {name: facts.root.read(f"{base}/{name}/identity") or "" for name in facts.root.list(base)}
    hardware = sorted(name for name, identity in dogs.items() if identity != SOFTDOG)
    if hardware:
        name = hardware[0]
        sticky = facts.root.read(f"{base}/{name}/nowayout") == "1"
        yield ok(
            WATCHDOG,
            f"{name}: {dogs[name] or 'unknown model'}" + (", cannot be stopped once started" if sticky else ""),
        )
        return
    if not dogs and any(name.startswith("watchdog") for name in facts.root.list("dev")):
        yield unknown(WATCHDOG, "there is a /dev/watchdog, but /sys/class/watchdog does not say what it is")
        return
    seen = "softdog only, which is no hardware" if dogs else "no watchdog device"
    softer = " softdog lives in the kernel that hangs." if dogs else ""
    yield Found(
        WATCHDOG,
        WARNING,
        seen,
        f"A host that hangs stays hung, its GPUs and its jobs with it, until somebody resets it.{softer}",
        Advice(
            any="Load the machine's driver: iTCO_wdt (Intel), sp5100_tco (AMD), ipmi_watchdog (servers), i6300esb\n"
            "(QEMU); the firmware may have to switch the timer on:\n"
            "modprobe iTCO_wdt && echo iTCO_wdt > /etc/modules-load.d/watchdog.conf\n"
            "modules-load.d passes over what modprobe.d blacklists, as Debian does with watchdogs. Then put a copy\n"
            "of that file of /lib/modprobe.d, without the line, under the same name into /etc/modprobe.d."
        ),
    )


def panic(facts: Facts) -> Iterator[Found]:
    """Whether a kernel that has panicked reboots."""
    seconds = facts.root.read("proc/sys/kernel/panic")
    if not _SECONDS.fullmatch(seconds or ""):
        yield unknown(PANIC, f"/proc/sys/kernel/panic {_odd(seconds)}")
    elif not int(seconds or "0"):
        yield Found(
            PANIC,
            WARNING,
            "the kernel stays where it is after a panic (kernel.panic=0)",
            "Another boot of the host is evidence that its VMs are dead. Without it the host stays in FENCING and its "
            "jobs wait, until an operator confirms.",
            remedies=(Sysctl("kernel.panic", PANIC_S),),
        )
    else:
        yield ok(PANIC, "the kernel reboots after a panic")


def clock(facts: Facts) -> Iterator[Found]:
    """The clock source, and whether something keeps the time in step."""
    source = facts.root.read("sys/devices/system/clocksource/clocksource0/current_clocksource")
    if not _CLOCK.fullmatch(source or ""):
        yield unknown(CLOCK, f"the clock source {_odd(source)}")
    elif source not in GOOD_CLOCKS:
        yield Found(
            CLOCK,
            WARNING,
            f"the clock source is {source}",
            "The kernel distrusts the CPU's counter: each look at the time is slow, in guests too, and deadlines "
            "drift. Often a sign of sockets that are out of step.",
            Advice(any="`dmesg | grep -i tsc` says why. Update the firmware; switch off deep package C-states."),
        )
    else:
        yield ok(CLOCK, f"clock source {source}")
    if facts.machine.clock_synchronised() is False:
        yield Found(
            CLOCK,
            WARNING,
            "nothing keeps the time in step (the kernel's clock is unsynchronised)",
            "Times in records, logs and certificates differ between hosts. Deadlines do not use this clock.",
            Advice(debian="apt-get install chrony", rhel="dnf install chrony\nsystemctl enable --now chronyd"),
        )


def confinement(facts: Facts) -> Iterator[Found]:
    """Whether something holds a QEMU that was broken out of."""
    if facts.root.read("sys/fs/selinux/enforce") == "1":
        yield ok(CONFINEMENT, "SELinux is enforcing; images and volumes elsewhere need a label that svirt_t may use")
    elif facts.root.read("sys/module/apparmor/parameters/enabled") == "Y":
        yield ok(CONFINEMENT, "AppArmor is on; images and volumes elsewhere need lines in /etc/apparmor.d/local")
    else:
        yield Found(
            CONFINEMENT,
            NOTE,
            "neither SELinux nor AppArmor is on",
            "A guest that breaks out of QEMU is held by QEMU's user id alone.",
            Advice(
                debian="apt-get install apparmor apparmor-utils\nreboot",
                rhel="set SELINUX=enforcing in /etc/selinux/config\nreboot",
            ),
            reboot=True,
        )


def reserved(facts: Facts) -> Iterator[Found]:
    """Whether CPUs are left for the host, QEMU's emulator threads and I/O."""
    kept = facts.context.reserved_cpus
    if kept is None:
        yield unknown(RESERVED, "what the agent keeps back is not known here; ask with --host, or say --reserved-cpus")
        return
    online = set(cpu_list(facts.root.read("sys/devices/system/cpu/online") or "") or ())
    offered = {cpu for node in facts.inventory.numa_nodes for core in node.cores for cpu in core.threads}
    if kept or (online and online - offered):
        yield ok(RESERVED, "CPUs are kept for the host")
    else:
        yield Found(
            RESERVED,
            WARNING,
            "none: every CPU may be pinned to a vCPU",
            "QEMU's emulator and I/O threads, the agent and the guard compete with vCPUs: latency, and in the worst "
            "case a renewal that comes too late and costs all VMs.",
            Advice(any="Give the agent --reserved-cpus, two cores of each socket to begin with."),
        )
