"""The host's devices as the worker sees them, on a simulated host."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from agent.devices.baseline import BindFailed, DeviceError, NotClean
from agent.devices.blocking import InFlight, in_own_thread
from agent.devices.host import Policy
from agent.devices.reclaim import Patience
from agent.simulated import kernel
from agent.simulated.kernel import SimulatedSysfs
from gpupool.v1.records_pb2 import UnitHistory
from tests.fakes.agent_rig import MemoryRecords
from tests.fakes.device_rig import (
    AUDIO,
    CHECKS,
    DEVICES,
    GPU,
    QUICK,
    devices,
    inline,
    simulated_host,
    unit_of,
    used_by_a_vm,
)
from tests.fakes.virtual_time import until


@pytest.fixture
def sysfs(tmp_path: Path) -> SimulatedSysfs:
    return simulated_host(tmp_path / "sys")


# Reclaim


async def test_the_first_reclaim_resets_and_remembers(sysfs: SimulatedSysfs) -> None:
    used_by_a_vm(sysfs)
    records, unit = MemoryRecords(), unit_of(sysfs)
    first = devices(sysfs, records=records)
    assert await first.reclaim(unit, used=False) == f"flr+pm; {CHECKS}", "what it is like unreset, nobody knows"
    assert await first.reclaim(unit, used=False) == f"no reset needed; {CHECKS}"
    restarted = devices(sysfs, records=records)
    assert await restarted.reclaim(unit, used=False) == f"no reset needed; {CHECKS}"


async def test_another_device_at_the_same_address_gets_a_first_sight_of_its_own(sysfs: SimulatedSysfs) -> None:
    fleet, unit = devices(sysfs), unit_of(sysfs)
    unit.identity = "serial 1"
    await fleet.reclaim(unit)
    unit.identity = "serial 2"
    assert await fleet.reclaim(unit, used=False) == f"flr+pm; {CHECKS}"
    assert fleet.history(unit).reclaims == 1


async def test_a_device_that_was_taken_out_meanwhile_is_seen_for_the_first_time_again(sysfs: SimulatedSysfs) -> None:
    """It had no power, so nothing is known of it; and the kernel has put its BARs elsewhere."""
    records, unit = MemoryRecords(), unit_of(sysfs)
    fleet = devices(sysfs, records=records)
    await fleet.reclaim(unit)
    slot = sysfs.root / "devices" / "aside"
    functions = [sysfs.root / DEVICES / function.address for function in unit.functions]
    slot.mkdir()
    for function in functions:
        function.rename(slot / function.name)
    assert not fleet.inventory().units
    for function in functions:
        (slot / function.name).rename(function)
    fleet.inventory()
    assert not records.load("baselines")
    assert await fleet.reclaim(unit, used=False) == f"flr+pm; {CHECKS}", "what it is like unreset, nobody knows"


async def test_a_device_that_a_reset_takes_away_for_a_moment_keeps_its_first_sight(tmp_path: Path) -> None:
    sysfs = simulated_host(tmp_path / "sys", gpus=1)
    records = MemoryRecords()
    fleet = devices(sysfs, records=records, run_blocking=in_own_thread, policy=Policy(patience=Patience(60, 0, 0, 0)))
    (unit,) = fleet.inventory().units
    await fleet.reclaim(unit)
    sysfs.inject(unit.id, kernel.RESET_HANGS)
    hanging = asyncio.create_task(fleet.reclaim(unit))
    await until(fleet._busy)
    gone = sysfs.root / DEVICES / unit.id
    gone.rename(sysfs.root / "aside")
    try:
        fleet.inventory()
        assert records.load("baselines")
    finally:
        (sysfs.root / "aside").rename(gone)
        sysfs.inject(unit.id, None)
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)


async def test_eight_units_side_by_side(tmp_path: Path) -> None:
    """Each waits in its reset for all the others: were they one after the other, none would ever end."""
    sysfs = simulated_host(tmp_path / "sys", gpus=8)
    together = threading.Barrier(8)

    class Meeting(SimulatedSysfs):
        def _reset(self, address: str) -> None:
            if address.endswith(".0"):
                together.wait(60)
            super()._reset(address)

    host = Meeting(sysfs.root)
    fleet = devices(host, run_blocking=in_own_thread, policy=Policy(patience=Patience(60, 0, 0, 0)))
    units = list(fleet.inventory().units)
    assert len(units) == 8
    proofs = await asyncio.gather(*(fleet.reclaim(unit) for unit in units))
    assert proofs == [f"flr+pm; {CHECKS}"] * 8


async def test_one_unit_that_hangs_holds_up_no_other(tmp_path: Path) -> None:
    sysfs = simulated_host(tmp_path / "sys", gpus=2)
    fleet = devices(sysfs, run_blocking=in_own_thread, policy=Policy(patience=Patience(60, 0, 0, 0)))
    sick, well = fleet.inventory().units
    sysfs.inject(sick.id, kernel.RESET_HANGS)
    hanging = asyncio.create_task(fleet.reclaim(sick))
    try:
        assert await fleet.reclaim(well) == f"flr+pm; {CHECKS}"
        assert not hanging.done()
        assert [unit.id for unit in fleet.inventory().units] == [sick.id, well.id]
    finally:
        sysfs.inject(sick.id, None)
    assert await hanging == f"flr+pm; {CHECKS}"


async def test_a_function_that_an_earlier_agent_left_hanging_is_not_touched(sysfs: SimulatedSysfs) -> None:
    class NoTouch(SimulatedSysfs):
        def read_bytes(self, path: str, limit: int = 4096, offset: int = 0) -> bytes | None:
            assert not path.startswith(f"{DEVICES}/{GPU}/config")
            return super().read_bytes(path, limit, offset)

        def write(self, path: str, text: str) -> None:
            raise AssertionError(f"{text!r} was written to {path}")

    unit, hung = unit_of(sysfs), {GPU: "write to reset"}
    fleet = devices(NoTouch(sysfs.root), hung=lambda: hung)
    for call in (fleet.reclaim(unit), fleet.bind(unit)):
        with pytest.raises(NotClean, match=rf"{GPU}: device is held by the kernel \(write to reset hangs\)"):
            await call
    assert f"{GPU}: write to reset of an earlier agent hangs" in fleet.inventory().notes
    assert fleet.history(unit).failures == 1


async def test_a_reclaim_waits_for_a_look_at_the_units_health(sysfs: SimulatedSysfs) -> None:
    go = threading.Event()

    class Slow(SimulatedSysfs):
        def read(self, path: str) -> str | None:
            if path.endswith("aer_dev_fatal"):
                go.wait(60)
            return super().read(path)

    patient = Policy(patience=Patience(step_s=60, idle_s=60, rescan_s=0, link_s=0))
    fleet, unit = devices(Slow(sysfs.root), run_blocking=in_own_thread, policy=patient), unit_of(sysfs)
    looking = asyncio.create_task(fleet.health([unit]))
    await until(fleet._in_flight.functions)
    reclaiming = asyncio.create_task(fleet.reclaim(unit))
    await asyncio.sleep(0.1)
    assert not reclaiming.done()
    go.set()
    assert await reclaiming == f"flr+pm; {CHECKS}"
    assert await looking == {}


# History


async def test_history_is_kept_by_device_and_through_restarts(sysfs: SimulatedSysfs) -> None:
    records, unit = MemoryRecords(), unit_of(sysfs)
    unit.identity = "serial 7/ä"
    fleet = devices(sysfs, records=records, wall=lambda: 1000.0)
    await fleet.reclaim(unit)
    sysfs.inject(GPU, kernel.BAR_LOST)
    with pytest.raises(NotClean):
        await fleet.reclaim(unit)
    sysfs.inject(GPU, None)
    await fleet.reclaim(unit, used=False)
    found = devices(sysfs, records=records).history(unit)
    assert (found.reclaims, found.failures, found.last_s, found.last_method) == (3, 1, 1000.0, "flr+pm")
    assert "BAR 0 is 0x00000000" in found.last_failure
    elsewhere = unit_of(sysfs)
    elsewhere.id, elsewhere.identity = "0000:09:00.0", unit.identity
    assert fleet.history(elsewhere) == found


# Health


async def test_health_of_units_in_use(sysfs: SimulatedSysfs) -> None:
    fleet, unit = devices(sysfs), unit_of(sysfs)
    await fleet.reclaim(unit)
    await fleet.bind(unit)
    assert await fleet.health([unit]) == {}
    (sysfs.root / DEVICES / AUDIO / "aer_dev_fatal").write_text("Malformed TLP 2\nTOTAL_ERR_FATAL 2")
    expected = f"{AUDIO} had fatal PCIe errors (AER): Malformed TLP +2"
    assert await fleet.health([unit]) == {unit.id: expected}
    await fleet.reclaim(unit)
    await fleet.bind(unit)
    assert await fleet.health([unit]) == {}, "the next VM begins with what it found"
    sysfs.write(f"{DEVICES}/{GPU}/remove", "1")
    assert await fleet.health([unit]) == {unit.id: f"{GPU} has vanished from the bus"}


async def test_errors_in_use_are_told_at_the_reclaim_though_the_agent_was_restarted(sysfs: SimulatedSysfs) -> None:
    records, unit = MemoryRecords(), unit_of(sysfs)
    counters = sysfs.root / DEVICES / GPU
    (counters / "aer_dev_fatal").write_text("Malformed TLP 1\nTOTAL_ERR_FATAL 1")
    (counters / "aer_dev_correctable").write_text("Bad TLP 1\nTOTAL_ERR_COR 1")
    fleet = devices(sysfs, records=records)
    await fleet.reclaim(unit)
    await fleet.bind(unit)
    assert await fleet.toll(unit) == ""
    (counters / "aer_dev_fatal").write_text("Malformed TLP 3\nTOTAL_ERR_FATAL 3")
    (counters / "aer_dev_correctable").write_text("Bad TLP 5\nTOTAL_ERR_COR 5")
    restarted = devices(sysfs, records=records)
    assert await restarted.toll(unit) == f"{GPU} had fatal PCIe errors (AER): Malformed TLP +2"
    proof = await restarted.reclaim(unit)
    assert proof == f"flr+pm; {CHECKS}, no AER errors, correctable AER errors of {GPU} in use: Bad TLP +4"
    assert await devices(sysfs, records=records).toll(unit) == "", "it is told once"
    await restarted.bind(unit)
    assert await restarted.toll(unit) == "", "the next VM begins with what it found"


async def test_a_free_unit_that_fell_off_the_bus_is_told_of_and_not_proven(sysfs: SimulatedSysfs) -> None:
    fleet, unit = devices(sysfs), unit_of(sysfs)
    await fleet.reclaim(unit)
    assert await fleet.health([unit], in_use=False) == {}
    sysfs.inject(GPU, kernel.CONFIG_FF)
    (sysfs.root / DEVICES / GPU / "config").write_bytes(b"\xff" * 4096)
    assert await fleet.health([unit], in_use=False) == {}
    assert "does not answer" in (await fleet.health([unit], in_use=False))[unit.id]
    with pytest.raises(DeviceError):
        await fleet.reclaim(unit)


async def test_one_look_at_users_serves_all_units_of_a_start(tmp_path: Path) -> None:
    looks: list[list[str]] = []

    def refuse(addresses: Sequence[str]) -> Mapping[str, str]:
        looks.append(list(addresses))
        return {AUDIO: "used by somebody"} if len(looks) > 2 else {}

    both = simulated_host(tmp_path / "two", gpus=2)
    fleet, units = devices(both, refuse=refuse), [unit_of(both, 0), unit_of(both, 1)]
    for unit in units:
        await fleet.reclaim(unit)
    looks.clear()
    used = await fleet.used_by(units)
    assert looks == [[function.address for unit in units for function in unit.functions]]
    for unit in units:
        await fleet.bind(unit, used)
    assert len(looks) == 1
    await fleet.bind(units[0])
    assert len(looks) == 2, "without that word it looks itself"
    used = await fleet.used_by(units)
    await fleet.bind(units[1], used)
    with pytest.raises(BindFailed, match=f"{AUDIO}: driver is .*used by somebody"):
        await fleet.bind(units[0], used)


# Between proof and start


@pytest.mark.parametrize("how", ["taken by the host's driver", "given back"])
async def test_a_unit_that_somebody_had_since_its_proof_is_not_handed_out(sysfs: SimulatedSysfs, how: str) -> None:
    """As libvirt's managed hostdevs do, and `driverctl`: nothing says what became of the device meanwhile."""
    fleet, unit = devices(sysfs), unit_of(sysfs)
    await fleet.reclaim(unit)
    await fleet.bind(unit)
    sysfs.write(f"{DEVICES}/{AUDIO}/driver_override", "\n")
    if how == "taken by the host's driver":
        sysfs.write(f"{DEVICES}/{AUDIO}/driver/unbind", AUDIO)
        sysfs.write("bus/pci/drivers_probe", AUDIO)
    with pytest.raises(DeviceError, match=rf"{AUDIO}: driver is .*somebody took it since its proof"):
        await fleet.bind(unit)
    await fleet.reclaim(unit, used=True)
    await fleet.bind(unit)


async def test_a_history_goes_on_where_an_earlier_boot_ended(sysfs: SimulatedSysfs) -> None:
    records, unit = MemoryRecords(), unit_of(sysfs)
    unit.identity = "serial 1"
    fleet = devices(sysfs, records=records)
    fleet.recall(unit.identity, UnitHistory(reclaims=7, failures=2, last_failure="dead"))
    await fleet.reclaim(unit)
    assert (fleet.history(unit).reclaims, fleet.history(unit).failures) == (8, 2)
    restarted = devices(sysfs, records=records)
    restarted.recall(unit.identity, UnitHistory(reclaims=7))
    assert restarted.history(unit).reclaims == 8, "this boot knows more"


# Scrub


async def test_the_operators_command_runs_between_tenants(sysfs: SimulatedSysfs, tmp_path: Path) -> None:
    said = tmp_path / "said"
    script = f'echo "$GPUPOOL_UNIT|$GPUPOOL_FUNCTIONS|$GPUPOOL_ALLOCATION|$*" >> {said}'
    policy = Policy(patience=QUICK, scrub_command=("sh", "-c", script, "scrub"), scrub_timeout_s=30)
    fleet, unit = devices(sysfs, policy=policy), unit_of(sysfs)
    await fleet.reclaim(unit, allocation="j1.1")
    await fleet.reclaim(unit, used=False, allocation="j2.1")
    assert said.read_text() == f"{GPU}|{GPU} {AUDIO}|j1.1|{GPU} {AUDIO}\n", "not where nothing ran"


async def test_a_command_that_fails_is_the_last_word(sysfs: SimulatedSysfs) -> None:
    policy = Policy(patience=QUICK, scrub_command=("sh", "-c", "echo page 7 is bad; exit 3"), scrub_timeout_s=30)
    fleet, unit = devices(sysfs, policy=policy), unit_of(sysfs)
    with pytest.raises(NotClean) as caught:
        await fleet.reclaim(unit)
    assert str(caught.value) == f"{GPU}: scrub command is exit code 3: page 7 is bad, expected exit code 0"


async def test_what_the_command_leaves_behind_is_found(sysfs: SimulatedSysfs) -> None:
    fleet, unit = devices(sysfs), unit_of(sysfs)
    await fleet.reclaim(unit)
    broken = sysfs.root / DEVICES / GPU / "current_link_width"
    policy = Policy(patience=QUICK, scrub_command=("sh", "-c", f"echo 1 > {broken}"), scrub_timeout_s=30)
    records = MemoryRecords()
    records.kinds["baselines"] = fleet._records.load("baselines")
    with pytest.raises(NotClean, match="link width is x1"):
        await devices(sysfs, policy=policy, records=records).reclaim(unit)


# Blocking calls


async def test_in_own_thread_carries_results_and_errors() -> None:
    assert await in_own_thread(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await in_own_thread(lambda: 1 // 0)


async def test_calls_in_flight_are_counted_by_function() -> None:
    seen: list[frozenset[str]] = []
    calls = InFlight(inline)
    await calls.on(["a", "b"])(lambda: seen.append(calls.functions()))
    with pytest.raises(ZeroDivisionError):
        await calls.on(["a"])(lambda: 1 // 0)
    assert seen == [frozenset({"a", "b"})]
    assert calls.functions() == frozenset()


async def test_a_call_that_nobody_waits_for_is_still_in_flight() -> None:
    calls, go = InFlight(), threading.Event()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await calls.on(["a"])(lambda: go.wait(60))
    assert calls.functions() == {"a"}
    go.set()
    await until(lambda: not calls.functions())


async def test_planted_bug_a_proof_without_the_second_bind_is_seen(sysfs: SimulatedSysfs) -> None:
    """The proof binds each function anew: count it, for nothing else tells whether it was done."""
    bound: list[str] = []

    class Watched(SimulatedSysfs):
        def _attach(self, driver: str, home: Path) -> None:
            bound.append(home.name)
            super()._attach(driver, home)

    fleet, unit = devices(Watched(sysfs.root)), unit_of(sysfs)
    await fleet.reclaim(unit)
    bound.clear()
    await fleet.reclaim(unit)
    await fleet.reclaim(unit, used=False)
    assert bound == [GPU, AUDIO] * 2
