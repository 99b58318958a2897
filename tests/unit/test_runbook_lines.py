"""What counts when the output of a command is compared with a runbook's page, and what differs from run to run."""

from __future__ import annotations

import pytest

from tests.e2e.runbook import matches, steps


@pytest.mark.parametrize(
    ("page", "printed"),
    [
        ("h2  FENCED  0/1  0  3  4s", "h2  FENCED  0/1  0  30       1m5s"),
        ("h1 READY 1/1 0 5 59s", "h1 READY   1/1 0 17 1m9s"),
        ("held out for 33s: lost 2 times within 600 s", "held out for 1m3.5s: lost 2 times within 600 s"),
        ("lost: 2026-11-25 21:16:27, 80.3s ago", "lost: 2027-01-02 00:00:01, 0.4s ago"),
        ("leader: s1 at 127.0.0.1:42101, for 24s", "leader: s1 at 127.0.0.1:1024, for 1h2m"),
        ("j53lhwvfcoxwjc.1 +0.0s h1", "jaaaaaaaaaaaaa.1 +31.4s h1"),
    ],
)
def test_what_differs_from_run_to_run_is_no_difference(page: str, printed: str) -> None:
    assert matches([page], [printed])


@pytest.mark.parametrize(
    ("page", "printed"),
    [
        ("h2 FENCED 0/1 0 3 4s", "h2 FENCING 0/1 0 3 4s"),
        ("h2 FENCED 0/1 0 3 4s", "h2 FENCED 1/1 0 3 4s"),
        ("train RUNNING 1 h1 2", "train RUNNING 1 h1 1"),
        ("train RUNNING 1 h1 2", "train RUNNING 1 h2 2"),
    ],
)
def test_what_the_page_is_about_is_one(page: str, printed: str) -> None:
    assert not matches([page], [printed])


def test_dots_stand_for_any_lines() -> None:
    assert matches(["a", "...", "z"], ["a", "b", "c", "z"])
    assert matches(["...", "z"], ["z"])
    assert not matches(["a", "..."], ["b"])


def test_a_page_is_read_in_order() -> None:
    page = "# T\n<!-- stage: cut h2 -->\n```console once\n$ a b\nsaid\n$ c\n```\n```sh\nnot run\n```\n"
    found = [(s.stage, s.command, s.expected, s.once, s.line) for s in steps(page)]
    assert found == [("cut h2", "", [], False, 2), ("", "a b", ["said"], True, 4), ("", "c", [], True, 6)]
    with pytest.raises(ValueError, match="without a command"):
        list(steps("```console\nsaid\n```\n"))
