"""The guest's training program: a run cut short and resumed ends bit for bit like one left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TRAIN = Path(__file__).parents[2] / "deploy" / "guest" / "train.py"


def command(folder: Path | None, steps: int, *more: str) -> list[str]:
    words = [sys.executable, str(TRAIN), "--steps", str(steps), "--seed", "7", *more]
    return words if folder is None else [*words, "--checkpoint-dir", str(folder)]


def train(folder: Path | None, steps: int, *more: str) -> list[str]:
    done = subprocess.run(command(folder, steps, *more), capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.splitlines()


def test_loss_falls_and_a_run_repeats_itself() -> None:
    first = train(None, 60)
    assert first[0] == "starting at step 0"
    assert first[1].startswith("step 1 loss ")
    assert first[-1].endswith("at step 60")
    assert float(first[60].split()[-1]) < float(first[1].split()[-1])
    assert train(None, 60) == first


def test_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = train(None, 60)
    train(tmp_path, 33, "--checkpoint-every", "10")
    resumed = train(tmp_path, 60)
    assert resumed[0] == "resumed from checkpoint at step 33"
    assert resumed[1:] == whole[34:]


def test_killed_run_resumes_from_its_last_checkpoint(tmp_path: Path) -> None:
    arguments = command(tmp_path, 10_000, "--checkpoint-every", "10", "--step-delay-s", "0.01")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 25 "):
                break
        process.kill()
    resumed = train(tmp_path, 60)
    assert resumed[0].startswith("resumed from checkpoint at step ")
    assert int(resumed[0].split()[-1]) % 10 == 0
    assert resumed[-1] == train(None, 60)[-1]


def test_damaged_and_half_written_checkpoints_are_passed_over(tmp_path: Path) -> None:
    train(tmp_path, 20, "--checkpoint-every", "10")
    newest = tmp_path / "step-000000020.ckpt"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    (tmp_path / ".step-000000030.ckpt.tmp").write_bytes(b"half")
    (tmp_path / "step-000000025.ckpt").write_bytes(b"")
    resumed = train(tmp_path, 20)
    assert resumed[0] == "resumed from checkpoint at step 10"
    assert resumed[-1] == train(None, 20)[-1]


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    train(tmp_path, 40, "--checkpoint-every", "10")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000030.ckpt", "step-000000040.ckpt"]


def test_a_request_saves_at_once_and_is_acknowledged(tmp_path: Path) -> None:
    mark, folder = tmp_path / "done", tmp_path / "checkpoints"
    arguments = command(folder, 1000, "--checkpoint-every", "0", "--step-delay-s", "20")
    env = os.environ | {"GPUPOOL_CHECKPOINT_DONE": str(mark)}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "starting at step 0\n"
        assert process.stdout.readline().startswith("step 1 ")
        process.send_signal(signal.SIGUSR1)
        stop_at = time.monotonic() + 10
        while not mark.exists() and time.monotonic() < stop_at:
            time.sleep(0.01)
        saved = [path.name for path in folder.glob("step-*")]
        process.kill()
    assert mark.exists()
    assert saved == ["step-000000001.ckpt"]
