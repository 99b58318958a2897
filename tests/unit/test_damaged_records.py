"""Records that read well and cannot be so: told of by key, and nothing is lost, stopped or started for them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpupool import dumpfile
from gpupool.cli.app import run
from gpupool.errors import InvalidSpec
from gpupool.store import keys
from gpupool.store.port import KeyValue
from gpupool.v1 import job_pb2, records_pb2
from scheduler.core.invariants import violations
from scheduler.core.state.cluster import Cluster
from scheduler.load import UnreadableDecisionError, load
from scheduler.simulate.changes import Changes
from scheduler.simulate.vms import Pace
from scheduler.simulate.whatif import Question, answer
from scheduler.simulate.world import World
from tests.golden.stored import stored
from tests.unit.test_whatif import SCRIPT, parts, play

Damage = Callable[[job_pb2.JobStatus], None]


def _no_attempts(status: job_pb2.JobStatus) -> None:
    status.ClearField("attempts")


def _never_tried(status: job_pb2.JobStatus) -> None:
    status.ClearField("attempts")
    status.attempt_count, status.state = 0, job_pb2.JOB_STATE_PENDING


def _another_count(status: job_pb2.JobStatus) -> None:
    status.attempt_count = 7


def _another_attempt(status: job_pb2.JobStatus) -> None:
    status.attempt_count = status.attempts[0].number = 2


DAMAGES: list[tuple[Damage, str]] = [
    (_no_attempts, "it is RUNNING and has no attempt"),
    (_never_tried, "it counts 0 attempts, and there is an allocation of attempt 1"),
    (_another_count, "it counts 7 attempts, and the last is number 1"),
    (_another_attempt, "it is RUNNING in attempt 2, of which there is no allocation"),
]


def records() -> dict[str, KeyValue]:
    player = play(SCRIPT)
    return {item.key: item for item in stored(player.cluster, player.reports)}


def damaged(items: dict[str, KeyValue], damage: Damage) -> list[KeyValue]:
    key = keys.job_status("a")
    status = job_pb2.JobStatus.FromString(items[key].value)
    damage(status)
    return list((items | {key: KeyValue(key, status.SerializeToString(), 2, 2)}).values())


def test_an_allocation_that_contradicts_itself_stops_the_leader_by_name() -> None:
    """What is taken cannot be guessed; without it a unit would be given twice."""
    items = records()
    key = next(key for key in items if key.startswith(keys.ALLOCATIONS))
    wire = records_pb2.Allocation.FromString(items[key].value)
    wire.ClearField("memory_mib_per_node")
    with pytest.raises(UnreadableDecisionError, match="memory of 0 nodes, and 2 nodes") as caught:
        load(Cluster(), (items | {key: KeyValue(key, wire.SerializeToString(), 2, 2)}).values(), 2000.0)
    assert key in str(caught.value)


@pytest.mark.parametrize(("damage", "said"), DAMAGES)
def test_a_job_whose_record_cannot_be_so_is_left_alone(
    damage: Damage, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    cluster, whole = Cluster(), Cluster()
    load(whole, records().values(), 2000.0)
    with caplog.at_level(logging.ERROR):
        aside = load(cluster, damaged(records(), damage), 2000.0)
    assert list(aside) == ["a"]
    assert keys.job_status("a") in aside["a"]
    assert said in aside["a"]
    assert aside["a"] in caplog.text
    assert cluster.allocations.keys() == whole.allocations.keys(), "what its VM has is no longer reserved"
    World(cluster, 2000.0, check=True).run(2100.0)
    assert "a" not in cluster.jobs
    assert cluster.allocations["a.1"].stop_reason == ""
    assert cluster.jobs.keys() == whole.jobs.keys() - {"a"}
    assert violations(cluster) == []


@pytest.mark.parametrize(("damage", "said"), DAMAGES)
def test_whatif_tells_of_it_and_answers(
    damage: Damage, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "now.json"
    path.write_text("\n".join(dumpfile.lines(parts(damaged(records(), damage)))))
    assert run(["simulate", "whatif", str(path), "-o", "json", "--lose-host", "h1"]) == 0
    (note,) = [note for note in json.loads(capsys.readouterr().out)["notes"] if "job a has no part" in note]
    assert said in note


def _mutated(value: Any, draw: st.DataObject) -> Any:
    """The value with one of its parts gone, or said otherwise."""
    if isinstance(value, dict) and value:
        name = draw.draw(st.sampled_from(sorted(value)))
        if draw.draw(st.integers(0, 3)) == 0:
            return {key: part for key, part in value.items() if key != name}
        return value | {name: _mutated(value[name], draw)}
    if isinstance(value, list) and value:
        index = draw.draw(st.integers(0, len(value) - 1))
        how = draw.draw(st.integers(0, 3))
        if how == 0:
            return value[:index] + value[index + 1 :]
        return [*value[:index], _mutated(value[index], draw), *value[index + (how > 1) :]]
    if isinstance(value, str) and value.isdecimal():
        return draw.draw(st.sampled_from(["0", "1", "2", "99"]))
    if isinstance(value, str):
        states = [f"JOB_STATE_{name}" for name in ("PENDING", "STARTING", "RUNNING", "FAILED", "SUCCEEDED")]
        return draw.draw(st.sampled_from([*states, "", "h1", "h2", "a.1", "b", "u9"]))
    if isinstance(value, bool):
        return not value
    return draw.draw(st.sampled_from([0, 1, 2, 99, 1e9]))


BASE = json.loads("\n".join(dumpfile.lines(parts(list(records().values())))))


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_dump_ends_in_anything_but_an_answer_or_a_refusal(tmp_path_factory: Any, data: st.DataObject) -> None:
    records_ = list(BASE["records"])
    for _ in range(data.draw(st.integers(1, 3))):
        index = data.draw(st.integers(0, len(records_) - 1))
        if data.draw(st.integers(0, 4)) == 0:
            del records_[index]
        else:
            changed = _mutated(records_[index]["value"], data)
            records_[index] = records_[index] | {"value": changed}
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    path.write_text(json.dumps(BASE | {"records": records_}))
    with suppress(InvalidSpec):
        answer(Question(dumpfile.read(path), path, Changes(lose=("h1",)), 300.0, Pace()))
