"""Run pytest in two halves at once: python tools/test_halves.py [PYTEST OPTION...]. Exit code: of a half that failed.

In front is what needs etcd and VMs, which mostly waits. All else runs beside it, on what it leaves of the CPUs, into
var/test-beside.log, which is printed when both have ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

PYTEST = (sys.executable, "-m", "pytest")
NICE = 10  # before the seeds (tests/sim/conftest.py), after the VMs


def _beside(marks: str, log: Path) -> subprocess.Popen[bytes]:
    """Those tests in a session of their own, which is one scheduling group to Linux (see sched(7))."""
    with log.open("wb") as output:
        half = subprocess.Popen(
            [*PYTEST, "-m", marks, *sys.argv[1:]], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    with contextlib.suppress(OSError):  # no autogroup: it takes its share
        Path(f"/proc/{half.pid}/autogroup").write_text(str(NICE))
    return half


def main() -> int:
    """Run both to their end, whichever fails."""
    log = Path("var/test-beside.log")
    log.parent.mkdir(exist_ok=True)
    beside = _beside("not etcd and not vm", log)
    print(f"tests that need neither etcd nor VMs run beside these: {log}", flush=True)
    try:
        front = subprocess.run([*PYTEST, "-m", "etcd or vm", *sys.argv[1:]], check=False).returncode
        return beside.wait() or front
    finally:
        if beside.poll() is None:
            os.killpg(beside.pid, signal.SIGINT)
            beside.wait()
        print(log.read_text(errors="replace"), flush=True)


if __name__ == "__main__":
    sys.exit(main())
