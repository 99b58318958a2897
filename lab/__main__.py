"""The lab by hand.

python -m lab image                     build the images
python -m lab up [--small]              two GPU hosts with agents, etcd and a scheduler; Ctrl-C ends it
python -m lab shell HOST 'COMMAND'      run a command in a host of a lab that is up
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import time

from gpupool.embedded.daemons import DaemonError, remove_tree
from gpupool.embedded.etcd import EtcdError

from . import images, shell
from .cluster import AGENT_LOG, Cluster
from .host import HostError
from .machine import FULL, SMALL

RUN = images.LAB / "run" / "up"
STATE = RUN / "lab.json"


def main() -> None:
    """Dispatch."""
    parser = argparse.ArgumentParser(
        prog="python -m lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("image", help="build what hosts boot, where it is missing or out of date")
    up = commands.add_parser("up", help="keep a lab running; Ctrl-C ends it")
    up.add_argument("--small", action="store_true", help="only the smaller host, h2")
    one = commands.add_parser("shell", help="run a command in a host of a lab that is up")
    one.add_argument("host")
    one.add_argument("shell", metavar="COMMAND")
    options = parser.parse_args()
    try:
        if options.command == "shell":
            sys.exit(asyncio.run(_shell(options.host, options.shell)))
        found = images.build(_tell)
        if options.command == "up":
            asyncio.run(_up(found, small=options.small))
    except (images.BuildError, HostError, DaemonError, EtcdError, shell.ShellError, TimeoutError) as exc:
        sys.exit(f"error: {exc}")


async def _up(found: images.Images, *, small: bool) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    machines = {"h2": SMALL} if small else {"h1": FULL, "h2": SMALL}
    remove_tree(RUN)
    async with Cluster(RUN, machines, found, _tell) as cluster:
        control = {name: host.ports.control for name, host in cluster.hosts.items()}
        STATE.write_text(json.dumps(control))
        rising = asyncio.create_task(cluster.rise())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({rising, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if rising.done():
            rising.result()
            _help(cluster)
        else:
            rising.cancel()
        while not stop.is_set():
            cluster.check(cluster.hosts)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 1.0)
        STATE.unlink()


def _help(cluster: Cluster) -> None:
    _tell(
        f"""lab: use it, in another terminal:
  export GPUPOOL_SERVER={cluster.server}
  .venv/bin/gpupool units -o wide
  .venv/bin/gpupool submit examples/hello.yaml --wait --logs
  .venv/bin/python -m lab shell h1 'tail {AGENT_LOG}; virsh list'
lab: consoles and logs are in {cluster.folder}; Ctrl-C ends it"""
    )


async def _shell(host: str, command: str) -> int:
    if not STATE.exists():
        raise shell.ShellError("no lab is up; start one with: make lab")
    ports = json.loads(STATE.read_text())
    if host not in ports:
        raise shell.ShellError(f"the lab has no host {host!r}; it has {', '.join(sorted(ports))}")
    result = await shell.run(ports[host], command, timeout_s=3600, check=False)
    sys.stdout.buffer.write(result.output)
    return result.code


def _tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    main()
