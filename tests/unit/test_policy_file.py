"""The policy file: the defaults, what is refused, and that each refusal names line, value and way out."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from scheduler.core.state.policy import BrakePolicy, FlapPolicy, Policy, ReservationPolicy
from scheduler.policy_file import SECTIONS, PolicyFileError, load_policy

EXAMPLE = Path(__file__).parents[2] / "deploy/policy.yaml"


def read(folder: Path, text: str) -> Policy:
    path = folder / "policy.yaml"
    path.write_text(text)
    return load_policy(path)[0]


def test_the_example_has_every_key_and_only_defaults() -> None:
    policy, given = load_policy(EXAMPLE)
    assert policy == Policy()
    text = EXAMPLE.read_text()
    for key in (f"{s}.{f.name}" for s, name in SECTIONS.items() for f in fields(getattr(policy, name))):
        assert key in given or f"# {key.rpartition('.')[2]}:" in text, key


def test_every_field_of_the_policy_can_be_said(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "soft_guard_is_enough: true\nstarts_at_once: 3\ndrain_on_quarantine: true\n"
        "brake: {hosts: 5, share: 0.5, at_least: 4, window_s: 60, cooldown_s: 0}\n"
        "flap: {losses: 5, window_s: 600.5}\nfailover: {hosts: 1, domain_label: rack, warn: true}\n",
    )
    assert found == Policy(
        True,
        {},
        3,
        BrakePolicy(5, 0.5, 4, 60.0, 0.0),
        FlapPolicy(5, 600.5),
        ReservationPolicy(1, "rack", warn=True),
        drain_on_quarantine=True,
    )
    sections = {f.name for f in fields(Policy) if is_dataclass(getattr(found, f.name))}
    assert sections == set(SECTIONS.values())


@pytest.mark.parametrize("text", ["", "# nothing\n", "brake:\n"])
def test_what_is_left_out_is_as_by_default(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == Policy()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "brakes: {hosts: 3}",
            "1: brakes is unknown; known here are soft_guard_is_enough, starts_at_once, drain_on_quarantine, keep",
        ),
        ("brake:\n  host: 3", "2: brake.host is unknown; known here are hosts, share"),
        ("powered: [h1]", "1: powered is unknown; hosts that can be switched off are those of the file that --power"),
        ("reservation: {hosts: 1}", "1: reservation is unknown; the room that is kept for restarts is `failover:"),
        ("brake:\n  share: 34", "2: brake.share is 34.0; it is a part of all hosts, such as 0.34"),
        ("brake:\n  share: -0.1", "2: brake.share is -0.1"),
        ("brake:\n  share: .nan", "2: brake.share is '.nan'; a number is wanted"),
        ("brake: {share: 1" + "0" * 400 + "}", "1: brake.share is '10000"),
        ("keep_finished_s: 2026-13-45", "1: keep_finished_s is '2026-13-45'; a number is wanted"),
        ("starts_at_once: !!int eight", "1: starts_at_once is 'eight'; a whole number is wanted"),
        ("brake:\n  hosts: 1", "2: brake.hosts is 1; the loss of one host alone would stop all restarts"),
        ("brake:\n  hosts: true", "2: brake.hosts is 'true'; a whole number is wanted"),
        ("brake:\n  hosts: [1]", "2: brake.hosts is a sequence; a whole number is wanted"),
        ("brake:\n  at_least: 1", "2: brake.at_least is 1; the loss of one host"),
        ("brake:\n  window_s: 0", "2: brake.window_s is 0.0; 1 to 86400 seconds are possible"),
        ("brake:\n  cooldown_s: -1", "2: brake.cooldown_s is -1.0"),
        ("brake: [1]", "1: brake is a sequence; keys with values are wanted"),
        ("brake:\n  share: 0\n  at_least: 4", "3: brake.at_least belongs to brake.share, which is 0"),
        ("flap:\n  losses: 1", "2: flap.losses is 1; 2 to 16, or 0: hosts are never held out"),
        ("flap:\n  losses: 17", "2: flap.losses is 17"),
        ("flap:\n  losses: 0\n  window_s: 60", "3: flap.window_s means nothing with flap.losses 0"),
        ("failover:\n  hosts: 2", "2: failover.hosts is 2; 0 or 1"),
        ("failover:\n  domain_label: rack", "2: failover.domain_label means nothing with failover.hosts 0"),
        ("failover:\n  hosts: 1\n  warn: 1", "3: failover.warn is '1'; true or false is wanted"),
        ("backfill:\n  mode: slurm", "2: backfill.mode is slurm; easy or conservative is wanted"),
        ("backfill:\n  mode: 1", "2: backfill.mode is '1'; a name is wanted"),
        (
            "backfill: {mode: conservative, reservations: 3}",
            "1: backfill.reservations belongs to mode easy; conservative",
        ),
        ("starts_at_once: -1", "1: starts_at_once is -1; 0 to 10000 are possible"),
        ("soft_guard_is_enough: yes please", "1: soft_guard_is_enough is 'yes please'; true or false is wanted"),
        ("starts_at_once: 1\nstarts_at_once: 2", "2: starts_at_once stands twice"),
        ("just text", "1: the file is 'just text'; keys with values are wanted"),
        ("brake: {", " while parsing"),
    ],
)
def test_what_is_refused_is_told_with_its_line_and_value(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(PolicyFileError) as caught:
        read(tmp_path, text)
    assert f"{tmp_path}/policy.yaml:{fault}" in caught.value.violations[0]


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(PolicyFileError) as caught:
        read(tmp_path, "flap: {losses: 1}\nbrake:\n  hosts: 1\n  colour: red\n")
    assert [v.partition("policy.yaml:")[2][0] for v in caught.value.violations] == ["1", "3", "4"]


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(PolicyFileError, match="No such file"):
        load_policy(tmp_path / "none")
    (tmp_path / "raw").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PolicyFileError, match="not text"):
        load_policy(tmp_path / "raw")
