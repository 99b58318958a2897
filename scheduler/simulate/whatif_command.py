"""`gpupool simulate whatif` on the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from gpupool import dumpfile
from gpupool.cli.output import examples, note, output_option, pairs, table
from gpupool.cli.queue_options import Duration
from gpupool.cli.views import duration, moment

from . import whatif
from .changes import SETTINGS, Changes, Quota
from .given import FILE, policy_of
from .vms import Pace

LARGE = 20_000  # records, from which on it is said what is being done
SHOWN = 50  # jobs in the table


class _Rack(click.ParamType):  # type: ignore[type-arg]  # generic only in the newest click
    """`rack=r7`: hosts whose label has that value, which may be a glob."""

    name = "label=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """The label and its value."""
        if isinstance(value, tuple):
            return value
        name, equals, wanted = value.partition("=")
        if not name or not equals or not wanted:
            self.fail(f"{value!r}: write LABEL=VALUE, such as rack=r7", param, ctx)
        return name, wanted


class _Quota(click.ParamType):  # type: ignore[type-arg]
    """`vision=24` or `vision=max-gpus=24,guaranteed-gpus=8`."""

    name = "queue=setting=value,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Quota]:
        """The queue, and its new settings."""
        if isinstance(value, tuple):
            return value
        queue, equals, rest = value.partition("=")
        if not queue or not equals:
            self.fail(f"{value!r}: write QUEUE=GPUS, or QUEUE=max-gpus=24,guaranteed-gpus=8", param, ctx)
        found: dict[str, int] = {}
        for part in rest.split(","):
            setting, _, number = part.rpartition("=")
            setting = setting or "max-gpus"
            if setting not in SETTINGS:
                self.fail(f"{part!r}: there is no setting {setting!r}; there are {', '.join(SETTINGS)}", param, ctx)
            if not number.removeprefix("-").isdecimal() or not -1 <= int(number) < 2**31:
                self.fail(f"{part!r}: a whole number is wanted; -1 takes a limit away", param, ctx)
            if setting == "weight" and int(number) < 1:
                self.fail(f"{part!r}: a weight is from 1", param, ctx)
            if setting in found:
                self.fail(f"{value!r}: {setting} stands twice", param, ctx)
            found[setting] = int(number)
        return queue, found


@click.command(
    "whatif",
    epilog=examples(
        "gpupool cluster dump -o now.json",
        "gpupool simulate whatif now.json --add-hosts 4 --like gpu07",
        "gpupool simulate whatif now.json --lose-rack rack=r7 -o json",
        "gpupool simulate whatif now.json --quota vision=max-gpus=24,guaranteed-gpus=8 --ahead 1d",
    ),
)
@click.argument("dump", type=FILE)
@click.option("--add-hosts", type=click.IntRange(1, 100_000), help="So many hosts more, built as --like is.")
@click.option("--like", metavar="HOST", help="A host of the dump.")
@click.option(
    "--lose-host", "lose", multiple=True, metavar="HOST", help="It dies at the moment of the dump. Repeatable."
)
@click.option("--lose-rack", "racks", type=_Rack(), multiple=True, help="All hosts with that label die. Repeatable.")
@click.option(
    "--confirm-dead", is_flag=True, help="An operator vouches for lost hosts of which nothing else proves it."
)
@click.option(
    "--quota", "quotas", type=_Quota(), multiple=True, help="Settings of a queue; a number is max-gpus. Repeatable."
)
@click.option("--policy", type=FILE, help="Another policy file.")
@click.option(
    "--ahead",
    type=Duration(),
    default=900,
    show_default=True,
    help="How far to look: jobs end at the time limits that they declare, others run on.",
)
@click.option("--start", type=Duration(), default=30, show_default=True, help="How long a VM takes to start.")
@click.option(
    "--reclaim", type=Duration(), default=10, show_default=True, help="How long units take to be proven clean."
)
@output_option("table", "json")
def whatif_command(dump: Path, ahead: int, start: int, reclaim: int, output: str, **given: Any) -> None:
    """What would change in the cluster of DUMP, which `gpupool cluster dump` has written.

    The cluster lives on twice, as it is and with the changes, on the scheduler's own core and in virtual time. Told is
    what differs at the end: who starts, who restarts where, who waits and why. Nothing real is touched.
    """
    found = dumpfile.read(dump)
    question = whatif.Question(found, dump, _changes(given), float(ahead), Pace(start_s=start, reclaim_s=reclaim))
    answer = whatif.answer(question, note if len(found.items) >= LARGE else lambda _: None)
    if output == "json":
        click.echo(json.dumps(answer, indent=2))
    else:
        _show(answer)


def _changes(given: Mapping[str, Any]) -> Changes:
    """What is asked for. Raises UsageError for options that do not go together."""
    if (given["add_hosts"] is None) != (given["like"] is None):
        raise click.UsageError("--add-hosts and --like belong together: how many, and built as which host")
    quotas = dict(given["quotas"])
    if len(quotas) < len(given["quotas"]):
        raise click.UsageError("--quota: each queue once, its settings with commas")
    policy = given["policy"]
    return Changes(
        given["add_hosts"] or 0,
        given["like"] or "",
        given["lose"],
        given["racks"],
        quotas,
        policy_of(policy) if policy is not None else None,
        policy,
        given["confirm_dead"],
    )


def _show(answer: Mapping[str, Any]) -> None:
    seen = f"{moment(answer['dump']['at_s'])}, revision {answer['dump']['revision']}"
    pairs([("dump", seen), ("looked ahead", duration(answer["ahead_s"]))])
    pairs([("change", change) for change in answer["changes"] or ["none"]])
    pairs([("note", text) for text in answer["notes"]])
    click.echo()
    table(("", "BEFORE", "AFTER"), [*_totals(answer), *_queues(answer)])
    jobs = answer["jobs"]
    if not jobs:
        click.echo("\nno job fares differently")
        return
    click.echo()
    rows = [_job(job) for job in jobs[:SHOWN]]
    table(("JOB", "NAME", "QUEUE", "GPUS", "CHANGE", "BEFORE", "AFTER"), rows)
    if len(jobs) > SHOWN:
        note(f"{len(jobs) - SHOWN} jobs more; -o json has all of them")


def _totals(answer: Mapping[str, Any]) -> list[list[str]]:
    before, after = answer["before"], answer["after"]
    words = {
        "hosts_ready": "hosts ready", "gpus": "GPUs", "gpus_used": "GPUs in use", "utilisation_pct": "in use, %",
        "jobs_running": "jobs running", "jobs_waiting": "jobs waiting", "gpus_waited_for": "GPUs that they ask for",
    }  # fmt: skip
    rows = [[words[name], f"{before[name]:g}", f"{after[name]:g}"] for name in words]
    free = "free_by_model_and_size"
    for model in sorted({*before[free], *after[free]}):
        sides = [
            " ".join(f"{size}x{count}" for size, count in side[free].get(model, {}).items()) for side in (before, after)
        ]
        rows.append([f"room on {model}", *sides])
    return rows


def _queues(answer: Mapping[str, Any]) -> list[list[str]]:
    """Those that differ."""
    rows = []
    for name, sides in answer["queues"].items():
        if sides["before"] != sides["after"]:
            said = [f"{s['gpus_used']} GPUs, {s['jobs_waiting']} waiting" if s else "" for s in sides.values()]
            rows.append([f"queue {name}", *said])
    return rows


def _job(job: Mapping[str, Any]) -> list[str]:
    return [
        job["id"], job["name"], job["queue"], str(job["gpus"]), job["change"], _fate(job["before"]), _fate(job["after"])
    ]  # fmt: skip


def _fate(fate: Mapping[str, Any]) -> str:
    at = fate["placed_after_s"]
    when = "" if at is None else f" after {duration(at)}"
    where = f" on {fate['host']}" if fate["host"] else ""
    lost = f"lost with {', '.join(fate['lost_with'])}; " if fate["lost_with"] else ""
    stopped = f"stopped for {', '.join(fate['stopped_for'])}; " if fate["stopped_for"] else ""
    why = f": {fate['why']}" if fate["why"] else ""
    return f"{lost}{stopped}{fate['state'].lower()}{where}{when}{why}"
