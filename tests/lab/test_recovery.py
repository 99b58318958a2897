"""Agents, libvirt and hosts that end while guests own devices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gpupool.client import AsyncClient
from gpupool.v1 import job_pb2, records_pb2
from lab.cluster import Cluster
from lab.host import Host
from tests.lab.jobs import Stopwatch, ends, job, only, reaches, unit_is

FREE = records_pb2.UNIT_STATE_FREE
GONE_S = 240.0  # lease and fencing
MADE_S = 120.0  # until libvirt has made a VM
HANG_S = 5.0
QEMU = "pgrep -f '[g]uest=gpupool-'"  # not the shell that it is run by


@asynccontextmanager
async def hung_libvirtd(host: Host) -> AsyncIterator[None]:
    """While this lasts, libvirtd answers nobody."""
    await host.run("pkill -STOP -x libvirtd")
    try:
        yield
    finally:
        await host.run("pkill -CONT -x libvirtd")


async def test_a_libvirtd_that_hangs_while_a_vm_starts_and_ends_is_ridden_out(
    cluster: Cluster, client: AsyncClient
) -> None:
    """The start goes on where it was; the end does not wait for libvirt; nothing of the VM is left when it is back."""
    host = cluster.hosts["h2"]
    async with only(client, "h2"):
        async with hung_libvirtd(host):
            job_id = (await client.submit(job("sleep 1000"))).id
            await host.run(f"until [ -e /run/gpupool/guests/{job_id}.1/run.json ]; do sleep 0.2; done")
            await asyncio.sleep(HANG_S)  # the next that the agent does is to ask libvirt
            assert (await host.run(QEMU, check=False)).code != 0
        runs = f"virsh domstate gpupool-{job_id}.1 2> /dev/null | grep -q running"
        await host.run(f"until {runs}; do sleep 0.2; done", timeout_s=MADE_S)
        async with hung_libvirtd(host):
            await client.cancel(job_id)
            ended = await ends(client, job_id)
            assert (await host.run(QEMU, check=False)).code != 0
    assert [attempt.outcome for attempt in ended.status.attempts] == [job_pb2.OUTCOME_STOPPED], ended.status
    await unit_is(client, "h2", ended.status.attempts[0].units[0], FREE)
    await host.run('while [ -n "$(virsh list --all --name)" ]; do sleep 0.2; done')
    assert await host.text("ls /run/gpupool/guests") == "", "nothing of the guest is left"


async def test_agent_and_libvirt_may_end_and_come_back(cluster: Cluster, client: AsyncClient) -> None:
    """Both are killed while a guest runs with a device: it runs on, its end is heard, the device is proven clean."""
    host = cluster.hosts["h2"]
    async with only(client, "h2"):
        job_id = (await client.submit(job("sleep 45; exit 7"))).id
        await reaches(client, job_id, job_pb2.JOB_STATE_RUNNING)
    pids = await host.text("pgrep -f guest=gpupool-")
    await cluster.end_agent("h2", "KILL")
    await host.run("pkill -KILL libvirtd; sleep 1; libvirtd -d")
    await cluster.start_agent("h2")
    assert await host.text("pgrep -f guest=gpupool-") == pids
    ended = await ends(client, job_id)
    assert (len(ended.status.attempts), ended.status.exit_code) == (1, 7), ended.status
    await unit_is(client, "h2", ended.status.attempts[0].units[0], FREE)
    await cluster.ready(["h2"])


async def test_a_host_that_dies_and_an_operator_who_says_so(
    cluster: Cluster, client: AsyncClient, timings: dict[str, float]
) -> None:
    """QEMU quits under the host. Its job starts again on the other one, with a device of that host."""
    async with only(client, "h2"):
        job_id = (await client.submit(job("sleep 20"))).id
        await reaches(client, job_id, job_pb2.JOB_STATE_RUNNING)
    watch = Stopwatch()
    await cluster.hosts["h2"].quit()
    await _host_is(client, "h2", records_pb2.HOST_STATE_FENCING)
    timings["host death to fencing (lease of 60 s)"] = watch.s
    await client.confirm_dead("h2", "it was switched off", by="lab")
    await reaches(client, job_id, job_pb2.JOB_STATE_RUNNING)
    timings["host death to running elsewhere (lease of 60 s)"] = watch.s
    ended = await ends(client, job_id)
    assert ended.status.exit_code == 0, ended.status
    *_, lost, last = ended.status.attempts  # a guest that the emulator made too slow to start has been before
    assert (lost.host, lost.outcome, lost.evidence) == ("h2", job_pb2.OUTCOME_HOST_LOST, job_pb2.EVIDENCE_OPERATOR)
    assert last.host == "h1"
    await unit_is(client, "h1", last.units[0], FREE)  # h2 comes back before the next test, see Cluster.heal


async def test_a_host_whose_kernel_hangs_is_reset_by_its_watchdog_and_its_vm_restarts_on_the_other_host(
    cluster: Cluster, client: AsyncClient, timings: dict[str, float]
) -> None:
    """The guard pets the hardware watchdog until the kernel stops; nobody has to say that the host is dead."""
    host = cluster.hosts["h2"]
    await cluster.end_agent("h2")
    await host.run("while pgrep -f '[a]gent.guard' > /dev/null; do sleep 0.2; done")  # not this shell
    await cluster.start_agent("h2", watchdog="/dev/watchdog", watchdog_s="30")
    await cluster.ready(["h2"])
    await _guard_is(client, "h2", records_pb2.GUARD_KIND_HARDWARE)
    async with only(client, "h2"):
        job_id = (await client.submit(job("sleep 20"))).id
        await reaches(client, job_id, job_pb2.JOB_STATE_RUNNING)
    boots = host.console.count("] ready")
    watch = Stopwatch()
    # panic=0: the kernel stands still for ever, instead of rebooting by itself.
    await host.run("echo 0 > /proc/sys/kernel/panic")
    await host.run("sh -c 'sleep 2; echo c > /proc/sysrq-trigger' < /dev/null > /dev/null 2>&1 &")
    await host.booted(boots=boots + 1)
    timings["kernel hung to reset by the guard's watchdog and booted (watchdog of 30 s)"] = watch.s
    ended = await ends(client, job_id)
    assert ended.status.exit_code == 0, ended.status
    *_, lost, last = ended.status.attempts
    assert (lost.host, lost.outcome) == ("h2", job_pb2.OUTCOME_HOST_LOST)
    assert lost.evidence == job_pb2.EVIDENCE_LEASE_EXPIRED_WATCHDOG
    assert last.host == "h1"
    await cluster.start_agent("h2")
    await cluster.ready(["h2"])


async def test_a_paused_host_that_comes_back_kills_its_vm_before_doing_anything_else(
    cluster: Cluster, client: AsyncClient, timings: dict[str, float]
) -> None:
    """QMP stops the host's clocks too, so its guard cannot know; there is no evidence, so nothing runs elsewhere before
    the agent is back, has ended the VM, and says so with a new session.
    """
    host = cluster.hosts["h2"]
    async with only(client, "h2"):
        job_id = (await client.submit(job("sleep 1000"))).id
        await reaches(client, job_id, job_pb2.JOB_STATE_RUNNING)
    before = len((await client.get(job_id)).status.attempts)
    await host.qmp("stop")
    await _host_is(client, "h2", records_pb2.HOST_STATE_FENCING)
    await asyncio.sleep(10)
    waiting = await client.get(job_id)
    assert len(waiting.status.attempts) == before, "it was started elsewhere while its VM may go on at any moment"
    watch = Stopwatch()
    await host.qmp("cont")
    async with asyncio.timeout(GONE_S):
        while len((found := await client.get(job_id)).status.attempts) == before:
            await asyncio.sleep(0.5)
    timings["paused host goes on to its VM dead and its job placed anew"] = watch.s
    assert found.status.attempts[before - 1].evidence == job_pb2.EVIDENCE_AGENT_REPORTED_DEAD
    log = await cluster.agent_log("h2")
    over, ending = log.rindex("is over: "), log.rindex("ending VMs without a session")
    assert over < ending < log.rindex(" announced: ")
    await client.cancel(job_id)
    await ends(client, job_id)
    await cluster.ready(["h2"])


async def _guard_is(client: AsyncClient, name: str, kind: records_pb2.GuardKind.ValueType) -> None:
    async with asyncio.timeout(GONE_S):
        while {host.name: host.record.guard for host in await client.hosts()}.get(name) != kind:
            await asyncio.sleep(0.5)


async def _host_is(client: AsyncClient, name: str, state: records_pb2.HostState.ValueType) -> None:
    async with asyncio.timeout(GONE_S):
        while True:
            found = {host.name: host.record.state for host in await client.hosts()}
            if found.get(name) == state:
                return
            await asyncio.sleep(0.5)
