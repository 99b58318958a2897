"""Jobs by name, and whether those that a new spec names in `restart.after` make sense. Read from a mirror.

A name that nobody has is a slip of the pen more often than a job to come, and a circle orders nothing: the core would
let go whoever is in it (core/queueing/order.py). It decides nothing about jobs that are there already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from gpupool.store.keys import Kind
from gpupool.v1 import job_pb2, records_pb2

SHOWN = 5  # names in a message
TURN = 200  # jobs between two looks at what else there is to do


class Records(Protocol):
    """What is read of the mirror."""

    def get(self, kind: Kind, of: type[records_pb2.JobRecord], *ids: str) -> records_pb2.JobRecord | None:
        """One record."""
        ...

    def listen(self, listener: Callable[[Kind, tuple[str, ...]], None], *kinds: Kind) -> Callable[[], None]:
        """Tell of each change of these kinds."""
        ...


class NamedJobs:
    """See the module docstring. To be made before the mirror is filled. `refresh` it before anything is asked."""

    def __init__(self, mirror: Records) -> None:
        self._mirror = mirror
        self._names: dict[str, str] = {}  # by job id
        self._after: dict[str, dict[str, tuple[str, ...]]] = {}  # what each job of a name names in turn, by job id
        self._stale: dict[str, None] = {}  # jobs that have come or gone, and were not looked at
        mirror.listen(self._noticed, Kind.JOB_SPEC)

    def _noticed(self, kind: Kind, ids: tuple[str, ...]) -> None:
        del kind
        self._stale[ids[0]] = None

    async def refresh(self, spec: job_pb2.JobSpec) -> None:
        """Take in what has changed, as far as this spec needs it: most name no other job."""
        done = 0
        while self._stale and spec.restart.after:
            job = next(iter(self._stale))
            del self._stale[job]
            self._look(job)
            done += 1
            if done % TURN == 0:
                await asyncio.sleep(0)

    def _look(self, job: str) -> None:
        if name := self._names.pop(job, ""):
            self._after[name].pop(job, None)
            if not self._after[name]:
                del self._after[name]
        record = self._mirror.get(Kind.JOB_SPEC, records_pb2.JobRecord, job)
        if record is not None and record.spec.name:
            self._names[job] = record.spec.name
            self._after.setdefault(record.spec.name, {})[job] = tuple(record.spec.restart.after)

    def faults(self, spec: job_pb2.JobSpec, beside: Iterable[job_pb2.JobSpec] = ()) -> list[str]:
        """What can never be right about `restart.after`. `beside`: specs that are submitted together with it."""
        if not spec.name or not spec.restart.after:
            return []
        if spec.name in spec.restart.after:
            return [f"restart.after {spec.name!r}: that is the job itself; leave it out"]
        circle = self._circle(spec, _by_name(beside))
        if not circle:
            return []
        return [f"restart.after {circle[1]!r}: {' after '.join(circle)} is a circle; leave one of them out"]

    def unknown(self, spec: job_pb2.JobSpec, beside: Iterable[job_pb2.JobSpec] = ()) -> list[str]:
        """Names in `restart.after` that no job has."""
        if not spec.restart.after:
            return []
        known = self._after.keys() | {other.name for other in beside if other.name}
        have = ", ".join(sorted(known)[:SHOWN]) + (", ..." if len(known) > SHOWN else "")
        strange = [name for name in dict.fromkeys(spec.restart.after) if name not in known]
        return [f"restart.after {name!r}: no job has this name; names at hand: {have or 'none'}" for name in strange]

    def _circle(self, spec: job_pb2.JobSpec, beside: Mapping[str, list[str]]) -> list[str]:
        """The names on a way from the job back to itself; empty: there is none."""
        came: dict[str, str] = {}
        todo = [(spec.name, name) for name in spec.restart.after]
        while todo:
            before, name = todo.pop()
            if name == spec.name:
                way = [before]
                while way[-1] != spec.name:
                    way.append(came[way[-1]])
                return [*reversed(way), spec.name]
            if name not in came:
                came[name] = before
                todo += [(name, other) for other in (*self._named_by(name), *beside.get(name, ()))]
        return []

    def _named_by(self, name: str) -> Iterator[str]:
        for after in self._after.get(name, {}).values():
            yield from after


def _by_name(specs: Iterable[job_pb2.JobSpec]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for spec in specs:
        found.setdefault(spec.name, []).extend(spec.restart.after)
    return found
