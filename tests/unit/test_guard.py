"""The real guard process, with `sleep` standing for VMs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.config import default_cgroup
from agent.guard.client import ProcessGuard
from agent.guard.state import GuardState, Word, open_state
from agent.ports import GuardError
from agent.timing import PROFILES, Timing

CGROUP = default_cgroup(f"test-{os.getpid()}")
needs_cgroup = pytest.mark.skipif(CGROUP is None, reason="no cgroup v2 that this process may write to")


def boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


@pytest.fixture
def cgroup() -> Iterator[Path]:
    assert CGROUP
    (CGROUP / "vm").mkdir(parents=True, exist_ok=True)
    yield CGROUP
    (CGROUP / "cgroup.kill").write_text("1")
    for directory in (CGROUP / "vm", CGROUP):
        for _ in range(100):
            with contextlib.suppress(OSError):
                directory.rmdir()
                break
            time.sleep(0.02)


@pytest.fixture
def guards(tmp_path: Path) -> Iterator[list[ProcessGuard]]:
    made: list[ProcessGuard] = []
    yield made
    for guard in made:
        if guard.pid:
            end(guard.pid)


@pytest.fixture
def vms() -> Iterator[list[subprocess.Popen[bytes]]]:
    made: list[subprocess.Popen[bytes]] = []
    yield made
    for vm in made:
        vm.kill()
        vm.wait()


def start_vm(vms: list[subprocess.Popen[bytes]], *, cgroup: Path | None = None) -> subprocess.Popen[bytes]:
    vm = subprocess.Popen(["sleep", "60"])
    vms.append(vm)
    if cgroup:
        (cgroup / "vm/cgroup.procs").write_text(str(vm.pid))
    return vm


def start_named(directory: Path) -> subprocess.Popen[bytes]:
    """A VM that is known by its command line."""
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(directory)])


def start_unprivileged(file: Path) -> subprocess.Popen[bytes]:
    """A guard that the system refuses what it asks for; returns once it watches."""
    state = open_state(file)
    state[Word.AGENT] = os.getpid()  # or it ends, as nobody wants it
    bare = ["prlimit", "--memlock=4096", "--rtprio=0", "setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    guard = [sys.executable, "-S", "-m", "agent.guard", "--state", str(file), "--pidfiles", str(file.parent)]
    child = subprocess.Popen([*bare, *guard])
    while not state[Word.HEARTBEAT] and child.poll() is None:
        time.sleep(0.02)
    return child


@pytest.mark.skipif(not shutil.which("setpriv"), reason="no setpriv, of util-linux")
async def test_it_tells_the_agent_what_the_system_refused(tmp_path: Path, guards: list[ProcessGuard]) -> None:
    child = start_unprivileged(tmp_path / "guard.state")
    guard = ProcessGuard(tmp_path / "guard.state", None, tmp_path)
    guards.append(guard)
    try:
        await guard.ensure()  # it finds the one that runs
        assert guard.pid == child.pid
        assert guard.refused().startswith("to be locked in memory, real-time priority")
    finally:
        end(child.pid)


@needs_cgroup
async def test_kills_at_the_deadline_and_not_before(
    tmp_path: Path, cgroup: Path, guards: list[ProcessGuard], vms: list[subprocess.Popen[bytes]]
) -> None:
    guard = ProcessGuard(tmp_path / "guard.state", cgroup)
    guards.append(guard)
    assert not guard.alive()
    await guard.ensure()
    deadline = boot() + 1.0
    guard.extend(deadline)
    guard.extend(deadline - 0.9)  # never back
    vm = start_vm(vms, cgroup=cgroup)
    await asyncio.sleep(0.8)
    assert vm.poll() is None
    vm.wait(5)
    assert 0 <= boot() - deadline < 0.5
    late = start_vm(vms, cgroup=cgroup)  # what comes after the deadline dies too
    late.wait(5)
    assert guard.kills >= 2
    guard.extend(boot() + 60)
    vm = start_vm(vms, cgroup=cgroup)
    await asyncio.sleep(0.3)
    assert vm.poll() is None


AGENT = """
import asyncio, sys, time
from pathlib import Path
from agent.guard.client import ProcessGuard
guard = ProcessGuard(Path(sys.argv[1]), Path(sys.argv[2]))
asyncio.run(guard.ensure())
print(guard.pid, flush=True)
while True:
    guard.extend(time.clock_gettime(time.CLOCK_BOOTTIME) + 1.0)
    time.sleep(0.1)
"""


@needs_cgroup
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_outlives_the_agent(
    blow: signal.Signals, tmp_path: Path, cgroup: Path, vms: list[subprocess.Popen[bytes]]
) -> None:
    state = tmp_path / "guard.state"
    agent = subprocess.Popen([sys.executable, "-c", AGENT, str(state), str(cgroup)], stdout=subprocess.PIPE)
    vms.append(agent)
    assert agent.stdout
    guard_pid = int(agent.stdout.readline())
    try:
        vm = start_vm(vms, cgroup=cgroup)
        time.sleep(1.5)
        assert vm.poll() is None, "the agent was extending"
        agent.send_signal(blow)
        struck = boot()
        vm.wait(5)
        assert boot() - struck < 1.6
        if blow == signal.SIGSTOP:
            time.sleep(0.3)
            assert running(guard_pid)
            agent.kill()
        while running(guard_pid):  # no VM, no agent: nothing to guard
            assert boot() - struck < 10
            time.sleep(0.02)
    finally:
        agent.stdout.close()
        end(guard_pid)


def running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    return False


async def test_pidfiles_name_the_processes_and_strangers_are_spared(
    tmp_path: Path, guards: list[ProcessGuard], vms: list[subprocess.Popen[bytes]]
) -> None:
    directory = tmp_path / "vms"
    (directory / "j1.1").mkdir(parents=True)
    mine = start_named(directory / "j1.1")
    stranger = start_vm(vms)
    vms.append(mine)
    (directory / "j1.1/gpupool-j1.1.pid").write_text(f"{mine.pid}\n")
    (directory / "gpupool-reused.pid").write_text(str(stranger.pid))
    (directory / "gpupool-broken.pid").write_text("what")
    foreign = start_named(directory)
    vms.append(foreign)
    (directory / "database.pid").write_text(str(foreign.pid))
    guard = ProcessGuard(tmp_path / "guard.state", None, directory)
    guards.append(guard)
    await asyncio.sleep(0.2)
    await guard.ensure()  # deadline 0: nothing may live
    mine.wait(5)
    await asyncio.sleep(0.3)
    assert stranger.poll() is None
    assert foreign.poll() is None


async def test_second_agent_attaches_and_takes_over_a_stuck_guard(tmp_path: Path, guards: list[ProcessGuard]) -> None:
    first = ProcessGuard(tmp_path / "guard.state", None, tmp_path)
    guards.append(first)
    await first.ensure()
    pid = first.pid
    second = ProcessGuard(tmp_path / "guard.state", None, tmp_path)
    await second.ensure()
    assert second.pid == pid
    second.extend(boot() + 100)
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(1.1)
    assert not second.alive()
    await asyncio.gather(second.ensure(), asyncio.to_thread(os.waitpid, pid, 0))
    assert second.pid != pid
    assert second.alive()
    assert GuardState(tmp_path / "guard.state")[Word.DEADLINE] > (boot() + 90) * 1e9  # the deadline stands


class BeatsWhenLookedAt(dict[Word, int]):
    """The words of a guard that beats in the very moment in which its heartbeat is read."""

    def __missing__(self, word: Word) -> int:
        time.sleep(1e-6)
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) if word is Word.HEARTBEAT else 0


def test_a_guard_that_beats_while_it_is_looked_at_is_alive(tmp_path: Path) -> None:
    guard = ProcessGuard(tmp_path / "guard.state", None, tmp_path)
    guard._state = BeatsWhenLookedAt()  # type: ignore[assignment]
    assert all(guard.alive() for _ in range(20))


async def test_a_guard_that_is_only_slow_is_given_time(tmp_path: Path, guards: list[ProcessGuard]) -> None:
    guard = ProcessGuard(tmp_path / "guard.state", None, tmp_path, patience_s=30)
    guards.append(guard)
    await guard.ensure()
    guard.extend(boot() + 100)
    pid = guard.pid
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(1.1)
    assert not guard.alive(), "meanwhile nothing starts behind it"
    asyncio.get_running_loop().call_later(0.3, os.kill, pid, signal.SIGCONT)
    await asyncio.gather(guard.ensure(), guard.ensure())
    assert (guard.pid, guard.alive()) == (pid, True)
    end(pid)
    await asyncio.sleep(1.1)
    before = boot()
    await guard.ensure()
    assert boot() - before < 10, "one that is gone is not waited for"
    assert guard.pid != pid


@pytest.mark.parametrize(
    ("timing", "patience_s"),
    [
        (Timing(), 1.0),
        (PROFILES["fast"], 1.0),
        (PROFILES["patient"], 2.5),
        (Timing(ttl_s=60, renew_s=10, kill_margin_s=10), 5.0),
        (Timing(ttl_s=60, renew_s=10, kill_margin_s=10, watchdog_s=6), 2.0),
    ],
)
def test_patience_leaves_time_for_another(timing: Timing, patience_s: float) -> None:
    assert timing.guard_patience_s == patience_s
    assert not timing.watchdog_s or timing.guard_patience_s <= max(1, timing.watchdog_s / 3)


async def test_ends_only_when_asked_and_nothing_lives(
    tmp_path: Path, guards: list[ProcessGuard], vms: list[subprocess.Popen[bytes]]
) -> None:
    directory = tmp_path / "vms"
    directory.mkdir()
    vm = start_named(directory)
    vms.append(vm)
    (directory / "gpupool-j1.1.pid").write_text(str(vm.pid))
    guard = ProcessGuard(tmp_path / "guard.state", None, directory)
    guards.append(guard)
    state = open_state(tmp_path / "guard.state")
    state[Word.DEADLINE] = int((boot() + 60) * 1e9)
    await guard.ensure()
    os.kill(guard.pid, signal.SIGTERM)
    guard.release()
    await asyncio.sleep(0.3)
    assert guard.alive()
    vm.kill()
    vm.wait()
    await asyncio.sleep(0.3)
    assert not guard.alive()


def test_state_of_another_boot_is_not_believed(tmp_path: Path) -> None:
    file = tmp_path / "guard.state"
    state = open_state(file)
    state[Word.DEADLINE] = 2**60
    state[Word.BOOT_LOW] += 1
    state.close()
    with pytest.raises(ValueError, match="of this boot"):
        GuardState(file)
    assert open_state(file)[Word.DEADLINE] == 0


async def test_guard_that_cannot_start_says_where_to_look(tmp_path: Path) -> None:
    guard = ProcessGuard(tmp_path / "guard.state", None, None)
    with pytest.raises(GuardError, match=r"exit code 2.*guard\.log"):
        await guard.ensure()


DOG = """
import sys, time
from pathlib import Path
from agent.guard import __main__ as guard
class File:
    closable, hardware, name = True, True, "a file"
    def __init__(self, path): self.path = path
    def say(self, what):
        with self.path.open("a") as file: print(what, time.clock_gettime_ns(time.CLOCK_BOOTTIME), file=file)
    def open(self, ask_s): self.say("pet"); return ask_s
    def pet(self): self.say("pet")
    def close(self): self.say("close")
sys.exit(guard.main(File))
"""
WATCHDOG_S = 3


def start_dog(tmp_path: Path) -> subprocess.Popen[bytes]:
    """A guard's process behind a watchdog that is a file: what is done to it is written there."""
    words = ["--state", tmp_path / "guard.state", "--pidfiles", tmp_path / "vms"]
    words += ["--watchdog", tmp_path / "dog", "--watchdog-s", WATCHDOG_S]
    with (tmp_path / "log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-c", DOG, *map(str, words)], stderr=log, start_new_session=True)


def dog_said(tmp_path: Path) -> list[tuple[str, float]]:
    lines = (tmp_path / "dog").read_text().splitlines() if (tmp_path / "dog").exists() else []
    return [(word, int(at) / 1e9) for word, at in map(str.split, lines)]


def renew(state: GuardState, for_s: float) -> None:
    """As an agent with a lease of that length does at each acknowledgement, with K = 2 s."""
    end = boot() + for_s
    state[Word.LIMIT], state[Word.DEADLINE] = int((end - 0.5) * 1e9), int((end - 2) * 1e9)
    state[Word.AGENT] = os.getpid()


async def soon(holds: Callable[[], object], within_s: float = 10.0) -> None:
    end = boot() + within_s
    while not holds():
        assert boot() < end
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
async def test_watchdog_resets_the_machine_of_a_guard_that_stands_still_before_the_limit(
    blow: signal.Signals, tmp_path: Path, vms: list[subprocess.Popen[bytes]]
) -> None:
    """Whenever its last pet was: the reset comes before any VM would live too long. Another guard takes it over."""
    (tmp_path / "vms").mkdir()
    vm = start_named(tmp_path / "vms")
    vms.append(vm)
    (tmp_path / "vms/gpupool-j1.1.pid").write_text(str(vm.pid))
    state = open_state(tmp_path / "guard.state")
    renew(state, 30)
    guard = start_dog(tmp_path)
    vms.append(guard)
    await soon(lambda: state[Word.WATCHDOG] == WATCHDOG_S * 1e9)
    renew(state, 30)
    await asyncio.sleep(0.6)
    guard.send_signal(blow)
    await asyncio.sleep(0.1)
    last = dog_said(tmp_path)[-1]
    await asyncio.sleep(1)
    assert dog_said(tmp_path)[-1] == last, "nobody pets it: the machine is reset"
    assert last[0] == "pet"
    assert last[1] + WATCHDOG_S <= state[Word.LIMIT] / 1e9
    guard.kill()
    guard.wait()
    second = start_dog(tmp_path)
    vms.append(second)
    await soon(lambda: dog_said(tmp_path)[-1][1] > last[1] and state[Word.WATCHDOG])
    assert vm.poll() is None


async def test_watchdog_is_petted_no_longer_than_the_deadline_allows_and_stopped_once_nothing_lives(
    tmp_path: Path, vms: list[subprocess.Popen[bytes]]
) -> None:
    """The agent hangs: the guard kills, makes sure, and spares the machine the reset."""
    (tmp_path / "vms").mkdir()
    vm = start_named(tmp_path / "vms")
    vms.append(vm)
    (tmp_path / "vms/gpupool-j1.1.pid").write_text(str(vm.pid))
    state = open_state(tmp_path / "guard.state")
    renew(state, 30)
    vms.append(start_dog(tmp_path))
    await soon(lambda: state[Word.WATCHDOG])
    state[Word.DEADLINE] = int((boot() + 3) * 1e9)
    state[Word.LIMIT] = int((boot() + 4.5) * 1e9)
    vm.wait(10)
    await soon(lambda: dog_said(tmp_path)[-1][0] == "close")
    said = dog_said(tmp_path)
    pets, closed = [at for word, at in said if word == "pet"], said[-1][1]
    assert max(pets) + WATCHDOG_S <= state[Word.LIMIT] / 1e9
    assert state[Word.DEADLINE] / 1e9 <= closed < max(pets) + WATCHDOG_S
    assert (state[Word.WATCHDOG], state[Word.EMPTY] > 0) == (0, True)
    renew(state, 30)
    await soon(lambda: state[Word.WATCHDOG])
    assert dog_said(tmp_path)[-1][0] == "pet"


def test_state_of_an_older_agent_grows_and_its_guard_goes_on(tmp_path: Path) -> None:
    """An upgrade must not end VMs: the old guard watches, and knows nothing of the new words."""
    file = tmp_path / "guard.state"
    state = open_state(file)
    state[Word.DEADLINE] = 77
    state.close()
    with file.open("r+b") as old:
        old.truncate(8 * 9)
    again = open_state(file)
    assert (again[Word.DEADLINE], again[Word.WATCHDOG], again[Word.LIMIT]) == (77, 0, 0)
