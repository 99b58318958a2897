"""A crash at every commit point, one run each: python -m tests.sim --commit-points.

One seed's history without faults but a host that loses power is played once, and the commits of the leading scheduler
and of each agent are counted. Then it is played anew for each of them, and the process dies just before that commit is
applied, or just after; the rest runs to its end under all checks. No commit is left out, unlike by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from gpupool.store import keys
from gpupool.v1 import records_pb2
from tests.sim.cluster import REPLICAS, Cluster, Pace, to_the_end
from tests.sim.faults import Fault, Kind, apply_plan
from tests.sim.world import SeedFailedError, World

LEADER = "leader"
PACE = Pace(arrive_s=15.0, run_s=15.0, calm_s=40.0)
STEP_S, JOBS = 10.0, 4
CUT = Fault(20.0, Kind.POWER_CUT, "h1", 12.0)
DOWN_S = (0.5, 6.0)  # back before anybody else leads, or the session is over; and after that


@dataclass(frozen=True, slots=True)
class Point:
    """`who` is LEADER or an agent's node; `number` counts its commits from 0."""

    who: str
    number: int
    after: bool
    down_s: float = DOWN_S[1]

    def __str__(self) -> str:
        return f"{self.who}:{self.number}:{'after' if self.after else 'before'}:{self.down_s:g}"

    @classmethod
    def parse(cls, text: str) -> Point:
        """The reverse of str."""
        who, number, when, down_s = text.split(":")
        return cls(who, int(number), when == "after", float(down_s))


@dataclass
class Counter:
    """Counts commits on both sides of their being applied, and crashes whoever makes the one that is meant."""

    world: World
    point: Point | None = None
    seen: dict[tuple[str, bool], int] = field(default_factory=dict)
    crashed: str = ""

    def watch(self, node: str) -> None:
        """Look at the commits of the node."""
        self.world.link(node).at_commit = lambda applied: self._at(node, applied)

    def _at(self, node: str, applied: bool) -> bool:
        who = LEADER if node in REPLICAS else node
        if who == LEADER and not self._leads(node):
            return False
        number = self.seen.get((who, applied), 0)
        self.seen[who, applied] = number + 1
        if self.point is None or (self.point.who, self.point.number, self.point.after) != (who, number, applied):
            return False
        self.crashed = node
        self.world.crash(node)
        self.world.after(self.point.down_s, lambda: self.world.start(node))
        return True

    def _leads(self, node: str) -> bool:
        """Or may by this commit: as long as nobody leads, each that is made may be the one."""
        kv = self.world.backend.get(keys.LEADER)
        return kv is None or records_pb2.Leader.FromString(kv.value).id == node


def play(seed: int, point: Point | None = None, echo: Callable[[str], object] | None = None) -> Counter:
    """One run to its end. Raises AssertionError, naming the point, if something that must never be was seen."""
    with World(seed, echo=echo) as world:
        counter = Counter(world, point)
        try:
            _play(world, counter)
        except SeedFailedError:
            raise
        except AssertionError as exc:
            raise AssertionError(f"{exc}\nreplay: {world.replay}") from exc
        if point is not None and not counter.crashed:
            raise AssertionError(f"{point} was never reached\nreplay: {world.replay}")
        return counter


def _play(world: World, counter: Counter) -> None:
    where = f" --commit-point {counter.point}" if counter.point else " --commit-points"
    world.replay = f"python -m tests.sim --seed {world.seed}{where} --trace"
    cluster = Cluster(world, PACE)
    cluster.wanted = min(cluster.wanted, JOBS)
    cluster.start()
    apply_plan(world, [CUT])
    for node in (*REPLICAS, *(f"{name}/agent" for name in cluster.machines)):
        counter.watch(node)
    to_the_end(cluster, STEP_S)


def points(seed: int) -> Iterator[Point]:
    """Every one of that seed's history."""
    for (who, applied), count in sorted(play(seed).seen.items()):
        for number in range(count):
            for down_s in DOWN_S:
                yield Point(who, number, applied, down_s)
