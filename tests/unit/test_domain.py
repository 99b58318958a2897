"""Domain XML: golden files that libvirt's own schema accepts. `pytest --rewrite` on this file writes them anew."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.ports import VmSpec, VolumeMount
from agent.vms.domain import MAX_EMULATED, ROOT_SERIAL, DomainShape, allocation_of, domain_xml
from agent.vms.files import GuestFiles
from agent.vms.images import DEFAULT_CMDLINE, Image
from agent.vms.shape import shape_of

TOOLS = ("virt-xml-validate", "xmllint")
GOLDEN = Path(__file__).parent.parent / "golden_xml"
FOLDER = Path("/var/lib/gpupool/images/debian-numpy")
IMAGE = Image("debian-numpy", FOLDER / "vmlinuz", FOLDER / "initrd.img", FOLDER / "root.img", DEFAULT_CMDLINE)
UNITS = ("0000:21:00.0", "0000:21:00.1", "0000:a2:00.0", "0000:a2:00.1")
VOLUME = VolumeMount(serial="ckpt", path="/ckpt", file="/srv/volumes/train/ckpt.img", size_mib=64)
SPEC = VmSpec(
    allocation="train.1",
    image="debian-numpy",
    command=("true",),
    env=(),
    vcpus=4,
    cpus=(2, 34, 3, 35),
    nodes=(0, 1),
    memory_mib=65536,
    functions=UNITS,
    volumes=(VOLUME,),
)


def shape(spec: VmSpec = SPEC, **host: Any) -> DomainShape:
    return shape_of(spec, IMAGE, GuestFiles(Path("/run/gpupool"), spec.allocation), **host)


CASES = {
    "real-kvm": shape(accel="kvm", simulated=False),
    "real-tcg": shape(accel="tcg", simulated=False),
    "real-few-cpus": shape(replace(SPEC, cpus=(2, 34), nodes=(), volumes=()), accel="kvm", simulated=False),
    "simulated-tcg": shape(accel="tcg", simulated=True),
    "simulated-kvm": shape(replace(SPEC, functions=()), accel="kvm", simulated=True),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_golden(case: str, request: pytest.FixtureRequest) -> None:
    xml = domain_xml(CASES[case])
    golden = GOLDEN / f"{case}.xml"
    if request.config.getoption("--rewrite"):
        golden.write_text(xml)
    assert xml == golden.read_text()


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"needs {TOOLS} (libvirt-clients, libxml2-utils)")
def test_schema(case: str) -> None:
    done = subprocess.run(
        ["virt-xml-validate", str(GOLDEN / f"{case}.xml"), "domain"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_simulated_host_gets_modest_vms_with_a_gpu_for_each_unit() -> None:
    made = CASES["simulated-tcg"]
    assert (made.emulated_gpus, made.hostdevs, made.vcpus, made.memory_mib) == (2, (), 2, 1024)


def test_many_emulated_gpus_have_addresses_of_their_own() -> None:
    xml = domain_xml(replace(CASES["simulated-tcg"], emulated_gpus=MAX_EMULATED))
    addresses = [part.split('"')[0] for part in xml.split("addr=")[1:]]
    assert len(set(addresses)) == MAX_EMULATED
    assert (addresses[0], addresses[-1]) == ("0x10.0", "0x1d.7")


@pytest.mark.parametrize(
    "change",
    [
        {"volumes": ((ROOT_SERIAL, "/v.img"),)},
        {"volumes": tuple((f"v{i}", f"/{i}.img") for i in range(26))},
        {"emulated_gpus": MAX_EMULATED + 1},
        {"hostdevs": ("21:00.0",)},
    ],
)
def test_what_cannot_be_made_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        replace(CASES["real-kvm"], **change)


def test_names_tell_whose_a_domain_is() -> None:
    assert allocation_of(CASES["real-kvm"].name) == "train.1"
    assert allocation_of("somebody-elses") is None
