"""What the survey makes of devices and judges."""

from __future__ import annotations

import asyncio

import pytest

from agent.survey import PATIENCE_S, UNJUDGED, Judgement, Survey
from gpupool.v1.inventory_pb2 import FINDING_LEVEL_WARNING, Finding, Inventory
from tests.fakes.agent_rig import OTHER, UNIT, FakeDevices, inline
from tests.fakes.virtual_time import virtual_time

FOUND = Finding(check="clock", level=FINDING_LEVEL_WARNING, seen="not synchronised")


async def judged(*judges: Judgement | Exception) -> Survey:
    async def judge(what: Judgement | Exception) -> Judgement:
        if isinstance(what, Exception):
            raise what
        return what

    survey = Survey(
        FakeDevices(),
        lambda: ["ubuntu"],
        [lambda _, what=what: judge(what) for what in judges],  # type: ignore[misc]
        run_blocking=inline,
    )
    await survey.refresh()
    return survey


def unfit(inventory: Inventory) -> dict[str, str]:
    return {unit.id: unit.unfit for unit in inventory.units}


async def test_nothing_is_offered_before_the_first_look() -> None:
    survey = Survey(FakeDevices(), list, run_blocking=inline)
    assert survey.inventory == Inventory()


async def test_a_refresh_says_whether_anything_changed() -> None:
    images = ["ubuntu"]
    survey = Survey(FakeDevices(), lambda: images, run_blocking=inline)
    assert await survey.refresh()
    assert not await survey.refresh()
    images.append("debian")
    assert await survey.refresh()
    assert survey.inventory.images == images


async def test_all_judges_are_heard() -> None:
    survey = await judged(Judgement([FOUND], {UNIT: "no IOMMU"}), Judgement(keep_out={UNIT: "in use by pid 7"}))
    assert list(survey.inventory.findings) == [FOUND]
    assert unfit(survey.inventory) == {UNIT: "no IOMMU; in use by pid 7", OTHER: ""}


async def test_the_last_word_of_a_judge_that_fails_stands() -> None:
    words: list[Judgement | Exception] = [RuntimeError("oops"), Judgement([FOUND], {OTHER: "busy"})]

    async def judge(_: Inventory) -> Judgement:
        word = words.pop()
        if isinstance(word, Exception):
            raise word
        return word

    survey = Survey(FakeDevices(), list, [judge], run_blocking=inline)
    await survey.refresh()
    assert not await survey.refresh()
    assert unfit(survey.inventory) == {UNIT: "", OTHER: "busy"}


async def test_nothing_is_offered_before_each_judge_has_spoken_and_none_is_silenced() -> None:
    survey = await judged(RuntimeError("oops"), Judgement([FOUND], {OTHER: "busy"}))
    assert unfit(survey.inventory) == {UNIT: UNJUDGED, OTHER: f"{UNJUDGED}; busy"}
    assert list(survey.inventory.findings) == [FOUND]


async def test_a_unit_that_is_new_is_not_offered_on_a_judges_word_about_others() -> None:
    devices, words = FakeDevices([UNIT]), [Judgement()]

    async def judge(_: Inventory) -> Judgement:
        return words.pop()  # IndexError from the second time on

    survey = Survey(devices, list, [judge], run_blocking=inline)
    await survey.refresh()
    devices.units.append(OTHER)
    await survey.refresh()
    assert unfit(survey.inventory) == {UNIT: "", OTHER: UNJUDGED}


@virtual_time
async def test_a_judge_that_hangs_is_asked_once_and_holds_up_one_look() -> None:
    asked, answer = [], asyncio.Event()

    async def judge(_: Inventory) -> Judgement:
        asked.append(1)
        await answer.wait()
        return Judgement(keep_out={OTHER: "busy"})

    survey = Survey(FakeDevices(), list, [judge], run_blocking=inline)
    began = asyncio.get_running_loop().time()
    for _ in range(5):
        await survey.refresh()
    assert asyncio.get_running_loop().time() - began == pytest.approx(PATIENCE_S)
    assert len(asked) == 1
    assert unfit(survey.inventory) == {UNIT: UNJUDGED, OTHER: UNJUDGED}
    answer.set()
    await asyncio.sleep(0)
    await survey.refresh()
    assert unfit(survey.inventory) == {UNIT: "", OTHER: "busy"}


@virtual_time
async def test_devices_that_cannot_be_read_are_read_once_at_a_time() -> None:
    reads: list[asyncio.Future[object]] = []

    def hangs(_: object) -> asyncio.Future[object]:
        reads.append(asyncio.get_running_loop().create_future())
        return reads[-1]

    survey = Survey(FakeDevices(), list, run_blocking=hangs)  # type: ignore[arg-type]
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await survey.refresh()
    assert len(reads) == 1
    reads[0].set_result(Inventory(images=["late"]))
    assert await survey.refresh()
    assert survey.inventory.images == ["late"]


async def test_a_judge_tells_memory_where_the_table_does_not() -> None:
    devices = FakeDevices()
    told = Judgement(memory_mib={UNIT: 81920, OTHER: 81920}, memory_source="nvml", notes=["a card is sick"])
    read = devices.inventory

    def inventory() -> Inventory:
        found = read()
        found.units[1].gpu_memory_mib, found.units[1].memory_source = 40960, "table"
        return found

    devices.inventory = inventory  # type: ignore[method-assign]

    async def judge(_: Inventory) -> Judgement:
        return told

    survey = Survey(devices, list, [judge], run_blocking=inline)
    await survey.refresh()
    assert [(unit.gpu_memory_mib, unit.memory_source) for unit in survey.inventory.units] == [
        (81920, "nvml"),
        (40960, "table"),
    ]
    assert list(survey.inventory.notes) == ["a card is sick"]
