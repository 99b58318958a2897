"""What the survey makes of devices and judges."""

from __future__ import annotations

from agent.survey import Judgement, Survey
from gpupool.v1.inventory_pb2 import FINDING_LEVEL_WARNING, Finding, Inventory
from tests.fakes.agent_rig import OTHER, UNIT, FakeDevices, inline

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


async def test_a_judge_that_never_said_anything_keeps_nothing_out_and_silences_nobody() -> None:
    survey = await judged(RuntimeError("oops"), Judgement([FOUND], {OTHER: "busy"}))
    assert unfit(survey.inventory) == {UNIT: "", OTHER: "busy"}
    assert list(survey.inventory.findings) == [FOUND]
