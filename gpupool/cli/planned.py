"""Commands for planned work on hosts: drain, undrain, maintenance."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import click

from gpupool.client import Client
from gpupool.client.policy import Deadline
from gpupool.errors import NotFound
from gpupool.v1 import scheduler_pb2

from . import host_views
from .draining import Watched, Wish, begin, drain_all, goes_on, telling_what_goes_on
from .output import emit, examples, note, output_option, table
from .settings import COUNT, Seconds, complete_host, connect, connect_async, connection_options, me


@click.command(
    epilog=examples(
        'gpupool drain gpu07 --reason "new fans"',
        "gpupool drain gpu07 --at-once 1 --wait-for-place --grace-s 600",
        "gpupool drain gpu01 gpu02 gpu03 --hosts-at-once 1 --timeout-s 7200",
        "gpupool drain gpu07 --no-wait; gpupool hosts gpu07",
    )
)
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True, shell_complete=complete_host)
@click.option("--reason", default="", help="For whoever finds the host draining; jobs that wait show it.")
@click.option(
    "--grace-s", type=COUNT, default=0, metavar="N", help="From the request to a VM's end (as each job says)."
)
@click.option("--at-once", type=COUNT, default=0, metavar="K", help="VMs of a host that may be stopping at once (all).")
@click.option("--wait-for-place", is_flag=True, help="Stop a VM only once another host could take its job now.")
@click.option("--hosts-at-once", type=COUNT, default=0, metavar="K", help="Hosts drained at once (all).")
@click.option("--no-wait", is_flag=True, help="Ask for it, and do not wait until it is done.")
@click.option("--timeout-s", type=Seconds(), help="Wait at most so long (for ever).")
@output_option("table", "wide", "json", "yaml")
@connection_options
def drain(
    *,
    hosts: tuple[str, ...],
    reason: str,
    grace_s: int,
    at_once: int,
    wait_for_place: bool,
    hosts_at_once: int,
    no_wait: bool,
    timeout_s: float | None,
    output: str,
) -> None:
    """Empty hosts for planned work: their VMs stop, and their jobs start elsewhere.

    A VM that owns devices cannot migrate. Each is asked for a checkpoint, then to end; when its grace is over it is
    powered off. Its job goes back to its place in the queue, which costs none of its restarts. Nothing new is placed on
    the host until `gpupool undrain`.

    Waits until no VM is left, and tells how far it is. Interrupted, the drain goes on; the same command waits again, or
    changes how it is done. A host that dies meanwhile is treated like any other that dies.
    """
    if no_wait and hosts_at_once:
        raise click.UsageError("--hosts-at-once needs somebody to wait for each host; leave out --no-wait")
    wish = Wish(reason, grace_s, at_once, wait_for_place)
    asyncio.run(_drain(hosts, wish, hosts_at_once, Deadline(timeout_s), wait=not no_wait))
    _show(hosts, output)


async def _drain(hosts: tuple[str, ...], wish: Wish, hosts_at_once: int, deadline: Deadline, *, wait: bool) -> None:
    async with connect_async() as client:
        if not wait:
            for host in await Watched(client).all(hosts):  # a misspelt one drains none
                await begin(client, host.name, wish)
            note(goes_on(hosts))
            return
        with telling_what_goes_on(hosts, note):
            await drain_all(client, hosts, wish, hosts_at_once=hosts_at_once, deadline=deadline, say=note)


@click.command(epilog=examples("gpupool undrain gpu07"))
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True, shell_complete=complete_host)
@output_option("table", "wide", "json", "yaml")
@connection_options
def undrain(hosts: tuple[str, ...], output: str) -> None:
    """End the drain of hosts, done or not: they take jobs again.

    A VM that was asked to stop already stops, and its job starts again where there is a place, perhaps there.
    """
    with connect() as client:
        for name in _known(client, hosts):
            client.undrain(name, by=me())
    _show(hosts, output)


@click.group(
    epilog=examples(
        'gpupool maintenance on gpu07 --reason "new board"', "gpupool hosts gpu07", "gpupool maintenance off gpu07"
    )
)
def maintenance() -> None:
    """Keep hosts out over reboots, or let them in again.

    A host in maintenance gets no job. Without VMs it may vanish and come back as often as the work needs: nobody is
    alarmed. What runs there goes on, so `gpupool drain` it first.
    """


@maintenance.command("on", epilog=examples('gpupool maintenance on gpu07 --reason "new board"'))
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True, shell_complete=complete_host)
@click.option("--reason", required=True, help="For whoever finds the host in maintenance.")
@output_option("table", "wide", "json", "yaml")
@connection_options
def maintenance_on(hosts: tuple[str, ...], reason: str, output: str) -> None:
    """Place nothing on hosts, over reboots, until `gpupool maintenance off`."""
    with connect() as client:
        for name in _known(client, hosts):
            found = client.maintenance(name, on=True, reason=reason, by=me())
            if found.vms:
                note(f"{name} has {found.vms} VMs, which run on; to have them start elsewhere: gpupool drain {name}")
    _show(hosts, output)


@maintenance.command("off", epilog=examples("gpupool maintenance off gpu07"))
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True, shell_complete=complete_host)
@output_option("table", "wide", "json", "yaml")
@connection_options
def maintenance_off(hosts: tuple[str, ...], output: str) -> None:
    """Let jobs be placed on hosts again."""
    with connect() as client:
        for name in _known(client, hosts):
            found = client.maintenance(name, on=False, by=me())
            others = host_views.wishes(found)
            if others:
                note(f"{name} takes no jobs yet: {','.join(others)}")
    _show(hosts, output)


def _known(client: Client, names: Iterable[str]) -> list[str]:
    """Each name once. Raises NotFound before anything is touched: a misspelt one changes nothing."""
    wanted, known = list(dict.fromkeys(names)), [host.name for host in client.hosts()]
    missing = sorted(set(wanted).difference(known))
    if missing:
        raise NotFound(f"no host {', '.join(missing)}; known hosts: {', '.join(known) or 'none'}")
    return wanted


def _show(names: tuple[str, ...], output: str) -> None:
    with connect() as client:
        found: list[scheduler_pb2.Host] = [host for host in client.hosts() if host.name in names]
    if output in {"json", "yaml"}:
        emit(output, found)
    else:
        table(*host_views.hosts(found, time.time(), wide=output == "wide"))


COMMANDS = (drain, undrain, maintenance)
