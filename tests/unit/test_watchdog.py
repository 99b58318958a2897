"""The hardware watchdog: petted only while it would still fire in time, stopped only when nothing lives."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.guard.state import Word
from agent.guard.watchdog import PET_EVERY_NS, Watchdog

S = 1_000_000_000
ASK_S = 4


class FakeDevice:
    """Implements agent.guard.watchdog.Device; `fires_at` is when it would reset the machine, 0: it is not armed."""

    def __init__(self, clock: Callable[[], int], *, timeout_s: int = ASK_S, closable: bool = True) -> None:
        self.closable, self.hardware, self.name = closable, True, "fake"
        self.timeout_s = timeout_s
        self.busy = False
        self.opened = False
        self.fires_at = 0
        self.pets = 0
        self.on_pet: Callable[[], object] = lambda: None
        self._clock = clock

    def open(self, ask_s: int) -> int:
        assert ask_s == ASK_S
        if self.busy:
            raise OSError(errno.EBUSY, "Device or resource busy")
        self.opened = True
        self.pet()
        return self.timeout_s

    def pet(self) -> None:
        self.on_pet()
        self.pets += 1
        self.fires_at = self._clock() + self.timeout_s * S

    def close(self) -> None:
        self.opened = False
        if self.closable:
            self.fires_at = 0


class Bench:
    """A guard's loop around a watchdog, on a clock of its own."""

    def __init__(self, *, inherited: bool = False, timeout_s: int = ASK_S, closable: bool = True) -> None:
        self.now = 100 * S
        self.words = dict.fromkeys(Word, 0)
        self.words[Word.WATCHDOG] = ASK_S * S if inherited else 0
        self.device = FakeDevice(lambda: self.now, timeout_s=timeout_s, closable=closable)
        self.lives = True
        self.notes: list[str] = []
        self.dog = Watchdog(self.device, ASK_S, self.words, self.notes.append, lambda: self.now)

    def renewed(self, lease_s: float = 8.0) -> None:
        """As the agent does after an acknowledgement: the kill at 2 s before the end, the reset at 0.5 s before."""
        end = self.now + int(lease_s * S)
        self.words[Word.DEADLINE], self.words[Word.LIMIT] = end - 2 * S, end - S // 2

    def idle(self) -> bool:
        return self.now >= self.words[Word.DEADLINE] and not self.lives

    def look(self, still_idle: Callable[[], bool] | None = None) -> bool:
        return self.dog.look(self.words, idle=self.idle(), still_idle=still_idle or self.idle)

    def run(self, for_s: float) -> None:
        until = self.now + int(for_s * S)
        while self.now < until:
            self.look()
            self.now += S // 20

    @property
    def armed(self) -> bool:
        return self.words[Word.WATCHDOG] != 0


def test_is_armed_and_petted_while_renewals_come() -> None:
    bench = Bench()
    for _ in range(20):
        bench.renewed()
        bench.run(2)
        assert bench.armed
        assert bench.now < bench.device.fires_at <= bench.words[Word.LIMIT]
    assert "fake is armed with 4 s" in bench.notes


@given(st.lists(st.tuples(st.floats(0.05, 20.0), st.booleans()), max_size=12))
def test_whatever_happens_it_fires_before_the_limit_while_vms_live(steps: list[tuple[float, bool]]) -> None:
    """Frozen from any moment on, the guard's machine is reset in time."""
    bench = Bench()
    bench.renewed()
    for wait_s, renewed in steps:
        bench.run(wait_s)
        if bench.device.opened:
            assert bench.device.fires_at <= bench.words[Word.LIMIT]
            if bench.now >= bench.device.fires_at:
                return  # reset
        if renewed:
            bench.renewed()


def test_once_nothing_lives_after_the_deadline_it_is_stopped_and_armed_again_before_anything_starts() -> None:
    bench = Bench()
    bench.renewed()
    bench.run(5.5)
    assert bench.armed
    bench.lives = False
    bench.run(0.4)
    assert bench.armed, "the deadline has not passed: a VM may start at any moment"
    bench.run(0.3)
    assert (bench.armed, bench.device.fires_at) == (False, 0)
    bench.run(30)
    bench.renewed()
    bench.look()
    assert bench.armed
    assert bench.device.fires_at


def test_vms_that_cannot_be_killed_are_reset_with_the_machine() -> None:
    bench = Bench()
    bench.renewed()
    limit = bench.words[Word.LIMIT]
    bench.run(20)
    assert 0 < bench.device.fires_at <= limit


def test_the_agent_that_moves_the_deadline_on_while_it_is_being_stopped_finds_it_armed() -> None:
    bench = Bench()
    bench.renewed()
    bench.look()
    bench.now = bench.words[Word.DEADLINE]
    bench.lives = False

    def agent_is_faster() -> bool:
        assert not bench.armed, "the word is cleared before the last look at the deadline"
        bench.renewed()
        return bench.idle()

    bench.look(agent_is_faster)
    assert bench.device.opened
    bench.look()
    assert bench.armed


def test_guard_that_takes_over_an_armed_watchdog() -> None:
    bench = Bench(inherited=True)
    bench.words[Word.DEADLINE] = bench.words[Word.LIMIT] = bench.now - S
    assert not bench.armed, "not before it is in hand"
    bench.run(1)
    assert not bench.device.opened, "opening it would pet it, and a VM lives"
    bench.lives = False
    bench.device.busy = True
    bench.run(0.3)
    bench.device.busy = False
    bench.run(0.5)
    assert (bench.device.pets, bench.device.fires_at) == (1, 0), "opened in order to stop it"


def test_busy_device_is_asked_for_again_and_told_of_once() -> None:
    bench = Bench()
    bench.device.busy = True
    bench.renewed(60)
    bench.run(10)
    assert (bench.armed, len(bench.notes)) == (False, 1)
    assert "Device or resource busy" in bench.notes[0]
    bench.device.busy = False
    bench.run(1)
    assert bench.armed


def test_nowayout_is_said_and_petted_for_ever() -> None:
    bench = Bench(closable=False)
    bench.renewed()
    bench.run(2)
    assert "nowayout" in bench.notes[-1]
    assert not bench.dog.may_leave
    bench.lives = False
    bench.run(100)
    assert not bench.armed
    assert bench.device.fires_at > bench.now
    bench.lives = True  # nothing can start: but if it did, it would not be petted
    pets = bench.device.pets
    bench.run(5)
    assert bench.device.pets == pets


@pytest.mark.parametrize("closable", [True, False])
def test_timeout_that_is_too_long_is_no_watchdog(closable: bool) -> None:
    bench = Bench(timeout_s=60, closable=closable)
    bench.renewed()
    bench.run(200)
    assert not bench.armed
    assert "cannot do 4 s, only 60" in bench.notes[0]
    assert bench.device.fires_at == 0 if closable else bench.device.fires_at > bench.now


def test_software_watchdog_is_petted_and_not_declared() -> None:
    bench = Bench()
    bench.device.hardware = False
    bench.renewed()
    bench.run(2)
    assert bench.device.pets > 4
    assert not bench.armed


def test_a_guard_that_stood_still_between_clock_and_pet_kills_at_once() -> None:
    bench = Bench()
    bench.renewed()
    bench.look()
    bench.now += 2 * S

    def stand_still() -> None:
        bench.now += 3 * S

    bench.device.on_pet = stand_still
    assert bench.look()
    bench.device.on_pet = lambda: None
    bench.renewed()
    bench.now += PET_EVERY_NS
    assert not bench.look()
