"""A sysfs tree in a dictionary, for trees that no builder would make."""

from __future__ import annotations

from collections.abc import Mapping


class FakeSysfs:
    """`files`: path to text or bytes; `links`: path to a target, or its last component. Implements `ports.Sysfs`."""

    def __init__(self, files: Mapping[str, str | bytes], links: Mapping[str, str] | None = None) -> None:
        self.files = dict(files)
        self.links = dict(links or {})

    def read(self, path: str) -> str | None:
        content = self.files.get(path)
        return content.decode(errors="replace").strip() if isinstance(content, bytes) else content and content.strip()

    def read_bytes(self, path: str, limit: int = 4096, offset: int = 0) -> bytes | None:
        content = self.files.get(path)
        raw = content.encode(errors="replace") if isinstance(content, str) else content
        return raw and raw[offset : offset + limit]

    def list(self, path: str) -> list[str]:
        below = [name[len(path) + 1 :] for name in (*self.files, *self.links) if name.startswith(f"{path}/")]
        return sorted({name.split("/")[0] for name in below})

    def link_name(self, path: str) -> str | None:
        target = self.links.get(path)
        return None if target is None else target.rpartition("/")[2]

    def link_target(self, path: str) -> str | None:
        return self.links.get(path)

    def write(self, path: str, text: str) -> None:
        raise OSError(path, text)


def node_files(node: int, cpus: str, memory_kib: int = 1024 * 1024, distance: str = "10") -> dict[str, str | bytes]:
    base = f"devices/system/node/node{node}"
    return {
        f"{base}/cpulist": cpus,
        f"{base}/distance": distance,
        f"{base}/meminfo": f"Node {node} MemTotal: {memory_kib:>12} kB\nNode {node} X: 1 kB",
    }


def cpu_files(cores: list[list[int]]) -> dict[str, str | bytes]:
    files: dict[str, str | bytes] = {"devices/system/cpu/isolated": ""}
    for core in cores:
        for cpu in core:
            files[f"devices/system/cpu/cpu{cpu}/topology/core_cpus_list"] = ",".join(map(str, core))
    files["devices/system/cpu/online"] = ",".join(str(cpu) for core in cores for cpu in core)
    return files


def gpu_files(address: str, *, numa_node: str = "0", methods: str = "flr", group: str | None = "1") -> FakeSysfs:
    base = f"bus/pci/devices/{address}"
    bars = "0x0000000100000000 0x00000001ffffffff 0x000000000014220c\n" + "0x0 0x0 0x0\n" * 6
    files: dict[str, str | bytes] = {
        f"{base}/vendor": "0x10de",
        f"{base}/device": "0x20b5",
        f"{base}/class": "0x030200",
        f"{base}/numa_node": numa_node,
        f"{base}/resource": bars,
        f"{base}/reset_method": methods,
        f"{base}/current_link_speed": "16.0 GT/s PCIe",
        f"{base}/current_link_width": "16",
        f"{base}/config": bytes(256),  # of conventional PCI: no serial number
    }
    links = {f"{base}/iommu_group": f"../../../../kernel/iommu_groups/{group}"}
    links[f"{base}/iommu_group/devices/{address}"] = f"../../../../devices/{address}"
    return FakeSysfs(files, {} if group is None else links)
