"""A host whose agent and guard both stand still, while its VM lives on: only cutting its power proves anything.

Real etcd, scheduler, agents, guards, QEMU; the BMC is a fence program that kills what the simulated host consists of.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from gpupool.client import AsyncClient
from gpupool.embedded.cluster import EmbeddedCluster
from gpupool.store.etcd import EtcdStore
from gpupool.v1 import job_pb2, records_pb2
from tests.e2e import needs
from tests.e2e.fleet import Fleet, one_vm_at_a_time, processes, until, vms

pytestmark = [*needs.ETCD, *needs.VMS]

PASSWORD = "s3cret-hunter2"
PROGRAM = """#!/usr/bin/python3 -I
import os, pathlib, signal, sys, time
here = pathlib.Path(__file__).parent
if sys.argv[1:] == ["-o", "metadata"]:
    print('<r><parameters><parameter name="plug"/><parameter name="password"/></parameters><actions>'
          '<action name="on" automatic="0"/><action name="off"/><action name="status"/></actions></r>')
    sys.exit()
given = dict(line.rstrip("\\n").split("=", 1) for line in sys.stdin)
def alive():
    for entry in pathlib.Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and f"{here}/hosts/{given['plug']}/".encode() in (entry / "cmdline").read_bytes():
                yield int(entry.name)
        except OSError:
            pass
if given["password"] != "PASSWORD":
    sys.exit("unable to login with " + given["password"])
if given["action"] == "off":
    while found := list(alive()):
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.05)
if given["action"] == "status":
    sys.exit(0 if list(alive()) else 2)
"""


def _power_file(folder: Path) -> Path:
    program, secret, file = folder / "fence_host", folder / "bmc-password", folder / "power.yaml"
    program.write_text(PROGRAM.replace("PASSWORD", PASSWORD))
    program.chmod(0o755)
    secret.write_text("not yet known\n")
    secret.chmod(0o600)
    file.write_text(
        f"defaults: {{device: {program}, parameters: {{plug: '{{host}}'}}, password_file: bmc-password}}\n"
        "hosts: {h1: {}, h2: {}}\n"
    )
    return file


async def test_a_host_that_stands_still_is_switched_off(images: Path, short_folder: Path) -> None:
    cluster = EmbeddedCluster(
        short_folder,
        images=images,
        hosts=dict.fromkeys(("h1", "h2"), "1xnvidia-a100-80gb"),
        agent_options={"--ttl-s": "6", "--renew-s": "1.5", "--kill-margin-s": "1.5"},
        scheduler_options={"--power": str(_power_file(short_folder)), "--log-level": "debug"},
    )
    try:
        await cluster.start()
        store = EtcdStore([cluster.etcd.endpoint])
        async with AsyncClient(cluster.server, timeout_s=30) as client:
            await _scenario(Fleet(cluster, client, store), short_folder)
        dump = b"".join(kv.value for kv in (await store.list("")).items)
        await store.close()
    finally:
        await cluster.stop()
    _kept_secret(dump, short_folder)


def _kept_secret(dump: bytes, folder: Path) -> None:
    logs = {path.name: path.read_bytes() for path in folder.rglob("*.log")}
    assert any(b"switching it off by fence_host" in log for log in logs.values()), sorted(logs)
    for secret in (PASSWORD.encode(), b"not yet known"):
        assert not [name for name, text in {**logs, "etcd": dump}.items() if secret in text]


async def _record(fleet: Fleet, host: str) -> records_pb2.HostRecord:
    (found,) = [view for view in await fleet.client.hosts() if view.name == host]
    return found.record


async def _scenario(fleet: Fleet, folder: Path) -> None:
    job_id = await fleet.submit("while :; do sleep 1; done")
    lost = await fleet.runs(job_id)
    async with one_vm_at_a_time(job_id) as seen:
        for pid in processes(f"{lost.folder}/") - set(vms(job_id).values()):
            os.kill(pid, signal.SIGSTOP)  # the agent, its guard, its helpers: all but the VM
        (vm,) = vms(job_id).values()

        async def failed() -> str:
            return (await _record(fleet, lost.name)).power.error

        error = await until(failed)
        assert "unable to login with ***" in error
        assert processes(f"guest=gpupool-{job_id}.1,") == {vm}  # nothing guards it, and it lives
        explained = (await fleet.client.explain(job_id)).summary
        assert f"{lost.name} is lost" in explained
        assert "fence_host failed" in explained
        (folder / "bmc-password").write_text(f"{PASSWORD}\n")  # read anew at each try
        found = await fleet.reaches(job_id, job_pb2.JOB_STATE_RUNNING, 2)
    assert seen == [1, 2]
    assert found.status.attempts[0].evidence == job_pb2.EVIDENCE_POWER_OFF
    fence = (await _record(fleet, lost.name)).last_fence
    assert "fence_host saw its power off" in fence.detail
    await fleet.client.cancel(job_id)
    await fleet.ends(job_id)
