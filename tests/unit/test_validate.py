"""Every fault of a spec is found, all at once, and says which value is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from gpupool.v1 import job_pb2
from scheduler.submitting.validate import MAX_SPEC_BYTES, faults
from tests.fakes.pool import spec


def volume(name: str = "data", size_mib: int = 10, path: str = "/data") -> job_pb2.Volume:
    return job_pb2.Volume(name=name, size_mib=size_mib, path=path)


def vm(**options: Any) -> job_pb2.JobSpec:
    return job_pb2.JobSpec(vm=job_pb2.VmOptions(**options))


def network(kind: int, source: str = "") -> job_pb2.JobSpec:
    return vm(network=job_pb2.Network(kind=kind, source=source))  # type: ignore[arg-type]


WRONG: dict[str, tuple[job_pb2.JobSpec, str]] = {
    "name": (job_pb2.JobSpec(name="-x"), "name '-x'"),
    "name too long": (job_pb2.JobSpec(name="x" * 64), "1 to 63"),
    "env name": (job_pb2.JobSpec(env={"A B": "1"}), "env: 'A B'"),
    "env value": (job_pb2.JobSpec(env={"A": "\0"}), "A '\\x00'"),
    "command": (job_pb2.JobSpec(command=["\0"]), "command[1] '\\x00'"),
    "label": (job_pb2.JobSpec(labels={"a": "b\n"}), "a 'b\\n'"),
    "image": (job_pb2.JobSpec(image="\t"), "image '\\t'"),
    "model": (job_pb2.JobSpec(gpus=job_pb2.GpuRequest(model="\x01")), "gpus.model"),
    "gpus": (job_pb2.JobSpec(gpus=job_pb2.GpuRequest(count=65)), "gpus.count is 65: it must be 0 to 64"),
    "absurd gpus": (job_pb2.JobSpec(gpus=job_pb2.GpuRequest(count=2**32 - 1)), "gpus.count is 4294967295"),
    "cpus": (job_pb2.JobSpec(cpus=1025), "cpus is 1025"),
    "memory": (job_pb2.JobSpec(memory_mib=63), "memory_mib is 63: it must be 64 to"),
    "absurd memory": (job_pb2.JobSpec(memory_mib=2**32 - 1), "memory_mib is 4294967295"),
    "priority": (job_pb2.JobSpec(priority=-1001), "priority is -1001: it must be -1000 to 1000"),
    "grace": (job_pb2.JobSpec(stop_grace_s=3601), "stop_grace_s is 3601"),
    "numa": (job_pb2.JobSpec(numa=99), "numa is 99"),  # type: ignore[arg-type]
    "volume name": (job_pb2.JobSpec(volumes=[volume("Data")]), "volumes[0].name 'Data'"),
    "volume name too long": (job_pb2.JobSpec(volumes=[volume("d" * 21)]), "1 to 20"),
    "volume twice": (
        job_pb2.JobSpec(volumes=[volume(path="/a"), volume(path="/b")]),
        "volumes[1].name 'data': used twice",
    ),
    "path twice": (job_pb2.JobSpec(volumes=[volume("a"), volume("b")]), "volumes[1].path '/data': used twice"),
    "relative path": (job_pb2.JobSpec(volumes=[volume(path="data")]), "volumes[0].path 'data'"),
    "root": (job_pb2.JobSpec(volumes=[volume(path="/")]), "volumes[0].path '/'"),
    "climbing path": (job_pb2.JobSpec(volumes=[volume(path="/a/../b")]), "volumes[0].path"),
    "hugepages": (
        vm(hugepage_size_kib=4),
        "vm.hugepage_size_kib is 4: it must be one of 2048 (2 MiB), 1048576 (1 GiB), or 0",
    ),
    "half a page": (
        job_pb2.JobSpec(memory_mib=1025, vm=job_pb2.VmOptions(hugepage_size_kib=2048)),
        "memory_mib is 1025: in pages of 2 MiB it must be a multiple of that, e.g. 1026",
    ),
    "a bridge without a name": (network(job_pb2.Network.BRIDGE), "bridge needs the name of the host's bridge"),
    "macvtap of two words": (network(job_pb2.Network.MACVTAP, "eth0 up"), "vm.network.source 'eth0 up': macvtap needs"),
    "a name that Linux refuses": (network(job_pb2.Network.BRIDGE, "x" * 16), "1 to 15 letters"),
    "a way out of /sys": (network(job_pb2.Network.BRIDGE, ".."), "vm.network.source '..'"),
    "user network with a source": (network(job_pb2.Network.USER, "br0"), "vm.network.source 'br0': user takes none"),
    "a source alone": (network(job_pb2.Network.KIND_UNSPECIFIED, "br0"), "'br0': no network takes none"),
    "a network of the future": (network(9), "vm.network.kind is 9"),
    "vendor too long": (vm(hypervisor_vendor_id="x" * 13), "vm.hypervisor_vendor_id 'xxxxxxxxxxxxx': at most 12"),
    "vendor with a comma": (vm(hypervisor_vendor_id="a,b"), "no comma"),
    "vendor in Greek": (vm(hypervisor_vendor_id="αβγ"), "printable ASCII"),
    "much user data": (vm(user_data="é" * 32769), "vm.user_data has 65538 bytes: at most 65536"),
    "user data with a NUL": (vm(user_data="a\0"), "vm.user_data: no NUL"),
    "empty volume": (job_pb2.JobSpec(volumes=[volume(size_mib=0)]), "volumes[0].size_mib is 0"),
}  # fmt: skip


def test_a_good_spec_has_none() -> None:
    good = spec("train-1")
    good.volumes.append(volume())
    good.env["A_1"] = "x\ny"
    assert faults(good) == []
    good.vm.hugepage_size_kib = 1024 * 1024
    good.vm.network.kind, good.vm.network.source = job_pb2.Network.MACVTAP, "enp1s0f0.100"
    good.vm.user_data, good.vm.hypervisor_vendor_id = "#cloud-config\n" + "x" * 60000, "Micro-soft+1"
    assert faults(good) == []


@pytest.mark.parametrize("case", WRONG)
def test_each_fault(case: str) -> None:
    change, message = WRONG[case]
    wrong = spec()
    wrong.MergeFrom(change)
    (fault,) = faults(wrong)
    assert message in fault


@pytest.mark.parametrize(
    ("field", "message"),
    [("image", "image is missing"), ("command", "command is missing"), ("cpus", "cpus is 0"), ("memory_mib", "is 0")],
)
def test_what_is_missing(field: str, message: str) -> None:
    wrong = spec()
    wrong.ClearField(field)  # type: ignore[arg-type]
    (fault,) = faults(wrong)
    assert message in fault


def test_a_command_of_nothing() -> None:
    wrong = spec()
    wrong.command[:] = [""]
    assert "command[0] is empty" in faults(wrong)[0]


def test_a_gpu_described_but_not_wanted() -> None:
    wrong = spec(gpus=0)
    wrong.gpus.model = "a100"
    assert "set gpus.count to 1 or more" in faults(wrong)[0]


def test_too_large_is_the_only_fault_told() -> None:
    wrong = spec()
    wrong.env["X"] = "x" * MAX_SPEC_BYTES
    wrong.cpus = 0
    (fault,) = faults(wrong)
    assert str(MAX_SPEC_BYTES) in fault


def test_several_at_once() -> None:
    assert len(faults(job_pb2.JobSpec(priority=5000, name="?"))) == 6
