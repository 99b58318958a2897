"""Doctor on the network functions that the agent pools: who goes with a GPU, who does not, and who is first at boot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.config import Config, parse_nics
from agent.devices.early import MODPROBE, UDEV, early_binding
from agent.doctor.examine import HARDWARE_CHECKS
from agent.doctor.facts import Facts
from agent.doctor.model import NOTE, OK, WARNING, EarlyBinding
from agent.inventory.pairing import REFUSED, SPARE
from agent.inventory.sysfs import RealSysfs
from agent.judges import Doctor
from agent.timing import Limits, Timing
from gpupool.store.memory import MemoryBackend, MemoryStore
from gpupool.v1 import inventory_pb2, job_pb2
from tests.unit.doctor_host import KERNEL, PORTS, Host, function
from tests.unit.doctor_host import NAMES as UNITS
from tests.unit.test_doctor_checks import of, worst
from tests.unit.test_judges import StoppedClock

ADAPTER, VIRTUAL = "0000:22:00.0", "0000:22:10.0"
IDS = "8086:10ca"
ALIASES = """# Aliases extracted from modules themselves.
alias pci:v00008086d000010CAsv*sd*bc*sc*i* igbvf
alias pci:v00008086d00001520sv*sd*bc*sc*i* igbvf
alias pci:v000010DEd*sv*sd*bc03sc*i* nouveau
alias pci:v*d*sv*sd*bc0Csc03i30* xhci_pci
alias usb:v0000d*dc*dsc*dp*ic*isc*ip*in* nonsense
"""


def adapter(address: str, **fields: object) -> inventory_pb2.PciFunction:
    made = function(address, vendor_id=0x8086, device_id=0x10C9, class_code=0x020000, iommu_group=40, path=PORTS[:1])
    made.MergeFrom(inventory_pb2.PciFunction(**fields))  # type: ignore[arg-type]
    return made


def pooled(*named: str, paired: bool = True, notes: tuple[str, ...] = (), **fields: object) -> Host:
    """A host with an adapter that has one virtual function, which goes with the first GPU."""
    host = Host()
    virtual = adapter(VIRTUAL, device_id=0x10CA, physical_function=ADAPTER, iommu_group=41, **fields)
    host.inventory.nics.extend([adapter(ADAPTER, sriov_total=7, sriov_present=[VIRTUAL]), virtual])
    host.inventory.notes.extend(notes)
    if paired:
        unit = host.inventory.units[0]
        unit.functions.append(virtual)
        unit.nic, unit.nic_locality = VIRTUAL, job_pb2.NIC_LOCALITY_SWITCH
    host.more["nics"] = parse_nics(named or [VIRTUAL])
    return host


def test_a_nic_that_goes_with_a_gpu_is_told_with_it() -> None:
    (found,) = of("nics", pooled())
    assert (found.level, found.seen) == (OK, f"each goes to VMs with its GPU: {VIRTUAL} with {UNITS[0]} (switch)")
    (found,) = of("nics", pooled(IDS))
    assert found.level == OK
    assert of("nics", Host())[0].seen == "none are pooled (--nic)"


@pytest.mark.parametrize(
    ("named", "more", "level", "seen", "fix"),
    [
        ("0000:99:00.0", {}, WARNING, "no network function 0000:99:00.0 (--nic)", "lspci"),
        ("1234:5678", {}, WARNING, "no network function 1234:5678 (--nic)", "lspci"),
        (VIRTUAL, {"notes": (f"{VIRTUAL}: {SPARE}",)}, NOTE, "goes with no GPU", "slot"),
        (VIRTUAL, {"notes": (f"{VIRTUAL}: {REFUSED}odd",)}, WARNING, f"{VIRTUAL} is not handed out: odd", "ACS"),
        (VIRTUAL, {}, WARNING, "notes say why", "ACS"),
        (ADAPTER, {}, WARNING, f"{ADAPTER} is not handed out", f"Name its virtual functions ({VIRTUAL}"),
    ],
)
def test_a_nic_that_goes_with_none(
    named: str, more: dict[str, tuple[str, ...]], level: int, seen: str, fix: str
) -> None:
    found = worst("nics", pooled(named, paired=False, **more))
    assert (found.level, seen in found.seen) == (level, True), found
    assert fix in found.fixes[0].steps


def test_an_adapter_whose_virtual_functions_are_off_is_told_of() -> None:
    host = pooled(IDS, paired=False)
    del host.inventory.nics[1]
    host.inventory.nics[0].ClearField("sriov_present")
    assert f"/sys/bus/pci/devices/{ADAPTER}/sriov_numvfs" in worst("nics", host).fixes[0].steps


def test_a_nic_without_a_reset_of_its_own() -> None:
    host = pooled(ADAPTER, paired=False)
    host.inventory.nics[0].ClearField("sriov_present")
    host.inventory.nics[0].reset_methods[:] = ["bus", "pm"]
    assert "FLR" in worst("nics", host).fixes[0].steps


def test_a_virtual_function_that_a_driver_looks_at_whenever_it_is_made() -> None:
    host = pooled()
    host.files[f"lib/modules/{KERNEL}/modules.alias"] = ALIASES
    probed = f"sys/bus/pci/devices/{ADAPTER}/sriov_drivers_autoprobe"
    host.files[probed] = "1\n"
    (found,) = of("nics", host)
    assert (found.level, list(found.units)) == (NOTE, [UNITS[0]])
    assert f"echo 0 > /{probed}" in found.fixes[0].steps
    host.files[probed] = "0\n"
    assert worst("nics", host).level == OK


def test_a_nic_that_the_host_uses_is_told_of_and_not_bound_at_boot() -> None:
    host = pooled(driver="igbvf")
    host.drop("etc/modprobe.d")
    host.more["in_use"] = {UNITS[0]: f"{VIRTUAL} is used by network interface ens3 (it is up)"}
    found = worst("nics", host)
    assert (found.level, list(found.units)) == (WARNING, [UNITS[0]])
    assert "ens3" in found.seen
    assert list(worst("early-binding", host).units) == [UNITS[1]]


def test_a_pooled_nic_is_bound_at_boot_and_another_one_that_a_driver_has_keeps_its_unit_out() -> None:
    host = pooled(driver="igbvf")
    host.drop("etc/modprobe.d")
    found = worst("early-binding", host)
    assert (found.level, list(found.units)) == (WARNING, list(UNITS)), "igbvf has it now"
    host.more["nics"] = parse_nics([])
    assert list(worst("early-binding", host).units) == [UNITS[1]], "nobody said that it may be taken"


@pytest.mark.parametrize("how", ["etc/modprobe.d/vfio.conf", "proc/cmdline", f"etc/driverctl.d/{VIRTUAL}"])
def test_the_hosts_own_configuration_must_name_the_nic_too(how: str) -> None:
    host = pooled()
    found = worst("early-binding", host)
    assert (found.level, list(found.units)) == (NOTE, [UNITS[0]]), "the file there names the GPUs alone"
    named = {
        "etc/modprobe.d/vfio.conf": f"options vfio-pci ids=10de:20b5,{IDS}",
        "proc/cmdline": f"vfio-pci.ids={IDS}",
    }
    host.files[how] = named.get(how, "vfio-pci")
    assert worst("early-binding", host).level == OK


def rules(host: Host) -> dict[str, str]:
    """What --fix writes on it."""
    (fix,) = [finding for finding in of("early-binding", host) if finding.fixable]
    assert MODPROBE in fix.fixes[0].steps
    (found,) = HARDWARE_CHECKS["early-binding"](Facts(host.context()))
    (remedy,) = found.remedies
    assert isinstance(remedy, EarlyBinding)
    return dict(remedy.files)


def softdeps(files: dict[str, str]) -> set[str]:
    return {line.split()[1] for line in files[MODPROBE].splitlines() if line.startswith("softdep ")}


def test_rules_name_the_nic_and_let_its_driver_wait_though_vfio_has_it_now() -> None:
    """Else that driver would be first at the next boot: it is in the initramfs, and has the function then."""
    host = pooled(driver="vfio-pci")
    host.drop("etc/modprobe.d")
    assert "igbvf" not in softdeps(rules(host)), "nothing tells whose it is"
    host.files[f"lib/modules/{KERNEL}/modules.alias"] = ALIASES
    files = rules(host)
    assert softdeps(files) >= {"igbvf", "nouveau", "snd_hda_intel"}
    assert not softdeps(files) & {"xhci_pci", "nonsense", "i915"}
    assert f"{VIRTUAL}=0x8086:0x10ca" in files[MODPROBE]
    assert f'KERNEL=="{VIRTUAL}"' in files[UDEV]


def test_rules_that_have_worked_are_not_unwritten() -> None:
    """After the reboot vfio-pci has it all, and nothing tells any more who had it before: but the rules do."""
    host = pooled(driver="oddnic")
    host.drop("etc/modprobe.d")
    host.files |= rules(host)
    assert worst("early-binding", host).level == OK
    host.inventory.units[0].functions[-1].driver = "vfio-pci"
    assert worst("early-binding", host).level == OK
    host.files[MODPROBE] = str(host.files[MODPROBE]).replace("oddnic", "other")
    assert worst("early-binding", host).level == OK, "what else waits harms nothing"


def test_a_file_of_somebody_else_tells_nothing() -> None:
    host = pooled(driver="vfio-pci")
    host.drop("etc/modprobe.d")
    host.files[MODPROBE] = "softdep mine pre: vfio-pci\n"
    assert "mine" not in softdeps(rules(host))
    assert "more" in early_binding(host.inventory.units, "debian", ["more"])[MODPROBE]


@pytest.mark.parametrize("groups", [(0x21, 41), (0x21, 0x21)])
def test_a_nic_that_goes_with_a_gpu_does_not_share_its_group(groups: tuple[int, int]) -> None:
    host = pooled(driver="igbvf")
    unit = host.inventory.units[0]
    unit.functions[-1].iommu_group = groups[1]
    second = adapter("0000:23:10.0", driver="igbvf", iommu_group=groups[1])
    unit.functions.append(second)  # the NIC's group has two slots
    found = worst("iommu-groups", host)
    assert (found.level == OK) == (groups[0] != groups[1]), found


async def test_the_agents_doctor_knows_what_its_agent_pools(tmp_path: Path) -> None:
    inventory = pooled().inventory
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text("ID=debian\n")
    nothing: Callable[[], set[int]] = set
    for nics, told in ((parse_nics([VIRTUAL]), f"{VIRTUAL} with {UNITS[0]}"), (parse_nics([]), "none are pooled")):
        config = Config(
            "h1", ("e:1",), "127.0.0.1:0", "", tmp_path, tmp_path, tmp_path, None, None, "", "boot", Timing(), Limits(),
            nics=nics,
        )  # fmt: skip
        judge = Doctor(config, MemoryStore(MemoryBackend()), StoppedClock(), nothing, RealSysfs(tmp_path))
        report = await judge.report(inventory)
        assert [told in found.seen for found in report.findings if found.check == "nics"] == [True]
