"""Submits a sweep of jobs, with keys that make it safe to run this program again after a crash.

python examples/submit_many.py 127.0.0.1:50151 sweep-1
"""  # noqa: INP001

from __future__ import annotations

import sys
from collections.abc import Iterator

from gpupool.client import Client
from gpupool.errors import from_status
from gpupool.v1.job_pb2 import GpuRequest, JobSpec


def sweep(name: str) -> Iterator[tuple[JobSpec, str]]:
    """One job for each learning rate; the key says which job of which sweep it is."""
    for rate in ("0.1", "0.03", "0.01"):
        spec = JobSpec(
            name=f"{name}-{rate}",
            image="debian-numpy",
            command=["sh", "-c", 'echo "learning rate $RATE"'],
            env={"RATE": rate},
            cpus=1,
            memory_mib=256,
            gpus=GpuRequest(count=1),
            labels={"sweep": name},
        )
        yield spec, f"{name}/{rate}"


def main(address: str, name: str) -> None:
    """Submit, then wait for all of them."""
    with Client(address) as client:
        ids = []
        for result in client.submit_many(sweep(name)):
            if result.HasField("refused"):
                print("refused:", from_status(result.refused.code, result.refused.message))  # noqa: T201
            else:
                ids.append(result.ok.id)
        for job in ids:
            done = client.wait(job)
            print(job, done.spec.name, "exit code", done.status.exit_code)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:3])
