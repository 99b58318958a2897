"""Plots of a simulated load, from its figures: what is in use, who waits, what is fragmented, how long each size waits.

matplotlib is asked for only here, and only if a plot is wanted. Same figures, same bytes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

SUFFIXES = (".png", ".svg")


def ready(paths: Sequence[Path]) -> None:
    """Raises UsageError if these plots could not be drawn: better before an hour's run than after it."""
    for path in paths:
        if path.suffix.lower() not in SUFFIXES:
            raise click.UsageError(f"--plot {path}: the name must end in {' or '.join(SUFFIXES)}")
        if not path.parent.is_dir():
            raise click.UsageError(f"--plot {path}: there is no directory {path.parent}")
    if paths and importlib.util.find_spec("matplotlib") is None:
        raise click.UsageError("--plot needs matplotlib; install it with: pip install 'gpupool[plot]'")


def draw(figures: Mapping[str, Any], paths: Sequence[Path]) -> None:
    """Write the plots. Raises UsageError for a file that cannot be written."""
    if not paths:
        return
    import matplotlib as mpl  # noqa: PLC0415  (an extra)
    from matplotlib.figure import Figure  # noqa: PLC0415

    mpl.rcParams.update({"svg.hashsalt": "gpupool", "svg.fonttype": "none", "path.simplify": True})
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    series = figures["series"]
    unit, name = _unit(figures["load"]["window_s"])
    at = [at_s / unit for at_s in series["at_s"]]
    _in_use(axes[0][0], at, series)
    _waiting(axes[0][1], at, series)
    axes[1][0].plot([s / unit for s in series["fragmentation_at_s"]], series["fragmented_pct_of_free"], lw=1)
    axes[1][0].set(title="fragmented, % of free GPUs", ylim=(0, 100), xlabel=name)
    _by_size(axes[1][1], figures["by_gpus"])
    for axis in (axes[0][0], axes[0][1]):
        axis.set_xlabel(name)
    for path in paths:
        plain = {"Date": None} if path.suffix.lower() == ".svg" else {"Software": None}
        try:
            figure.savefig(path, metadata=plain)
        except OSError as error:
            raise click.UsageError(f"--plot {path}: {error.strerror}") from None


def _in_use(axis: Any, at: Sequence[float], series: Mapping[str, Any]) -> None:
    axis.plot(at, series["allocated_pct"], lw=1, label="allocated")
    axis.plot(at, series["running_pct"], lw=1, label="running")
    axis.set(title="GPUs in use, %", ylim=(0, 100))
    axis.legend(loc="lower right")


def _waiting(axis: Any, at: Sequence[float], series: Mapping[str, Any]) -> None:
    axis.plot(at, series["waiting_jobs"], lw=1, label="jobs")
    axis.plot(at, series["waiting_gpus"], lw=1, label="GPUs that they ask for")
    axis.set(title="waiting")
    axis.set_ylim(bottom=0)
    axis.legend(loc="upper left")


def _by_size(axis: Any, groups: Mapping[str, Any]) -> None:
    known = [(size, group["waiting_s"]) for size, group in groups.items() if group["waiting_s"]["count"]]
    places = range(len(known))
    axis.bar([place - 0.2 for place in places], [waits["mean"] for _, waits in known], 0.4, label="mean")
    axis.bar([place + 0.2 for place in places], [waits["p95"] for _, waits in known], 0.4, label="95 %")
    axis.set_xticks(list(places), [size for size, _ in known])
    axis.set(title="waiting time, s, by GPUs of the job", xlabel="GPUs")
    axis.set_yscale("symlog", linthresh=10)
    axis.legend(loc="upper left")


def _unit(window_s: float) -> tuple[float, str]:
    if window_s > 4 * 86400:
        return 86400.0, "days"
    return (3600.0, "hours") if window_s > 4 * 3600 else (60.0, "minutes")
