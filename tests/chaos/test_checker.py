"""The checker finds planted overlaps, losses and leaks, and does not cry wolf; plans follow from their seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import epochs
from tests.chaos.checker import Beat, History, Sighting, findings, longest_gap_s, overlaps
from tests.chaos.plan import ETCD, HOSTS, NODES, Kind, make_plan


def beats(text: str) -> list[Beat]:
    """One look a word, such as a1 or a1+b1."""
    count: dict[str, int] = {}
    made = []
    for at, look in enumerate(text.split()):
        for name in look.split("+"):
            count[name] = count.get(name, 0) + 1
            made.append(Beat(float(at), "j", name, 0, count[name]))
    return made


@pytest.mark.parametrize("text", ["", "a", "a a a b b c", "a a a+b b", "a+b", "a b b c c c"])
def test_one_after_the_other(text: str) -> None:
    assert not list(overlaps(beats(text)))


@pytest.mark.parametrize(
    ("text", "who"),
    [
        ("a a b a", "a"),
        ("a b a b", "a"),
        ("a b b c a", "a"),
        ("a b c b", "b"),
        ("a a+b b a", "a"),
        ("a b b+c c b", "b"),
    ],
)
def test_overlaps(text: str, who: str) -> None:
    found, *_ = overlaps(beats(text))
    assert f"incarnation {who} wrote" in found


def test_another_jobs_beats_are_no_overlap() -> None:
    other = [Beat(b.at_s, "k", "z", 0, b.beat) for b in beats("a a a")]
    assert not list(overlaps(sorted([*beats("a b b"), *other], key=lambda b: b.at_s)))


def test_everything_else_that_must_not_be() -> None:
    found = findings(
        History(
            sightings=[Sighting(3.0, "j1", ("j1.1", "j1.2"))],
            refused=['j1.2: Failed to get "write" lock'],
            acknowledged=["j1", "j2", "j3", "j4"],
            states={"j1": "SUCCEEDED", "j2": "RUNNING", "j4": "FAILED"},
            leaks=["domain gpupool-j1.1"],
        )
    )
    assert len(found) == 6
    assert "j1.1, j1.2 lived at once" in found[0]
    assert found[2:] == [
        "job j2 is lost: RUNNING", "job j3 is lost: nobody knows it", "job j4 did not succeed: FAILED",
        "left behind: domain gpupool-j1.1",
    ]  # fmt: skip
    assert not findings(History(beats=beats("a a b"), acknowledged=["j"], states={"j": "SUCCEEDED"}))


def test_the_longest_gap() -> None:
    assert longest_gap_s([5.0, 1.0, 2.0]) == 3.0
    assert longest_gap_s([1.0]) == 0.0


def test_the_reader_sees_two_incarnations_in_one_image(tmp_path: Path) -> None:
    image = tmp_path / "j" / "epoch.img"
    image.parent.mkdir()
    image.write_bytes(b"")
    reader = epochs.Reader(tmp_path)
    for slot, words in [(0, b"a 1\n"), (0, b"a 2\n"), (1, b"b 1\n"), (0, b"a 3\n"), (0, b"a 3\n"), (0, b"c 1\n")]:
        with image.open("r+b") as file:
            file.seek(epochs.BASE + slot * epochs.SLOT)
            file.write(words.ljust(epochs.SLOT, b"\0"))
        reader.look()
    assert [(b.incarnation, b.slot, b.beat) for b in reader.beats] == [
        ("a", 0, 1), ("a", 0, 2), ("b", 1, 1), ("a", 0, 3), ("c", 0, 1),
    ]  # fmt: skip
    assert len(list(overlaps(reader.beats))) == 1


def test_a_plan_is_its_seeds() -> None:
    assert make_plan(3, 900) == make_plan(3, 900)
    assert make_plan(3, 900) != make_plan(4, 900)
    kinds = {fault.kind for seed in range(5) for fault in make_plan(seed, 900)}
    assert kinds == set(Kind)


def test_faults_are_where_they_can_be() -> None:
    for seed in range(20):
        plan = make_plan(seed, 300)
        assert all(fault.at_s < 240 for fault in plan)
        for fault in plan:
            assert fault.node in {Kind.FULL: ETCD, Kind.POWER: HOSTS, Kind.GUARD: HOSTS}.get(fault.kind, NODES)
            assert all(fault.node in edge and edge[0] != edge[1] for edge in fault.edges)
            same = [f for f in plan if f is not fault and f.node == fault.node]
            assert not any(f.at_s <= fault.at_s <= f.at_s + f.for_s for f in same), "two faults of one node at once"
