"""The file that names what switches hosts off: read as meant, and refused with the value and the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.fencing.agents import FenceProgram
from scheduler.fencing.config import PowerFileError, load_power
from scheduler.fencing.redfish import Redfish
from tests.fakes.fence_program import fence_program


def load(tmp_path: Path, text: str) -> dict[str, object]:
    secret = tmp_path / "pw"
    secret.write_text("x\n")
    secret.chmod(0o600)
    path = tmp_path / "power.yaml"
    path.write_text(text.replace("PROGRAM", str(tmp_path / "fence_test")))
    return dict(load_power(path))


def refused(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(PowerFileError) as caught:
        load(tmp_path, text)
    return [found.partition("power.yaml: ")[2] for found in caught.value.violations]


def test_groups_and_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fence_program(tmp_path)
    monkeypatch.setenv("BMC2", "y")
    found = load(
        tmp_path,
        """
defaults: {limit_s: 30, password_file: pw}
groups:
  rack1: {device: PROGRAM, parameters: {ip: "{host}-bmc", username: root, ssl_insecure: true, plug: 3}}
hosts:
  gpu1: {group: rack1}
  gpu2: {group: rack1, parameters: {ip: 10.0.0.2}, password_env: BMC2, power_on: true, machine: "0123456789abcdef"}
  gpu3: {device: redfish, address: "https://{host}-bmc/", username: admin, verify: false, system: /redfish/v1/Systems/1}
""",
    )
    one, two, three = found["gpu1"], found["gpu2"], found["gpu3"]
    assert isinstance(one, FenceProgram)
    assert isinstance(two, FenceProgram)
    assert isinstance(three, Redfish)
    assert one.parameters == {"ip": "gpu1-bmc", "username": "root", "ssl_insecure": "1", "plug": "3"}
    assert (one.kind, one.limit_s, one.secret.read(), one.power_on) == ("fence_test", 30.0, "x", False)
    assert (two.parameters["ip"], two.secret.read(), two.power_on) == ("10.0.0.2", "y", True)
    assert (three.address, three.username, three.verify) == ("https://gpu3-bmc/", "admin", False)
    assert (one.machine, two.machine, three.machine) == ("", "0123456789abcdef", "")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("hosts: {}", "`hosts` names none"),
        ('hosts: {a: {machine: "4c4c4544"}}', "machine is '4c4c4544'; wanted is 16 hexadecimal digits in quotes"),
        (
            "hosts: {a: {machine: 1234567890123456}}",
            "machine is 1234567890123456; wanted is 16 hexadecimal digits in quotes",
        ),
        (
            'defaults: {machine: "0123456789abcdef"}\nhosts: {}',
            "defaults: machine is of one host; write it at the host",
        ),
        (
            'hosts: {a: {device: PROGRAM, machine: &m "0123456789abcdef"}, b: {device: PROGRAM, machine: *m}}',
            "hosts.b: machine 0123456789abcdef is that of a, too",
        ),
        ("- a", "the file: names with values are wanted"),
        ("hosts: {a: {device: fence_nosuch}}", "there is no fence agent 'fence_nosuch' on this machine; run: apt-get"),
        ("hosts: {a: {device: ../fence_x}}", "is no fence agent"),
        ("hosts: {a: {device: ipmi}}", "is no fence agent"),
        ("hosts: {a: {device: fence_sbd}}", "proves nothing"),
        ("hosts: {a: {device: fence_dummy}}", "switches nothing off"),
        ("hosts: {a: {}}", "what switches it off is missing"),
        ("hosts: {a: {group: g}}", "there is no group 'g'; known are: none"),
        ("hosts: {A: {device: PROGRAM}}", "bad host name 'A'"),
        ("hosts:\n  a: {device: PROGRAM}\n  a: {device: PROGRAM}", "'a' stands twice"),
        ("hosts: {a: {devise: PROGRAM}}", "'devise': unknown; known are: device"),
        ("host: {a: {device: PROGRAM}}", "'host': unknown; known are: defaults, groups, hosts"),
        ("hosts: {a: {device: PROGRAM, parameters: {adress: x}}}", "no such parameter; see man fence_test"),
        ("hosts: {a: {device: PROGRAM, parameters: {password: hunter2}}}", "no secret may stand here"),
        ("hosts: {a: {device: PROGRAM, password: hunter2}}", "no secret may stand here"),
        ("hosts: {a: {device: PROGRAM, parameters: {verbose: 1}}}", "would have passwords printed"),
        ("hosts: {a: {device: PROGRAM, parameters: {ip: [1]}}}", "[1] is no text"),
        ("hosts: {a: {device: PROGRAM, password_file: nosuch}}", "cannot read"),
        ("hosts: {a: {device: PROGRAM, password_env: NO_SUCH_VARIABLE}}", "NO_SUCH_VARIABLE"),
        ("hosts: {a: {device: PROGRAM, password_env: HOME, password_file: pw}}", "keep one"),
        ("hosts: {a: {device: PROGRAM, limit_s: 0}}", "limit_s is 0; wanted is seconds, 1 to 600"),
        ("hosts: {a: {device: PROGRAM, limit_s: true}}", "limit_s is True"),
        ("hosts: {a: {device: PROGRAM, power_on: 1}}", "power_on is 1; wanted is true or false"),
        ("hosts: {a: {device: PROGRAM, address: x}}", "address goes with redfish"),
        ("hosts: {a: {device: redfish, address: 10.0.0.1, username: u, password_file: pw}}", "is no URL such as"),
        ("hosts: {a: {device: redfish, address: 'http://bmc', username: u, password_file: pw}}", "password in clear"),
        ("hosts: {a: {device: redfish, address: 'https://u:p@bmc', username: u, password_file: pw}}", "without a user"),
        ("hosts: {a: {device: redfish, address: 'https://bmc'}}", "username, or password_file"),
        (
            "hosts: {a: {device: redfish, address: 'https://bmc', username: u, password_file: pw, verify: ca}}",
            "no file",
        ),
        ("hosts: [", "while parsing"),
    ],
)
def test_refusals(tmp_path: Path, text: str, complaint: str) -> None:
    fence_program(tmp_path)
    assert any(complaint in found for found in refused(tmp_path, text))
    assert "hunter2" not in " ".join(refused(tmp_path, text))


def test_all_faults_at_once(tmp_path: Path) -> None:
    fence_program(tmp_path)
    assert len(refused(tmp_path, "hosts: {a: {device: PROGRAM, x: 1}, b: {}, c: {group: g}}")) == 3


@pytest.mark.parametrize(
    ("automatic", "status", "complaint"), [(1, True, "cuts storage or network"), (0, False, "no action 'status'")]
)
def test_programs_that_prove_nothing_about_power(tmp_path: Path, automatic: int, status: bool, complaint: str) -> None:
    fence_program(tmp_path, automatic=automatic, status=status)
    assert complaint in refused(tmp_path, "hosts: {a: {device: PROGRAM}}")[0]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PowerFileError) as caught:
        load_power(tmp_path / "nosuch.yaml")
    assert "cannot be read" in caught.value.violations[0]


def test_the_example_is_right_but_for_the_passwords() -> None:
    example = Path(__file__).parents[2] / "deploy" / "power.yaml"
    with pytest.raises(PowerFileError) as caught:
        load_power(example)
    assert len(caught.value.violations) == 3
    assert all("password_file: cannot read" in found for found in caught.value.violations)
