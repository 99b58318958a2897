"""`python -m agent`: wiring only."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpupool.store import startup
from gpupool.store.etcd import EtcdStore
from gpupool.store.port import StoreError
from gpupool.v1.inventory_pb2 import Inventory

from . import giveback
from .agent import Agent, Parts
from .clock import BootClock
from .config import (
    Config,
    ConfigError,
    default_cgroup,
    find_watchdog,
    list_images,
    parse_command,
    parse_cpus,
    parse_ids,
    parse_labels,
    parse_nics,
)
from .declare import KEPT
from .devices import holders
from .devices.host import Policy, SysfsDevices
from .devices.isolated import IsolatedSysfs
from .devices.reclaim import Patience
from .doctor.examine import ACCEPTABLE
from .guard.client import ProcessGuard
from .guard.state import BOOT_ID_FILE
from .inventory.pciids import PciIds
from .inventory.read import Memory, read_inventory
from .inventory.sysfs import RealSysfs
from .inventory.uevents import Uevents
from .judges import Doctor, Nvml, Users, judges
from .machine import machine_id
from .ports import GuardError, Sysfs, VmRuntime
from .service import AgentService, serve
from .timing import PROFILES, Identity, Limits, TimingError, timing_of
from .vms.embed import run_dir
from .vms.errors import RuntimeUnavailableError
from .vms.process import pids
from .work.logs import LogStore
from .work.records import FileRecords
from .work.volumes import DirectoryVolumes

if TYPE_CHECKING:
    from .simulated.kernel import SimulatedSysfs
    from .simulated.tree import HostShape

_log = logging.getLogger("agent")


EXAMPLES = """\b
Examples:
  gpupool-agent --name gpu7 --etcd 10.0.0.1:2379,10.0.0.2:2379 --listen 10.0.0.7:50152 --volumes /mnt/volumes
  gpupool-agent --name sim1 --simulate 4xnvidia-a100-80gb --state-dir /tmp/sim1 --images ./images
"""


@click.command(epilog=EXAMPLES, context_settings={"auto_envvar_prefix": "GPUPOOL_AGENT", "show_default": True})
@click.option("--name", required=True, help="This host's name, unique in the cluster.")
@click.option("--etcd", default="127.0.0.1:2379", help="etcd endpoints, host:port, separated by commas.")
@click.option("--listen", default="127.0.0.1:0", help="Where the agent answers, host:port; port 0 takes a free one.")
@click.option("--advertise", default="", show_default="as it listens", help="Where others reach it.")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    default=Path("/run/gpupool"),
    help="Small state of this boot and guests' output; best on a tmpfs. It must outlive the agent's process.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    default=Path("/var/lib/gpupool/images"),
    help="Guest images: one directory each, with a manifest.json.",
)
@click.option(
    "--overlays",
    type=click.Path(path_type=Path),
    default=Path("/var/lib/gpupool/overlays"),
    help="Where the disks of UEFI guests grow while they run.",
)
@click.option("--volumes", type=click.Path(path_type=Path), help="Where jobs' volumes are, the same on every host.")
@click.option("--simulate", help="Make up GPUs instead of using this machine's, e.g. 4xnvidia-a100-80gb.")
@click.option("--cgroup", type=click.Path(path_type=Path), help="cgroup v2 directory for the VMs.  [default: found]")
@click.option(
    "--libvirt-uri", default="", show_default="qemu:///system; its own if simulated", help="libvirt connection."
)
@click.option(
    "--profile",
    default="default",
    type=click.Choice(sorted(PROFILES)),
    help="Times that belong together, see docs/failover.md. Those given below replace the profile's.",
)
@click.option("--ttl-s", type=int, help="Seconds after which the cluster gives this host up (lease TTL).")
@click.option("--renew-s", type=float, help="Seconds between renewals of the lease.")
@click.option("--kill-margin-s", type=float, help="The guard kills VMs this long before the lease can end.")
@click.option(
    "--watchdog",
    default="off",
    metavar="DEVICE|off|auto",
    help="A hardware watchdog that resets this machine should the guard stand still. auto: /dev/watchdog0, if it fits.",
)
@click.option("--watchdog-s", type=int, help="The watchdog's timeout in seconds.")
@click.option(
    "--on-store-loss",
    default="stop",
    type=click.Choice(["stop", "keep-if-power-fencing"]),
    help="What becomes of VMs when no member of etcd answers for as long as the lease lasts.",
)
@click.option("--start-timeout-s", default=180.0, help="Seconds from a VM's start to its guest's first word.")
@click.option(
    "--reset-timeout-s",
    default=90.0,
    help="Seconds for each of bind, reset and proof of a unit.",
)
@click.option("--reserved-memory-mib", default=0, help="Memory of every NUMA node kept for the host, MiB.")
@click.option("--reserved-cpus", default="", help="Logical CPUs kept for the host, e.g. 0-3,8.")
@click.option(
    "--gpu", "gpus", multiple=True, help="PCI ids (vvvv:dddd) of a GPU whose class does not tell; may be repeated."
)
@click.option(
    "--nic",
    "nics",
    multiple=True,
    metavar="ADDRESS|IDS",
    help="A network function, by PCI address or ids (vvvv:dddd), that goes to VMs with the GPU nearest to it; may be "
    "repeated.",
)
@click.option(
    "--accept",
    multiple=True,
    type=click.Choice(ACCEPTABLE),
    help="A problem of `gpupool doctor` that is known and taken; may be repeated.",
)
@click.option("--pm-reset-is-enough", is_flag=True, help="Trust a power cycle through D3hot to clean a GPU.")
@click.option("--scrub-command", default="", help="Run between tenants, after a GPU's reset; exit code 0: it is clean.")
@click.option("--scrub-timeout-s", default=600.0, help="Seconds for the scrub command.")
@click.option("--label", "labels", multiple=True, help="key=value that jobs may ask for; may be repeated.")
@click.option("--boot-id", hidden=True, help="Stand-in for the kernel's boot id, to rehearse reboots.")
@click.option(
    "--give-back",
    is_flag=True,
    help="Only give every unit that nobody uses back to the host's drivers. Stop the agent first.",
)
@click.option("--log-level", default="info", type=click.Choice(["debug", "info", "warning", "error"]))
@click.version_option(version("gpupool"), prog_name="gpupool-agent")
def main(*, log_level: str, give_back: bool, **options: Any) -> None:
    """Run the gpupool agent of this KVM host.

    It runs the VMs that the scheduler places here, hands them whole GPUs, and proves each GPU clean afterwards. A guard
    process of its own kills all VMs if the cluster could give this host up. SIGTERM ends the agent and leaves VMs
    running; the next agent takes them over. Each option can be given in the environment, e.g. GPUPOOL_AGENT_NAME.
    """
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname).1s %(name)s: %(message)s", stream=sys.stderr
    )
    try:
        config = _config(**options)
    except (ConfigError, TimingError) as exc:
        click.echo(f"error: {exc}", err=True)
        sys.exit(2)
    try:
        if give_back:
            sys.exit(not asyncio.run(_give_back(config)))
        asyncio.run(run(config))
    except (StoreError, OSError, GuardError, RuntimeUnavailableError, ValueError) as exc:
        click.echo(f"error: {exc}", err=True)
        sys.exit(1)
    except ExceptionGroup as group:
        _log.exception("the agent cannot go on; VMs are left as they are")
        click.echo(f"error: {group.exceptions[0]}", err=True)
        sys.exit(1)


def _config(
    *,
    etcd: str,
    profile: str,
    ttl_s: int | None,
    renew_s: float | None,
    kill_margin_s: float | None,
    watchdog: str,
    watchdog_s: int | None,
    on_store_loss: str,
    start_timeout_s: float,
    labels: tuple[str, ...],
    reserved_cpus: str,
    gpus: tuple[str, ...],
    nics: tuple[str, ...],
    scrub_command: str,
    **rest: Any,
) -> Config:
    rest["boot_id"] = rest["boot_id"] or BOOT_ID_FILE.read_text().strip()
    rest["cgroup"] = rest["cgroup"] or default_cgroup(rest["name"])
    if rest["simulate"] is not None:
        _shape(rest["simulate"])
    device, why_none = find_watchdog(watchdog, simulated=rest["simulate"] is not None)
    if watchdog != "off" and device is None:
        _log.warning("no hardware watchdog, so the guard is soft: %s", why_none)
    times = {"ttl_s": ttl_s, "renew_s": renew_s, "kill_margin_s": kill_margin_s, "watchdog_s": watchdog_s}
    return Config(
        etcd=tuple(etcd.split(",")),
        timing=timing_of(profile, watchdog=device is not None, **times),
        watchdog=device,
        keep_on_store_loss=on_store_loss != "stop",
        limits=Limits(start_timeout_s=start_timeout_s),
        labels=parse_labels(labels),
        reserved_cpus=parse_cpus(reserved_cpus),
        gpus=parse_ids(gpus),
        nics=parse_nics(nics),
        scrub_command=parse_command(scrub_command),
        **rest,
    )


async def _give_back(config: Config) -> bool:
    """Whether no unit is left with vfio-pci."""
    if config.simulate is not None:
        raise ValueError("--give-back: a simulated host has no devices to give back")
    sysfs = IsolatedSysfs(RealSysfs())
    try:
        units = read_inventory(sysfs, allow=config.gpus, nics=config.nics).units
        refuse = partial(holders.refusals, RealSysfs(Path("/")), ours=())
        return await giveback.give_back(sysfs, units, refuse, click.echo)
    finally:
        sysfs.close()


async def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT; VMs stay."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    config.state_dir.mkdir(parents=True, exist_ok=True)
    if config.cgroup is not None:
        config.cgroup.mkdir(parents=True, exist_ok=True)
    store, runtime, clock = EtcdStore(config.etcd), _runtime(config), BootClock()
    # Pid files beside the cgroup: they also name a VM that was made, paused, and not put there yet when the agent died.
    guard = ProcessGuard(
        config.state_dir.resolve() / "guard.state", config.cgroup, run_dir(config.uri),
        watchdog=config.watchdog, watchdog_s=config.timing.watchdog_s,
        patience_s=config.timing.guard_patience_s,
    )  # fmt: skip
    await startup.answers(store, config.etcd)
    await guard.ensure()
    records = FileRecords(config.state_dir, config.boot_id)
    sysfs = IsolatedSysfs(RealSysfs(), records)

    def ours() -> set[int]:
        return {*_our_processes(config), *sysfs.pids()}

    users, doctor = Users(runtime, clock, ours), Doctor(config, store, clock, ours)
    devices = _devices(config, records, sysfs, users)
    logs = LogStore(config.state_dir / "logs", clock)
    service = AgentService(logs, doctor.report)
    server, port = await serve(config.listen, service)
    parts = Parts(
        store, runtime, guard, clock, devices, records, logs,
        DirectoryVolumes(config.volumes, config.name), lambda: list_images(config.images),
        reserved_cpus=config.reserved_cpus,
        judges=judges(config, users, doctor, Nvml(clock, records)),
        changes=Uevents().changes if config.simulate is None else None,
    )  # fmt: skip
    simulated = config.simulate is not None
    machine = machine_id(simulated_in=config.state_dir if simulated else None)
    me = Identity(config.name, config.boot_id, config.address(port), version("gpupool"), simulated, machine)
    try:
        service.agent = Agent(
            me, config.timing, config.limits, parts, unguarded=KEPT if config.keep_on_store_loss else ""
        )
        _log.info("host %s, machine %s, answers at %s", me.host, me.machine or "unknown", me.address)
        await _until(stop, service.agent)
    finally:
        await server.stop(grace=1.0)
        guard.release()
        sysfs.close()
        await runtime.close()
        await store.close()


async def _until(stop: asyncio.Event, agent: Agent) -> None:
    running = asyncio.create_task(agent.run())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not running.done():
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        _log.info("stopped; VMs and session are left as they are")
        return
    await running


def _devices(config: Config, records: FileRecords, sysfs: IsolatedSysfs, users: Users) -> SysfsDevices:
    policy = Policy(
        patience=Patience(step_s=config.reset_timeout_s),
        pm_reset_is_enough=config.pm_reset_is_enough,
        scrub_command=config.scrub_command,
        scrub_timeout_s=config.scrub_timeout_s,
    )
    memory = Memory(names=PciIds(), pairs=dict(records.load("pairs").get("nics", {})))
    look = partial(
        read_inventory,
        reserved_memory_mib=config.reserved_memory_mib,
        reserved_cpus=config.reserved_cpus,
        labels=config.labels,
        allow=config.gpus,
        pm_is_enough=config.pm_reset_is_enough,
        nics=config.nics,
        memory=memory,
    )

    def read(tree: Sysfs) -> Inventory:
        before = dict(memory.pairs)
        found = look(tree)
        if memory.pairs != before:  # the next agent of this boot must not give a VM's NIC to another GPU
            with contextlib.suppress(OSError):
                records.save("pairs", "nics", memory.pairs)
        return found

    if config.simulate is not None:
        simulated = _simulated(config)
        return SysfsDevices(
            simulated, records, policy=policy, read=read, allow=config.gpus, hot_reset=simulated.hot_reset
        )
    return SysfsDevices(
        sysfs,
        records,
        policy=policy,
        read=read,
        allow=config.gpus,
        hot_reset=sysfs.hot_reset,
        hung=sysfs.hung,
        refuse=users.refuse,
    )


def _our_processes(config: Config) -> set[int]:
    """Those of our VMs, also while one is being made, and this one."""
    cgroup = config.cgroup and str(config.cgroup).lstrip("/")
    members = holders.members(RealSysfs(Path("/")), cgroup) if cgroup else frozenset()
    return {*members, *pids(run_dir(config.uri)), os.getpid()}


def _simulated(config: Config) -> SimulatedSysfs:
    from .simulated.kernel import SimulatedSysfs  # noqa: PLC0415
    from .simulated.tree import build_tree  # noqa: PLC0415 - only simulated hosts need it

    assert config.simulate is not None
    tree = config.state_dir / "sysfs"
    build_tree(tree, _shape(config.simulate))
    return SimulatedSysfs(tree)


def _shape(gpus: str) -> HostShape:
    """The simulated host with these GPUs. Raises ConfigError."""
    from .simulated.tree import parse_shape  # noqa: PLC0415 - as above

    try:
        return parse_shape(gpus)
    except ValueError as exc:
        raise ConfigError(f"--simulate: {exc}") from None


def _runtime(config: Config) -> VmRuntime:
    try:
        from .vms.hypervisor import LibvirtRuntime  # noqa: PLC0415 - libvirt is loaded only where VMs are run
    except ImportError as exc:
        raise OSError(f"libvirt's Python module is missing ({exc}); install gpupool[agent]") from exc
    return LibvirtRuntime(
        uri=config.uri,
        images=config.images,
        state_dir=config.state_dir,
        cgroup=config.cgroup,
        simulated=config.simulate is not None,
        overlays=None if config.simulate is not None else config.overlays / config.name,
    )


if __name__ == "__main__":
    main()
