"""`gpupool up`: an embedded cluster to try things on, kept running until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import click

from gpupool.embedded.cluster import EmbeddedCluster
from gpupool.embedded.daemons import DaemonError, remove_tree
from gpupool.embedded.etcd import EtcdError
from gpupool.errors import GpupoolError
from gpupool.store.keys import check_name

from .output import examples
from .settings import server_file

POLL_S = 0.5
IMAGES = (Path("var/images"), Path("/var/lib/gpupool/images"))


def images_option() -> Path:
    """Where guest images are looked for when nobody says."""
    return next((path for path in IMAGES if path.is_dir()), IMAGES[0])


def check_images(images: Path) -> None:
    """Raise UsageError unless there is a guest image."""
    if not list(images.glob("*/manifest.json")):
        raise click.UsageError(
            f"no guest image in {images}; build one with: make image (or deploy/guest/build.sh {images}/debian-numpy)"
        )


def parse_hosts(texts: tuple[str, ...]) -> dict[str, str]:
    """Hosts from NAME=GPUS words. Raises UsageError."""
    hosts = {}
    for text in texts:
        name, sign, gpus = text.partition("=")
        if not (name and sign and gpus) or name in hosts:
            raise click.UsageError(f"--host {text!r}: write NAME=COUNTxMODEL, each name once, e.g. h1=4xnvidia-t4")
        try:
            hosts[check_name(name, "host")] = gpus
        except ValueError as exc:
            raise click.UsageError(f"--host {text!r}: {exc}") from None
    return hosts


@click.command(
    epilog=examples(
        "gpupool up",
        "gpupool up --host a=8xnvidia-h100-80gb --host b=2xnvidia-t4,2xnvidia-l4",
        "gpupool up --data-dir ~/gpupool --port 6000",
    )
)
@click.option(
    "--host", "hosts", multiple=True, metavar="NAME=GPUS",
    help="A simulated host and its GPUs; may be repeated.  [default: four hosts with four GPUs each]",
)  # fmt: skip
@click.option("--replicas", default=2, show_default=True, type=click.IntRange(1, 9), help="Schedulers.")
@click.option(
    "--port", default=50151, show_default=True, type=click.IntRange(0, 65000),
    help="The first scheduler's port, the next one's is one higher; 0 takes free ones.",
)  # fmt: skip
@click.option("--data-dir", type=click.Path(path_type=Path), help="Keep jobs here.  [default: temporary]")
@click.option("--images", type=click.Path(path_type=Path), help="Guest images.  [default: var/images]")
def up(*, hosts: tuple[str, ...], replicas: int, port: int, data_dir: Path | None, images: Path | None) -> None:
    """Keep a small cluster running on this machine, for trying things.

    It has its own etcd, schedulers, and agents of simulated hosts: their GPUs are made up, their VMs are real. All of
    it listens on loopback only and ends with Ctrl-C. Other `gpupool` commands of this user find it by themselves.
    """
    images = images or images_option()
    check_images(images)
    shapes = parse_hosts(hosts) or {
        "h1": "4xnvidia-a100-80gb", "h2": "4xnvidia-a100-80gb", "h3": "4xnvidia-h100-80gb", "h4": "4xnvidia-h100-80gb",
    }  # fmt: skip
    try:
        asyncio.run(_keep(shapes, replicas, port, data_dir, images))
    except (DaemonError, EtcdError, TimeoutError, OSError) as exc:
        raise GpupoolError(str(exc) or "the cluster did not become ready in time") from None


async def _keep(shapes: dict[str, str], replicas: int, port: int, data_dir: Path | None, images: Path) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with embedded(shapes, replicas=replicas, port=port, data_dir=data_dir, images=images) as cluster:
        starting = asyncio.create_task(cluster.start(click.echo))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            await starting
            with _published(cluster.server):
                click.echo("\nReady. In another terminal:")
                click.echo("  gpupool units\n  gpupool submit examples/hello.yaml --wait --logs\n  gpupool events -f")
                click.echo("Ctrl-C ends all of it.")
                while not stop.is_set():
                    cluster.check()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(stop.wait(), POLL_S)
        starting.cancel()
        click.echo("ending ...")


@asynccontextmanager
async def embedded(
    shapes: dict[str, str],
    *,
    images: Path,
    replicas: int = 2,
    port: int = 0,
    data_dir: Path | None = None,
    agent_options: Mapping[str, str] | None = None,
) -> AsyncIterator[EmbeddedCluster]:
    """A cluster that is ended, whatever happens, and whose folder is deleted unless it was given."""
    folder = _folder(data_dir)
    cluster = EmbeddedCluster(
        folder, images=images, hosts=shapes, replicas=replicas, port=port, agent_options=agent_options
    )
    try:
        yield cluster
    finally:
        await cluster.stop()
        if data_dir is None:
            remove_tree(folder)


def _folder(data_dir: Path | None) -> Path:
    if data_dir is None:
        return Path(tempfile.mkdtemp(prefix="gpupool-"))
    data_dir.mkdir(parents=True, exist_ok=True)
    return data_dir.absolute()


@contextlib.contextmanager
def _published(server: str) -> Iterator[None]:
    """Let this user's other commands find the cluster."""
    file = server_file()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if file.parent.stat().st_uid != os.getuid():
        raise GpupoolError(f"{file.parent} belongs to somebody else; set XDG_RUNTIME_DIR to a folder of yours")
    file.write_text(server)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            if file.read_text() == server:  # else another one, which began later, is there to be found
                file.unlink()
