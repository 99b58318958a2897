"""Coverage-guided fuzzing of the inventory: `make fuzz`, or this file with libFuzzer's options (-max_total_time=180).

The input chooses which answers of a good tree are replaced, and by what. Half of the inputs go to single parsers, where
coverage comes faster. Not collected by pytest: it needs atheris, which is no dependency of the project.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["agent"]):
    from agent.inventory import attributes, bars, config_space, hugepages, path, pci, pciids, topology, uevents
    from agent.inventory.read import MAX_NOTES, Memory, read_inventory

from tests.fakes import big_host
from tests.fakes.mutated import Answer, MutatedSysfs, Question, RememberingSysfs
from tests.unit.sysfs_fake import FakeSysfs


def good_tree() -> RememberingSysfs:
    with tempfile.TemporaryDirectory(prefix="gpupool-fuzz-") as folder:
        big_host.build(Path(folder) / "sys", nodes=1, functions=26, cores_per_node=2)
        good = RememberingSysfs(Path(folder) / "sys")
        read_inventory(good, allow=[(0x10B5, 0x8749)])
        return good


GOOD = good_tree()
QUESTIONS = sorted(GOOD.answers)


def one_input(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    if provider.ConsumeBool():
        single_parsers(provider)
    else:
        whole_tree(provider)


def whole_tree(provider: atheris.FuzzedDataProvider) -> None:
    changes: dict[Question, Answer] = {}
    for _ in range(provider.ConsumeIntInRange(1, 8)):
        question = QUESTIONS[provider.ConsumeIntInRange(0, len(QUESTIONS) - 1)]
        changes[question] = answer(provider, question[0])
    ids = (provider.ConsumeIntInRange(0, 0xFFFF), provider.ConsumeIntInRange(0, 0xFFFF))
    memory = Memory()
    inventory = read_inventory(
        MutatedSysfs(GOOD, changes), allow=[ids] if provider.ConsumeBool() else (), memory=memory
    )
    inventory.SerializeToString()
    addresses = [function.address for unit in inventory.units for function in unit.functions]
    assert len(addresses) == len(set(addresses)), "a function is in two units"
    assert len(inventory.notes) <= MAX_NOTES + 1


def answer(provider: atheris.FuzzedDataProvider, kind: str) -> Answer:
    if provider.ConsumeIntInRange(0, 5) == 0:
        return () if kind == "list" else None
    raw: bytes = provider.ConsumeBytes(provider.ConsumeIntInRange(0, 300))
    text = raw.decode("utf-8", errors="surrogateescape")
    if kind == "read":
        return raw
    return tuple(sorted(text.split("\n"))) if kind == "list" else text.encode(errors="replace").decode()


def single_parsers(provider: atheris.FuzzedDataProvider) -> None:
    raw = provider.ConsumeBytes(provider.ConsumeIntInRange(0, 4096))
    text = raw.decode("utf-8", errors="replace")
    for bar in bars.parse_resource(text)[0]:
        assert 0 < bar.size_bytes < 2**64
    for parser in (attributes.link_speed, attributes.link_width, attributes.power_state, attributes.reset_methods):
        parser(text)
    cpus = topology.cpu_list(text)
    assert cpus is None or cpus == sorted(set(cpus))
    if (address := pci.canonical_address(text)) is not None:
        assert pci.canonical_address(address) == address
    path.parse_path(text, text.rpartition("/")[2])
    serial = config_space.serial_number(lambda offset, count: raw[offset - 256 : offset - 256 + count])
    assert not serial or len(serial) == 16
    config_space.bridge_buses(raw)
    pciids.look_up(raw, [(0x10DE, 0x2330)])
    uevents.subsystem_of(raw)
    hugepages.read(
        FakeSysfs({"h/hugepages-2048kB/nr_hugepages": raw, "h/hugepages-2048kB/free_hugepages": raw}),
        "h",
        lambda _: None,
    )


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
