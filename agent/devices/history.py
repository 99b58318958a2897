"""What became of each unit's reclaims, kept through the agent's restarts. The arithmetic is pure."""

from __future__ import annotations

import hashlib
from functools import lru_cache

from google.protobuf import json_format

from gpupool.v1.inventory_pb2 import Unit
from gpupool.v1.records_pb2 import UnitHistory

from ..work.records import Records

_KIND = "history"


def succeeded(before: UnitHistory, method: str, at_s: float, duration_s: float) -> UnitHistory:
    """The history after a reclaim that ended with proof. `method` of the reset; empty: none was needed."""
    after = _after(before, at_s, duration_s)
    after.last_method = method
    return after


def failed(before: UnitHistory, reason: str, at_s: float, duration_s: float) -> UnitHistory:
    """The history after a reclaim that ended in quarantine for `reason`."""
    after = _after(before, at_s, duration_s)
    after.failures += 1
    after.last_failure = reason
    return after


def _after(before: UnitHistory, at_s: float, duration_s: float) -> UnitHistory:
    after = UnitHistory()
    after.CopyFrom(before)
    after.reclaims += 1
    after.last_s, after.last_duration_s = at_s, round(duration_s, 3)
    return after


def record_name(unit: Unit) -> str:
    """A name for records of this very device: one at another address, or another at this address, has another."""
    addresses = " ".join(function.address for function in unit.functions)
    return _digest(f"{unit.identity or unit.id} {addresses}")


def identity_name(unit: Unit) -> str:
    """A name for records that follow the device to wherever it is put."""
    return _digest(unit.identity or unit.id)


@lru_cache(1024)  # asked for each unit whenever reports are made
def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Histories:
    """The histories of the units of this host. `records` do not outlive a boot; the store's copy does, see `recall`."""

    def __init__(self, records: Records) -> None:
        self._records = records
        loaded = records.load(_KIND)
        self._known = {name: json_format.ParseDict(data, UnitHistory()) for name, data in loaded.items()}

    def of(self, unit: Unit) -> UnitHistory:
        """The unit's history; an empty one if it was never reclaimed."""
        return self._known.get(identity_name(unit), UnitHistory())

    def keep(self, unit: Unit, history: UnitHistory) -> None:
        """Remember it, on disk first."""
        data = json_format.MessageToDict(history, preserving_proto_field_name=True)
        self._records.save(_KIND, identity_name(unit), data)
        self._known[identity_name(unit)] = history

    def recall(self, identity: str, history: UnitHistory) -> None:
        """Take over what was last reported of the unit, unless this boot knows more."""
        unit = Unit(identity=identity)
        if history.reclaims and identity_name(unit) not in self._known:
            self.keep(unit, history)
