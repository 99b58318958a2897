"""Timers against a plain mapping, and a retired job in the store."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from gpupool.store import keys
from gpupool.v1 import job_pb2
from scheduler.core.state.policy import Policy
from scheduler.core.state.timers import Timers
from scheduler.leader import Leader
from scheduler.submitting.validate import faults
from tests.fakes.pool import WALL, Pool, spec
from tests.fakes.virtual_time import until, virtual_time
from tests.unit.test_leader import new_term

NAMES = st.sampled_from("abcd")
ACTIONS = st.lists(st.one_of(st.tuples(NAMES, st.none() | st.integers(0, 9)), st.integers(0, 9)), max_size=30)


@settings(deadline=None)
@given(ACTIONS)
def test_against_a_mapping(actions: list[int | tuple[str, int | None]]) -> None:
    timers, naive = Timers(), dict[str, int]()
    for action in actions:
        if isinstance(action, tuple):
            name, at_s = action
            timers.set(name, at_s)
            naive.pop(name, None)
            if at_s is not None:
                naive[name] = at_s
        else:
            due = sorted((at_s, name) for name, at_s in naive.items() if at_s <= action)[:2]
            assert timers.due(action, 2) == [name for _, name in due]
            for _, name in due:
                del naive[name]
        assert timers.next_s() == min(naive.values(), default=None)


def test_times_that_make_no_sense() -> None:
    wanted = spec()
    wanted.time_limit_s, wanted.end_within_s, wanted.start_within_s, wanted.stop_grace_s = 40_000_000, 30, 31, 30
    assert faults(wanted) == [
        "time_limit_s is 40000000: it must be at most 31622400 (seconds; a year); 0: no limit",
        "end_within_s is 30: the stop grace alone takes 30 seconds of it; give it more, or set stop_grace_s lower",
        "start_within_s is 31: it must have ended by then, as end_within_s is 30",
    ]


@virtual_time
async def test_a_retired_job_leaves_nothing_in_the_store() -> None:
    pool = Pool()
    await pool.join("h1")
    wanted = spec("a")
    wanted.keep_s = 1
    await pool.submit("ja", wanted)
    await pool.submit("jb")
    loop = asyncio.get_running_loop()
    leader = Leader(pool.store, await new_term(pool), wall=lambda: WALL + loop.time(), policy=Policy())
    task = asyncio.create_task(leader.run())
    try:
        await until(lambda: len(pool.allocations()) == 2)
        first, second = sorted(pool.allocations(), key=lambda a: a.job)
        await pool.finish(first)
        await pool.finish(second)
        await until(lambda: pool.status("jb").state == job_pb2.JOB_STATE_SUCCEEDED)
        await until(lambda: pool.backend.get(keys.job_spec("ja")) is None)
        left = {kv.key for kv in pool.backend.list(keys.JOBS).items}
        assert left == {keys.job_spec("jb"), keys.job_status("jb")}
        assert sorted(leader.cluster.jobs) == ["jb"]
    finally:
        task.cancel()
