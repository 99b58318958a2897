"""`submit --wait`: tells of each change of some jobs on stderr, prints their output, and knows the exit code."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Self

import click

from gpupool.client import AsyncClient, select
from gpupool.client.requests import finished
from gpupool.errors import GpupoolError
from gpupool.v1 import job_pb2

from .output import note
from .screen import change
from .settings import connect_async
from .streams import print_line

LAST_LINES_S = 5.0  # how long the output of a finished job may take to arrive


async def wait_for(ids: list[str], *, show_logs: bool) -> int:
    """Wait until all jobs are finished. Returns the first exit code that is not 0, in the order of `ids`."""
    ended: dict[str, job_pb2.Job] = {}
    try:
        async with connect_async() as client, Tails(client) as tails, _changes(client, ids) as changes:
            while len(ended) < len(set(ids)):
                job = await anext(changes)
                note(change(job))
                if show_logs:
                    tails.follow(job)
                if finished(job):
                    ended[job.id] = job
    except asyncio.CancelledError:  # Ctrl-C
        left = " ".join(name for name in ids if name not in ended)
        note(f"no longer waiting; the jobs go on. To end them: gpupool cancel {left}")
        raise
    return next((code for code in map(exit_code, (ended[name] for name in ids)) if code), 0)


def _changes(client: AsyncClient, ids: list[str]) -> contextlib.aclosing[AsyncGenerator[job_pb2.Job, None]]:
    return contextlib.aclosing(client.watch(select(ids=ids)))


def exit_code(job: job_pb2.Job) -> int:
    """The guest's exit code; 1 for a job that ended without one, such as a cancelled job."""
    if job.status.state == job_pb2.JOB_STATE_SUCCEEDED:
        return 0
    code = job.status.exit_code if job.status.HasField("exit_code") else 0
    return code & 0xFF or 1  # as a shell would see it; a failure stays a failure


class Tails:
    """Follows the output of every attempt that it is told of; at the end waits a little for the last lines."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if self._tasks and kind is None:
            await asyncio.wait(self._tasks.values(), timeout=LAST_LINES_S)
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def follow(self, job: job_pb2.Job) -> None:
        """Follow the job's newest attempt, once its guest has started."""
        last = job.status.attempts[-1] if job.status.attempts else None
        if last is None or not last.started_s or (job.id, last.number) in self._tasks:
            return
        self._tasks[job.id, last.number] = asyncio.create_task(self._print(job.id, last.number))

    async def _print(self, job: str, attempt: int) -> None:
        try:
            async with contextlib.aclosing(self._client.logs(job, attempt, follow=True)) as chunks:
                async for chunk in chunks:
                    for line in chunk.lines:
                        print_line(line)
        except GpupoolError as error:  # the job's end matters more than its output
            click.echo(f"warning: no more output of {job}, attempt {attempt}: {error}", err=True)
