"""The client library: `AsyncClient` for asyncio programs, `Client` for the others, with the same methods.

Both know several replicas, move on when one is down, and repeat only what is safe to repeat. They need grpcio,
protobuf and tenacity, nothing else.

    from gpupool.client import Client
    from gpupool.v1.job_pb2 import GpuRequest, JobSpec

    with Client("10.0.0.1:50151,10.0.0.2:50151") as client:
        spec = JobSpec(image="debian-numpy", command=["true"], cpus=1, memory_mib=256, gpus=GpuRequest(count=1))
        job = client.wait(client.submit(spec).id)
        print(job.status.exit_code)
"""

from .aio import AsyncClient
from .requests import KeyedSpec, new_key, select
from .sync import Client

__all__ = ["AsyncClient", "Client", "KeyedSpec", "new_key", "select"]
