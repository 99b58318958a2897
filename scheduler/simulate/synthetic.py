"""Made-up loads by a seed: Poisson arrivals, log-normal run times, a mixture of sizes, tenants and priorities.

Arrivals by a Poisson process and run times with a long tail are what models of parallel workloads are built from
(Lublin and Feitelson, "The workload on parallel supercomputers", JPDC 63(11), 2003; Feitelson, "Workload Modeling for
Computer Systems Performance Evaluation", 2015). Each kind of choice has a generator of its own, so that one more tenant
does not change when jobs arrive.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import exp
from typing import TypeVar

from gpupool.errors import InvalidSpec

from ..core.state.facts import QueueIntent
from ..core.state.jobs import Request
from ..core.state.terms import DEFAULT_QUEUE
from .work import IMAGE, Load, SimHost, Task, host_of

CPUS_PER_GPU, MIB_PER_GPU = 16, 131_072  # of a host; a job takes three quarters of it beside each GPU
JOB_CPUS, JOB_MIB = 12, 98_304
MODEL = "synthetic-80gb"
RACK = 8  # hosts
T = TypeVar("T", int, str)


@dataclass(frozen=True, slots=True)
class Synthetic:
    """What is made. Shares are weights of any size, by GPUs, tenant or priority.

    `load`: GPU time asked for in a unit of time, as a part of all GPUs. `declared`: the time limit that jobs declare is
    so many times their run time; 0: none do.
    """

    hosts: int = 32
    gpus_per_host: int = 8
    jobs: int = 2000
    load: float = 0.9
    sizes: Mapping[int, float] = field(default_factory=lambda: {1: 60, 2: 20, 4: 12, 8: 8})
    run_median_s: float = 3600.0
    run_sigma: float = 1.5
    tenants: Mapping[str, float] = field(default_factory=lambda: {DEFAULT_QUEUE: 1})
    priorities: Mapping[int, float] = field(default_factory=lambda: {0: 1})
    preemptible: float = 0.0
    declared: float = 0.0
    seed: int = 42


def load_of(wanted: Synthetic, scale: float = 1.0) -> Load:
    """The load of this seed; with `scale` jobs arrive so many times as fast. Raises InvalidSpec."""
    if wanted.run_median_s <= 0:
        raise InvalidSpec(["--run-median must be more than 0"])
    if max(wanted.sizes) > wanted.gpus_per_host:
        raise InvalidSpec(
            [f"--sizes has {max(wanted.sizes)} GPUs, a host has {wanted.gpus_per_host}: see --gpus-per-host"]
        )
    hosts = [_host(number, wanted.gpus_per_host) for number in range(wanted.hosts)]
    queues = {tenant: QueueIntent(tenant) for tenant in sorted(wanted.tenants) if tenant != DEFAULT_QUEUE}
    told = asdict(wanted)
    said = {"source": "synthetic", "scale": scale} | {name: told[name] for name in told if name != "hosts"}
    for name in ("sizes", "tenants", "priorities"):
        said[name] = {str(key): part for key, part in sorted(told[name].items())}
    return Load(hosts, _tasks(wanted, scale), queues, said)


def _host(number: int, gpus: int) -> SimHost:
    name = f"h{number:04}"
    labels = (("rack", f"r{number // RACK:03}"),)
    return host_of(
        name, gpus, MODEL, cpus=gpus * CPUS_PER_GPU, memory_mib=gpus * MIB_PER_GPU, nodes=min(2, gpus), threads=2,
        labels=labels,
    )  # fmt: skip


def _tasks(wanted: Synthetic, scale: float) -> list[Task]:
    def drawn(what: str) -> random.Random:
        return random.Random(f"{what} {wanted.seed}")  # noqa: S311  (an experiment that can be repeated)

    arrivals, runs, modes = drawn("arrivals"), drawn("runs"), drawn("modes")
    sizes = _choices(drawn("sizes"), wanted.sizes, wanted.jobs)
    tenants = _choices(drawn("tenants"), wanted.tenants, wanted.jobs)
    priorities = _choices(drawn("priorities"), wanted.priorities, wanted.jobs)
    rate = _rate(wanted) * scale
    tasks, at_s = [], 0.0
    for number in range(wanted.jobs):
        run_s = max(1.0, round(wanted.run_median_s * exp(runs.gauss(0.0, wanted.run_sigma)), 3))
        gpus = sizes[number]
        tasks.append(
            Task(
                f"j{number:06}", round(at_s, 3), run_s, Request(IMAGE, gpus, "", 0, gpus * JOB_CPUS, gpus * JOB_MIB),
                tenants[number], tenants[number], priorities[number], modes.random() < wanted.preemptible,
                round(run_s * wanted.declared + 0.5) if wanted.declared else 0,
            )
        )  # fmt: skip
        at_s += arrivals.expovariate(rate)
    return tasks


def _rate(wanted: Synthetic) -> float:
    """Jobs a second, so that on average they ask for `load` of all GPUs: load x GPUs / E[GPUs x run time]."""
    parts = sum(wanted.sizes.values())
    gpus = sum(size * part for size, part in wanted.sizes.items()) / parts
    run_s = wanted.run_median_s * exp(wanted.run_sigma**2 / 2)  # the mean of a log-normal
    return wanted.load * wanted.hosts * wanted.gpus_per_host / (gpus * run_s)


def _choices(rng: random.Random, shares: Mapping[T, float], count: int) -> Sequence[T]:
    names = sorted(shares)
    return rng.choices(names, [shares[name] for name in names], k=count)
