"""What the kernel says about a process: memory and CPU time."""

from __future__ import annotations

import os
from pathlib import Path


def rss_mib(pid: int) -> float:
    """Resident memory, shared pages counted in full."""
    return _kib(Path(f"/proc/{pid}/status"), "VmRSS:") / 1024


def pss_mib(pid: int) -> float:
    """Resident memory, each shared page divided among those that share it."""
    return _kib(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") / 1024


def cpu_s(pid: int) -> float:
    """CPU time used so far, in user and kernel mode, of all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def naming(text: str) -> dict[int, list[str]]:
    """Processes whose command line contains `text`, each with its words."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:  # it has ended
                continue
            if any(text in word for word in words):
                found[int(entry.name)] = words
    return found


def _kib(file: Path, field: str) -> int:
    line = next(line for line in file.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])
