"""What no policy can exceed on an openb list, by relaxation: needs scipy, which gpupool does not.

    python -m bench.bound --nodes CSV --pods CSV [--arrived 1.0]

The expected tasks may be cut and spread over all hosts of a kind; each kind's cores and memory are one pool. GPUs are
exact: a GPU holds a whole task's share or a set of slices that fits (cutting patterns, found by column generation).
The solver chooses which tasks to drop, which no policy may. So it is an upper bound of the mean over seeds (by Jensen's
inequality), and not a tight one where much must be dropped. HiGHS solves it.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import lil_matrix

from scheduler.core.packing.sizes import WHOLE, HostSize, NodeSize, Shape
from scheduler.simulate import traces


def bound(hosts: list[HostSize], tasks: list[Shape], arrived: float) -> float:
    """Per cent of the GPUs."""
    kinds = Counter((host.model, host.nodes[0]) for host in hosts)
    capacity = WHOLE * sum(host.gpus for host in hosts)
    scale = arrived * capacity / sum(task.gpu_milli for task in tasks)
    demand = {shape: count * scale for shape, count in Counter(tasks).items()}
    slices = sorted({shape.gpu_milli for shape in demand if 0 < shape.gpu_milli < WHOLE})
    patterns: list[dict[int, int]] = [{size: WHOLE // size} for size in slices]
    while True:
        value, worth = _solve(kinds, demand, slices, patterns)
        found = [pattern for price in worth if (pattern := _best(slices, price)) and pattern not in patterns]
        if not found:
            return 100 * value / capacity
        for pattern in found:
            if pattern not in patterns:
                patterns.append(pattern)


def _solve(
    kinds: Counter[tuple[str, NodeSize]], demand: dict[Shape, float], slices: list[int], patterns: list[dict[int, int]]
) -> tuple[float, list[dict[int, float]]]:
    """The value, and for each kind of host what a slice of each size is worth in a GPU, less what a GPU is."""
    shapes, hosts = sorted(demand), sorted(kinds, key=repr)
    columns = [(shape, kind) for kind in hosts for shape in shapes if shape.allows(kind[0])]
    first_pattern = len(columns)
    size = first_pattern + len(hosts) * len(patterns)
    rows = len(hosts) * (3 + len(slices)) + len(shapes)
    matrix, right, gain = lil_matrix((rows, size)), np.zeros(rows), np.zeros(size)
    number = {shape: n for n, shape in enumerate(shapes)}
    base = {kind: n * (3 + len(slices)) for n, kind in enumerate(hosts)}
    for kind, row in base.items():
        node = kind[1]
        right[row : row + 3] = [kinds[kind] * amount for amount in (node.cpu_milli, node.memory_mib, node.gpus)]
    for column, (shape, kind) in enumerate(columns):
        row = base[kind]
        gain[column] = -shape.gpu_milli
        matrix[row, column], matrix[row + 1, column] = shape.cpu_milli, shape.memory_mib
        if shape.gpu_milli >= WHOLE:
            matrix[row + 2, column] = shape.gpu_milli / WHOLE
        elif shape.gpu_milli:
            matrix[row + 3 + slices.index(shape.gpu_milli), column] = 1
        matrix[rows - len(shapes) + number[shape], column] = 1
    for n, kind in enumerate(hosts):
        for p, pattern in enumerate(patterns):
            column = first_pattern + n * len(patterns) + p
            matrix[base[kind] + 2, column] = 1
            for piece, count in pattern.items():
                matrix[base[kind] + 3 + slices.index(piece), column] = -count
    right[rows - len(shapes) :] = [demand[shape] for shape in shapes]
    solved = linprog(gain, A_ub=matrix.tocsr(), b_ub=right, method="highs")
    assert solved.status == 0, solved.message
    prices = -solved.ineqlin.marginals
    worth = [
        {piece: prices[row + 3 + n] for n, piece in enumerate(slices)} | {WHOLE: prices[row + 2]}
        for row in base.values()
    ]
    return -solved.fun, worth


def _best(slices: list[int], price: dict[int, float]) -> dict[int, int] | None:
    """The set of slices that is worth more than a GPU, the most (a knapsack); None: there is none."""
    value, taken = [0.0] * (WHOLE + 1), [0] * (WHOLE + 1)
    for room in range(1, WHOLE + 1):
        value[room] = value[room - 1]
        for piece in slices:
            if piece <= room and value[room - piece] + price[piece] > value[room] + 1e-9:
                value[room], taken[room] = value[room - piece] + price[piece], piece
    if value[WHOLE] <= price[WHOLE] + 1e-6:
        return None
    pattern: Counter[int] = Counter()
    room = WHOLE
    while room > 0:
        pattern[taken[room]] += 1
        room -= taken[room] or 1
    del pattern[0]
    return dict(pattern)


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=Path, required=True)
    parser.add_argument("--pods", type=Path, required=True)
    parser.add_argument("--arrived", type=float, default=1.0)
    options = parser.parse_args()
    hosts, tasks = traces.read_hosts(options.nodes), traces.read_tasks(options.pods)
    print(f"{bound(hosts, tasks, options.arrived):.2f}")


if __name__ == "__main__":
    main()
