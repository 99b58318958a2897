"""`gpupool cluster dump` and `gpupool simulate whatif`: the file, what would change, and bad input."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from gpupool import dumpfile
from gpupool.cli.app import run
from gpupool.errors import InvalidSpec
from gpupool.store import keys
from gpupool.store.port import KeyValue
from gpupool.v1 import job_pb2, records_pb2, scheduler_pb2
from scheduler.api.cluster_dump import ClusterDump
from scheduler.core.state.policy import BackfillPolicy, BrakePolicy, Device, FlapPolicy, Policy
from scheduler.policy_file import as_document, read_policy
from scheduler.simulate.vms import Pace
from scheduler.simulate.whatif import Life
from tests.fakes.server import BREAK, FakeScheduler
from tests.golden.runner import Player
from tests.golden.stored import stored

# Two racks; `a` has all of h1, `b` and `c` have h2, `d` waits for a whole host. `e` is what a lower priority has.
SCRIPT = """
queue vision limit=4
host h1 4xa100
host h2 4xa100
label h1 rack=r1
label h2 rack=r2
submit a gpus=4 limit=7200
submit b gpus=2
submit c gpus=2
place
report a.1 RUNNING
report b.1 RUNNING
report c.1 RUNNING
submit d gpus=4
submit e gpus=1 queue=vision
submit f gpus=5
place
"""
Whatif = Callable[..., dict[str, Any]]


class _Stored:
    """A mirror, as far as a dump needs it."""

    def __init__(self, items: Sequence[KeyValue]) -> None:
        self.revision = 77
        self._items = {item.key: item for item in items}

    def stored(self) -> dict[str, KeyValue]:
        return dict(self._items)


def parts(
    items: Sequence[KeyValue], policy: Policy | None = None, at_s: float = 2000.0
) -> list[scheduler_pb2.DumpPart]:
    async def gather() -> list[scheduler_pb2.DumpPart]:
        dump = ClusterDump(_Stored(items), policy or Policy(), "1.2.3", lambda: at_s)
        return [part async for part in dump.parts()]

    return asyncio.run(gather())


def play(script: str, policy: Policy | None = None) -> Player:
    player = Player(policy)
    player.play(script)
    return player


def saved(path: Path, player: Player, policy: Policy | None = None) -> Path:
    items = stored(player.cluster, player.reports)
    text = "\n".join(dumpfile.lines(parts(items, policy, player.now)))
    path.write_text(text + "\n")
    return path


@pytest.fixture
def whatif(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Whatif:
    def ask(*arguments: str, script: str = SCRIPT, policy: Policy | None = None) -> dict[str, Any]:
        path = saved(tmp_path / "now.json", play(script, policy), policy)
        assert run(["simulate", "whatif", str(path), "-o", "json", *arguments]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        found: dict[str, Any] = json.loads(out)
        return found

    return ask


def changes(found: dict[str, Any]) -> dict[str, str]:
    return {job["id"]: job["change"] for job in found["jobs"]}


def test_nothing_changes_without_a_change(whatif: Whatif) -> None:
    found = whatif()
    assert found["jobs"] == []
    assert found["before"] == found["after"]
    assert found["before"]["jobs_running"] == 3
    assert found["before"]["jobs_waiting"] == 3
    assert found["before"]["gpus_waited_for"] == 10
    assert found["before"]["free_by_model_and_size"] == {"a100": {"1": 0, "2": 0, "4": 0, "8": 0}}


def test_new_hosts_take_who_waits(whatif: Whatif) -> None:
    found = whatif("--add-hosts", "2", "--like", "h1")
    assert changes(found) == {"d": "starts", "e": "starts"}
    by_id = {job["id"]: job for job in found["jobs"]}
    assert by_id["d"]["before"]["why"].startswith("2 UNITS_BUSY")
    assert by_id["e"]["after"]["host"] == "h1-new1"  # its queue has less
    assert by_id["d"]["after"]["host"] == "h1-new2"
    assert by_id["d"]["after"]["placed_after_s"] == 0.0
    assert found["after"]["gpus"] == 16
    assert found["after"]["free_by_model_and_size"]["a100"] == {"1": 3, "2": 1, "4": 0, "8": 0}
    assert found["queues"]["vision"] == {
        "before": {"gpus_used": 0, "jobs_waiting": 1}, "after": {"gpus_used": 1, "jobs_waiting": 0}
    }  # fmt: skip


def test_a_lost_rack_loses_its_jobs(whatif: Whatif) -> None:
    found = whatif("--lose-rack", "rack=r2")
    assert changes(found) == {"b": "lost", "c": "lost"}
    lost = found["jobs"][0]["after"]
    assert (lost["state"], lost["lost_with"]) == ("PENDING", ["h2"])
    assert "HOST_NOT_READY" in lost["why"]
    assert found["changes"] == ["h2 is lost, with 2 VMs"]
    assert found["after"]["hosts_ready"] == 1


def test_what_is_lost_restarts_where_there_is_room(whatif: Whatif) -> None:
    found = whatif("--lose-host", "h2", "--add-hosts", "1", "--like", "h2")
    assert changes(found) == {"b": "restarts", "c": "lost", "e": "starts"}  # e comes while nobody knows of the loss
    assert {job["after"]["host"] for job in found["jobs"]} == {"h2-new1", ""}


def test_without_proof_what_is_lost_waits_for_a_person(whatif: Whatif) -> None:
    real = SCRIPT.replace("host h2 4xa100", "host h2 4xa100 simulated=no")
    found = whatif("--lose-host", "h2", "--add-hosts", "1", "--like", "h1", script=real)
    assert "b" not in changes(found)
    assert found["notes"] == [
        "nothing proves that the VMs of h2 are dead: an operator must confirm it (--confirm-dead)"
    ]
    sure = whatif("--lose-host", "h2", "--add-hosts", "1", "--like", "h1", "--confirm-dead", script=real)
    assert changes(sure) == {"b": "restarts", "c": "lost", "e": "starts"}
    assert sure["notes"] == []


def test_a_fence_device_proves_it(whatif: Whatif) -> None:
    real = SCRIPT.replace("host h2 4xa100", "host h2 4xa100 simulated=no")
    found = whatif("--lose-host", "h2", script=real, policy=Policy(powered={"h2": Device()}))
    assert changes(found) == {"b": "lost", "c": "lost"}
    assert found["notes"] == []


def test_a_fence_device_of_another_machine_proves_nothing(whatif: Whatif) -> None:
    real = SCRIPT.replace("host h2 4xa100", "host h2 4xa100 simulated=no")
    found = whatif("--lose-host", "h2", script=real, policy=Policy(powered={"h2": Device(machine="m7")}))
    must = "an operator must confirm it (--confirm-dead)"
    assert found["notes"] == [f"nothing proves that the VMs of h2 are dead: {must}"]


def test_a_brake_is_told(whatif: Whatif) -> None:
    policy = Policy(brake=BrakePolicy(hosts=2))
    found = whatif("--lose-rack", "rack=r*", policy=policy)
    assert found["notes"][0].startswith("the mass failure brake goes on: 2 of 2 hosts were lost")
    assert len(found["notes"]) == 1  # it ends after 300 s
    assert "still on" in whatif("--lose-rack", "rack=r*", "--ahead", "60s", policy=policy)["notes"][1]


def test_declared_limits_are_foreseen(whatif: Whatif) -> None:
    """`a` ends two hours after its start, so `d` starts in both lives; with a host more, earlier."""
    found = whatif("--ahead", "3h", "--add-hosts", "1", "--like", "h1", script=SCRIPT.replace("submit e", "#"))
    assert changes(found)["d"] == "earlier"
    d = next(job for job in found["jobs"] if job["id"] == "d")
    assert d["before"]["placed_after_s"] == 1009.0 + 7200.0 + 10.0 - found["dump"]["at_s"]  # started, limit, reclaim
    assert d["after"]["placed_after_s"] == 0.0


def test_a_quota_keeps_or_lets_go(whatif: Whatif) -> None:
    """`b` is not there, so that h2 has room for two: `e` takes it, unless its queue may not."""
    room = SCRIPT.replace("submit b gpus=2\n", "").replace("report b.1 RUNNING\n", "")
    room = room[: room.rindex("place")]
    found = whatif("--quota", "vision=0", script=room)
    assert changes(found) == {"e": "waits"}
    assert found["jobs"][0]["after"]["why"].startswith("QUOTA: with it queue 'vision' would use 1 GPUs")
    assert found["queues"]["vision"]["after"] == {"gpus_used": 0, "jobs_waiting": 1}
    less = room.replace("limit=4", "limit=0")
    found = whatif("--quota", "vision=max-gpus=-1,guaranteed-gpus=2", script=less)
    assert found["changes"] == ["queue vision: guaranteed-gpus 2, max-gpus none"]
    assert changes(found) == {"e": "starts"}


def test_another_policy_is_played(whatif: Whatif, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("preemption: {lower_priority: true}\n")
    script = SCRIPT.replace("submit d gpus=4", "submit d gpus=4 priority=5")
    found = whatif("--policy", str(policy), script=script)
    assert changes(found)["a"] == "preempted"
    assert changes(found)["d"] == "starts"
    assert next(job for job in found["jobs"] if job["id"] == "a")["after"]["stopped_for"] == ["d"]


def test_same_input_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "now.json", play(SCRIPT))
    outs = set()
    for _ in range(2):
        assert run(["simulate", "whatif", str(path), "--lose-host", "h1", "-o", "json"]) == 0
        outs.add(capsys.readouterr().out)
    assert len(outs) == 1


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str], pytestconfig: pytest.Config) -> None:
    path = saved(tmp_path / "now.json", play(SCRIPT))
    assert run(["simulate", "whatif", str(path), "--add-hosts", "1", "--like", "h1", "--lose-host", "h2"]) == 0
    out = "".join(line for line in capsys.readouterr().out.splitlines(keepends=True) if not line.startswith("dump:"))
    golden = Path(__file__).resolve().parents[1] / "golden_cli" / "simulate_whatif.txt"
    if pytestconfig.getoption("--rewrite"):
        golden.write_text(out)
    assert out == golden.read_text()
    assert run(["simulate", "whatif", str(path)]) == 0
    assert "no job fares differently" in capsys.readouterr().out


def test_a_loaded_dump_is_the_cluster(tmp_path: Path) -> None:
    """What is read from the file decides as what was stored."""
    player = play(SCRIPT)
    path = saved(tmp_path / "now.json", player)
    life = Life(dumpfile.read(path), path, None, Pace())
    mine, theirs = player.cluster, life.cluster
    assert sorted(mine.allocations) == sorted(theirs.allocations)
    assert {j: (x.state, x.request, x.terms) for j, x in mine.jobs.items()} == {
        j: (x.state, x.request, x.terms) for j, x in theirs.jobs.items()
    }
    for name, host in mine.hosts.items():
        other = theirs.hosts[name]
        assert (host.state, host.held, host.units, host.nodes) == (other.state, other.held, other.units, other.nodes)


# The dump


def test_a_dump_has_no_secrets() -> None:
    spec = job_pb2.JobSpec(image="img", command=["run", "--token=hush"], env={"KEY": "hush"})
    spec.vm.user_data = "password: hush"
    spec.volumes.add(name="v", path="/hush")
    record = records_pb2.JobRecord(spec=spec, idempotency_key="hush")
    session = records_pb2.Session(address="10.0.0.1:1", nonce="hush", boot_id="b1")
    allocation = records_pb2.Allocation(id="j.1", job="j", host="h", spec=spec, session_nonce="hush")
    items = [
        KeyValue(keys.job_spec("j"), record.SerializeToString(), 5, 5),
        KeyValue(keys.session("h"), session.SerializeToString(), 6, 6),
        KeyValue(keys.allocation("h", "j.1"), allocation.SerializeToString(), 7, 7),
        KeyValue(keys.LEADER, records_pb2.Leader(id="hush").SerializeToString(), 8, 8),
    ]
    found = parts(items)
    told = [record for part in found for record in part.records]
    assert [(record.key, record.created) for record in told] == [
        (keys.session("h"), 6), (keys.allocation("h", "j.1"), 7), (keys.job_spec("j"), 5)
    ]  # fmt: skip
    text = "\n".join(dumpfile.lines(found))
    assert "hush" not in text
    assert "10.0.0.1" not in text
    assert "img" in text


def test_finished_jobs_stay_out_unless_somebody_asks_about_them() -> None:
    def job(name: str, state: str, after: str = "", gang: str = "") -> Iterator[KeyValue]:
        record = records_pb2.JobRecord(spec=job_pb2.JobSpec(image="img"))
        if after:
            record.spec.dependencies.add(job=after)
        if gang:
            record.spec.gang.id, record.spec.gang.count = gang, 2
        yield KeyValue(keys.job_spec(name), record.SerializeToString(), 1, 1)
        status = job_pb2.JobStatus(state=job_pb2.JobState.Value(f"JOB_STATE_{state}"))
        yield KeyValue(keys.job_status(name), status.SerializeToString(), 1, 1)

    items = [
        *job("old", "SUCCEEDED"), *job("asked", "FAILED"), *job("asks", "PENDING", "asked"),
        *job("g-0", "SUCCEEDED", gang="g"), *job("g-1", "RUNNING", gang="g"), *job("o-0", "SUCCEEDED", gang="o"),
    ]  # fmt: skip
    told = {record.key for part in parts(items) for record in part.records}
    assert told == {key(name) for key in (keys.job_spec, keys.job_status) for name in ("asked", "asks", "g-0", "g-1")}


def test_a_large_dump_comes_in_parts() -> None:
    inventory = records_pb2.HostRecord(held_out="x" * 1000).SerializeToString()
    items = [KeyValue(keys.host(f"h{n:04}"), inventory, n, n) for n in range(1200)]
    found = parts(items)
    assert len(found) > 2
    assert sum(len(part.records) for part in found) == 1200
    assert max(part.ByteSize() for part in found) < 1024 * 1024


def test_a_policy_survives_the_file() -> None:
    policy = Policy(starts_at_once=3, brake=BrakePolicy(hosts=5, window_s=30.0), backfill=BackfillPolicy(4))
    switched_off = Policy(brake=BrakePolicy(share=0.0), flap=FlapPolicy(losses=0))  # as `gpupool up` has it
    for each in (policy, Policy(), switched_off):
        assert read_policy(json.dumps(as_document(each)), Path("x"), whole=True)[0] == each


def test_dump_writes_a_file_or_stdout(fake: FakeScheduler, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    player = play(SCRIPT)
    told = parts(stored(player.cluster, player.reports))
    fake.scripts["DumpCluster"] = [told, told, told]
    path = tmp_path / "now.json"
    assert run(["cluster", "dump", "-o", str(path)]) == 0
    out, err = capsys.readouterr()
    found = dumpfile.read(path)
    assert (out, err) == ("", f"{path} has {len(found.items)} records\n")
    assert (found.at_s, found.revision) == (2000.0, 77)
    assert not list(tmp_path.glob("*.part"))
    for words in ([], ["-o", "json"]):
        assert run(["cluster", "dump", *words]) == 0
        assert capsys.readouterr().out == path.read_text()
    assert json.loads(path.read_text())["records"][0]["key"]


def test_an_empty_cluster_can_be_dumped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "now.json"
    path.write_text("\n".join(dumpfile.lines(parts([]))))
    assert dumpfile.read(path).items == ()
    assert run(["simulate", "whatif", str(path), "--add-hosts", "1", "--like", "h1"]) == 2
    assert "--like h1: no such host; the dump has no hosts" in capsys.readouterr().err


def test_a_dump_that_breaks_off_leaves_the_old_file(
    fake: FakeScheduler, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "now.json"
    path.write_text("old")
    fake.scripts["DumpCluster"] = [[*parts([])[:1], BREAK]]
    assert run(["cluster", "dump", "-o", str(path)]) == 4
    assert "in the middle of its dump" in capsys.readouterr().err
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])


def test_an_old_scheduler_says_so(fake: FakeScheduler, capsys: pytest.CaptureFixture[str]) -> None:
    fake.fail("DumpCluster", grpc.StatusCode.UNIMPLEMENTED)
    assert run(["cluster", "dump"]) == 1
    assert "older than this client" in capsys.readouterr().err


HEAD = {"format": dumpfile.FORMAT, "version": 1, "at_s": 1.0, "revision": 1, "policy": {}, "powered": [], "records": []}
TOO_MUCH = {"spec": {"numa": 1e400}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "now.json, line 1: Expecting property name"),
        ('{\n"a": 1,\n', "now.json, line 3"),
        ("[]", "no dump of a cluster; `gpupool cluster dump -o FILE` makes one"),
        (json.dumps(HEAD | {"version": 2}), "version is 2, this gpupool reads 1; make the dump anew with it"),
        (json.dumps(HEAD | {"at_s": "x"}), "at_s: 'x' is no number from 0"),
        (json.dumps(HEAD | {"at_s": 1e15}), "at_s: 1000000000000000.0 is no number from 0 to 253370764800"),
        (json.dumps(HEAD | {"at_s": 1e400}), "at_s: inf is no number from 0"),
        (json.dumps(HEAD).replace('"revision": 1', f'"revision": {"1" * 5000}'), "now.json: Exceeds the limit"),
        (json.dumps(HEAD | {"records": {}}), "records: a list is wanted"),
        (json.dumps(HEAD | {"powered": [1]}), "powered: a list of hosts is wanted"),
        (json.dumps(HEAD | {"machines": {"h1": 1}}), "machines: ids by host are wanted"),
        (json.dumps(HEAD | {"policy": {"brake": {"share": 7}}}), "now.json: policy: brake.share is 7"),
        (json.dumps(HEAD | {"records": [1]}), "records[0]: a mapping with key, created and value is wanted"),
        (json.dumps(HEAD | {"records": [{"key": "x"}]}), "records[0]: this gpupool knows no key 'x'"),
        (
            json.dumps(HEAD | {"records": [{"key": keys.host("h1"), "created": -1, "value": {}}]}),
            "(/gpupool/v1/hosts/h1): created is -1",
        ),
        (
            json.dumps(HEAD | {"records": [{"key": keys.host("h1"), "created": 1, "value": {"colour": 1}}]}),
            'has no field named "colour"',
        ),
        (
            json.dumps(HEAD | {"records": [{"key": keys.job_spec("j1"), "created": 1, "value": TOO_MUCH}]}),
            "records[0] (/gpupool/v1/jobs/j1/spec)",
        ),
        (
            json.dumps(HEAD | {"records": [{"key": keys.host("h1"), "created": 1, "value": [1]}]}),
            "records[0] (/gpupool/v1/hosts/h1)",
        ),
    ],
)
def test_a_bad_dump_is_refused_where_it_is_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    path = tmp_path / "now.json"
    path.write_text(text)
    assert run(["simulate", "whatif", str(path)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--add-hosts", "1"], "--add-hosts and --like belong together"),
        (["--like", "h1"], "--add-hosts and --like belong together"),
        (["--add-hosts", "1", "--like", "h9"], "--like h9: no such host; known are h1, h2"),
        (["--lose-host", "h9"], "--lose-host h9: no such host; known are h1, h2"),
        (["--lose-rack", "rack=r9"], "--lose-rack rack=r9: no host has it; its values are r1, r2"),
        (["--lose-rack", "row=1"], "no host has a label row"),
        (["--lose-rack", "rack"], "write LABEL=VALUE"),
        (["--quota", "nope=1"], "--quota nope: no such queue; queues at hand: default, vision"),
        (["--quota", "vision"], "write QUEUE=GPUS"),
        (["--quota", "vision=max-gpsu=1"], "there is no setting 'max-gpsu'"),
        (["--quota", "vision=-2"], "a whole number is wanted"),
        (["--quota", "vision=weight=-1"], "a weight is from 1"),
        (["--quota", "vision=1", "--quota", "vision=2"], "each queue once"),
        (["--quota", "vision=1,max-gpus=2"], "max-gpus stands twice"),
        (["--policy", "/nonexistent"], "/nonexistent"),
        (["--ahead", "soon"], "'soon' is no duration"),
    ],
)
def test_bad_changes_say_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    path = saved(tmp_path / "now.json", play(SCRIPT))
    assert run(["simulate", "whatif", str(path), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="No such file"):
        dumpfile.read(tmp_path / "nothing.json")
