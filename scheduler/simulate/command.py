"""`gpupool simulate`: what placement would do with a load. Nothing is asked of, or told to, any cluster."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import click

from gpupool.cli.output import examples, output_option, table

from . import openb, traces
from .load_command import load_command
from .whatif_command import whatif_command

MOST_SEEDS = 10_000
FIGURES = ("alloc_pct_at_100", "alloc_pct_at_130", "decisions_per_s", "tasks", "failed_tasks")
CSV = click.Path(path_type=Path, dir_okay=False, readable=False)


def _seeds(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
    """`42-51`, `1,2,7-9`: in the order in which they are named."""
    seeds: list[int] = []
    for part in value.split(","):
        first, dash, last = part.strip().partition("-")
        numbers = (first, last) if dash else (first, first)
        if not all(text.isascii() and text.isdigit() and len(text) <= 18 for text in numbers):
            raise click.BadParameter(f"{part!r} is neither a seed nor a range such as 42-51", ctx, param)
        low, high = map(int, numbers)
        if high < low or len(seeds) + high - low >= MOST_SEEDS:
            raise click.BadParameter(f"{part!r} is no range, or one of more than {MOST_SEEDS} seeds", ctx, param)
        seeds.extend(range(low, high + 1))
    return seeds


@click.group()
def simulate() -> None:
    """See what the placement core does with a load, on no real host."""


@simulate.command(
    "openb",
    epilog=examples("gpupool simulate openb --nodes nodes.csv --pods pods.csv --inflate 1.3 --seeds 42-51 -o json"),
)
@click.option("--nodes", type=CSV, required=True, help="The hosts: columns sn, cpu_milli, memory_mib, gpu, model.")
@click.option(
    "--pods", type=CSV, required=True, help="The tasks: cpu_milli, memory_mib, num_gpu, gpu_milli, perhaps gpu_spec."
)
@click.option(
    "--inflate",
    type=click.FloatRange(0.01, 100),
    default=1.3,
    show_default=True,
    help="Tasks arrive until they ask for so many times the GPUs of all hosts, drawn anew once the list is over.",
)
@click.option("--seeds", callback=_seeds, metavar="SEEDS", default="42-51", show_default=True, help="One run each.")
@output_option("table", "json")
def openb_command(nodes: Path, pods: Path, inflate: float, seeds: list[int], output: str) -> None:
    """Fill a cluster by the protocol of the FGD paper, and print how much of its GPUs was allocated.

    The files have the columns of Alibaba's openb trace (cluster-trace-gpu-v2023). Tasks come in random order, stay for
    good, and are dropped if they fit nowhere. The policy knows the mix of the list, not the order.
    """
    if math.isnan(inflate):  # which is in every range
        raise click.BadParameter("nan is not a number", param_hint="'--inflate'")
    hosts, tasks = traces.read_hosts(nodes), traces.read_tasks(pods)
    runs = [openb.run(hosts, tasks, inflate, seed) for seed in seeds]
    if output == "json":
        mean = {name: fmean(getattr(run, name) for run in runs) for name in FIGURES}
        click.echo(json.dumps({"mean": mean, "runs": [dataclasses.asdict(run) for run in runs]}, indent=2))
        return
    rows = [[str(run.seed), *_figures([run])] for run in runs]
    table(("SEED", "AT 100 %", "AT 130 %", "DECISIONS/S", "TASKS", "FAILED"), [*rows, ["mean", *_figures(runs)]])


def _figures(runs: Sequence[openb.Run]) -> list[str]:
    at_100, at_130, speed, tasks, failed = (fmean(getattr(run, name) for run in runs) for name in FIGURES)
    return [f"{at_100:.2f}", f"{at_130:.2f}", f"{speed:,.0f}", f"{tasks:.0f}", f"{failed:.0f}"]


simulate.add_command(load_command)
simulate.add_command(whatif_command)
