"""What people do wrong, to a real scheduler: each gets one line that names the value and the way out, a documented exit
code, and changes nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from gpupool.embedded.cluster import EmbeddedCluster
from gpupool.embedded.daemons import module_of
from gpupool.store import keys
from gpupool.store.etcd import EtcdStore
from tests.e2e import needs
from tests.e2e.fleet import until

pytestmark = [*needs.ETCD, *needs.VMS]

GOOD = {"name": "good", "image": "debian-numpy", "command": "['true']", "cpus": "1", "memory_mib": "160"}
UP_HELP = re.escape(" (see `gpupool up --help`)")


def spec(**changes: str) -> str:
    return "".join(f"{name}: {value}\n" for name, value in {**GOOD, **changes}.items())


class Done(NamedTuple):
    code: int
    output: str
    errors: list[str]


class Shell:
    """Runs commands against one cluster, and knows what is in its store."""

    def __init__(self, cluster: EmbeddedCluster, store: EtcdStore, folder: Path) -> None:
        self.cluster = cluster
        self.store = store
        self.folder = folder
        self.file = folder / "job.yaml"
        self.before: list[tuple[str, int]] = []

    async def gpupool(self, *arguments: str | Path, **environment: str) -> Done:
        return await self.run("gpupool", *arguments, GPUPOOL_SERVER=self.cluster.server, **environment)

    async def run(self, module: str, *arguments: str | Path, **environment: str) -> Done:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GPUPOOL")}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, *map(str, arguments),
            env={**kept, "XDG_RUNTIME_DIR": str(self.folder), **environment}, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, errors = await process.communicate()
        return Done(process.returncode or 0, output.decode(), errors.decode().splitlines())

    async def submit(self, text: str, *arguments: str) -> Done:
        self.file.write_text(text)
        return await self.gpupool("submit", self.file, *arguments)

    async def contents(self) -> list[tuple[str, int]]:
        """All that people may change, with the revision of its last change."""
        items = [*(await self.store.list(keys.JOBS)).items, *(await self.store.list(keys.INTENTS)).items]
        return [(kv.key, kv.mod_revision) for kv in items]


@pytest.fixture(scope="module")
def cluster(images: Path, module_folder: Path) -> Iterator[EmbeddedCluster]:
    made = EmbeddedCluster(module_folder / "cluster", images=images, hosts={"h1": "2xnvidia-t4"}, replicas=1)
    try:
        asyncio.run(made.start())
        yield made
    finally:
        asyncio.run(made.stop())


@pytest.fixture
async def shell(cluster: EmbeddedCluster, tmp_path: Path) -> AsyncIterator[Shell]:
    """Whatever the test does with it must change nothing."""
    store = EtcdStore([cluster.etcd.endpoint])
    made = Shell(cluster, store, tmp_path)
    made.before = await made.contents()
    yield made
    assert await made.contents() == made.before
    await store.close()


def refused(done: Done, code: int, *patterns: str) -> None:
    """One line for each fault, and nothing else."""
    assert done.code == code, done
    assert len(done.errors) == len(patterns), done
    for line, pattern in zip(done.errors, patterns, strict=True):
        assert re.fullmatch(f"error: {pattern}", line), f"{line}\nis not\nerror: {pattern}"


BAD_SPECS = {
    "unknown field": (spec(colour="red"), r"line 6: colour: unknown field; known here: name, image, .*"),
    "another system's field": (spec(gpu="2"), r"line 6: gpu: unknown field; write `gpus: \{count: 2\}`"),
    "negative": (spec(cpus="-1"), r"line 4: cpus: '-1' is not between 0 and \d+"),
    "none": (spec(cpus="0"), r"cpus is 0: it must be 1 to 1024"),
    "absurd": (spec(memory_mib="4000000000"), r"memory_mib is 4000000000: it must be 64 to 16777216 \(MiB\)"),
    "more than a number holds": (spec(cpus="99999999999"), r"line 4: cpus: '99999999999' is not between 0 and \d+"),
    "absurd GPUs": (spec(gpus="{count: 1000}"), r"gpus.count is 1000: it must be 0 to 64"),
    "unit": (spec(memory_mib="8GiB"), r"line 5: memory_mib: must be .*'8GiB'; it counts MiB: write 8192"),
    "no such model": (
        spec(gpus="{count: 1, model: nvidia-a1000}"),
        r"gpus.model 'nvidia-a1000': no host has it; GPU models at hand: nvidia-t4; .*--allow-unavailable",
    ),
    "no such image": (
        spec(image="windows"),
        r"image 'windows': no host has it; images at hand: debian-numpy; .*--allow-unavailable",
    ),
    "more GPUs than any host has": (
        spec(gpus="{count: 3}"),
        r"no known host could ever take it, even if it were empty: h1 has 1 unit too few; .*--allow-unavailable",
    ),
    "a host that nobody has": (
        spec(placement="{hosts: {zone: c}}"),
        r"no known host could ever take it, .*: h1 will not do: wants zone=c, it has no label zone; .*",
    ),
    "a vendor that nobody is": (
        spec(gpus="{count: 1, vendor: nvidea}"),
        r"gpus.vendor 'nvidea': amd, intel, nvidia, .*",
    ),
    "shell line as command": (spec(command="echo hi"), r"line 3: command: must be a list, not 'echo hi'; write .*"),
    "no YAML": ("name: [unclosed\nimage: x\n", r"line 2, column 6: not YAML: .*"),
    "empty": ("", r"the text has no job; start with `image:` and `command:`, see examples/hello.yaml"),
    "too long": (spec(env="{A: " + "x" * 300_000 + "}"), r"the text is longer than 262144 bytes; is it a job spec\?"),
    "bad volume": (
        spec(volumes="[{name: ckpt, size_mib: 1, path: relative}]"),
        r"volumes\[0\].path 'relative': must be absolute.*",
    ),
}


@pytest.mark.parametrize("name", BAD_SPECS)
async def test_a_bad_spec(shell: Shell, name: str) -> None:
    text, pattern = BAD_SPECS[name]
    refused(await shell.submit(text), 2, re.escape(str(shell.file)) + ": " + pattern)


async def test_a_dry_run_changes_nothing_and_explains(shell: Shell) -> None:
    done = await shell.submit(
        spec(gpus="{count: 1}"), "--dry-run", "--vendor", "nvidia", "--require", "host=h1", "-o", "json"
    )
    (found,) = json.loads(done.output)
    last = found["queue_position"]  # behind whatever other tests have left waiting
    assert (done.code, found["state"]) == (0, "JOB_STATE_PENDING"), done
    assert found["summary"].startswith(f"fits on h1; waits for its turn, {last} of {last}")
    done = await shell.submit(spec(gpus="{count: 3}"), "--dry-run")
    assert (done.code, done.errors[0].count("h1 has 1 unit too few")) == (2, 1), done


async def test_every_fault_is_told_at_once(shell: Shell) -> None:
    where = re.escape(str(shell.file)) + ": "
    done = await shell.submit(spec(cpus="0", memory_mib="1", image="windows", name="-x"))
    refused(
        done, 2, *(where + fault for fault in (r"name '-x': .*", r"cpus is 0: .*", r"memory_mib is 1: .*", "image .*"))
    )
    done = await shell.submit(spec(colour="red", cpus="many"))
    refused(done, 2, where + "line 4: cpus: must be a whole number, not 'many'", where + "line 6: colour: .*")


async def test_one_bad_spec_among_good_files_submits_none(shell: Shell) -> None:
    good, bad = shell.folder / "good.yaml", shell.folder / "bad.yaml"
    good.write_text(spec())
    bad.write_text(spec(colour="red"))
    done = await shell.gpupool("submit", good, bad)
    refused(done, 2, re.escape(str(bad)) + ": line 6: colour: .*")
    assert not done.output


async def test_files_that_are_none(shell: Shell) -> None:
    refused(await shell.gpupool("submit", "gone.yaml"), 2, "gone.yaml: No such file or directory")
    binary = shell.folder / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    refused(await shell.gpupool("submit", binary), 2, r".*/binary: not text in UTF-8; is this the right file\?")


async def test_a_key_that_belongs_to_another_job(shell: Shell) -> None:
    waits = spec(gpus="{count: 64}")
    job = (await shell.submit(waits, "--key", "mine", "--wait-for-hosts")).output.strip()
    status = keys.job_status(job)
    await until(lambda: shell.store.get(status))
    shell.before = await shell.contents()
    again = await shell.submit(waits, "--key", "mine", "--wait-for-hosts")
    assert (again.code, again.output.strip()) == (0, job)
    other = await shell.submit(spec(cpus="2", gpus="{count: 64}"), "--key", "mine", "--wait-for-hosts")
    refused(other, 5, rf".*: key 'mine' belongs to job {job}, whose spec differs in cpus; use another key.*")


async def test_names_that_nobody_has(shell: Shell) -> None:
    no_job = r"no job has an id that begins with 'jnothing'; `gpupool jobs` lists them"
    for command in ("show", "cancel", "explain", "logs", "watch"):
        refused(await shell.gpupool(command, "jnothing"), 3, no_job)
    no_host = r"no host 'h9'; known hosts: h1"
    for words in ("cordon h9 --reason x", "uncordon h9", "confirm-dead h9 --reason x --yes", "units h9"):
        refused(await shell.gpupool(*words.split()), 3, no_host)
    refused(await shell.gpupool("retry-unit", "h9", "0000:01:00.0"), 3, no_host)
    no_unit = r"host h1 has no unit '0000:99:00.0'; its units: 0000:01:00.0, 0000:11:00.0"
    refused(await shell.gpupool("retry-unit", "h1", "0000:99:00.0"), 3, no_unit)


async def test_what_the_present_state_does_not_allow(shell: Shell) -> None:
    free = r"unit 0000:01:00.0 of h1 is FREE; only a QUARANTINED unit is tried again"
    refused(await shell.gpupool("retry-unit", "h1", "0000:01:00.0"), 5, free)
    ready = r"host h1 is READY; a death is confirmed only for a host in SUSPECT or FENCING"
    refused(await shell.gpupool("confirm-dead", "h1", "--reason", "x", "--yes"), 5, ready)


async def test_wrong_usage(shell: Shell) -> None:
    refused(await shell.gpupool("frobnicate"), 2, r"No such command 'frobnicate'.*")
    refused(await shell.gpupool("jobs", "--state", "sleeping"), 2, r".*'sleeping' is not one of 'pending'.*")
    refused(await shell.gpupool("jobs", "--server", "h:0"), 2, r"'h:0' is no address; write \"host:port\"")


async def test_no_scheduler_there(shell: Shell) -> None:
    address = unused()
    started = time.monotonic()
    pattern = (
        rf"cannot reach the scheduler at {address}: .*; name another with --server, or start one with `gpupool up`"
    )
    refused(await shell.gpupool("jobs", "--server", address), 4, pattern)
    done = await shell.submit(spec(), "--server", address)
    refused(done, 4, rf".*: cannot reach the scheduler at {address}: .*")
    assert time.monotonic() - started < 15


def unused() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def agent_options(shell: Shell, images: Path) -> list[str]:
    return [
        "--name",
        "h2",
        "--simulate",
        "1xnvidia-t4",
        "--images",
        str(images),
        "--state-dir",
        str(shell.folder / "s"),
    ]


async def test_no_etcd_there(shell: Shell, images: Path) -> None:
    address, started = unused(), time.monotonic()
    scheduler = shell.run(module_of("scheduler"), "--etcd", address, "--listen", "127.0.0.1:0")
    agent = shell.run(module_of("agent"), "--etcd", address, *agent_options(shell, images))
    for done in await asyncio.gather(scheduler, agent):
        refused(done, 1, rf"etcd at {address} does not answer \(.*\); start it, or name another with --etcd")
    assert time.monotonic() - started < 15


def last_line(done: Done) -> Done:
    """Without the log that came before, which must show no stack trace."""
    assert not any("Traceback" in line for line in done.errors), done
    return done._replace(errors=[line for line in done.errors if line.startswith("error: ")])


async def test_an_agent_without_a_hypervisor(shell: Shell, short_folder: Path, images: Path) -> None:
    options = ["--etcd", shell.cluster.etcd.endpoint, *agent_options(shell, images)]
    options += ["--state-dir", str(short_folder / "s"), "--libvirt-uri"]
    remote = await shell.run(module_of("agent"), *options, "qemu+unix:///system?socket=/nowhere/libvirt-sock")
    refused(
        last_line(remote), 1, r"qemu\+unix:.*: no libvirtd listens on /nowhere/libvirt-sock: start it, or install .*"
    )
    relative = await shell.run(module_of("agent"), *options, "qemu:///embed?root=here")
    refused(last_line(relative), 1, r"qemu:///embed\?root=here: write qemu:///embed\?root=DIR with an absolute path")


async def test_an_agent_with_settings_that_cannot_work(shell: Shell, images: Path) -> None:
    agent = module_of("agent")
    options = ["--etcd", shell.cluster.etcd.endpoint, *agent_options(shell, images)]
    bad = {
        r"--name: bad host name 'H2': .*": ("--name", "H2"),
        r"--simulate: no GPU model 'nvidia-zz'; there are .*": ("--simulate", "1xnvidia-zz"),
        r"--images: /nowhere is no directory; .*": ("--images", "/nowhere"),
        r".*ttl_s is needed, but 2 \* 5 .*|2 \* renew_s.*<= ttl_s is needed, but .*": ("--renew-s", "5"),
    }
    for pattern, words in bad.items():
        refused(await shell.run(agent, *options, *words), 2, f"(?:{pattern})")


BAD_UPS = {
    "no GPUs": ("--host a", 2, r"--host 'a': write NAME=COUNTxMODEL, each name once, e.g. h1=4xnvidia-t4"),
    "twice": ("--host a=1xnvidia-t4 --host a=1xnvidia-t4", 2, r"--host 'a=1xnvidia-t4': write NAME=COUNT.*"),
    "bad name": ("--host ../a=1xnvidia-t4", 2, r"--host '../a=1xnvidia-t4': bad host name '../a': 1 to 63 of .*"),
    "no images": ("--images /nowhere", 2, r"no guest image in /nowhere; build one with: make image .*"),
    "no model": ("--host a=4xnvidia-zz", 1, r"the agent a ended: --simulate: no GPU model 'nvidia-zz'; there are .*"),
    "no shape": ("--host a=4*t4", 1, r"the agent a ended: --simulate: '4\*t4' is no count and model; write .*"),
    "too many": ("--host a=99xnvidia-t4", 1, r"the agent a ended: --simulate: 99 GPUs on 2 NUMA nodes; .*"),
}


@pytest.mark.parametrize("name", BAD_UPS)
async def test_up_with_bad_options(shell: Shell, images: Path, name: str) -> None:
    words, code, pattern = BAD_UPS[name]
    done = await shell.gpupool("up", "--port", "0", "--replicas", "1", "--images", images, *words.split())
    refused(done, code, pattern + (UP_HELP if code == 2 else ""))


async def test_up_without_etcd(shell: Shell, images: Path) -> None:
    done = await shell.gpupool("up", "--images", images, PATH="")
    refused(done, 1, r"'etcd' was not found; on Debian and Ubuntu: apt-get install etcd-server")
