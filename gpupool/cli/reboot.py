"""`gpupool reboot`: a rolling reboot."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import time
from datetime import UTC, datetime

import click

from gpupool.errors import InvalidSpec

from .draining import Wish
from .output import examples, note
from .rolling import Roll, Rolling
from .settings import COUNT, Seconds, complete_host, connect_async, connection_options

BACK_WITHIN_S = 1800.0


def _moment(_: click.Context, __: click.Parameter, value: str | None) -> float:
    """Unix time of e.g. 2026-01-02T03:04:05Z; now, where nothing is given."""
    if value is None:
        return float(int(time.time()))
    try:
        return datetime.fromisoformat(value).timestamp()
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{value!r} is no time; write it like 2026-01-02T03:04:05Z") from None


@click.command(
    epilog=examples(
        "gpupool reboot gpu01 gpu02 gpu03 --command 'ssh {host} reboot'",
        "gpupool reboot gpu0{1..9} --at-once 2 --wait-for-place --command 'ipmi-reset.sh {host}'",
        "gpupool reboot gpu01 gpu02 gpu03 --since 2026-01-02T03:04:05Z --command 'ssh {host} reboot'   # goes on",
    )
)
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True, shell_complete=complete_host)
@click.option("--command", required=True, help="Reboots one host; {host} is its name. Run here, without a shell.")
@click.option("--at-once", type=click.IntRange(min=1), default=1, show_default=True, metavar="K", help="So many hosts.")
@click.option("--reason", default="", help="For whoever finds a host on its way.")
@click.option("--grace-s", type=COUNT, default=0, metavar="N", help="For each VM to end in; see drain.")
@click.option("--wait-for-place", is_flag=True, help="Stop a VM only once another host could take its job now.")
@click.option("--timeout-s", type=Seconds(), help="For a host's drain (for ever).")
@click.option(
    "--back-within-s", type=Seconds(), default=BACK_WITHIN_S, show_default=True, help="From command to healthy."
)
@click.option("--since", callback=_moment, metavar="TIME", help="Hosts that were booted later are done (now).")
@connection_options
def reboot(
    *,
    hosts: tuple[str, ...],
    command: str,
    at_once: int,
    reason: str,
    grace_s: int,
    wait_for_place: bool,
    timeout_s: float | None,
    back_within_s: float,
    since: float,
) -> None:
    """Reboot hosts in turn, without losing a job.

    Each host is drained, put into maintenance, rebooted by your command, and awaited: it must come back with another
    boot id, be READY, and have all its units proven clean. Then it takes jobs again, and the next one follows.

    Stops at the first host that does not come back as it was: that one stays in maintenance, those behind it are left
    alone. To go on, or after an interruption, give the same command with the --since that it prints: hosts that were
    booted meanwhile are not booted again. Some jobs may have to move more than once; name hosts last that should keep
    theirs longest.
    """
    at = datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    mark = f"rolling reboot since {at}" + (f": {reason}" if reason else "")
    words = ["gpupool", "reboot", *hosts, "--command", command, "--at-once", str(at_once), "--since", at]
    words += ["--reason", reason] if reason else []
    words += ["--wait-for-place"] if wait_for_place else []
    words += ["--grace-s", str(grace_s)] if grace_s else []
    words += ["--timeout-s", f"{timeout_s:g}"] if timeout_s else []
    words += ["--back-within-s", f"{back_within_s:g}"] if back_within_s != BACK_WITHIN_S else []
    resume = f"go on with: {shlex.join(words)}"
    wish = Wish(mark, grace_s, 0, wait_for_place)
    roll = Roll(since, mark, command, wish, at_once, timeout_s, back_within_s, resume)
    asyncio.run(_reboot(hosts, roll))


async def _reboot(hosts: tuple[str, ...], roll: Roll) -> None:
    for name in hosts:  # before anybody is drained for it
        program = roll.line(name)[0]
        if shutil.which(program) is None:
            raise InvalidSpec([f"--command: cannot run {program!r}: there is no such program here"])
    note(f"if this is interrupted, {roll.resume}")
    async with connect_async() as client:
        await Rolling(client, roll, note).run(hosts)


COMMANDS = (reboot,)
