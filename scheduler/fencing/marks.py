"""Which device it is, as a mark that can be stored: a hash of where it is, so that another device has another mark.

Nothing but the address goes in: the mark must stay the same when a user, a password or a way to talk changes, since
a device with another mark is taken for another device, of which nothing is known (core/failover/devices.py). It must
never be made of anything secret. A change that it does not see costs a word of the operator; one that it sees, and that
is none, makes the scheduler learn anew whose the device is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

WHERE = ("ip", "ipaddr", "ipport", "devices", "device", "tty")  # of fence programs: what is talked to
WHICH = ("plug", "port", "systems_uri", "uuid", "slot", "blade")  # and which of those behind it


def mark(where: str, which: str = "") -> str:
    """The mark of a device at an address; `which`: of several there."""
    return hashlib.sha256(f"gpupool fence device {where.lower()} {which}".encode()).hexdigest()[:12]


def mark_of_parameters(parameters: Mapping[str, str]) -> str:
    """The mark of what a fence program is told to switch."""
    plain = {name.replace("-", "_"): value for name, value in parameters.items()}
    where, which = ([f"{name}={plain[name]}" for name in names if name in plain] for names in (WHERE, WHICH))
    return mark(" ".join(where), " ".join(which))
