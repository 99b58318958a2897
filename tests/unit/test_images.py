"""Guest images: what is one, and what is said of one that is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.vms.images import DEFAULT_CMDLINE, FILES, Image, ImageError, KernelBoot, UefiBoot, list_images, load_image


def make(root: Path, name: str, manifest: str = '{"kernel": "6.1"}') -> Path:
    folder = root / name
    folder.mkdir()
    for file in FILES:
        (folder / file).touch()
    (folder / "manifest.json").write_text(manifest)
    return folder


def test_a_whole_image(tmp_path: Path) -> None:
    folder = make(tmp_path, "debian")
    image = load_image(tmp_path, "debian")
    kernel, initrd, root = (folder / file for file in FILES)
    assert image == Image("debian", KernelBoot(kernel, initrd, root, DEFAULT_CMDLINE))


def test_the_manifest_may_give_the_kernel_line(tmp_path: Path) -> None:
    make(tmp_path, "other", '{"cmdline": "console=ttyS0"}')
    boot = load_image(tmp_path, "other").boot
    assert isinstance(boot, KernelBoot)
    assert boot.cmdline == "console=ttyS0"


def test_an_image_that_boots_by_uefi(tmp_path: Path) -> None:
    manifest = '{"boot": "uefi", "disk": {"file": "root.img", "format": "qcow2"}, "cloud_init": true}'
    folder = make(tmp_path, "ubuntu", manifest)
    image = load_image(tmp_path, "ubuntu")
    assert image == Image("ubuntu", UefiBoot(folder / "root.img", "qcow2"), cloud_init=True)
    (folder / "root.img").unlink()
    with pytest.raises(ImageError, match=r"lacks root\.img"):
        load_image(tmp_path, "ubuntu")


@pytest.mark.parametrize(
    "disk",
    ["", ', "disk": "a"', ', "disk": {"file": "../a", "format": "raw"}', ', "disk": {"file": "a", "format": "vdi"}'],
)
def test_a_uefi_image_must_name_its_disk(tmp_path: Path, disk: str) -> None:
    make(tmp_path, "ubuntu", f'{{"boot": "uefi"{disk}}}')
    with pytest.raises(ImageError, match=r"its manifest's disk is .*write \{\"file\""):
        load_image(tmp_path, "ubuntu")


def test_an_image_without_uefi_is_refused_with_what_to_do(tmp_path: Path) -> None:
    make(tmp_path, "old", '{"boot": "bios"}')
    with pytest.raises(
        ImageError, match=r"'old' boots by 'bios'; gpupool boots 'kernel' .* and 'uefi'.*put a UEFI boot"
    ):
        load_image(tmp_path, "old")


def test_an_image_being_built_is_none(tmp_path: Path) -> None:
    make(tmp_path, "b")
    make(tmp_path, "a")
    (tmp_path / "c.build.xyz").mkdir()
    assert list_images(tmp_path) == ["a", "b"]
    assert list_images(tmp_path / "missing") == []


@pytest.mark.parametrize("name", ["absent", "../debian", ""])
def test_a_missing_image_is_named_with_what_there_is(tmp_path: Path, name: str) -> None:
    make(tmp_path, "debian")
    with pytest.raises(ImageError, match=r"there: debian"):
        load_image(tmp_path, name)


def test_an_incomplete_image_says_what_it_lacks(tmp_path: Path) -> None:
    (make(tmp_path, "debian") / "initrd.img").unlink()
    with pytest.raises(ImageError, match=r"'debian'.*lacks initrd\.img"):
        load_image(tmp_path, "debian")


@pytest.mark.parametrize("manifest", ["{", "[]"])
def test_an_unreadable_manifest(tmp_path: Path, manifest: str) -> None:
    make(tmp_path, "debian", manifest)
    with pytest.raises(ImageError, match=r"'debian': cannot read"):
        load_image(tmp_path, "debian")
