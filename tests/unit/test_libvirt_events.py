"""What libvirt's events of a domain become. No libvirt is asked: its numbers are, and its promise of their order."""

from __future__ import annotations

import libvirt
import pytest

from agent.vms.hypervisor import Libvirt

NAME = "gpupool-j.1"
SUSPENDED, RESUMED = (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, 0), (libvirt.VIR_DOMAIN_EVENT_RESUMED, 0)
BY_DISKS = (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_IOERROR)
ASLEEP = (libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED, 0)
DESTROYED = (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED)
CRASHED = (libvirt.VIR_DOMAIN_EVENT_CRASHED, 0)


class Domain:
    """As much of one as an event carries."""

    def name(self) -> str:
        return NAME


class Heard(Libvirt):
    """What was told, of a domain that is being made or, by default, is known already."""

    def __init__(self, *, made: bool = False) -> None:
        super().__init__("test:///default")
        self.told: list[str] = []
        self._on_stop = lambda name, reason: self.told.append(f"{name} stopped: {reason}")
        self._on_pause = lambda name, reason: self.told.append(f"{name} paused: {reason}")
        if made:
            self._made.add(NAME)

    def hear(self, *events: tuple[int, int]) -> list[str]:
        for event, detail in events:
            self._lifecycle(None, Domain(), event, detail, None)
        return self.told


def test_the_pause_in_which_a_vm_is_made_is_no_news() -> None:
    assert Heard(made=True).hear(SUSPENDED, RESUMED) == []
    assert Heard(made=True).hear(DESTROYED, SUSPENDED, RESUMED) == [f"{NAME} stopped: destroyed"], (
        "an earlier one's end"
    )
    told = Heard(made=True).hear(SUSPENDED, RESUMED, SUSPENDED)
    assert told == [f"{NAME} paused: somebody suspended it (virsh suspend)"]


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (SUSPENDED, "paused: somebody suspended it (virsh suspend)"),
        (BY_DISKS, "paused: an I/O error of its disks"),
        ((libvirt.VIR_DOMAIN_EVENT_SUSPENDED, 99), "paused: libvirt paused it"),
        (ASLEEP, "paused: its guest went to sleep"),
        (DESTROYED, "stopped: destroyed"),
        (CRASHED, "stopped: crashed"),
    ],
)
def test_events_of_a_vm_that_runs(event: tuple[int, int], told: str) -> None:
    assert Heard().hear(event) == [f"{NAME} {told}"]
