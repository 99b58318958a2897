"""The list of planted bugs is sound: it fits the source, and the table in the docs is of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.mutants.__main__ import ROOT, TABLE, plant, rows
from tests.mutants.model import Mutant, Suite
from tests.mutants.plants import ALL_MUTANTS


def test_there_are_enough_and_each_has_its_name() -> None:
    names = [mutant.name for mutant in ALL_MUTANTS]
    assert len(names) >= 20
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("mutant", ALL_MUTANTS, ids=lambda mutant: mutant.name)
def test_it_fits_the_source(mutant: Mutant, tmp_path: Path) -> None:
    files = sorted({edit.file for edit in mutant.edits})
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    plant(mutant, tmp_path)
    for file in files:
        if file.endswith(".py"):
            compile((tmp_path / file).read_text(), file, "exec")


def test_its_tests_exist() -> None:
    for mutant in ALL_MUTANTS:
        for name in mutant.catch.names if isinstance(mutant.catch, Suite) else ():
            file, _, rest = name.partition("::")
            assert (ROOT / file).exists(), f"{mutant.name}: {file}"
            assert not rest or rest.partition("[")[0] in (ROOT / file).read_text(), f"{mutant.name}: {name}"


def test_the_docs_tell_of_each() -> None:
    assert rows(ALL_MUTANTS) in TABLE.read_text(), "run: python -m tests.mutants --table"
