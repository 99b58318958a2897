"""What a reset could hit, read from the unit's own surroundings: never less than all of the host would tell."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from agent.devices.host import Policy
from agent.inventory.pci import read_functions
from agent.inventory.pcitree import PciTree
from agent.inventory.reach import read_reach
from agent.simulated.kernel import SimulatedSysfs
from agent.simulated.pci import SimFunction, write_function
from tests.fakes.device_rig import AUDIO, GPU, PORT, QUICK, devices, known, methods, simulated_host, used_by_a_vm

STRANGER = "0000:01:01.0"


def endpoint(address: str, parent: str, class_code: int = 0x030200) -> SimFunction:
    return SimFunction(address, parent, 0x10DE, 0x20B5, class_code, 0, 1, reset_methods="flr")


def bridge(address: str, parent: str, buses: tuple[int, int]) -> SimFunction:
    return SimFunction(
        address, parent, 0x8086, 1, 0x060400, 0, 1, secondary_bus=buses[0], subordinate_bus=buses[1]
    )  # fmt: skip


class Grown:
    """A tree of bridges and endpoints, nested and with odd bus numbers, from a seed."""

    def __init__(self, root: Path, seed: int) -> None:
        self.draw = random.Random(seed)
        self.root = root
        self.bus = 0
        self.functions: list[SimFunction] = []
        for directory in ("bus/pci/devices", "bus/pci/drivers/vfio-pci", ".pristine"):
            (root / directory).mkdir(parents=True)
        self.fill("devices/pci0000:00", 0, 0)
        for function in self.functions:
            write_function(root, function)

    def fill(self, parent: str, bus: int, depth: int) -> None:
        for slot in range(self.draw.randint(1, 3)):
            address = f"0000:{bus:02x}:{slot:02x}.0"
            if depth < 3 and self.draw.random() < 0.6:
                self.bus += 1
                first, place = self.bus, len(self.functions)
                self.fill(f"{parent}/{address}", first, depth + 1)
                last = self.draw.choice([self.bus, first])  # registers that name fewer buses than there are
                self.functions.insert(place, bridge(address, parent, (first, last)))
            else:
                self.functions.append(endpoint(address, parent, self.draw.choice([0x030200, 0x010802])))
                if self.draw.random() < 0.3:
                    self.functions.append(endpoint(f"{address[:-1]}1", parent, 0x040300))


@pytest.mark.parametrize("seed", range(12))
def test_it_says_what_all_of_the_host_would(tmp_path: Path, seed: int) -> None:
    sysfs = SimulatedSysfs(tmp_path)
    grown = Grown(tmp_path, seed)
    whole = PciTree(read_functions(sysfs, lambda _note: None))
    for address in [function.address for function in grown.functions if not function.secondary_bus]:
        near = read_reach(sysfs, [address])
        ours, all_told = near.by_address[address], whole.by_address[address]
        assert near.reset_domain(ours) == whole.reset_domain(all_told)
        for hit in near.reset_domain(ours):
            one, other = near.by_address[hit], whole.by_address[hit]
            assert (one.is_bridge, one.iommu_group) == (other.is_bridge, other.iommu_group)
        assert ours.reset_methods == all_told.reset_methods
        above, really = near.bridge_above(ours), whole.bridge_above(all_told)
        assert (above and (above.address, above.buses)) == (really and (really.address, really.buses))


def test_what_is_elsewhere_is_not_read(tmp_path: Path) -> None:
    class Counting(SimulatedSysfs):
        def read(self, path: str) -> str | None:
            assert any(f"/{address}/" in path for address in (GPU, AUDIO, PORT)), path
            return super().read(path)

    simulated_host(tmp_path / "sys", gpus=4)
    assert {*read_reach(Counting(tmp_path / "sys"), [GPU, AUDIO]).by_address} == {GPU, AUDIO, PORT}


def test_a_function_of_which_nobody_says_where_it_is(tmp_path: Path) -> None:
    class Lost(SimulatedSysfs):
        def link_target(self, path: str) -> str | None:
            return None if path.endswith(GPU) else super().link_target(path)

    simulated_host(tmp_path / "sys", gpus=4)
    near = read_reach(Lost(tmp_path / "sys"), [GPU, AUDIO])
    assert len(near.by_address) == len(PciTree(read_functions(Lost(tmp_path / "sys"), lambda _: None)).by_address)
    assert (above := near.bridge_above(near.by_address[GPU]))
    assert above.address == PORT, "by the buses that it leads to"


async def test_a_card_plugged_in_since_the_last_reclaim_is_not_reset_along(tmp_path: Path) -> None:
    """The bridge's reset would be the only means, and hit a stranger that came behind it: no look is kept for later."""
    sysfs = simulated_host(tmp_path / "sys")
    for address in (GPU, AUDIO):
        methods(sysfs, address, "")
    unit, _baseline = await known(sysfs)
    host = devices(sysfs, policy=Policy(patience=QUICK))
    used_by_a_vm(sysfs)
    assert "vfio-hot-reset" in await host.reclaim(unit)
    write_function(sysfs.root, endpoint(STRANGER, "devices/pci0000:00/0000:00:01.0", 0x010802))
    before = sysfs.read_bytes(f"bus/pci/devices/{STRANGER}/config")
    sysfs.scribble(STRANGER)
    marked = sysfs.read_bytes(f"bus/pci/devices/{STRANGER}/config")
    assert before != marked
    used_by_a_vm(sysfs)
    with pytest.raises(Exception, match="hits nothing else"):
        await host.reclaim(unit)
    assert sysfs.read_bytes(f"bus/pci/devices/{STRANGER}/config") == marked
