"""Train a small neural network with plain numpy, in a way that survives being stopped at any moment.

It decides: the data, the batches (both from the seed and the step number alone, so a resumed run repeats an
uninterrupted one bit by bit) and when to save. It must never leave half a checkpoint under a checkpoint's name, and
never resume from one that does not match its own digest.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
import zlib
from pathlib import Path

import numpy as np

TYPE_CHECKING = False
if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

N_INPUTS, N_HIDDEN, N_SAMPLES, N_BATCH = 16, 32, 512, 64
LEARNING_RATE, MOMENTUM = 0.05, 0.9
KEEP = 2  # checkpoints: the newest may turn out to be unreadable
SHAPES = {"w1": (N_INPUTS, N_HIDDEN), "b1": (N_HIDDEN,), "w2": (N_HIDDEN, 1), "b2": (1,)}


class Model:
    """A two-layer perceptron for regression, its momentum, and the number of steps taken."""

    def __init__(self, seed: int) -> None:
        draw = np.random.RandomState(seed)
        self.params = {name: draw.normal(0.0, 0.3, shape) for name, shape in SHAPES.items()}
        self.momentum = {name: np.zeros(shape) for name, shape in SHAPES.items()}
        self.step = 0

    def train(self, x: Array, y: Array) -> float:
        """One step of SGD on a batch; the mean squared error before it."""
        p = self.params
        hidden = np.tanh(x @ p["w1"] + p["b1"])
        error = hidden @ p["w2"] + p["b2"] - y
        back = (error @ p["w2"].T) * (1.0 - hidden * hidden)
        scale = 2.0 / len(x)
        gradients = {"w1": x.T @ back, "b1": back.sum(axis=0), "w2": hidden.T @ error, "b2": error.sum(axis=0)}
        for name, gradient in gradients.items():
            self.momentum[name] = MOMENTUM * self.momentum[name] - LEARNING_RATE * scale * gradient
            p[name] = p[name] + self.momentum[name]
        self.step += 1
        return float(np.mean(error * error))


def make_data(seed: int) -> tuple[Array, Array]:
    """Inputs (samples, features) and targets (samples, 1) of a smooth function to learn."""
    draw = np.random.RandomState(seed + 1)
    x = draw.normal(size=(N_SAMPLES, N_INPUTS))
    return x, np.sin(x @ draw.normal(size=(N_INPUTS, 1))) * 0.5


def batch_of(step: int, seed: int) -> NDArray[np.intp]:
    """The samples of a step, from nothing but its number and the seed."""
    return np.random.RandomState((seed * 1_000_003 + step) % 2**32).randint(0, N_SAMPLES, N_BATCH)


def save(model: Model, folder: Path) -> None:
    """Write a checkpoint so that a crash at any point leaves either all of it or none."""
    arrays = [*model.params.values(), *model.momentum.values()]
    body = b"".join(array.astype("<f8").tobytes() for array in arrays)
    header = f"gpupool-checkpoint 1 step {model.step} crc {zlib.crc32(body):08x}\n".encode()
    target = folder / f"step-{model.step:09d}.ckpt"
    partial = folder / f".{target.name}.tmp"
    with partial.open("wb") as file:
        file.write(header + body)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(target)
    sync_folder(folder)
    for old in sorted(folder.glob("step-*.ckpt"))[:-KEEP]:
        old.unlink()


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def load_newest(model: Model, folder: Path) -> bool:
    """Restore the newest checkpoint that is whole; False when there is none."""
    return any(load(model, path) for path in sorted(folder.glob("step-*.ckpt"), reverse=True))


def load(model: Model, path: Path) -> bool:
    """Restore one checkpoint; False, and the model as it was, when it is damaged."""
    header, _, body = path.read_bytes().partition(b"\n")
    words = header.decode("ascii", "replace").split()
    if words[:2] != ["gpupool-checkpoint", "1"] or words[-1] != f"{zlib.crc32(body):08x}":
        return False
    values, start = np.frombuffer(body, "<f8"), 0
    for group in (model.params, model.momentum):
        for name, shape in SHAPES.items():
            size = int(np.prod(shape))
            group[name] = values[start : start + size].reshape(shape).copy()
            start += size
    model.step = int(words[3])
    return True


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a small network; resumes by itself.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--checkpoint-every", type=int, default=50, help="steps; 0: only when asked and at the end")
    parser.add_argument("--checkpoint-dir", type=Path, default=None, help="without it nothing is saved")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--step-delay-s", type=float, default=0.0, help="pause after each step")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Train to the end, saving on the way and whenever SIGUSR1 asks for it."""
    args = parse_arguments(argv)
    asked: list[int] = []
    signal.signal(signal.SIGUSR1, lambda signum, _: asked.append(signum))
    model, folder = Model(args.seed), args.checkpoint_dir
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    if folder is not None and load_newest(model, folder):
        print(f"resumed from checkpoint at step {model.step}", flush=True)
    else:
        print("starting at step 0", flush=True)
    x, y = make_data(args.seed)
    while model.step < args.steps:
        rows = batch_of(model.step, args.seed)
        loss = model.train(x[rows], y[rows])
        print(f"step {model.step} loss {loss:.6f}", flush=True)
        pause(args.step_delay_s, asked)
        due = args.checkpoint_every > 0 and model.step % args.checkpoint_every == 0
        if folder is not None and (due or asked or model.step == args.steps):
            requested = bool(asked)
            asked.clear()
            save(model, folder)
            if requested:
                acknowledge()
    hidden = np.tanh(x @ model.params["w1"] + model.params["b1"])
    final = float(np.mean((hidden @ model.params["w2"] + model.params["b2"] - y) ** 2))
    print(f"final loss {final!r} at step {model.step}", flush=True)


def pause(delay_s: float, asked: list[int]) -> None:
    """Wait, but not longer than until somebody asks for a checkpoint (a signal alone does not end a sleep)."""
    until = time.monotonic() + delay_s
    while not asked and (left_s := until - time.monotonic()) > 0:
        time.sleep(min(left_s, 0.05))


def acknowledge() -> None:
    """Tell whoever sent SIGUSR1 that the checkpoint is on disk."""
    mark = os.environ.get("GPUPOOL_CHECKPOINT_DONE")
    if mark:
        Path(mark).touch()


if __name__ == "__main__":
    main()
