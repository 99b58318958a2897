"""One host's agent as a whole, on fake hardware and virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from agent.ports import VmPaused
from agent.timing import Limits
from gpupool.store import keys
from gpupool.store.port import Committed, Each, Guard, Op, Put, Snapshot
from gpupool.v1 import job_pb2, records_pb2
from tests.fakes.agent_rig import HOST, OTHER, UNIT, Rig
from tests.fakes.virtual_time import until, virtual_time
from tests.fakes.vms import Guest

FOREVER = Guest(run_s=None)


@asynccontextmanager
async def ready(guest: Guest | None = None, limits: Limits | None = None) -> AsyncIterator[Rig]:
    """A host with a session and free units, on which j1.1 will behave as `guest`."""
    rig = Rig(limits=limits or Limits())
    rig.vms.guests["j1.1"] = guest or Guest()
    await rig.ready()
    yield rig
    await rig.close()


@virtual_time
async def test_runs_and_ends() -> None:
    async with ready(Guest(exit_code=3)) as rig:
        rig.allocate(volumes=[job_pb2.Volume(name="data", size_mib=10, path="/data")], env={"B": "2", "A": "1"})
        await until(lambda: rig.vm().state == records_pb2.ALLOCATION_STATE_PREPARING)
        assert rig.unit().state == records_pb2.UNIT_STATE_HELD
        await rig.running()
        spec = rig.vms.vms["j1.1"].spec
        assert ([f.address for f in spec.functions], spec.env, spec.volumes[0].file) == (
            [UNIT],
            (("A", "1"), ("B", "2")),
            "/volumes/j1/data.img",
        )
        assert rig.vm().guest_gpus == ["0000:06:00.0 10de:20b5"]
        rig.vms.say("j1.1", "hello")
        report = await rig.ended()
        assert (report.outcome, report.exit_code, report.session) == (job_pb2.OUTCOME_EXITED, 3, rig.session)
        assert 0 < report.vm_started_s < report.started_s < report.ended_s
        assert rig.logs.lines["j1.1"] == [("stdout", "hello")]
        await until(lambda: rig.unit().state == records_pb2.UNIT_STATE_FREE)
        assert (rig.unit().allocation, rig.unit().proof) == ("j1.1", "flr; fake checks")
        rig.withdraw()
        await until(lambda: not rig.vm().state)
        assert rig.records.load("vms") == {}


@virtual_time
async def test_guest_that_never_reports_fails_to_start() -> None:
    async with ready(Guest(boot_s=None), Limits(start_timeout_s=30)) as rig:
        rig.allocate()
        report = await rig.ended()
        assert report.outcome == job_pb2.OUTCOME_START_FAILED
        assert "did not report in time" in report.message
        assert not await rig.vms.running()


@virtual_time
async def test_start_that_hangs_fails() -> None:
    async with ready(Guest(start_takes_s=1000), Limits(start_timeout_s=30)) as rig:
        rig.allocate()
        report = await rig.ended()
        assert (report.outcome, report.message) == (job_pb2.OUTCOME_START_FAILED, "the VM was not up within 30 s")


@virtual_time
async def test_refused_start_frees_the_unit() -> None:
    async with ready(Guest(refuses="no hugepages")) as rig:
        rig.allocate()
        report = await rig.ended()
        assert (report.outcome, report.message) == (job_pb2.OUTCOME_START_FAILED, "no hugepages")
        await until(lambda: rig.unit().state == records_pb2.UNIT_STATE_FREE and rig.unit().allocation == "j1.1")


@virtual_time
async def test_the_owner_of_a_paused_vm_is_told_once() -> None:
    async with ready(FOREVER) as rig:
        rig.allocate()
        await rig.running()
        for _ in range(3):
            rig.agent.worker.on_event(VmPaused("j1.1", "its guest went to sleep"))
        rig.agent.worker.on_event(VmPaused("other.1", "its guest went to sleep"))
        await until(lambda: rig.vm().warnings)
        assert list(rig.vm().warnings) == ["its VM is paused and keeps its units: its guest went to sleep"]
        assert rig.vm().state == records_pb2.ALLOCATION_STATE_RUNNING


@virtual_time
async def test_missing_image_and_unknown_unit() -> None:
    async with ready() as rig:
        rig.allocate(image="debian")
        rig.allocate("j2.1", units=["0000:99:00.0"])
        assert (await rig.ended()).message == "image 'debian' is not on this host (have: ubuntu)"
        assert "0000:99:00.0 is not on this host" in (await rig.ended("j2.1")).message
        # It never touched the unit, which is clean after it all the same.
        await until(lambda: rig.unit().allocation == "j1.1")
        assert rig.devices.reclaimed.count(UNIT) == 1


@virtual_time
async def test_a_full_state_directory_is_a_start_failure() -> None:
    async with ready() as rig:
        rig.records.full = "the state directory /run/gpupool takes no new records"
        rig.allocate()
        report = await rig.ended()
        assert (report.outcome, report.message) == (job_pb2.OUTCOME_START_FAILED, rig.records.full)
        assert not await rig.vms.running()


@virtual_time
async def test_bind_failure_is_a_start_failure() -> None:
    async with ready() as rig:
        rig.devices.unbindable[UNIT] = "nvidia"
        rig.allocate()
        report = await rig.ended()
        assert report.outcome == job_pb2.OUTCOME_START_FAILED
        assert "nvidia" in report.message


@virtual_time
async def test_crash_and_early_end() -> None:
    async with ready(Guest(exit_code=None)) as rig:
        rig.vms.guests["j2.1"] = Guest(boot_s=None)
        rig.allocate()
        rig.allocate("j2.1", units=[OTHER])
        report = await rig.ended()
        assert (report.outcome, report.HasField("exit_code")) == (job_pb2.OUTCOME_CRASHED, False)
        assert report.message == "the VM ended without an exit code: crashed"
        rig.vms.kill("j2.1")
        assert (await rig.ended("j2.1")).outcome == job_pb2.OUTCOME_START_FAILED


@virtual_time
async def test_stop_of_a_running_guest() -> None:
    async with ready(FOREVER) as rig:
        rig.allocate()
        await rig.running()
        rig.stop(reason="preempted")
        await until(lambda: rig.vm().state == records_pb2.ALLOCATION_STATE_STOPPING)
        report = await rig.ended()
        assert (report.outcome, report.message) == (job_pb2.OUTCOME_STOPPED, "preempted; the command ended with 143")
        assert not report.HasField("exit_code")


@virtual_time
async def test_stop_of_a_stubborn_guest_is_forced_when_its_grace_is_over() -> None:
    async with ready(replace(FOREVER, obeys_stop=False, checkpoint_takes_s=None)) as rig:
        rig.allocate(stop_grace_s=20)
        await rig.running()
        asked, asked_at = rig.clock.boot(), asyncio.get_running_loop().time()
        rig.stop()
        assert (await rig.ended()).outcome == job_pb2.OUTCOME_STOPPED
        assert 20 <= rig.clock.boot() - asked < 21
        assert [round(when - asked_at) for when, _ in rig.vms.pressed] == [15], "its power button, once"


@virtual_time
async def test_guest_that_hears_only_its_power_button() -> None:
    """No program of ours answers in it: checkpoint, then the end, then ACPI; it is off before it is destroyed."""
    deaf = replace(FOREVER, obeys_stop=False, checkpoint_takes_s=None, obeys_button=True)
    async with ready(deaf) as rig:
        rig.allocate(stop_grace_s=20)
        await rig.running()
        asked = rig.clock.boot()
        rig.stop()
        report = await rig.ended()
        assert (report.outcome, report.HasField("exit_code")) == (job_pb2.OUTCOME_STOPPED, False)
        assert 15 <= rig.clock.boot() - asked < 18


@virtual_time
async def test_grace_of_a_drain_comes_before_the_jobs_own() -> None:
    async with ready(replace(FOREVER, obeys_stop=False)) as rig:
        rig.allocate(stop_grace_s=300)
        await rig.running()
        asked = rig.clock.boot()
        rig.stop(grace_s=8)
        await rig.ended()
        assert 8 <= rig.clock.boot() - asked < 9


@virtual_time
async def test_button_is_not_pressed_once_the_command_has_ended() -> None:
    async with ready(replace(FOREVER, stop_takes_s=3.0, off_s=60.0)) as rig:
        rig.allocate(stop_grace_s=20)
        await rig.running()
        rig.stop()
        await rig.ended()
        assert not rig.vms.pressed


@virtual_time
async def test_stop_while_the_guest_boots() -> None:
    async with ready(Guest(boot_s=50)) as rig:
        rig.allocate()
        await until(lambda: rig.vms.vms)
        rig.stop()
        assert (await rig.ended()).outcome == job_pb2.OUTCOME_STOPPED


@virtual_time
async def test_stop_before_the_start() -> None:
    async with ready() as rig:
        rig.guard.dead = True  # nothing may start
        rig.allocate()
        rig.stop()
        report = await rig.ended()
        assert (report.outcome, report.vm_started_s) == (job_pb2.OUTCOME_STOPPED, 0)
        assert not rig.vms.vms


@virtual_time
async def test_exit_just_before_the_stop_counts_as_exit() -> None:
    async with ready(Guest(run_s=10, off_s=5)) as rig:
        rig.allocate()
        await rig.running()
        await until(lambda: rig.vms.vms["j1.1"].exited)
        rig.stop()
        report = await rig.ended()
        assert (report.outcome, report.exit_code) == (job_pb2.OUTCOME_EXITED, 0)


@virtual_time
async def test_withdrawn_allocation_is_destroyed_and_forgotten() -> None:
    async with ready(FOREVER) as rig:
        rig.allocate()
        await rig.running()
        rig.withdraw()
        await until(lambda: not rig.vm().state and rig.unit().state == records_pb2.UNIT_STATE_FREE)
        assert rig.unit().allocation == "j1.1"
        assert not await rig.vms.running()


@virtual_time
async def test_allocation_that_was_never_seen_running_still_counts_as_the_units_last() -> None:
    async with ready() as rig:
        rig.allocate(session=1)  # of another session: it must not start
        await asyncio.sleep(5)
        assert not rig.vms.vms
        assert rig.unit().allocation == "j1.1"


@virtual_time
async def test_nothing_starts_without_guard() -> None:
    async with ready() as rig:
        rig.guard.dead = rig.guard.unstartable = True
        rig.allocate()
        await asyncio.sleep(30)
        assert not rig.vms.vms
        assert rig.session_record().guard == records_pb2.GUARD_KIND_UNSPECIFIED
        rig.guard.unstartable = False
        await rig.running()
        assert rig.session_record().guard == records_pb2.GUARD_KIND_SOFT


@virtual_time
async def test_nothing_starts_without_a_fresh_deadline() -> None:
    async with ready() as rig:
        rig.store.no_renewals = True
        await until(lambda: rig.agent.keeper.left_s() < rig.timing.start_margin_s)
        rig.allocate()
        await asyncio.sleep(0.9)  # the session still stands, and the guard has not killed
        assert rig.session
        assert not rig.vms.vms


@virtual_time
async def test_nothing_starts_before_the_store_has_confirmed_the_session() -> None:
    async with ready(FOREVER) as rig:
        rig.store.away = True  # what is watched still comes; nothing that is asked is answered
        rig.allocate()
        await asyncio.sleep(2)  # the deadline is fresh for longer than that
        assert rig.agent.keeper.fresh()
        assert not rig.vms.vms
        rig.store.away = False
        await rig.running()


@virtual_time
async def test_deadline_that_passes_during_the_start_stops_it() -> None:
    async with ready(Guest(start_takes_s=14)) as rig:
        rig.allocate()
        await until(lambda: rig.vms.vms)
        rig.store.away = True
        await asyncio.sleep(14)
        assert not rig.vms.vms["j1.1"].ran


@virtual_time
async def test_restarted_agent_adopts() -> None:
    async with ready(FOREVER) as rig:
        session = rig.session
        rig.allocate()
        await rig.running()
        await rig.kill_agent()
        await asyncio.sleep(5)
        rig.address = "10.0.0.1:7777"
        assert await rig.boot() == session
        await until(lambda: rig.session_record().address == "10.0.0.1:7777")
        await asyncio.sleep(30)
        assert [what for _, what, _ in rig.vms.history] == ["run"]
        assert rig.vm().state == records_pb2.ALLOCATION_STATE_RUNNING
        rig.stop()
        assert (await rig.ended()).outcome == job_pb2.OUTCOME_STOPPED


@virtual_time
async def test_exit_code_survives_the_agent() -> None:
    async with ready(Guest(run_s=3, exit_code=7, off_s=2)) as rig:
        rig.allocate()
        await rig.running()
        rig.store.away = True
        await until(lambda: rig.vms.vms["j1.1"].exited)
        await rig.kill_agent()
        await asyncio.sleep(3)  # the VM goes while nobody looks
        rig.store.away = False
        await rig.boot()
        report = await rig.ended()
        assert (report.outcome, report.exit_code) == (job_pb2.OUTCOME_EXITED, 7)


@virtual_time
async def test_vm_half_started_by_a_dead_agent_is_ended() -> None:
    async with ready(Guest(start_takes_s=8)) as rig:
        rig.allocate()
        await until(lambda: rig.vms.vms)
        await rig.kill_agent()
        await rig.boot()
        report = await rig.ended()
        assert report.outcome == job_pb2.OUTCOME_START_FAILED
        assert "agent was restarted" in report.message


@virtual_time
async def test_lost_lease_kills_vms_before_the_new_session() -> None:
    async with ready(FOREVER) as rig:
        first = rig.session
        rig.allocate()
        await rig.running()
        alive_at_announcement = []
        commit = rig.backend.commit

        def spy(guards: Sequence[Guard], ops: Sequence[Op]) -> Committed:
            if any(isinstance(op, Put) and op.key == keys.session(HOST) for op in ops):
                alive_at_announcement.append([vm.alive for vm in rig.vms.vms.values()])
            return commit(guards, ops)

        rig.backend.commit = spy  # type: ignore[method-assign]
        kv = rig.backend.get(keys.session(HOST))
        assert kv
        rig.backend.revoke(kv.lease)
        await until(lambda: rig.session not in (0, first))
        assert alive_at_announcement == [[False]]
        report = await rig.ended()
        assert (report.outcome, report.session) == (job_pb2.OUTCOME_CRASHED, rig.session)
        await until(lambda: rig.unit().state == records_pb2.UNIT_STATE_FREE)
        assert rig.unit().session == rig.session
        assert [what for _, what, _ in rig.vms.history] == ["run", "end"]


@virtual_time
async def test_new_session_waits_while_vms_cannot_be_killed() -> None:
    async with ready(FOREVER) as rig:
        rig.allocate()
        await rig.running()
        rig.vms.broken = True
        kv = rig.backend.get(keys.session(HOST))
        assert kv
        rig.backend.revoke(kv.lease)
        await asyncio.sleep(60)
        assert rig.backend.get(keys.session(HOST)) is None
        rig.vms.broken = False
        await until(lambda: rig.session)


@virtual_time
async def test_long_outage_ends_in_the_guards_kill() -> None:
    async with ready(FOREVER) as rig:
        rig.allocate()
        await rig.running()
        rig.store.away = True
        left_s = rig.agent.keeper.left_s()
        await until(lambda: rig.guard.kills)
        assert rig.agent.keeper.left_s() == 0
        assert left_s <= rig.timing.ttl_s - rig.timing.kill_margin_s
        assert rig.backend.get(keys.session(HOST))  # dead before the store could have let go
        rig.store.away = False
        assert (await rig.ended()).outcome == job_pb2.OUTCOME_CRASHED


@virtual_time
async def test_quarantine_and_retry() -> None:
    async with ready(Guest(run_s=1)) as rig:
        rig.devices.faults[UNIT] = "0xff throughout"
        rig.allocate()
        await until(lambda: rig.unit().state == records_pb2.UNIT_STATE_QUARANTINED)
        assert "0xff throughout" in rig.unit().reason
        rig.withdraw()
        rig.allocate("j2.1")
        assert "quarantined" in (await rig.ended("j2.1")).message
        rig.put(keys.unit_intent(HOST, UNIT), records_pb2.UnitIntent(retry_requested_s=rig.unit().since_s - 1))
        await asyncio.sleep(5)
        assert rig.unit().state == records_pb2.UNIT_STATE_QUARANTINED
        rig.devices.faults.clear()
        rig.put(keys.unit_intent(HOST, UNIT), records_pb2.UnitIntent(retry_requested_s=rig.clock.wall()))
        await until(lambda: rig.unit().state == records_pb2.UNIT_STATE_FREE)
        assert rig.unit().allocation == "j2.1"


@virtual_time
async def test_quarantine_outlives_the_state_directory() -> None:
    async with ready(Guest(run_s=1)) as rig:
        rig.devices.faults[UNIT] = "dead"
        rig.allocate()
        await until(lambda: rig.unit().state == records_pb2.UNIT_STATE_QUARANTINED)
        await rig.kill_agent()
        rig.records.kinds.clear()
        rig.boot_id = "boot-2"
        reclaimed = len(rig.devices.reclaimed)
        await rig.boot()
        await until(lambda: rig.unit(OTHER).state == records_pb2.UNIT_STATE_FREE and rig.unit().session == rig.session)
        assert rig.unit().state == records_pb2.UNIT_STATE_QUARANTINED
        assert rig.devices.reclaimed[reclaimed:] == [OTHER]


@virtual_time
async def test_job_that_ends_during_an_outage_is_reported_after_it() -> None:
    async with ready(Guest(run_s=3, exit_code=5)) as rig:
        rig.allocate()
        await rig.running()
        rig.store.away = True
        await asyncio.sleep(8)
        assert rig.vm().state == records_pb2.ALLOCATION_STATE_RUNNING
        rig.store.away = False
        report = await rig.ended()
        assert (report.outcome, report.exit_code) == (job_pb2.OUTCOME_EXITED, 5)
        await until(lambda: rig.unit().state == records_pb2.UNIT_STATE_FREE)


@virtual_time
async def test_stray_vm_is_destroyed_and_lost_one_noticed() -> None:
    async with ready(FOREVER) as rig:
        rig.allocate()
        await rig.running()
        spec = replace(rig.vms.vms["j1.1"].spec, allocation="stray.1")
        await rig.vms.start(spec, may_run=lambda: True)
        await until(lambda: not rig.vms.vms["stray.1"].alive)
        rig.vms._sink, sink = None, rig.vms._sink  # the event is lost
        rig.vms.kill("j1.1")
        rig.vms._sink = sink
        assert (await rig.ended()).outcome == job_pb2.OUTCOME_CRASHED


@virtual_time
async def test_inventory_that_changes_during_a_reclaim_leaves_it_alone() -> None:
    async with ready(Guest(run_s=1)) as rig:
        rig.devices.reclaim_s = 30
        rig.allocate()
        await until(lambda: rig.unit().state == records_pb2.UNIT_STATE_RESETTING)
        rig.images.append("debian")
        await until(lambda: rig.unit().state == records_pb2.UNIT_STATE_FREE)
        assert rig.devices.reclaimed.count(UNIT) == 2


@virtual_time
async def test_runtime_that_does_not_answer_at_first() -> None:
    async with ready(FOREVER) as rig:
        rig.allocate()
        await rig.running()
        await rig.kill_agent()
        rig.vms.broken = True
        await rig.boot()
        await asyncio.sleep(30)
        assert rig.vm().state == records_pb2.ALLOCATION_STATE_RUNNING
        rig.vms.broken = False
        rig.stop()
        await rig.ended()


@virtual_time
async def test_unit_whose_reset_was_cut_short_is_reclaimed_anew() -> None:
    async with ready(Guest(run_s=1)) as rig:
        rig.devices.reclaim_s = 30
        rig.allocate()
        await until(lambda: rig.unit().state == records_pb2.UNIT_STATE_RESETTING)
        await rig.kill_agent()
        await rig.boot()
        await until(lambda: rig.unit().state == records_pb2.UNIT_STATE_FREE)
        assert rig.unit().allocation == "j1.1"


@virtual_time
async def test_guard_that_dies_during_the_start_stops_it() -> None:
    async with ready(Guest(start_takes_s=5)) as rig:
        rig.allocate()
        await until(lambda: rig.vms.vms)
        rig.guard.dead = rig.guard.unstartable = True
        assert "not allowed to run" in (await rig.ended()).message
        assert not rig.vms.vms["j1.1"].ran


@virtual_time
async def test_nothing_is_concluded_before_the_allocations_are_read() -> None:
    async with ready(FOREVER) as rig:
        rig.allocate()
        await rig.running()
        await rig.kill_agent()
        read = rig.store.list

        async def slow(prefix: str, each: Each | None = None) -> Snapshot:
            await asyncio.sleep(5 if prefix == keys.allocation_prefix(HOST) else 0)
            return await read(prefix, each)

        rig.store.list = slow  # type: ignore[method-assign]
        await rig.boot()
        await asyncio.sleep(20)
        assert [what for _, what, _ in rig.vms.history] == ["run"]


@virtual_time
async def test_report_of_an_earlier_boot_stands_until_its_allocation_is_gone() -> None:
    async with ready(Guest(run_s=1, exit_code=4)) as rig:
        rig.allocate()
        await rig.ended()
        await rig.kill_agent()
        rig.records.kinds.clear()
        rig.boot_id = "boot-2"
        await rig.ready()
        assert rig.vm().exit_code == 4
        rig.withdraw()
        await until(lambda: not rig.vm().state)


@virtual_time
async def test_inventory_follows_the_host() -> None:
    async with ready() as rig:
        rig.images.append("debian")
        rig.devices.units.append("0000:03:00.0")
        await until(lambda: rig.unit("0000:03:00.0").state == records_pb2.UNIT_STATE_FREE)
        rig.devices.units.remove("0000:03:00.0")
        await until(lambda: not rig.unit("0000:03:00.0").state)
        described = rig.agent.describe()
        assert (described.session, list(described.inventory.images)) == (rig.session, ["ubuntu", "debian"])
