"""Prints every change of the jobs with a label, for as long as it runs; losing a replica does not end it.

python examples/watch.py 127.0.0.1:50151,127.0.0.2:50151 sweep=sweep-1
"""  # noqa: INP001

from __future__ import annotations

import asyncio
import sys

from gpupool.client import AsyncClient, select
from gpupool.v1.job_pb2 import JobState


async def main(address: str, label: str) -> None:
    """Watch until interrupted."""
    key, _, value = label.partition("=")
    async with AsyncClient(address) as client:
        async for job in client.watch(select(labels={key: value})):
            print(job.id, job.spec.name, JobState.Name(job.status.state), job.status.message)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
