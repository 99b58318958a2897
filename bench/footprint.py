"""Memory and idle CPU of every kind of process, with the demo's cluster up and nothing to do."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path

from gpupool.cli.demo import HOSTS
from gpupool.embedded.cluster import EmbeddedCluster
from gpupool.embedded.daemons import remove_tree

from . import proc
from .row import Row

IMAGES = Path("var/images")
SETTLE_S, IDLE_S = 5.0, 20.0
TARGETS = {"scheduler": "RSS < 200 MiB", "agent": "RSS < 80 MiB"}


async def run(tell: Callable[[str], None]) -> list[Row]:
    """See the module docstring."""
    folder = Path(tempfile.mkdtemp(prefix="gpupool-bench-"))
    cluster = EmbeddedCluster(folder, images=IMAGES, hosts=HOSTS)
    try:
        await cluster.start()
        groups = await _groups(cluster)
        await asyncio.sleep(SETTLE_S)
        before = {pid: proc.cpu_s(pid) for pids in groups.values() for pid in pids}
        tell(f"idle for {IDLE_S:g} s")
        await asyncio.sleep(IDLE_S)
        cpu = {pid: (proc.cpu_s(pid) - used) / IDLE_S * 100 for pid, used in before.items()}
        return [row for what, pids in groups.items() for row in _rows(what, pids, cpu)]
    finally:
        await cluster.stop()
        remove_tree(folder)


def _rows(what: str, pids: list[int], cpu: dict[int, float]) -> list[Row]:
    target = TARGETS.get(what.split(maxsplit=1)[0], "")
    return [
        Row(f"{what}: RSS", "MiB", [proc.rss_mib(pid) for pid in pids], target=target),
        Row(f"{what}: PSS", "MiB", [proc.pss_mib(pid) for pid in pids]),
        Row(f"{what}: idle CPU", "% of a core", [cpu[pid] for pid in pids]),
    ]


async def _groups(cluster: EmbeddedCluster) -> dict[str, list[int]]:
    """Process ids by what they are."""
    leader = await cluster.leader()
    agents = [host.agent.pid for host in cluster.hosts.values() if host.agent is not None]
    guards = [pid for pid, words in proc.naming(f"{cluster.folder}/hosts/").items() if "agent.guard" in words]
    assert len(guards) == len(agents) == len(HOSTS)
    return {
        "scheduler (leads)": [cluster.replicas[leader].pid],
        "scheduler (stands by)": [replica.pid for name, replica in cluster.replicas.items() if name != leader],
        "agent": agents,
        "guard": guards,
        "etcd": [cluster.etcd.pid],
    }
