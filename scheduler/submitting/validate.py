"""Whether a job spec makes sense: every fault at once, each with its path, its value and the way out. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gpupool.v1 import job_pb2

from ..codec.decode_rules import labels_of
from .validate_queue import queue_faults
from .validate_rules import faults_of_rules

MAX_SPEC_BYTES = 256 * 1024
MAX_GPUS = 64
MAX_CPUS = 1024
MIN_MEMORY_MIB, MAX_MEMORY_MIB = 64, 16 * 1024 * 1024
MAX_VOLUME_MIB = 64 * 1024 * 1024
MAX_PRIORITY = 1000
MAX_GRACE_S = 3600
HUGEPAGE_SIZES_KIB = {2048: "2 MiB", 1024 * 1024: "1 GiB"}  # those of x86
MAX_USER_DATA_BYTES = 64 * 1024
_NO_NUL = "no NUL character is allowed"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SERIAL = re.compile(r"[a-z0-9][a-z0-9-]{0,19}")
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}")  # Linux takes 15 bytes (IFNAMSIZ in linux/if.h), and more
_CONTROL = re.compile(r"[\x00-\x1f]")
_VENDOR = re.compile(r"[ -+\--~]{0,12}")  # 12 bytes of CPUID; libvirt refuses a comma, which would end a QEMU option


def faults(spec: job_pb2.JobSpec) -> list[str]:
    """All that is wrong with `spec`; empty if nothing is."""
    size = spec.ByteSize()
    if size > MAX_SPEC_BYTES:
        return [f"the spec has {size} bytes, at most {MAX_SPEC_BYTES} are allowed; keep data in a volume, not in env"]
    return [
        *_texts(spec),
        *_amounts(spec),
        *_volumes(spec),
        *_vm(spec),
        *queue_faults(spec),
        *faults_of_rules(spec),
    ]


def faults_of_texts(spec: job_pb2.JobSpec) -> list[str]:
    """Those that are wrong with what `spec` says in words, or with its size: for a spec that is right but for these."""
    return [*_own_texts(spec)] if spec.ByteSize() <= MAX_SPEC_BYTES else faults(spec)


def _texts(spec: job_pb2.JobSpec) -> Iterator[str]:
    if not spec.image:
        yield "image is missing: name a guest image; `gpupool hosts -o wide` lists those at hand"
    for what, text in (("image", spec.image), ("gpus.model", spec.gpus.model)):
        if _CONTROL.search(text):
            yield f"{what} {text!r}: control characters are not allowed"
    yield from _own_texts(spec)


def _own_texts(spec: job_pb2.JobSpec) -> Iterator[str]:
    """What most jobs have for themselves, so that it is looked at for each."""
    name, env, labels, command = spec.name, labels_of(spec.env), labels_of(spec.labels), list(spec.command)
    if name and not _NAME.fullmatch(name):
        yield f"name {name!r}: 1 to 63 letters, digits, '-', '.', '_', the first a letter or digit"
    if not command:
        yield 'command is missing: give the argv to run in the guest, e.g. ["python3", "train.py"]'
    for name, _ in env:
        if not _ENV.fullmatch(name):
            yield f"env: {name!r} is no name of an environment variable"
    if command and not command[0]:
        yield "command[0] is empty: the first word names the program to run"
    if "\0" in "".join(command):
        yield from (f"command[{n}] {word!r}: {_NO_NUL}" for n, word in enumerate(command) if "\0" in word)
    for name, text in env:
        if "\0" in text:
            yield f"{name} {text!r}: {_NO_NUL}"
    if labels and _CONTROL.search("".join([part for label in labels for part in label])):
        for what, text in labels:
            if _CONTROL.search(text) or _CONTROL.search(what):
                yield f"{what} {text!r}: control characters are not allowed"


def _amounts(spec: job_pb2.JobSpec) -> Iterator[str]:
    yield from _between("gpus.count", spec.gpus.count, 0, MAX_GPUS)
    yield from _between("cpus", spec.cpus, 1, MAX_CPUS)
    yield from _between("memory_mib", spec.memory_mib, MIN_MEMORY_MIB, MAX_MEMORY_MIB, " (MiB)")
    yield from _between("priority", spec.priority, -MAX_PRIORITY, MAX_PRIORITY)
    yield from _between("stop_grace_s", spec.stop_grace_s, 0, MAX_GRACE_S, " (seconds)")
    if spec.numa not in job_pb2.NumaPolicy.values():
        yield f"numa is {spec.numa}: it must be one of {', '.join(map(str, job_pb2.NumaPolicy.values()))}"
    if spec.gpus.count == 0 and (spec.gpus.model or spec.gpus.memory_mib):
        yield "gpus.count is 0 but a GPU is described: set gpus.count to 1 or more, or leave gpus out"


def _between(what: str, value: int, low: int, high: int, unit: str = "") -> Iterator[str]:
    if not low <= value <= high:
        yield f"{what} is {value}: it must be {low} to {high}{unit}"


def _volumes(spec: job_pb2.JobSpec) -> Iterator[str]:
    seen: set[str] = set()
    paths: set[str] = set()
    for n, volume in enumerate(spec.volumes):
        where = f"volumes[{n}]"
        if not _SERIAL.fullmatch(volume.name):
            yield f"{where}.name {volume.name!r}: 1 to 20 lower-case letters, digits and '-'"
        if volume.name in seen:
            yield f"{where}.name {volume.name!r}: used twice; each volume of a job needs its own name"
        seen.add(volume.name)
        if not volume.path.strip("/") or not volume.path.startswith("/") or ".." in volume.path.split("/"):
            yield f"{where}.path {volume.path!r}: must be absolute, below '/', without '..'"
        if volume.path in paths:
            yield f"{where}.path {volume.path!r}: used twice; each volume needs a mount point of its own"
        paths.add(volume.path)
        yield from _between(f"{where}.size_mib", volume.size_mib, 1, MAX_VOLUME_MIB, " (MiB)")


def _vm(spec: job_pb2.JobSpec) -> Iterator[str]:
    vm = spec.vm
    size_kib = vm.hugepage_size_kib
    if size_kib and size_kib not in HUGEPAGE_SIZES_KIB:
        known = ", ".join(f"{kib} ({name})" for kib, name in HUGEPAGE_SIZES_KIB.items())
        yield f"vm.hugepage_size_kib is {size_kib}: it must be one of {known}, or 0 for ordinary pages"
    elif size_kib and spec.memory_mib * 1024 % size_kib:
        page_mib = size_kib // 1024
        more = (spec.memory_mib // page_mib + 1) * page_mib
        yield f"memory_mib is {spec.memory_mib}: in pages of {page_mib} MiB it must be a multiple of that, e.g. {more}"
    yield from _network(vm.network)
    if not _VENDOR.fullmatch(vm.hypervisor_vendor_id):
        yield f"vm.hypervisor_vendor_id {vm.hypervisor_vendor_id!r}: at most 12 printable ASCII characters, no comma"
    if (found := len(vm.user_data.encode())) > MAX_USER_DATA_BYTES:
        yield f"vm.user_data has {found} bytes: at most {MAX_USER_DATA_BYTES}; have the guest fetch the rest"
    if "\0" in vm.user_data:
        yield "vm.user_data: no NUL character is allowed"


def _network(network: job_pb2.Network) -> Iterator[str]:
    kinds = job_pb2.Network.Kind
    if network.kind not in kinds.values():
        yield f"vm.network.kind is {network.kind}: it must be one of {', '.join(map(str, kinds.values()))}"
        return
    name = kinds.Name(network.kind).lower() if network.kind else "no network"
    if network.kind not in (job_pb2.Network.BRIDGE, job_pb2.Network.MACVTAP):
        if network.source:
            yield f"vm.network.source {network.source!r}: {name} takes none; leave it out, or say bridge or macvtap"
    elif not _INTERFACE.fullmatch(network.source):
        example = "bridge, such as br0" if network.kind == job_pb2.Network.BRIDGE else "interface, such as eth0"
        allowed = "1 to 15 letters, digits, '-', '.', '_'"
        yield f"vm.network.source {network.source!r}: {name} needs the name of the host's {example}: {allowed}"
