"""The part of an agent that runs VMs, as a process of its own: `python -m tests.e2e.vm_agent ROOT IMAGES [COMMAND]`.

With a command it starts the VM "adopted" that runs it. Either way it prints each event as a line of repr, until killed.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from agent.ports import GuestCell, PassedFunction, VmEvent, VmSpec
from agent.vms.hypervisor import LibvirtRuntime


def runtime(root: Path, images: Path, cgroup: Path | None = None) -> LibvirtRuntime:
    return LibvirtRuntime(
        uri=os.environ.get("VM_URI") or f"qemu:///embed?root={root}/libvirt",
        images=images,
        state_dir=root,
        cgroup=cgroup,
        simulated=True,
        accel="tcg",
    )


def spec(allocation: str, script: str, *, gpus: int = 1) -> VmSpec:
    addresses = [f"0000:{unit:02x}:00.{part}" for unit in range(1, gpus + 1) for part in (0, 1)]
    return VmSpec(
        allocation=allocation,
        image="debian-numpy",
        command=("sh", "-c", script),
        env=(("WHO", "me"),),
        vcpus=1,
        memory_mib=128,
        cells=(GuestCell(0, ((0,),), 128),),
        functions=tuple(map(PassedFunction, addresses)),
    )


def say(*words: VmEvent | str) -> None:
    print(*words, flush=True)  # noqa: T201


async def main(root: str, images: str, *command: str) -> None:
    vms = runtime(Path(root), Path(images))
    await vms.open(say)
    say("open", *await vms.running())
    if command:
        await vms.start(spec("adopted", command[0]), may_run=lambda: True)
        say("running")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
