"""Whether what a leader recorded of a job can be so at all: a record that reads well may contradict itself.

No leader writes such a record; it was damaged, or written by hand. It must never be guessed at: a job of which nobody
can say whether it runs is neither started again nor given up, and its VM, if there is one, runs on.
"""

from __future__ import annotations

from ..core.state.jobs import Job


def contradiction(job: Job, allocated: int) -> str:
    """What cannot be, in words; "": it can. `allocated`: the last attempt that has an allocation on record; 0: none."""
    last, count = job.attempts[-1].number if job.attempts else 0, job.attempt_count
    state = job.state.value if job.live else ""  # it has a VM
    if state and not job.attempts:
        return f"it is {state} and has no attempt"
    if job.attempts and last != count:
        return f"it counts {count} attempts, and the last is number {last}"
    if state and allocated != count:
        return f"it is {state} in attempt {count}, of which there is no allocation"
    if allocated > count:
        return f"it counts {count} attempts, and there is an allocation of attempt {allocated}"
    return ""


def note_attempt(allocation: str, known: dict[str, int]) -> None:
    """Of an allocation, by its name: keep the last attempt of each job that one is known of."""
    job, _, number = allocation.rpartition(".")
    attempt = int(number) if number.isdecimal() else 0
    if attempt > known.get(job, 0):
        known[job] = attempt
