"""`gpupool demo`: the main job, told live: a host dies in the middle of a training run, and nothing is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from gpupool.client import AsyncClient
from gpupool.client.requests import finished
from gpupool.embedded.cluster import EmbeddedCluster
from gpupool.embedded.daemons import DaemonError
from gpupool.embedded.etcd import EtcdError
from gpupool.errors import GpupoolError
from gpupool.v1 import job_pb2, records_pb2, scheduler_pb2

from .output import examples
from .up import check_images, embedded, images_option

HOSTS = {
    "h1": "4xnvidia-a100-80gb", "h2": "4xnvidia-a100-80gb", "h3": "4xnvidia-h100-80gb", "h4": "4xnvidia-h100-80gb",
}  # fmt: skip
IMAGE = "debian-numpy"
STEPS, CHECKPOINT_EVERY, STEP_S = 60, 10, 0.4
KILL_AT_STEP = 25
TELL_EVERY = 5
STYLES = {"host": "magenta", "job": "blue"}
# A guest has hung before its first word here, once in many demos; another try comes soon enough for those who watch.
START_TIMEOUT_S = 90.0
SILENCE_S = 20.0
PATIENCE_S = 420.0


def _spec(name: str, command: list[str], gpus: int, model: str) -> job_pb2.JobSpec:
    return job_pb2.JobSpec(
        name=name,
        image=IMAGE,
        command=command,
        gpus=job_pb2.GpuRequest(count=gpus, model=model),
        cpus=2,
        memory_mib=160,
        numa=job_pb2.NUMA_POLICY_REQUIRED if gpus <= 2 else job_pb2.NUMA_POLICY_PREFERRED,
    )


def _training() -> job_pb2.JobSpec:
    program = ["python3", "/opt/gpupool/train.py", f"--steps={STEPS}", f"--checkpoint-every={CHECKPOINT_EVERY}"]
    program += ["--checkpoint-dir=/mnt/ckpt", f"--step-delay-s={STEP_S}"]
    spec = _spec("train", program, 2, "nvidia-a100-80gb")
    spec.volumes.add(name="ckpt", size_mib=64, path="/mnt/ckpt")
    return spec


def _specs() -> list[job_pb2.JobSpec]:
    """One training run, one neighbour on its host, and more whole-host jobs than the other hosts can take at once."""
    report = 'echo "$(ls /sys/bus/pci/devices | wc -l) PCI devices"; sleep {}; echo done'
    neighbour = _spec("neighbour", ["sh", "-c", report.format(25)], 2, "nvidia-a100-80gb")
    whole = [_spec(f"whole-{n}", ["sh", "-c", report.format(5)], 4, "nvidia-h100-80gb") for n in (1, 2, 3)]
    return [_training(), neighbour, *whole]


@dataclass(slots=True)
class Teller:
    """Prints what happens, with the time since the start."""

    console: Console
    started: float = field(default_factory=time.monotonic)
    last: float = field(default_factory=time.monotonic)

    def __call__(self, text: str, style: str = "") -> None:
        """One line."""
        self.last = time.monotonic()
        self.console.print(f"[dim]{time.monotonic() - self.started:6.1f} s[/]  {text}", style=style, highlight=False)

    def heading(self, text: str) -> None:
        """A new chapter."""
        self.console.print()
        self(text, style="bold")


@dataclass(slots=True)
class Story:
    """What the summary needs."""

    killed_host: str = ""
    killed_at: float = 0.0
    names: dict[str, str] = field(default_factory=dict)  # job -> name
    lost: set[str] = field(default_factory=set)  # jobs that ran on the killed host
    running_again: dict[str, float] = field(default_factory=dict)  # job -> Unix time
    resumed: str = ""


@click.command(epilog=examples("gpupool demo", "gpupool demo --images /var/lib/gpupool/images"))
@click.option("--images", type=click.Path(path_type=Path), help="Guest images.  [default: var/images]")
def demo(*, images: Path | None) -> None:
    """Show the main job, live: a host is killed in the middle of a training run; it resumes elsewhere.

    Starts an etcd, a scheduler and a standby, and four simulated hosts whose VMs are real, all on loopback, and ends
    all of it. Takes one to three minutes; up to seven on a slow machine.
    """
    images = images or images_option()
    check_images(images)
    tell = Teller(Console(soft_wrap=True))
    try:
        asyncio.run(asyncio.wait_for(_demo(images, tell), PATIENCE_S))
    except TimeoutError:
        raise GpupoolError(
            f"the demo did not end within {PATIENCE_S:g} s; this machine may be too slow for it"
        ) from None
    except (DaemonError, EtcdError, OSError) as exc:
        raise GpupoolError(str(exc)) from None


async def _demo(images: Path, tell: Teller) -> None:
    tell.heading("An embedded etcd, a scheduler and a standby, four simulated hosts with real VMs")
    options = {"--start-timeout-s": f"{START_TIMEOUT_S:g}"}
    async with embedded(HOSTS, images=images, agent_options=options) as cluster:
        await cluster.start(tell)
        story = Story()
        async with AsyncClient(cluster.server) as client, _told(client, tell, story):
            tell(f"scheduler {(await client.cluster()).leader.id} leads, the other stands by")
            jobs = await _submit(client, tell)
            await _kill_in_the_middle(cluster, client, jobs, tell, story)
            done = [await client.wait(job) for job in jobs.values()]
            await _clean_again(cluster, client, tell)
            _summary(tell.console, done, list(await client.units()), story)
            if not _all_well(done, story):
                raise GpupoolError("the demo did not go as it should; the lines above say where")


async def _submit(client: AsyncClient, tell: Teller) -> dict[str, str]:
    tell.heading("Five jobs, more than fit at once: one waits")
    jobs = {}
    for spec in _specs():
        jobs[spec.name] = (await client.submit(spec)).id
        tell(f"job {spec.name} submitted: {spec.gpus.count} x {spec.gpus.model}")
    await asyncio.sleep(0.5)
    for name, job in jobs.items():
        state = await client.get(job)
        if state.status.state == job_pb2.JOB_STATE_PENDING:
            tell(f"{name} waits: {(await client.explain(job)).summary}", style="yellow")
    return jobs


async def _kill_in_the_middle(
    cluster: EmbeddedCluster, client: AsyncClient, jobs: dict[str, str], tell: Teller, story: Story
) -> None:
    async for line in _lines(client, jobs["train"]):
        _tell_line(tell, line.text)
        if line.text.startswith(f"step {KILL_AT_STEP} "):
            break
    attempts = {name: (await client.get(job)).status.attempts for name, job in jobs.items()}
    story.killed_host = attempts["train"][-1].host
    story.lost = {
        jobs[name]
        for name, tried in attempts.items()
        if tried and tried[-1].host == story.killed_host and not tried[-1].ended_s
    }
    tell.heading(f"Power cut on {story.killed_host}: its agent, guard and {len(story.lost)} VMs die at once")
    story.killed_at = time.time()
    await cluster.hosts[story.killed_host].power_cut()
    tell("nothing of it is left; the cluster does not know yet", style="red")
    await _restarted(client, jobs["train"], 2)
    tell.heading(f"The training run is up again; power is back on {story.killed_host}")
    cluster.hosts[story.killed_host].power_on()
    async for line in _lines(client, jobs["train"]):
        _tell_line(tell, line.text)
        if "resumed from checkpoint" in line.text:
            story.resumed = line.text


def _tell_line(tell: Teller, text: str) -> None:
    """The training run's own words: every fifth step, and all that is not a step."""
    words = text.split()
    if words[:1] != ["step"] or int(words[1]) % TELL_EVERY == 0:
        tell(f"  train | {text}", style="cyan")


async def _lines(client: AsyncClient, job: str) -> AsyncIterator[scheduler_pb2.LogLine]:
    async for chunk in client.logs(job, follow=True):
        for line in chunk.lines:
            yield line


async def _restarted(client: AsyncClient, job: str, attempt: int) -> None:
    while True:
        status = (await client.get(job)).status
        if status.state == job_pb2.JOB_STATE_RUNNING and status.attempt_count >= attempt:
            return
        await asyncio.sleep(0.1)


async def _clean_again(cluster: EmbeddedCluster, client: AsyncClient, tell: Teller) -> None:
    tell.heading("Every unit comes back to the pool, proven clean")
    await cluster.ready(set(cluster.hosts), lambda _: None)
    while True:
        units = list(await client.units())
        if all(u.state == records_pb2.UNIT_STATE_FREE for u in units):
            break
        await asyncio.sleep(0.2)
    for unit in units[:: len(units) // len(HOSTS)]:
        tell(f"{unit.host} {unit.unit.id}: {unit.report.proof}", style="green")


@asynccontextmanager
async def _told(client: AsyncClient, tell: Teller, story: Story) -> AsyncIterator[None]:
    """Tell the cluster's events while the body runs."""
    begin = time.time()

    async def follow() -> None:
        async for event in client.events(follow=True):
            if event.kind not in STYLES or event.at_s < begin:
                continue
            if event.kind == "job" and event.subject not in story.names:
                story.names[event.subject] = (await client.get(event.subject)).spec.name
            subject = story.names.get(event.subject, event.subject)
            before = f"{getattr(event, 'from')} -> " if getattr(event, "from") else ""
            why = f" ({event.reason})" if event.reason else ""
            tell(f"{event.kind} {subject}: {before}{event.to}{why}", style=STYLES[event.kind])
            if event.subject in story.lost and event.to == "RUNNING":
                story.running_again.setdefault(event.subject, event.at_s)

    async def break_silence() -> None:
        while True:
            await asyncio.sleep(1)
            if time.monotonic() - tell.last > SILENCE_S and (text := _waited_for([job async for job in client.list()])):
                tell(f"still waiting: {text}", style="yellow")

    tasks = [asyncio.create_task(follow()), asyncio.create_task(break_silence())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _waited_for(jobs: Sequence[job_pb2.Job]) -> str:
    """What the jobs do that have not ended; "": all have."""
    said = []
    for job in jobs:
        status = job.status
        state = job_pb2.JobState.Name(status.state).removeprefix("JOB_STATE_")
        if status.state == job_pb2.JOB_STATE_STARTING:
            said.append(f"{job.spec.name} is STARTING on {status.attempts[-1].host} (given {START_TIMEOUT_S:g} s)")
        elif not finished(job):
            said.append(f"{job.spec.name} is {state}")
    return ", ".join(said)


def _summary(console: Console, done: list[job_pb2.Job], units: list[scheduler_pb2.UnitView], story: Story) -> None:
    table = Table(title="Jobs", title_justify="left")
    for column in ("job", "state", "exit", "attempts", "hosts"):
        table.add_column(column)
    for job in done:
        status = job.status
        state = job_pb2.JobState.Name(status.state).removeprefix("JOB_STATE_")
        hosts = " then ".join(a.host for a in status.attempts)
        table.add_row(job.spec.name, state, str(status.exit_code), str(status.attempt_count), hosts)
    console.print()
    console.print(table)
    restarted = [at - story.killed_at for at in story.running_again.values()]
    if restarted:
        times = ", ".join(f"{s:.1f} s" for s in sorted(restarted))
        console.print(
            f"From the death of {story.killed_host} to its jobs' commands running again: {times}", highlight=False
        )
    console.print(f"The training run {story.resumed or 'did NOT resume'}", highlight=False)
    good = sum(job.status.state == job_pb2.JOB_STATE_SUCCEEDED for job in done)
    console.print(f"{good} of {len(done)} jobs done, {len(units)} of {len(units)} units free and proven clean")


def _all_well(done: list[job_pb2.Job], story: Story) -> bool:
    succeeded = all(job.status.state == job_pb2.JOB_STATE_SUCCEEDED for job in done)
    return succeeded and bool(story.resumed) and set(story.running_again) == set(story.lost)
