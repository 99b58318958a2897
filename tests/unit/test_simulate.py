"""`gpupool simulate openb`: the protocol, what it prints, and traces that are not as they must be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from gpupool.cli import app
from scheduler.core.packing import Shape
from scheduler.simulate import openb, traces

GOLDEN = Path(__file__).resolve().parents[1] / "golden_cli" / "simulate_openb.txt"
NODES = "sn,cpu_milli,memory_mib,gpu,model\nn1,64000,262144,2,P100\nn2,96000,393216,8,G2\nn3,104000,524288,2,T4\n"
PODS = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos\n" + "".join(
    f"p{n},{line},LS\n"
    for n, line in enumerate(
        [
            "12000,16384,1,1000,",
            "6000,12288,1,460,",
            "11000,8192,1,470,T4|G2",
            "32000,65536,0,0,",
            "16000,65536,2,1000,G2",
        ]
        * 3
    )
)
Files = Callable[..., tuple[Path, Path]]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    def write(nodes: str | bytes = NODES, pods: str | bytes = PODS) -> tuple[Path, Path]:
        paths = tmp_path / "nodes.csv", tmp_path / "pods.csv"
        for path, text in zip(paths, (nodes, pods), strict=True):
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return paths

    return write


def simulate(paths: tuple[Path, Path], *more: str) -> int:
    return app.run(["simulate", "openb", "--nodes", str(paths[0]), "--pods", str(paths[1]), *more])


def test_the_table_is_as_it_was(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(files(), "--seeds", "42-43,7") == 0
    out = capsys.readouterr().out
    lines = [re.sub(r" +", " ", re.sub(r"[\d,]+(?= +\d+ +\d+ *$)", "N", line)).strip() for line in out.splitlines()]
    assert lines == GOLDEN.read_text(encoding="utf-8").splitlines()


def test_json_has_the_runs_and_their_mean(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(files(), "--seeds", "1,2", "-o", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["seed"] for run in found["runs"]] == [1, 2]
    for key in ("alloc_pct_at_100", "alloc_pct_at_130", "decisions_per_s", "failed_tasks", "tasks"):
        assert found["mean"][key] == pytest.approx(sum(run[key] for run in found["runs"]) / 2)
    for run in found["runs"]:
        assert 0 < run["alloc_pct_at_100"] <= run["alloc_pct_at_130"] <= 100
        assert run["failed_tasks"] < run["tasks"]


def test_the_protocol_counts_what_arrived(files: Files) -> None:
    """By hand: every task whole, in a cluster of 12 GPUs with cores to spare."""
    hosts = traces.read_hosts(files()[0])
    one = openb.run(hosts, [Shape(1000, 0, 0)], 1.3, 42)
    assert (one.tasks, one.failed_tasks) == (16, 4)  # 15 would be 125 %
    assert (one.alloc_pct_at_100, one.alloc_pct_at_130) == (100.0, 100.0)
    wide = openb.run(hosts, [Shape(8000, 0, 0)], 1.3, 42)
    assert (wide.tasks, wide.failed_tasks) == (2, 1)
    assert wide.alloc_pct_at_100 == wide.alloc_pct_at_130 == pytest.approx(100 * 8 / 12)


def test_what_is_allocated_counts_up_to_the_task_with_which_so_much_had_arrived(files: Files) -> None:
    """Half of the tasks can run nowhere, so there is always room for the others."""
    hosts = traces.read_hosts(files()[0])
    can, cannot = Shape(1000, 0, 0), Shape(1000, 0, 0, ("H100",))
    for seed in range(20):
        queue = openb.arrivals([can, cannot], 12_000, 1.3, seed)
        found = openb.run(hosts, [can, cannot], 1.3, seed)
        assert found.alloc_pct_at_100 == pytest.approx(100 * queue[:12].count(can) / 12)
        assert found.alloc_pct_at_130 == pytest.approx(100 * min(12, queue.count(can)) / 12)
        assert found.failed_tasks == queue.count(cannot) + max(0, queue.count(can) - 12)


def test_no_more_arrive_than_are_asked_for(files: Files) -> None:
    """A list that asks for more than the cluster has is cut, and 130 % is 130 % however much arrives."""
    hosts = traces.read_hosts(files()[0])
    tasks = [Shape(1000, 0, 0)] * 6 + [Shape(1000, 0, 0, ("H100",))] * 40
    queue = openb.arrivals(tasks, 12_000, 3.0, 5)
    assert [len(openb.arrivals(tasks, 12_000, inflate, 5)) for inflate in (0.5, 1.3, 3.0)] == [6, 16, 36]
    assert openb.arrivals(tasks, 12_000, 1.3, 5) == queue[:16]
    assert openb.run(hosts, tasks, 1.3, 5).tasks == 16
    far, near = openb.run(hosts, tasks, 3.0, 5), openb.run(hosts, tasks, 1.3, 5)
    assert (far.alloc_pct_at_100, far.alloc_pct_at_130) == (near.alloc_pct_at_100, near.alloc_pct_at_130)
    assert far.alloc_pct_at_130 == pytest.approx(100 * queue[:16].count(tasks[0]) / 12)
    short = openb.run(hosts, tasks, 0.5, 5)
    assert short.alloc_pct_at_100 == short.alloc_pct_at_130 == pytest.approx(100 * queue[:6].count(tasks[0]) / 12)


def test_arrivals_are_the_list_and_then_draws_from_it() -> None:
    tasks = [Shape(n, n, n) for n in range(1, 200)]
    queue = openb.arrivals(tasks, 20_000, 1.3, 5)
    assert sorted(queue[:199]) == tasks
    assert queue[:199] != tasks
    assert sum(t.gpu_milli for t in queue) >= 26_000 > sum(t.gpu_milli for t in queue[:-1])
    assert queue == openb.arrivals(tasks, 20_000, 1.3, 5) != openb.arrivals(tasks, 20_000, 1.3, 6)


@pytest.mark.parametrize(
    ("nodes", "pods", "said"),
    [
        (NODES + "n4,1,1,x,T4\n", PODS, "nodes.csv, line 5: gpu is 'x', not a whole number from 0"),
        (NODES + "n4,-1,1,1,T4\n", PODS, "nodes.csv, line 5: cpu_milli is '-1', not a whole number from 0"),
        (NODES + "n4,1.5,1,1,T4\n", PODS, "nodes.csv, line 5: cpu_milli is '1.5', not a whole number from 0"),
        (NODES + "n4,1,1\n", PODS, "nodes.csv, line 5: it has not as many fields as line 1"),
        (NODES + "n4,1,1,1,T4,more\n", PODS, "nodes.csv, line 5: it has not as many fields as line 1"),
        (NODES + "n1,1,1,1,T4\n", PODS, "nodes.csv, line 5: 'n1' is on line 2 too"),
        (NODES + ",1,1,1,T4\n", PODS, "nodes.csv, line 5: sn is empty"),
        (NODES + "n4,1,1,9999999,T4\n", PODS, "nodes.csv, line 5: gpu is 9999999, which no host has"),
        (NODES.replace("model", "kind"), PODS, "nodes.csv, line 1: there is no column model"),
        ("", PODS, "nodes.csv, line 1: there is no column sn"),
        (NODES.splitlines()[0], PODS, "nodes.csv: no host has a GPU"),
        (b"\xff\xfe\x00", PODS, "nodes.csv, line 1: not UTF-8 text: b'\\xff'"),
        (NODES.encode() + b"n\xe9,1,1,1,T4\n", PODS, "nodes.csv, line 5: not UTF-8 text: b'\\xe9'"),
        (NODES.replace("model", "gpu"), PODS, "nodes.csv, line 1: 2 columns are called gpu; it has 'sn', 'cpu_milli'"),
        (NODES + "n4,1,1,1099511627777,T4\n", PODS, "'1099511627777', not a whole number from 0 to 1099511627776"),
        (NODES, PODS + "p,1,1,1,0,,\n", "pods.csv, line 17: gpu_milli is 0 for one GPU; it must be 1 to 1000"),
        (NODES, PODS + "p,1,1,1,1001,,\n", "pods.csv, line 17: gpu_milli is 1001 for one GPU; it must be 1 to 1000"),
        (NODES, PODS + f"p,1,{'9' * 30},1,1,,\n", f"pods.csv, line 17: memory_mib is '{'9' * 30}', not a whole"),
        (NODES, PODS + "p,1,1,5000,0,,\n", "pods.csv, line 17: num_gpu is 5000, which no host has"),
        (NODES, PODS + '\n\np,"1\n2",1,1,1,,\n', "pods.csv, line 20: cpu_milli is '1\\n2', not a whole number"),
        (NODES, PODS + 'p,"1,1\n', "pods.csv, line 17: unexpected end of data"),
        (NODES, "cpu_milli,memory_mib,num_gpu,gpu_milli\n1,1,0,0\n", "pods.csv: no task asks for a GPU"),
    ],
)
def test_a_malformed_trace_is_refused_with_its_line(
    files: Files, capsys: pytest.CaptureFixture[str], nodes: str, pods: str, said: str
) -> None:
    assert simulate(files(nodes, pods)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert said in err


def test_other_wrong_usage(files: Files, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments in (
        ["--seeds", "x"], ["--seeds", "9-1"], ["--seeds", "1-99999999"], ["--seeds", ""], ["--inflate", "0"],
        ["--inflate", "nan"], ["-o", "xml"],
    ):  # fmt: skip
        assert simulate(files(), *arguments) == 2, arguments
    assert simulate((tmp_path / "none.csv", files()[1])) == 2
    assert "none.csv: No such file or directory" in capsys.readouterr().err


def test_a_byte_order_mark_is_no_part_of_a_name(files: Files) -> None:
    assert traces.read_hosts(files(b"\xef\xbb\xbf" + NODES.encode())[0]) == traces.read_hosts(files()[0])


def test_a_list_without_gpu_spec_is_read(files: Files) -> None:
    tasks = traces.read_tasks(files(pods="name,cpu_milli,memory_mib,num_gpu,gpu_milli\np,1,2,1,460\nq,3,4,2,1000\n")[1])
    assert tasks == [Shape(460, 1, 2), Shape(2000, 3, 4)]


def test_the_library_knows_no_simulator_where_the_scheduler_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert app.run(["simulate"]) == 2
