"""`gpupool simulate load`: figures known by hand, the trace's reading, what it prints, and bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpupool.cli import app
from gpupool.errors import InvalidSpec
from scheduler.simulate import replay, synthetic
from scheduler.simulate.failures import Failing
from scheduler.simulate.load import Replay, Settings
from scheduler.simulate.metrics import buckets, jain, spread
from scheduler.simulate.recorder import Point
from scheduler.simulate.vms import Pace

NODES = "sn,cpu_milli,memory_mib,gpu,model\nn1,8000,16384,2,T4\n"
COLUMNS = (
    "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time"
)
# A has the host for 100 s, B and C wait for it; D comes when it is empty.
PODS = (
    "a,2000,1024,2,1000,,LS,Succeeded,1000,1100,1000",
    "b,1000,1024,1,1000,,LS,Succeeded,1010,1150,1100",
    "c,1000,1024,1,1000,,BE,Succeeded,1010,1120,1100",
    "d,500,1024,1,300,T4|G2,BE,Running,1160,1165,1160",
)
AT_ONCE = ("--start", "0", "--reclaim", "0")
Files = Callable[..., tuple[Path, Path]]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    def write(*pods: str, nodes: str = NODES, columns: str = COLUMNS) -> tuple[Path, Path]:
        paths = tmp_path / "nodes.csv", tmp_path / "pods.csv"
        paths[0].write_text(nodes)
        paths[1].write_text("".join(f"{line}\n" for line in (columns, *(pods or PODS))))
        return paths

    return write


def simulate(paths: tuple[Path, Path], *more: str) -> int:
    return app.run(["simulate", "load", "--nodes", str(paths[0]), "--pods", str(paths[1]), *more])


def figures(paths: tuple[Path, Path], capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    assert simulate(paths, "-o", "json", *AT_ONCE, *more) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_figures_are_as_by_hand(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    """A runs 0 to 100, C 100 to 120, B 100 to 150, D 160 to 165; the last arrival is at 160."""
    found = figures(files(), capsys)
    assert found["waiting_s"] == {"count": 4, "mean": 45.0, "median": 45.0, "p95": 90.0, "max": 90.0}
    # A 1, B 140/50, C 110/20, D 5/10, which counts as 1
    assert found["bounded_slowdown"] == {"count": 4, "mean": 2.575, "median": 1.9, "p95": 5.5, "max": 5.5}
    assert found["load"]["window_s"] == 160.0
    assert found["load"]["end_s"] == 165.0
    assert found["utilisation"]["running_pct"] == round(100 * (2 * 100 + 50 + 20) / (2 * 160), 4)
    assert found["utilisation"]["waiting_jobs"] == 2 * 90 / 160
    assert found["gpu_hours"] == {"done": round(275 / 3600, 4), "done_in_vain": 0.0}
    assert found["jobs"]["succeeded"] == 4
    assert found["by_gpus"]["2"]["waiting_s"]["max"] == 0.0
    assert found["load"]["slices_rounded_up"] == 1


def test_service_and_slowdown_are_shared_as_by_hand(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    """Queue ls has A and B, queue be C and D: each gets all its GPU time within the window, but slowdowns differ."""
    found = figures(files(), capsys, "--queue-from", "qos")["fairness"]
    assert found["tenants"]["ls"] == {"mean_bounded_slowdown": 1.9, "service": 1.0}
    assert found["tenants"]["be"] == {"mean_bounded_slowdown": 3.25, "service": 1.0}
    assert found["jain_slowdown"] == round((1.9 + 3.25) ** 2 / (2 * (1.9**2 + 3.25**2)), 4)


def test_a_dead_host_costs_a_restart_and_work(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    one = files("a,2000,1024,1,1000,,LS,Succeeded,0,100,0", "b,2000,1024,1,1000,,LS,Succeeded,50,51,50")
    found = figures(one, capsys, "--host-failures", "1", "--repair", "60", "--lease", "5")
    assert found["host_failures"] == 1
    assert found["restarts_after_host_loss"] == 1  # it fails before the last arrival, at 50
    assert found["jobs"]["succeeded"] == 2
    assert found["gpu_hours"]["done_in_vain"] > 0
    saved = figures(one, capsys, "--host-failures", "1", "--repair", "60", "--lease", "5", "--checkpoint", "1")
    assert 0 < saved["gpu_hours"]["done_in_vain"] <= 0.0003 < found["gpu_hours"]["done_in_vain"]


def test_what_dies_with_a_host_runs_no_longer() -> None:
    load = synthetic.load_of(synthetic.Synthetic(hosts=2, jobs=40, run_median_s=600.0))
    run = Replay(load, Settings(failing=Failing(count=4), check=True))
    assert run.run()["restarts_after_host_loss"] > 0
    assert run.agents.running_gpus == 0


def test_a_job_stops_for_a_higher_priority() -> None:
    wanted = synthetic.Synthetic(
        hosts=2, jobs=200, load=1.2, priorities={0: 8, 10: 2}, preemptible=1.0, run_median_s=600.0
    )
    found = Replay(synthetic.load_of(wanted), Settings(check=True)).run()
    assert found["preemptions"] > 0
    assert found["by_priority"]["10"]["waiting_s"]["mean"] < found["by_priority"]["0"]["waiting_s"]["mean"]
    assert found["jobs"]["succeeded"] == 200
    assert found["gpu_hours"]["done_in_vain"] == 0.0
    lost = Replay(synthetic.load_of(wanted), Settings(pace=Pace(keeps_work=False))).run()
    assert lost["gpu_hours"]["done_in_vain"] > 0


def test_limits_that_are_declared_let_others_pass() -> None:
    wanted = synthetic.Synthetic(hosts=2, jobs=150, load=1.3, declared=1.5, run_median_s=600.0)
    found = Replay(synthetic.load_of(wanted), Settings(check=True)).run()
    assert (found["jobs"]["succeeded"], found["jobs"]["failed"]) == (150, 0)
    short = synthetic.Synthetic(hosts=2, jobs=50, declared=0.5, run_median_s=600.0)
    assert Replay(synthetic.load_of(short), Settings(check=True)).run()["jobs"]["failed"] == 50


def test_the_load_factor_is_what_arrives() -> None:
    load = synthetic.load_of(synthetic.Synthetic(hosts=16, jobs=20_000, load=0.8, run_sigma=0.5))
    asked = sum(task.request.gpus * task.run_s for task in load.tasks)
    assert asked / (load.gpus * load.tasks[-1].at_s) == pytest.approx(0.8, rel=0.03)
    assert load.tasks[0].at_s == 0.0
    twice = synthetic.load_of(synthetic.Synthetic(hosts=16, jobs=20_000, load=0.8, run_sigma=0.5), 2.0)
    assert twice.tasks[-1].at_s == pytest.approx(load.tasks[-1].at_s / 2)
    assert [task.run_s for task in twice.tasks] == [task.run_s for task in load.tasks]


def test_one_more_tenant_moves_no_arrival() -> None:
    one = synthetic.load_of(synthetic.Synthetic(jobs=50))
    two = synthetic.load_of(synthetic.Synthetic(jobs=50, tenants={"a": 1, "b": 1}))
    assert [(t.at_s, t.run_s, t.request) for t in one.tasks] == [(t.at_s, t.run_s, t.request) for t in two.tasks]


def test_same_input_same_bytes(files: Files) -> None:
    nodes, pods = files()
    command = [
        sys.executable, "-m", "gpupool", "simulate", "load", "--nodes", str(nodes), "--pods", str(pods), "-o", "json",
        "--queue-from", "qos", "--mtbf-h", "0.01", "--repair", "20",
    ]  # fmt: skip
    outs = {
        subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, check=True, capture_output=True).stdout
        for seed in ("1", "2")
    }
    assert len(outs) == 1


def test_what_cannot_be_replayed_is_counted(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    paths = files(
        "a,2000,1024,1,1000,,LS,Succeeded,0,100,0",
        "b,2000,1024,1,1000,,LS,Pending,5,50,",
        "c,2000,1024,1,1000,,LS,Running,10,,20",
        "d,2000,1024,1,500,,LS,Succeeded,10,30,20",
        "e,2000,1024,4,1000,,LS,Succeeded,10,30,20",
    )
    found = figures(paths, capsys, "--slices", "leave-out")
    assert {name: found["load"][name] for name in replay.COUNTED} == {
        "never_ran": 1, "still_running": 2, "slices_rounded_up": 0, "slices_left_out": 1,
        "parts_of_cpus_rounded_up": 0, "outside": 0,
    }  # fmt: skip
    assert found["jobs"]["refused"] == 1  # no host has four GPUs
    assert found["jobs"]["succeeded"] == 2
    assert figures(paths, capsys, "--begin", "5s", "--end", "11s")["load"]["outside"] == 1


def test_scale_makes_arrivals_faster_and_nothing_else(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(files(), capsys, "--scale", "10")
    assert found["load"]["window_s"] == 16.0
    assert found["gpu_hours"]["done"] == round(275 / 3600, 4)


def test_until_ends_it(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(files(), capsys, "--until", "110s")
    assert found["load"]["end_s"] == 110.0
    assert (found["jobs"]["submitted"], found["jobs"]["unfinished"]) == (3, 2)


def test_quotas_come_as_they_are_printed(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queues = tmp_path / "queues.json"
    queues.write_text('[{"name": "ls", "settings": {"limit": {"gpus": 1}}}]')
    found = figures(files(), capsys, "--queue-from", "qos", "--queues", str(queues))
    assert found["jobs"]["refused"] == 1  # A wants two
    queues.write_text('[{"name": "ls", "settings": {"limit": {"gpsu": 1}}}]')
    assert simulate(files(), "--queues", str(queues)) == 2
    assert "queues.json: queue 1 of 1:" in capsys.readouterr().err
    for text, said in (("{}", "a list of queues is wanted"), ("[1]", "it is no mapping"), ("[{", "queues.json:")):
        queues.write_text(text)
        assert simulate(files(), "--queues", str(queues)) == 2
        assert said in capsys.readouterr().err


def test_a_table_by_default(files: Files, capsys: pytest.CaptureFixture[str], pytestconfig: pytest.Config) -> None:
    assert simulate(files(), *AT_ONCE, "--queue-from", "qos") == 0
    golden = Path(__file__).resolve().parents[1] / "golden_cli" / "simulate_load.txt"
    found = capsys.readouterr().out
    if pytestconfig.getoption("--rewrite"):
        golden.write_text(found)
    assert found == golden.read_text()


@pytest.mark.parametrize(
    ("pod", "said"),
    [
        ("a,2000,1024,1,1000,,LS,Running,x,100,0", "line 3: creation_time is 'x'"),
        ("a,2000,1024,1,1000,,LS,Running,10,100,5", "line 3: scheduled_time is 5, before creation_time, 10"),
        ("a,2000,1024,1,1000,,LS,Running,10,15,20", "line 3: deletion_time is 15, before scheduled_time, 20"),
        ("a,2000,1024,1,1000,,LS,Running,10,1e3,20", "line 3: deletion_time is '1e3'"),
        ("a,2000,1024,1,1000,,LS,Running,10", "line 3: it has not as many fields as line 1"),
        ("a,2000,1024,1,2000,,LS,Running,10,30,20", "line 3: gpu_milli is 2000"),
        ("a,2000,1024,1,1000,,L S,Running,10,30,20", "line 3: qos: bad queue name 'l s'"),
    ],
)
def test_a_malformed_trace_is_refused_by_line(
    files: Files, capsys: pytest.CaptureFixture[str], pod: str, said: str
) -> None:
    assert simulate(files(PODS[0], pod), "--queue-from", "qos") == 2
    err = capsys.readouterr().err
    assert said in err
    assert "pods.csv" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a trace with --nodes and --pods, or make jobs up with --synthetic"),
        (["--nodes", "x"], "name a trace with --nodes and --pods"),
        (["--synthetic", "--pods", "x"], "--pods: --synthetic takes no trace"),
        (["--jobs", "5"], "--jobs: it is for --synthetic"),
        (["--synthetic", "--load", "nan"], "'nan' is not a number from 0.001 to 100"),
        (["--synthetic", "--sizes", "1:60,1:2"], "each name once"),
        (["--synthetic", "--sizes", "0:60"], "0 is not from 1 to 64"),
        (["--synthetic", "--sizes", "16", "--jobs", "5"], "--sizes has 16 GPUs, a host has 8: see --gpus-per-host"),
        (["--synthetic", "--run-median", "0"], "--run-median must be more than 0"),
        (["--synthetic", "--repair", "9" * 400 + "d"], "is more than 100 years"),
        (["--synthetic", "--tenants", "A B:1"], "bad queue name 'A B'"),
        (["--synthetic", "--priorities", "2000"], "2000 is not from -1000 to 1000"),
        (["--synthetic", "--policy", "/nonexistent"], "/nonexistent"),
        (["--synthetic", "--plot", "x.pdf"], "the name must end in .png or .svg"),
        (["--synthetic", "--plot", "/nonexistent/x.svg"], "there is no directory /nonexistent"),
    ],
)
def test_bad_options_say_what_to_do(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert app.run(["simulate", "load", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_trace_of_what_never_ran_is_refused(files: Files) -> None:
    nodes, pods = files("b,2000,1024,1,1000,,LS,Pending,5,50,")
    with pytest.raises(InvalidSpec, match="nothing to replay"):
        replay.load_of(nodes, pods, replay.Reading())


def test_spread_is_by_nearest_rank() -> None:
    assert spread([None, *map(float, range(1, 101))]) == {
        "count": 100, "mean": 50.5, "median": 50.5, "p95": 95.0, "max": 100.0
    }  # fmt: skip
    assert spread([]) == {"count": 0, "mean": None, "median": None, "p95": None, "max": None}


def test_jain() -> None:
    assert jain([3.0, 3.0, 3.0]) == 1.0
    assert jain([1.0, 0.0, 0.0, 0.0]) == 0.25
    assert jain([]) is None


def test_buckets_weigh_by_time() -> None:
    points = [Point(at_s, used, 0, 0, 0, 0, ()) for at_s, used in ((0.0, 2), (2.5, 4), (9.0, 0))]
    assert buckets(points, lambda point: point.running, 0.0, 10.0, 2) == [(2 * 2.5 + 4 * 2.5) / 5, 4 * 4 / 5]
    assert buckets(points, lambda point: point.running, 0.0, 0.0, 2) == [0.0, 0.0]


def test_plots_repeat_to_the_byte(files: Files, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = []
    for turn in ("1", "2"):
        paths = [tmp_path / f"{turn}.svg", tmp_path / f"{turn}.png"]
        assert simulate(files(), *(word for path in paths for word in ("--plot", str(path)))) == 0
        drawn.append([path.read_bytes() for path in paths])
    assert drawn[0] == drawn[1]
    assert b"<svg" in drawn[0][0]
    assert drawn[0][1].startswith(b"\x89PNG")
