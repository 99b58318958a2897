"""`python -m scheduler`: wiring only."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import click
import grpc

from gpupool.store import startup
from gpupool.store.etcd import EtcdStore
from gpupool.store.port import StoreError
from gpupool.v1 import scheduler_pb2_grpc

from . import deathwatch, heap
from .api.jobs_api import JobsApi
from .api.operations_api import OperationsApi
from .api.provable import compare
from .api.service import JobService, OperationsService
from .core.state.policy import Device, Policy
from .fencing import check
from .fencing.config import Configured, PowerFileError, load_power
from .fencing.port import FenceDevice
from .mirror.mirror import Mirror
from .policy_file import PolicyFileError, load_policy
from .replica import Replica, run_until

_log = logging.getLogger("scheduler")


@dataclass(frozen=True, slots=True)
class Config:
    """One replica's settings."""

    name: str
    etcd: tuple[str, ...]
    listen: str
    advertise: str
    leader_ttl_s: int
    policy: Policy
    announce: Path | None
    power: Mapping[str, FenceDevice]


EXAMPLES = """\b
Example:
  gpupool-scheduler --etcd 10.0.0.1:2379,10.0.0.2:2379 --listen 0.0.0.0:50151
"""


@click.command(epilog=EXAMPLES, context_settings={"auto_envvar_prefix": "GPUPOOL_SCHEDULER", "show_default": True})
@click.option("--name", default=lambda: f"{socket.gethostname()}-{os.getpid()}", help="This replica's name.")
@click.option("--etcd", default="127.0.0.1:2379", help="etcd endpoints, host:port, separated by commas.")
@click.option("--listen", default="127.0.0.1:50151", help="Where the API listens, host:port; port 0 takes a free one.")
@click.option("--advertise", default="", show_default="as it listens", help="Where others reach the API.")
@click.option(
    "--leader-ttl-s",
    default=5,
    type=click.IntRange(2, 60),
    help="Seconds until a leader that is frozen or cut off is replaced; one that died is at once.",
)
@click.option(
    "--soft-guard-is-enough/--no-soft-guard-is-enough",
    default=False,
    help="Take the end of a real host's lease under a software guard as evidence that its VMs are dead.",
)
@click.option(
    "--announce", type=click.Path(path_type=Path), help="Write the API's address to this file once it serves."
)
@click.option("--policy", type=click.Path(path_type=Path), help="What the site decides about failures: a file.")
@click.option("--power", type=click.Path(path_type=Path), help="What switches hosts off: a file, see docs/failover.md.")
@click.option("--check-power", is_flag=True, help="Ask every device in the --power file for its state, and end.")
@click.option("-o", "--output", default="table", type=click.Choice(["table", "json"]), help="Of --check-power.")
@click.option("--log-level", default="info", type=click.Choice(["debug", "info", "warning", "error"]))
@click.version_option(version("gpupool"), prog_name="gpupool-scheduler")
def main(*, name: str, etcd: str, listen: str, advertise: str, leader_ttl_s: int, soft_guard_is_enough: bool,
         announce: Path | None, policy: Path | None, power: Path | None, check_power: bool, output: str,
         log_level: str) -> None:  # fmt: skip
    """Run a gpupool scheduler replica.

    Any number of replicas may run; one leads and decides, all answer the API. Each option can be given in the
    environment, e.g. GPUPOOL_SCHEDULER_ETCD.
    """
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname).1s %(name)s: %(message)s", stream=sys.stderr
    )
    devices = _devices(power)
    powered = {host: Device(device.mark, device.machine) for host, device in devices.items()}
    decided = replace(_policy(policy, soft_guard_is_enough), powered=powered)
    if check_power:
        sys.exit(_check(devices, output, etcd.split(","), decided))
    config = Config(
        name, tuple(etcd.split(",")), listen, advertise, leader_ttl_s, decided, announce, devices
    )  # fmt: skip
    try:
        asyncio.run(serve(config))
    except (StoreError, OSError) as exc:
        click.echo(f"error: {exc}", err=True)
        sys.exit(1)


def _policy(path: Path | None, soft_guard_is_enough: bool) -> Policy:
    """What the file says; ends the program with every fault if there are any."""
    try:
        policy, given = load_policy(path) if path is not None else (Policy(), frozenset[str]())
    except PolicyFileError as exc:
        for violation in exc.violations:
            click.echo(f"error: {violation}", err=True)
        sys.exit(2)
    if soft_guard_is_enough and "soft_guard_is_enough" in given and not policy.soft_guard_is_enough:
        raise click.UsageError(f"--soft-guard-is-enough, but {path} says soft_guard_is_enough: false; say it once")
    return replace(policy, soft_guard_is_enough=soft_guard_is_enough or policy.soft_guard_is_enough)


def _devices(power: Path | None) -> Mapping[str, Configured]:
    """What the file names; ends the program with every fault if there are any."""
    try:
        return load_power(power) if power is not None else {}
    except PowerFileError as exc:
        for violation in exc.violations:
            click.echo(f"error: {violation}", err=True)
        sys.exit(2)


def _check(devices: Mapping[str, FenceDevice], output: str, etcd: Sequence[str], policy: Policy) -> int:
    if not devices:
        raise click.UsageError("--check-power needs the file that names the devices: --power FILE")
    answers = asyncio.run(check.ask(devices))
    click.echo(check.as_json(answers) if output == "json" else check.as_table(answers))
    for line in asyncio.run(_compared(etcd, policy)):
        click.echo(line, err=True)
    return check.exit_code(answers)


async def _compared(etcd: Sequence[str], policy: Policy) -> list[str]:
    logging.getLogger("gpupool.store").setLevel(logging.ERROR)  # each try that fails: the answer says that etcd is away
    store = EtcdStore(etcd)
    try:
        return await compare(store, policy)
    finally:
        await store.close()


async def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    heap.begin()
    store = EtcdStore(config.etcd)
    await startup.answers(store, config.etcd)
    mirror = Mirror(store, time.time)
    policy = config.policy
    jobs = JobsApi(store, mirror, policy=policy, wall=time.time, token=lambda: os.urandom(16))
    operations = OperationsApi(
        store, mirror, replica=config.name, version=version("gpupool"), wall=time.time, policy=policy
    )
    # Clients ping idle watches, to notice a frozen replica; gRPC's default takes that for abuse.
    # Two replicas must not share a port unnoticed, which SO_REUSEPORT would let them.
    options = [("grpc.http2.min_ping_interval_without_data_ms", 5000), ("grpc.so_reuseport", 0)]
    server = grpc.aio.server(options=options)
    scheduler_pb2_grpc.add_JobServiceServicer_to_server(JobService(jobs, mirror), server)
    scheduler_pb2_grpc.add_OperationsServiceServicer_to_server(OperationsService(operations, mirror), server)
    port = _bind(server, config.listen)
    address = config.advertise or f"{config.listen.rpartition(':')[0]}:{port}"
    replica = Replica(config.name, address, store, mirror, policy, time.time, config.leader_ttl_s, gone=deathwatch.gone)
    replica.power = config.power
    running = asyncio.create_task(run_until(replica, stop))
    tending = asyncio.create_task(heap.tend(mirror.size))
    await asyncio.wait({running, asyncio.create_task(mirror.synced.wait())}, return_when=asyncio.FIRST_COMPLETED)
    await server.start()
    _log.info("%s serves at %s", config.name, address)
    if config.announce is not None:
        config.announce.write_text(address)
    try:
        await running
    finally:
        tending.cancel()
        await server.stop(grace=1.0)
        await store.close()


def _bind(server: grpc.aio.Server, listen: str) -> int:
    try:
        return server.add_insecure_port(listen)
    except RuntimeError:
        raise OSError(f"cannot listen at {listen}: in use, or not an address of this machine; see --listen") from None


if __name__ == "__main__":
    main()
