"""Which jobs no known host could ever take, and why, by what agents have told: kept up from a mirror, in turns.

It decides nothing; `core/fitting/known.py` does. It must not hold others up: a large fleet's inventories are
read a few at a time.
"""

from __future__ import annotations

import asyncio

from gpupool.store.keys import Kind
from gpupool.v1 import inventory_pb2, job_pb2

from ..codec.decode_hosts import inventory_of
from ..codec.decode_jobs import member_of, request_of
from ..codec.decode_rules import models_of
from ..core.fitting.known import Known
from ..core.state.hugepages import size_name
from ..core.state.jobs import party_of
from ..mirror.mirror import Mirror

TURN = 32  # inventories between two looks at what else there is to do


class KnownHosts:
    """See the module docstring."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._known = Known()
        self.version = 0  # grows whenever something was taken in
        self._stale = {ids[0] for ids in mirror.ids(Kind.INVENTORY)}
        mirror.listen(self._noticed, Kind.INVENTORY)

    def _noticed(self, kind: Kind, ids: tuple[str, ...]) -> None:
        del kind
        self._stale.add(ids[0])

    async def refresh(self) -> None:
        """Take in what was told since the last time."""
        done = 0
        while self._stale:
            name = self._stale.pop()
            wire = self._mirror.get(Kind.INVENTORY, inventory_pb2.Inventory, name)
            self._known.update(name, inventory_of(wire) if wire is not None else None)
            self.version += 1
            done += 1
            if done % TURN == 0:
                await asyncio.sleep(0)

    def impossible(self, spec: job_pb2.JobSpec) -> list[str]:
        """Why no known host could ever take a job of this spec, which has no faults.

        Empty: one could, or none is known, or was not looked at yet.
        """
        missing = self.missing(spec)
        if missing:
            return missing
        request = request_of(spec)
        miss = self._known.impossible(request)
        if miss is not None:
            return [f"no known host could ever take it, even if it were empty: {miss}"]
        if not spec.gang.count:
            return []
        short = self._known.too_large(party_of(request, member_of(spec.gang)), request)
        return [f"the gang is larger than all known hosts, even if they were empty: {short}"] if short else []

    def missing(self, spec: job_pb2.JobSpec) -> list[str]:
        """What the spec names that no host has that was looked at. With none known, nothing can be said."""
        if not self._known:
            return []
        models, images, page_sizes_kib = self._known.at_hand()
        missing = []
        wanted = models_of(spec.gpus)
        if wanted and not models.intersection(wanted):
            have = ", ".join(sorted(models)) or "none"
            one = len(wanted) == 1
            what = (
                f"gpus.model {wanted[0]!r}: no host has it" if one else f"gpus.models {wanted}: no host has any of them"
            )
            missing.append(f"{what}; GPU models at hand: {have}")
        if spec.image and spec.image not in images:
            have = ", ".join(sorted(images)) or "none"
            missing.append(f"image {spec.image!r}: no host has it; images at hand: {have}")
        if spec.vm.hugepage_size_kib and spec.vm.hugepage_size_kib not in page_sizes_kib:
            have = ", ".join(map(size_name, sorted(page_sizes_kib))) or "none"
            size = size_name(spec.vm.hugepage_size_kib)
            missing.append(f"vm.hugepage_size_kib: no host has set pages of {size} aside; sizes at hand: {have}")
        return missing
