"""Who runs, told by the VMs themselves: each incarnation of a job counts its beats in a slot of the job's volume.

The volume is one disk image that all attempts of the job are given. Its file system is not used: beats are written to
raw blocks near its end, which the file system leaves free, so that two VMs at once damage nothing and both are seen. A
slot belongs to the first who finds it empty; beside the beat stands a number of the incarnation's own, so that even two
that took one slot are told apart. There is no lock, and no clock: what counts is the order in which the file changed,
as one reader sees it.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from gpupool.v1 import job_pb2

from .checker import Beat

MOUNT, VOLUME, SIZE_MIB = "/mnt/epoch", "epoch", 16
BASE, SLOT, SLOTS = 15 << 20, 512, 64
BEAT_S = 0.25

GUEST = f"""
import mmap, os, sys, time
device = [line.split()[0] for line in open("/proc/mounts") if line.split()[1] == "{MOUNT}"][0]
disk = os.open(device, os.O_RDWR | os.O_DIRECT)
block = mmap.mmap(-1, {SLOT * SLOTS})
os.preadv(disk, [block], {BASE})
free = [n for n in range({SLOTS}) if not block[n * {SLOT}]][0]
mine, me = mmap.mmap(-1, {SLOT}), os.urandom(8).hex()
print("epoch", free, me, flush=True)
for beat in range(1, int(sys.argv[1]) + 1):
    mine[:] = (me + " " + str(beat) + "\\n").encode().ljust({SLOT}, b"\\0")
    os.pwritev(disk, [mine], {BASE} + free * {SLOT})
    time.sleep({BEAT_S})
"""


def job(beats: int, name: str, model: str) -> job_pb2.JobSpec:
    """A job that beats so often and exits with 0. Whatever befalls it, it is started again."""
    return job_pb2.JobSpec(
        name=name, image="debian-numpy", command=["python3", "-I", "-S", "-c", GUEST, str(beats)], cpus=1,
        memory_mib=160, stop_grace_s=4, gpus=job_pb2.GpuRequest(count=1, model=model),
        volumes=[job_pb2.Volume(name=VOLUME, size_mib=SIZE_MIB, path=MOUNT)],
        restart=job_pb2.RestartPolicy(max_restarts=200, max_start_failures=200, max_host_deaths=0),
    )  # fmt: skip


class Reader:
    """Reads all volumes again and again; `beats` is every change that it saw, in order."""

    def __init__(self, volumes: Path) -> None:
        self._volumes = volumes
        self._last: dict[tuple[str, str], int] = {}
        self.beats: list[Beat] = []

    def look(self) -> None:
        """One look. What one look finds has one time."""
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        for file in sorted(self._volumes.glob(f"*/{VOLUME}.img")):
            with contextlib.suppress(OSError), file.open("rb") as image:
                image.seek(BASE)
                for number, (me, beat) in _slots(image.read(SLOT * SLOTS)):
                    self._note(Beat(now, file.parent.name, me, number, beat))

    def _note(self, seen: Beat) -> None:
        if self._last.get((seen.job, seen.incarnation)) != seen.beat:
            self._last[seen.job, seen.incarnation] = seen.beat
            self.beats.append(seen)


def _slots(data: bytes) -> list[tuple[int, tuple[str, int]]]:
    found = []
    for number in range(len(data) // SLOT):
        words = data[number * SLOT : (number + 1) * SLOT].rstrip(b"\0").split()
        if len(words) == 2 and words[1].isdigit():
            found.append((number, (words[0].decode("ascii", "replace"), int(words[1]))))
    return found
