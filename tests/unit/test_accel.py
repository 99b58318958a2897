"""The choice of accelerator, where KVM is missing, refused or not what it seems."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.vms.accel import choose, kvm_works

FLAGS = "processor\t: 0\nflags\t\t: fpu vme {}\nbugs\t\t: vmx\n"


def cpuinfo(folder: Path, flag: str) -> Path:
    file = folder / "cpuinfo"
    file.write_text(FLAGS.format(flag))
    return file


async def test_no_device(tmp_path: Path) -> None:
    assert not await kvm_works(tmp_path / "kvm", cpuinfo(tmp_path, "vmx"))


async def test_a_device_that_makes_no_vm(tmp_path: Path) -> None:
    (tmp_path / "kvm").touch()  # the ioctl fails on a plain file
    assert not await kvm_works(tmp_path / "kvm", cpuinfo(tmp_path, "svm"))


async def test_a_cpu_without_the_extension_is_not_even_tried(tmp_path: Path) -> None:
    assert not await kvm_works(Path("/dev/kvm"), cpuinfo(tmp_path, "sse"))


async def test_auto_is_tcg_without_kvm(tmp_path: Path) -> None:
    assert await choose("auto", tmp_path / "kvm", cpuinfo(tmp_path, "vmx")) == "tcg"


@pytest.mark.parametrize("wanted", ["kvm", "tcg"])
async def test_the_operator_knows_better(tmp_path: Path, wanted: str) -> None:
    assert await choose(wanted, tmp_path / "kvm", tmp_path / "none") == wanted


async def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="auto, kvm, tcg"):
        await choose("hax")
