"""A whole cluster for real: etcd, schedulers and agents as processes, VMs as QEMUs. Things are broken, nothing is lost.

One cluster serves all tests; before each it is mended, so that they may come in any order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gpupool.client import AsyncClient, select
from gpupool.embedded.cluster import EmbeddedCluster
from gpupool.errors import NotNow
from gpupool.store import keys
from gpupool.store.etcd import EtcdStore
from gpupool.v1 import job_pb2, records_pb2, scheduler_pb2
from tests.e2e import needs
from tests.e2e.fleet import A100, FOREVER, FREE, IMAGE, T4, Fleet, job, one_vm_at_a_time, until, vms

pytestmark = [*needs.ETCD, *needs.VMS]

TTL_S = 6  # with the guard's margin: a lost host's VMs are dead after 4.5 s, and its session gone after 6 s
TIMES = {"--ttl-s": str(TTL_S), "--renew-s": "1.5", "--kill-margin-s": "1.5"}
L4 = "nvidia-l4"
HOSTS = {"h1": f"2x{A100}", "h2": f"2x{A100}", "h3": f"2x{T4}", "h4": f"1x{L4}"}
HASTY = {"h4": {"--start-timeout-s": "5"}}
TICKS = "n=0; while [ $n -lt {count} ]; do n=$((n+1)); echo tick $n; sleep 0.5; done; exit {code}"


@pytest.fixture(scope="module")
def broken_kernel(images: Path, module_folder: Path) -> Path:
    """The image directory, with one more image that no QEMU can boot."""
    folder = module_folder / "images"
    bad = folder / "bad-kernel"
    shutil.copytree(images / IMAGE, bad, copy_function=os.symlink)
    (folder / IMAGE).symlink_to(images.absolute() / IMAGE)
    (bad / "vmlinuz").unlink()
    (bad / "vmlinuz").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def cluster(broken_kernel: Path, module_folder: Path) -> Iterator[EmbeddedCluster]:
    made = EmbeddedCluster(module_folder, images=broken_kernel, hosts=HOSTS, agent_options=TIMES, host_options=HASTY)
    try:
        asyncio.run(made.start())
        yield made
    finally:
        asyncio.run(made.stop())


@pytest.fixture
async def fleet(cluster: EmbeddedCluster) -> AsyncIterator[Fleet]:
    store = EtcdStore([cluster.etcd.endpoint])
    async with AsyncClient(cluster.server, timeout_s=30) as client:
        made = Fleet(cluster, client, store)
        await made.heal()
        yield made
    await store.close()


async def test_a_job_runs_to_its_exit_code(fleet: Fleet) -> None:
    async with reports(fleet) as seen:
        done = await fleet.submit('echo "hello $WHO"; echo oops >&2; exit 7', gpus=2, env={"WHO": "me"})
        status = await fleet.ends(done)
        assert (status.state, status.exit_code) == (job_pb2.JOB_STATE_FAILED, 7)
        assert (status.attempt_count, status.attempts[0].outcome) == (1, job_pb2.OUTCOME_EXITED)
        assert sorted(await fleet.output(done)) == ["hello me", "oops"]
        host = fleet.hosts[status.attempts[0].host]
        await fleet.all_free([host])
        for unit in status.attempts[0].units:
            report = (await fleet.units(host))[unit].report
            assert (report.state, report.allocation) == (FREE, f"{done}.1")
            assert report.proof.startswith("flr")
        gpus = await until(lambda: seen.get(f"{done}.1"))
    assert gpus == ["0000:00:10.0 1af4:1050", "0000:00:10.1 1af4:1050"]
    assert not vms(done)


@contextlib.asynccontextmanager
async def reports(fleet: Fleet) -> AsyncIterator[dict[str, list[str]]]:
    """What the guests of all allocations see of their GPUs, as the agents report it from now on."""
    seen: dict[str, list[str]] = {}
    start = await fleet.store.list(keys.AGENTS)

    async def follow() -> None:
        async for changes in fleet.store.watch(keys.AGENTS, after_revision=start.revision):
            for change in changes:
                found = keys.parse(change.key)
                if found and found[0] is keys.Kind.VM and change.kv:
                    gpus = records_pb2.VmReport.FromString(change.kv.value).guest_gpus
                    seen[found[1][1]] = list(gpus) or seen.get(found[1][1], [])

    task = asyncio.create_task(follow())
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_training_survives_a_power_cut(fleet: Fleet) -> None:
    train = ["python3", "/opt/gpupool/train.py", "--steps=26", "--checkpoint-every=4", "--seed=3"]
    train += ["--checkpoint-dir=/mnt/ckpt", "--step-delay-s=0.15"]
    disk = [job_pb2.Volume(name="ckpt", size_mib=32, path="/mnt/ckpt")]
    cut = await fleet.submit("", gpus=2, command=train, volumes=disk)
    whole = await fleet.submit("", gpus=1, model=T4, command=train, volumes=disk)  # the same run, left in peace
    host = await fleet.runs(cut)
    await fleet.prints(cut, "step 10 ")
    async with one_vm_at_a_time(cut) as seen:
        await host.power_cut()
        assert await fleet.runs(cut, attempt=2) is not host
        host.power_on()
        status = await fleet.ends(cut)
    assert seen[-1] == 2
    assert (status.state, status.restarts) == (job_pb2.JOB_STATE_SUCCEEDED, 1)
    first, second = status.attempts
    assert first.outcome == job_pb2.OUTCOME_HOST_LOST
    assert first.evidence == job_pb2.EVIDENCE_LEASE_EXPIRED_GUARDED
    assert second.outcome == job_pb2.OUTCOME_EXITED
    resumed = await fleet.prints(cut, "resumed from checkpoint at step", attempt=2)
    assert int(resumed.split()[-1]) >= 8
    assert (await fleet.ends(whole)).attempt_count == 1
    assert (await fleet.output(cut))[-1] == await fleet.prints(whole, "final loss")
    await fleet.all_free([host])


async def test_an_agent_that_was_killed_takes_its_vm_over(fleet: Fleet) -> None:
    ticks = await fleet.submit(TICKS.format(count=16, code=5))
    host = await fleet.runs(ticks)
    await fleet.prints(ticks, "tick 2")
    (pid,), session = vms(ticks).values(), await fleet.session(host)
    assert host.agent
    await host.agent.kill()
    host.start_agent()
    await fleet.prints(ticks, "tick 14")
    assert vms(ticks) == {1: pid}
    status = await fleet.ends(ticks)
    assert (status.exit_code, status.attempt_count) == (5, 1)
    assert await fleet.session(host) == session
    lines = await fleet.output(ticks)
    assert lines == [f"tick {n}" for n in range(1, 17)]


async def test_a_frozen_agent_loses_its_vms_before_they_start_elsewhere(fleet: Fleet) -> None:
    lone = await fleet.submit(FOREVER)
    host = await fleet.runs(lone)
    session = await fleet.session(host)
    assert host.agent
    async with one_vm_at_a_time(lone) as seen:
        await until(lambda: seen == [1])
        os.kill(host.agent.pid, signal.SIGSTOP)
        await until(lambda: not vms(lone))
        assert await fleet.session(host) == session  # dead before the cluster may think so
        assert await fleet.runs(lone, attempt=2) is not host
        assert list(vms(lone)) == [2]
        os.kill(host.agent.pid, signal.SIGCONT)
        await fleet.all_free([host])
        assert await fleet.session(host) not in (session, 0)
        assert list(vms(lone)) == [2]
        await fleet.client.cancel(lone)
        status = await fleet.ends(lone)
    assert seen == [1, 2]
    assert status.attempts[0].outcome == job_pb2.OUTCOME_HOST_LOST
    assert status.attempts[0].evidence == job_pb2.EVIDENCE_LEASE_EXPIRED_GUARDED
    assert status.attempt_count == 2


async def test_the_leader_dies_while_jobs_start(fleet: Fleet) -> None:
    codes = [0, 1, 2]
    jobs = [await fleet.submit(f"exit {code}", gpus=1) for code in codes]
    await asyncio.gather(*(fleet.reaches(job_id, job_pb2.JOB_STATE_STARTING) for job_id in jobs))
    leader = await fleet.cluster.leader()
    killed = time.monotonic()
    await fleet.cluster.replicas[leader].kill()
    await until(lambda: _other_leads(fleet, leader))
    assert time.monotonic() - killed < 10
    ends = await asyncio.gather(*(fleet.ends(job_id) for job_id in jobs))
    assert [end.exit_code for end in ends] == codes
    assert [end.attempt_count for end in ends] == [1, 1, 1]


async def _other_leads(fleet: Fleet, old: str) -> bool:
    return (await fleet.client.cluster()).leader.id not in ("", old)


async def test_no_scheduler_at_all_for_a_while(fleet: Fleet) -> None:
    alone = await fleet.submit(f"sleep {TTL_S + 2}; exit 9")
    host = await fleet.runs(alone)
    session = await fleet.session(host)
    await asyncio.gather(*(replica.stop() for replica in fleet.cluster.replicas.values()))
    assert list(vms(alone)) == [1]
    stopped = time.monotonic()
    await until(lambda: not vms(alone))
    assert time.monotonic() - stopped > TTL_S / 2  # it was not killed, and
    assert await fleet.session(host) == session
    for name in fleet.cluster.replicas:
        await fleet.cluster.start_replica(name)
    status = await fleet.ends(alone)
    assert (status.exit_code, status.attempt_count) == (9, 1)
    await fleet.all_free([host])


async def test_etcd_stands_still_for_two_seconds(fleet: Fleet) -> None:
    running = await fleet.submit(TICKS.format(count=14, code=4))
    sessions = [await fleet.session(host) for host in fleet.hosts.values()]
    host = await fleet.runs(running)
    await fleet.prints(running, "tick 1")
    fleet.etcd.freeze()
    try:
        asked = asyncio.create_task(fleet.submit("exit 3", model=T4))
        await asyncio.sleep(2)
        assert not asked.done()
        assert list(vms(running)) == [1]
    finally:
        fleet.etcd.thaw()
    late = await fleet.ends(await asked)
    status = await fleet.ends(running)
    assert (late.exit_code, late.attempt_count) == (3, 1)
    assert (status.exit_code, status.attempt_count) == (4, 1)
    assert status.attempts[0].host == host.name
    assert [await fleet.session(host) for host in fleet.hosts.values()] == sessions


async def test_a_submission_that_the_store_did_not_answer_is_safe_to_repeat(fleet: Fleet) -> None:
    waits = job("true", gpus=64, name="once")
    fleet.etcd.freeze()
    try:
        async with AsyncClient(fleet.cluster.server, timeout_s=20, retry_s=0) as client:
            assert await client.units("h1")  # reads go on
            with pytest.raises(NotNow, match="the store did not answer"):
                await client.submit(waits, "my-key", allow_unavailable=True)
    finally:
        fleet.etcd.thaw()
    job_id = (await until(lambda: _submitted(fleet, waits))).id
    assert not (await fleet.client.submit(waits, "my-key", allow_unavailable=True)).created
    assert [found.id async for found in fleet.client.list(select(name="once"))] == [job_id]


async def _submitted(fleet: Fleet, spec: job_pb2.JobSpec) -> scheduler_pb2.SubmitResponse | None:
    try:
        return await fleet.client.submit(spec, "my-key", allow_unavailable=True)
    except NotNow:
        return None


async def test_cancel(fleet: Fleet) -> None:
    running = await fleet.submit(FOREVER)
    pending = (await fleet.client.submit(job(FOREVER, gpus=64), allow_unavailable=True)).id
    assert (await fleet.client.get(pending)).status.state == job_pb2.JOB_STATE_PENDING
    await fleet.client.cancel(pending, "too large")
    status = await fleet.ends(pending)
    assert (status.state, status.message) == (job_pb2.JOB_STATE_CANCELLED, "too large")
    assert not status.attempts
    host = await fleet.runs(running)
    await fleet.client.cancel(running, "no need")
    status = await fleet.ends(running)
    assert (status.state, status.attempt_count) == (job_pb2.JOB_STATE_CANCELLED, 1)
    assert not vms(running)
    await fleet.all_free([host])
    (unit,) = status.attempts[0].units
    assert (await fleet.units(host))[unit].report.allocation == f"{running}.1"


async def test_a_vm_that_cannot_start_is_given_up(fleet: Fleet) -> None:
    hopeless = job("true", image="bad-kernel", restart=job_pb2.RestartPolicy(max_start_failures=2))
    bad = (await fleet.client.submit(hopeless)).id
    status = await fleet.ends(bad)
    assert status.state == job_pb2.JOB_STATE_FAILED
    assert [attempt.outcome for attempt in status.attempts] == [job_pb2.OUTCOME_START_FAILED] * 2
    assert status.message.startswith("did not start in 2 tries: ")
    assert "kernel" in status.message
    await fleet.all_free()
    assert not vms(bad)


async def test_a_qemu_that_hangs_before_its_guests_first_word_is_ended(fleet: Fleet) -> None:
    """It answers nobody, libvirt neither; the unit is proven clean all the same."""
    once = job("true", model=L4, restart=job_pb2.RestartPolicy(max_start_failures=1))
    hung = (await fleet.client.submit(once)).id
    pid_file = fleet.hosts["h4"].folder / f"state/vms/run/qemu/gpupool-{hung}.1.pid"
    os.kill(int(await until(lambda: pid_file.exists() and pid_file.read_text())), signal.SIGSTOP)
    status = await fleet.ends(hung)
    assert (status.state, status.attempts[0].outcome) == (job_pb2.JOB_STATE_FAILED, job_pb2.OUTCOME_START_FAILED)
    assert "5 s" in status.message
    assert not vms(hung)
    await fleet.all_free([fleet.hosts["h4"]])


async def test_a_broken_gpu_is_put_aside(fleet: Fleet) -> None:
    host = fleet.hosts["h3"]
    broken, good = sorted(await fleet.units(host))
    fleet.inject(host, broken, "link-down")
    await fleet.ends(await fleet.submit("true", gpus=2, model=T4))
    views = await until(lambda: _settled(fleet, broken))
    assert views[broken].state == records_pb2.UNIT_STATE_QUARANTINED
    assert "link" in views[broken].report.reason
    assert views[good].state == FREE
    both, one = await fleet.submit("true", gpus=2, model=T4), await fleet.submit("true", gpus=1, model=T4)
    status = await fleet.ends(one)
    assert (status.state, list(status.attempts[0].units)) == (job_pb2.JOB_STATE_SUCCEEDED, [good])
    reasons = {count.reason for count in (await fleet.client.explain(both)).reasons}
    assert scheduler_pb2.REASON_UNITS_QUARANTINED in reasons
    fleet.inject(host, broken, None)
    await fleet.client.retry_unit("h3", broken, "reseated")
    assert (await fleet.ends(both)).state == job_pb2.JOB_STATE_SUCCEEDED
    await fleet.all_free([host])


async def _settled(fleet: Fleet, quarantined: str) -> dict[str, scheduler_pb2.UnitView] | None:
    views = await fleet.units(fleet.hosts["h3"])
    put_aside = views[quarantined].state == records_pb2.UNIT_STATE_QUARANTINED
    rest = [view for name, view in views.items() if name != quarantined]
    return views if put_aside and all(view.state == FREE and not view.allocation for view in rest) else None
