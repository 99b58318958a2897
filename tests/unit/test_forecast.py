"""The estimated start: those ahead are counted, and where all keep to their limits it comes out so."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.explain import explain
from scheduler.core.queueing import backfill
from scheduler.core.queueing.forecast import AHEAD, EACH, MINE, TRIES, forecast
from scheduler.core.queueing.leavers import Leavers
from scheduler.core.state import limits
from scheduler.core.state.tables import JobState
from scheduler.core.work import done
from tests.golden.runner import Player

GRACE_S = 5
LIMITS = st.lists(st.sampled_from([10, 20, 40]), min_size=2, max_size=7)
MIXED = st.lists(st.tuples(st.integers(1, 4), st.sampled_from([0, 10, 40]), st.integers(0, 1)), min_size=2, max_size=10)


def _ends(player: Player) -> None:
    """Each VM is gone a grace after its limit."""
    for job in list(player.cluster.jobs.values()):
        allocation = player.cluster.allocations.get(job.allocation_id or "")
        gone_by = limits.gone_by_s(job)
        if allocation is not None and allocation.stop_reason and gone_by is not None and gone_by <= player.now:
            player.play(f"stopped {job.id}")


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), LIMITS)
def test_where_all_keep_to_their_limits_it_comes_out_so(hosts: int, times: list[int]) -> None:
    """Jobs that take a whole host each, one after the other."""
    player = Player()
    for n in range(hosts):
        player.play(f"host h{n} 2xa100")
    for n, limit in enumerate(times):
        player.play(f"submit j{n} gpus=2 limit={limit} grace={GRACE_S}")
    player.now = 2000.0
    player.play("run")
    last = player.cluster.jobs[f"j{len(times) - 1}"]
    if last.state is not JobState.PENDING:
        return
    start = done(forecast(player.cluster, last, 2000.0))
    assert start is not None
    assert start.counted == start.ahead == len(times) - 1 - hosts
    for second in range(1, 400):
        player.now = 2000.0 + second
        _ends(player)
        player.now = 2000.0 + second
        player.play("run")
        if last.state is not JobState.PENDING:
            break
    slack_s = 4 * len(times)  # a turn a second, and a few for what is played
    assert abs(2000.0 + second - start.at_s) <= slack_s


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(2, 4), min_size=1, max_size=3), MIXED)
def test_it_is_no_sooner_than_if_nobody_were_ahead(hosts: list[int], submits: list[tuple[int, int, int]]) -> None:
    player = Player()
    player.play("policy backfill.reservations=0")
    for n, gpus in enumerate(hosts):
        player.play(f"host h{n} {gpus}xa100")
    for n, (gpus, limit, priority) in enumerate(submits):
        player.play(f"submit j{n} gpus={gpus} limit={limit} priority={priority} grace={GRACE_S}")
    player.play("run")
    cluster = player.cluster
    for job in cluster.jobs.values():
        if job.state is JobState.PENDING:
            alone = done(backfill.estimating(cluster, job, player.now, Leavers()))
            start = done(forecast(cluster, job, player.now))
            if start is not None:
                assert alone is not None
                assert alone[0] <= start.at_s
                if not start.ahead:
                    assert alone == (start.at_s, start.where)


def test_who_is_far_behind_is_told_at_least() -> None:
    player = Player()
    player.play("host h1 2xa100\nsubmit a gpus=2 limit=100 grace=10\nrun")
    for n in range(AHEAD + 5):
        player.play(f"submit j{n:03} gpus=2 limit=50 grace=10")
    player.play("submit last gpus=2")
    cluster, job = player.cluster, player.cluster.jobs["last"]
    costs = list(forecast(cluster, job, player.now))
    assert sum(costs) <= TRIES + EACH + MINE + 10
    start = done(forecast(cluster, job, player.now))
    assert start is not None
    assert (start.counted, start.ahead) == (AHEAD, AHEAD + 5)
    assert start.at_s - player.now >= start.counted * 60
    summary = explain(cluster, job, player.now).summary
    assert f"s at least (an estimate: after {start.counted} of the {AHEAD + 5} that are ahead of it)" in summary


def test_who_is_ahead_and_has_no_limit_is_there_for_ever() -> None:
    player = Player()
    player.play("host h1 2xa100\nsubmit a gpus=2 limit=100 grace=10\nrun\nsubmit b gpus=2\nsubmit c gpus=1")
    cluster = player.cluster
    assert done(forecast(cluster, cluster.jobs["c"], player.now)) is None
    player.play("cancel b")
    assert done(forecast(cluster, cluster.jobs["c"], player.now)) is not None


def test_a_gang_is_counted_and_told_when_all_have_places() -> None:
    player = Player()
    player.play(
        "host h1 2xa100\nhost h2 2xa100\nsubmit a gpus=2 limit=100 grace=10\nsubmit b gpus=2 limit=300 grace=10"
    )
    player.play("run\ngang g 2 spread:host gpus=2 limit=50 grace=10\nsubmit c gpus=2")
    cluster, now = player.cluster, player.now
    gang = done(forecast(cluster, cluster.jobs["g-0"], now))
    behind = done(forecast(cluster, cluster.jobs["c"], now))
    assert gang is not None
    assert behind is not None
    assert (gang.where, gang.ahead) == ("h1, h2", 0)
    assert 290 <= gang.at_s - now <= 310
    assert (behind.counted, behind.ahead) == (1, 1)
    assert 160 <= behind.at_s - now <= 370


def test_who_may_not_start_for_its_quota_takes_no_place() -> None:
    player = Player()
    player.play("host h1 2xa100\nqueue q limit=0\nsubmit a gpus=2 limit=100 grace=10\nrun")
    player.play("submit never gpus=2 queue=q priority=5\nsubmit c gpus=2")
    start = done(forecast(player.cluster, player.cluster.jobs["c"], player.now))
    assert start is not None
    assert start.at_s - player.now <= 110
