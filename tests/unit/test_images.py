"""Guest images: what is one, and what is said of one that is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.vms.images import DEFAULT_CMDLINE, FILES, ImageError, list_images, load_image


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
    assert (image.kernel, image.initrd, image.root) == tuple(folder / file for file in FILES)
    assert image.cmdline == DEFAULT_CMDLINE


def test_the_manifest_may_give_the_kernel_line(tmp_path: Path) -> None:
    make(tmp_path, "other", '{"cmdline": "console=ttyS0"}')
    assert load_image(tmp_path, "other").cmdline == "console=ttyS0"


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
