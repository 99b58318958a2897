"""A cluster broken at random, for CHAOS_S seconds (900) of the seed CHAOS_SEED: `make chaos` only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.net import Network, left
from tests.chaos.run import READY_S, SETTLE_S, Chaos

SECONDS, SEED = float(os.environ.get("CHAOS_S") or 900), int(os.environ.get("CHAOS_SEED") or time.time() % 100_000)
NEEDS = ("etcd", "qemu-system-x86_64", "ip", "nsenter", "mount")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@needs_root
@pytest.mark.chaos
@pytest.mark.skipif(any(not shutil.which(tool) for tool in NEEDS), reason=f"needs {', '.join(NEEDS)}")
@pytest.mark.timeout(SECONDS + READY_S + SETTLE_S + 120)
async def test_chaos() -> None:
    chaos = Chaos(SEED, SECONDS, Path("var/images"), _tell)
    _tell(f"\nseed {SEED}, {SECONDS:g} s; again with: CHAOS_SEED={SEED} CHAOS_S={SECONDS:g} make chaos")
    for fault in chaos.plan:
        _tell(f"  {fault}")
    report = await chaos.run()
    _tell(report.as_json())
    assert not report.findings
    assert report.finished, "no job came to its end"
    assert not left(), "namespaces or links were left"


def _tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


SAY = "import socket, sys; socket.socket(type=socket.SOCK_DGRAM).sendto(sys.argv[1].encode(), (sys.argv[2], 9000))"
HEAR = """
import socket, sys
ear = socket.socket(type=socket.SOCK_DGRAM)
ear.bind(("0.0.0.0", 9000))
print("ready", flush=True)
while True:
    print(ear.recv(100).decode(), flush=True)
"""


@needs_root
@pytest.mark.skipif(not shutil.which("ip") or not shutil.which("nsenter"), reason="needs ip and nsenter")
def test_each_direction_of_the_network_is_cut_by_itself() -> None:
    net = Network(("a", "b"))
    ears: dict[str, subprocess.Popen[str]] = {}
    try:
        net.up()
        for node in ("a", "b"):
            command = [*net.inside(node), sys.executable, "-c", HEAR]
            ears[node] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert ears[node].stdout.readline() == "ready\n"  # type: ignore[union-attr]

        def say(sender: str, receiver: str, word: str) -> None:
            command = [*net.inside(sender), sys.executable, "-c", SAY, word, net.address(receiver)]
            subprocess.run(command, check=True)

        def heard(node: str) -> str:
            return ears[node].stdout.readline().strip()  # type: ignore[union-attr]

        say("a", "b", "one")
        net.cut([("a", "b")])
        net.cut([("a", "b")])  # by two faults at once
        say("a", "b", "lost")
        say("b", "a", "back")
        net.heal([("a", "b")])
        say("a", "b", "lost too")
        net.heal([("a", "b")])
        say("a", "b", "two")
        assert [heard("b"), heard("b"), heard("a")] == ["one", "two", "back"]
    finally:
        for ear in ears.values():
            ear.kill()
            ear.wait()
            ear.stdout.close()  # type: ignore[union-attr]
        net.down()
    assert not left()
