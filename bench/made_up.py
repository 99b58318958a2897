"""Lists that nobody tuned the packing policy on, made of one list's tasks by a seed; needs openb's files.

    GPUPOOL_OPENB=DIR python -m bench.made_up [--seed 42] [--only NAME]

Beside the policy stand what it is without knowledge of the mix (best fit, the fullest host first) and with nothing but
fragmentation, FGD's part of it. Each line: per cent allocated when 100 % / 130 % of the GPUs have been asked for.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scheduler.core.packing import HostSize, Mix, Shape, packer
from scheduler.core.packing.gpus import Pattern
from scheduler.core.packing.sizes import WHOLE, Totals
from scheduler.core.packing.worth import EVER, Worth
from scheduler.simulate import openb, traces

SEED = 7  # of the lists


class Fragmentation(Worth):
    """Sees no cores or memory but where the next task would not fit."""

    def __init__(self, mix: Mix, models: frozenset[str], fleet: Totals) -> None:
        super().__init__(mix, models, fleet)
        self._a_core = self._a_mib = EVER


class Nothing(Worth):
    """All hosts are alike, so the fullest that is first by name takes the task."""

    def least(self, _kind: int, _cpu: int, _memory: int, able: tuple[Pattern, ...]) -> tuple[float, Pattern]:
        """Nothing."""
        return 0.0, able[0]

    def whole_host(self, *_: object) -> float:
        """Nothing."""
        return 0.0


@contextmanager
def policy(worth: type[Worth]) -> Iterator[None]:
    """Packers are made with this one meanwhile, and without prices."""
    names = vars(packer)
    before = {name: names[name] for name in ("Worth", "prices")}
    names.update(Worth=worth, prices=lambda _, free: [0.0] * len(free))
    try:
        yield
    finally:
        names.update(before)


def lists(tasks: Sequence[Shape], named: Sequence[tuple[str, ...]]) -> dict[str, list[Shape]]:
    """By name. `named`: the models that tasks name, each as often as they do."""
    rng = random.Random(SEED)
    none = [task for task in tasks if not task.gpu_milli]
    slices = [task for task in tasks if 0 < task.gpu_milli < WHOLE]
    ones = [task for task in tasks if task.gpu_milli == WHOLE]
    wide = [task for task in tasks if task.gpu_milli > WHOLE]
    one, gpus = len(slices) + len(ones), slices + ones + wide

    def sliced(part: float) -> list[Shape]:
        return none + wide + rng.choices(slices, k=int(part * one)) + rng.choices(ones, k=one - int(part * one))

    def with_wide(part: float) -> list[Shape]:
        wanted = part / (1 - part) * sum(task.gpu_milli for task in slices + ones)
        found: list[Shape] = []
        while sum(task.gpu_milli for task in found) < wanted:
            found.append(rng.choice(wide))
        return none + slices + ones + found

    def naming(part: float) -> list[Shape]:
        return [t._replace(models=rng.choice(named)) if t.gpu_milli and rng.random() < part else t for t in tasks]

    return {
        "no tasks without GPU": gpus,
        "twice as many tasks without GPU": gpus + 2 * none,
        "2.5 times as many": gpus + 2 * none + rng.sample(none, len(none) // 2),
        "slices are 60 % of the tasks for one GPU": sliced(0.6),
        "they are 80 %": sliced(0.8),
        "nothing but slices": rng.choices(slices, k=len(tasks)),
        "multi-GPU tasks ask for 30 % of the GPUs": with_wide(0.3),
        "multi-GPU tasks ask for 50 %": with_wide(0.5),
        "20 % name a model": naming(0.2),
        "60 % name a model": naming(0.6),
    }


def measure(hosts: Sequence[HostSize], tasks: Sequence[Shape], seed: int) -> str:
    """As in the table."""
    found = openb.run(hosts, tasks, 1.3, seed)
    return f"{found.alloc_pct_at_100:.1f} / {found.alloc_pct_at_130:.1f}"


def main(tell: Callable[[str], None] = print) -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--only", default="", help="lists whose name has this in it")
    options = parser.parse_args()
    folder = Path(os.environ["GPUPOOL_OPENB"])
    hosts = traces.read_hosts(folder / "openb_node_list_gpu_node.csv")
    tasks = traces.read_tasks(folder / "openb_pod_list_default.csv")
    named = [task.models for task in traces.read_tasks(folder / "openb_pod_list_gpuspec33.csv") if task.models]
    tell("| made-up list | no mix | fragmentation alone | gpupool |")
    tell("|---|---|---|---|")
    for name, made in lists(tasks, named).items():
        if options.only not in name:
            continue
        with policy(Nothing):
            cells = [measure(hosts, made, options.seed)]
        with policy(Fragmentation):
            cells.append(measure(hosts, made, options.seed))
        tell(" | ".join([f"| {name}", *cells, f"{measure(hosts, made, options.seed)} |"]))


if __name__ == "__main__":
    main()
