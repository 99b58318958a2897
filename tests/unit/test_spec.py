"""Job specs as people write them: what is accepted, and what is said about the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given, settings
from hypothesis import strategies as st

from gpupool.errors import InvalidSpec
from gpupool.spec import MAX_BYTES, load_spec, load_specs
from gpupool.v1 import job_pb2

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def faults(text: str) -> tuple[str, ...]:
    with pytest.raises(InvalidSpec) as caught:
        load_specs(text)
    return caught.value.violations


def test_examples() -> None:
    assert load_spec((EXAMPLES / "hello.yaml").read_text()).command == ["sh", "-c", "echo hello"]
    train = load_spec((EXAMPLES / "train.yaml").read_text())
    assert (train.gpus.model, train.volumes[0].path) == ("nvidia-a100-80gb", "/mnt/ckpt")
    assert train.restart.max_restarts == 5
    assert train.numa == job_pb2.NUMA_POLICY_PREFERRED
    gang = load_spec((EXAMPLES / "gang.yaml").read_text()).gang
    assert (gang.count, gang.spread_over, gang.on_member_loss) == (4, "host", job_pb2.Gang.RESTART_ALL)
    vm = load_spec((EXAMPLES / "hugepages.yaml").read_text()).vm
    assert (vm.hugepage_size_kib, vm.network.kind, vm.network.source) == (2048, job_pb2.Network.BRIDGE, "br0")
    assert vm.user_data.startswith("#cloud-config\n")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("name: a\n---\nname: b\n---\n", ["a", "b"]),
        ("- name: a\n- name: b", ["a", "b"]),
        ('[\n\t{"name": "a"}\n]', ["a"]),
        ('{"name": "a"}', ["a"]),
        ("name: &n a\nlabels: {x: *n}", ["a"]),
    ],
)
def test_several_jobs(text: str, names: list[str]) -> None:
    assert [spec.name for spec in load_specs(text)] == names


def test_names_of_json_and_short_enums() -> None:
    spec = load_spec("memoryMib: 8\nnuma: NUMA_POLICY_NONE\ncpus: 2.0\nenv:\nstopGraceS: 0x10")
    assert (spec.memory_mib, spec.numa, spec.cpus, spec.stop_grace_s) == (8, job_pb2.NUMA_POLICY_NONE, 2, 16)


def test_what_the_vm_is_like() -> None:
    vm = load_spec("vm:\n  network: {kind: macvtap, source: eth0}\n  guest_iommu: true\n  hideHypervisor: yes\n").vm
    assert (vm.network.kind, vm.network.source) == (job_pb2.Network.MACVTAP, "eth0")
    assert (vm.guest_iommu, vm.hide_hypervisor) == (True, True)


def test_zero_is_not_unset() -> None:
    assert load_spec("restart: {max_restarts: 0}").restart.HasField("max_restarts")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("gpus:\n  cuont: 1", 'line 2: gpus.cuont: unknown field; did you mean "count"?'),
        ("gpus: {modle: x}", 'line 1: gpus.modle: unknown field; did you mean "model"?'),
        ("gpu: 1", "line 1: gpu: unknown field; write `gpus: {count: 1}`"),
        ("gpus: 2", "line 1: gpus: must be a mapping, not '2'; write `gpus: {count: 2}`"),
        ("memory: 8GiB", "line 1: memory: unknown field; write `memory_mib: 8192` (MiB)"),
        ("memory_mib: 512MiB", "line 1: memory_mib: must be a whole number, not '512MiB'; it counts MiB: write 512"),
        ("vm: {hugepages: 2M}", "line 1: vm.hugepages: unknown field; write `hugepage_size_kib: 2048` (KiB)"),
        ("vm: {hugepages: yes}", 'line 1: vm.hugepages: unknown field; did you mean "hugepage_size_kib"?'),
        (
            "vm: {hugepage_size_kib: 1GiB}",
            "line 1: vm.hugepage_size_kib: must be a whole number, not '1GiB'; it counts KiB: write 1048576",
        ),
        ("vm: {guest_iommu: 1}", "line 1: vm.guest_iommu: must be true or false, not '1'"),
        ("vm: {network: user}", "line 1: vm.network: must be a mapping, not 'user'; write `network: {kind: user}`"),
        (
            "vm: {network: bridge:br0}",
            "line 1: vm.network: must be a mapping, not 'bridge:br0'; write `network: {kind: bridge, source: br0}`",
        ),
        ("vm: {network: {kind: nat}}", "line 1: vm.network.kind: 'nat' is none of user, bridge, macvtap"),
        ("volumes:\n- size: 1.5G", "line 2: volumes[0].size: unknown field; write `size_mib: 1536` (MiB)"),
        ("cpus: '4'", "line 1: cpus: must be a whole number, not '4'; leave the quotes away"),
        ("cpus: -1", "line 1: cpus: '-1' is not between 0 and 4294967295"),
        ("cpus: true", "line 1: cpus: must be a whole number, not 'true'"),
        ("env: {A: 1}", "line 1: env.A: must be text, not '1'; quote it: \"1\""),
        ("env: {A: yes}", "line 1: env.A: must be text, not 'yes'; quote it: \"yes\""),
        ("env: [A=1]", "line 1: env: must be a mapping such as `{KEY: value}`, not a list"),
        ("name: 2024-99-99", "line 1: name: must be text, not '2024-99-99'; quote it: \"2024-99-99\""),
        ("numa: strict", "line 1: numa: 'strict' is none of required, preferred, none"),
        ("command: [[a]]", "line 1: command[0]: must be text, not a list"),
        ("cpus: 1\n\ncpus: 2", "line 3: 'cpus' stands here twice, first in line 1; keep one"),
        ("labels: {a: x, a: y}", "line 1: labels: 'a' stands here twice, first in line 1; keep one"),
        ("cpus: 1\nmemory_mib: 1\nmemoryMib: 2", "line 3: memoryMib: stands here as memory_mib too; keep one"),
        ("<<: {cpus: 1}", "line 1: merge keys (<<) are not read; write the fields out"),
        ("a: [", "line 1, column 5: not YAML: expected the node content, but found '<stream end>'"),
        ("name: !!python/object:os.system x", "line 1: name: must be text, not 'x'; quote it: \"x\""),
        ("[" * 9000, "the text is nested too deeply for a job spec"),
        ("x" * (MAX_BYTES + 1), f"the text is longer than {MAX_BYTES} bytes; is it a job spec?"),
    ],
)
def test_fault(text: str, fault: str) -> None:
    assert faults(text) == (fault,)


def test_way_out_of_tabs_and_shell_commands() -> None:
    assert faults("env:\n\tA: b")[0].endswith("indent with spaces, not tabs")
    assert '["sh", "-c", "..."]' in faults("command: echo hi")[0]
    assert "examples/hello.yaml" in faults("---\n")[0]


def test_all_faults_are_told_at_once() -> None:
    assert len(faults("gpus: 1\ncpus: x\n---\nnmae: a\n")) == 3


def test_aliases_do_not_multiply() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert len(faults("\n".join([*lines, "command: *a11"]))) == 22


def test_one_job_is_one_job() -> None:
    with pytest.raises(InvalidSpec, match="the text has 2"):
        load_spec("name: a\n---\nname: b")


@settings(deadline=None)
@given(st.text())
def test_any_text_is_a_spec_or_a_fault(text: str) -> None:
    told: tuple[str, ...] = ("it is a spec",)
    try:
        load_specs(text)
    except InvalidSpec as error:
        told = error.violations
    assert told
    assert all("\n" not in line for line in told)


_names = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=20)
_specs = st.builds(
    job_pb2.JobSpec,
    name=_names,
    command=st.lists(_names),
    env=st.dictionaries(_names, _names),
    cpus=st.integers(0, 2**32 - 1),
    priority=st.integers(-(2**31), 2**31 - 1),
    numa=st.sampled_from(job_pb2.NumaPolicy.values()),
    vm=st.builds(
        job_pb2.VmOptions,
        hugepage_size_kib=st.integers(0, 2**32 - 1),
        network=st.builds(job_pb2.Network, kind=st.sampled_from(job_pb2.Network.Kind.values()), source=_names),
        user_data=_names,
        guest_iommu=st.booleans(),
    ),
    volumes=st.lists(st.builds(job_pb2.Volume, name=_names, size_mib=st.integers(0, 2**32 - 1))),
)


@settings(max_examples=50, deadline=None)
@given(_specs, st.booleans())
def test_what_the_api_shows_can_be_submitted_again(spec: job_pb2.JobSpec, proto_names: bool) -> None:
    text = json.dumps(MessageToDict(spec, preserving_proto_field_name=proto_names), indent="\t")
    assert load_spec(text) == spec
