"""Gangs: all or nothing, never two incarnations of a member, no deadlock; an arrangement is found if there is one."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from copy import deepcopy
from itertools import permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.fitting.fit import Fit
from scheduler.core.gangs.arrange import Seat
from scheduler.core.gangs.ask import ask_of
from scheduler.core.gangs.place import find
from scheduler.core.gangs.together import as_one
from scheduler.core.place import Placer, retract
from scheduler.core.reservation.admission import Admission, Choice
from scheduler.core.state import limits
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.hosts import Host
from scheduler.core.state.jobs import Attempt, Job, Outcome
from scheduler.core.state.tables import AllocationState, JobState
from scheduler.core.state.terms import OnLoss
from tests.golden.runner import Player

GANGS = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 2), st.sampled_from(["", "alone", "spread:host", "alone.spread:host"])),
    min_size=1,
    max_size=3,
)
DOINGS = st.lists(
    st.tuples(
        st.sampled_from(
            ["run", "lost", "back", "stop", "stop", "crash", "fail", "hold", "release", "cancel", "requeue", "drain",
             "undrain", "leader", "commit_fails", "single"]
        ),
        st.integers(0, 30),
    ),
    max_size=25,
)  # fmt: skip


class Played(Player):
    """Watches, with eyes of its own, what each placement makes of gangs."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[str] = []
        self.singles = 0

    def do_place(self) -> None:
        before = {a.id for a in self.cluster.allocations.values()}
        vms = {a.job for a in self.cluster.allocations.values() if a.state not in _DEAD}
        super().do_place()
        made = [a for a in self.cluster.allocations.values() if a.id not in before]
        for one in made:
            job = self.cluster.jobs[one.job]
            member = job.terms.member
            if one.job in vms:
                self.wrong.append(f"{one.id} is made while another VM of {one.job} may live")
            if member is None or (member.on_loss is OnLoss.RESTART_MEMBER and one.attempt > 1):
                continue
            mine = [j for j in self.cluster.jobs.values() if j.terms.member and j.terms.member.gang == member.gang]
            with_it = {a.job for a in made}
            for other in mine:
                if not other.final and other.id not in with_it:
                    self.wrong.append(f"{one.id} is made without {other.id}, which is {other.state.value}")
                if other.id in vms:
                    self.wrong.append(f"{one.id} is made while a VM of {other.id} may live")

    def do_commit_fails(self, host: str) -> None:
        """As the leader does when the guard of a new allocation there fails: nothing of its group was written."""
        super().do_place()
        groups = as_one(self.cluster, self.cluster.dirty)
        made = [self.cluster.allocations[a] for a in sorted(self.cluster.dirty.created)]
        failed = {groups.get(a.job, a.job) for a in made if a.host == host}
        for a in made:
            if groups.get(a.job, a.job) in failed:
                retract(self.cluster, a, self.now, "its session ended")


_DEAD = (AllocationState.ENDED, AllocationState.LOST)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 3), min_size=2, max_size=4), GANGS, DOINGS)
def test_all_or_nothing_and_everything_ends(
    hosts: list[int], gangs: list[tuple[int, int, str]], doings: list[tuple[str, int]]
) -> None:
    player = Played()
    for n, gpus in enumerate(hosts):
        player.play(f"host h{n} {gpus}xa100")
    for n, (count, gpus, how) in enumerate(gangs):
        player.play(f"gang g{n} {count} {how} gpus={gpus} deaths=0 grace=5")
    for doing, number in doings:
        _do(player, doing, number)
        assert not player.wrong
    _all_end(player)
    assert not player.wrong
    assert "VIOLATION" not in "\n".join(player.log)


def _do(player: Played, doing: str, number: int) -> None:
    jobs = [j for j in player.cluster.jobs.values() if not j.final]
    live = [j for j in jobs if j.allocation_id]
    hosts = sorted(player.cluster.hosts)
    host = hosts[number % len(hosts)]
    if doing in ("run", "leader"):
        player.play(doing)
    elif doing == "single":
        player.singles += 1
        player.play(f"submit s{player.singles} gpus=1")
    elif doing in ("drain", "undrain", "commit_fails") or (doing == "lost" and player.cluster.hosts[host].fact):
        player.play(f"{doing} {host}")
    elif doing == "back" and not player.cluster.hosts[host].fact:
        player.play(f"back {host} boot=b{player.session + 2}")
    elif doing == "stop":
        _stop(player)
    elif doing == "release":
        for job in jobs:
            player.play(f"release {job.id}" if job.hold else "")
    elif doing in ("crash", "fail", "requeue") and live:
        job = live[number % len(live)]
        if doing == "requeue":
            player.play(f"requeue {job.id}")
        elif player.cluster.allocations[job.allocation_id or ""].state not in _DEAD:
            outcome = "CRASHED" if doing == "crash" else "START_FAILED"
            player.play(f"report {job.allocation_id} ENDED outcome={outcome}")
            _clean(player)
    elif doing in ("hold", "cancel") and jobs:
        player.play(f"{doing} {jobs[number % len(jobs)].id}")


def _stop(player: Played) -> None:
    """Who was asked to stop does."""
    for job in list(player.cluster.jobs.values()):
        allocation = player.cluster.allocations.get(job.allocation_id or "")
        if allocation is None or not allocation.stop_reason or allocation.state in _DEAD:
            continue
        if player.cluster.hosts[allocation.host].fact is not None:
            player.play(f"stopped {job.id}")
    _clean(player)


def _clean(player: Played) -> None:
    for allocation in list(player.cluster.allocations.values()):
        if allocation.state is AllocationState.ENDED and player.cluster.hosts[allocation.host].fact is not None:
            player.play(f"clean {allocation.id}")


def _all_end(player: Played) -> None:
    """No gang holds what another needs, and all who fit run in the end."""
    for host in sorted(player.cluster.hosts):
        if player.cluster.hosts[host].fact is None:
            player.play(f"back {host} boot=b{player.session + 2}")
        player.play(f"undrain {host}")
    player.play("release_brake")
    for _ in range(40):
        player.play("wait 400")
        for job in list(player.cluster.jobs.values()):
            player.play(f"release {job.id}" if job.hold else "")
        player.play("run")
        _stop(player)
        player.play("run")
        for job in list(player.cluster.jobs.values()):
            allocation = player.cluster.allocations.get(job.allocation_id or "")
            if allocation is not None and allocation.state is AllocationState.RUNNING and not allocation.stop_reason:
                player.play(f"end {job.id}")
        _clean(player)
    left = [j for j in player.cluster.jobs.values() if not j.final]
    for job in left:  # nothing but what does not fit on empty hosts is left
        assert job.state is JobState.PENDING, f"{job.id} is {job.state.value}"
        assert not player.cluster.allocations
        party = [player.cluster.jobs[m] for m in player.cluster.books.gangs.party(job)]
        if arranged(player.cluster.hosts, party):
            player.wrong.append(f"{job.id} waits for nothing")


# Brute force

WHERE = [
    (spread, pack)
    for spread in ("", "host", "rack", "pcie_root")
    for pack in ("", "host", "rack", "pcie_root")
    if not spread or pack in ("", "rack") or (pack == "host" and spread == "pcie_root")
]


def arranged(hosts: Mapping[str, Host], party: list[Job]) -> bool:
    """Whether there is any assignment of exact units to the members of the party, tried one after the other."""
    member = party[0].terms.member
    assert member is not None
    cells: list[tuple[str, str, str, int]] = []  # host, rack, root, free units
    by_root = "pcie_root" in (member.spread, member.pack)
    for name, host in sorted(hosts.items()):
        rack = dict(host.inventory.labels).get("rack", "") if host.inventory is not None else ""
        free = [u for u in host.units.values() if u.id not in host.held]
        roots = sorted({u.root if by_root else "" for u in free})
        cells += [
            (name, rack, root, sum(not by_root or u.root == root for u in free))
            for root in roots
            if root or not by_root
        ]
    failed = [{a.host for a in job.attempts if a.outcome is Outcome.START_FAILED} for job in party]
    bars = [hosts if job.max_failures_per_host else set() for job, hosts in zip(party, failed, strict=True)]

    def value(kind: str, cell: tuple[str, str, str, int]) -> str:
        return {"host": cell[0], "rack": cell[1], "pcie_root": f"{cell[0]}/{cell[2]}" if cell[2] else ""}.get(kind, "-")

    for places in product(cells, repeat=len(party)):
        used: dict[tuple[str, str, str, int], int] = {}
        for place in places:
            used[place] = used.get(place, 0) + party[0].request.gpus
        spread, pack = [value(member.spread, p) for p in places], {value(member.pack, p) for p in places}
        if any(count > place[3] for place, count in used.items()) or "" in spread or "" in pack:
            continue
        if (member.spread and len(set(spread)) < len(spread)) or len(pack) > 1:
            continue
        if not any(place[0] in barred for place, barred in zip(places, bars, strict=True)):
            return True
    return False


def seats(player: Player, party: list[Job]) -> dict[str, Seat]:
    ranking = player.placer.ranked(player.cluster, party[0].request)
    hosts = [(rank[-1], found) for rank, found in ranking.in_order()]
    return find(player.cluster, party, ask_of(player.cluster, party), hosts)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["a", "b", ""]), st.integers(1, 2)), min_size=1, max_size=4),
    st.tuples(st.integers(1, 4), st.integers(1, 2), st.sampled_from(WHERE)),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=5),
)
def test_an_arrangement_is_found_if_there_is_one(
    hosts: list[tuple[int, str, int]], gang: tuple[int, int, tuple[str, str]], failed: list[tuple[int, int]]
) -> None:
    count, gpus, (spread, pack) = gang
    player = Player()
    for n, (units, rack, roots) in enumerate(hosts):
        player.play(f"host h{n} {units}xa100\nroots h{n} {' '.join(f'pci0000:{r}0' for r in range(1, roots + 1))}")
        if rack:
            player.play(f"label h{n} rack={rack}")
    how = ".".join(filter(None, (spread and f"spread:{spread}", pack and f"pack:{pack}")))
    player.play(f"gang g {count} {how} gpus={gpus} cpus=1 mib=64 failures=1")
    party = [player.cluster.jobs[f"g-{n}"] for n in range(count)]
    for index, host in failed:
        if index < count:
            _failed_on(player, party[index], f"h{host}")
    found = seats(player, party)
    assert (len(found) == count) == arranged(player.cluster.hosts, party)
    player.play("place")
    live = [job for job in party if job.allocation_id]
    assert len(live) == (count if len(found) == count else 0)
    assert "VIOLATION" not in "\n".join(player.log)


def _failed_on(player: Player, job: Job, host: str) -> None:
    number = job.attempt_count + 1
    job.attempts.append(Attempt(number, host, (), player.now, ended_s=player.now, outcome=Outcome.START_FAILED))
    job.attempt_count = number


def test_members_change_places_if_that_helps() -> None:
    """The first would take what only the last may use."""
    player = Player()
    player.play("host h1 1xa100\nhost h2 1xa100\nhost h3 1xa100\ngang g 3 failures=1")
    party = [player.cluster.jobs[f"g-{n}"] for n in range(3)]
    for index, host in ((2, "h2"), (2, "h3"), (1, "h1")):
        _failed_on(player, party[index], host)
    for order in permutations(party):
        found = seats(player, list(order))
        assert found["g-2"].host == "h1"
        assert len(found) == 3


def test_a_gang_that_is_refused_leaves_nothing_behind() -> None:
    """As another turn sees it: else it would ask everybody anew, turn after turn, and write what nobody changed."""
    player = Player()
    player.play("policy reservation.hosts=1\nhost h1 2xa100\nhost h2 2xa100\ngang g 3")
    player.play("place")
    epoch, log = player.cluster.capacity_epoch, len(player.log)
    player.placer.place(player.cluster, player.now)
    assert (player.cluster.capacity_epoch, bool(player.cluster.dirty), player.cluster.log) == (epoch, False, [])
    assert "STARTING" not in "\n".join(player.log[log:])


# Backfill

SUBMITS = st.lists(
    st.tuples(st.integers(0, 20), st.just(1), st.sampled_from([0, 40, 60, 80]), st.sampled_from([0, 0, 2, 3])),
    min_size=3,
    max_size=10,
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 3), min_size=2, max_size=3), SUBMITS)
def test_a_gang_starts_by_when_its_places_are_free(hosts: list[int], submits: list[tuple[int, int, int, int]]) -> None:
    player = Player()
    for n, gpus in enumerate(hosts):
        player.play(f"host h{n} {gpus}xa100")
    promised: dict[str, float] = {}
    for at_s in range(140):
        for n, (when, gpus, limit, count) in enumerate(submits):
            if when == at_s:
                what = f"gang g{n} {count}" if count else f"submit s{n}"
                player.play(f"{what} gpus={gpus} limit={limit} grace=5")
        for job in list(player.cluster.jobs.values()):
            gone_by = limits.gone_by_s(job) if job.allocation_id in player.cluster.allocations else None
            if gone_by is not None and gone_by <= player.now + 1:
                player.play(f"stopped {job.id}" if job.ending else f"end {job.id}")
        player.now = 2000.0 + at_s
        player.play("run")
        jobs, claims = player.cluster.jobs, player.cluster.books.claims
        for name, by_s in list(promised.items()):
            if jobs[name].state is JobState.PENDING:
                assert player.now <= by_s + 1, f"{name} was to start by {by_s}, and {player.now} has come"
            early = name not in claims and player.now <= by_s  # somebody came before it: no promise any more
            if jobs[name].state is not JobState.PENDING or early:
                del promised[name]
        for name, claim in claims.items():
            promised[name] = min(promised.get(name, claim.at_s), claim.at_s)
    assert "VIOLATION" not in "\n".join(player.log)


# What was refused is not judged again


def _state(player: Player, job: str) -> JobState:
    return player.cluster.jobs[job].state


class Counting(Admission):
    """Counts the members that were judged."""

    judged = 0

    def choose(
        self, cluster: Cluster, job: Job, ranked: Sequence[tuple[str, Fit]], fitting: Container[str]
    ) -> Choice | None:
        self.judged += job.terms.member is not None
        return super().choose(cluster, job, ranked, fitting)


def _refused(*more: str) -> tuple[Player, Counting]:
    """Three of four free GPUs would do for a gang, but two on one host are kept for the restart of `big`."""
    player, admission = Player(), Counting()
    player.placer = Placer(admission=admission)
    for line in ("policy reservation.hosts=1", "host h1 2xa100", "host h2 2xa100", "host h3 2xa100"):
        player.play(line)
    player.play("submit big gpus=2\nrun\n" + "\n".join(more) + "\ngang g 3 restarts=0\nplace")
    assert admission.judged > 0
    assert _state(player, "g-0") is JobState.PENDING
    return player, admission


def test_a_gang_that_was_refused_is_not_judged_again_for_nothing() -> None:
    player, admission = _refused()
    before = admission.judged
    player.play("place\nplace\nsubmit small gpus=0\nrun\nwait 60\nplace")
    player.play("gang same 3 restarts=0\nplace\nplace")
    assert admission.judged == before
    player.play("gang other 3 restarts=0 cpus=4\nplace")  # of another shape
    assert admission.judged > before
    before = admission.judged
    for _ in range(100):
        player.placer.place(player.cluster, player.now)
    assert admission.judged == before


@pytest.mark.parametrize(
    ("before", "lifts"),
    [
        ("", "end big"),
        ("", "host h4 4xa100"),
        ("submit tiny gpus=0\nrun", "cancel big\nstopped big"),
        ("braked\nlost h1\nplace", "cancel big"),
        ("braked\nlost h1\nplace", "hold big"),
    ],
)
def test_what_could_lift_a_refusal_does(before: str, lifts: str) -> None:
    player, admission = _refused(before)
    judged = admission.judged
    player.play("place")
    assert admission.judged == judged
    player.play(f"{lifts}\nplace")
    assert admission.judged > judged
    assert _state(player, "g-0") is JobState.STARTING


def test_a_gap_that_a_restart_opens_lifts_a_refusal() -> None:
    """A gap blocks nobody, and a restart that takes its place sets nothing free."""
    player, admission = Player(), Counting()
    player.placer = Placer(admission=admission)
    player.play("policy reservation.hosts=1\nhost h1 2xa100\nsubmit big gpus=2\nrun\nhost h5 1xa100")
    player.play("submit x model=a100\nrun\nhost h2 2xa100\nhost h3 1xb100\nlost h5")
    x, gang = player.cluster.jobs["x"], "gang g 2 restarts=0"
    x.not_before_s = player.now + 50
    player.cluster.enqueue(x)
    player.play(f"{gang}\nplace")
    judged = admission.judged
    player.play("place\nwait 60")
    assert (x.state, player.cluster.jobs["g-0"].state, admission.judged) == (JobState.PENDING, JobState.PENDING, judged)
    player.play("place\nplace")
    assert (x.state, player.cluster.jobs["g-0"].state) == (JobState.STARTING, JobState.STARTING)


def test_a_place_that_is_given_up_lifts_a_refusal() -> None:
    player = Player()
    player.play("host h1 2xa100\nsubmit a limit=100\nsubmit b limit=200\nrun\nsubmit big gpus=2\nplace\nend a")
    player.play("gang g 2 gpus=0\nplace\nplace")
    assert _state(player, "g-0") is JobState.PENDING, "it would take what is kept for big"
    player.play("cancel big\nplace")
    assert _state(player, "g-0") is JobState.STARTING


REMEMBERED = st.lists(
    st.tuples(
        st.sampled_from(["run", "run", "gang", "single", "lost", "back", "stop", "crash", "fail", "end", "hold",
                         "release", "cancel", "requeue", "drain", "undrain", "leader", "wait"]),
        st.integers(0, 30),
    ),
    min_size=5,
    max_size=20,
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 3), min_size=2, max_size=4), REMEMBERED)
def test_who_remembers_nothing_places_nobody_more(hosts: list[int], doings: list[tuple[str, int]]) -> None:
    player = Played()
    player.play("policy reservation.hosts=1")
    for n, gpus in enumerate(hosts):
        player.play(f"host h{n} {gpus}xa100")
    for doing, number in doings:
        running = [job.id for job in player.cluster.jobs.values() if job.state is JobState.RUNNING]
        if doing == "gang":
            player.singles += 1
            player.play(f"gang g{player.singles} {1 + number % 3} gpus={1 + number // 3 % 2} restarts={number % 4}")
        elif doing == "wait":
            player.play(f"wait {10 * number}")
        elif doing == "end":
            player.play("".join(f"end {job}\n" for job in running[: number % 2]))
        else:
            _do(player, doing, number)
        for _ in range(3):
            player.play("run")
        fresh = deepcopy(player.cluster)
        assert Placer().place(fresh, player.now) == 0, fresh.take_log()
    assert not player.wrong


@pytest.mark.parametrize("lifts", ["cancel a", "hold a"])
def test_a_job_is_asked_again_once_nobody_is_to_restart_in_its_place(lifts: str) -> None:
    player = Player()
    player.play("policy reservation.hosts=1\nhost h1 1xa100\nhost h2 1xa100\nsubmit a\nrun\nbraked\nlost h1")
    player.play("submit b restarts=0\nplace\nplace")
    assert _state(player, "b") is JobState.PENDING
    player.play(f"{lifts}\nplace")
    assert _state(player, "b") is JobState.STARTING
