"""Every scenario's log is as expected. `pytest tests/golden --rewrite` writes the logs anew: read the diff."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.runner import Player

HERE = Path(__file__).parent
SCENARIOS = sorted(p.parent.name for p in HERE.glob("*/script"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str, request: pytest.FixtureRequest) -> None:
    folder = HERE / name
    log = Player().play((folder / "script").read_text())
    assert "VIOLATION" not in log
    expected = folder / "log.expect"
    if request.config.getoption("--rewrite"):
        expected.write_text(log)
    assert log == expected.read_text()


def test_there_are_scenarios() -> None:
    assert len(SCENARIOS) >= 10
