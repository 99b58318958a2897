"""Domain XML: golden files that libvirt's own schema accepts. `pytest --rewrite` on this file writes them anew."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from agent.domain.shape import MAX_EMULATED, MAX_VOLUMES, ROOT_SERIAL, SEED_SERIAL, DomainShape, shape_of
from agent.domain.xml import allocation_of, domain_xml
from agent.ports import GuestCell, GuestOptions, PassedFunction, VmSpec, VolumeMount
from agent.vms.files import GuestFiles
from agent.vms.firmware import Firmware
from agent.vms.images import DEFAULT_CMDLINE, Image, ImageError, KernelBoot, UefiBoot

TOOLS = ("virt-xml-validate", "xmllint")
GOLDEN = Path(__file__).parent.parent / "golden_xml"
FOLDER = Path("/var/lib/gpupool/images/debian-numpy")
KERNEL = Image(
    "debian-numpy", KernelBoot(FOLDER / "vmlinuz", FOLDER / "initrd.img", FOLDER / "root.img", DEFAULT_CMDLINE)
)
UEFI = Image("ubuntu", UefiBoot(Path("/var/lib/gpupool/images/ubuntu/disk.qcow2"), "qcow2"), cloud_init=True)
OVMF = Firmware(Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd"))
SMM = replace(OVMF, code=Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"), needs_smm=True)
VOLUME = VolumeMount(serial="ckpt", path="/ckpt", file="/srv/volumes/train/ckpt.img", size_mib=64)
GIB = 1 << 30


def gpu(bus: int, node: int, *, bar_gib: int = 16, sound: bool = True) -> tuple[PassedFunction, ...]:
    unit = f"0000:{bus:02x}:00.0"
    bars = (16 << 20, bar_gib * GIB, 32 << 20)
    functions = (PassedFunction(unit, node, bars, is_gpu=True, unit=unit),)
    audio = PassedFunction(f"0000:{bus:02x}:00.1", node, (16384,), is_gpu=False, unit=unit)
    return (*functions, audio) if sound else functions


def cell(node: int, cores: int = 2, *, first: int = 0, memory_mib: int = 32768, threads: int = 2) -> GuestCell:
    """Cores as Linux numbers them: the second threads come after all the first ones."""
    return GuestCell(
        node, tuple(tuple(first + core + 64 * thread for thread in range(threads)) for core in range(cores)), memory_mib
    )


SPEC = VmSpec(
    allocation="train.1",
    image="debian-numpy",
    command=("true",),
    env=(),
    vcpus=4,
    memory_mib=32768,
    cells=(cell(1, first=16),),
    functions=gpu(0xA2, 1),
    emulator_cpus=(63, 127),
)
TWO_NODES = replace(
    SPEC,
    vcpus=16,
    memory_mib=65536,
    cells=(replace(cell(0, 4), distances=(10, 21)), replace(cell(2, 4, first=32), distances=(21, 10))),
    functions=tuple(
        function
        for index, bus in enumerate((0x17, 0x2A, 0x3D, 0x50, 0x97, 0xAB, 0xBF, 0xD3))
        for function in gpu(bus, 0 if index < 4 else 2, bar_gib=128, sound=False)
    ),
)


def shape(spec: VmSpec = SPEC, image: Image = KERNEL, *, accel: str = "kvm", **host: Any) -> DomainShape:
    files = GuestFiles(Path("/run/gpupool"), spec.allocation, Path("/var/lib/gpupool/overlays"))
    return shape_of(spec, image, files, accel=accel, **({"simulated": False} | host))


def options(**fields: Any) -> VmSpec:
    return replace(SPEC, options=GuestOptions(**fields))


CASES = {
    "one-gpu-with-audio": shape(),
    "one-gpu-tcg": shape(accel="tcg"),
    "one-gpu-amd": shape(amd=True),
    "no-gpu": shape(replace(SPEC, functions=(), volumes=(VOLUME,))),
    "eight-gpus-two-nodes": shape(TWO_NODES),
    "eight-gpus-two-nodes-uefi": shape(TWO_NODES, UEFI, firmware=OVMF),
    "node-unknown": shape(replace(SPEC, cells=(cell(-1),), functions=gpu(0xA2, -1))),
    # A virtual function: device 16 of the adapter's bus in the host, a device of its own in the guest.
    "gpu-with-nic": shape(
        replace(
            SPEC,
            functions=(
                *gpu(0xA2, 1, sound=False),
                PassedFunction("0000:a6:10.0", 1, (16384, 16384), is_gpu=False, unit="0000:a2:00.0"),
            ),
        )
    ),
    "gpu-of-another-node": shape(replace(SPEC, functions=gpu(0x21, 0))),
    "odd-vcpus": shape(replace(SPEC, vcpus=3, emulator_cpus=(81,))),
    "uneven-cells": shape(replace(SPEC, vcpus=8, cells=(cell(0, 3), cell(1, 1, first=16)), memory_mib=65536)),
    "cell-without-cpus": shape(replace(SPEC, cells=(cell(1), GuestCell(2, (), 32768)), memory_mib=65536)),
    "hugepages-2m": shape(options(hugepage_size_kib=2048)),
    "hugepages-1g": shape(options(hugepage_size_kib=1 << 20)),
    "guest-iommu": shape(replace(TWO_NODES, options=GuestOptions(guest_iommu=True))),
    "hidden-hypervisor": shape(options(hide_hypervisor=True, hypervisor_vendor_id="whatever")),
    "network-user": shape(options(network="user")),
    "network-bridge": shape(options(network="bridge", network_source="br0")),
    "network-macvtap": shape(options(network="macvtap", network_source="ens1f0")),
    "seed": shape(options(user_data="#cloud-config\n")),
    "many-volumes": shape(replace(SPEC, volumes=tuple(replace(VOLUME, serial=f"v{i}") for i in range(MAX_VOLUMES)))),
    "uefi-smm": shape(replace(SPEC, volumes=(VOLUME,)), UEFI, firmware=SMM),
    "simulated-tcg": shape(replace(SPEC, functions=gpu(0x21, 0) + gpu(0xA2, 1)), accel="tcg", simulated=True),
    "simulated-kvm": shape(replace(SPEC, functions=()), simulated=True),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_golden(case: str, request: pytest.FixtureRequest) -> None:
    xml = domain_xml(CASES[case])
    golden = GOLDEN / f"{case}.xml"
    if request.config.getoption("--rewrite"):
        golden.write_text(xml)
    assert xml == golden.read_text()


def test_no_golden_is_left_over() -> None:
    assert {file.stem for file in GOLDEN.glob("*.xml")} == set(CASES)


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"needs {TOOLS} (libvirt-clients, libxml2-utils)")
def test_schema(case: str) -> None:
    done = subprocess.run(
        ["virt-xml-validate", str(GOLDEN / f"{case}.xml"), "domain"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def parsed(case: str) -> ET.Element:
    return ET.fromstring(domain_xml(CASES[case]))


@pytest.mark.parametrize("case", sorted(set(CASES) - {"simulated-tcg", "simulated-kvm"}))
def test_every_vcpu_has_a_cpu_of_its_own_in_its_cell_and_qemu_has_others(case: str) -> None:
    domain, made = parsed(case), CASES[case]
    pins = {int(pin.get("vcpu", "")): int(pin.get("cpuset", "")) for pin in domain.findall("cputune/vcpupin")}
    assert sorted(pins) == list(range(made.vcpus))
    assert len(set(pins.values())) == made.vcpus
    seen: list[int] = []
    for element, wanted in zip(domain.findall("cpu/numa/cell"), made.cells, strict=True):
        first, _, last = (element.get("cpus") or "0-0").partition("-")
        vcpus = range(int(first), int(last or first) + 1) if element.get("cpus") else range(0)
        seen += vcpus
        assert {pins[vcpu] for vcpu in vcpus} <= {cpu for core in wanted.cores for cpu in core}
    assert seen == list(range(made.vcpus))
    for tag in ("emulatorpin", "iothreadpin"):
        for pin in domain.findall(f"cputune/{tag}"):
            assert not set(map(int, pin.get("cpuset", "").split(","))) & set(pins.values())


@pytest.mark.parametrize("case", sorted(set(CASES) - {"simulated-tcg", "simulated-kvm"}))
def test_the_topology_makes_as_many_vcpus_and_no_socket_spans_cells(case: str) -> None:
    topology = parsed(case).find("cpu/topology")
    assert topology is not None
    sockets, cores, threads = (int(topology.get(part, "")) for part in ("sockets", "cores", "threads"))
    assert sockets * cores * threads == CASES[case].vcpus
    assert all(count % (cores * threads) == 0 for count in CASES[case].plan().per_cell)


def test_no_two_devices_share_a_place_and_every_device_is_near_its_cell() -> None:
    domain = parsed("eight-gpus-two-nodes")
    places = [tuple(sorted(a.items())) for a in (d.attrib for d in domain.findall("devices/*/address"))]
    assert len(set(places)) == len(places)
    cell_of_bus = {
        c.get("index"): c.findtext("target/node")
        for c in domain.findall("devices/controller[@model='pcie-expander-bus']")
    }
    bus_of_port = {
        f"0x{int(c.get('index', '')):02x}": int(c.find("address").get("bus"), 16)  # type: ignore[union-attr, arg-type]
        for c in domain.findall("devices/controller[@model='pcie-root-port']")
        if c.find("address") is not None
    }
    for hostdev in domain.findall("devices/hostdev"):
        host = int(hostdev.find("source/address").get("bus"), 16)  # type: ignore[union-attr, arg-type]
        port = hostdev.find("address").get("bus")  # type: ignore[union-attr]
        assert cell_of_bus[str(bus_of_port[port or ""])] == ("0" if host < 0x80 else "1")


def test_buses_below_an_expander_do_not_reach_the_next() -> None:
    controllers = parsed("eight-gpus-two-nodes").findall("devices/controller[@model='pcie-expander-bus']")
    starts = [int(c.find("target").get("busNr")) for c in controllers]  # type: ignore[union-attr, arg-type]
    assert starts == [64, 160]  # each has four ports, each port one bus


def test_simulated_host_gets_modest_vms_with_a_gpu_for_each_unit() -> None:
    made = CASES["simulated-tcg"]
    assert (made.emulated_gpus, made.functions, made.vcpus, made.memory_mib) == (2, (), 2, 1024)


def test_many_emulated_gpus_have_addresses_of_their_own() -> None:
    xml = domain_xml(replace(CASES["simulated-tcg"], emulated_gpus=MAX_EMULATED))
    addresses = [part.split('"')[0] for part in xml.split("addr=")[1:]]
    assert len(set(addresses)) == MAX_EMULATED
    assert (addresses[0], addresses[-1]) == ("0x10.0", "0x1d.7")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"volumes": ((ROOT_SERIAL, "/v.img"),)}, "gpupool-root"),
        ({"volumes": ((SEED_SERIAL, "/v.img"),)}, "gpupool-seed"),
        ({"volumes": tuple((f"v{i}", f"/{i}.img") for i in range(MAX_VOLUMES + 1))}, "25 volumes"),
        ({"emulated_gpus": MAX_EMULATED + 1}, "113 emulated"),
        ({"functions": (PassedFunction("21:00.0"),)}, "'21:00.0' is no PCI address"),
        ({"functions": (PassedFunction("0000:21:00.0", 1, (32 << 40,)),)}, "MMIO window of 33554432 MiB"),
        ({"vcpus": 5}, r"5 vCPUs .* only 4 CPUs are reserved \(NUMA nodes: 1\)"),
        ({"cells": (cell(1, memory_mib=0),)}, "node 1 gives the VM cores but no memory"),
        ({"cells": ()}, "only 0 CPUs are reserved"),
        ({"options": GuestOptions(hypervisor_vendor_id="a,b")}, "no comma"),
        ({"options": GuestOptions(hypervisor_vendor_id="x" * 13)}, "at most 12"),
        ({"options": GuestOptions(network="bridge")}, "needs a source: the host's bridge"),
        ({"options": GuestOptions(network="wifi")}, "there are user, bridge, macvtap"),
        (
            {"cells": (cell(1, memory_mib=1025),), "options": GuestOptions(hugepage_size_kib=1 << 20)},
            "1025 MiB of NUMA node 1 is no whole number",
        ),
        ({"functions": tuple(PassedFunction(f"0000:{bus:02x}:00.0", 1) for bus in range(40))}, "40 devices near"),
    ],
)
def test_what_cannot_be_made_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(CASES["one-gpu-with-audio"], **change)


def test_an_image_that_needs_firmware_is_refused_without() -> None:
    with pytest.raises(ImageError, match=r"'ubuntu' boots by UEFI, and this host has no UEFI firmware.*install ovmf"):
        shape(SPEC, UEFI, firmware=None)


def test_names_tell_whose_a_domain_is() -> None:
    assert allocation_of(CASES["no-gpu"].name) == "train.1"
    assert allocation_of("somebody-elses") is None
