"""The guard: a process that kills this host's VMs at a deadline, whatever has become of the agent.

The agent moves the deadline on as its session is renewed. The guard knows nothing of sessions or libvirt: once the boot
clock has passed the deadline it kills everything in the VMs' cgroup, and goes on until nothing is left, so a VM
put there later dies too. It is a process of its own, in a session of its own, locked in memory and with real-time
priority where the system allows it; it uses only the standard library and starts no thread. It never ends while a VM
lives, and never moves a deadline. When the deadline has passed and the agent is gone too, it ends; the next agent
starts another.

With `--watchdog` a hardware watchdog resets the machine should the guard itself stand still (watchdog.py).

Run as `python -m agent.guard --state FILE --cgroup DIR`. Exit codes: 0 no longer needed and nothing lived, 2 bad
arguments or state, 3 another guard watches this state.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .state import GuardState, Word, boot_time_ns
from .targets import Cgroup, PidFiles, Target
from .watchdog import Device, NoDevice, Watchdog, WatchdogDevice

PERIOD_S = 0.05
_MCL_CURRENT_AND_FUTURE = 1 | 2  # sys/mman.h


def note(text: str) -> None:
    """A line for the log; a full disk or a closed pipe must not stop the guard."""
    with contextlib.suppress(OSError):
        print(f"guard[{os.getpid()}]: {text}", file=sys.stderr, flush=True)  # noqa: T201 - its log is stderr


def harden() -> int:
    """Ask for all that keeps the guard running on a host in trouble; say what was refused, as bits of REFUSALS."""
    refused = 0
    for number, (ask, otherwise) in enumerate(_WISHES):
        try:
            ask()
        except OSError as exc:
            note(f"{otherwise}: {exc.strerror}")
            refused |= 1 << number
    return refused


def _lock_in_memory() -> None:
    if ctypes.CDLL(None, use_errno=True).mlockall(_MCL_CURRENT_AND_FUTURE) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _run_in_real_time() -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def _be_spared() -> None:
    Path("/proc/self/oom_score_adj").write_text("-1000")


_WISHES: Sequence[tuple[Callable[[], object], str]] = (  # in the order of REFUSALS
    (_lock_in_memory, "not locked in memory"),
    (_run_in_real_time, "no real-time priority"),
    (_be_spared, "the kernel may choose it when out of memory"),
)


def enforce(state: GuardState, targets: list[Target]) -> bool:
    """One look: kill what lives past the deadline. Returns whether it had to."""
    return boot_time_ns() >= state[Word.DEADLINE] and kill_all(state, targets)


def kill_all(state: GuardState, targets: list[Target]) -> bool:
    """Kill what lives. Returns whether anything did."""
    killed = False
    for target in targets:
        # One target in trouble must not shield the others.
        try:
            if target.populated():
                target.kill()
                killed = True
        except OSError as exc:
            note(f"cannot kill: {exc}")
    if killed:
        state[Word.KILLS] += 1
    return killed


def is_empty(targets: list[Target]) -> bool:
    """Whether it is certain that no VM lives."""
    try:
        return not any(target.populated() for target in targets)
    except OSError as exc:
        note(f"cannot see what lives: {exc}")
        return False


def is_idle(state: GuardState, targets: list[Target]) -> bool:
    """Whether the deadline has passed and no VM lives: none can start before the deadline is moved on."""
    return boot_time_ns() >= state[Word.DEADLINE] and is_empty(targets)


def may_end(state: GuardState, targets: list[Target]) -> bool:
    """Whether no VM lives, and either the agent asked the guard to end or there is no agent that could start one."""
    needless = state[Word.END] == 1 or (boot_time_ns() >= state[Word.DEADLINE] and not agent_lives(state))
    return needless and is_empty(targets)


def agent_lives(state: GuardState) -> bool:
    """Whether the agent's process lives. Its pid may be another's by now: then the guard stays, which harms nobody."""
    try:
        return bool(Path(f"/proc/{state[Word.AGENT]}/cmdline").read_bytes())  # a zombie's is empty
    except OSError:
        return False


def pause_s(state: GuardState, *, killing: bool) -> float:
    """How long to look away: never past a deadline that is near, and briefly while there is something to kill."""
    if killing:
        return PERIOD_S / 10
    left_s = (state[Word.DEADLINE] - boot_time_ns()) / 1e9
    return min(PERIOD_S, left_s) if left_s > 0 else PERIOD_S


def watch(state: GuardState, targets: list[Target], dog: Watchdog) -> None:
    """Look again and again until not needed any more."""
    killing = False
    while not (may_end(state, targets) and dog.may_leave and _still_so(state, targets)):
        state[Word.HEARTBEAT] = boot_time_ns()
        killed = enforce(state, targets)
        idle = not killed and is_idle(state, targets)
        state[Word.EMPTY] = (state[Word.EMPTY] or boot_time_ns()) if idle else 0
        if dog.look(state, idle=idle, still_idle=lambda: is_idle(state, targets)):
            note("stood still while petting the watchdog: killing every VM")
            kill_all(state, targets)
        if killed and not killing:
            note("deadline passed: killing every VM")
        elif killing and not killed:
            note("no VM is left, or the deadline was moved on")
        killing = killed
        time.sleep(pause_s(state, killing=killing))
    dog.leave(state)
    note("not needed any more: no VM lives, and no agent wants a guard")


def _still_so(state: GuardState, targets: list[Target]) -> bool:
    """The same once more, now that the guard shows no life: an agent that comes meanwhile sees that, or is seen."""
    state[Word.HEARTBEAT] = 0
    return may_end(state, targets)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpupool guard", description="Kills this host's VMs at a deadline.")
    parser.add_argument("--state", type=Path, required=True, help="the file shared with the agent")
    parser.add_argument("--cgroup", type=Path, help="cgroup v2 directory that holds every VM")
    parser.add_argument("--pidfiles", type=Path, help="directory of the VMs' gpupool-*.pid files")
    parser.add_argument("--watchdog", type=Path, help="device of a hardware watchdog, such as /dev/watchdog")
    parser.add_argument("--watchdog-s", type=int, default=4, help="the timeout to ask of it")
    arguments = parser.parse_args()
    if arguments.cgroup is None and arguments.pidfiles is None:
        parser.error("nothing to guard: give --cgroup, --pidfiles or both")
    return arguments


def main(make_device: Callable[[Path], Device] = WatchdogDevice) -> int:
    """Claim the state, harden, watch."""
    arguments = _arguments()
    try:
        state = GuardState(arguments.state)
    except (OSError, ValueError) as exc:
        note(f"cannot use {arguments.state}: {exc}")
        return 2
    if not state.lock():
        note(f"another guard watches {arguments.state}")
        return 3
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a service manager that stops the agent must not disarm the host
    state[Word.PID] = os.getpid()
    targets: list[Target] = [Cgroup(arguments.cgroup)] if arguments.cgroup else []
    targets += [PidFiles(arguments.pidfiles)] if arguments.pidfiles else []
    device = make_device(arguments.watchdog) if arguments.watchdog else NoDevice()
    dog = Watchdog(device, arguments.watchdog_s, state, note)
    state[Word.REFUSED] = harden()
    gc.freeze()
    gc.disable()
    note("watching")
    watch(state, targets, dog)
    return 0


if __name__ == "__main__":
    sys.exit(main())
