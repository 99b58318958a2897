"""Each page of docs/runbooks, carried out on a real cluster in the trouble that it is about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from gpupool.client import AsyncClient
from gpupool.embedded.cluster import EmbeddedCluster
from gpupool.store.etcd import EtcdStore
from tests.e2e import needs
from tests.e2e.fleet import Fleet, brief_folder
from tests.e2e.runbook import PATIENCE_S, Shell, Step, perform, rewritten, steps
from tests.e2e.stage import Stage
from tests.e2e.three_etcd import ThreeEtcd
from tests.fakes.relay import Relay

pytestmark = [*needs.ETCD, *needs.VMS]

SETTLED_S = 10.0  # when rewriting: nobody knows what a command should print in the end
TOGETHER = 2
Done = tuple[list[str], dict[int, list[str]]]
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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pages(images: Path, request: pytest.FixtureRequest) -> AsyncIterator[dict[str, asyncio.Task[Done]]]:
    """The pages that are asked for, being carried out: most of their time is waiting, so some go on together."""
    patience_s = SETTLED_S if request.config.getoption("--rewrite") else PATIENCE_S
    places = asyncio.Semaphore(TOGETHER)

    async def one(name: str) -> Done:
        async with places:
            return await carry_out(name, _text(name), images, patience_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BMC", "secret")
        tasks = {name: asyncio.create_task(one(name)) for name in SETTINGS if _wanted(name, request.session)}
        yield tasks
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted(SETTINGS))
async def test_page(name: str, pages: dict[str, asyncio.Task[Done]], request: pytest.FixtureRequest) -> None:
    wrong, outputs = await pages[name]
    if request.config.getoption("--rewrite"):
        _file(name).write_text(rewritten(_text(name), outputs))
    else:
        assert not wrong, "\n".join(wrong)


def _wanted(name: str, session: pytest.Session) -> bool:
    return any(item.name == f"test_page[{name}]" for item in session.items)


def _file(name: str) -> Path:
    return PAGES / f"{name}.md"


def _text(name: str) -> str:
    return _file(name).read_text()


async def carry_out(name: str, page: str, images: Path, patience_s: float) -> Done:
    """What was not as the page says, and what the command of each line printed."""
    with brief_folder() as folder:
        return await _carry_out(SETTINGS[name], steps(page), folder, images, patience_s)


async def _carry_out(setting: Setting, todo: Iterable[Step], folder: Path, images: Path, patience_s: float) -> Done:
    for at, text in setting.files.items():
        (folder / at).write_text(text)
    cable = await Relay(lambda: cluster.etcd.endpoint).__aenter__()
    cluster = EmbeddedCluster(
        folder,
        images=images,
        hosts=setting.hosts,
        agent_options={**TIMES, **setting.agent_options},
        host_options={setting.cable: {"--etcd": cable.endpoint}} if setting.cable else {},
        scheduler_options={key: value.format(folder=folder) for key, value in setting.scheduler_options.items()},
    )
    if setting.three_etcd:
        cluster.etcd = ThreeEtcd(folder / "etcd")
    wrong: list[str] = []
    outputs: dict[int, list[str]] = {}
    try:
        await cluster.start()
        store = EtcdStore(cluster.etcd.endpoint.split(","))
        async with AsyncClient(cluster.server, timeout_s=30) as client:
            stage = Stage(Fleet(cluster, client, store), cable)
            stage.names["power"] = str(folder / "power.yaml")
            stage.names["agent_log"] = str(folder / f"hosts/{setting.cable or 'h1'}.log")
            stage.names["scheduler_log"] = str(next(iter(cluster.replicas.values())).log)
            environment = {"GPUPOOL_SERVER": cluster.server, "XDG_RUNTIME_DIR": str(folder), "BMC": "secret"}
            environment["GPUPOOL_SCHEDULER_ETCD"] = cluster.etcd.endpoint
            shell = Shell(folder, environment)
            for step in todo:
                if step.stage:
                    await stage.do(step.stage)
                    continue
                right, printed = await perform(step, shell, stage.names, patience_s)
                outputs[step.line] = printed
                if not right:
                    wrong.append(f"line {step.line}: $ {step.command}\n" + "\n".join(printed))
        await store.close()
    finally:
        await cable.__aexit__()
        await asyncio.shield(cluster.stop())
        await cluster.etcd.kill()
    return wrong, outputs
