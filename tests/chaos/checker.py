"""What a run proves or disproves: overlaps, lost jobs, leaks. Pure.

It must claim an overlap only where there was one. Two incarnations that one look finds new are in no order, so that
pair alone says nothing; one that beats on after a later one has been seen in an earlier look is an overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

FINAL = ("SUCCEEDED", "FAILED", "CANCELLED")


@dataclass(frozen=True, slots=True)
class Beat:
    """At `at_s` (boot clock of this machine) the incarnation's slot was first seen to hold `beat`."""

    at_s: float
    job: str
    incarnation: str
    slot: int
    beat: int


@dataclass(frozen=True, slots=True)
class Sighting:
    """Processes of more than one VM of a job, seen in one look at the machine: allocations by name."""

    at_s: float
    job: str
    alive: tuple[str, ...]


@dataclass(slots=True)
class History:
    """What was seen of one run. `refused`: starts that failed since another QEMU had the image locked."""

    beats: Sequence[Beat] = ()
    sightings: Sequence[Sighting] = ()
    refused: Sequence[str] = ()
    acknowledged: Sequence[str] = ()
    states: Mapping[str, str] = field(default_factory=dict)  # of jobs, in the end
    leaks: Sequence[str] = ()  # what was left that nobody owns


def findings(history: History) -> list[str]:
    """Everything that must not be; empty is what we want."""
    return [
        *overlaps(history.beats),
        *(f"job {s.job}: VMs {', '.join(s.alive)} lived at once at {s.at_s:.2f} s" for s in history.sightings),
        *(f"a VM was started while another had its volume: {text}" for text in history.refused),
        *_lost(history.acknowledged, history.states),
        *(f"left behind: {leak}" for leak in history.leaks),
    ]


def overlaps(beats: Iterable[Beat]) -> Iterator[str]:
    """Incarnations that beat on although a later one of the same job had been seen."""
    born: dict[str, dict[str, float]] = {}  # job -> incarnation -> when it was first seen
    told: set[tuple[str, str]] = set()
    for beat in beats:
        mine = born.setdefault(beat.job, {})
        begun = mine.setdefault(beat.incarnation, beat.at_s)
        later = sorted(name for name, at_s in mine.items() if begun < at_s < beat.at_s)
        if later and (beat.job, beat.incarnation) not in told:
            told.add((beat.job, beat.incarnation))
            yield (
                f"job {beat.job}: incarnation {beat.incarnation} wrote beat {beat.beat} at {beat.at_s:.2f} s, though "
                f"{later[0]} had been writing since {mine[later[0]]:.2f} s"
            )


def _lost(acknowledged: Iterable[str], states: Mapping[str, str]) -> Iterator[str]:
    for job in acknowledged:
        state = states.get(job)
        if state not in FINAL:
            yield f"job {job} is lost: {state or 'nobody knows it'}"
        elif state != "SUCCEEDED":
            yield f"job {job} did not succeed: {state}"


def longest_gap_s(times: Iterable[float]) -> float:
    """The longest time between two neighbours; 0 for fewer than two."""
    return max((b - a for a, b in pairwise(sorted(times))), default=0.0)
