"""Each page of docs/runbooks, carried out on a real cluster in the trouble that it is about."""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gpupool.client import AsyncClient
from gpupool.embedded.cluster import EmbeddedCluster
from gpupool.store.etcd import EtcdStore
from tests.e2e.fleet import Fleet
from tests.e2e.runbook import PATIENCE_S, Shell, perform, rewritten, steps
from tests.e2e.stage import Stage
from tests.e2e.three_etcd import ThreeEtcd
from tests.fakes.relay import Relay

pytestmark = [
    pytest.mark.etcd,
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not shutil.which("etcd"), reason="no etcd installed (apt-get install etcd-server)"),
    pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="needs qemu-system-x86"),
]

SETTLED_S = 10.0  # when rewriting: nobody knows what a command should print in the end
PAGES = Path(__file__).parents[2] / "docs" / "runbooks"
TIMES = {"--ttl-s": "6", "--renew-s": "1.5", "--kill-margin-s": "1.5"}


@dataclass(frozen=True)
class Setting:
    """The cluster that a page needs."""

    hosts: dict[str, str] = field(default_factory=lambda: dict.fromkeys(("h1", "h2"), "1xnvidia-a100-80gb"))
    agent_options: dict[str, str] = field(default_factory=dict)
    scheduler_options: dict[str, str] = field(default_factory=dict)
    three_etcd: bool = False
    cable: str = ""  # of this host to etcd, to be cut
    files: dict[str, str] = field(default_factory=dict)  # in the cluster's folder; {folder} in options


THREE = dict.fromkeys(("h1", "h2", "h3"), "1xnvidia-a100-80gb")
POLICY = {"--policy": "{folder}/site.yaml"}
# Nobody listens there, as if the BMC were dead.
POWER = (
    "hosts: {h2: {device: redfish, address: 'http://127.0.0.1:9', username: admin, password_env: BMC, limit_s: 2}}\n"
)
SETTINGS = {
    "bmc-dead": Setting(scheduler_options={"--power": "{folder}/power.yaml"}, files={"power.yaml": POWER}),
    "etcd-lost-quorum": Setting(three_etcd=True),
    "etcd-restored": Setting(),
    "gpu-quarantined": Setting(),
    "host-dead": Setting(),
    "host-flapping": Setting(
        scheduler_options=POLICY, files={"site.yaml": "flap: {losses: 2, window_s: 600}\nbrake: {at_least: 9}\n"}
    ),
    "mass-failure": Setting(
        hosts=THREE, scheduler_options=POLICY, files={"site.yaml": "brake: {hosts: 2, cooldown_s: 0}\n"}
    ),
    "network-split": Setting(cable="h2"),
    "upgrade": Setting(),
}


def test_every_page_is_carried_out() -> None:
    assert {page.stem for page in PAGES.glob("*.md")} - {"README"} == set(SETTINGS)


@pytest.mark.parametrize("name", sorted(SETTINGS))
async def test_page(
    name: str, images: Path, short_folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting, file = SETTINGS[name], PAGES / f"{name}.md"
    page = file.read_text()
    monkeypatch.setenv("BMC", "secret")
    for at, text in setting.files.items():
        (short_folder / at).write_text(text)
    cable = await Relay(lambda: cluster.etcd.endpoint).__aenter__()
    cluster = EmbeddedCluster(
        short_folder,
        images=images,
        hosts=setting.hosts,
        agent_options={**TIMES, **setting.agent_options},
        host_options={setting.cable: {"--etcd": cable.endpoint}} if setting.cable else {},
        scheduler_options={key: value.format(folder=short_folder) for key, value in setting.scheduler_options.items()},
    )
    rewrite = bool(request.config.getoption("--rewrite"))
    patience_s = SETTLED_S if rewrite else PATIENCE_S
    if setting.three_etcd:
        cluster.etcd = ThreeEtcd(short_folder / "etcd")
    wrong: list[str] = []
    outputs: dict[int, list[str]] = {}
    try:
        await cluster.start()
        store = EtcdStore(cluster.etcd.endpoint.split(","))
        async with AsyncClient(cluster.server, timeout_s=30) as client:
            stage = Stage(Fleet(cluster, client, store), cable)
            stage.names["power"] = str(short_folder / "power.yaml")
            stage.names["agent_log"] = str(short_folder / f"hosts/{setting.cable or 'h1'}.log")
            shell = Shell(
                short_folder, {"GPUPOOL_SERVER": cluster.server, "XDG_RUNTIME_DIR": str(short_folder), "BMC": "secret"}
            )
            for step in steps(page):
                if step.stage:
                    await stage.do(step.stage)
                    continue
                right, printed = await perform(step, shell, stage.names, patience_s)
                outputs[step.line] = printed
                if not right:
                    wrong.append(f"{file}:{step.line}: $ {step.command}\n" + "\n".join(printed))
        await store.close()
    finally:
        await cable.__aexit__()
        await asyncio.shield(cluster.stop())
        await cluster.etcd.kill()
    if rewrite:
        file.write_text(rewritten(page, outputs))
    else:
        assert not wrong, "\n".join(wrong)
