"""What `--fix` writes and runs: exact, once, whole, and to be taken back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.doctor import fixes
from agent.doctor.model import (
    Blacklist,
    EarlyBinding,
    KernelParameters,
    LoadModules,
    Memlock,
    Remedy,
    SetHugepages,
    Sysctl,
)
from agent.doctor.remedies import GRUB, GRUB_DROP_IN, GRUBBY, Command, steps

RULE = EarlyBinding((("etc/modprobe.d/gpupool-vfio.conf", "softdep nouveau pre: vfio-pci\n"),))
ALL: tuple[Remedy, ...] = (
    LoadModules("vfio", ("vfio-pci",)),
    KernelParameters(("intel_iommu=on",)),
    RULE,
    Blacklist(("nouveau",)),
    Sysctl("kernel.panic", "10"),
    Memlock("libvirtd", 812),
    SetHugepages(2048, 512, (0, 1)),
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in (GRUB, GRUBBY):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    return tmp_path


class Runs:
    """Notes what is run; fails what it is told to."""

    def __init__(self, *bad: str) -> None:
        self.done: list[str] = []
        self.bad = bad

    def __call__(self, command: Command) -> str:
        self.done.append(" ".join(command))
        return "ended with 1" if command[0] in self.bad else ""


def tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}


def test_everything_on_debian(root: Path) -> None:
    runs = Runs()
    assert fixes.apply(fixes.plan(ALL, "debian", root), root, runs, "t") == []
    files = tree(root)
    assert files[GRUB_DROP_IN].endswith('GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX intel_iommu=on"\n')
    assert files["etc/modules-load.d/gpupool-vfio.conf"].splitlines()[1:] == ["vfio-pci"]
    assert files["etc/modprobe.d/gpupool-vfio.conf"] == "softdep nouveau pre: vfio-pci\n"
    assert files["etc/modprobe.d/gpupool-blacklist.conf"].splitlines()[1:] == ["blacklist nouveau"]
    assert files["etc/sysctl.d/90-gpupool.conf"].splitlines()[1:] == ["kernel.panic = 10"]
    assert files["etc/systemd/system/libvirtd.service.d/gpupool.conf"].endswith("[Service]\nLimitMEMLOCK=infinity\n")
    pages = "/sys/devices/system/node/node{}/hugepages/hugepages-2048kB/nr_hugepages - - - - 512"
    assert files["etc/tmpfiles.d/gpupool-hugepages.conf"].splitlines()[1:] == [
        f"w {pages.format(node)}" for node in (0, 1)
    ]
    assert runs.done == [
        "modprobe -a vfio-pci",
        "update-grub",
        "update-initramfs -u -k all",
        "sysctl -w kernel.panic=10",
        "systemctl daemon-reload",
        "prlimit --pid=812 --memlock=unlimited:unlimited",
        "systemd-tmpfiles --create /etc/tmpfiles.d/gpupool-hugepages.conf",
    ]
    assert fixes.OWED not in files


def test_on_rhel_grubby_and_dracut_do_it(root: Path) -> None:
    runs = Runs()
    fixes.apply(fixes.plan(ALL, "rhel", root), root, runs, "t")
    assert "grubby --update-kernel=ALL --args=intel_iommu=on" in runs.done
    assert "dracut --force --regenerate-all" in runs.done
    assert GRUB_DROP_IN not in tree(root)


def test_where_the_way_is_not_known_nothing_is_done(tmp_path: Path) -> None:
    assert not fixes.plan([KernelParameters(("a",)), RULE, Blacklist(("nouveau",))], "", tmp_path)
    assert not fixes.plan([KernelParameters(("a",))], "debian", tmp_path), "a boot loader that we do not know"


def test_a_second_run_changes_no_file_and_builds_nothing(root: Path) -> None:
    fixes.apply(fixes.plan(ALL, "debian", root), root, Runs(), "t")
    before = tree(root)
    again = fixes.plan(ALL, "debian", root)
    assert again.changes == ()
    assert not {command[0] for command in again.commands} & {"update-grub", "update-initramfs", "systemctl"}
    fixes.apply(again, root, Runs(), "u")
    assert tree(root) == before


def test_what_an_interrupted_run_owed_is_done_by_the_next(root: Path) -> None:
    def power_cut(_: Command) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fixes.apply(fixes.plan([RULE], "debian", root), root, power_cut, "t")
    assert (root / "etc/modprobe.d/gpupool-vfio.conf").exists()
    runs = Runs()
    fixes.apply(fixes.plan([RULE], "debian", root), root, runs, "u")
    assert runs.done == ["update-initramfs -u -k all"]
    assert not fixes.plan([RULE], "debian", root)


def test_a_command_that_fails_stays_owed_and_does_not_stop_the_others(root: Path) -> None:
    runs = Runs("update-grub")
    failed = fixes.apply(fixes.plan(ALL, "debian", root), root, runs, "t")
    assert failed == ["update-grub: ended with 1"]
    assert runs.done[-1].startswith("systemd-tmpfiles")
    assert fixes.plan([], "debian", root).commands == (("update-grub",),)


def test_what_is_replaced_is_kept(root: Path) -> None:
    (root / "etc/modprobe.d").mkdir(parents=True)
    old = root / "etc/modprobe.d/gpupool-vfio.conf"
    old.write_text("mine\n")
    old.chmod(0o600)
    fixes.apply(fixes.plan([RULE], "debian", root), root, Runs(), "20260102T030405Z")
    backup = root / fixes.STATE / "backup/20260102T030405Z/etc/modprobe.d/gpupool-vfio.conf"
    assert backup.read_text() == "mine\n"
    assert old.stat().st_mode & 0o777 == 0o600
    assert not list(root.rglob("*.new"))


def test_what_was_asked_before_is_not_forgotten(root: Path) -> None:
    for remedy in (
        Blacklist(("nouveau",)),
        Blacklist(("radeon",)),
        KernelParameters(("a=1",)),
        KernelParameters(("b",)),
    ):
        fixes.apply(fixes.plan([remedy], "debian", root), root, Runs(), "t")
    assert tree(root)["etc/modprobe.d/gpupool-blacklist.conf"].splitlines()[1:] == [
        "blacklist nouveau", "blacklist radeon",
    ]  # fmt: skip
    assert '"$GRUB_CMDLINE_LINUX a=1 b"' in tree(root)[GRUB_DROP_IN]


def test_a_setting_is_replaced_and_others_stay(root: Path) -> None:
    file = root / "etc/sysctl.d/90-gpupool.conf"
    file.parent.mkdir(parents=True)
    file.write_text("vm.swappiness = 1\nkernel.panic = 0\n")
    fixes.apply(fixes.plan([Sysctl("kernel.panic", "10")], "debian", root), root, Runs(), "t")
    assert file.read_text().splitlines()[1:] == ["vm.swappiness = 1", "kernel.panic = 10"]


def test_the_diff_is_what_will_be_written(root: Path) -> None:
    shown = fixes.show(fixes.plan([RULE], "debian", root))
    assert shown.splitlines() == [
        "--- /dev/null",
        "+++ /etc/modprobe.d/gpupool-vfio.conf",
        "@@ -0,0 +1 @@",
        "+softdep nouveau pre: vfio-pci",
        "run: update-initramfs -u -k all",
    ]


def test_a_folder_that_cannot_be_written_fails_before_any_command(root: Path) -> None:
    (root / "etc/modprobe.d").write_text("a file where a folder should be")
    runs = Runs()
    with pytest.raises(OSError, match=r"modprobe\.d"):
        fixes.apply(fixes.plan([RULE], "debian", root), root, runs, "t")
    assert runs.done == []


@settings(deadline=None)
@given(st.one_of(st.binary(max_size=60), st.just(b"[[]]"), st.just(b'{"a": 1}'), st.just(b"[1, null]"), st.just(b"5")))
def test_a_note_that_makes_no_sense_owes_nothing(tmp_path_factory: pytest.TempPathFactory, noted: bytes) -> None:
    root = tmp_path_factory.mktemp("r")
    (root / fixes.OWED).parent.mkdir(parents=True)
    (root / fixes.OWED).write_bytes(noted)
    assert fixes.plan([], "debian", root).commands == ()


@pytest.mark.parametrize("system", ["debian", "rhel"])
@pytest.mark.parametrize("remedy", ALL, ids=lambda remedy: type(remedy).__name__)
def test_people_are_told_what_fix_does(remedy: Remedy, system: str, root: Path) -> None:
    told = steps(remedy, system)
    if isinstance(remedy, EarlyBinding):
        assert told.startswith("gpupool doctor --fix")
        return
    plan = fixes.plan([remedy], system, root)
    for command in plan.commands:
        assert " ".join(command) in told
    for change in plan.changes:
        assert f"/{change.path}" in told
        assert change.after.splitlines()[-1] in told


def test_the_note_is_json(root: Path) -> None:
    fixes.apply(fixes.plan([RULE], "debian", root), root, Runs("update-initramfs"), "t")
    assert json.loads((root / fixes.OWED).read_text()) == [["update-initramfs", "-u", "-k", "all"]]
