"""What the judges of a real host say of its units."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from agent.config import Config
from agent.devices.nvml import GpuFacts
from agent.inventory.sysfs import RealSysfs
from agent.judges import NVML_S, Doctor, Nvml, Users
from agent.survey import Judgement
from agent.timing import Limits, Timing
from gpupool.store.memory import MemoryBackend, MemoryStore
from gpupool.v1.inventory_pb2 import Inventory, PciFunction, Unit
from tests.fakes.agent_rig import UNIT, MemoryRecords
from tests.fakes.vms import FakeVms
from tests.unit import doctor_host


class StoppedClock:
    """Implements agent.ports.Clock."""

    now = 100.0

    def wall(self) -> float:
        return self.now

    def boot(self) -> float:
        return self.now


def host(driver: str) -> Inventory:
    return Inventory(units=[Unit(id=UNIT, identity="A", functions=[PciFunction(address=UNIT, driver=driver)])])


async def test_what_nvidias_library_says_is_remembered_when_the_driver_has_the_gpu_no_more() -> None:
    records = MemoryRecords()
    judge = Nvml(StoppedClock(), records, lambda: [GpuFacts(UNIT, 81920, uncorrected_ecc=2), GpuFacts("0000:99:00.0")])
    expected = Judgement(
        memory_mib={UNIT: 81920},
        memory_source="nvml",
        notes=[f"by NVIDIA's driver: {UNIT}: 2 uncorrected ECC errors"],
    )
    assert await judge(host("nvidia")) == expected
    assert await judge(host("vfio-pci")) == expected
    assert await Nvml(StoppedClock(), records, list)(host("vfio-pci")) == expected, "an agent that is new"


async def test_nvidias_library_is_asked_seldom_and_only_of_gpus_that_its_driver_has() -> None:
    asked: list[int] = []

    def read() -> list[GpuFacts]:
        asked.append(1)
        return []

    clock = StoppedClock()
    judge = Nvml(clock, MemoryRecords(), read)
    assert not (await judge(host("vfio-pci"))).memory_mib
    assert not asked
    await judge(host("nvidia"))
    await judge(host("nvidia"))
    assert len(asked) == 1
    clock.now += NVML_S
    await judge(host("nvidia"))
    assert len(asked) == 2


def test_the_agent_itself_is_no_user_that_a_unit_is_kept_for(tmp_path: Path) -> None:
    """What NVIDIA's library opened in another thread would else quarantine the unit."""
    gpu = tmp_path / "sys/bus/pci/devices" / UNIT
    gpu.mkdir(parents=True)
    (gpu / "iommu_group").symlink_to("/sys/kernel/iommu_groups/7")
    users = Users(FakeVms(), StoppedClock(), set, RealSysfs(tmp_path))
    for pid in (os.getpid(), 999999):
        (tmp_path / f"proc/{pid}/fd").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/fd/3").symlink_to("/dev/vfio/7")
    refused = users.refuse([UNIT])
    assert "process 999999" in refused[UNIT]
    assert str(os.getpid()) not in refused[UNIT]


async def test_the_agents_doctor_proposes_no_rule_for_a_unit_that_a_program_uses_now(tmp_path: Path) -> None:
    inventory = doctor_host.inventory()
    used, unused = inventory.units
    for unit in (used, unused):
        unit.functions[0].driver = "nouveau"
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text("ID=debian\n")
    (tmp_path / "proc/700/fd").mkdir(parents=True)
    (tmp_path / "proc/700/fd/3").symlink_to(f"/sys/devices/pci0000:20/{used.id}/resource0")
    config = Config(
        "h1", ("e:1",), "127.0.0.1:0", "", tmp_path, tmp_path, tmp_path, None, None, "", "boot", Timing(), Limits()
    )
    for ours, bound in ((set[int](), [unused.id]), ({700}, [used.id, unused.id])):
        store = MemoryStore(MemoryBackend())
        judge = Doctor(config, store, StoppedClock(), partial(set[int], ours), RealSysfs(tmp_path))
        report = await judge.report(inventory)
        assert [list(found.units) for found in report.findings if found.check == "early-binding"] == [bound]
