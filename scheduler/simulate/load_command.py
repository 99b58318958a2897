"""`gpupool simulate load` on the command line: what is replayed, under which policies, and how it is shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import click

from gpupool.cli.output import examples, output_option, pairs, table
from gpupool.cli.queue_options import Duration
from gpupool.cli.views import duration

from . import plot, replay, synthetic
from .failures import Failing
from .given import FILE, Number, Shares, gpus_name, policy_of, priority_name, queues_of, tenant_name
from .load import Replay, Settings
from .progress import Progress
from .vms import Pace
from .work import Load

FAIR = ("slowdown", "service")
F = TypeVar("F", bound=Callable[..., Any])
TRACE = ("nodes", "pods", "slices", "queue_from", "begin", "end")
MADE = ("gpus_per_host", "jobs", "load", "sizes", "run_median", "run_sigma", "tenants", "priorities", "preemptible")

_TRACE_OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("--nodes", FILE, "The hosts of a trace: columns sn, cpu_milli, memory_mib, gpu, model."),
    ("--pods", FILE, "Its tasks: as for `simulate openb`, with creation_time, scheduled_time, deletion_time."),
    ("--slices", click.Choice([replay.ROUND_UP, replay.LEAVE_OUT]),
     "A task for a part of a GPU takes a whole one (round-up, the default), or is left out."),
    ("--queue-from", str, "The column of --pods that names a task's queue, such as qos."),
    ("--begin", Duration(), "Replay only what was created so long after the trace's first task, or later."),
    ("--end", Duration(), "Replay only what was created before this moment."),
)  # fmt: skip
_MADE_OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("--gpus-per-host", click.IntRange(1, 64), "Of each made-up host (8)."),
    ("--jobs", click.IntRange(1, 1_000_000), "How many arrive (2000)."),
    ("--load", Number(0.001, 100), "GPU time asked for, as a part of what there is (0.9)."),
    ("--sizes", Shares(gpus_name, "a number of GPUs"), "GPUs of a job, each with its weight (1:60,2:20,4:12,8:8)."),
    ("--run-median", Duration(), "Of the log-normal run times (1h)."),
    ("--run-sigma", Number(0, 5), "Of their logarithm (1.5)."),
    ("--tenants", Shares(tenant_name, "a queue's name"), "Each has a queue of its name, and such a part of the jobs."),
    ("--priorities", Shares(priority_name, "a priority"), "Of a job, each with its weight (0)."),
    ("--preemptible", Number(0, 1), "The part of the jobs that stops for others (0)."),
)  # fmt: skip
_COMMON_OPTIONS: tuple[tuple[str, Any, Any, str], ...] = (
    ("--seed", click.IntRange(0), 42, "Of made-up jobs, and of failures."),
    ("--hosts", click.IntRange(1, 100_000), None, "How many: of the trace's, evenly taken, or made up (all; 32)."),
    ("--scale", Number(0.001, 1e6), 1.0, "Jobs arrive so many times as fast; how long they run stays."),
    ("--declared", Number(0, 1000), 0.0, "Each job declares so many times its run time as its limit; 0: none."),
    ("--policy", FILE, None, "The scheduler's policy file."),
    ("--queues", FILE, None, "Queues and quotas, as `gpupool queue list -o json` prints them."),
    ("--mtbf-h", Number(0, 1e9), 0.0, "Mean hours until a host fails; 0: none does by itself."),
    ("--host-failures", click.IntRange(0, 1_000_000), 0, "So many failures at random moments and hosts, beside those."),
    ("--repair", Duration(), 3600, "From a host's failure to its return."),
    ("--start", Duration(), 30, "From the decision to the start of a job's command."),
    ("--reclaim", Duration(), 10, "From a VM's end until its units are proven clean."),
    ("--lease", click.IntRange(1, 3600), 10, "Seconds after which a dead host is noticed."),
    ("--checkpoint", Duration(), 0, "How often jobs save their state; 0: they lose all when their host dies."),
    ("--until", Duration(), None, "End the run so long after the first arrival, whatever still runs."),
)


def _options(command: F) -> F:
    for name, kind, default, words in reversed(_COMMON_OPTIONS):
        command = click.option(name, type=kind, default=default, show_default=default is not None, help=words)(command)
    for name, kind, words in reversed(_TRACE_OPTIONS + _MADE_OPTIONS):
        command = click.option(name, type=kind, help=words)(command)
    return command


@click.command(
    "load",
    epilog=examples(
        "gpupool simulate load --synthetic --seed 7 --load 1.1 --mtbf-h 500 -o json",
        "gpupool simulate load --nodes nodes.csv --pods pods.csv --hosts 40 --scale 20 --plot load.svg",
    ),
)
@click.option("--synthetic", "made", is_flag=True, help="Make the jobs up, instead of --nodes and --pods.")
@_options
@click.option("--no-checkpoint", is_flag=True, help="A job that is asked to stop loses what it has done.")
@click.option("--plot", "plots", type=FILE, multiple=True, metavar="FILE", help="Draw it, as .png or .svg. Repeatable.")
@output_option("table", "json")
def load_command(made: bool, plots: tuple[Path, ...], output: str, **given: Any) -> None:
    """Replay jobs with their run times through queue, policies and restarts, and print how they fared.

    Jobs come from a trace with the columns of Alibaba's openb, or are made up by a seed. Time is virtual, hosts and VMs
    are not there; what decides is the scheduler's own core. docs/simulate.md defines each figure.
    """
    plot.ready(plots)
    load = _load(made, given)
    settings = Settings(
        policy=policy_of(given["policy"]),
        queues=queues_of(given["queues"]),
        pace=Pace(
            start_s=given["start"], reclaim_s=given["reclaim"], ttl_s=given["lease"], repair_s=given["repair"],
            checkpoint_s=given["checkpoint"], keeps_work=not given["no_checkpoint"],
        ),
        failing=Failing(given["mtbf_h"], given["host_failures"]),
        seed=given["seed"],
        until_s=inf if given["until"] is None else given["until"],
    )  # fmt: skip
    told = Progress(len(load.tasks), load.tasks[-1].at_s)
    figures = Replay(load, settings, told).run()
    plot.draw(figures, plots)
    if output == "json":
        click.echo(json.dumps(figures, indent=2))
    else:
        _show(figures)


def _load(made: bool, given: Mapping[str, Any]) -> Load:
    """The load that is asked for. Raises UsageError for options that do not go together, InvalidSpec for bad files."""
    odd = [name for name in (TRACE if made else MADE) if given[name] is not None]
    if odd:
        other = "--synthetic takes no trace" if made else "it is for --synthetic"
        raise click.UsageError(f"--{odd[0].replace('_', '-')}: {other}")
    if not made:
        if given["nodes"] is None or given["pods"] is None:
            raise click.UsageError("name a trace with --nodes and --pods, or make jobs up with --synthetic")
        reading = replay.Reading(
            given["scale"], given["slices"] or replay.ROUND_UP, given["hosts"] or 0, given["queue_from"] or "",
            given["declared"], given["begin"] or 0, inf if given["end"] is None else given["end"],
        )  # fmt: skip
        return replay.load_of(given["nodes"], given["pods"], reading)
    fields = {name: given[name] for name in MADE if name != "run_median"} | {
        "run_median_s": given["run_median"], "hosts": given["hosts"], "declared": given["declared"],
        "seed": given["seed"],
    }  # fmt: skip
    wanted = synthetic.Synthetic(**{name: value for name, value in fields.items() if value is not None})
    return synthetic.load_of(wanted, given["scale"])


def _show(figures: Mapping[str, Any]) -> None:
    load, jobs, use = figures["load"], figures["jobs"], figures["utilisation"]
    fragments = figures["fragmentation"]["fragmented_pct_of_free"]
    fair, hours = figures["fairness"], figures["gpu_hours"]
    left = {name: load[name] for name in replay.COUNTED if load.get(name)}
    pairs(
        [
            ("cluster", f"{load['hosts']} hosts, {load['gpus']} GPUs"),
            ("arrivals", f"{jobs['submitted']} jobs in {duration(load['window_s'])}; load {load['offered_load']:.2f}"),
            ("of the trace", ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in left.items())),
            ("ended", ", ".join(f"{jobs[name]} {name.replace('_', ' ')}" for name in jobs if name != "submitted")),
            ("in use", f"{use['running_pct']:.1f} % running, {use['allocated_pct']:.1f} % allocated"),
            ("waiting", f"{use['waiting_jobs']:.1f} jobs for {use['waiting_gpus']:.1f} GPUs, on average"),
            ("fragmented", "" if fragments["mean"] is None else f"{fragments['mean']:.1f} % of the free GPUs"),
            ("preemptions", str(figures["preemptions"])),
            ("host failures", f"{figures['host_failures']}, which cost {figures['restarts_after_host_loss']} restarts"),
            ("GPU hours", f"{hours['done']:.1f} done, {hours['done_in_vain']:.1f} in vain"),
            ("fairness", ", ".join(f"{name} {_number(fair[f'jain_{name}']) or '-'}" for name in FAIR)),
        ]
    )
    rows = [_row("all", jobs["submitted"] - jobs["refused"], figures)]
    for what, key in (("queue", "by_queue"), ("priority", "by_priority"), ("GPUs", "by_gpus")):
        groups = figures[key]
        rows += [_row(f"{what} {name}", groups[name]["jobs"], groups[name]) for name in groups if len(groups) > 1]
    click.echo()
    table(("JOBS", "COUNT", "WAIT MEAN", "MEDIAN", "95 %", "MAX", "SLOWDOWN MEAN", "MEDIAN", "95 %", "MAX"), rows)


def _row(name: str, jobs: int, group: Mapping[str, Any]) -> list[str]:
    waits, slow = group["waiting_s"], group["bounded_slowdown"]
    kinds = ("mean", "median", "p95", "max")
    times = ["" if waits[kind] is None else duration(waits[kind]) for kind in kinds]
    return [name, str(jobs), *times, *(_number(slow[kind]) for kind in kinds)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
