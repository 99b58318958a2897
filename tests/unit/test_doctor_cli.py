"""`gpupool doctor`: what it prints, with which code it ends, and that --fix changes what it says it will."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from agent.doctor.model import NOTE, OK, PROBLEM, UNKNOWN, WARNING
from agent.simulated.tree import build_tree, parse_shape
from gpupool.cli.app import run
from gpupool.cli.doctor import exit_code, lines
from gpupool.v1 import inventory_pb2, scheduler_pb2
from tests.fakes.cli import Done, Run
from tests.fakes.server import FakeScheduler, Status
from tests.unit.doctor_host import Host

Finding, Fix = inventory_pb2.Finding, inventory_pb2.Fix


@pytest.fixture
def gpupool(capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> Done:
        code = run(arguments)
        return Done(code, *capfd.readouterr())

    return call


@pytest.fixture
def fake(fake: FakeScheduler) -> FakeScheduler:
    fake.hosts = [scheduler_pb2.Host(name="h1")]
    return fake


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a sound host with two GPUs, of which nobody knows whether etcd or QEMU answer."""
    monkeypatch.delenv("GPUPOOL_AGENT_RESERVED_CPUS", raising=False)
    root = tmp_path / "host"
    build_tree(root / "sys", parse_shape("2xnvidia-a100-80gb"))
    ids = {"etc/modprobe.d/vfio.conf": "options vfio-pci ids=10de:20b2\n", "etc/hostname": "gpu07\n"}
    for name, content in {**Host().files, **ids}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def files(root: Path) -> dict[str, str]:
    return {str(path): path.read_text(errors="replace") for path in root.rglob("*") if path.is_file()}


REPORT = scheduler_pb2.DoctorReport(
    host="gpu07",
    system="debian",
    findings=[
        Finding(check="nested", level=OK, seen="this host is no VM"),
        Finding(check="hugepages", level=NOTE, seen="none are set aside", risk="Guests use 4 KiB pages."),
        Finding(
            check="iommu",
            level=PROBLEM,
            seen="off: the firmware offers Intel VT-d (DMAR), the kernel was started without intel_iommu=on",
            risk="vfio-pci refuses devices without an IOMMU, rightly: a VM that owns one could read all memory.",
            fixes=[
                Fix(system="debian", steps="cat > /etc/default/grub.d/gpupool.cfg <<'EOF'\n" + "x" * 90 + "\nEOF"),
                Fix(system="rhel", steps="grubby --update-kernel=ALL --args=intel_iommu=on"),
            ],
            fixable=True,
            reboot=True,
        ),
        Finding(check="reset", level=WARNING, seen="odd\x1b[31m", fixes=[Fix(system="any", steps="look\nagain")]),
        Finding(check="etcd", level=UNKNOWN, seen="no etcd was named"),
        Finding(check="from-the-future", level=99, seen="who knows"),  # type: ignore[arg-type]
    ],
)
GOLDEN = """\
gpu07

PROBLEM
  iommu: off: the firmware offers Intel VT-d (DMAR), the kernel was
    started without intel_iommu=on
    Risk: vfio-pci refuses devices without an IOMMU, rightly: a VM that
    owns one could read all memory.
    Fix (gpupool doctor --fix does it, takes a reboot):
      cat > /etc/default/grub.d/gpupool.cfg <<'EOF'
      xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
      EOF

WARNING
  reset: odd?[31m
    Fix:
      look
      again

UNKNOWN
  etcd: no etcd was named
  from-the-future: who knows

NOTE
  hugepages: none are set aside
    Risk: Guests use 4 KiB pages.

1 PROBLEM, 1 WARNING, 2 UNKNOWN, 1 NOTE, 1 OK (--all shows it)
"""


def test_the_table() -> None:
    shown = "".join(f"{text}\n" for text, _ in lines(REPORT, "debian", 76, show_all=False))
    assert shown == GOLDEN


def test_all_and_the_other_system() -> None:
    shown = [text for text, _ in lines(REPORT, "", 76, show_all=True)]
    assert "  nested: this host is no VM" in shown
    assert "    Fix (RHEL, Fedora, gpupool doctor --fix does it, takes a reboot):" in shown
    assert shown[-1] == "1 PROBLEM, 1 WARNING, 2 UNKNOWN, 1 NOTE, 1 OK"
    assert [text for text, _ in lines(scheduler_pb2.DoctorReport(), "", 76, show_all=False)][-1] == "nothing was judged"


@pytest.mark.parametrize(
    ("levels", "code"), [([], 0), ([OK, NOTE, UNKNOWN], 0), ([NOTE, WARNING], 10), ([PROBLEM, WARNING], 11)]
)
def test_exit_codes(levels: list[inventory_pb2.FindingLevel.ValueType], code: int) -> None:
    assert exit_code(Finding(level=level) for level in levels) == code


def test_help_tells_the_exit_codes(gpupool: Run) -> None:
    shown = gpupool("doctor", "--help").out
    assert "10  warnings" in shown
    assert "11  problems" in shown


def test_a_copied_tree(gpupool: Run, copied: Path) -> None:
    done = gpupool("doctor", "--root", str(copied))
    assert (done.code, done.err) == (0, ""), done.out
    assert done.out.startswith("gpu07, ")
    assert "no etcd was named" in done.out
    (copied / "proc/sys/kernel/panic").write_text("0")
    assert gpupool("doctor", "--root", str(copied)).code == 10
    (copied / "proc/cmdline").write_text("pcie_acs_override=downstream")
    done = gpupool("doctor", "--root", str(copied))
    assert done.code == 11
    assert "iommu-groups: the kernel was started with pcie_acs_override" in done.out
    assert gpupool("doctor", "--root", str(copied), "--accept", "iommu-groups").code == 10


@pytest.mark.parametrize(("kind", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_for_programs(gpupool: Run, copied: Path, kind: str, read: Callable[[str], dict[str, object]]) -> None:
    found = read(gpupool("doctor", "--root", str(copied), "-o", kind).out)
    findings = found["findings"]
    assert isinstance(findings, list)
    assert (found["host"], found["system"]) == ("gpu07", "debian")
    levels = {finding["check"]: finding["level"] for finding in findings}
    assert levels["iommu"] == "FINDING_LEVEL_OK"
    assert levels["etcd"] == "FINDING_LEVEL_UNKNOWN"


def test_reserved_cpus_can_be_told(gpupool: Run, copied: Path) -> None:
    assert "reserved-cpus" in gpupool("doctor", "--root", str(copied)).out
    assert "reserved-cpus" not in gpupool("doctor", "--root", str(copied), "--reserved-cpus", "0-1").out


def test_gpus_whose_class_does_not_tell_can_be_told(gpupool: Run, copied: Path) -> None:
    device = next(path for path in sorted((copied / "sys/bus/pci/devices").iterdir()) if _is_gpu(path))
    (device / "class").write_text("0x00ff00\n")
    (device / "device").write_text("0x11e8\n")
    (device / "vendor").write_text("0x1234\n")
    without = gpupool("doctor", "--root", str(copied), "--all").out
    told = gpupool("doctor", "--root", str(copied), "--all", "--gpu", "1234:11e8").out
    assert "units: 1: " in without
    assert "units: 2: " in told


def test_nics_that_the_agent_pools_can_be_told(gpupool: Run, copied: Path) -> None:
    assert "nics: none are pooled" in gpupool("doctor", "--root", str(copied), "--all").out
    told = gpupool("doctor", "--root", str(copied), "--all", "--nic", "0000:99:00.0").out
    assert "nics: this host has no network function 0000:99:00.0 (--nic)" in told
    nic = next(path for path in (copied / "sys/bus/pci/devices").iterdir() if _is_nic(path)).name
    told = gpupool("doctor", "--root", str(copied), "--all", "--nic", nic).out
    assert f"nics: each goes to VMs with its GPU: {nic} with 0000:" in told


def _is_nic(device: Path) -> bool:
    return (device / "class").read_text().startswith("0x02")


def _is_gpu(device: Path) -> bool:
    return (device / "class").read_text().startswith("0x0302")


def test_of_a_host_through_its_agent(fake: FakeScheduler, gpupool: Run) -> None:
    done = gpupool("doctor", "--host", "h1", "-o", "json")
    assert (done.code, json.loads(done.out)) == (0, {"host": "h1", "findings": [{"check": "iommu"}]})
    assert gpupool("doctor", "--host", "h9").code == 3
    fake.fail("Doctor", *[Status.UNAVAILABLE] * 9)
    done = gpupool("doctor", "--host", "h1")
    assert (done.code, done.out) == (4, "")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--host", "h1", "--fix"), "--fix does not go with --host"),
        (("--host", "h1", "--root", "/"), "--root does not go with --host"),
        (("--dry-run",), "--dry-run goes with --fix"),
        (("--hugepages", "3"), "--hugepages goes with --fix"),
        (("--accept", "nothing"), "'nothing' is not one of"),
        (("--reserved-cpus", "x"), "--reserved-cpus: 'x' is no list"),
        (("--gpu", "edu"), "--gpu: 'edu' is no pair"),
        (("--nic", "eth0"), "--nic: 'eth0' is neither"),
        (("--ttl-s", "-1"), "-1"),
    ],
)
def test_wrong_usage_is_one_line(gpupool: Run, arguments: tuple[str, ...], told: str) -> None:
    done = gpupool("doctor", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert told in done.err
    assert done.err.count("\n") == 1


def test_without_the_agent_it_says_what_to_install(
    gpupool: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name == "agent" or name.startswith("agent.")]:
        monkeypatch.delitem(sys.modules, name)
    done = gpupool("doctor")
    assert done.code == 1
    assert "pip install 'gpupool[agent]'" in done.err


def test_a_dry_run_changes_nothing(gpupool: Run, copied: Path) -> None:
    (copied / "proc/sys/kernel/panic").write_text("0")
    (copied / "etc/sysctl.d").mkdir()
    (copied / "etc/sysctl.d/90-gpupool.conf").write_text("vm.swappiness = 1\n")
    before = files(copied)
    done = gpupool("doctor", "--root", str(copied), "--fix", "--dry-run", "--hugepages", "16")
    assert (done.code, done.err) == (0, "")
    shown = done.out.splitlines()
    assert "--- /etc/sysctl.d/90-gpupool.conf" in shown
    assert {" vm.swappiness = 1", "+kernel.panic = 10", "run: sysctl -w kernel.panic=10"} <= set(shown)
    assert "+++ /etc/tmpfiles.d/gpupool-hugepages.conf" in shown
    assert shown[-1] == "dry run: nothing was changed"
    assert files(copied) == before


def test_fixing_does_what_the_dry_run_showed(gpupool: Run, copied: Path) -> None:
    (copied / "proc/sys/kernel/panic").write_text("0")
    (copied / "etc/modprobe.d/vfio.conf").unlink()
    done = gpupool("doctor", "--root", str(copied), "--fix", "--yes")
    assert (done.code, done.err) == (0, ""), done.err
    assert "not run, since the root is not this system's: sysctl -w kernel.panic=10" in done.out
    assert "takes effect at the next boot: early-binding" in done.out
    assert "kernel.panic = 10" in (copied / "etc/sysctl.d/90-gpupool.conf").read_text()
    assert (copied / "etc/modprobe.d/gpupool-vfio.conf").is_file()
    (copied / "proc/sys/kernel/panic").write_text("10")
    again = gpupool("doctor", "--root", str(copied), "--fix", "--yes")
    assert again.out.startswith("nothing to do"), again.out
    assert "nothing gives" not in gpupool("doctor", "--root", str(copied)).out


def test_fixing_asks_first(gpupool: Run, copied: Path) -> None:
    (copied / "proc/sys/kernel/panic").write_text("0")
    before = files(copied)
    done = gpupool("doctor", "--root", str(copied), "--fix")  # pytest's standard input is empty
    assert done.code == 130
    assert files(copied) == before


def test_pages_that_would_starve_a_node_are_refused(gpupool: Run, copied: Path) -> None:
    done = gpupool("doctor", "--root", str(copied), "--fix", "--dry-run", "--hugepages", "131072")
    assert done.code == 2
    assert "NUMA node 0 can spare" in done.err
