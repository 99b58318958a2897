"""Room that a site keeps for restarts, for real: who waits for it and why, and what the loss of a host would do."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from gpupool.cli.app import run
from gpupool.client import AsyncClient
from gpupool.embedded.cluster import EmbeddedCluster
from gpupool.store.etcd import EtcdStore
from gpupool.v1 import job_pb2, scheduler_pb2
from tests.e2e import needs
from tests.e2e.fleet import A100, FOREVER, Fleet, brief_folder, until

pytestmark = [*needs.ETCD, *needs.VMS]


async def test_the_policy_file_keeps_room_until_it_says_otherwise(
    images: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with brief_folder() as folder:
        site = folder / "site.yaml"
        site.write_text("failover: {hosts: 1}\n")
        cluster = EmbeddedCluster(
            folder,
            images=images,
            hosts={"h1": f"1x{A100}", "h2": f"1x{A100}"},
            scheduler_options={"--policy": str(site)},
        )
        try:
            await cluster.start()
            store = EtcdStore([cluster.etcd.endpoint])
            async with AsyncClient(cluster.server, timeout_s=30) as client:
                await _scene(Fleet(cluster, client, store), site, capfd)
            await store.close()
        finally:
            await asyncio.shield(cluster.stop())


async def _scene(fleet: Fleet, site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = await fleet.submit(FOREVER, name="first")
    here = await fleet.runs(first)
    other = next(name for name in fleet.hosts if name != here.name)
    second = await fleet.submit(FOREVER, name="second")

    async def refused() -> bool:
        found = await fleet.client.explain(second)
        return scheduler_pb2.REASON_RESERVED_FOR_FAILOVER in [each.reason for each in found.reasons]

    await until(refused)
    assert (await fleet.client.get(second)).status.state == job_pb2.JOB_STATE_PENDING
    code, printed = await _plan(fleet, here.name, capfd)
    assert (code, printed) == (0, [first, other])

    await _whatif(fleet, site.with_name("now.json"), (first, second), here.name, capfd)

    await asyncio.to_thread(site.write_text, "flap: {losses: 9}\n")
    # No room is kept any more; a replica reads the file when it starts.
    for name, replica in list(fleet.cluster.replicas.items()):
        await replica.stop()
        await fleet.cluster.start_replica(name)
    assert (await fleet.runs(second)).name == other
    code, printed = await _plan(fleet, here.name, capfd)
    assert (code, printed[0]) == (1, first), "nobody has a place for it now"
    assert other not in printed


async def _whatif(
    fleet: Fleet, file: Path, jobs: tuple[str, str], host: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A dump of the real service says of more hosts and of a lost one what the plan says, and nothing is touched."""
    assert await asyncio.to_thread(run, ["cluster", "dump", "-o", str(file), "--server", fleet.cluster.server]) == 0
    for options, expected in (
        (["--add-hosts", "1", "--like", host], {jobs[1]: "starts"}),
        (["--lose-host", host], {jobs[0]: "restarts"}),
        ([], {}),
    ):
        capfd.readouterr()
        assert await asyncio.to_thread(run, ["simulate", "whatif", str(file), *options, "-o", "json"]) == 0
        found = json.loads(capfd.readouterr().out)
        assert {job["id"]: job["change"] for job in found["jobs"]} == expected
    assert (await fleet.client.get(jobs[0])).status.attempt_count == 1


async def _plan(fleet: Fleet, host: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """`gpupool failover plan`: its exit code, and the job and its next host, as printed."""
    capfd.readouterr()
    code = await asyncio.to_thread(run, ["failover", "plan", host, "--server", fleet.cluster.server])
    lines = [line.split() for line in capfd.readouterr().out.splitlines()]
    job, _, frm, *rest = next(line for line in lines if len(line) > 2 and line[1] in {"first", "second"})
    assert frm == host
    return code, [job, *rest[:1]]
