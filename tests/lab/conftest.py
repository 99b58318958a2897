"""What the lab's tests stand on: images, and one cluster of lab hosts for the whole session.

They take minutes, so they are collected only when asked for: `make lab-test`, or `pytest -m lab tests/lab`.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from _pytest.runner import runtestprotocol

from gpupool.client import AsyncClient
from gpupool.embedded.daemons import remove_tree
from lab import images as lab_images
from lab.cluster import Cluster
from lab.images import LAB, Images
from lab.machine import FULL, SMALL

TIMINGS = LAB / "timings.json"
HERE = Path(__file__).parent
TRIES = 3
TEST_S = 2400  # the first test waits for the hosts too


_clusters: list[Cluster] = []  # the session's, while it is up


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    mine = [item for item in items if HERE in item.path.parents]
    if "lab" not in config.option.markexpr:
        items[:] = [item for item in items if item not in mine]
        config.hook.pytest_deselected(items=mine)
        return
    for item in mine:
        item.add_marker(pytest.mark.lab)
        item.add_marker(pytest.mark.timeout(TEST_S))
        # The cluster lives on the session's loop.
        item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest.fixture(scope="session")
def timings() -> Iterator[dict[str, float]]:
    """Seconds by name; kept in var/lab/timings.json, where each run replaces what it measured."""
    found: dict[str, float] = {}
    yield found
    old = json.loads(TIMINGS.read_text()) if TIMINGS.exists() else {}
    TIMINGS.write_text(json.dumps({**old, **found}, indent=2, sort_keys=True) + "\n")


@pytest.fixture(scope="session")
def images(timings: dict[str, float]) -> Images:
    """What lab hosts boot, up to date with the tree."""
    began = time.monotonic()
    found = lab_images.build(print)
    timings["images, what was out of date"] = round(time.monotonic() - began, 1)
    return found


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a test again if it failed while the emulator had broken a host: that says nothing of what it tests."""
    if HERE not in item.path.parents:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for attempt in range(TRIES):
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        broken = [f"{name}: {why}" for cluster in _clusters for name, why in cluster.broken().items()]
        failed = [report for report in reports if report.failed]
        if not broken or attempt == TRIES - 1 or not failed:
            break
        for report in failed:
            print(report.longreprtext)  # noqa: T201
        print(f"lab: the emulator broke hosts ({'; '.join(broken)}); {item.name} is run again")  # noqa: T201
        item._initrequest()  # type: ignore[attr-defined]
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def risen(images: Images, timings: dict[str, float]) -> AsyncIterator[Cluster]:
    """etcd, a scheduler, hosts h1 (FULL) and h2 (SMALL) with agents, READY, every unit proven clean."""
    folder = LAB / "run" / "tests"
    remove_tree(folder)
    async with Cluster(folder, {"h1": FULL, "h2": SMALL}, images, print) as found:
        _clusters.append(found)
        await found.rise()
        yield found
        timings.update(found.timings)
        _clusters.remove(found)


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(risen: Cluster) -> Cluster:
    """The same, as it was: whatever a test before has left or broken is mended."""
    await risen.heal()
    return risen


@pytest_asyncio.fixture(loop_scope="session")
async def client(cluster: Cluster) -> AsyncIterator[AsyncClient]:
    """A client of the cluster's scheduler."""
    async with cluster.client() as found:
        yield found
